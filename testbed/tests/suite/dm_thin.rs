//! Volumes on block devices, on a real device-mapper.

use std::{
    fs::{self, File, OpenOptions},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use zumastor::exit::Failure;
use zumastor_backends::{
    Faults, Making, VolumeSpec,
    conformance::{Subject, check},
    open_devices,
};
use zumastor_core::{SnapshotStore, StoreError};
use zumastor_testbed::{
    lab::{self, Job, Lab, Machine},
    output,
};

/// The program, built with this test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_zumastor-under-test");

/// What the tests of this file need beside the lab.
const TOOLS: &[&str] = &["thin_check", "thin_delta", "blkid", "dmsetup", "mkfs.ext4"];

pub fn machine(lab: &Lab, origin: u64, snapdev: u64) -> Result<Machine, Failure> {
    let machine = Machine::new("solo").modules(&["dm-thin-pool"]);
    Ok(machine.disk(&lab.disk("origin", origin)?).disk(&lab.disk("snapdev", snapdev)?))
}

pub fn spec() -> VolumeSpec {
    VolumeSpec {
        name: "v".parse().unwrap(),
        origin: "/dev/ubda".into(),
        snapstore: "/dev/ubdb".into(),
        metadev: None,
        chunk: None,
        notes: "/run/lab/notes".into(),
    }
}

/// What an earlier case left is no store any more.
pub fn forget_store() {
    let snapdev = OpenOptions::new().write(true).open("/dev/ubdb").unwrap();
    for copy in [0, 2 << 20] {
        snapdev.write_all_at(&[0; 4096], copy).unwrap();
    }
}

/// A volume of zeros on the guest's two disks.
#[derive(Debug)]
struct Volume {
    made: bool,
}

impl Volume {
    fn new() -> Self {
        forget_store();
        Self { made: false }
    }

    fn head(&self) -> File {
        OpenOptions::new().read(true).write(true).open("/dev/mapper/v").unwrap()
    }
}

impl Subject for Volume {
    fn open(&mut self, faults: Faults) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        let making = Making { initialize: true, overwrite: true };
        let store = open_devices(&spec(), (!self.made).then_some(making), faults)?;
        self.made = true;
        Ok(store)
    }

    fn write_head(&mut self, offset: u64, data: &[u8]) {
        let head = self.head();
        head.write_all_at(data, offset).unwrap();
        head.sync_data().unwrap();
    }

    fn punch_head(&mut self, range: Range<u64>) {
        self.write_head(range.start, &vec![0; (range.end - range.start) as usize]);
    }

    fn read_head(&mut self) -> Vec<u8> {
        fs::read("/dev/mapper/v").unwrap()
    }

    fn unit(&self) -> u64 {
        512
    }
}

#[test]
fn lab_dm_thin_passes_the_suite() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, 1 << 20, 32 << 20),
        || {
            check(CASES, Volume::new);
            // What was deleted while somebody read it goes when the store is opened again.
            drop(open_devices(&spec(), None, Faults::none()).map_err(Failure::doing("opening the store"))?);
            no_devices();
            Ok(())
        },
    )
}

/// Histories of the suite; in the lab each takes seconds.
const CASES: u32 = 10;

pub fn no_devices() {
    let left: Vec<PathBuf> =
        fs::read_dir("/dev/mapper").unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [Path::new("/dev/mapper/control")], "nodes are left");
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().file_name());
    let devices: Vec<_> = devices.filter(|name| name.to_string_lossy().starts_with("dm-")).collect();
    assert!(devices.is_empty(), "{devices:?} are left");
}

/// The daemon and its commands, as an administrator types them.
#[test]
fn lab_the_manuals_session_on_devices() -> Result<(), Failure> {
    session(TOOLS, Machine::new("solo"))
}

#[test]
fn lab_the_manuals_session_on_devices_with_udev() -> Result<(), Failure> {
    session(&[TOOLS, &["udevadm"]].concat(), Machine::new("solo").udev())
}

fn session(tools: &[&str], machine: Machine) -> Result<(), Failure> {
    if !lab::ready(tools) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut machine = machine.memory(768).modules(&["dm-thin-pool"]);
    for (name, size) in [("a", 64 << 20), ("b", 64 << 20), ("c", (64 << 20) - 4096), ("d", 64 << 20)] {
        machine = machine.disk(&lab.disk(name, size)?);
    }
    let log = lab.run(&machine, &Job::session("dm_thin.sh").env("ZUMASTOR", PROGRAM))?.passed()?;
    assert!(log.contains("all of the session held"), "{log}");
    Ok(())
}

/// The same on two nodes with a kernel each, from the making of the file system to the forgetting.
#[test]
fn lab_the_manuals_session_on_two_nodes() -> Result<(), Failure> {
    if !lab::ready_for_network(TOOLS) {
        return Ok(());
    }
    let lab = Lab::with_network(&["alpha", "beta"])?;
    let boot = |name: &str| {
        let machine = Machine::new(name).memory(768).modules(&["dm-thin-pool"]);
        let machine = machine.disk(&lab.disk(&format!("{name}-origin"), 64 << 20)?);
        let machine = machine.disk(&lab.disk(&format!("{name}-snapshots"), 256 << 20)?);
        lab.boot(&machine, &Job::session("two_nodes.sh").env("ZUMASTOR", PROGRAM))
    };
    let (alpha, beta) = (boot("alpha")?, boot("beta")?);
    for guest in [alpha, beta] {
        let log = guest.wait()?.passed()?;
        assert!(log.contains("all of the session held"), "{log}");
    }
    Ok(())
}

/// Lets `thin_check` look at the metadata of a store that is closed, on a device with this table.
pub fn check_metadata(table: &str) -> Result<(), Failure> {
    output("dmsetup", |command| command.args(["create", "check", "--table", table]))?;
    let checked = output("thin_check", |command| command.arg("/dev/mapper/check"));
    output("dmsetup", |command| command.args(["remove", "check"]))?;
    checked.map(drop)
}
