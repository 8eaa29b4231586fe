//! Pools that fill, on a real device-mapper: what goes, what is refused, and what is said.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

use crate::common::devices::{Head, MIB, dropped, is_well, machine, numbers, pattern, start};
use zumastor::{
    api::{EventKind, Health},
    exit::Failure,
};
use zumastor_core::PageBuf;
use zumastor_testbed::{introduce, lab, output};

const TOOLS: &[&str] = &["thin_check", "blkid", "dmsetup", "mkfs.ext4"];

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A head that is written over between snapshots, in a pool that cannot hold them all.
#[test]
fn lab_the_oldest_snapshots_go_before_the_pool_is_full() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("origin", 64), ("snapdev", 256)]),
        || {
            let mut node = start("alpha")?;
            node.ok(&["define", "volume", "v", "/dev/ubda", "/dev/ubdb"])?;
            node.ok(&["define", "master", "v", "--custom", "often,100", "--no-snapmount"])?;
            let head = Head::open("v");
            // Some 312 MiB, of which 64 are the volume's and 78 are to be free.
            for round in 0..12 {
                head.write(0..32, round).expect("the head can be written while anything may go");
                // The first is manual, and the second is held.
                let rotation: &[&str] = if round == 0 { &[] } else { &["often"] };
                node.ok(&[&["snapshot", "v"], rotation].concat())?;
                if round == 1 {
                    node.ok(&["hold", "v", "1", "mine"])?;
                }
            }
            // The daemon looks at it once more.
            let volume = node.wait_for("v", "room to be made", PATIENCE, |volume| {
                let free = volume.pool.is_some_and(|pool| !pool.data.is_low());
                free.then(|| volume.clone())
            })?;
            let gone = dropped(&node.volume("v")?);
            assert!(gone.len() >= 5 && gone.is_sorted() && gone[0] == 2, "{gone:?}");
            let left = numbers(&volume);
            assert!(left.starts_with(&[0, 1]) && left.ends_with(&[11]), "{left:?}");
            assert!(is_well(&volume).is_some(), "{volume:?}");
            let count = volume.space.as_ref().map(|space| space.dropped);
            assert!(count >= Some(5) && count == Some(12 - left.len() as u64), "{count:?}");
            let told = node.ok(&["status", "v", "--usage"])?;
            for part in ["dropped since the daemon started", "pool       data ", "snapshots × ", ": enough"]
            {
                assert!(told.contains(part), "{part} in {told}");
            }
            let log = fs::read_to_string(node.path("log")).map_err(Failure::doing("the log"))?;
            assert!(log.contains("snapshot deleted") && log.contains("the oldest that may go for space"));
            // What is held is what it was: the second round's.
            let mut found = vec![0; 8];
            File::open("/dev/mapper/v(1)").and_then(|file| file.read_exact_at(&mut found, 0)).expect("read");
            assert_eq!(found, pattern(1, 0, 0));
            Ok(())
        },
    )
}

/// Where all are held, there is an alarm long before the pool is full; then writing fails, and does not hang; and it goes on when
/// there is room.
#[test]
fn lab_a_pool_that_cannot_be_kept_from_filling_says_so_in_time() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("origin", 64), ("snapdev", 128)]),
        || {
            let mut node = start("alpha")?;
            node.ok(&["define", "volume", "v", "/dev/ubda", "/dev/ubdb"])?;
            node.ok(&["define", "master", "v", "--custom", "often,100", "--no-snapmount"])?;
            let head = Head::open("v");
            for number in 0..2 {
                head.write(0..64, number).expect("there is room");
                node.ok(&["snapshot", "v", "often"])?;
                node.ok(&["hold", "v", &number.to_string(), "mine"])?;
            }
            // Some 184 MiB, of which twice 64 are taken now: 46 are to be free.
            head.write(0..20, 2).expect("there is room");
            let volume = node.wait_for("v", "the alarm", PATIENCE, |volume| {
                (volume.health == Health::Full).then(|| volume.clone())
            })?;
            let pool = volume.pool.expect("it has a pool");
            assert!(pool.data.free() > 16 * MIB, "the alarm comes late: {pool:?}");
            assert!(volume.trouble.as_ref().is_some_and(|text| text.contains("no snapshot may be dropped")));
            let told = node.ok(&["status", "v"])?;
            for part in ["SPACE IS SHORT", "zumastor resize v --snapshot SIZE", "release what is held"] {
                assert!(told.contains(part), "{part} in {told}");
            }
            let checked = node.run(&["status", "--check"])?;
            assert!(checked.code == 1 && checked.err.contains("v (SPACE IS SHORT)"), "{checked:?}");

            // No snapshot that would make it worse.
            head.write(20..34, 3).expect("there is room");
            let refused = node.run(&["snapshot", "v"])?;
            assert!(refused.code == 1 && refused.err.contains("kept for the volume itself"), "{refused:?}");
            // The rest of the pool: an error, at once, and what is there stays.
            let error = head.write(0..64, 4).expect_err("the pool is full");
            assert_eq!(error.raw_os_error(), Some(28), "{error}");
            let full = node.wait_for("v", "what is said of a full pool", PATIENCE, |volume| {
                volume.trouble.clone().filter(|text| text.contains("is full"))
            })?;
            assert!(full.contains("what is written to the volume fails"), "{full}");
            let log = fs::read_to_string(node.path("log")).map_err(Failure::doing("the log"))?;
            assert!(log.contains("ERROR") && log.contains("SPACE IS SHORT"), "{log}");
            assert!(output("dmsetup", |c| c.args(["status", "v:pool"]))?.contains("out_of_data_space"));
            // Over a restart it is found again.
            node.kill()?;
            node.up()?;
            node.wait_for("v", "the alarm again", PATIENCE, |volume| {
                (volume.health == Health::Full).then_some(())
            })?;

            // One may go: it goes, and writing goes on.
            node.ok(&["release", "v", "0", "mine"])?;
            node.wait_for("v", "room", PATIENCE, |volume| (numbers(volume) == [1]).then_some(()))?;
            head.write(0..32, 5).expect("there is room again");
            node.ok(&["release", "v", "1", "mine"])?;
            node.wait_for("v", "the end of the alarm", PATIENCE, is_well)?;
            head.write(0..64, 6).expect("there is room again");
            Ok(())
        },
    )
}

/// What comes in makes room, never by what it is built upon; what cannot fit is refused before anything is sent.
#[test]
fn lab_what_comes_in_makes_room_or_is_refused() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("a", 64), ("b", 256), ("c", 64), ("d", 72)]),
        || {
            let (alpha, beta) = (start("alpha")?, start("beta")?);
            introduce(&alpha, &beta)?;
            alpha.ok(&["define", "volume", "v", "/dev/ubda", "/dev/ubdb"])?;
            alpha.ok(&["define", "master", "v", "--custom", "often,100", "--no-snapmount"])?;
            alpha.ok(&["define", "target", "v", "beta", "--name", "copy"])?;
            // Some 128 MiB, so 32 are to be free.
            beta.ok(&["define", "volume", "copy", "/dev/ubdc", "/dev/ubdd", "--initialize"])?;
            beta.ok(&["define", "source", "copy", "alpha", "--name", "v"])?;
            let head = Head::open("v");
            for round in 0..8 {
                head.write(0..20, round).expect("there is room");
                alpha.ok(&["snapshot", "v", "often"])?;
                beta.ok(&["replicate", "copy", "alpha", "--wait"])?;
                let last = beta.volume("copy")?.snapshots.last().map(|last| last.number.0);
                assert_eq!(last, Some(round));
            }
            let gone = dropped(&beta.volume("copy")?);
            assert!(gone.len() >= 3 && gone.is_sorted() && gone[0] == 0, "{gone:?}");
            assert_eq!(
                alpha.digest(Path::new("/dev/mapper/v(7)"))?,
                beta.digest(Path::new("/dev/mapper/copy"))?
            );

            // More than there could be if all went but what it is built upon: nothing goes for it.
            head.write(0..64, 10).expect("there is room");
            alpha.ok(&["snapshot", "v", "often"])?;
            beta.ok(&["replicate", "copy", "alpha", "--wait"])?;
            head.write(0..4, 11).expect("there is room");
            alpha.ok(&["snapshot", "v", "often"])?;
            beta.ok(&["replicate", "copy", "alpha", "--wait"])?;
            let before = numbers(&beta.volume("copy")?);
            assert!(before.len() >= 2, "{before:?}");
            head.write(0..64, 12).expect("there is room");
            alpha.ok(&["snapshot", "v", "often"])?;
            let refused = beta.run(&["replicate", "copy", "alpha", "--wait"])?;
            assert!(refused.code != 0 && refused.err.contains("are to be received but only"), "{refused:?}");
            assert_eq!(numbers(&beta.volume("copy")?), before, "history went for nothing");

            // More than there can be, whatever goes.
            let before = beta.volume("copy")?;
            let sent = || Ok::<_, Failure>(alpha.volume("v")?.targets[0].sent_data);
            head.write(0..64, 20).expect("there is room");
            alpha.ok(&["snapshot", "v", "often"])?;
            head.write(0..64, 21).expect("there is room");
            alpha.ok(&["snapshot", "v", "often"])?;
            for number in numbers(&before) {
                beta.ok(&["hold", "copy", &number.to_string(), "mine"])?;
            }
            assert!(before.free < Some(64 * MIB), "{before:?}");
            let sent_before = sent()?;
            let refused = beta.run(&["replicate", "copy", "alpha", "--wait"])?;
            assert!(refused.code != 0 && refused.err.contains("are to be received but only"), "{refused:?}");
            assert_eq!(sent()?, sent_before, "something was sent in vain");
            let after = beta.volume("copy")?;
            assert_eq!(numbers(&after).last(), numbers(&before).last());
            assert_eq!(after.head, before.head);
            Ok(())
        },
    )
}

/// Metadata of their own that become full: snapshots go for them too, and more can be given while the volume is used.
#[test]
fn lab_metadata_that_become_full_are_treated_like_data() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("origin", 64), ("snapdev", 512), ("metadev", 16)]),
        || {
            output("dmsetup", |c| c.args(["create", "meta", "--table", "0 8192 linear /dev/ubdc 0"]))?;
            let mut node = start("alpha")?;
            let define = ["define", "volume", "v", "/dev/ubda", "/dev/ubdb", "--metadev", "/dev/mapper/meta"];
            node.ok(&define)?;
            node.ok(&["define", "master", "v", "--custom", "often,500", "--no-snapmount"])?;
            let head = Head::open("v");
            // A chunk in each leaf of the mappings, so that each snapshot has all of them for itself.
            let scatter = |round: u64| {
                let mut page = PageBuf::new(4096);
                page[..8].copy_from_slice(&round.to_le_bytes());
                (0..16).try_for_each(|place| head.0.write_all_at(&page, place * 4 * MIB))
            };
            let mut taken = 0;
            while dropped(&node.volume("v")?).is_empty() {
                assert!(taken < 120, "nothing was dropped");
                scatter(taken).expect("the head can be written");
                node.ok(&["snapshot", "v", "often"])?;
                taken += 1;
            }
            let volume = node.volume("v")?;
            let pool = volume.pool.expect("it has a pool");
            println!("after {taken} snapshots: {pool:?}");
            let event = volume.events.iter().find(|event| event.what == EventKind::Dropped);
            let event = event.expect("one was dropped");
            assert!(event.text.contains(" of metadata are free"), "{}", event.text);
            assert!(!pool.data.is_low(), "{pool:?}");

            // With all of them held: an alarm, then a refusal, and no pool that has failed.
            for number in numbers(&volume) {
                let held = node.run(&["hold", "v", &number.to_string(), "mine"])?;
                assert!(held.code == 0 || held.err.contains("no snapshot"), "{held:?}");
            }
            let refused = loop {
                assert!(taken < 200, "nothing was refused");
                scatter(taken).expect("the head can be written");
                let ran = node.run(&["snapshot", "v", "often"])?;
                if ran.code != 0 {
                    break ran;
                }
                // It may have been dropped already, as the last that may go.
                let number = node.volume("v")?.snapshots.last().expect("those that are held").number;
                let held = node.run(&["hold", "v", &number.to_string(), "mine"])?;
                assert!(held.code == 0 || held.err.contains("no snapshot"), "{held:?}");
                taken += 1;
            };
            assert!(refused.err.contains("takes metadata"), "{refused:?}");
            node.wait_for("v", "the alarm", PATIENCE, |volume| {
                let trouble =
                    volume.trouble.as_ref().is_some_and(|text| text.contains(" of metadata are free"));
                (volume.health == Health::Full && trouble).then_some(())
            })?;
            let told = node.ok(&["status", "v", "--usage"])?;
            assert!(told.contains("zumastor resize v --metadata SIZE"), "{told}");
            scatter(1000).expect("the head can still be written");

            // A larger device, in use.
            output("dmsetup", |c| c.args(["reload", "meta", "--table", "0 16384 linear /dev/ubdc 0"]))?;
            output("dmsetup", |c| c.args(["suspend", "meta"]))?;
            output("dmsetup", |c| c.args(["resume", "meta"]))?;
            node.ok(&["resize", "v", "--metadata", "8M"])?;
            let status = output("dmsetup", |c| c.args(["status", "v:pool"]))?;
            assert!(status.contains("/2048 "), "{status}");
            node.wait_for("v", "the end of the alarm", PATIENCE, is_well)?;
            node.ok(&["snapshot", "v", "often"])?;
            Ok(())
        },
    )
}
