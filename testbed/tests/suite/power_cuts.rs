//! A power cut in the middle of each operation of a volume in a thin pool, at each of its steps: the volume comes back as it was before or
//! as it is after. The guest is killed, so all that was written is on its disks; `lost_writes.rs` has what is not.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
};

use zumastor::exit::Failure;
use zumastor_backends::{
    Faults, Making, VolumeSpec,
    conformance::{Bytes, deliver, plan_for},
    open_devices, open_lvm,
};
use zumastor_core::{
    Lineage, NewSnapshot, SegmentIndex, SnapshotGuid, SnapshotNumber, SnapshotStore, StagePlan, StoreError,
};
use zumastor_testbed::{
    lab::{self, Job, Lab, Machine},
    output,
};

use crate::{dm_thin, lvm_thin};

/// A step, and whether what was being done is done when the power goes there.
type Step = (&'static str, bool);

/// What a volume in a thin pool is made of.
trait Kind {
    const TOOLS: &'static [&'static str];
    /// Each of an operation that its name begins with.
    const STEPS: &'static [Step];
    /// Where the volume's notes are to be, which survive too.
    const NOTES: &'static str;

    fn machine(lab: &Lab) -> Result<Machine, Failure>;

    fn spec() -> VolumeSpec;

    /// Makes of the disks what a volume that holds `content` is defined on, whatever they were.
    fn prepare(content: &Bytes) -> Result<(), Failure>;

    /// What the system does when it starts.
    fn start() -> Result<(), Failure>;

    fn open(making: Option<Making>, faults: Faults) -> Result<Arc<dyn SnapshotStore>, StoreError>;

    /// Of a store with these snapshots that was closed, nothing is left that nobody knows, and its metadata are whole.
    fn look_at_what_is_left(snapshots: &[u64]) -> Result<(), Failure>;
}

struct OnDevices;

impl Kind for OnDevices {
    const TOOLS: &'static [&'static str] = &["thin_check", "blkid", "dmsetup", "mkfs.ext4"];
    const STEPS: &'static [Step] = &[
        ("make: after the metadata", false),
        ("make: after the header", true),
        ("snapshot: after cloning", false),
        ("snapshot: after saving", true),
        ("delete: after saving", true),
        ("flip: after cloning", false),
        ("flip: after saving", true),
        ("flip: after swapping", true),
        ("resize: after saving", true),
        ("stage: before saving", false),
        ("stage: after saving", true),
        ("checkpoint: after record", true),
        ("commit: before saving", false),
        ("commit: after saving", true),
    ];
    const NOTES: &'static str = "/dev/ubdc";

    fn machine(lab: &Lab) -> Result<Machine, Failure> {
        dm_thin::machine(lab, SIZE as u64, 32 << 20)
    }

    fn spec() -> VolumeSpec {
        dm_thin::spec()
    }

    fn prepare(content: &Bytes) -> Result<(), Failure> {
        dm_thin::forget_store();
        write("/dev/ubda", content);
        Ok(())
    }

    fn start() -> Result<(), Failure> {
        Ok(())
    }

    fn open(making: Option<Making>, faults: Faults) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        open_devices(&spec::<Self>(), making, faults)
    }

    fn look_at_what_is_left(_snapshots: &[u64]) -> Result<(), Failure> {
        dm_thin::no_devices();
        dm_thin::check_metadata("0 8192 linear /dev/ubdb 8192")
    }
}

struct OnLvm;

impl Kind for OnLvm {
    const TOOLS: &'static [&'static str] = lvm_thin::TOOLS;
    const STEPS: &'static [Step] = &[
        ("make: before the header", false),
        ("make: after the header", true),
        ("snapshot: after cloning", false),
        ("snapshot: after saving", true),
        ("delete: after saving", true),
        ("delete: before freeing", true),
        ("flip: after cloning", false),
        ("flip: before saving", false),
        ("flip: after saving", true),
        ("flip: after swapping", true),
        // LVM's size counts, which comes after that.
        ("resize: after saving", false),
        ("resize: before clearing", true),
        ("stage: before saving", false),
        ("stage: after saving", true),
        ("checkpoint: after record", true),
        ("commit: before saving", false),
        ("commit: after saving", true),
    ];
    const NOTES: &'static str = "/dev/ubdb";

    fn machine(lab: &Lab) -> Result<Machine, Failure> {
        lvm_thin::machine(lab, 64 << 20)
    }

    fn spec() -> VolumeSpec {
        lvm_thin::spec()
    }

    fn prepare(content: &Bytes) -> Result<(), Failure> {
        fs::write("/dev/ubda", [0; 1 << 20]).map_err(Failure::doing("writing"))?;
        let _ = fs::remove_dir_all("/dev/vg");
        // Each command takes its time in the lab.
        lvm("vgcreate", "-y -s 512b vg /dev/ubda")?;
        let pool = "--thinpool vg/pool -L 32M --poolmetadatasize 4M";
        lvm("lvcreate", &format!("--type thin -V {SIZE}b -n vol {pool}"))?;
        // Synced, for a pool may forget what was not.
        write("/dev/vg/vol", content);
        Ok(())
    }

    fn start() -> Result<(), Failure> {
        lvm("vgchange", "-ay vg").map(drop)
    }

    fn open(making: Option<Making>, faults: Faults) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        open_lvm(&spec::<Self>(), making, faults)
    }

    fn look_at_what_is_left(snapshots: &[u64]) -> Result<(), Failure> {
        lvm_thin::nothing_is_left()?;
        let there = lvm("lvs", "--noheadings --separator : -o lv_name,lv_tags,vg_tags -S segtype=thin vg")?;
        let there: Vec<Vec<_>> = there.lines().map(|line| line.trim().split(':').collect()).collect();
        let names = snapshots.iter().map(|number| format!("vol_zuma{number}"));
        let names: BTreeSet<_> = names.chain(["vol".to_owned()]).collect();
        assert_eq!(there.iter().map(|lv| lv[0].to_owned()).collect::<BTreeSet<_>>(), names);
        let (store, tags) = (there[0][1], there[0][2]);
        assert!(store.starts_with("zumastor.") && there.iter().all(|lv| lv[1] == store), "{there:?}");
        let about = tags.split(',').map(|tag| match tag.strip_prefix(store) {
            Some(about) => about.split('.').nth(1).unwrap_or_default().to_owned(),
            None => tag.to_owned(),
        });
        let wanted = snapshots.iter().map(|number| format!("s{number}"));
        let wanted: BTreeSet<_> = wanted.chain(["head".to_owned()]).collect();
        assert_eq!(about.collect::<BTreeSet<_>>(), wanted);
        lvm("vgchange", "-an vg")?;
        lvm("lvchange", "-ay -y vg/pool_tmeta")?;
        output("thin_check", |command| command.arg("/dev/mapper/vg-pool_tmeta"))?;
        output("dmsetup", |command| command.args(["remove", "vg-pool_tmeta"])).map(drop)
    }
}

fn lvm(program: &str, arguments: &str) -> Result<String, Failure> {
    lvm_thin::lvm(program, arguments)
}

#[test]
fn lab_power_cuts_leave_before_or_after() -> Result<(), Failure> {
    cut_at_each_step::<OnDevices>()
}

#[test]
fn lab_power_cuts_leave_before_or_after_on_lvm() -> Result<(), Failure> {
    cut_at_each_step::<OnLvm>()
}

/// A guest that starts after a cut looks at what that left, and goes on to the next one.
fn cut_at_each_step<K: Kind>() -> Result<(), Failure> {
    if lab::is_guest() {
        let step = |name: &str| {
            let named = std::env::var(name).ok()?;
            Some(*K::STEPS.iter().find(|(step, _)| *step == named).expect("set by the host"))
        };
        if let Some(step) = step("CUT_AT_LAST") {
            mount_notes::<K>()?;
            after_the_cut::<K>(step)?;
        } else {
            output("mkfs.ext4", |mkfs| mkfs.args(["-q", K::NOTES]))?;
            mount_notes::<K>()?;
        }
        return step("CUT_AT").map_or(Ok(()), |(step, _)| until_the_cut::<K>(step));
    }
    if !lab::ready(K::TOOLS) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let machine = K::machine(&lab)?.memory(256).disk(&lab.disk("notes", 8 << 20)?);
    let mut job = Job::this_test()?;
    for (step, _) in K::STEPS {
        let mut running = lab.boot(&machine, &job.env("CUT_AT", step))?;
        running.wait_for(&format!("the power goes at {step}"))?;
        running.kill();
        job = Job::this_test()?.env("CUT_AT_LAST", step);
    }
    lab.run(&machine, &job)?.passed().map(drop)
}

fn mount_notes<K: Kind>() -> Result<(), Failure> {
    fs::create_dir("/run/lab/notes").map_err(Failure::doing("a directory"))?;
    output("mount", |mount| mount.args([K::NOTES, "/run/lab/notes"])).map(drop)
}

fn spec<K: Kind>() -> VolumeSpec {
    VolumeSpec { notes: PathBuf::from("/run/lab/notes"), ..K::spec() }
}

const SIZE: usize = 2 << 20;
/// Not where a chunk ends.
const SMALLER: usize = SIZE / 2 + 1024;

fn filled(byte: u8) -> Bytes {
    Bytes((0..SIZE).map(|at| if at % 4096 == 17 { (at / 4096) as u8 } else { byte }).collect())
}

fn number(number: u64) -> NewSnapshot {
    NewSnapshot::manual(SnapshotNumber(number), Lineage(uuid::Uuid::nil()))
}

fn write(device: &str, content: &Bytes) {
    let device = OpenOptions::new().write(true).open(device).unwrap();
    device.write_all_at(&content.0, 0).unwrap();
    device.sync_data().unwrap();
}

fn write_head(content: &Bytes) {
    write("/dev/mapper/v", content);
}

/// Snapshot 2, which is received upon snapshot 1.
fn plan() -> StagePlan {
    let lineage = Lineage(uuid::Uuid::nil());
    let mut plan = plan_for(SnapshotNumber(2), lineage, Some(SnapshotNumber(1)), &filled(4));
    // The same each time that it is sent.
    plan.record.new.guid = SnapshotGuid(uuid::Uuid::max());
    plan.record.new.created = Default::default();
    plan
}

/// Receives what is not there yet, and commits it.
async fn receive(store: &dyn SnapshotStore) -> Result<(), StoreError> {
    let staging = store.stage(plan()).await?;
    if staging.finished().is_empty() {
        let leaves = deliver(&*staging, &filled(2), &filled(4), 0..SIZE as u64)?;
        staging.checkpoint(&leaves, &[SegmentIndex(0)])?;
    }
    staging.commit(filled(4).digest()).map(drop)
}

fn operation(step: &str) -> &str {
    step.split(':').next().unwrap_or_default()
}

/// Snapshot 0 holds ones, snapshot 1 twos, the head threes; then something is done, and the power goes in the middle of it.
fn until_the_cut<K: Kind>(step: &'static str) -> Result<(), Failure> {
    let faults = Faults::new(move |passed| passed == step);
    K::prepare(&filled(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let done: Result<(), StoreError> = runtime.block_on(async {
        let store = K::open(Some(Making::default()), faults.clone())?;
        if operation(step) != "snapshot" {
            store.create_snapshot(number(0)).await?;
            write_head(&filled(2));
            store.create_snapshot(number(1)).await?;
            write_head(&filled(3));
        }
        match operation(step) {
            "snapshot" => store.create_snapshot(number(0)).await.map(drop),
            "delete" => store.delete_snapshot(SnapshotNumber(0)).await,
            "flip" => store.revert(SnapshotNumber(0)).await,
            "resize" => store.resize(SMALLER as u64).await,
            _ => receive(&*store).await,
        }
    });
    assert!(faults.stopped(), "{step} was not passed: {done:?}");
    println!("the power goes at {step}");
    loop {
        std::thread::park();
    }
}

/// What there must be after a cut: snapshots and what they are filled with, the head, and whether something is being received.
fn expected((step, done): Step) -> (Vec<(u64, u8)>, Bytes, bool) {
    let both = vec![(0, 1), (1, 2)];
    match (operation(step), done) {
        ("make", _) | ("snapshot", false) => (vec![], filled(1), false),
        ("snapshot", true) => (vec![(0, 1)], filled(1), false),
        ("delete", true) => (vec![(1, 2)], filled(3), false),
        ("flip", true) => (both, filled(1), false),
        ("resize", true) => (both, Bytes(filled(3).0[..SMALLER].to_vec()), false),
        ("stage" | "checkpoint", true) | ("commit", false) => (both, filled(3), true),
        ("commit", true) => (vec![(0, 1), (1, 2), (2, 4)], filled(3), false),
        _ => (both, filled(3), false),
    }
}

async fn found(store: &dyn SnapshotStore) -> Result<Vec<(u64, u8)>, StoreError> {
    let mut found = Vec::new();
    for record in store.snapshots().await? {
        let reader = store.open_snapshot(record.number()).await?;
        let mut content = vec![0; record.size as usize];
        reader.read_at(0, &mut content)?;
        let byte = content[0];
        assert!(Bytes(content) == filled(byte), "{record:?}");
        let leaves = store.leaves(record.number()).await?;
        assert_eq!(leaves.digest(), Some(filled(byte).digest()), "{record:?}");
        found.push((record.number().0, byte));
    }
    Ok(found)
}

fn after_the_cut<K: Kind>(step: Step) -> Result<(), Failure> {
    K::start()?;
    let (mut snapshots, content, receiving) = expected(step);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        // Before there is a store, it is made as if nothing had been.
        let making = (step.0.starts_with("make") && !step.1).then(Making::default);
        let store = K::open(making, Faults::none())?;
        assert_eq!(found(&*store).await?, snapshots, "after {step:?}");
        let head = fs::read("/dev/mapper/v").expect("the head can be read");
        assert!(Bytes(head) == content, "the head after {step:?}");
        assert_eq!(store.staged().await?, receiving.then(plan), "after {step:?}");
        if receiving {
            receive(&*store).await?;
            snapshots.push((2, 4));
            assert_eq!(found(&*store).await?, snapshots, "received after {step:?}");
        }
        if content.0.len() == SMALLER {
            store.resize(SIZE as u64).await?;
            let head = fs::read("/dev/mapper/v").expect("the head can be read");
            assert!(head[SMALLER..].iter().all(|byte| *byte == 0), "what was cut off is back");
        }
        store.create_snapshot(number(7)).await?;
        store.close().await
    })?;
    let snapshots: Vec<_> = snapshots.iter().map(|(number, _)| *number).chain([7]).collect();
    K::look_at_what_is_left(&snapshots)
}
