//! Commands, their refusals, and what survives a restart.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::common::{Node, image, introduce, master_and_replica, text};
use zumastor::api::{HeadStatus, Role};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

#[test]
fn without_a_daemon_commands_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    // A second daemon with the same state is refused while the first runs.
    let error = node.fails(1, &["daemon", "--listen", "127.0.0.1:0"]);
    assert!(error.contains("another daemon is running"), "{error}");
    assert_eq!(node.down(), 0);
    assert!(!node.path("run/control.sock").exists());
    let error = node.fails(1, &["status"]);
    assert!(error.contains("no daemon is running") && error.contains("`zumastor daemon`"), "{error}");
    // What a killed daemon leaves behind is no obstacle.
    node.up();
    node.kill();
    assert!(node.fails(1, &["status"]).contains("no daemon is running"));
    node.up();
    assert_eq!(
        node.fails(2, &["define", "volume", "v"]).lines().next().map(|line| line.starts_with("error:")),
        Some(true)
    );
}

#[test]
fn the_daemon_takes_all_files_it_may_have_and_keeps_its_state_to_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    node.down();
    let mode = |name: &str| fs::metadata(node.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("lib/state.redb"), 0o600);
    fs::set_permissions(node.path("lib"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut daemon = Command::new("sh")
        .args(["-c", "ulimit -S -n 99 && exec \"$0\" daemon --listen 127.0.0.1:0 --name alpha"])
        .arg(env!("CARGO_BIN_EXE_zumastor"))
        .env("ZUMASTOR_ROOT", &node.root)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    crate::common::wait_for("the daemon to answer", || (node.run(&["status"]).code == 0).then_some(()));
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id())).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let values: Vec<_> = files.split_whitespace().collect();
    assert_eq!(values[3], values[4], "{files}");
    assert_eq!(mode("lib"), 0o700);
}

#[test]
fn a_bad_configuration_is_refused_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    node.down();
    fs::write(node.path("etc/peers.toml"), "\n[peer.beta]\nkey = 7\n").unwrap();
    let error = node.fails(1, &["daemon"]);
    assert!(
        error.contains("etc/peers.toml, line 3: peer.beta.key is 7, and must be a text in quotes"),
        "{error}"
    );
    fs::write(node.path("etc/peers.toml"), "").unwrap();
    // A path that is too long for a socket is said to be so, by the daemon and by its client.
    node.root.push("x".repeat(100));
    for command in ["daemon", "status"] {
        let error = node.fails(1, &[command]);
        assert!(error.contains("control socket") && error.contains("ZUMASTOR_ROOT"), "{error}");
    }
    assert!(!node.root.exists());
}

#[test]
fn volumes_are_defined_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), MIB, 1);
    node.define("v");
    node.define("v");
    let (image, other) = (text(&node.path("v.img")), text(&node.path("other.snaps")));
    let error = node.fails(3, &["define", "volume", "v", &image, &other]);
    assert!(error.contains("volume v is defined already") && error.contains(&image), "{error}");
    let error = node.fails(3, &["define", "volume", "w", &image, &other]);
    assert!(error.contains("belongs to volume v"), "{error}");
    // Neither master nor replica yet.
    assert!(node.fails(3, &["snapshot", "v"]).contains("define master v"));
    assert!(node.fails(1, &["snapshot", "x"]).contains("there is no volume x"));
    node.ok(&["define", "master", "v"]);
    assert!(node.ok(&["define", "master", "v"]).contains("already"));

    // An origin that is missing may be received, but not mastered.
    node.define("absent");
    let error = node.fails(1, &["define", "master", "absent"]);
    assert!(error.contains("absent.img does not exist"), "{error}");
    let error = node.fails(3, &["define", "volume", "d", &text(&node.path("etc")), &other]);
    assert!(error.contains("is no regular file"), "{error}");
    // Nor may an origin and a snapshot store share a place.
    let (place, inside) = (text(&node.path("new")), text(&node.path("new/inside")));
    for (origin, snapstore) in [(&place, &place), (&place, &inside), (&inside, &place)] {
        let error = node.fails(3, &["define", "volume", "d", origin, snapstore]);
        assert!(error.contains("must not be one, nor lie in each other"), "{error}");
    }
    assert!(!node.path("new").exists());
    let error = node.fails(3, &["define", "volume", "d", &text(&node.path("v.snaps/d.img")), &other]);
    assert!(error.contains("d.img belongs to volume v"), "{error}");
    let ran = node.run(&["define", "volume", "later", &text(&node.path("later.img")), &other]);
    assert!(ran.code == 0 && ran.err.contains("for a master, check the path"), "{ran:?}");
    assert!(!ran.err.contains("define master"), "{ran:?}");
}

#[test]
fn snapshots_are_numbered_held_and_released() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), MIB, 1);
    node.define("v");
    node.ok(&["define", "master", "v"]);
    for number in 0..3 {
        let out = node.ok(&["snapshot", "v"]);
        let (first, name) = out.trim().split_once("  ").unwrap();
        assert_eq!(first, number.to_string());
        let shape: String = name.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "9999.99.99-99.99.99");
    }
    node.ok(&["hold", "v", "1", "before the upgrade"]);
    assert!(node.ok(&["hold", "v", "1", "before the upgrade"]).contains("already"));
    assert!(node.fails(1, &["hold", "v", "9", "x"]).contains("no snapshot 9"));
    assert_eq!(node.down(), 0);
    node.up();
    let volume =
        node.wait_until("v", "digests", |v| v.snapshots.iter().all(|snapshot| snapshot.digest.is_some()));
    assert_eq!(volume.role, Role::Master);
    assert_eq!(volume.snapshots[1].holds[0].name, "before the upgrade");
    // As JSON: by whom, since when, and why.
    let json: serde_json::Value = serde_json::from_str(&node.ok(&["status", "v", "1", "--json"])).unwrap();
    let hold = &json["snapshot"]["holds"][0];
    assert_eq!((&hold["owner"], &hold["why"]), (&"user".into(), &"before the upgrade".into()), "{json}");
    let since: jiff::Timestamp = hold["since"].as_str().unwrap().parse().unwrap();
    assert!(
        since
            >= volume.snapshots[1].created.round(jiff::Unit::Second).unwrap() - jiff::Span::new().seconds(1)
    );
    assert!(node.ok(&["status", "v"]).contains("user (before the upgrade)"));
    node.ok(&["release", "v", "1", "before the upgrade"]);
    assert!(node.fails(1, &["release", "v", "1", "before the upgrade"]).contains("is not held"));
    assert!(node.ok(&["snapshot", "v"]).starts_with("3  "));
}

#[test]
fn forgotten_volumes_keep_their_data_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    let digest = beta.digest("v");

    // Holds of a peer are lifted by forgetting the peer, not by hand.
    let error = alpha.fails(3, &["release", "v", "0", "base"]);
    assert!(error.contains("replication with beta holds snapshot 0"), "{error}");
    alpha.ok(&["forget", "target", "v", "beta"]);
    assert!(alpha.volume("v").snapshots[0].holds.is_empty());
    let error = beta.fails(3, &["replicate", "v", "alpha", "--wait"]);
    assert!(error.contains("zumastor define target v beta"), "{error}");

    beta.ok(&["forget", "source", "v"]);
    beta.ok(&["forget", "volume", "v"]);
    assert!(beta.status().volumes.is_empty());
    assert_eq!(beta.digest("v"), digest);
    let (image, snapshots) = (text(&beta.path("v.img")), text(&beta.path("v.snaps")));
    let ran = beta.run(&["define", "volume", "v", &image, &snapshots]);
    assert!(ran.code == 0 && ran.err.contains("1 snapshots were there already: 0"), "{ran:?}");
    // It goes on from what is there.
    alpha.ok(&["define", "target", "v", "beta"]);
    beta.ok(&["define", "source", "v", "alpha"]);
    crate::common::write(&alpha.path("v.img"), 0, b"new");
    alpha.ok(&["snapshot", "v"]);
    let out = alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert!(out.starts_with("snapshot 1 replicated from snapshot 0: 4.00 KiB"), "{out}");

    // A master that comes back goes on counting.
    alpha.ok(&["forget", "volume", "v"]);
    alpha.define("v");
    alpha.ok(&["define", "master", "v"]);
    assert!(alpha.ok(&["snapshot", "v"]).starts_with("2  "));
}

#[test]
fn peers_and_roles_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    // Peers.
    let own = alpha.ok(&["peer", "ticket"]);
    assert!(alpha.fails(3, &["peer", "add", "me", own.trim()]).contains("own ticket"));
    let ticket = beta.ok(&["peer", "ticket"]);
    assert!(alpha.fails(3, &["peer", "add", "other", ticket.trim()]).contains("known already, as beta"));
    assert!(alpha.fails(2, &["peer", "add", "other", "nonsense"]).contains("no ticket"));
    assert!(alpha.fails(3, &["peer", "remove", "beta"]).contains("forget target v beta"));
    assert!(alpha.fails(1, &["peer", "remove", "nobody"]).contains("no peer nobody"));
    let list = alpha.ok(&["peer", "list"]);
    assert!(alpha.ok(&["peer", "list", "--json"]).starts_with("{\n  \"schema\": 1,\n  \"peers\": ["));
    assert!(list.starts_with("beta  ") && list.lines().count() == 1, "{list}");
    let given = beta.ok(&["peer", "ticket", "--address", "beta.example:7"]);
    assert!(alpha.ok(&["peer", "add", "beta", given.trim()]).contains("beta is a peer now"));
    assert!(alpha.ok(&["peer", "list"]).contains("beta.example:7"));
    alpha.ok(&["peer", "add", "beta", ticket.trim()]);

    // Hosts and roles.
    let before = fs::read_to_string(beta.path("etc/peers.toml")).unwrap();
    assert!(beta.fails(3, &["define", "target", "v", "alpha:7"]).contains("comes from alpha"));
    assert_eq!(fs::read_to_string(beta.path("etc/peers.toml")).unwrap(), before, "an address was noted");
    for verb in ["source", "target"] {
        let error = beta.fails(1, &["define", verb, "v", "nobody"]);
        assert!(error.contains("nobody is no peer") && error.contains("zumastor peer add"), "{error}");
    }
    assert!(alpha.fails(3, &["define", "source", "v", "beta"]).contains("is the master of volume v"));
    assert!(beta.fails(1, &["define", "master", "v"]).contains("nothing has been received yet"));
    assert!(beta.fails(3, &["define", "target", "v", "alpha"]).contains("comes from alpha"));
    assert!(beta.fails(3, &["snapshot", "v"]).contains("is a replica"));
    assert!(beta.ok(&["define", "source", "v", "alpha"]).contains("already"));
    beta.define("w");
    assert!(
        beta.fails(3, &["define", "source", "w", "alpha", "-n", "v"])
            .contains("receives v from alpha already")
    );
    assert!(beta.fails(1, &["replicate", "w", "alpha"]).contains("neither a target nor the source"));

    // A peer that is known but no target learns what is missing, and not whether there is such a volume.
    beta.ok(&["define", "source", "w", "alpha"]);
    let error = beta.fails(3, &["replicate", "w", "alpha", "--wait"]);
    assert!(
        error.contains("alpha does not send volume w to you") && error.contains("define target w beta"),
        "{error}"
    );
    // The other way: a target that does not want it.
    beta.ok(&["forget", "source", "v"]);
    let error = alpha.fails(3, &["replicate", "v", "beta", "--wait"]);
    assert!(error.contains("define source v alpha"), "{error}");
}

#[test]
fn sizes_are_had_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), MIB, 1);
    let (image, snaps) = (text(&node.path("v.img")), text(&node.path("v.snaps")));
    let define = |node: &Node, options: &[&str]| {
        node.run(&[&["define", "volume", "v", &image, &snaps], options].concat())
    };
    for (options, why) in [
        (&["-c", "3000"][..], "power of two and larger than 512"),
        (&["-b", "512"], "power of two and larger than 512"),
        (&["-c", "many"], "is not a size"),
        (&["-b", "4K", "-c", "64K"], "separate metadata device"),
        (&["-k", "1M"], "give 16M or more"),
    ] {
        let ran = define(&node, options);
        assert!(ran.code == 2 && ran.err.contains(why), "{options:?}: {ran:?}");
    }
    // What an image file cannot have is refused, and nothing is left of the attempt.
    let ran = define(&node, &["--chunksize", "1M", "--blocksize", "1M"]);
    assert!(ran.code == 3 && ran.err.contains("cannot have chunks of 1.00 MiB"), "{ran:?}");
    assert!(!node.path("v.snaps").exists() && node.status().volumes.is_empty());
    let ran = define(&node, &["--metadev", "/dev/null"]);
    assert!(ran.code == 3 || ran.code == 1, "{ran:?}");
    // What it has anyway may be asked for: by its own word.
    let has = if ran_in_reflink(&node, &image) { "4K" } else { "64K" };
    let ran = define(&node, &["-c", has, "-b", has, "-k", "24M"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let cache = node.volume("v").cache;
    assert_eq!((cache.size, cache.streams), (24 << 20, 1));
    assert!(node.ok(&["status", "v"]).contains("cache      24.0 MiB at most, "));
    // It can be changed, and is what the file says after a restart.
    assert!(define(&node, &["-k", "512M"]).out.contains("may take 512 MiB"));
    assert!(define(&node, &["-k", "512M"]).out.contains("already"));
    node.down();
    node.up();
    assert_eq!(node.volume("v").cache.size, 512 << 20);
    let file = fs::read_to_string(node.path("etc/volumes/v.toml")).unwrap();
    assert!(file.contains("cache = \"512M\"\n") && file.contains("chunk = \""), "{file}");
    // A usual one is bounded.
    node.define("w");
    assert!(node.volume("w").cache.size <= 128 << 20);
    // It must do for all that the volume is sent to.
    let target = |node: &Node, host: &str| node.run(&["define", "target", "v", host]);
    assert_eq!(define(&node, &["-k", "16M"]).code, 0);
    let peers = ["beta", "gamma", "delta"].map(|name| Node::start(dir.path(), name));
    peers.iter().for_each(|peer| introduce(&node, peer));
    assert_eq!((target(&node, "beta").code, target(&node, "gamma").code), (0, 0));
    let ran = target(&node, "delta");
    let told =
        "a cache of 16.0 MiB is too small to send the volume to 3 nodes at a time: give it 24M or more";
    assert!(
        ran.code == 3 && ran.err.contains(told) && ran.err.contains("--cachesize SIZE` changes it"),
        "{ran:?}"
    );
    assert_eq!((define(&node, &["-k", "24M"]).code, target(&node, "delta").code), (0, 0));
    assert!(define(&node, &["-k", "16M"]).err.contains(told));
    // What a file says all the same, as one that was good before there were so many, is no reason not to start: it takes what it
    // needs, and says so.
    let path = node.path("etc/volumes/v.toml");
    let file = fs::read_to_string(&path).unwrap();
    for (given, told) in [("16M", told), ("1M", "a cache of 1.00 MiB is too small to receive anything")] {
        node.down();
        fs::write(&path, file.replace("\"24M\"", &format!("{given:?}"))).unwrap();
        node.up();
        let cache = node.volume("v").cache;
        assert_eq!(cache.size, 24 << 20);
        assert!(cache.caution.is_some_and(|caution| caution.contains(told)));
        let status = node.ok(&["status", "v"]);
        assert!(status.contains(told) && status.contains("until then it takes 24.0 MiB"), "{status}");
    }
    assert_eq!(define(&node, &["-k", "24M"]).code, 0);
    assert_eq!(node.volume("v").cache.caution, None);
}

/// Whether snapshots are reflinks where a node's files are.
fn ran_in_reflink(node: &Node, image: &str) -> bool {
    let probe = text(&node.path("probe"));
    let copied = Command::new("cp").args(["--reflink=always", image, &probe]).output().unwrap();
    let _ = fs::remove_file(probe);
    copied.status.success()
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_zumastor")).args(args).output().unwrap();
        crate::common::ran(&output)
    };
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]);
        assert!(ran.code == 0 && ran.out.contains("replicate") && ran.out.contains("snapnum"), "{shell}");
    }
    assert_eq!(run(&["completions", "tcsh"]).code, 2);
    assert!(run(&["man"]).out.contains("zumastor"));
    let pages = dir.path().join("man1");
    assert_eq!(run(&["man", &text(&pages)]).code, 0);
    for page in ["zumastor.1", "zumastor-status.1", "zumastor-define-target.1"] {
        assert!(fs::read_to_string(pages.join(page)).unwrap().contains(".TH"), "{page}");
    }
}

#[test]
fn a_stranger_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    let mallory = Node::start(dir.path(), "mallory");
    // Mallory knows alpha, but alpha does not know mallory.
    let ticket = alpha.ok(&["peer", "ticket"]);
    mallory.ok(&["peer", "add", "alpha", ticket.trim()]);
    mallory.define("v");
    mallory.ok(&["define", "source", "v", "alpha"]);
    let error = mallory.fails(1, &["replicate", "v", "alpha", "--wait"]);
    assert!(error.contains("refuses this node's key"), "{error}");
    assert_eq!(mallory.volume("v").head, Some(HeadStatus::Empty));

    // A peer that is away is an error now, and not for ever.
    beta.down();
    assert!(alpha.fails(1, &["replicate", "v", "beta", "--wait"]).contains("no answer"));
    beta.up();
    beta.wait_until("v", "the snapshot", |v| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(0))));
    introduce(&alpha, &beta);
}

#[test]
fn the_control_socket_speaks_http() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), "alpha");
    let socket = text(&node.path("run/control.sock"));
    let curl = |path: &str| {
        let url = format!("http://zumastor{path}");
        Command::new("curl")
            .args(["--silent", "--unix-socket", &socket, &url])
            .stderr(Stdio::null())
            .output()
            .ok()
    };
    // Where there is no curl, the other tests have shown as much.
    let Some(output) = curl("/v1/status") else { return };
    let status: zumastor::api::Status = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((status.schema, status.node.name.as_str()), (1, "alpha"));
    let error: zumastor::exit::Failure = serde_json::from_slice(&curl("/nowhere").unwrap().stdout).unwrap();
    assert!(error.error.contains("/v1"), "{error}");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
