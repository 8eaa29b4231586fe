//! `start` and `stop`: parts of a volume's work that a person stops for a while. What is stopped is remembered in the
//! state, not in the files: the configuration says what a volume is for, and that does not change.

use std::sync::Arc;

use zumastor_core::VolumeName;

use super::{Daemon, holds::blocking, puller::Pull, pusher::Push, volume::Volume};
use crate::{
    api::{Outcome, Part},
    exit::Failure,
};

impl Daemon {
    /// `stop`.
    pub async fn stop_part(self: &Arc<Self>, name: &VolumeName, part: Part) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        check_part(&volume, &part)?;
        let what = named(name, &part);
        let mut stopped = volume.stopped();
        if !stopped.insert(part.clone()) {
            return Ok(Outcome::already(format!("{what} is stopped already")));
        }
        self.note_stopped(name, &part, true).await?;
        volume.set_stopped(stopped);
        self.apply_stopped(&volume, &part).await;
        let busy = if part == Part::Volume { self.unmount(&volume).await } else { Vec::new() };
        let effect = match &part {
            Part::Volume => {
                "no snapshots are taken by schedule, nothing is sent or received, nothing is mounted"
            }
            Part::Master => "no snapshots are taken by schedule; `zumastor snapshot` still takes them",
            Part::Source => "nothing is received; what was begun stays, and goes on from there",
            Part::Target(_) => "nothing is sent there",
        };
        let outcome = Outcome::changed(format!("{what} is stopped")).note(format!(
            "{effect}, also after a restart, until `zumastor start {}`",
            argument(name, &part)
        ));
        Ok(busy.iter().fold(outcome, |outcome, busy| outcome.note(format!("{busy}, so it stays mounted"))))
    }

    /// `start`.
    pub async fn start_part(self: &Arc<Self>, name: &VolumeName, part: Part) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        check_part(&volume, &part)?;
        let what = named(name, &part);
        let mut stopped = volume.stopped();
        let mut outcome = match stopped.remove(&part) {
            true => {
                self.note_stopped(name, &part, false).await?;
                volume.set_stopped(stopped.clone());
                self.apply_stopped(&volume, &part).await;
                self.mounted(Outcome::changed(format!("{what} is started")), &volume).await
            }
            false => Outcome::already(format!("{what} is not stopped")),
        };
        for other in stopped {
            if part == Part::Volume || other == Part::Volume {
                let (left, start) = (named(name, &other), argument(name, &other));
                outcome = outcome.note(format!("{left} is still stopped: `zumastor start {start}`"));
            }
        }
        Ok(outcome)
    }

    /// Forgets that a part is stopped, because the part is gone.
    pub async fn unstop(&self, volume: &Volume, part: &Part) -> Result<(), Failure> {
        let mut stopped = volume.stopped();
        if stopped.remove(part) {
            self.note_stopped(&volume.name, part, false).await?;
            volume.set_stopped(stopped);
        }
        Ok(())
    }

    /// Reads what was stopped before the daemon was started.
    pub async fn recall_stopped(&self, volume: &Volume) -> Result<(), Failure> {
        let (state, name) = (self.state.clone(), volume.name.clone());
        let stopped = blocking(move || state.stopped(&name)).await?;
        volume.set_stopped(stopped.into_iter().collect());
        Ok(())
    }

    async fn note_stopped(&self, name: &VolumeName, part: &Part, stopped: bool) -> Result<(), Failure> {
        let (state, name, part) = (self.state.clone(), name.clone(), part.clone());
        Ok(blocking(move || state.set_stopped(&name, &part, stopped)).await?)
    }

    /// Starts or ends what replicates, after what is stopped has changed. The snapshotter looks for itself.
    async fn apply_stopped(self: &Arc<Self>, volume: &Arc<Volume>, part: &Part) {
        let config = volume.config();
        if let Some(source) = config.source.filter(|_| matches!(part, Part::Volume | Part::Source)) {
            Pull::start(self, volume, &source).await;
        }
        for (host, target) in config.target {
            if *part == Part::Volume || *part == Part::Target(host.clone()) {
                Push::start(self, volume, &host, &target).await;
            }
        }
    }
}

/// Says that a part of a volume's work is stopped, if it is.
pub fn refuse_stopped(volume: &Volume, part: &Part) -> Result<(), Failure> {
    if let Some(barred) = volume.barred() {
        return Err(Failure::refused(barred));
    }
    if !volume.is_stopped(part) {
        return Ok(());
    }
    let name = &volume.name;
    let own = volume.stopped().contains(part);
    let part = if own { part } else { &Part::Volume };
    Err(Failure::refused(format!("{} is stopped", named(name, part)))
        .remedy(format!("`zumastor start {}` first", argument(name, part))))
}

/// Refuses a part that the volume does not have.
fn check_part(volume: &Volume, part: &Part) -> Result<(), Failure> {
    let (name, config) = (&volume.name, volume.config());
    match part {
        Part::Master if config.master.is_none() => {
            Err(Failure::failed(format!("this node is not the master of volume {name}")))
        }
        Part::Source if config.source.is_none() => {
            Err(Failure::failed(format!("volume {name} has no source")))
        }
        Part::Target(host) if !config.target.contains_key(host) => {
            Err(Failure::failed(format!("volume {name} is not sent to {host}")))
        }
        _ => Ok(()),
    }
    .map_err(|failure| failure.remedy(format!("`zumastor status {name}` shows what it has")))
}

fn named(volume: &VolumeName, part: &Part) -> String {
    match part {
        Part::Volume => format!("volume {volume}"),
        Part::Master => format!("the schedule of volume {volume}"),
        Part::Source => format!("receiving volume {volume}"),
        Part::Target(host) => format!("sending volume {volume} to {host}"),
    }
}

/// A part as `start` and `stop` take it.
fn argument(volume: &VolumeName, part: &Part) -> String {
    match part {
        Part::Target(host) => format!("target {volume} {host}"),
        part => format!("{part} {volume}"),
    }
}
