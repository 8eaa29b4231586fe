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
    conformance::{Bytes, Subject, check, deliver, plan_for},
    open_devices,
};
use zumastor_core::{Lineage, NewSnapshot, SegmentIndex, SnapshotNumber, SnapshotStore, StoreError};
use zumastor_testbed::{
    lab::{self, Job, Lab, Machine},
    output,
};

/// The program, built with this test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_zumastor-under-test");

/// What the tests of this file need beside the lab.
const TOOLS: &[&str] = &["thin_restore", "thin_check", "thin_delta", "blkid", "dmsetup", "mkfs.ext4"];

fn machine(lab: &Lab, origin: u64, snapdev: u64) -> Result<Machine, Failure> {
    let machine = Machine::new("solo").modules(&["dm-thin-pool"]);
    Ok(machine.disk(&lab.disk("origin", origin)?).disk(&lab.disk("snapdev", snapdev)?))
}

fn spec() -> VolumeSpec {
    VolumeSpec {
        name: "v".parse().unwrap(),
        origin: "/dev/ubda".into(),
        snapstore: "/dev/ubdb".into(),
        metadev: None,
        chunk: None,
        notes: "/tmp/notes".into(),
    }
}

/// A volume of zeros on the guest's two disks.
#[derive(Debug)]
struct Volume {
    made: bool,
}

impl Volume {
    fn new() -> Self {
        // What the last case left is no store any more.
        let snapdev = OpenOptions::new().write(true).open("/dev/ubdb").unwrap();
        for copy in [0, 2 << 20] {
            snapdev.write_all_at(&[0; 4096], copy).unwrap();
        }
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

fn no_devices() {
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

/// A power cut in the middle of each operation, at each of its steps: the volume comes back as it was before or after.
#[test]
fn lab_power_cuts_leave_before_or_after() -> Result<(), Failure> {
    if lab::is_guest() {
        let step = std::env::var("CUT_AT").expect("set by the host");
        return if std::env::var_os("CUT_AFTER").is_some() {
            after_the_cut(&step)
        } else {
            until_the_cut(&step)
        };
    }
    if !lab::ready(TOOLS) {
        return Ok(());
    }
    for step in STEPS {
        let lab = Lab::new()?;
        let machine = machine(&lab, SIZE as u64, 32 << 20)?.memory(256);
        let job = Job::this_test()?.env("CUT_AT", step);
        let mut running = lab.boot(&machine, &job)?;
        running.wait_for("the power goes at")?;
        running.kill();
        lab.run(&machine, &job.env("CUT_AFTER", "1"))?.passed()?;
    }
    Ok(())
}

/// The steps, each of an operation that its name begins with.
const STEPS: [&str; 12] = [
    "make: after the metadata",
    "make: after the header",
    "snapshot: after cloning",
    "snapshot: after saving",
    "delete: after saving",
    "flip: after cloning",
    "flip: after saving",
    "flip: after swapping",
    "resize: after saving",
    "stage: before saving",
    "commit: before saving",
    "commit: after saving",
];

const SIZE: usize = 2 << 20;
/// Not where a chunk ends.
const SMALLER: usize = SIZE / 2 + 1024;

fn filled(byte: u8) -> Bytes {
    Bytes((0..SIZE).map(|at| if at % 4096 == 17 { (at / 4096) as u8 } else { byte }).collect())
}

fn number(number: u64) -> NewSnapshot {
    let lineage = Lineage(uuid::Uuid::nil());
    NewSnapshot::manual(SnapshotNumber(number), lineage)
}

fn write_head(content: &Bytes) {
    let head = OpenOptions::new().write(true).open("/dev/mapper/v").unwrap();
    head.write_all_at(&content.0, 0).unwrap();
    head.sync_data().unwrap();
}

/// Snapshot 0 holds ones, snapshot 1 twos, the head threes; then something is done, and the power goes in the middle of it.
fn until_the_cut(step: &str) -> Result<(), Failure> {
    let wanted = step.to_owned();
    let faults = Faults::new(move |passed| passed == wanted);
    fs::write("/dev/ubda", &filled(1).0).map_err(Failure::doing("writing"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let done: Result<(), StoreError> = runtime.block_on(async {
        let store = open_devices(&spec(), Some(Making::default()), faults.clone())?;
        if !step.starts_with("snapshot") {
            store.create_snapshot(number(0)).await?;
            write_head(&filled(2));
            store.create_snapshot(number(1)).await?;
            write_head(&filled(3));
        }
        match step.split(':').next().unwrap_or_default() {
            "snapshot" => drop(store.create_snapshot(number(0)).await?),
            "delete" => store.delete_snapshot(SnapshotNumber(0)).await?,
            "flip" => store.revert(SnapshotNumber(0)).await?,
            "resize" => store.resize(SMALLER as u64).await?,
            _ => {
                let target = filled(4);
                let base = Some(SnapshotNumber(1));
                let plan = plan_for(SnapshotNumber(2), Lineage(uuid::Uuid::nil()), base, &target);
                let staging = store.stage(plan).await?;
                let leaves = deliver(&*staging, &filled(2), &target, 0..SIZE as u64)?;
                staging.checkpoint(&leaves, &[SegmentIndex(0)])?;
                staging.commit(target.digest())?;
            }
        }
        Ok(())
    });
    assert!(faults.stopped(), "{step} was not passed: {done:?}");
    println!("the power goes at {step}");
    loop {
        std::thread::park();
    }
}

fn after_the_cut(step: &str) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        // Before there is a header, there is no store, and it is made as if nothing had been.
        let store = open_devices(&spec(), Some(Making::default()), Faults::none())?;
        let mut found = Vec::new();
        for record in store.snapshots().await? {
            let reader = store.open_snapshot(record.number()).await?;
            let mut content = vec![0; record.size as usize];
            reader.read_at(0, &mut content)?;
            found.push((record.number().0, content[0]));
            assert!(Bytes(content) == filled(found.last().expect("just pushed").1), "{step}: {record:?}");
            let leaves = store.leaves(record.number()).await?;
            assert_eq!(
                leaves.digest(),
                Some(filled(found.last().expect("just pushed").1).digest()),
                "{step}"
            );
        }
        let head = fs::read("/dev/mapper/v").expect("the head can be read");
        let (before, after) = (vec![(0, 1), (1, 2)], vec![(0, 1), (1, 2), (2, 4)]);
        let saved = step.ends_with("after saving") || step.ends_with("after swapping");
        let (snapshots, content) = match step.split(':').next().unwrap_or_default() {
            "make" => (vec![], filled(1)),
            "snapshot" if saved => (vec![(0, 1)], filled(1)),
            "snapshot" => (vec![], filled(1)),
            "delete" => (vec![(1, 2)], filled(3)),
            "flip" if saved => (before, filled(1)),
            "resize" => (before, Bytes(filled(3).0[..SMALLER].to_vec())),
            "commit" if saved => (after, filled(3)),
            _ => (before, filled(3)),
        };
        assert_eq!(found, snapshots, "{step}");
        assert!(Bytes(head) == content, "the head after {step}");
        if step.starts_with("resize") {
            store.resize(SIZE as u64).await?;
            let head = fs::read("/dev/mapper/v").expect("the head can be read");
            assert!(head[SMALLER..].iter().all(|byte| *byte == 0), "what was cut off is back");
        }
        store.create_snapshot(number(7)).await?;
        store.close().await
    })?;
    no_devices();
    check_metadata()
}

/// Lets `thin_check` look at the metadata on the snapshot store.
fn check_metadata() -> Result<(), Failure> {
    let table = "0 8192 linear /dev/ubdb 8192";
    output("dmsetup", |command| command.args(["create", "check", "--table", table]))?;
    let checked = output("thin_check", |command| command.arg("/dev/mapper/check"));
    output("dmsetup", |command| command.args(["remove", "check"]))?;
    checked.map(drop)
}
