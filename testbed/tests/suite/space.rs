//! When space gets short, the oldest snapshots that nobody holds go; when none may go, that is said until it is over.

use std::{fs, path::Path, time::Duration};

use crate::common::{PROGRAM, root_with};
use zumastor::{
    api::{EventKind, Health, VolumeStatus},
    exit::Failure,
};
use zumastor_testbed::{FileSystem, Node, Scratch, image};

const MIB: u64 = 1 << 20;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn numbers(volume: &VolumeStatus) -> Vec<u64> {
    volume.snapshots.iter().map(|snapshot| snapshot.number.0).collect()
}

/// Says in the volume's file what is to be free.
fn configure(node: &Node, minimum: u64, drop_manual: bool) -> Result<(), Failure> {
    let file = node.path("etc/volumes/v.toml");
    let text = fs::read_to_string(&file).map_err(Failure::doing("reading"))?;
    let before = text.split("\n[space]").next().unwrap_or_default();
    let space = format!("\n[space]\nminimum_free = \"{}K\"\ndrop_manual = {drop_manual}\n", minimum / 1024);
    fs::write(&file, format!("{before}{space}")).map_err(Failure::doing("writing"))?;
    node.ok(&["reload"]).map(drop)
}

fn scenario(kind: FileSystem, size: u64) -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mount"]) {
        return Ok(());
    }
    let plenty = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let small = Scratch::mount(kind, size, &std::env::temp_dir())?;
    let mut node = Node::start(Path::new(PROGRAM), plenty.path(), "alpha")?;
    let origin = small.path().join("v.img");
    image(&origin, 12 * MIB, 1)?;
    node.define("v", small.path())?;
    node.ok(&["define", "master", "v", "--custom", "often,100"])?;
    // All of the volume is another in each: 0 is manual, 2 is held, 6 the newest.
    for number in 0..7 {
        image(&origin, 12 * MIB, 10 + number)?;
        let rotation: &[&str] = if number == 0 { &[] } else { &["often"] };
        node.ok(&[&["snapshot", "v"], rotation].concat())?;
    }
    node.ok(&["hold", "v", "2", "mine"])?;

    // A little more than is free. Until it has settled, the file system may have more than it said.
    let volume = loop {
        let wanted = node.volume("v")?.free.expect("told") + 8 * MIB;
        configure(&node, wanted, false)?;
        // A snapshot is gone a moment before it is counted.
        let volume = node.wait_for("v", "room to be made", PATIENCE, |volume| {
            let gone = 7 - numbers(volume).len();
            let counted = volume.space.as_ref().is_some_and(|space| space.dropped == gone as u64);
            let told = volume.events.iter().filter(|event| event.what == EventKind::Dropped).count() == gone;
            (volume.free >= Some(wanted) && counted && told).then(|| volume.clone())
        })?;
        if numbers(&volume).len() < 7 {
            break volume;
        }
    };
    // The oldest is manual and the third is held, so it begins with the second.
    let dropped: Vec<_> = volume.events.iter().filter(|event| event.what == EventKind::Dropped).collect();
    let first = dropped.last().expect("one at least");
    assert_eq!(first.number.map(|number| number.0), Some(1));
    assert!(first.text.contains(" are free, ") && first.text.contains("for space"), "{}", first.text);
    let left = numbers(&volume);
    assert!(left.starts_with(&[0, 2]) && left.ends_with(&[6]) && left.len() + dropped.len() == 7, "{left:?}");
    assert_eq!(volume.health, Health::Ok);
    let told = node.ok(&["status", "v"])?;
    assert!(told.contains(&format!("{} dropped since the daemon started", dropped.len())), "{told}");

    // More than can be had: all go that may, and then that is said.
    configure(&node, 2 * size, false)?;
    let full = |volume: &VolumeStatus| (volume.health == Health::Full).then(|| volume.clone());
    let volume = node.wait_for("v", "the alarm", PATIENCE, full)?;
    assert_eq!(numbers(&volume), [0, 2, 6]);
    assert_eq!(volume.events[0].what, EventKind::Full);
    let told = node.ok(&["status", "v"])?;
    for part in
        ["SPACE IS SHORT", "no snapshot may be dropped", "let manual snapshots go", "release what is held"]
    {
        assert!(told.contains(part), "{part} in {told}");
    }
    let checked = node.run(&["status", "--check"])?;
    assert!(checked.code == 1 && checked.err.contains("v (SPACE IS SHORT)"), "{checked:?}");
    // Manual ones only where that is asked for; what is held and the newest never.
    configure(&node, 2 * size, true)?;
    node.wait_for("v", "the manual one to go", PATIENCE, |volume| (numbers(volume) == [2, 6]).then_some(()))?;
    // It goes a moment before it is counted.
    let counted = |volume: &VolumeStatus| volume.space.as_ref().is_some_and(|space| space.dropped == 5);
    let volume = node.wait_for("v", "the count", PATIENCE, |volume| full(volume).filter(counted))?;
    assert_eq!(volume.space.map(|space| space.full_since.is_some()), Some(true));
    // Once, however long it lasts.
    assert_eq!(volume.events.iter().filter(|event| event.what == EventKind::Full).count(), 1);

    configure(&node, MIB, true)?;
    let well = node.wait_for("v", "the alarm to end", PATIENCE, |volume| {
        (volume.health == Health::Ok).then(|| volume.clone())
    })?;
    assert_eq!(well.space.and_then(|space| space.full_since), None);
    assert!(node.ok(&["status", "--check"])?.contains("ok"));
    Ok(())
}

#[test]
fn root_space_on_xfs() -> Result<(), Failure> {
    scenario(FileSystem::Xfs, 400 * MIB)
}

#[test]
fn root_space_on_tmpfs() -> Result<(), Failure> {
    scenario(FileSystem::Tmpfs, 160 * MIB)
}

/// A target that is away for good does not fill the disk with what waits to be sent to it.
#[test]
fn root_what_waits_to_be_sent_does_not_fill_the_disk() -> Result<(), Failure> {
    if !root_with(&["mount"]) {
        return Ok(());
    }
    let plenty = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let small = Scratch::mount(FileSystem::Tmpfs, 160 * MIB, &std::env::temp_dir())?;
    let node = Node::start(Path::new(PROGRAM), plenty.path(), "alpha")?;
    let away = Node::start(Path::new(PROGRAM), plenty.path(), "beta")?;
    zumastor_testbed::introduce(&node, &away)?;
    drop(away);
    let origin = small.path().join("v.img");
    image(&origin, 12 * MIB, 1)?;
    node.define("v", small.path())?;
    node.ok(&["define", "master", "v", "--custom", "often,1"])?;
    node.ok(&["define", "target", "v", "beta", "--all"])?;
    // More than there is room for: all of the volume is another in each.
    for number in 0..20 {
        image(&origin, 12 * MIB, 10 + number)?;
        node.ok(&["snapshot", "v", "often"])?;
    }
    let volume = node.volume("v")?;
    let kept = numbers(&volume);
    assert!((5..13).contains(&kept.len()) && kept.ends_with(&[17, 18, 19]), "{kept:?}");
    let missed = volume.targets[0].missed.expect("some were dropped");
    assert_eq!((missed.count as usize, missed.newest.0 as usize), (20 - kept.len(), 19 - kept.len()));
    assert_eq!(volume.health, Health::Late);
    assert!(volume.trouble.is_some_and(|trouble| trouble.contains("beta misses")));
    Ok(())
}
