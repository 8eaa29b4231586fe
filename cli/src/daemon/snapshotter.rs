//! Takes the snapshots that a volume's schedule asks for: one task for each volume, which sleeps until the next tick.
//!
//! The clock may be set, and a machine may sleep, so the task looks at it every minute; that costs no more than the
//! look. What is to be taken is `zumastor_core::schedule`'s to say. A snapshot that fails is tried again after longer
//! and longer pauses.

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep},
};
use zumastor_core::{config::ScheduleConfig, schedule::plan_tick};

use super::{Daemon, holds::blocking, schedule::Schedule, volume::Volume};
use crate::{
    api::{EventKind, ScheduleError, VolumeEvent},
    exit::Failure,
};

/// A clock that is off by so much since the last look was set.
const JUMP: SignedDuration = SignedDuration::from_secs(2);

/// A volume's snapshotter, as the rest of the daemon sees it. Dropping it stops the task.
#[derive(Debug, Default)]
pub struct Snapshotter {
    wake: Arc<Notify>,
    view: Mutex<View>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What it is about.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// When it takes the next snapshot.
    pub next: Option<Timestamp>,
    /// Why the last one could not be taken.
    pub error: Option<ScheduleError>,
}

impl Snapshotter {
    /// What it is about.
    pub fn view(&self) -> View {
        self.view.lock().expect("no panic while locked").clone()
    }

    /// Something changed that it goes by: it looks again.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ends the task and waits for its end.
    pub async fn stop(&self) {
        let task = self.task.lock().expect("no panic while locked").take();
        if let Some(task) = task {
            task.abort();
            // Cancelled, which is what is wanted.
            let _ = task.await;
        }
    }

    fn show(&self, view: View) {
        *self.view.lock().expect("no panic while locked") = view;
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().expect("no panic while locked") {
            task.abort();
        }
    }
}

/// Starts the snapshotter of a volume, unless it runs.
pub fn start(daemon: &Arc<Daemon>, volume: &Arc<Volume>) {
    let mut task = volume.snapshotter.task.lock().expect("no panic while locked");
    if task.is_none() {
        let run = Run {
            wake: volume.snapshotter.wake.clone(),
            daemon: daemon.clone(),
            volume: volume.clone(),
            pauses: Schedule::new(None, false, Instant::now()),
        };
        *task = Some(tokio::spawn(run.run()));
    }
}

struct Run {
    wake: Arc<Notify>,
    daemon: Arc<Daemon>,
    volume: Arc<Volume>,
    pauses: Schedule,
}

impl Run {
    async fn run(mut self) {
        loop {
            match self.turn().await {
                Ok(next) => {
                    self.pauses.succeed(Instant::now());
                    self.volume.snapshotter.show(View { next, error: None });
                    self.rest(next, None).await;
                }
                Err(failure) => {
                    self.pauses.fail(Instant::now(), rand::random());
                    let retry = self.pauses.due().unwrap_or_else(Instant::now);
                    self.failed(failure, retry).await;
                    self.rest(None, Some(retry)).await;
                }
            }
        }
    }

    /// Takes what is due now, and tells when to look again; never, when there is nothing to wait for.
    async fn turn(&self) -> Result<Option<Timestamp>, Failure> {
        let (daemon, volume) = (self.daemon.clone(), self.volume.clone());
        // To the end, though this task may be stopped meanwhile: a hook that was begun has another that ends it.
        let taking = tokio::spawn(async move { daemon.take_scheduled(&volume).await });
        taking.await.unwrap_or_else(|error| Err(Failure::failed(format!("it was broken off: {error}"))))
    }

    async fn failed(&self, failure: Failure, retry: Instant) {
        let now = self.daemon.clock.now();
        let pause = SignedDuration::try_from(retry - Instant::now()).unwrap_or(SignedDuration::MAX);
        let next = now.saturating_add(pause).unwrap_or(Timestamp::MAX);
        let before = self.volume.snapshotter.view().error;
        let error = ScheduleError { text: failure.error, remedy: failure.remedy, at: now, next };
        // Told once, not with each try.
        if before.is_none_or(|before| before.text != error.text) {
            let (what, text) = (EventKind::Failed, error.text.clone());
            tracing::warn!(volume = %self.volume.name, error = text, "the scheduled snapshot could not be taken");
            self.daemon.note(&self.volume, VolumeEvent { at: now, what, number: None, text }).await;
        }
        self.volume.snapshotter.show(View { next: None, error: Some(error) });
    }

    /// Waits for a time of day or a moment, whichever comes first; less when it is woken or the clock is set.
    async fn rest(&self, until: Option<Timestamp>, retry: Option<Instant>) {
        let (began, time) = (Instant::now(), self.daemon.clock.now());
        loop {
            let (now, reading) = (Instant::now(), self.daemon.clock.now());
            let passed = SignedDuration::try_from(now - began).unwrap_or(SignedDuration::MAX);
            let set = (reading.duration_since(time) - passed).abs() > JUMP;
            if set || until.is_some_and(|until| reading >= until) || retry.is_some_and(|retry| now >= retry) {
                return;
            }
            let look = self.daemon.clock.look();
            let left = until.map(|until| Duration::try_from(until.duration_since(reading)).unwrap_or(look));
            let left = left.into_iter().chain(retry.map(|retry| retry - now)).min();
            let Some(left) = left else { return self.wake.notified().await };
            tokio::select! {
                () = self.wake.notified() => return,
                () = sleep(left.min(look)) => {}
            }
        }
    }
}

/// Whether a schedule takes any snapshots.
pub fn takes(schedule: &ScheduleConfig) -> bool {
    schedule.specs().iter().any(|spec| spec.keep > 0 && spec.every.is_some())
}

impl Daemon {
    /// The time, as exactly as snapshots tell it.
    pub fn now(&self) -> Timestamp {
        let millis = self.clock.now().as_millisecond();
        Timestamp::from_millisecond(millis).expect("the present is a valid time")
    }

    /// The moment since when a volume's schedule counts.
    pub async fn since(&self, volume: &Volume) -> Result<Timestamp, Failure> {
        let (state, name, now) = (self.state.clone(), volume.name.clone(), self.now());
        Ok(blocking(move || state.since(&name, now)).await?)
    }

    /// Notes that nothing was left to take at this moment.
    pub async fn set_since(&self, volume: &Volume, since: Timestamp) -> Result<(), Failure> {
        let (state, name) = (self.state.clone(), volume.name.clone());
        Ok(blocking(move || state.set_since(&name, since)).await?)
    }

    /// To be called before the schedule of a volume changes, or one of its snapshots is deleted by hand: if nothing is
    /// left to take, nothing will be made up for because of that.
    pub async fn settle(&self, volume: &Volume) -> Result<(), Failure> {
        let schedule = volume.config().schedule;
        let now = self.now();
        if takes(&schedule) {
            let since = self.since(volume).await?;
            // A store that cannot be opened leaves what is due undecided.
            let Ok(store) = volume.store().await else { return Ok(()) };
            let snapshots = store.snapshots().await?;
            let tick = plan_tick(&schedule.specs(), &snapshots, &self.clock.zone(), since, now);
            if !tick.take.is_empty() {
                return Ok(());
            }
        }
        self.set_since(volume, now).await
    }

    /// Remembers what happened to a volume's snapshots.
    pub async fn note(&self, volume: &Volume, event: VolumeEvent) {
        let (state, name) = (self.state.clone(), volume.name.clone());
        if let Err(error) = blocking(move || state.note_event(&name, &event)).await {
            tracing::warn!(volume = %volume.name, %error, "the history could not be written");
        }
    }
}
