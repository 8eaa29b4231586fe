//! What the daemon makes of files that people edit, and of file systems that are not mounted.

use std::fs;

use crate::common::{Node, image, master_and_replica, text, wait_for, write};
use zumastor::api::{HeadStatus, Health, Role};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

/// A mount point without its file system is an empty directory.
fn unmount(node: &Node, name: &str) {
    fs::rename(node.path(name), node.path(&format!("{name}.away"))).unwrap();
    fs::create_dir(node.path(name)).unwrap();
}

fn mount(node: &Node, name: &str) {
    fs::remove_dir(node.path(name)).unwrap();
    fs::rename(node.path(&format!("{name}.away")), node.path(name)).unwrap();
}

#[test]
fn a_store_that_is_not_mounted_is_waited_for_and_never_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta) = master_and_replica(dir.path(), MIB, &[], &["--period", "1"]);
    let shows = |number| {
        move |v: &zumastor::api::VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)))
    };
    beta.wait_until("v", "the first snapshot", shows(0));
    assert!(fs::read_to_string(alpha.path("etc/volumes/v.toml")).unwrap().contains("\nstore = \""));
    for node in [&mut alpha, &mut beta] {
        assert_eq!(node.down(), 0);
        unmount(node, "v.snaps");
        node.up();
        let volume = node.volume("v");
        assert_eq!(volume.health, Health::Unavailable);
        let trouble = volume.trouble.unwrap();
        assert!(trouble.contains("v.snaps") && trouble.contains("is its file system mounted?"), "{trouble}");
        assert!(node.ok(&["status"]).contains("UNAVAILABLE"));
    }
    assert!(alpha.fails(3, &["snapshot", "v"]).contains("is its file system mounted?"));
    for node in [&alpha, &beta] {
        // Each look tries to open the store once more.
        (0..3).for_each(|_| assert_eq!(node.volume("v").health, Health::Unavailable));
        assert_eq!(fs::read_dir(node.path("v.snaps")).unwrap().count(), 0, "a store was made");
        mount(node, "v.snaps");
        node.wait_until("v", "the store to be found", |v| v.health != Health::Unavailable);
    }
    write(&alpha.path("v.img"), 0, b"later");
    assert!(alpha.ok(&["snapshot", "v"]).starts_with("1  "));
    beta.wait_until("v", "the second snapshot", shows(1));
    assert_eq!(beta.digest("v"), alpha.digest("v"));

    // Another store is not this one.
    alpha.down();
    fs::rename(alpha.path("v.snaps"), alpha.path("v.snaps.away")).unwrap();
    alpha.up();
    image(&alpha.path("other.img"), MIB, 2);
    let (other, place) = (text(&alpha.path("other.img")), text(&alpha.path("other.snaps")));
    alpha.ok(&["define", "volume", "other", &other, &place]);
    alpha.ok(&["forget", "volume", "other"]);
    alpha.down();
    fs::rename(alpha.path("other.snaps"), alpha.path("v.snaps")).unwrap();
    alpha.up();
    let trouble = alpha.volume("v").trouble.unwrap();
    assert!(trouble.contains("is not the one that this volume was defined with"), "{trouble}");
    alpha.down();
    fs::remove_dir_all(alpha.path("v.snaps")).unwrap();
    fs::rename(alpha.path("v.snaps.away"), alpha.path("v.snaps")).unwrap();

    // Nor is a master without its origin a volume.
    fs::rename(alpha.path("v.img"), alpha.path("v.img.away")).unwrap();
    alpha.up();
    let volume = alpha.volume("v");
    assert_eq!(volume.health, Health::Unavailable);
    let trouble = volume.trouble.unwrap();
    assert!(trouble.contains("v.img does not exist: is its file system mounted?"), "{trouble}");
    fs::rename(alpha.path("v.img.away"), alpha.path("v.img")).unwrap();
    assert_eq!(alpha.volume("v").health, Health::Ok);
}

#[test]
fn a_hand_written_volume_takes_up_a_store_and_keeps_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), MIB, 1);
    node.define("v");
    let file = node.path("etc/volumes/v.toml");
    let written = fs::read_to_string(&file).unwrap();
    node.down();
    let by_hand: String =
        written.lines().filter(|line| !line.starts_with("store")).map(|line| format!("{line}\n")).collect();
    assert_ne!(by_hand, written);
    fs::write(&file, by_hand).unwrap();
    node.up();
    wait_for("the identity", || (fs::read_to_string(&file).unwrap() == written).then_some(()));
    // Chunks that it does not have are not had in silence.
    node.down();
    fs::write(&file, format!("chunk = '128K'\n{written}")).unwrap();
    node.up();
    let warning = "chunk = \"128K\" has no effect: the store (";
    wait_for("a warning", || fs::read_to_string(node.path("log")).unwrap().contains(warning).then_some(()));
    fs::write(&file, &written).unwrap();
    // Without a store there is nothing to take up.
    node.down();
    let place = format!("origin = '{0}/w.img'\nsnapstore = '{0}/w.snaps'\n", node.root.display());
    fs::write(node.path("etc/volumes/w.toml"), place).unwrap();
    node.up();
    assert_eq!(node.volume("w").health, Health::Unavailable);
    assert!(!node.path("w.snaps").exists());
    assert_eq!(node.volume("v").health, Health::Ok);
}

#[test]
fn edits_by_hand_are_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), MIB, 1);
    node.define("v");
    let file = node.path("etc/volumes/v.toml");
    let edited = format!("{}\n[master]\n", fs::read_to_string(&file).unwrap());
    fs::write(&file, &edited).unwrap();
    for command in [&["define", "master", "v"][..], &["forget", "volume", "v"]] {
        let error = node.fails(3, command);
        assert!(error.contains("etc/volumes/v.toml was edited since the daemon read it"), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), edited);
    node.down();
    node.up();
    assert!(node.ok(&["define", "master", "v"]).contains("already"));
    // A bad file stops the start, and is named.
    node.down();
    fs::write(&file, format!("{edited}[source]\nhost = 'beta'\n")).unwrap();
    let error = node.fails(1, &["daemon"]);
    assert!(
        error.contains("etc/volumes/v.toml, line 6: source: a volume has [master] or [source]"),
        "{error}"
    );
}

#[test]
fn a_role_that_was_edited_while_the_daemon_was_away_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    let path = beta.path("etc/volumes/v.toml");
    let file = || fs::read_to_string(&path).unwrap();
    // Nothing is done with the volume, and all with others, until the file is what it was.
    let refused = |node: &mut Node, text: &str, was: &str| {
        let before = file();
        fs::write(&path, text).unwrap();
        node.up();
        let volume = node.volume("v");
        let said = volume.trouble.clone().unwrap_or_default();
        assert_eq!(volume.health, Health::Unavailable, "{volume:?}");
        assert!(said.contains("volumes/v.toml makes this node another master"), "{said}");
        assert!(said.contains(was) && said.contains("`zumastor promote v`"), "{said}");
        assert!(said.contains("`zumastor forget volume v`"), "{said}");
        for args in [
            &["snapshot", "v"][..],
            &["promote", "v"],
            &["replicate", "v", "alpha", "--wait"],
            &["define", "target", "v", "gamma"],
            &["define", "schedule", "v", "-h", "3"],
        ] {
            let ran = node.run(args);
            assert!(ran.code != 0 && !ran.err.is_empty(), "{args:?}: {ran:?}");
        }
        assert!(node.fails(3, &["reload"]).contains("nothing was applied"));
        assert_eq!(file(), text, "the file was written");
        assert_eq!(node.volume("w").health, Health::Ok);
        node.ok(&["snapshot", "w"]);
        // Also when the daemon is killed meanwhile.
        node.kill();
        node.up();
        assert_eq!(node.volume("v").health, Health::Unavailable);
        fs::write(&path, before).unwrap();
        let told = node.run(&["reload"]);
        assert!(told.code == 0 && told.err.contains("volume v is what it was before"), "{told:?}");
        node.wait_until("v", "the volume", |volume| volume.health != Health::Unavailable);
        assert_eq!(node.down(), 0);
    };
    let as_master = |text: &str| text.replace("[source]\nhost = \"alpha\"", "[master]");
    image(&beta.path("w.img"), MIB, 1);
    beta.define("w");
    beta.ok(&["define", "master", "w"]);
    // While it runs, and while it does not.
    let replica = file();
    assert_ne!(as_master(&replica), replica);
    fs::write(&path, as_master(&replica)).unwrap();
    assert!(beta.fails(3, &["reload"]).contains("more than a line in a file"));
    fs::write(&path, &replica).unwrap();
    assert_eq!(beta.down(), 0);
    refused(&mut beta, &as_master(&replica), "so that it has no [master]");
    beta.up();
    assert_eq!(beta.volume("v").role, Role::Replica);
    // What commands do is no edit, also when the daemon is started after them.
    beta.ok(&["promote", "v"]);
    assert_eq!(beta.down(), 0);
    beta.up();
    assert_eq!(beta.volume("v").role, Role::Master);
    let master = file();
    let epoch = master.lines().find(|line| line.starts_with("epoch = ")).unwrap().to_owned();
    beta.kill();
    refused(&mut beta, &master.replace(&epoch, "epoch = 7"), &epoch);
    refused(&mut beta, &replica, &epoch);
    // To be neither is nobody's business but this node's.
    fs::write(&path, replica.replace("[source]\nhost = \"alpha\"", "")).unwrap();
    beta.up();
    assert_eq!(beta.volume("v").role, Role::Undecided);
    // But what it was before is not forgotten by that.
    assert_eq!(beta.down(), 0);
    refused(&mut beta, &as_master(&replica), &epoch);
    fs::write(&path, &master).unwrap();
    beta.up();
    assert_eq!(beta.volume("v").role, Role::Master);
    beta.ok(&["define", "source", "v", "alpha", "--yes"]);
    beta.ok(&["forget", "source", "v"]);
    beta.kill();
    let neither = file();
    refused(&mut beta, &format!("{neither}\n[master]\n"), "so that it has no [master]");
    beta.up();
    // Another volume of that name has nothing to do with it; what was edited goes on as such.
    beta.kill();
    fs::write(&path, format!("{neither}\n[master]\n")).unwrap();
    beta.up();
    assert_eq!(beta.volume("v").health, Health::Unavailable);
    beta.ok(&["forget", "volume", "v"]);
    beta.define("v");
    beta.ok(&["define", "source", "v", "alpha"]);
}
