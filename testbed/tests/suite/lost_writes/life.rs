//! The life of a volume, and what it holds at each moment of it.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::Write,
    sync::Arc,
};

use zumastor::exit::Failure;
use zumastor_backends::{
    Faults, Making, VolumeSpec,
    conformance::{Bytes, deliver, plan_for},
    open_devices,
};
use zumastor_core::{
    Lineage, NewSnapshot, SegmentIndex, SnapshotNumber, SnapshotStore, StagePlan, StoreError,
};
use zumastor_testbed::output;

use super::{SIZE, mount_at, unmount_at};
use crate::write_log::{Entry, Recorder};

/// Not where a chunk ends.
const SMALLER: usize = SIZE / 2 + 1024;

/// What a volume holds.
#[derive(Clone)]
pub struct State {
    /// Whether it was said that there is a volume.
    pub defined: bool,
    pub snapshots: BTreeMap<u64, Arc<Bytes>>,
    pub head: Head,
    /// What is being received, and whether all of it has been.
    pub incoming: Option<(Arc<Incoming>, bool)>,
}

#[derive(Clone)]
pub enum Head {
    Is(Arc<Bytes>),
    /// A file system with these files, and maybe others.
    Has(Vec<(&'static str, Vec<u8>)>),
}

/// A snapshot that is received.
pub struct Incoming {
    pub plan: StagePlan,
    base: Bytes,
    pub target: Arc<Bytes>,
}

/// What is found in a store.
pub struct Found {
    snapshots: BTreeMap<u64, Bytes>,
    head: Bytes,
    incoming: Option<(StagePlan, bool)>,
}

impl State {
    fn is(&self, found: &Found) -> bool {
        let incoming = self.incoming.as_ref().map(|(incoming, all)| (&incoming.plan, *all));
        self.snapshots.iter().map(|(number, content)| (number, &**content)).eq(&found.snapshots)
            && incoming == found.incoming.as_ref().map(|(plan, all)| (plan, *all))
            && match &self.head {
                Head::Is(content) => **content == found.head,
                Head::Has(_) => found.head.0.len() == SIZE,
            }
    }
}

impl Found {
    pub async fn look(store: &dyn SnapshotStore) -> Result<Self, Failure> {
        let mut snapshots = BTreeMap::new();
        for record in store.snapshots().await? {
            let number = record.number();
            let content = snapshot(store, number.0).await?;
            assert_eq!(store.leaves(number).await?.digest(), Some(content.digest()), "of snapshot {number}");
            snapshots.insert(number.0, content);
        }
        let head = Bytes(fs::read("/dev/mapper/v").map_err(Failure::doing("reading the head"))?);
        let incoming = match store.staged().await? {
            Some(plan) => Some((plan.clone(), !store.stage(plan).await?.finished().is_empty())),
            None => None,
        };
        Ok(Self { snapshots, head, incoming })
    }

    /// Which of two states it is. Where it may be either, the one that promises less.
    pub fn which<'a>(&self, before: &'a State, after: &'a State) -> Option<&'a State> {
        let fit = [before, after].into_iter().filter(|state| state.is(self));
        fit.min_by_key(|state| matches!(state.head, Head::Has(_)))
    }
}

impl Incoming {
    fn new(number: u64, base: Option<(u64, &Bytes)>, target: Bytes) -> Arc<Self> {
        let on = base.map(|(number, _)| SnapshotNumber(number));
        let plan = plan_for(SnapshotNumber(number), Lineage(uuid::Uuid::nil()), on, &target);
        let base = base.map(|(_, content)| content.clone()).unwrap_or_default();
        Arc::new(Self { plan, base, target: Arc::new(target) })
    }

    pub fn number(&self) -> u64 {
        self.plan.record.number().0
    }

    /// Receives all of it that has not been.
    async fn receive(&self, store: &dyn SnapshotStore) -> Result<(), StoreError> {
        let staging = store.stage(self.plan.clone()).await?;
        if staging.finished().is_empty() {
            let leaves = deliver(&*staging, &self.base, &self.target, 0..self.target.0.len() as u64)?;
            staging.checkpoint(&leaves, &[SegmentIndex(0)])?;
        }
        Ok(())
    }

    async fn commit(&self, store: &dyn SnapshotStore) -> Result<(), StoreError> {
        let staging = store.stage(self.plan.clone()).await?;
        staging.commit(self.target.digest()).map(drop)
    }

    /// Goes on with it after a restart: what counts as received is there.
    pub async fn go_on(&self, store: &dyn SnapshotStore) -> Result<(), Failure> {
        self.receive(store).await?;
        self.commit(store).await?;
        assert!(
            snapshot(store, self.number()).await? == *self.target,
            "what was received is not what was sent"
        );
        Ok(())
    }
}

/// A life as it goes on, and what its devices take down of it.
pub struct Life {
    recorders: Arc<Vec<Recorder>>,
    states: Vec<State>,
    now: State,
}

impl Life {
    /// All of a life, from a file system on the origin on. The notes are where they are to be from here on.
    pub fn live(spec: &VolumeSpec, recorders: Vec<Recorder>) -> Result<Self, Failure> {
        for device in ["origin", "notes"] {
            make_file_system(&format!("/dev/mapper/{device}"))?;
        }
        for dir in ["/run/lab/notes", "/run/lab/head"] {
            fs::create_dir(dir).map_err(Failure::doing(dir))?;
        }
        mount_at("/dev/mapper/notes", "/run/lab/notes")?;
        let origin = fs::read("/dev/mapper/origin").map_err(Failure::doing("reading"))?;
        let head = Head::Is(Arc::new(Bytes(origin)));
        let now = State { defined: false, snapshots: BTreeMap::new(), head, incoming: None };
        let mut life = Self { recorders: Arc::new(recorders), states: Vec::new(), now };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(life.go_by(spec))?;
        unmount_at("/run/lab/notes")?;
        Ok(life)
    }

    /// What the volume held at each mark, and the logs.
    pub fn end(self) -> Result<(Vec<State>, Vec<Vec<Entry>>), Failure> {
        let recorders = Arc::into_inner(self.recorders).expect("the store is closed");
        let logs = recorders.into_iter().map(Recorder::finish).collect::<Result<_, _>>()?;
        Ok((self.states, logs))
    }

    /// Something has returned: what there is now, there is for good.
    fn done(&mut self, what: &str) -> Result<(), Failure> {
        self.states.push(self.now.clone());
        self.recorders.iter().try_for_each(|recorder| recorder.mark(what))
    }

    async fn go_by(&mut self, spec: &VolumeSpec) -> Result<(), Failure> {
        self.done("begun")?;
        let recorders = self.recorders.clone();
        let steps = Faults::new(move |step| {
            if step.contains("after") {
                recorders.iter().for_each(|recorder| recorder.mark_step(step));
            }
            false
        });
        let store = &*open_devices(spec, Some(Making::default()), steps)?;
        self.now.defined = true;
        self.done("defined")?;

        mount_at("/dev/mapper/v", "/run/lab/head")?;
        self.now.head = Head::Has(Vec::new());
        self.done("mounted")?;
        self.write("first", 300_000)?;
        self.take(store, 0).await?;
        self.write("second", 200_000)?;
        self.take(store, 1).await?;
        store.leaves(SnapshotNumber(1)).await?;
        self.done("hashed")?;
        self.write("third", 100_000)?;
        self.take(store, 2).await?;
        store.delete_snapshot(SnapshotNumber(0)).await?;
        self.now.snapshots.remove(&0);
        self.done("deleted")?;
        unmount_at("/run/lab/head")?;
        self.done("unmounted")?;

        let base = self.now.snapshots[&2].clone();
        let mut target = Bytes(base.0.clone());
        target.0[SIZE / 4..SIZE / 2].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 4096) as u8);
        target.0[SIZE / 2..SIZE * 3 / 4].fill(0);
        let incoming = Incoming::new(3, Some((2, &base)), target);
        self.receive(store, &incoming).await?;
        incoming.commit(store).await?;
        self.now.incoming = None;
        self.now.snapshots.insert(3, incoming.target.clone());
        self.done("committed")?;
        self.receive(store, &Incoming::new(4, None, Bytes(vec![4; SIZE]))).await?;
        store.discard_staged().await?;
        self.now.incoming = None;
        self.done("discarded")?;

        for number in [3, 1] {
            store.revert(SnapshotNumber(number)).await?;
            self.now.head = Head::Is(self.now.snapshots[&number].clone());
            self.done("shown")?;
        }
        for size in [SMALLER, SIZE] {
            store.resize(size as u64).await?;
            let mut head = self.now.snapshots[&1].0[..SMALLER].to_vec();
            head.resize(size, 0);
            self.now.head = Head::Is(Arc::new(Bytes(head)));
            self.done("resized")?;
        }
        store.close().await?;
        self.done("closed")
    }

    /// Writes a file that is there when that has returned.
    fn write(&mut self, name: &'static str, length: u32) -> Result<(), Failure> {
        let content: Vec<u8> = (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let written = File::create(format!("/run/lab/head/{name}"))
            .and_then(|mut file| file.write_all(&content).and_then(|()| file.sync_all()))
            .and_then(|()| File::open("/run/lab/head")?.sync_all());
        written.map_err(Failure::doing(format!("writing {name}")))?;
        if let Head::Has(files) = &mut self.now.head {
            files.push((name, content));
        }
        self.done(name)
    }

    /// Takes a snapshot, in which the file system is whole.
    async fn take(&mut self, store: &dyn SnapshotStore, number: u64) -> Result<(), Failure> {
        store.create_snapshot(new(number)).await?;
        self.now.snapshots.insert(number, Arc::new(snapshot(store, number).await?));
        self.done("taken")?;
        output("e2fsck", |fsck| fsck.args(["-fn", &format!("/dev/mapper/v({number})")])).map(drop)
    }

    async fn receive(&mut self, store: &dyn SnapshotStore, incoming: &Arc<Incoming>) -> Result<(), Failure> {
        drop(store.stage(incoming.plan.clone()).await?);
        self.now.incoming = Some((incoming.clone(), false));
        self.done("staged")?;
        incoming.receive(store).await?;
        self.now.incoming = Some((incoming.clone(), true));
        self.done("received")
    }
}

pub fn new(number: u64) -> NewSnapshot {
    NewSnapshot::manual(SnapshotNumber(number), Lineage(uuid::Uuid::nil()))
}

async fn snapshot(store: &dyn SnapshotStore, number: u64) -> Result<Bytes, StoreError> {
    let reader = store.open_snapshot(SnapshotNumber(number)).await?;
    let mut content = vec![0; reader.size() as usize];
    reader.read_at(0, &mut content)?;
    Ok(Bytes(content))
}

fn make_file_system(device: &str) -> Result<(), Failure> {
    let small =
        ["-q", "-b", "1024", "-N", "64", "-J", "size=1", "-O", "^resize_inode", "-E", "lazy_itable_init=0"];
    output("mkfs.ext4", |mkfs| mkfs.args(small).arg(device)).map(drop)
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let incoming = self.incoming.as_ref().map(|(incoming, all)| (incoming.number(), *all));
        let head = match &self.head {
            Head::Is(content) => content.digest().to_string(),
            Head::Has(files) => format!("files {:?}", files.iter().map(|(name, _)| name).collect::<Vec<_>>()),
        };
        describe(f, self.snapshots.iter().map(|(number, content)| (number, &**content)), incoming, &head)
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let incoming = self.incoming.as_ref().map(|(plan, all)| (plan.record.number().0, *all));
        let head = format!("{} of {} bytes", self.head.digest(), self.head.0.len());
        describe(f, self.snapshots.iter(), incoming, &head)
    }
}

fn describe<'a>(
    f: &mut fmt::Formatter<'_>,
    snapshots: impl Iterator<Item = (&'a u64, &'a Bytes)>,
    incoming: Option<(u64, bool)>,
    head: &str,
) -> fmt::Result {
    let snapshots: Vec<_> =
        snapshots.map(|(number, content)| format!("{number}: {}", content.digest())).collect();
    write!(f, "snapshots {snapshots:?}, incoming {incoming:?}, head {head}")
}
