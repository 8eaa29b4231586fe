//! Brings a replica to its upstream's newest snapshot.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch, time::Instant};
use zumastor_core::{HeadState, SnapshotNumber, SnapshotRecord, StoreError, config::SourceConfig};
use zumastor_net::{
    Link, Patience, Progress, PullError, PullSummary, Replica, Reporter, finish, pull_finished, push_period,
    wire::{Refusal, RefusalCode},
};

use super::{
    Daemon, cache,
    circles::circle_text,
    epochs::ReplicaEpochs,
    holds::{PairHolds, Side},
    later,
    space::ReplicaRoom,
    volume::Volume,
    worker::{Job, Trouble, Worker},
};
use crate::{
    api::{Direction, Part},
    exit::chain,
    ui::Span,
};

/// How long it is not asked again how often the source sends by itself, if nothing comes from it.
const COMPARED_FOR: Duration = Duration::from_secs(3600);

/// Pulls one volume from its source.
pub struct Pull {
    daemon: Arc<Daemon>,
    volume: Arc<Volume>,
    source: SourceConfig,
    /// Whether it has not looked yet what there is to do.
    fresh: AtomicBool,
    /// Whether it waits for its turn.
    queued: AtomicBool,
    /// What the volume showed when its mounts were looked at last, if that is known.
    mounted: Mutex<Option<HeadState>>,
    /// When the source was asked last how often it sends by itself, unless something came since.
    compared: Mutex<Option<Instant>>,
}

impl Pull {
    /// Starts to pull a volume, unless that is stopped. If something is left to be done from before, it is done at once.
    pub async fn start(daemon: &Arc<Daemon>, volume: &Arc<Volume>, source: &SourceConfig) {
        if volume.is_stopped(&Part::Source) {
            volume.set_puller(|| None).await;
            return;
        }
        let job = Self {
            daemon: daemon.clone(),
            volume: volume.clone(),
            source: source.clone(),
            fresh: AtomicBool::new(true),
            queued: AtomicBool::new(false),
            mounted: Mutex::default(),
            compared: Mutex::default(),
        };
        *volume.source_caution.lock().expect("no panic while locked") = None;
        volume.set_puller(|| Some(Worker::spawn(Arc::new(job), source.period, true))).await;
        later::ask_again(daemon, volume, &source.host).await;
    }

    async fn pull(
        &self,
        wanted: Option<SnapshotNumber>,
        progress: &watch::Sender<Progress>,
    ) -> Result<PullSummary, Trouble> {
        self.queued.store(false, Ordering::Relaxed);
        let store = self.volume.store().await.map_err(|error| store_trouble(&error))?;
        let (state, host) = (self.daemon.state.clone(), self.source.host.clone());
        let holds = PairHolds::new(state, self.volume.clone(), host, Side::Downstream);
        let remote = self.source.name.clone().unwrap_or_else(|| self.volume.name.to_string());
        let epochs = Arc::new(ReplicaEpochs::new(self.daemon.state.clone(), self.volume.name.clone()));
        let replica = Replica {
            wanted,
            epochs,
            room: Some(Arc::new(ReplicaRoom::new(self.daemon.clone(), self.volume.clone()))),
            streams: cache::Shares::of(&self.volume.config()).streams(),
            ..Replica::new(store, Arc::new(holds), remote)
        };
        // A snapshot that is complete is shown, whether or not the upstream can be reached.
        finish(&replica).await.map_err(|error| pull_trouble(&error))?;
        self.queued.store(true, Ordering::Relaxed);
        let _turn = self.daemon.turns.acquire().await.expect("the semaphore is never closed");
        self.queued.store(false, Ordering::Relaxed);
        let link = self.link().await?;
        if let Some(circle) = self.daemon.circle_before_pull(&self.volume).await {
            let text = circle_text(&self.volume.name, &circle);
            return Err(Trouble { refusal: Refusal::new(RefusalCode::Stopped, text), passing: false });
        }
        let reporter = Reporter::new();
        let pulled = self.pull_over(&*link, &replica, &reporter, progress).await;
        // That the source was started again is only found out by asking it.
        let pulled = match pulled {
            Err(_) if link.is_forgotten() && reporter.current().number.is_none() => {
                self.pull_over(&*self.link().await?, &replica, &reporter, progress).await
            }
            pulled => pulled,
        };
        if pulled.as_ref().is_ok_and(|summary| summary.received) {
            *self.compared.lock().expect("no panic while locked") = None;
        }
        pulled
    }

    /// A connection to the source.
    async fn link(&self) -> Result<Arc<dyn Link>, Trouble> {
        self.daemon.node().link(&self.source.host).await.map_err(|error| Trouble {
            refusal: Refusal::new(RefusalCode::Failed, chain(&error)),
            passing: true,
        })
    }

    /// Pulls over a connection, and tells how far it is.
    async fn pull_over(
        &self,
        link: &dyn Link,
        replica: &Replica,
        reporter: &Reporter,
        progress: &watch::Sender<Progress>,
    ) -> Result<PullSummary, Trouble> {
        let patience = Patience::default();
        let mut changes = reporter.subscribe();
        let mut pull = pin!(pull_finished(link, replica, &patience, reporter));
        let pulled = async {
            loop {
                tokio::select! {
                    result = &mut pull => return result.map_err(|error| pull_trouble(&error)),
                    Ok(()) = changes.changed() => {
                        progress.send_replace(*changes.borrow_and_update());
                    }
                }
            }
        };
        // Beside it; not to know is no reason to fail.
        let (pulled, ()) = tokio::join!(pulled, self.compare_again(link));
        pulled
    }

    /// The source may have been told to send more or less often: it is asked again when something has come from it, and
    /// every hour.
    async fn compare_again(&self, link: &dyn Link) {
        let known = *self.compared.lock().expect("no panic while locked");
        if known.is_some_and(|at| at.elapsed() < COMPARED_FOR) {
            return;
        }
        if compare(&self.volume, &self.source, link).await.is_ok() {
            *self.compared.lock().expect("no panic while locked") = Some(Instant::now());
        }
    }
}

#[async_trait]
impl Job for Pull {
    async fn due(&self) -> bool {
        // Without a period, it begins only to end what was begun.
        let fresh = self.fresh.swap(false, Ordering::Relaxed);
        !fresh || self.source.period.is_some() || unfinished(&self.volume).await.unwrap_or(true)
    }

    async fn run(
        &self,
        exactly: Option<SnapshotNumber>,
        progress: &watch::Sender<Progress>,
    ) -> Result<PullSummary, Trouble> {
        self.pull(exactly, progress).await
    }

    fn remark(&self) -> Option<String> {
        let others = "waiting for its turn: as many other volumes as may at a time are being received";
        self.queued.load(Ordering::Relaxed).then(|| others.to_owned())
    }

    async fn ended(&self, result: &Result<PullSummary, Trouble>) {
        self.daemon.transfer_ended(&self.volume, &self.source.host, Direction::Received, result).await;
        let received = result.as_ref().is_ok_and(|summary| summary.received);
        if received {
            self.daemon.retain_to_the_end(&self.volume).await;
        }
        // A flip may have been made whatever came of the rest. Where nothing changed, nothing is looked at.
        let shows = match result {
            // The pull saw to that.
            Ok(PullSummary { number: Some(number), received: false, .. }) => Some(HeadState::Shows(*number)),
            _ => match self.volume.store().await {
                Ok(store) => store.head().await.ok(),
                Err(_) => None,
            },
        };
        let before = std::mem::replace(&mut *self.mounted.lock().expect("no panic while locked"), shows);
        if !received && (shows.is_none() || shows != before) {
            self.daemon.mount(&self.volume).await;
        }
    }
}

/// Asks the source how often it sends by itself: who asks for news no more often than that asks for nothing. The answer is
/// what is to be said about it; `status` says it from then on, and the log when it becomes so.
pub async fn compare(
    volume: &Volume,
    source: &SourceConfig,
    link: &dyn Link,
) -> Result<Option<String>, PullError> {
    let Some(period) = source.period else { return Ok(None) };
    let remote = source.name.as_deref().unwrap_or(volume.name.as_str());
    let sends = push_period(link, remote, &Patience::default()).await?.filter(|sends| period >= *sends);
    let caution = sends.map(|sends| {
        let (name, host) = (&volume.name, &source.host);
        let advice = match sends {
            // There is none that is smaller.
            0 | 1 => format!("give none (`zumastor define source {name} {host}` without --period)"),
            _ => format!(
                "give a smaller interval (`zumastor define source {name} {host} --period SECONDS`), or none"
            ),
        };
        format!(
            "{host} sends by itself every {}, so asking every {} is never first: {advice}",
            Span(sends),
            Span(period)
        )
    });
    let before = std::mem::replace(
        &mut *volume.source_caution.lock().expect("no panic while locked"),
        caution.clone(),
    );
    // Said once, when it becomes so.
    if let Some(caution) = caution.as_ref().filter(|_| before != caution) {
        tracing::warn!(volume = %volume.name, "{caution}");
    }
    Ok(caution)
}

/// Whether a transfer or a flip was broken off.
async fn unfinished(volume: &Volume) -> Result<bool, StoreError> {
    let store = volume.store().await?;
    if store.staged().await?.is_some() {
        return Ok(true);
    }
    let newest = store.snapshots().await?.iter().rev().map(SnapshotRecord::number).find(|n| !n.is_local());
    Ok(match newest {
        Some(newest) => store.head().await? != HeadState::Shows(newest),
        None => false,
    })
}

fn store_trouble(error: &StoreError) -> Trouble {
    Trouble { refusal: Refusal::new(RefusalCode::Failed, chain(error)), passing: true }
}

fn pull_trouble(error: &PullError) -> Trouble {
    Trouble { refusal: error.refusal(), passing: !error.is_permanent() }
}
