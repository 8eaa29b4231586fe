//! What is done when space gets short where the snapshots are: the oldest that nobody holds go, until there is as much
//! as the volume's file asks for. When nothing may go, that is said until it is over.

use std::{
    sync::{
        Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use zumastor_core::{
    HeadState, HumanBytes, SnapshotStore, StoreError,
    config::SpaceConfig,
    retention::{self, Fate},
};

use super::{Daemon, volume::Volume};
use crate::{
    api::{EventKind, Part, Role, SpaceStatus, VolumeEvent},
    exit::Failure,
};

/// Pause between two looks at how much is free.
const LOOK: Duration = Duration::from_secs(2);
/// So long is waited for what was deleted to become free: some file systems take their time.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two looks meanwhile.
const GLANCE: Duration = Duration::from_millis(50);

/// A volume's part in this.
#[derive(Debug, Default)]
pub struct SpaceWatch {
    /// Whether somebody is looking after it. A file system that hangs keeps only its own volumes waiting.
    busy: AtomicBool,
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
}

impl SpaceWatch {
    /// As `status` shows it; nothing where nothing is configured.
    pub fn status(&self, config: &SpaceConfig) -> Option<SpaceStatus> {
        let full = self.full.lock().expect("no panic while locked").clone();
        Some(SpaceStatus {
            minimum_free: config.minimum_free?.0,
            drop_manual: config.drop_manual,
            dropped: self.dropped.load(Ordering::Relaxed),
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

    fn is_well(&self) {
        *self.full.lock().expect("no panic while locked") = None;
    }
}

/// Looks after all volumes for as long as the daemon lives.
pub async fn watch(daemon: Weak<Daemon>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(daemon) = daemon.upgrade() else { return };
        for volume in daemon.all_volumes() {
            if volume.config().space.minimum_free.is_none() {
                volume.space.is_well();
                continue;
            }
            if volume.space.busy.swap(true, Ordering::Relaxed) {
                continue;
            }
            let daemon = daemon.clone();
            tokio::spawn(async move {
                let failed = daemon.make_room(&volume).await.err().map(|failure| failure.error);
                volume.space.tell(&volume, failed);
                volume.space.busy.store(false, Ordering::Relaxed);
            });
        }
    }
}

impl Daemon {
    /// Drops snapshots of a volume until as much is free as its file asks for, or none is left that may go.
    async fn make_room(&self, volume: &Volume) -> Result<(), Failure> {
        let config = volume.config().space;
        let Some(minimum) = config.minimum_free.map(|minimum| minimum.0) else { return Ok(()) };
        let store = volume.store().await?;
        if store.free().await? >= minimum {
            volume.space.is_well();
            return Ok(());
        }
        let idle = volume.role() == Role::Undecided
            || volume.is_stopped(&Part::Volume)
            || self.superseded(volume).await?.is_some();
        if idle {
            return Ok(());
        }
        // One volume after the other: they may share the file system.
        let _turn = self.making_room.lock().await;
        let _snapshotting = volume.snapshotting.lock().await;
        loop {
            let free = store.free().await?;
            if free >= minimum {
                volume.space.is_well();
                return Ok(());
            }
            if !self.drop_for_space(volume, &*store, (free, minimum), config.drop_manual).await? {
                self.say_full(volume, (free, minimum), config.drop_manual).await;
                return Ok(());
            }
        }
    }

    /// Drops the oldest snapshot that may go. False if there is none.
    async fn drop_for_space(
        &self,
        volume: &Volume,
        store: &dyn SnapshotStore,
        (free, minimum): (u64, u64),
        manual_too: bool,
    ) -> Result<bool, Failure> {
        let snapshots = store.snapshots().await?;
        let holds = self.holds_of(&volume.name).await?;
        let shown = match volume.role() {
            Role::Replica => Some(store.head().await?),
            _ => None,
        };
        let usage = store.usage_by_snapshot().await?.map(|usage| usage.snapshots).unwrap_or_default();
        let frees = |number| {
            let found = usage.binary_search_by_key(&number, |usage| usage.number);
            found.map_or(0, |index| usage[index].exclusive)
        };
        let mut next = None;
        for verdict in retention::space(&snapshots, &holds, u64::MAX, frees, manual_too) {
            let (number, Fate::Drop(reason)) = (verdict.number, verdict.fate) else { continue };
            let record = snapshots.iter().find(|record| record.number() == number).expect("of this list");
            // What a replica shows stays, and what somebody uses.
            if shown != Some(HeadState::Shows(number)) && self.release_mounts(volume, record).await.is_ok() {
                next = Some((number, record, reason));
                break;
            }
        }
        let Some((number, record, reason)) = next else { return Ok(false) };
        let why = format!("{} are free, {} are wanted; {reason}", HumanBytes(free), HumanBytes(minimum));
        // Who took hold of it meanwhile is seen in the next round.
        if self.drop_one(volume, store, record, EventKind::Dropped, &why).await? {
            volume.space.dropped.fetch_add(1, Ordering::Relaxed);
            self.await_freed(store, free, frees(number)).await?;
        }
        self.mount(volume).await;
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

    /// Raises the alarm, once.
    async fn say_full(&self, volume: &Volume, (free, minimum): (u64, u64), manual_too: bool) {
        let config = volume.config();
        let (store, name) = (config.snapstore.display(), &volume.name);
        let text = format!(
            "only {} are free at {store}, {} are wanted, and no snapshot may be dropped",
            HumanBytes(free),
            HumanBytes(minimum)
        );
        let manual = match manual_too {
            true => String::new(),
            false => format!(", let manual snapshots go (`drop_manual` in volumes/{name}.toml)"),
        };
        let remedy = format!(
            "make room on that file system{manual}, release what is held (`zumastor status {name}` lists it), or lower \
             `minimum_free`"
        );
        let since = volume.space.full.lock().expect("no panic while locked").as_ref().map(|full| full.since);
        // First the event: whoever sees the alarm finds it.
        if since.is_none() {
            tracing::error!(volume = %name, free, minimum, "space is short, and no snapshot may be dropped");
            let text = text.clone();
            self.note(volume, VolumeEvent { at: self.now(), what: EventKind::Full, number: None, text })
                .await;
        }
        let full = Full { since: since.unwrap_or_else(|| self.now()), text, remedy };
        *volume.space.full.lock().expect("no panic while locked") = Some(full);
    }
}
