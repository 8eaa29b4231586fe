//! A volume on devices that a killed daemon left standing still, in the middle of being made to show something else.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    time::Duration,
};

use crate::common::devices::{Head, MIB, machine, pattern, start};
use rustix::fs::OFlags;
use zumastor::{
    api::{Health, VolumeStatus},
    exit::Failure,
};
use zumastor_core::PageBuf;
use zumastor_testbed::{Node, lab, output};

const TOOLS: &[&str] = &["blkid", "dmsetup"];

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

/// How it goes on after a kill.
struct Ending {
    file: PathBuf,
    sound: String,
    edited: String,
}

impl Ending {
    /// Starts the daemon with the file edited, and puts that right. `reader` had the head open since it held `seed`. Whether the volume is as
    /// the snapshot.
    fn of(&self, node: &mut Node, seed: u64, reader: Option<File>) -> Result<bool, Failure> {
        fs::write(&self.file, &self.edited).map_err(Failure::doing("writing"))?;
        node.up()?;
        node.wait_for("v", "the volume to go on", PATIENCE, |volume| {
            assert_eq!(volume.health, Health::Unavailable, "{volume:?}");
            (!stands_still()).then_some(())
        })?;
        let unchanged = || {
            let mut page = PageBuf::new(4096);
            let read = reader.as_ref().map(|reader| reader.read_exact_at(&mut page, 0));
            read.is_none_or(|read| read.is_ok() && page[..8] == pattern(seed, 0, 0))
        };
        assert!(unchanged(), "who had it open sees something else");
        let found = first("/dev/mapper/v", 0);
        let as_snapshot = found == pattern(0, 0, 0);
        assert!(as_snapshot || found == pattern(seed, 0, 0), "it is something else");
        Head::open("v").write(2..3, seed).expect("it can be written");
        fs::write(&self.file, &self.sound).map_err(Failure::doing("writing"))?;
        node.ok(&["reload"])?;
        let is_there = |volume: &VolumeStatus| (volume.health != Health::Unavailable).then_some(());
        node.wait_for("v", "the volume", PATIENCE, is_there)?;
        assert!(unchanged(), "who had it open sees something else");
        drop(reader);
        for _ in 0..2 {
            assert_eq!(first("/dev/mapper/v", 0), found, "it is another");
            assert_eq!(first("/dev/mapper/v", 2), pattern(seed, 2, 0), "what was written is lost");
            assert_eq!(first("/dev/mapper/v(0)", 0), pattern(0, 0, 0));
            assert_eq!(node.down()?, 0);
            node.up()?;
            node.wait_for("v", "the volume", PATIENCE, is_there)?;
        }
        Ok(as_snapshot)
    }
}

/// Killed at each step of a revert; and before the next start somebody edits the file of the volume, so that it is not opened. It goes on
/// all the same, as it was or as the snapshot is, and what is written from then on stays. Who had it open goes on with what that was.
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
            let ending = Ending { file, sound, edited };
            for in_use in [false, true] {
                let (mut still, mut both) = (0, [0, 0]);
                for steps in 1.. {
                    let seed = u64::from(steps) + if in_use { 1 << 20 } else { 0 };
                    Head::open("v").write(0..2, seed).expect("it can be written");
                    let direct = OFlags::DIRECT.bits() as i32;
                    let reader =
                        in_use.then(|| File::options().read(true).custom_flags(direct).open("/dev/mapper/v"));
                    let reader = reader.transpose().map_err(Failure::doing("opening the volume"))?;
                    node.kill_at(steps)?;
                    node.run(&["revert", "v", "0"])?;
                    if !node.was_killed()? {
                        println!(
                            "in use: {in_use}; {steps} steps, {still} times still; {both:?} times as before and after"
                        );
                        assert!(still > 0 && both[0] > 0 && both[1] > 0, "{still}, {both:?} of {steps}");
                        break;
                    }
                    still += u32::from(stands_still());
                    let as_snapshot = ending.of(&mut node, seed, reader)?;
                    both[usize::from(as_snapshot)] += 1;
                }
            }
            Ok(())
        },
    )
}
