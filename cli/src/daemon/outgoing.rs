//! What a target fetches, as the node that sends it knows it: for `status` while it goes on, for the history when it is over.
//! What this node announced is told better by the other side, which knows what it had already.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;
use zumastor_core::{NodeName, SnapshotGuid, SnapshotNumber};
use zumastor_net::{
    Broken, Outgoing, Phase, Planned, Progress, PullSummary,
    wire::{Refusal, RefusalCode},
};

use super::{
    Daemon,
    parts::refuse_stopped,
    volume::{Target, Volume},
    worker::{Rate, Trouble},
};
use crate::api::{Direction, Part};

/// So long after the last stream a transfer may go on: the other side may be about to ask for more.
const REST: Duration = Duration::from_secs(60);

/// What one target fetches of one volume.
#[derive(Debug, Default)]
pub struct Fetching(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    transfer: Option<Transfer>,
    /// The snapshot whose arrival was recorded last, until the next is planned.
    recorded: Option<SnapshotNumber>,
}

#[derive(Debug)]
struct Transfer {
    target: SnapshotGuid,
    progress: Progress,
    rate: Rate,
    /// Streams that are open, and when something was last asked for or sent.
    streams: usize,
    heard: Instant,
    /// Whether this node had announced it when the last stream began: then it is told by the other side what came of it,
    /// before or after the streams end.
    announced: bool,
    more: bool,
    /// What it comes to so far; of the snapshots before this one, where each is sent.
    began: Instant,
    summary: PullSummary,
}

impl Fetching {
    /// What is being sent now, and how many bytes a second.
    pub fn now(&self) -> Option<(Progress, u64)> {
        let mut state = self.0.lock().expect("no panic while locked");
        let transfer = state.transfer.as_mut()?;
        if transfer.streams == 0 && transfer.heard.elapsed() > REST {
            return None;
        }
        Some((transfer.progress, transfer.rate.note(Instant::now(), transfer.progress.wire)))
    }

    /// Whether the arrival of a snapshot is in the history already, as that of one that was fetched.
    pub fn recorded(&self, number: SnapshotNumber) -> bool {
        self.0.lock().expect("no panic while locked").recorded == Some(number)
    }

    /// The arrival of a snapshot is in the history from now on.
    fn record(&self, number: SnapshotNumber) {
        self.0.lock().expect("no panic while locked").recorded = Some(number);
    }

    fn planned(&self, plan: &Planned) {
        let mut state = self.0.lock().expect("no panic while locked");
        state.recorded = None;
        let before = state.transfer.take().filter(|before| before.more && before.has_arrived());
        let (began, summary) = match before {
            Some(before) => (before.began, before.summary),
            None => {
                (Instant::now(), PullSummary { base: plan.base, received: true, ..PullSummary::default() })
            }
        };
        let progress = Progress {
            phase: Phase::Planning,
            number: Some(plan.number),
            total: plan.total,
            ..Progress::default()
        };
        state.transfer = Some(Transfer {
            target: plan.target,
            progress,
            rate: Rate::default(),
            streams: 0,
            heard: Instant::now(),
            announced: false,
            more: plan.more,
            began,
            summary,
        });
    }

    /// Does something with the transfer of a snapshot, if it goes on.
    fn with(&self, target: SnapshotGuid, work: impl FnOnce(&mut Transfer)) {
        let mut state = self.0.lock().expect("no panic while locked");
        if let Some(transfer) = state.transfer.as_mut().filter(|transfer| transfer.target == target) {
            transfer.heard = Instant::now();
            work(transfer);
        }
    }

    /// A transfer is over without having come to its end. Gives its snapshot and whether it was announced, the first time.
    fn broken(&self, target: SnapshotGuid) -> Option<(SnapshotNumber, bool)> {
        let mut state = self.0.lock().expect("no panic while locked");
        let broken =
            state.transfer.take_if(|transfer| transfer.target == target && !transfer.has_arrived())?;
        broken.progress.number.map(|number| (number, broken.announced))
    }

    /// The target has a snapshot. Gives what came of the transfer, if that was the last of it.
    fn arrived(&self, number: SnapshotNumber) -> Option<PullSummary> {
        let mut state = self.0.lock().expect("no panic while locked");
        let transfer = state.transfer.as_mut()?;
        if transfer.progress.number != Some(number) || transfer.has_arrived() {
            return None;
        }
        transfer.summary.number = Some(number);
        transfer.summary.snapshots += 1;
        transfer.summary.data += transfer.progress.data;
        transfer.summary.wire += transfer.progress.wire;
        transfer.summary.millis = transfer.began.elapsed().as_millis() as u64;
        if transfer.more {
            return None;
        }
        state.transfer.take().map(|transfer| transfer.summary)
    }
}

impl Transfer {
    fn has_arrived(&self) -> bool {
        self.summary.number.is_some() && self.summary.number == self.progress.number
    }
}

/// Follows what one target fetches of one volume.
#[derive(Debug)]
pub struct Fetched {
    /// For the history.
    pub daemon: Arc<Daemon>,
    /// What it fetches.
    pub volume: Arc<Volume>,
    /// The target.
    pub peer: NodeName,
    /// What it fetches now.
    pub fetching: Arc<Fetching>,
}

#[async_trait]
impl Outgoing for Fetched {
    fn planned(&self, plan: &Planned) {
        self.fetching.planned(plan);
    }

    fn begun(&self, target: SnapshotGuid) {
        let announced = self.announced();
        self.fetching.with(target, |transfer| {
            transfer.announced = announced;
            transfer.streams += 1;
            transfer.progress.phase = Phase::Transferring;
        });
    }

    fn sent(&self, target: SnapshotGuid, data: u64, wire: u64) {
        self.fetching.with(target, |transfer| {
            let progress = &mut transfer.progress;
            (progress.data, progress.wire) = (progress.data + data, progress.wire + wire);
            progress.done = progress.data.min(progress.total);
            transfer.rate.note(Instant::now(), progress.wire);
        });
    }

    async fn ended(&self, target: SnapshotGuid, broken: Option<Broken>) {
        self.fetching.with(target, |transfer| transfer.streams = transfer.streams.saturating_sub(1));
        let Some(broken) = broken else { return };
        let Some((number, announced)) = self.fetching.broken(target) else { return };
        // Who announces is ended as well when it may not be sent any more, and tells nothing.
        if broken != Broken::Withdrawn && (announced || self.announced()) {
            return;
        }
        let (volume, peer) = (&self.volume, &self.peer);
        let text = match broken {
            Broken::Refused(text) => text,
            Broken::Lost(error) => format!("snapshot {number} was being fetched by {peer}: {error}"),
            Broken::Withdrawn => match refuse_stopped(volume, &Part::Target(peer.clone())) {
                Err(stopped) => stopped.error,
                Ok(()) => format!("volume {} is not sent to {peer} any more", volume.name),
            },
        };
        let refusal = Refusal::new(RefusalCode::Failed, text);
        self.record(&Err(Trouble { refusal, passing: true })).await;
    }

    async fn arrived(&self, number: SnapshotNumber) {
        let Some(summary) = self.fetching.arrived(number) else { return };
        if !self.announced() {
            self.fetching.record(number);
            self.record(&Ok(summary)).await;
        }
    }
}

impl Fetched {
    /// Whether this node announced what is fetched now, and is going to be told what comes of it.
    fn announced(&self) -> bool {
        let runs = |target: &Target| target.worker.status().progress.is_some();
        self.volume.with_target(&self.peer, |target| target.is_some_and(runs))
    }

    async fn record(&self, result: &Result<PullSummary, Trouble>) {
        self.daemon.transfer_ended(&self.volume, &self.peer, Direction::Sent, result).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(number: u64, base: Option<u64>, more: bool) -> Planned {
        let (number, base) = (SnapshotNumber(number), base.map(SnapshotNumber));
        Planned { target: SnapshotGuid::generate(), number, base, total: 100, more }
    }

    #[test]
    fn what_arrives_is_told_once() {
        let fetching = Fetching::default();
        assert_eq!(fetching.arrived(SnapshotNumber(3)), None);
        let three = plan(3, Some(1), false);
        fetching.planned(&three);
        assert!(fetching.now().is_some_and(|(progress, _)| progress.total == 100));
        assert_eq!(fetching.arrived(SnapshotNumber(2)), None);
        assert!(fetching.arrived(SnapshotNumber(3)).is_some_and(|summary| summary.base == three.base));
        assert_eq!(fetching.arrived(SnapshotNumber(3)), None);
        fetching.record(SnapshotNumber(3));
        assert!(fetching.recorded(SnapshotNumber(3)) && fetching.now().is_none());
        // It is fetched anew, and by four streams that break.
        fetching.planned(&three);
        assert!(!fetching.recorded(SnapshotNumber(3)));
        assert_eq!(fetching.broken(SnapshotGuid::generate()), None);
        assert_eq!(fetching.broken(three.target), Some((SnapshotNumber(3), false)));
        assert_eq!(fetching.broken(three.target), None);
    }

    #[test]
    fn snapshots_in_a_row_are_one_transfer() {
        let fetching = Fetching::default();
        let add = |plan: &Planned| {
            fetching.planned(plan);
            fetching.with(plan.target, |transfer| transfer.progress.data += 10);
            fetching.arrived(plan.number)
        };
        assert_eq!(add(&plan(1, Some(0), true)), None);
        assert_eq!(add(&plan(2, Some(1), true)), None);
        let summary = add(&plan(3, Some(2), false)).unwrap();
        assert_eq!((summary.number, summary.base), (Some(SnapshotNumber(3)), Some(SnapshotNumber(0))));
        assert_eq!((summary.snapshots, summary.data), (3, 30));
    }
}
