//! What is done when space gets short where the snapshots are: the oldest that nobody holds go, until there is as much
//! as the volume's file asks for, or as the pool needs in which the volume itself lies. When nothing may go, that is said until it
//! is over.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use zumastor_core::{
    HeadState, HumanBytes, PoolRoom, SnapshotRecord, SnapshotStore, StoreError,
    config::SpaceConfig,
    retention::{self, Fate},
};
use zumastor_net::MakeRoom;

use super::{Daemon, volume::Volume};
use crate::{
    api::{EventKind, Part, Role, SpaceStatus, VolumeEvent},
    exit::Failure,
};

/// Pause between two looks at how much is free.
const LOOK: Duration = Duration::from_secs(2);
/// The same where a pool may be full before that.
const CLOSE_LOOK: Duration = Duration::from_millis(50);
/// So long is waited for what was deleted to become free: some file systems take their time.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two looks meanwhile.
const GLANCE: Duration = Duration::from_millis(50);

/// A volume's part in this.
#[derive(Debug, Default)]
pub struct SpaceWatch {
    /// Whether somebody is looking after it. A file system that hangs keeps only its own volumes waiting.
    busy: AtomicBool,
    /// Whether it may become too little at any moment.
    close: AtomicBool,
    dropped: AtomicU64,
    full: Mutex<Option<Full>>,
    /// What went wrong the last time.
    failed: Mutex<Option<String>>,
}

/// That there is too little, and nothing that may be dropped.
#[derive(Debug, Clone)]
struct Full {
    since: Timestamp,
    text: String,
    remedy: String,
    /// Whether what is written to the volume fails already.
    over: bool,
}

impl SpaceWatch {
    /// Snapshots that were dropped for space since the daemon started: each is among the events before it is counted.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// As `status` shows it, with so many that were dropped; nothing where nothing is dropped.
    pub fn status(&self, config: &SpaceConfig, pool: Option<&PoolRoom>, dropped: u64) -> Option<SpaceStatus> {
        let full = self.full.lock().expect("no panic while locked").clone();
        Some(SpaceStatus {
            minimum_free: minimum(config, pool)?,
            drop_manual: may_drop_manual(config, pool.is_some()),
            dropped,
            full_since: full.as_ref().map(|full| full.since),
            remedy: full.map(|full| full.remedy),
        })
    }

    /// What to say when there is too little, and nothing that may be dropped.
    pub fn full(&self) -> Option<String> {
        self.full.lock().expect("no panic while locked").as_ref().map(|full| full.text.clone())
    }

    /// Tells what went wrong, once.
    fn tell(&self, volume: &Volume, failed: Option<String>) {
        let mut before = self.failed.lock().expect("no panic while locked");
        if let Some(error) = failed.as_ref().filter(|_| *before != failed) {
            tracing::warn!(volume = %volume.name, error, "no room could be made");
        }
        *before = failed;
    }

    fn is_well(&self, volume: &Volume) {
        if self.full.lock().expect("no panic while locked").take().is_some() {
            tracing::info!(volume = %volume.name, "there is enough space again");
        }
    }
}

/// Bytes that are to be free for what comes.
fn minimum(config: &SpaceConfig, pool: Option<&PoolRoom>) -> Option<u64> {
    // What fills a pool that others use as well is not ours to tell.
    let own = pool.filter(|room| !room.shared).map(|room| room.data.low.saturating_sub(room.data.least));
    config.minimum_free.map(|minimum| minimum.0).or(own)
}

fn may_drop_manual(config: &SpaceConfig, pool: bool) -> bool {
    config.drop_manual.unwrap_or(pool)
}

/// What there is too little of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shortage {
    free: u64,
    wanted: u64,
    of: Of,
    /// What is written to the volume will soon fail: whatever may go at all goes.
    pressing: bool,
    /// It fails already.
    over: bool,
    /// What would give it more room.
    more: String,
    /// Why dropping snapshots would give it none while that lasts, and what helps.
    futile: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Files,
    Data,
    Metadata,
}

/// Looks at how much is free where `more` bytes are to come in. The other answer is whether to look again soon.
async fn look(
    store: &dyn SnapshotStore,
    config: &SpaceConfig,
    more: u64,
) -> Result<(Option<Shortage>, bool), StoreError> {
    let pool = store.pool().await?;
    let Some(minimum) = minimum(config, pool.as_ref()) else { return Ok((None, false)) };
    let Some(room) = pool else {
        let free = store.free().await?;
        let wanted = minimum;
        let short = (free < wanted).then(|| Shortage {
            free,
            wanted,
            of: Of::Files,
            pressing: false,
            over: false,
            more: "make room on that file system".to_owned(),
            futile: None,
        });
        return Ok((short, false));
    };
    if room.trouble.is_some() {
        // Nothing can be deleted; `status` says what helps.
        return Ok((None, false));
    }
    let (data, metadata) = (room.data, room.metadata);
    let (free, wanted) = (data.free().saturating_sub(data.least), minimum.saturating_add(more));
    let close = data.is_nearly_low() || metadata.is_nearly_low() || free < wanted.saturating_mul(2);
    let (pressing, over) = (data.is_pressing() || metadata.is_pressing(), data.free() == 0);
    let futile = room.held.clone();
    let short = if free < wanted {
        let more = format!("make room for data ({})", room.more_data);
        Some(Shortage { free, wanted, of: Of::Data, pressing, over, more, futile })
    } else {
        let (free, wanted) = (metadata.free(), metadata.low.saturating_add(room.metadata_for(more)));
        let more = format!("make room for metadata ({})", room.more_metadata);
        (free < wanted).then_some(Shortage { free, wanted, of: Of::Metadata, pressing, over, more, futile })
    };
    Ok((short, close))
}

/// Whether so much could come into a pool if everything went but the newest snapshot, upon which it is built. If not, nothing is
/// to go for it: what another node announces must not cost this one its history for nothing.
async fn may_ever_fit(store: &dyn SnapshotStore, pool: &PoolRoom, more: u64) -> Result<bool, StoreError> {
    let most = pool.data.total.saturating_sub(pool.data.least);
    if more <= pool.data.free().saturating_sub(pool.data.least) {
        return Ok(true);
    }
    let usage = store.usage_by_snapshot().await?.map(|usage| usage.snapshots).unwrap_or_default();
    let newest = usage.iter().rev().find(|usage| !usage.number.is_local());
    Ok(more <= most.saturating_sub(newest.map_or(0, |newest| newest.referenced)))
}

/// Looks after all volumes for as long as the daemon lives.
pub async fn watch(daemon: Weak<Daemon>) {
    let mut events = zumastor_backends::pool_events();
    loop {
        let Some(strong) = daemon.upgrade() else { return };
        let volumes = strong.all_volumes();
        for volume in &volumes {
            if volume.space.busy.swap(true, Ordering::Relaxed) {
                continue;
            }
            let (daemon, volume) = (strong.clone(), volume.clone());
            tokio::spawn(async move {
                let failed = daemon.look_after(&volume).await.err().map(|failure| failure.error);
                volume.space.tell(&volume, failed);
                volume.space.busy.store(false, Ordering::Relaxed);
            });
        }
        drop(strong);
        let close = volumes.iter().any(|volume| volume.space.close.load(Ordering::Relaxed));
        drop(volumes);
        tokio::select! {
            () = sleep(if close { CLOSE_LOOK } else { LOOK }) => {}
            // The sender is never dropped.
            Ok(()) = events.changed() => {}
        }
    }
}

/// Makes room for what comes into a replica.
#[derive(Debug)]
pub struct ReplicaRoom {
    daemon: Arc<Daemon>,
    volume: Arc<Volume>,
}

impl ReplicaRoom {
    /// That of a volume.
    pub fn new(daemon: Arc<Daemon>, volume: Arc<Volume>) -> Self {
        Self { daemon, volume }
    }
}

#[async_trait]
impl MakeRoom for ReplicaRoom {
    async fn make_room(&self, bytes: u64) {
        let (daemon, volume) = (self.daemon.clone(), self.volume.clone());
        // Also if the pull is given up: a claim lasts as long as the deletion.
        let making = tokio::spawn(async move {
            let _snapshotting = volume.snapshotting.lock().await;
            if volume.role() != Role::Replica {
                // It was made another meanwhile, and nothing comes in any more.
                return;
            }
            if let Err(failure) = daemon.make_room_in_pool(&volume, bytes).await {
                tracing::warn!(volume = %volume.name, error = %failure, "no room could be made");
            }
        });
        // It ends with the daemon at the latest.
        let _ = making.await;
    }
}

impl Daemon {
    /// Drops snapshots of a volume until as much is free as is wanted, or none is left that may go.
    async fn look_after(&self, volume: &Volume) -> Result<(), Failure> {
        let config = volume.config().space;
        // Whoever opens stores that are not open does so with pauses; a mark of the volume's own is worth trying.
        let store = match volume.open_store() {
            Some(store) => store,
            None if config.minimum_free.is_some() => volume.store().await?,
            None => return Ok(()),
        };
        let (short, close) = look(&*store, &config, 0).await?;
        volume.space.close.store(close, Ordering::Relaxed);
        let Some(short) = short else {
            volume.space.is_well(volume);
            return Ok(());
        };
        if self.leaves_alone(volume).await? {
            return Ok(());
        }
        // One volume after the other where they may share the file system. A pool is a volume's own.
        let _turn = match short.of {
            Of::Files => Some(self.making_room.lock().await),
            Of::Data | Of::Metadata => None,
        };
        let _snapshotting = volume.snapshotting.lock().await;
        if let Some(short) = self.make_room(volume, &store, 0).await? {
            self.say_full(volume, short).await;
        }
        Ok(())
    }

    /// Whether nothing is to be dropped of a volume now.
    async fn leaves_alone(&self, volume: &Volume) -> Result<bool, Failure> {
        Ok(volume.role() == Role::Undecided
            || volume.is_stopped(&Part::Volume)
            || self.superseded(volume).await?.is_some())
    }

    /// Makes room in a volume's pool for a snapshot, or for so many bytes that are to come in. What cannot be made is refused by
    /// the store. To be called with `snapshotting` locked.
    pub async fn make_room_in_pool(&self, volume: &Volume, more: u64) -> Result<(), Failure> {
        let store = volume.store().await?;
        let Some(pool) = store.pool().await? else { return Ok(()) };
        if !self.leaves_alone(volume).await? && may_ever_fit(&*store, &pool, more).await? {
            self.make_room(volume, &store, more).await?;
        }
        Ok(())
    }

    /// Drops one snapshot after the other; gives what is short still when none is left that may go.
    async fn make_room(
        &self,
        volume: &Volume,
        store: &Arc<dyn SnapshotStore>,
        more: u64,
    ) -> Result<Option<Shortage>, Failure> {
        let config = volume.config().space;
        let mut dropped = false;
        let left = loop {
            let short = match look(&**store, &config, more).await {
                // One after the other would go, for nothing.
                Ok((Some(short), _)) if short.futile.is_some() => break Ok(Some(short)),
                Ok((Some(short), _)) => short,
                Ok((None, _)) => {
                    volume.space.is_well(volume);
                    break Ok(None);
                }
                Err(error) => break Err(error.into()),
            };
            match self.drop_for_space(volume, &**store, &short, &config).await {
                Ok(true) => dropped = true,
                Ok(false) => break Ok(Some(short)),
                Err(failure) => break Err(failure),
            }
        };
        if dropped {
            self.mount(volume).await;
        }
        left
    }

    /// Drops the oldest snapshot that may go. False if there is none.
    async fn drop_for_space(
        &self,
        volume: &Volume,
        store: &dyn SnapshotStore,
        short: &Shortage,
        config: &SpaceConfig,
    ) -> Result<bool, Failure> {
        let snapshots = store.snapshots().await?;
        let holds = self.holds_of(&volume.name).await?;
        let shown = match volume.role() {
            Role::Replica => Some(store.head().await?),
            _ => None,
        };
        // Counting what each would free takes longer than a pool may have.
        let usage = match short.of {
            Of::Files => store.usage_by_snapshot().await?.map(|usage| usage.snapshots).unwrap_or_default(),
            Of::Data | Of::Metadata => Vec::new(),
        };
        let frees = |number| {
            let found = usage.binary_search_by_key(&number, |usage| usage.number);
            found.map_or(0, |index| usage[index].exclusive)
        };
        let manual_too = match short.of {
            Of::Files => may_drop_manual(config, false),
            // By itself only at the last moment.
            Of::Data | Of::Metadata => config.drop_manual.unwrap_or(short.pressing),
        };
        let verdicts = retention::space(&snapshots, &holds, u64::MAX, frees, manual_too);
        let mut candidates: Vec<_> = verdicts
            .into_iter()
            .filter_map(|verdict| match verdict.fate {
                Fate::Drop(reason) if short.of == Of::Files => Some((verdict.number, reason.to_string())),
                Fate::Drop(_) => Some((verdict.number, "the oldest that may go for space".to_owned())),
                Fate::Keep(_) => None,
            })
            .collect();
        // The volume itself goes before the last of its snapshots.
        let newest = snapshots.iter().rev().map(SnapshotRecord::number).find(|number| !number.is_local());
        if let Some(newest) = newest.filter(|_| short.pressing && volume.role() == Role::Master)
            && !holds.iter().any(|hold| hold.number == newest)
            && (manual_too || snapshots.iter().any(|s| s.number() == newest && !s.new.rotations.is_empty()))
        {
            candidates.push((newest, "the last that may go, so that the volume can be written".to_owned()));
        }
        let mut next = None;
        for (number, reason) in candidates {
            let record = snapshots.iter().find(|record| record.number() == number).expect("of this list");
            // What a replica shows stays, and what somebody uses.
            if shown != Some(HeadState::Shows(number)) && self.release_mounts(volume, record).await.is_ok() {
                next = Some((number, record, reason));
                break;
            }
        }
        let Some((number, record, reason)) = next else { return Ok(false) };
        if Some(number) == newest {
            // It is not missed, and taken again at once.
            self.settle(volume).await?;
        }
        let Shortage { free, wanted, of, .. } = *short;
        let what = if of == Of::Metadata { " of metadata" } else { "" };
        let why = format!("{}{what} are free, {} are wanted; {reason}", HumanBytes(free), HumanBytes(wanted));
        // Who took hold of it meanwhile is seen in the next round.
        if self.drop_one(volume, store, record, EventKind::Dropped, &why).await? {
            volume.space.dropped.fetch_add(1, Ordering::Relaxed);
            if of == Of::Files {
                self.await_freed(store, free, frees(number)).await?;
            }
        }
        Ok(true)
    }

    /// Waits until about as much became free as was expected, but not for long.
    pub async fn await_freed(
        &self,
        store: &dyn SnapshotStore,
        before: u64,
        expected: u64,
    ) -> Result<(), StoreError> {
        let end = Instant::now() + PATIENCE;
        while store.free().await? < before.saturating_add(expected / 2) && Instant::now() < end {
            sleep(GLANCE).await;
        }
        Ok(())
    }

    /// Raises the alarm: once, and again when it gets worse.
    async fn say_full(&self, volume: &Volume, short: Shortage) {
        let config = volume.config();
        let (store, name) = (config.snapstore.display(), &volume.name);
        let Shortage { free, wanted, of, over, more, futile, .. } = short;
        let (free_bytes, wanted_bytes) = (HumanBytes(free), HumanBytes(wanted));
        let text = match of {
            _ if over => format!("the pool of volume {name} is full: what is written to the volume fails"),
            _ if futile.is_some() => format!(
                "only {free_bytes} are free in the pool at {store}, {wanted_bytes} are wanted, and dropping snapshots would free \
                 nothing, because somebody else holds a moment of the pool's metadata"
            ),
            Of::Files | Of::Data => format!(
                "only {free_bytes} are free at {store}, {wanted_bytes} are wanted, and no snapshot may be dropped"
            ),
            Of::Metadata => format!(
                "only {free_bytes} of metadata are free at {store}, {wanted_bytes} are wanted, and no snapshot may be dropped"
            ),
        };
        let manual = match may_drop_manual(&config.space, of != Of::Files) {
            true => String::new(),
            false => format!(", let manual snapshots go (`drop_manual` in volumes/{name}.toml)"),
        };
        let mark = if of == Of::Files { ", or lower `minimum_free`" } else { "" };
        let remedy = futile.unwrap_or_else(|| {
            format!("{more}{manual}, release what is held (`zumastor status {name}` lists it){mark}")
        });
        let before = volume.space.full.lock().expect("no panic while locked").clone();
        let worse = over && before.as_ref().is_some_and(|before| !before.over);
        // First the event: whoever sees the alarm finds it.
        if before.is_none() || worse {
            tracing::error!(volume = %name, free, wanted, "SPACE IS SHORT: {text}");
            let text = text.clone();
            self.note(volume, VolumeEvent { at: self.now(), what: EventKind::Full, number: None, text })
                .await;
        }
        let since = before.map_or_else(|| self.now(), |before| before.since);
        *volume.space.full.lock().expect("no panic while locked") = Some(Full { since, text, remedy, over });
    }
}
