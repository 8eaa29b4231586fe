//! `zumastor daemon`: one process that owns the volumes of a node and replicates them.

mod cache;
mod circles;
mod clock;
mod config_files;
mod control;
mod define;
mod delete;
mod destroy;
mod duties;
mod epochs;
mod groups;
mod history;
mod holds;
mod hooks;
mod host;
mod initialize;
mod lag;
mod later;
mod mounting;
mod offer;
mod outgoing;
mod parts;
mod peers;
mod plan;
mod promote;
mod puller;
mod pusher;
mod reload;
mod remount;
mod replicate;
mod resize;
mod retention;
mod revert;
mod rotations;
mod schedule;
mod scrub;
mod sizes;
mod snapshots;
mod snapshotter;
mod space;
mod start;
mod state;
mod status;
mod unsent;
mod usage;
mod volume;
mod window;
mod worker;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, OnceLock, RwLock},
};

use jiff::Timestamp;
use tokio::sync::Semaphore;
use zumastor_core::{
    NodeName, VolumeName,
    config::{NodeConfig, PeersConfig},
};
use zumastor_net::{Node, PublicKey, PullSummary};

pub use start::{Settings, run};

use self::{
    clock::Clock,
    config_files::ConfigFiles,
    state::State,
    volume::{Stores, Volume},
    worker::Trouble,
};
use crate::{
    api::{Direction, TransferRecord},
    exit::{Failure, chain},
};

/// Pulls that run at a time. Each takes threads, memory and files, and more of them would not be faster.
const PULLS: usize = 8;

/// What the parts of the daemon share.
#[derive(Debug)]
pub struct Daemon {
    files: Arc<ConfigFiles>,
    /// `zumastor.toml` as it was at the start.
    configured: NodeConfig,
    name: NodeName,
    key: PublicKey,
    started: Timestamp,
    clock: Arc<dyn Clock>,
    state: Arc<State>,
    stores: Arc<Stores>,
    /// Set before anything else uses the daemon: the network needs the daemon, and the daemon the network.
    node: OnceLock<(Arc<Node>, SocketAddr)>,
    peers: RwLock<PeersConfig>,
    volumes: RwLock<BTreeMap<VolumeName, Arc<Volume>>>,
    /// Pulls that may run at a time.
    turns: Semaphore,
    /// Held while snapshots are dropped for space.
    making_room: tokio::sync::Mutex<()>,
    /// Held while the configuration is changed: one change at a time.
    editing: tokio::sync::Mutex<()>,
}

impl Daemon {
    fn node(&self) -> &Arc<Node> {
        &self.node.get().expect("set at the start").0
    }

    /// Where the node really listens.
    fn address(&self) -> SocketAddr {
        self.node.get().expect("set at the start").1
    }

    fn find_volume(&self, name: &VolumeName) -> Option<Arc<Volume>> {
        self.volumes.read().expect("no panic while locked").get(name).cloned()
    }

    /// The volume, or the error that says there is none.
    fn volume(&self, name: &VolumeName) -> Result<Arc<Volume>, Failure> {
        self.find_volume(name).ok_or_else(|| {
            Failure::failed(format!("there is no volume {name}")).remedy(format!(
                "`zumastor status` lists the volumes, `zumastor define volume {name} …` makes one"
            ))
        })
    }

    fn all_volumes(&self) -> Vec<Arc<Volume>> {
        self.volumes.read().expect("no panic while locked").values().cloned().collect()
    }

    /// Works on the files of the configuration, where waiting for a disk keeps nobody from working.
    async fn configuring(
        &self,
        work: impl FnOnce(&ConfigFiles) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let files = self.files.clone();
        tokio::task::spawn_blocking(move || work(&files)).await.expect("writing a file does not panic")
    }

    /// Remembers what came of a transfer, unless it is only what was known before.
    async fn transfer_ended(
        &self,
        volume: &Arc<Volume>,
        peer: &NodeName,
        direction: Direction,
        result: &Result<PullSummary, Trouble>,
    ) {
        let (summary, error) = match result {
            Ok(summary) if !summary.received => return,
            Ok(summary) => (Some(*summary), None),
            Err(trouble) => (None, Some(trouble.refusal.text.clone())),
        };
        if direction == Direction::Received && summary.is_some() {
            volume.rearm_targets();
        }
        let newest = match (direction, volume.newest().await) {
            (Direction::Received, Ok(newest)) => newest,
            _ => None,
        };
        let text = error.clone();
        let record = TransferRecord { at: Timestamp::now(), peer: peer.clone(), direction, summary, error };
        let (state, name) = (self.state.clone(), volume.name.clone());
        let noted = holds::blocking(move || {
            if let Some(newest) = newest {
                state.note_number(newest.new.lineage, newest.number())?;
                state.note_received(newest.new.lineage)?;
            }
            let before = state.history(&name, 1)?;
            let repeated = before.first().is_some_and(|before| {
                record.error.is_some() && before.error == record.error && before.peer == record.peer
            });
            if !repeated {
                state.record(&name, &record)?;
            }
            Ok(repeated)
        });
        let noted = noted.await;
        match (summary.and_then(|summary| summary.number), &text, &noted) {
            // What was sent is known by its arrival, whoever asked for it.
            (Some(number), ..) if direction == Direction::Received => {
                hooks::replicated(volume, peer, direction, Ok(number));
            }
            (None, Some(error), Ok(false)) => {
                hooks::replicated(volume, peer, direction, Err(error.clone()));
            }
            _ => {}
        }
        let volume = &volume.name;
        match (noted, summary, text) {
            (Err(error), ..) => {
                tracing::warn!(%volume, error = %chain(&error), "the history could not be written");
            }
            (Ok(_), Some(PullSummary { number, data, wire, .. }), _) => {
                let number = number.map(|number| number.to_string());
                tracing::info!(%volume, %peer, ?direction, number, data, wire, "replicated");
            }
            (Ok(false), None, error) => tracing::warn!(%volume, %peer, ?direction, error, "not replicated"),
            (Ok(true), None, error) => tracing::debug!(%volume, %peer, ?direction, error, "not replicated"),
        }
    }
}
