//! Tells a downstream that there is something new. The downstream does the rest.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;
use zumastor_core::{NodeName, SnapshotNumber, SnapshotRecord, StoreError, config::TargetConfig};
use zumastor_net::{
    AnnounceError, Patience, Progress, PullSummary, announce,
    wire::{Announce, Refusal, RefusalCode},
};

use super::{
    Daemon,
    epochs::superseded_text,
    holds::blocking,
    later,
    volume::{Target, Volume},
    worker::{Job, Trouble, Worker},
};
use crate::{
    api::{Direction, Part, Superseded},
    exit::{Failure, chain},
};

/// Announces one volume to one of its targets.
pub struct Push {
    daemon: Arc<Daemon>,
    volume: Arc<Volume>,
    host: NodeName,
    target: TargetConfig,
}

impl Push {
    /// The newest snapshot that the target is to have.
    async fn newest(&self) -> Result<Option<SnapshotRecord>, StoreError> {
        let snapshots = self.volume.store().await?.snapshots().await?;
        let before = self.volume.unsettled();
        let settled = |record: &SnapshotRecord| before.is_none_or(|before| record.number() < before);
        let mut settled = snapshots.into_iter().rev().filter(settled);
        Ok(settled.find(|record| self.target.rotations.takes(record)))
    }

    /// Starts to serve a target, unless that is stopped. What it has missed is made up for at once.
    pub async fn start(daemon: &Arc<Daemon>, volume: &Arc<Volume>, host: &NodeName, target: &TargetConfig) {
        if volume.is_stopped(&Part::Target(host.clone())) {
            volume.set_target(host, || None).await;
            return;
        }
        let job = Self {
            daemon: daemon.clone(),
            volume: volume.clone(),
            host: host.clone(),
            target: target.clone(),
        };
        let start = || {
            let worker = Worker::spawn(Arc::new(job), target.period, target.period.is_some());
            Some(Target::new(target, worker))
        };
        volume.set_target(host, start).await;
        later::ask_again(daemon, volume, host).await;
    }
}

#[async_trait]
impl Job for Push {
    async fn due(&self) -> bool {
        let (state, volume, host) = (self.daemon.state.clone(), self.volume.name.clone(), self.host.clone());
        let cursor = match blocking(move || state.cursor(&volume, &host)).await {
            Ok(cursor) => cursor,
            Err(error) => {
                tracing::warn!(volume = %self.volume.name, error = %chain(&error), "what the target has is not known");
                return true;
            }
        };
        match self.newest().await {
            Ok(newest) => {
                newest.is_some_and(|newest| cursor.is_none_or(|cursor| cursor.common < newest.number()))
            }
            // The run says what is wrong.
            Err(_) => true,
        }
    }

    async fn run(
        &self,
        exactly: Option<SnapshotNumber>,
        progress: &watch::Sender<Progress>,
    ) -> Result<PullSummary, Trouble> {
        let passing = |error: &dyn std::error::Error| Trouble {
            refusal: Refusal::new(RefusalCode::Failed, chain(error)),
            passing: true,
        };
        let newest = self.newest().await.map_err(|error| passing(&error))?;
        let Some(number) = exactly.or(newest.as_ref().map(SnapshotRecord::number)) else {
            let nothing = format!("volume {} has no snapshot for {} yet", self.volume.name, self.host);
            return Err(Trouble { refusal: Refusal::new(RefusalCode::Gone, nothing), passing: false });
        };
        let failed = |failure: Failure| Trouble {
            refusal: Refusal::new(RefusalCode::Failed, failure.error),
            passing: true,
        };
        let stopped =
            |text: String| Trouble { refusal: Refusal::new(RefusalCode::Stopped, text), passing: false };
        if let Some(superseded) = self.daemon.superseded(&self.volume).await.map_err(failed)? {
            return Err(stopped(superseded_text(&self.volume.name, &superseded)));
        }
        let Some((lineage, epoch)) = self.daemon.epoch(&self.volume).await.map_err(failed)? else {
            return Err(stopped(format!("volume {} has no snapshot of its own", self.volume.name)));
        };
        // The downstream may fetch it, whatever it is to have otherwise.
        self.volume.with_target(&self.host, |target| {
            if let Some(target) = target {
                target.offer_also(exactly);
            }
        });
        let node = self.daemon.node();
        let mut link = node.link(&self.host).await.map_err(|error| passing(&error))?;
        let own = self.volume.name.to_string();
        let news = Announce {
            volume: self.target.name.clone().unwrap_or_else(|| own.clone()),
            upstream_volume: own,
            number,
            exactly: exactly.is_some(),
            lineage,
            epoch,
        };
        let mut heard = false;
        let mut follow = |now: Progress| {
            heard = true;
            progress.send_replace(now);
        };
        let patience = Patience::default();
        let mut announced = announce(&*link, news.clone(), &patience, &mut follow).await;
        // That the target was started again is only found out by telling it something.
        if announced.is_err() && link.is_forgotten() && !heard {
            link = node.link(&self.host).await.map_err(|error| passing(&error))?;
            let mut follow = |now: Progress| {
                progress.send_replace(now);
            };
            announced = announce(&*link, news, &patience, &mut follow).await;
        }
        match announced {
            Ok(summary) => Ok(summary),
            Err(AnnounceError::Refused(refusal)) => {
                let passing = refusal.code != RefusalCode::Stopped;
                Err(Trouble { refusal, passing })
            }
            Err(AnnounceError::Superseded(epoch)) => {
                self.daemon.hear(&self.volume.name, lineage, epoch, &self.host).await;
                let superseded = Superseded { epoch, by: self.host.clone(), heard: Timestamp::now() };
                Err(stopped(superseded_text(&self.volume.name, &superseded)))
            }
            Err(other) => Err(passing(&other)),
        }
    }

    async fn ended(&self, result: &Result<PullSummary, Trouble>) {
        // What the target had fetched before it heard of it is told already.
        let told = |target: &Target| {
            let arrived = result.as_ref().ok().filter(|summary| summary.received);
            arrived.and_then(|summary| summary.number).is_some_and(|number| target.fetching.recorded(number))
        };
        if !self.volume.with_target(&self.host, |target| target.is_some_and(told)) {
            self.daemon.transfer_ended(&self.volume, &self.host, Direction::Sent, result).await;
        }
    }
}
