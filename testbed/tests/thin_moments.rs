//! Moments of a pool's metadata that could not be let go, on a real device-mapper.
#![cfg(feature = "device-mapper")]

mod common;

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use common::devices::machine;
use rustix::fs::OFlags;
use zumastor::exit::Failure;
use zumastor_backends::{Faults, Making, VolumeSpec, open_devices};
use zumastor_core::PageBuf;
use zumastor_testbed::{lab, output};

const TOOLS: &[&str] = &["thin_restore", "thin_check", "blkid", "dmsetup"];

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
                notes: "/tmp/notes".into(),
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
