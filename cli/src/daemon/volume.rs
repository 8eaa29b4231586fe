//! A volume: its configuration, its store, and what replicates it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::FileTypeExt,
    path::PathBuf,
    sync::{Arc, Mutex, RwLock, Weak},
};

use tokio::sync::watch;
use uuid::Uuid;
use zumastor_backends::{
    Making, OriginMust, VolumeSpec, let_go_on, open_volume, origin_exists, reopen_volume, store_id,
};
use zumastor_core::{
    NodeName, SnapshotNumber, SnapshotRecord, SnapshotStore, StoreError, VolumeName,
    config::{TargetConfig, TestFeature, VolumeConfig},
};
use zumastor_net::{Compression, Meter, Offer, Permit, PullState, RateLimiter, SendRoom};

use super::{
    cache::Shares,
    circles::Circling,
    hooks::Hooks,
    initialize,
    mounting::Mounting,
    outgoing::Fetching,
    scrub::Scrubber,
    snapshotter::Snapshotter,
    space::SpaceWatch,
    state::Window,
    worker::{Wish, Worker},
};
use crate::{
    api::{Part, Role, WorkStatus},
    exit::chain,
};

/// A volume that is defined on this node.
#[derive(Debug)]
pub struct Volume {
    /// Its name here.
    pub name: VolumeName,
    /// One snapshot is taken or deleted at a time.
    pub snapshotting: tokio::sync::Mutex<()>,
    /// Takes the scheduled snapshots.
    pub snapshotter: Snapshotter,
    /// Whether there is room for its snapshots.
    pub space: SpaceWatch,
    /// Whether it goes round in a circle.
    pub circling: Circling,
    /// Mounts it.
    pub mounting: Mounting,
    /// Snapshots that are being deleted: nobody may hold them any more.
    pub doomed: Arc<Mutex<BTreeSet<SnapshotNumber>>>,
    /// What is to be said of how its source is defined.
    pub source_caution: Mutex<Option<String>>,
    /// Reads its snapshots against their digests.
    pub scrubber: Scrubber,
    /// What is run around its snapshots and its replication.
    pub hooks: Hooks,
    /// Memory for what is sent of it.
    pub room: Arc<SendRoom>,
    /// Snapshots from this number on may be taken back yet: their group is not complete.
    unsettled: Mutex<Option<SnapshotNumber>>,
    /// What a daemon that was killed left to be done for a snapshot.
    left: Mutex<Option<Window>>,
    /// Why nothing is to be done with it.
    barred: Mutex<Option<String>>,
    stopped: RwLock<BTreeSet<Part>>,
    stores: Arc<Stores>,
    config: RwLock<VolumeConfig>,
    store: tokio::sync::Mutex<Option<Arc<dyn SnapshotStore>>>,
    puller: Mutex<Option<Worker>>,
    /// Lets its source fetch from it what is damaged there.
    lending: Mutex<Permit>,
    targets: Mutex<BTreeMap<NodeName, Target>>,
}

/// A downstream of a volume.
#[derive(Debug)]
pub struct Target {
    /// Announces.
    pub worker: Worker,
    /// Compresses what is sent, unless that is not wanted.
    pub compression: Option<Arc<Compression>>,
    /// Bounds what is sent, over all streams together.
    pub limiter: Option<Arc<RateLimiter>>,
    /// Counts what is sent.
    pub meter: Arc<Meter>,
    /// Lets it fetch, until it is no target any more or is stopped.
    pub permit: Permit,
    /// What it fetches now.
    pub fetching: Arc<Fetching>,
    /// What it is to have.
    offer: Mutex<Offer>,
}

impl Target {
    /// A target as configured, served by `worker`.
    pub fn new(config: &TargetConfig, worker: Worker) -> Self {
        let limiter = config.ratelimit.map(|rate| Arc::new(RateLimiter::new(rate)));
        let compression = (!config.uncompressed).then(|| Arc::new(Compression::new(ZSTD_LEVEL)));
        let whole = config.test == Some(TestFeature::FullVolume);
        let offer = Offer { selection: config.rotations.clone(), all: config.all, whole, ..Offer::default() };
        let (meter, permit, fetching) = (Arc::default(), Permit::default(), Arc::default());
        Self { worker, compression, limiter, meter, permit, fetching, offer: Mutex::new(offer) }
    }

    /// What is being done for it: what was announced, or else what it fetches because it asked.
    pub fn work(&self, host: &NodeName) -> WorkStatus {
        let work = self.worker.status();
        match self.fetching.now().filter(|_| work.progress.is_none()) {
            Some((progress, rate)) => WorkStatus {
                state: progress.phase.into(),
                progress: Some(progress),
                remark: Some(format!("asked for by {host}")),
                rate,
                ..work
            },
            None => work,
        }
    }

    /// What it is to have.
    pub fn offer(&self) -> Offer {
        self.offer.lock().expect("no panic while locked").clone()
    }

    /// Lets it have a snapshot that it would not have otherwise, until the next call.
    pub fn offer_also(&self, number: Option<SnapshotNumber>) {
        self.offer.lock().expect("no panic while locked").also = number;
    }
}

impl Volume {
    /// A volume whose store is opened when it is needed first.
    pub fn new(name: VolumeName, config: VolumeConfig, stores: Arc<Stores>) -> Self {
        let room = Arc::new(SendRoom::new(Shares::of(&config).sending, config.target.len()));
        Self {
            room,
            name,
            snapshotting: tokio::sync::Mutex::default(),
            snapshotter: Snapshotter::default(),
            space: SpaceWatch::default(),
            circling: Circling::default(),
            mounting: Mounting::default(),
            doomed: Arc::default(),
            source_caution: Mutex::default(),
            scrubber: Scrubber::default(),
            hooks: Hooks::default(),
            unsettled: Mutex::default(),
            left: Mutex::default(),
            barred: Mutex::default(),
            stopped: RwLock::default(),
            stores,
            config: RwLock::new(config),
            store: tokio::sync::Mutex::default(),
            puller: Mutex::default(),
            lending: Mutex::default(),
            targets: Mutex::default(),
        }
    }

    /// How it is configured.
    pub fn config(&self) -> VolumeConfig {
        self.config.read().expect("no panic while locked").clone()
    }

    /// Changes how it is configured; what replicates it is not touched.
    pub fn set_config(&self, config: VolumeConfig) {
        let shares = Shares::of(&config);
        self.room.set(shares.sending, config.target.len());
        // One that is being opened is told by who opens it.
        if let Ok(Some(store)) = self.store.try_lock().as_deref() {
            store.limit_cache(shares.kept);
        }
        *self.config.write().expect("no panic while locked") = config;
        self.circling.ask_soon();
        self.snapshotter.wake();
    }

    /// Why nothing is to be done with it, if that is so: what its file says of it must not be done.
    pub fn barred(&self) -> Option<String> {
        self.barred.lock().expect("no panic while locked").clone()
    }

    /// From now on nothing is done with it, or all is again.
    pub fn bar(&self, why: Option<String>) {
        *self.barred.lock().expect("no panic while locked") = why;
    }

    /// Whether a part of its work is stopped, alone or with all of it.
    pub fn is_stopped(&self, part: &Part) -> bool {
        let stopped = self.stopped.read().expect("no panic while locked");
        stopped.contains(part) || stopped.contains(&Part::Volume)
    }

    /// What is stopped.
    pub fn stopped(&self) -> BTreeSet<Part> {
        self.stopped.read().expect("no panic while locked").clone()
    }

    /// Notes what is stopped; what runs is not touched.
    pub fn set_stopped(&self, stopped: BTreeSet<Part>) {
        *self.stopped.write().expect("no panic while locked") = stopped;
        self.snapshotter.wake();
    }

    /// The first snapshot that may be taken back yet, and that nobody may have or hold until then.
    pub fn unsettled(&self) -> Option<SnapshotNumber> {
        *self.unsettled.lock().expect("no panic while locked")
    }

    /// A snapshot may be taken back, from before it is taken until all of its group are.
    pub fn unsettle(&self, number: SnapshotNumber) {
        *self.unsettled.lock().expect("no panic while locked") = Some(number);
    }

    /// All snapshots that there are stay.
    pub fn settle(&self) {
        *self.unsettled.lock().expect("no panic while locked") = None;
    }

    /// What is left to be done for a snapshot.
    pub fn left(&self) -> Option<Window> {
        self.left.lock().expect("no panic while locked").clone()
    }

    /// Something is left to be done for a snapshot, or nothing any more.
    pub fn leave(&self, window: Option<Window>) {
        if let Some(window) = window.as_ref().filter(|window| window.group.is_some() && !window.complete) {
            self.unsettle(window.number);
        }
        *self.left.lock().expect("no panic while locked") = window;
    }

    /// What this node is for it.
    pub fn role(&self) -> Role {
        let config = self.config.read().expect("no panic while locked");
        match (&config.master, &config.source) {
            (Some(_), _) => Role::Master,
            (None, Some(_)) => Role::Replica,
            (None, None) => Role::Undecided,
        }
    }

    /// Its store. Where it cannot be opened, each call tries again: a file system may have been mounted since. None is
    /// ever made here: an empty one in place of the one that is not mounted would begin another history.
    pub async fn store(&self) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        if let Some(barred) = self.barred() {
            return Err(StoreError::Unsupported(barred));
        }
        if let Some(broken_off) = initialize::broken_off(&self.name, &self.config()) {
            return Err(StoreError::Unsupported(broken_off));
        }
        let mut store = self.store.lock().await;
        if let Some(store) = &*store {
            return Ok(store.clone());
        }
        let opened = self.stores.open(&self.name, &self.config(), Found::There).await?;
        Ok(store.insert(opened).clone())
    }

    /// Lets it go on where a daemon that was killed left it standing still, whether its store can be opened or not.
    pub async fn let_go_on(&self) {
        let store = self.store.lock().await;
        if store.is_some() {
            return;
        }
        let config = self.config();
        match let_go_on(&self.stores.spec(&self.name, &config), config.store).await {
            Ok(0) => {}
            Ok(_) => tracing::warn!(volume = %self.name, "the volume stood still, and goes on"),
            Err(error) => {
                tracing::error!(volume = %self.name, error = %chain(&error), "the volume may stand still: see `dmsetup info`");
            }
        }
    }

    /// Its store, if it is open and nobody is opening or closing it.
    pub fn open_store(&self) -> Option<Arc<dyn SnapshotStore>> {
        self.store.try_lock().ok()?.clone()
    }

    /// Gives it a store, as if that had been opened.
    #[cfg(test)]
    pub async fn set_store(&self, store: Arc<dyn SnapshotStore>) {
        *self.store.lock().await = Some(store);
    }

    /// Its store, made if there is none, and the store's identity: for a volume that is being defined.
    pub async fn found(&self, making: Making) -> Result<(Arc<dyn SnapshotStore>, Option<Uuid>), StoreError> {
        let mut store = self.store.lock().await;
        let config = self.config();
        let opened = self.stores.open(&self.name, &config, Found::OrMade(making)).await?;
        let id = identity(&config).await?;
        Ok((store.insert(opened).clone(), id))
    }

    /// Its newest snapshot that other nodes know.
    pub async fn newest(&self) -> Result<Option<SnapshotRecord>, StoreError> {
        let snapshots = self.store().await?.snapshots().await?;
        Ok(snapshots.into_iter().rev().find(|record| !record.number().is_local()))
    }

    /// Asks for a run to a target, or from the source; nothing if nobody does that just now.
    pub fn ask(&self, host: &NodeName, wish: Wish) -> Option<watch::Receiver<PullState>> {
        if self.config().target.contains_key(host) {
            return self.with_target(host, |target| target.map(|target| target.worker.ask(wish)));
        }
        self.with_puller(|puller| puller.map(|puller| puller.ask(wish)))
    }

    /// Looks at what pulls.
    pub fn with_puller<T>(&self, look: impl FnOnce(Option<&Worker>) -> T) -> T {
        look(self.puller.lock().expect("no panic while locked").as_ref())
    }

    /// Looks at a target.
    pub fn with_target<T>(&self, host: &NodeName, look: impl FnOnce(Option<&Target>) -> T) -> T {
        look(self.targets.lock().expect("no panic while locked").get(host))
    }

    /// There is a new snapshot: targets that stopped are tried again.
    pub fn rearm_targets(&self) {
        self.targets.lock().expect("no panic while locked").values().for_each(|target| target.worker.rearm());
    }

    /// Lets its source fetch from it, until nothing comes from there any more or that is stopped.
    pub fn lending(&self) -> Permit {
        self.lending.lock().expect("no panic while locked").clone()
    }

    /// Replaces what pulls, after the one before has ended. If nothing does any more, nothing is sent to the source either.
    pub async fn set_puller(&self, worker: impl FnOnce() -> Option<Worker>) {
        let old = self.puller.lock().expect("no panic while locked").take();
        if let Some(old) = old {
            old.stop().await;
        }
        let worker = worker();
        if worker.is_none() {
            let lent = std::mem::take(&mut *self.lending.lock().expect("no panic while locked"));
            lent.withdraw();
            lent.ended().await;
        }
        *self.puller.lock().expect("no panic while locked") = worker;
    }

    /// Replaces a target, after the one before has ended. If there is none any more, what is being sent there has ended too
    /// when this returns; otherwise that goes on.
    pub async fn set_target(&self, host: &NodeName, target: impl FnOnce() -> Option<Target>) {
        let old = self.targets.lock().expect("no panic while locked").remove(host);
        let sending = match old {
            Some(Target { worker, permit, fetching, .. }) => {
                worker.stop().await;
                Some((permit, fetching))
            }
            None => None,
        };
        match (target(), sending) {
            (Some(target), sending) => {
                let (permit, fetching) = sending.unwrap_or_default();
                let target = Target { permit, fetching, ..target };
                self.targets.lock().expect("no panic while locked").insert(host.clone(), target);
            }
            (None, Some((permit, _))) => {
                permit.withdraw();
                permit.ended().await;
            }
            (None, None) => {}
        }
    }

    /// Has no targets any more: what is being sent has ended when this returns.
    pub async fn send_no_more(&self) {
        let targets = std::mem::take(&mut *self.targets.lock().expect("no panic while locked"));
        targets.values().for_each(|target| target.permit.withdraw());
        for Target { worker, permit, .. } in targets.into_values() {
            worker.stop().await;
            permit.ended().await;
        }
    }

    /// Ends everything that takes snapshots of it and replicates it. What is being sent at the moment goes on until the
    /// connection is closed, unless it was ended [before](Self::send_no_more).
    pub async fn stop(&self) {
        self.mounting.stop().await;
        self.snapshotter.stop().await;
        self.scrubber.stop().await;
        // A snapshot that is being taken is taken to the end, with its hooks.
        drop(self.snapshotting.lock().await);
        self.set_puller(|| None).await;
        let targets = std::mem::take(&mut *self.targets.lock().expect("no panic while locked"));
        for target in targets.into_values() {
            target.worker.stop().await;
        }
    }

    /// Closes its store, after everything that uses it was stopped: its devices go. The next who asks for the store opens it
    /// again.
    pub async fn close(&self) {
        let mut store = self.store.lock().await;
        let Some(open) = store.take() else { return };
        if let Err(error) = open.close().await {
            tracing::warn!(volume = %self.name, %error, "the store could not be closed properly");
        }
        self.stores.forget(&self.config());
    }
}

/// Whether a store has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// It was defined once: what is not there is not mounted.
    There,
    /// It is made if it is not there, on block devices like this.
    OrMade(Making),
}

/// The identity of the store of a volume.
pub async fn identity(config: &VolumeConfig) -> Result<Option<Uuid>, StoreError> {
    let (origin, snapstore) = (config.origin.clone(), config.snapstore.clone());
    tokio::task::spawn_blocking(move || store_id(&origin, &snapstore))
        .await
        .expect("reading an identity does not panic")
}

/// The stores that are open, by origin and snapshot store. A volume that is forgotten and defined again at once finds
/// its store here while a transfer that is ending still has it.
#[derive(Debug, Default)]
pub struct Stores {
    open: Mutex<HashMap<(PathBuf, PathBuf), Arc<Slot>>>,
    /// Where stores on block devices keep what can be made again.
    notes: PathBuf,
}

/// One of them; locked while it is being opened, so that a file system that does not answer keeps nobody else waiting.
type Slot = tokio::sync::Mutex<Option<Weak<dyn SnapshotStore>>>;

impl Stores {
    /// No store. Those on block devices keep below `notes` what can be made again.
    pub fn new(notes: PathBuf) -> Self {
        Self { open: Mutex::default(), notes }
    }

    /// What a volume is made of, for its store.
    fn spec(&self, name: &VolumeName, config: &VolumeConfig) -> VolumeSpec {
        let VolumeConfig { origin, snapstore, metadev, .. } = config.clone();
        let chunk = config.chunk.map(|size| size.0);
        VolumeSpec { name: name.clone(), origin, snapstore, metadev, chunk, notes: self.notes.clone() }
    }

    /// Forgets a store that was closed: the next who wants it opens it anew.
    fn forget(&self, config: &VolumeConfig) {
        let mut slots = self.open.lock().expect("no panic while locked");
        slots.remove(&(config.origin.clone(), config.snapstore.clone()));
    }

    async fn open(
        &self,
        name: &VolumeName,
        config: &VolumeConfig,
        found: Found,
    ) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        let slot = {
            let mut slots = self.open.lock().expect("no panic while locked");
            // Whoever uses a slot has another reference to it.
            slots.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot.try_lock().is_ok_and(|slot| slot.as_ref().is_some_and(|s| s.strong_count() > 0))
            });
            slots.entry((config.origin.clone(), config.snapstore.clone())).or_default().clone()
        };
        let mut slot = slot.lock().await;
        if let Some(store) = slot.as_ref().and_then(Weak::upgrade) {
            return Ok(store);
        }
        let origin = &config.origin;
        if config.master.is_some() && !exists(origin.clone()).await {
            return Err(StoreError::Unsupported(format!(
                "the origin {} does not exist: is its file system mounted?",
                origin.display()
            )));
        }
        let store = match found {
            Found::There => reopen_volume(&self.spec(name, config), config.store).await?,
            Found::OrMade(making) => {
                open_volume(&self.spec(name, config), OriginMust::MayBeAbsent, making).await?
            }
        };
        store.limit_cache(Shares::of(config).kept);
        *slot = Some(Arc::downgrade(&store));
        Ok(store)
    }
}

/// Whether there is an origin, asked where a file system that does not answer keeps nobody from working.
pub async fn exists(path: PathBuf) -> bool {
    tokio::task::spawn_blocking(move || origin_exists(&path)).await.expect("looking does not panic")
}

/// Whether a path is a block device's.
pub async fn is_device(path: PathBuf) -> bool {
    let look = move || fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    tokio::task::spawn_blocking(look).await.expect("looking does not panic")
}

/// zstd level of what is sent: the fastest that zstd calls a level.
const ZSTD_LEVEL: i32 = 1;
