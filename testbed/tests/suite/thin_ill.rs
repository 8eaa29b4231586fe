//! Pools that are ill, or whose header is of another time, on a real device-mapper: what is said, and that they are taken up again.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::common::devices::{Head, MIB, is_well, machine, numbers, start};
use rustix::fs::OFlags;
use zumastor::{api::Health, exit::Failure};
use zumastor_core::PageBuf;
use zumastor_testbed::{Node, lab, output};

const TOOLS: &[&str] = &["thin_check", "blkid", "dmsetup", "mkfs.ext4"];

/// How a volume with a metadata device is defined.
const DEFINE: [&str; 7] =
    ["define", "volume", "v", "/dev/ubda", "/dev/ubdb", "--metadev", "/dev/mapper/meta"];

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// The steps that `status` names for a pool that wants a check, or has failed; and that what was written before is there after them.
#[test]
fn lab_a_pool_that_is_ill_is_explained_and_taken_up_again() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("origin", 16), ("snapdev", 64), ("metadev", 4)]),
        || {
            let mut node = master(&["--chunksize", "128K"])?;
            Head::open("v").write(0..4, 1).expect("there is room");
            node.ok(&["snapshot", "v"])?;
            Head::open("v").write(0..4, 2).expect("there is room");
            let digests = |node: &Node| {
                let of = |path: &str| node.digest(Path::new(path));
                Ok::<_, Failure>((of("/dev/mapper/v")?, of("/dev/mapper/v(0)")?))
            };
            let before = digests(&node)?;
            let ill = |node: &Node, what: &str| -> Result<(), Failure> {
                let volume = node.volume("v")?;
                let trouble = volume.trouble.unwrap_or_default();
                assert!(
                    matches!(volume.health, Health::Stopped | Health::Unavailable) && trouble.contains(what),
                    "{:?} {trouble}",
                    volume.health
                );
                assert!(
                    trouble.contains("thin_check --clear-needs-check-flag /dev/mapper/v:metadata"),
                    "{trouble}"
                );
                let refused = node.run(&["snapshot", "v"])?;
                assert!(refused.code == 3 && refused.err.contains(what), "{refused:?}");
                assert_eq!(node.run(&["status", "--check"])?.code, 1);
                Ok(())
            };
            let repair = |node: &mut Node| -> Result<(), Failure> {
                assert_eq!(node.down()?, 0);
                let left = output("dmsetup", |c| c.arg("ls"))?;
                assert!(left.contains("v:metadata") && !left.contains("v:pool"), "{left}");
                let metadata = "/dev/mapper/v:metadata";
                output("thin_check", |c| c.args(["-q", "--clear-needs-check-flag", metadata]))?;
                node.up()?;
                node.wait_for("v", "it to be well", PATIENCE, is_well)
            };

            // As a kernel leaves it that could not write its metadata once.
            assert_eq!(node.down()?, 0);
            let metadata = Path::new("/dev/mapper/meta");
            edit_superblock(metadata, |block| block[4] |= 1);
            node.up()?;
            node.wait_for("v", "the store", PATIENCE, |volume| {
                (volume.health != Health::Unavailable).then_some(())
            })?;
            ill(&node, "needs_check")?;
            // Everything can be read.
            assert_eq!(digests(&node)?, before);
            repair(&mut node)?;
            assert_eq!(digests(&node)?, before);
            node.ok(&["snapshot", "v"])?;

            // So many snapshots have been taken that the kernel could count no more of them.
            assert_eq!(node.down()?, 0);
            let mut time = [0; 4];
            edit_superblock(metadata, |block| {
                time.copy_from_slice(&block[44..48]);
                block[44..48].copy_from_slice(&((1u32 << 24) - 1024).to_le_bytes());
            });
            node.up()?;
            node.wait_for("v", "it to be well", PATIENCE, is_well)?;
            let refused = node.run(&["snapshot", "v"])?;
            assert!(refused.code == 3 && refused.err.contains("16776192 clones"), "{refused:?}");
            assert_eq!(node.down()?, 0);
            edit_superblock(metadata, |block| block[44..48].copy_from_slice(&time));
            node.up()?;
            node.wait_for("v", "it to be well", PATIENCE, is_well)?;

            // The device of the metadata takes no writes any more, and then nothing at all.
            let table = |table: &str| -> Result<(), Failure> {
                output("dmsetup", |c| c.args(["reload", "meta", "--table", table]))?;
                output("dmsetup", |c| c.args(["suspend", "meta"]))?;
                output("dmsetup", |c| c.args(["resume", "meta"]))?;
                Ok(())
            };
            for (features, said) in [("1 error_writes", "needs_check"), ("", "has failed")] {
                table(&format!("0 8192 flakey /dev/ubdc 0 0 600 {features}"))?;
                // Each write synced by itself: where a commit fails between a write and a sync that follows, as one a second does, the
                // kernel has nothing left that it would have to sync (`bio_triggers_commit`, drivers/md/dm-thin.c).
                let flags = (OFlags::DIRECT | OFlags::DSYNC).bits() as i32;
                let head = File::options().write(true).custom_flags(flags).open("/dev/mapper/v");
                let head = Head(head.expect("the head can be opened"));
                assert!(head.write(8..9, 3).is_err(), "what the metadata do not know of was acknowledged");
                drop(head);
                node.wait_for("v", said, PATIENCE, |volume| {
                    volume.trouble.as_ref().is_some_and(|text| text.contains(said)).then_some(())
                })?;
                ill(&node, said)?;
                table("0 8192 linear /dev/ubdc 0")?;
                repair(&mut node)?;
                assert_eq!(digests(&node)?, before);
                node.ok(&["snapshot", "v"])?;
            }
            // Also when all that the node knew is lost: the devices know it.
            let had = numbers(&node.volume("v")?);
            assert_eq!(had.len(), 4);
            assert_eq!(node.down()?, 0);
            fs::remove_dir_all(node.path("lib")).map_err(Failure::doing("losing everything"))?;
            fs::remove_dir_all(node.path("etc")).map_err(Failure::doing("losing everything"))?;
            node.up()?;
            let wrong = node.run(&DEFINE[..5])?;
            assert!(wrong.code == 3 && wrong.err.contains("--metadev"), "{wrong:?}");
            node.ok(&DEFINE)?;
            assert_eq!(numbers(&node.volume("v")?), had);
            assert_eq!(digests(&node)?, before);
            Ok(())
        },
    )
}

/// The power goes between the header and the pool, and metadata that are full keep the pool from following when it is taken up: once
/// there are more of them the volume works again, in use. A header that is older than its pool is not written over it.
#[test]
fn lab_a_pool_that_could_only_be_read_catches_up() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("origin", 3 << 10), ("snapdev", 512), ("metadev", 16)]),
        || {
            let mut node = master(&[])?;
            node.ok(&["snapshot", "v"])?;
            node.kill()?;
            let status = || output("dmsetup", |c| c.args(["status", "v:pool"]));
            // As if it had been killed while it read the mappings, which it may have been.
            if status()?.split(' ').nth(6) == Some("-") {
                fs::write(moment_note(), "held").expect("the note is written");
                output("dmsetup", |c| c.args(["message", "v:pool", "0", "reserve_metadata_snap"]))?;
            }
            // A chunk in each leaf of the mappings, again and again.
            let head = Head::open("v");
            for id in 1000.. {
                assert!(id < 1020, "the metadata do not become full: {}", status()?);
                output("dmsetup", |c| c.args(["suspend", "v"]))?;
                let made =
                    output("dmsetup", |c| c.args(["message", "v:pool", "0", &format!("create_snap {id} 0")]));
                output("dmsetup", |c| c.args(["resume", "v"]))?;
                made?;
                let mut places = 0..3 * 64;
                let page = PageBuf::new(4096);
                let write = |place: u64| {
                    head.0.write_all_at(&page, place * 16 * MIB).and_then(|()| head.0.sync_data())
                };
                if places.any(|place| write(place).is_err()) || status()?.contains(" ro ") {
                    break;
                }
            }
            drop(head);
            let apart = |from: u64, to: u64| -> Result<(), Failure> {
                for name in ["v", "v(0)", "v:pool", "v:data", "v:metadata"] {
                    output("dmsetup", |c| c.args(["remove", name]))?;
                }
                edit_superblock(Path::new("/dev/mapper/meta"), |block| {
                    assert_eq!(block[48..56], from.to_le_bytes());
                    block[48..56].copy_from_slice(&to.to_le_bytes());
                });
                Ok(())
            };
            apart(1, 0)?;
            node.up()?;
            node.wait_for("v", "what ails it", PATIENCE, |volume| {
                volume
                    .trouble
                    .as_ref()
                    .is_some_and(|text| text.contains("its metadata are full"))
                    .then_some(())
            })?;
            let refused = node.run(&["snapshot", "v"])?;
            assert!(refused.code == 3 && refused.err.contains("resize v --metadata"), "{refused:?}");
            // A run that cannot let go leaves that to another.
            assert_eq!(node.down()?, 0);
            node.up()?;
            output("dmsetup", |c| c.args(["reload", "meta", "--table", "0 32768 linear /dev/ubdc 0"]))?;
            output("dmsetup", |c| c.args(["suspend", "meta"]))?;
            output("dmsetup", |c| c.args(["resume", "meta"]))?;
            node.ok(&["resize", "v", "--metadata", "16M"])?;
            node.wait_for("v", "it to be well", PATIENCE, is_well)?;
            assert_eq!(status()?.split(' ').nth(6), Some("-"), "the moment that was held is not let go");
            node.ok(&["snapshot", "v"])?;
            node.ok(&["snapshot", "v"])?;
            assert_eq!(numbers(&node.volume("v")?), [0, 1, 2]);

            // An older header: what it does not know of stays, and nothing is changed.
            node.kill()?;
            for name in ["v(1)", "v(2)"] {
                output("dmsetup", |c| c.args(["remove", name]))?;
            }
            let there = status()?.split(' ').nth(3).map(str::to_owned);
            assert_eq!(there.as_deref(), Some("3"));
            apart(3, 4)?;
            for _ in 0..2 {
                node.up()?;
                node.wait_for("v", "what ails it", PATIENCE, |volume| {
                    volume.trouble.as_ref().is_some_and(|text| text.contains("an older copy")).then_some(())
                })?;
                for change in [&["snapshot", "v"][..], &["resize", "v", "--metadata", "16M"]] {
                    let refused = node.run(change)?;
                    assert!(refused.code == 3 && refused.err.contains("an older copy"), "{refused:?}");
                }
                // Nor does anybody else write into what the newer copy has.
                assert!(overwrite("/dev/mapper/v").is_err(), "an older copy can be written");
                assert_eq!(node.down()?, 0);
            }
            edit_superblock(Path::new("/dev/mapper/meta"), |block| {
                block[48..56].copy_from_slice(&3_u64.to_le_bytes());
            });
            node.up()?;
            node.wait_for("v", "it to be well", PATIENCE, is_well)?;
            node.ok(&["snapshot", "v"])?;
            assert_eq!(numbers(&node.volume("v")?), [0, 1, 2, 3]);

            // A device that an earlier run made read-only can be written again.
            node.kill()?;
            let table = output("dmsetup", |c| c.args(["table", "v"]))?;
            output("dmsetup", |c| c.args(["reload", "v", "--readonly", "--table", table.trim()]))?;
            output("dmsetup", |c| c.args(["suspend", "v"]))?;
            output("dmsetup", |c| c.args(["resume", "v"]))?;
            assert!(overwrite("/dev/mapper/v").is_err());
            node.up()?;
            node.wait_for("v", "it to be well", PATIENCE, is_well)?;
            overwrite("/dev/mapper/v").expect("the volume can be written again");
            Ok(())
        },
    )
}

/// Metadata that are not of the header's time, and want a check besides: that is known before they can be written, so nobody writes to the
/// volume until then, and nothing more is taken into use.
#[test]
fn lab_an_older_copy_is_known_before_its_pool_is_well() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("origin", 16), ("snapdev", 64), ("metadev", 16)]),
        || {
            let mut node = master(&[])?;
            node.ok(&["snapshot", "v"])?;
            // Where no snapshot has it, to write takes nothing from the pool.
            overwrite("/dev/mapper/v").expect("there is room");
            assert_eq!(node.down()?, 0);
            let mut transaction = [0; 8];
            edit_superblock(Path::new("/dev/mapper/meta"), |block| {
                transaction.copy_from_slice(&block[48..56]);
                block[48..56].copy_from_slice(&(u64::from_le_bytes(transaction) + 3).to_le_bytes());
                block[4] |= 1;
            });
            for _ in 0..2 {
                node.up()?;
                node.wait_for("v", "what ails it", PATIENCE, |volume| {
                    volume.trouble.as_ref().is_some_and(|text| text.contains("needs_check")).then_some(())
                })?;
                assert!(overwrite("/dev/mapper/v").is_err(), "an older copy can be written");
                let refused = node.run(&["resize", "v", "--metadata", "16M"])?;
                assert!(refused.code == 3 && refused.err.contains("an older copy"), "{refused:?}");
                assert_eq!(node.down()?, 0);
            }
            let metadata = "/dev/mapper/v:metadata";
            edit_superblock(Path::new(metadata), |block| block[48..56].copy_from_slice(&transaction));
            output("thin_check", |c| c.args(["-q", "--clear-needs-check-flag", metadata]))?;
            node.up()?;
            node.wait_for("v", "it to be well", PATIENCE, is_well)?;
            overwrite("/dev/mapper/v").expect("the volume can be written again");
            node.ok(&["snapshot", "v"])?;
            assert_eq!(numbers(&node.volume("v")?), [0, 1]);
            Ok(())
        },
    )
}

/// A node that is the master of a volume whose metadata are on a device of 4 MiB, which may become larger.
fn master(options: &[&str]) -> Result<Node, Failure> {
    output("dmsetup", |c| c.args(["create", "meta", "--table", "0 8192 linear /dev/ubdc 0"]))?;
    let node = start("alpha")?;
    node.ok(&[&DEFINE, options].concat())?;
    node.ok(&["define", "master", "v", "--no-snapmount"])?;
    Ok(node)
}

/// Writes a page at the begin of a device.
fn overwrite(device: &str) -> io::Result<()> {
    let direct = OFlags::DIRECT.bits() as i32;
    let file = File::options().write(true).custom_flags(direct).open(device)?;
    file.write_all_at(&PageBuf::new(4096), 0)
}

/// The note of the only store about whether it holds a moment of its metadata.
fn moment_note() -> PathBuf {
    let mut entries = fs::read_dir("/run/lock/zumastor").expect("the notes").flatten();
    let note = entries.find(|entry| entry.file_name().to_string_lossy().ends_with(".moment"));
    note.expect("a note").path()
}

/// Changes the superblock of metadata that are not in use.
fn edit_superblock(path: &Path, edit: impl FnOnce(&mut [u8])) {
    let file = File::options().read(true).write(true).open(path).expect("the metadata device");
    let mut block = vec![0; 4096];
    file.read_exact_at(&mut block, 0).expect("the superblock");
    let sum = |block: &[u8]| (crc32c(&block[4..]) ^ 160_774).to_le_bytes();
    assert_eq!(block[..4], sum(&block), "this is no superblock");
    edit(&mut block);
    let sum = sum(&block);
    block[..4].copy_from_slice(&sum);
    file.write_all_at(&block, 0).and_then(|()| file.sync_all()).expect("written");
}

/// The checksum of the kernel's metadata before its mask: without the last inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        let shift = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0x82F6_3B78 } else { sum >> 1 };
        (0..8).fold(sum ^ u32::from(*byte), shift)
    })
}
