//! `replicate`: a push or a pull that somebody asked for.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use zumastor_core::{NodeName, SnapshotNumber, SnapshotRecord, VolumeName, config::TargetConfig};
use zumastor_net::{
    PullState,
    wire::{Refusal, RefusalCode},
};

use super::{
    Daemon, holds::blocking, later, parts::refuse_stopped, snapshots::no_snapshot, state::Later,
    volume::Volume, worker::Wish,
};
use crate::{
    api::{Outcome, Part, Replicate, ReplicateEvent},
    exit::Failure,
};

/// Pause between two reports of progress.
const REPORT: Duration = Duration::from_millis(200);

impl Daemon {
    /// Starts a replication between this node and a host, and gives what it takes to follow it; nothing to follow when
    /// there is nothing to do.
    pub async fn replicate(
        &self,
        name: &VolumeName,
        asked: &Replicate,
    ) -> Result<(Outcome, Option<watch::Receiver<PullState>>), Failure> {
        let volume = self.volume(name)?;
        let config = volume.config();
        let host = self.known_host(&asked.host)?;
        let sends = config.target.contains_key(&host);
        let receives = config.source.is_some_and(|source| source.host == host);
        if !sends && !receives {
            let neither = format!("{host} is neither a target nor the source of volume {name}");
            return Err(Failure::failed(neither).remedy(format!(
                "`zumastor define target {name} {host}` or `zumastor define source {name} {host}` first"
            )));
        }
        refuse_stopped(&volume, &if sends { Part::Target(host.clone()) } else { Part::Source })?;
        if let Some(number) = asked.snapshot
            && let Some(there) = self.check_asked(&volume, &host, number, sends).await?
        {
            return Ok((there, None));
        }
        if sends && volume.newest().await?.is_none() {
            return Err(Failure::failed(format!("volume {name} has no snapshot yet"))
                .remedy(format!("`zumastor snapshot {name}` takes one")));
        }
        if let (None, Some(target)) = (asked.snapshot, config.target.get(&host)) {
            check_selected(&volume, &host, target).await?;
        }
        let delay = asked.delay.map(Duration::from_secs);
        let wish = Wish { wanted: asked.snapshot, exactly: asked.snapshot.is_some(), delay };
        let follow = match asked.delay {
            Some(seconds) => {
                let later = Later { at: after(seconds)?, exactly: asked.snapshot };
                later::ask(&self.state, &volume, &host, later, wish).await?
            }
            None => volume.ask(&host, wish),
        };
        let follow = follow.ok_or_else(|| {
            Failure::failed(format!("replication of volume {name} with {host} is just being changed"))
                .remedy("repeat the command")
        })?;
        let what = asked.snapshot.map_or_else(String::new, |number| format!("snapshot {number} of "));
        let way = if sends { "sent to" } else { "received from" };
        let done = match asked.delay {
            Some(seconds) => format!("{what}volume {name} will be {way} {host}, beginning in {seconds} s"),
            None => format!("{what}volume {name} is being {way} {host}"),
        };
        Ok((Outcome::changed(done), Some(follow)))
    }

    /// Looks whether a snapshot that is asked for can be had; says so if a newer one is there already.
    async fn check_asked(
        &self,
        volume: &Volume,
        host: &NodeName,
        number: SnapshotNumber,
        sends: bool,
    ) -> Result<Option<Outcome>, Failure> {
        let name = &volume.name;
        if number.is_local() {
            return Err(Failure::usage(format!(
                "snapshot {number} is this node's own: only snapshots that the master numbered are replicated"
            )));
        }
        let snapshots = volume.store().await?.snapshots().await?;
        let received = snapshots.iter().map(SnapshotRecord::number).filter(|number| !number.is_local());
        let there = if sends {
            let (state, owned, peer) = (self.state.clone(), name.clone(), host.clone());
            blocking(move || state.cursor(&owned, &peer)).await?.map(|cursor| cursor.common)
        } else {
            received.clone().max()
        };
        if let Some(there) = there.filter(|there| *there >= number) {
            let at = if sends { host } else { &self.name };
            return Ok(Some(Outcome::already(already(number, there, at.as_str()))));
        }
        if sends && !received.clone().any(|there| there == number) {
            return Err(no_snapshot(name, number));
        }
        Ok(None)
    }
}

/// Refuses to send the newest snapshot of a selection that has none.
async fn check_selected(volume: &Volume, host: &NodeName, target: &TargetConfig) -> Result<(), Failure> {
    let snapshots = volume.store().await?.snapshots().await?;
    if snapshots.iter().any(|record| target.rotations.takes(record)) {
        return Ok(());
    }
    let (name, selected) = (&volume.name, target.rotations.names().join(", "));
    Err(Failure::failed(format!(
        "volume {name} has no snapshot for {host}, which gets only those of {selected}: nothing is sent until there is one"
    ))
    .remedy(format!(
        "`zumastor snapshot {name} ROTATION` takes one of a rotation, `zumastor replicate {name} {host} --snapnum NUMBER` sends \
         another one, and `zumastor define target {name} {host}` without --rotations has all of them sent"
    )))
}

/// So many seconds from now.
fn after(seconds: u64) -> Result<Timestamp, Failure> {
    let delay = i64::try_from(seconds).ok().map(SignedDuration::from_secs);
    delay.and_then(|delay| Timestamp::now().checked_add(delay).ok()).ok_or_else(|| {
        Failure::usage(format!(
            "in {seconds} s there is no time that could be written down: give a shorter delay"
        ))
    })
}

/// That nothing is to be sent.
pub fn already(asked: SnapshotNumber, there: SnapshotNumber, at: &str) -> String {
    if there == asked {
        return format!("snapshot {asked} is at {at} already");
    }
    format!(
        "snapshot {there}, which is more recent than snapshot {asked}, is at {at} already: nothing was sent"
    )
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
        RefusalCode::Gone => {
            Failure::failed(text).remedy("`zumastor status` on the node that sends it lists its snapshots")
        }
        RefusalCode::Stopped => Failure::refused(text).remedy("put that right, then repeat this command"),
        _ => Failure::failed(text).remedy("it is tried again by itself; `zumastor status` says when"),
    }
}
