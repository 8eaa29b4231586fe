//! A volume on devices that a killed daemon left standing still, in the middle of being made to show something else.
#![cfg(feature = "device-mapper")]

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    time::Duration,
};

use common::devices::{Head, MIB, machine, pattern, start};
use zumastor::{api::Health, exit::Failure};
use zumastor_testbed::{lab, output};

const TOOLS: &[&str] = &["thin_restore", "blkid", "dmsetup"];

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What [`Head::write`] wrote at the front of a MiB.
fn first(device: &str, mib: u64) -> [u8; 8] {
    let mut word = [0; 8];
    File::open(device).and_then(|file| file.read_exact_at(&mut word, mib * MIB)).expect("it can be read");
    word
}

fn stands_still() -> bool {
    output("dmsetup", |c| c.args(["info", "v"])).is_ok_and(|info| info.contains("SUSPENDED"))
}

/// Killed at each step of a revert; and before the next start somebody edits the file of the volume, so that it is not opened. It goes on
/// all the same, as it was or as the snapshot is, and what is written from then on stays.
#[test]
fn lab_a_volume_that_is_not_opened_goes_on() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("origin", 8), ("snapdev", 256)]),
        || {
            let mut node = start("alpha")?;
            node.ok(&["define", "volume", "v", "/dev/ubda", "/dev/ubdb"])?;
            node.ok(&["define", "master", "v", "--no-snapmount"])?;
            let file = node.path("etc/volumes/v.toml");
            let sound = fs::read_to_string(&file).map_err(Failure::doing("reading"))?;
            let edited = sound.replace("[master]", "[master]\nepoch = 7");
            assert_ne!(edited, sound);
            Head::open("v").write(0..1, 0).expect("it can be written");
            node.ok(&["snapshot", "v"])?;
            let (mut still, mut both) = (0, [0, 0]);
            for steps in 1.. {
                Head::open("v").write(0..2, u64::from(steps)).expect("it can be written");
                node.kill_at(steps)?;
                node.run(&["revert", "v", "0"])?;
                if !node.was_killed()? {
                    println!(
                        "{steps} steps, {still} times it stood still; {both:?} times as it was and as the snapshot"
                    );
                    assert!(still > 2 && both[0] > 0 && both[1] > 0, "{still}, {both:?} of {steps}");
                    break;
                }
                still += u32::from(stands_still());
                fs::write(&file, &edited).map_err(Failure::doing("writing"))?;
                node.up()?;
                node.wait_for("v", "the volume to go on", PATIENCE, |volume| {
                    assert_eq!(volume.health, Health::Unavailable, "{volume:?}");
                    (!stands_still()).then_some(())
                })?;
                let found = first("/dev/mapper/v", 0);
                let as_snapshot = found == pattern(0, 0, 0);
                assert!(as_snapshot || found == pattern(u64::from(steps), 0, 0), "step {steps}: a mix");
                both[usize::from(as_snapshot)] += 1;
                Head::open("v").write(2..3, u64::from(steps)).expect("it can be written");
                fs::write(&file, &sound).map_err(Failure::doing("writing"))?;
                node.ok(&["reload"])?;
                for _ in 0..2 {
                    node.wait_for("v", "the volume", PATIENCE, |volume| {
                        (volume.health != Health::Unavailable).then_some(())
                    })?;
                    assert_eq!(first("/dev/mapper/v", 0), found, "step {steps}: it is another");
                    let written = pattern(u64::from(steps), 2, 0);
                    assert_eq!(first("/dev/mapper/v", 2), written, "step {steps}: what was written is lost");
                    assert_eq!(first("/dev/mapper/v(0)", 0), pattern(0, 0, 0));
                    assert_eq!(node.down()?, 0);
                    node.up()?;
                }
                node.wait_for("v", "the volume", PATIENCE, |volume| {
                    (volume.health != Health::Unavailable).then_some(())
                })?;
            }
            Ok(())
        },
    )
}
