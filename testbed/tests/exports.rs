//! What is mounted, offered to others: in the volume itself, by Samba, by NFS.

mod common;

use std::{fs, path::Path};

use common::{
    mounted::{Place, generation, master, mounted_pair, replicated, wait_until, write},
    root_with,
    samba::Samba,
};
use zumastor::exit::Failure;
use zumastor_testbed::output;

/// The directories that are mounted in a volume.
fn views(at: &Path) -> Vec<String> {
    let entries = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut views: Vec<_> = entries.filter(|name| name.starts_with('@') || name == ".snapshot").collect();
    views.sort();
    views
}

#[test]
fn root_snapshots_are_seen_in_the_volume() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &["--hourly", "2", "--dotsnapshot", "--samba"])?;
    for number in 0..3 {
        write(&at, number);
        node.ok(&["snapshot", "v", "hourly"])?;
        // Also those that were mounted after it.
        assert_eq!(generation(&at.join(".snapshot/hourly.0")), number);
    }
    assert_eq!(generation(&at.join(".snapshot/hourly.1")), 1);
    let seen = |at: &Path| {
        let of_time = views(at).into_iter().filter(|name| name.starts_with("@GMT-20"));
        let mut numbers: Vec<_> = of_time.map(|name| generation(&at.join(name))).collect();
        numbers.sort();
        numbers
    };
    // Of two that were taken in one second, one has the name.
    let newest = *seen(&at).last().expect("there is one");
    assert!((1..=2).contains(&newest));
    let file = at.join(".snapshot/hourly.0/first");
    assert_eq!(fs::write(&file, "x").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    // What a daemon that was killed left goes on.
    node.kill()?;
    node.up()?;
    wait_until(&node, "mounts", |volume| volume.mounts.as_ref().is_some_and(|m| m.mountpoint.is_some()));
    write(&at, 3);
    node.ok(&["snapshot", "v", "hourly"])?;
    assert_eq!([0, 1].map(|n| generation(&at.join(format!(".snapshot/hourly.{n}")))), [3, 2]);
    assert!(!at.join(".snapshot/hourly.2").exists());

    // Without mounts, the others are ignored, and said to be.
    let said = node.run(&["define", "master", "v", "-n"])?;
    assert!(said.code == 0 && said.err.contains("not mounted"), "{said:?}");
    assert_eq!(views(&at), Vec::<String>::new());
    node.ok(&["define", "master", "v", "--no-snapmount=false", "--samba=false"])?;
    assert_eq!(views(&at), [".snapshot"]);
    assert_eq!(generation(&at.join(".snapshot/hourly.0")), 3);
    node.ok(&["revert", "v", "3"])?;
    assert_eq!((generation(&at), generation(&at.join(".snapshot/hourly.0"))), (3, 3));
    assert_eq!(node.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

#[test]
fn root_samba_shows_previous_versions() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup", "smbd", "smbclient"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &["--samba"])?;
    write(&at, 0);
    node.ok(&["snapshot", "v"])?;
    let include = node.path("run/samba.conf");
    let samba = Samba::start(&place.path().join("alpha"), &format!("include = {}", include.display()));
    write(&at, 1);
    let versions = samba.client("allinfo first")?;
    let name = node.volume("v")?.snapshots[0].name.clone();
    let version = format!("@GMT-{name}");
    assert!(versions.contains(&version), "{versions}");
    let content = samba.client(&format!("get \"{version}\\first\" -"))?;
    assert!(content.starts_with("0\n0\n"), "{}", &content[..40.min(content.len())]);
    assert!(samba.client("get first -")?.starts_with("1\n"));
    drop(samba);
    node.ok(&["define", "master", "v", "--samba=false"])?;
    assert!(!fs::read_to_string(&include).unwrap().contains("[v]"));
    node.ok(&["define", "master", "v", "--samba"])?;
    assert!(fs::read_to_string(&include).unwrap().contains("[v]"));
    assert_eq!(node.down()?, 0);
    assert!(!fs::read_to_string(&include).unwrap().contains("[v]"));
    place.nothing_is_left();
    Ok(())
}

/// What is exported of a volume, each with its identity.
fn exported() -> Vec<(String, String)> {
    let table = fs::read_to_string("/var/lib/nfs/etab").unwrap_or_default();
    let line = |line: &str| {
        let (path, rest) = line.split_once('\t')?;
        let fsid = rest.split("fsid=").nth(1)?.split([',', ')']).next()?;
        Some((path.to_owned(), fsid.to_owned()))
    };
    let mut exported: Vec<_> = table.lines().filter_map(line).collect();
    exported.sort();
    exported
}

/// The table of exports, without a server: what a server would go by.
#[test]
fn root_exports_keep_their_identity() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup", "exportfs"]) {
        return Ok(());
    }
    let place = Place::new()?;
    output("mount", |mount| mount.args(["-t", "tmpfs", "tmpfs", "/var/lib/nfs"]))?;
    for file in ["etab", "rmtab"] {
        fs::write(Path::new("/var/lib/nfs").join(file), "").unwrap();
    }
    let (mut alpha, mut beta, at, shown) =
        mounted_pair(&place, "ext4", &["--mount-snap", "--export=127.0.0.1"])?;
    replicated(&alpha, &beta, &at, 0)?;
    let before = exported();
    assert_eq!(before.len(), 2, "{before:?}");
    for number in 1..=FLIPS {
        replicated(&alpha, &beta, &at, number)?;
        assert_eq!(generation(&shown), number);
    }
    let of = |exported: &[(String, String)]| {
        exported.iter().find(|(at, _)| Path::new(at) == shown).map(|(_, fsid)| fsid.clone())
    };
    // The volume is what it was, each snapshot is itself, and all are different.
    let all = exported();
    assert!(of(&all).is_some() && of(&all) == of(&before), "{all:?}");
    let volume = beta.volume("v")?;
    for snapshot in &volume.snapshots {
        let at = snapshot.mounted.as_ref().expect("it is mounted").display().to_string();
        assert!(all.contains(&(at, snapshot.guid.to_string())), "{all:?}");
    }
    assert_eq!(
        (all.len(), volume.mounts.map(|mounts| mounts.exported)),
        (2 + FLIPS as usize, Some(all.len()))
    );

    beta.kill()?;
    beta.up()?;
    wait_until(&beta, "exports", |volume| volume.mounts.as_ref().is_some_and(|m| m.exported == all.len()));
    assert_eq!(exported(), all);
    beta.ok(&["delete", "v", "0"])?;
    assert_eq!(exported().len(), all.len() - 1);
    assert_eq!(beta.run(&["define", "source", "v", "alpha", "--export=a b"])?.code, 2);
    assert_eq!(beta.down()?, 0);
    assert_eq!(exported(), []);
    assert_eq!(alpha.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

/// Flips that the exports live through.
const FLIPS: u64 = 3;
