//! Moments of a pool's metadata that could not be let go, on a real device-mapper.

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::common::devices::{Head, dropped, machine, start};
use rustix::fs::OFlags;
use zumastor::{api::EventKind, exit::Failure};
use zumastor_backends::{Faults, Making, VolumeSpec, open_devices};
use zumastor_core::PageBuf;
use zumastor_testbed::{lab, output};

const TOOLS: &[&str] = &["thin_check", "blkid", "dmsetup"];

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the pool says is held; `-` for nothing.
fn held() -> Result<String, Failure> {
    let status = output("dmsetup", |c| c.args(["status", "v:pool"]))?;
    Ok(status.split(' ').nth(6).expect("what is held").to_owned())
}

/// Lets the device with the metadata fail what is written to it, or not any more.
fn let_writes_fail(fail: bool) -> Result<(), Failure> {
    let table =
        if fail { "0 8192 flakey /dev/ubdc 0 0 600 1 error_writes" } else { "0 8192 linear /dev/ubdc 0" };
    output("dmsetup", |c| c.args(["reload", "meta", "--table", table]))?;
    output("dmsetup", |c| c.args(["suspend", "meta"]))?;
    output("dmsetup", |c| c.args(["resume", "meta"])).map(drop)
}

/// The metadata can no longer be written while a moment of them is held: the pool refuses to let go of it, or says that it did and takes
/// that back. The program is killed then. The next one whose pool can be written lets go.
#[test]
fn lab_what_was_not_let_go_is_by_the_next_run() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("origin", 16), ("snapdev", 64), ("metadev", 8)]),
        || {
            output("dmsetup", |c| c.args(["create", "meta", "--table", "0 8192 linear /dev/ubdc 0"]))?;
            let spec = VolumeSpec {
                name: "v".parse().unwrap(),
                origin: "/dev/ubda".into(),
                snapstore: "/dev/ubdb".into(),
                metadev: Some("/dev/mapper/meta".into()),
                chunk: None,
                notes: "/run/lab/notes".into(),
            };
            let open = |making, faults| {
                open_devices(&spec, making, faults).map_err(Failure::doing("opening the store"))
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let making = Making { initialize: true, overwrite: true };
            runtime.block_on(open(Some(making), Faults::none())?.close())?;
            for (chunk, refused) in [(1, true), (2, false)] {
                let armed = Arc::new(AtomicBool::new(false));
                let reading = armed.clone();
                let faults = Faults::new(move |step| {
                    if step == "moment: held" && reading.swap(false, Ordering::Relaxed) {
                        let_writes_fail(true).expect("dmsetup(8)");
                        if refused {
                            // A new chunk is in no metadata yet.
                            let flags = (OFlags::DIRECT | OFlags::DSYNC).bits() as i32;
                            let head = File::options().write(true).custom_flags(flags).open("/dev/mapper/v");
                            let written = head.unwrap().write_all_at(&PageBuf::new(4096), chunk << 20);
                            written.expect_err("the metadata cannot be written");
                        }
                    }
                    step == "moment: not let go"
                });
                let store = open(None, faults.clone())?;
                armed.store(true, Ordering::Relaxed);
                let error = runtime.block_on(store.head()).expect_err("it was stopped");
                assert!(faults.stopped(), "{error}");
                drop(store);
                assert_ne!(held()?, "-", "it was let go, refused: {refused}");

                // What cannot do it leaves it to the next, and does not forget it.
                let_writes_fail(false)?;
                let store = open(None, Faults::none())?;
                let caution = store.info().caution.unwrap_or_default();
                assert!(caution.contains("needs_check"), "{caution}");
                assert_ne!(held()?, "-");
                runtime.block_on(store.close())?;
                drop(store);
                let metadata = "/dev/mapper/v:metadata";
                output("thin_check", |c| c.args(["-q", "--clear-needs-check-flag", metadata]))?;
                let store = open(None, Faults::none())?;
                assert_eq!(held()?, "-", "refused: {refused}");
                runtime.block_on(store.head())?;
                runtime.block_on(store.close())?;
            }
            Ok(())
        },
    )
}

/// While somebody else holds a moment of the metadata, what is deleted frees nothing: nothing is, and the alarm says why. When it is let
/// go, the oldest goes.
#[test]
fn lab_nothing_is_dropped_that_would_free_nothing() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("origin", 64), ("snapdev", 128)]),
        || {
            let mut node = start("alpha")?;
            node.ok(&["define", "volume", "v", "/dev/ubda", "/dev/ubdb"])?;
            node.ok(&["define", "master", "v", "--custom", "often,100", "--no-snapmount"])?;
            let head = Head::open("v");
            // Some 184 MiB, of which 46 are to be free: 64 are taken by what was there, and 32 more with each snapshot.
            for number in 0..2 {
                node.ok(&["snapshot", "v", "often"])?;
                head.write(number * 32..(number + 1) * 32, number).expect("there is room");
            }
            // The daemon may be reading them.
            let message = |what| output("dmsetup", |c| c.args(["message", "v:pool", "0", what]));
            let begun = Instant::now();
            while let Err(error) = message("reserve_metadata_snap") {
                assert!(begun.elapsed() < PATIENCE, "{}", error.error);
            }
            head.write(0..16, 2).expect("there is room");
            let volume = node.wait_for("v", "the alarm", PATIENCE, |volume| {
                let alarms = volume.events.iter().filter(|event| event.what == EventKind::Full);
                let said = alarms.filter(|event| event.text.contains("would free nothing")).count() > 0;
                said.then(|| volume.clone())
            })?;
            let trouble = volume.trouble.unwrap_or_default();
            for part in ["would free nothing", "`dmsetup message v:pool 0 release_metadata_snap`"] {
                assert!(trouble.contains(part), "{part} in {trouble}");
            }
            assert_eq!(dropped(&node.volume("v")?), [0; 0]);
            message("release_metadata_snap")?;
            node.wait_for("v", "room", PATIENCE, |volume| {
                let enough = volume.pool.is_some_and(|pool| !pool.data.is_low());
                (enough && volume.space.as_ref().is_some_and(|space| space.full_since.is_none()))
                    .then_some(())
            })?;
            assert_eq!(dropped(&node.volume("v")?), [0]);
            Ok(())
        },
    )
}
