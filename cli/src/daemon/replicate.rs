//! `replicate`: a push or a pull that somebody asked for.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use zumastor_core::VolumeName;
use zumastor_net::{
    PullState,
    wire::{Refusal, RefusalCode},
};

use super::{Daemon, parts::refuse_stopped};
use crate::{
    api::{Outcome, Part, ReplicateEvent},
    exit::Failure,
};

/// Pause between two reports of progress.
const REPORT: Duration = Duration::from_millis(200);

impl Daemon {
    /// Starts a replication between this node and `host`, and gives what it takes to follow it.
    pub async fn replicate(
        &self,
        name: &VolumeName,
        host: &str,
    ) -> Result<(Outcome, watch::Receiver<PullState>), Failure> {
        let volume = self.volume(name)?;
        let config = volume.config();
        let host = self.known_host(host)?;
        if config.target.contains_key(&host) {
            refuse_stopped(&volume, &Part::Target(host.clone()))?;
            if volume.newest().await?.is_none() {
                return Err(Failure::failed(format!("volume {name} has no snapshot yet"))
                    .remedy(format!("`zumastor snapshot {name}` takes one")));
            }
            if let Some(follow) =
                volume.with_target(&host, |target| target.map(|target| target.worker.ask(None)))
            {
                return Ok((Outcome::changed(format!("volume {name} is being sent to {host}")), follow));
            }
        }
        let comes = config.source.is_some_and(|source| source.host == host);
        if comes {
            refuse_stopped(&volume, &Part::Source)?;
        }
        if comes && let Some(follow) = volume.with_puller(|puller| puller.map(|puller| puller.ask(None))) {
            return Ok((Outcome::changed(format!("volume {name} is being received from {host}")), follow));
        }
        Err(Failure::failed(format!("{host} is neither a target nor the source of volume {name}")).remedy(
            format!("`zumastor define target {name} {host}` or `zumastor define source {name} {host}` first"),
        ))
    }
}

/// Tells what happens until it ends, or until nobody listens any more. The replication goes on in any case.
pub async fn follow(
    subject: String,
    mut state: watch::Receiver<PullState>,
    events: mpsc::Sender<ReplicateEvent>,
) {
    loop {
        let current = state.borrow_and_update().clone();
        let event = match current {
            PullState::Running(progress) => ReplicateEvent::Progress(progress),
            PullState::Done(summary) => ReplicateEvent::Done(summary),
            PullState::Failed(refusal) => ReplicateEvent::Failed(failure(&subject, &refusal)),
        };
        let last = !matches!(event, ReplicateEvent::Progress(_));
        if events.send(event).await.is_err() || last {
            return;
        }
        let ended = |state: &PullState| !matches!(state, PullState::Running(_));
        // Without news the same is said again: the listener sees that somebody is there.
        let waited = tokio::time::timeout(REPORT, state.wait_for(ended)).await;
        let gone = waited.is_ok_and(|found| found.is_err());
        if gone {
            let stopped = Failure::failed(format!("{subject}: it was stopped"))
                .remedy("the daemon is ending, or what it belongs to was defined anew or forgotten");
            let _ = events.send(ReplicateEvent::Failed(stopped)).await;
            return;
        }
    }
}

fn failure(subject: &str, refusal: &Refusal) -> Failure {
    let text = format!("{subject}: {}", refusal.text);
    match refusal.code {
        RefusalCode::NotAllowed => Failure::refused(text),
        RefusalCode::Stopped => Failure::refused(text).remedy("put that right, then repeat this command"),
        _ => Failure::failed(text).remedy("it is tried again by itself; `zumastor status` says when"),
    }
}
