//! A volume: its configuration, its store, and what replicates it.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, RwLock, Weak},
};

use zumastor_backends::{OriginMust, open_volume};
use zumastor_core::{
    NodeName, SnapshotRecord, SnapshotStore, StoreError, VolumeName,
    config::{TargetConfig, VolumeConfig},
};
use zumastor_net::{Meter, RateLimiter};

use super::worker::Worker;
use crate::api::Role;

/// A volume that is defined on this node.
#[derive(Debug)]
pub struct Volume {
    /// Its name here.
    pub name: VolumeName,
    /// One snapshot at a time.
    pub snapshotting: tokio::sync::Mutex<()>,
    stores: Arc<Stores>,
    config: RwLock<VolumeConfig>,
    store: tokio::sync::Mutex<Option<Arc<dyn SnapshotStore>>>,
    puller: Mutex<Option<Worker>>,
    targets: Mutex<BTreeMap<NodeName, Target>>,
}

/// A downstream of a volume.
#[derive(Debug)]
pub struct Target {
    /// Announces.
    pub worker: Worker,
    /// Bounds what is sent, over all streams together.
    pub limiter: Option<Arc<RateLimiter>>,
    /// Counts what is sent.
    pub meter: Arc<Meter>,
}

impl Target {
    /// A target as configured, served by `worker`.
    pub fn new(config: &TargetConfig, worker: Worker) -> Self {
        let limiter = config.ratelimit.map(|rate| Arc::new(RateLimiter::new(rate)));
        Self { worker, limiter, meter: Arc::new(Meter::default()) }
    }
}

impl Volume {
    /// A volume whose store is opened when it is needed first.
    pub fn new(name: VolumeName, config: VolumeConfig, stores: Arc<Stores>) -> Self {
        Self {
            name,
            snapshotting: tokio::sync::Mutex::default(),
            stores,
            config: RwLock::new(config),
            store: tokio::sync::Mutex::default(),
            puller: Mutex::default(),
            targets: Mutex::default(),
        }
    }

    /// How it is configured.
    pub fn config(&self) -> VolumeConfig {
        self.config.read().expect("no panic while locked").clone()
    }

    /// Changes how it is configured; what runs is not touched.
    pub fn set_config(&self, config: VolumeConfig) {
        *self.config.write().expect("no panic while locked") = config;
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

    /// Its store. Where it cannot be opened, each call tries again: a file system may have been mounted since.
    pub async fn store(&self) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        let mut store = self.store.lock().await;
        if let Some(store) = &*store {
            return Ok(store.clone());
        }
        let config = self.config();
        let must = if config.master.is_some() { OriginMust::Exist } else { OriginMust::MayBeAbsent };
        let opened = self.stores.open(&config, must).await?;
        Ok(store.insert(opened).clone())
    }

    /// Its newest snapshot that other nodes know.
    pub async fn newest(&self) -> Result<Option<SnapshotRecord>, StoreError> {
        let snapshots = self.store().await?.snapshots().await?;
        Ok(snapshots.into_iter().rev().find(|record| !record.number().is_local()))
    }

    /// Looks at what pulls.
    pub fn with_puller<T>(&self, look: impl FnOnce(Option<&Worker>) -> T) -> T {
        look(self.puller.lock().expect("no panic while locked").as_ref())
    }

    /// Looks at a target.
    pub fn with_target<T>(&self, host: &NodeName, look: impl FnOnce(Option<&Target>) -> T) -> T {
        look(self.targets.lock().expect("no panic while locked").get(host))
    }

    /// Replaces what pulls, after the one before has ended.
    pub async fn set_puller(&self, worker: impl FnOnce() -> Option<Worker>) {
        let old = self.puller.lock().expect("no panic while locked").take();
        if let Some(old) = old {
            old.stop().await;
        }
        *self.puller.lock().expect("no panic while locked") = worker();
    }

    /// Replaces a target, after the one before has ended.
    pub async fn set_target(&self, host: &NodeName, target: impl FnOnce() -> Option<Target>) {
        let old = self.targets.lock().expect("no panic while locked").remove(host);
        if let Some(old) = old {
            old.worker.stop().await;
        }
        if let Some(target) = target() {
            self.targets.lock().expect("no panic while locked").insert(host.clone(), target);
        }
    }

    /// Ends everything that replicates it.
    pub async fn stop(&self) {
        self.set_puller(|| None).await;
        let targets = std::mem::take(&mut *self.targets.lock().expect("no panic while locked"));
        for target in targets.into_values() {
            target.worker.stop().await;
        }
    }
}

/// The stores that are open, by origin and snapshot store. A volume that is forgotten and defined again at once finds
/// its store here while a transfer that is ending still has it.
#[derive(Debug, Default)]
pub struct Stores(tokio::sync::Mutex<HashMap<(PathBuf, PathBuf), Weak<dyn SnapshotStore>>>);

impl Stores {
    async fn open(
        &self,
        config: &VolumeConfig,
        must: OriginMust,
    ) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        let mut stores = self.0.lock().await;
        stores.retain(|_, store| store.strong_count() > 0);
        let key = (config.origin.clone(), config.snapstore.clone());
        if let Some(store) = stores.get(&key).and_then(Weak::upgrade) {
            return Ok(store);
        }
        let store = open_volume(&config.origin, &config.snapstore, must).await?;
        stores.insert(key, Arc::downgrade(&store));
        Ok(store)
    }
}
