//! One task per replication. It runs when its period is over, when it is asked, and again after an error; whoever asks
//! while it runs joins in.

mod view;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use zumastor_core::SnapshotNumber;
use zumastor_net::{Phase, Progress, PullState, PullSummary, wire::Refusal};

use self::view::{Rate, View};
use super::schedule::Schedule;
use crate::api::{LastRun, WorkError, WorkStatus};

/// A replication that a worker runs again and again.
#[async_trait]
pub trait Job: Send + Sync + 'static {
    /// Whether there is anything to do when the time has come. What is asked for is done in any case.
    async fn due(&self) -> bool;

    /// Does it once. May be dropped at any point.
    async fn run(&self, progress: &watch::Sender<Progress>) -> Result<PullSummary, Trouble>;

    /// What is to be said of the run beside its progress.
    fn remark(&self) -> Option<String> {
        None
    }

    /// Remembers what came of it.
    async fn ended(&self, result: &Result<PullSummary, Trouble>);
}

/// Why a replication failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// For whoever asked for it.
    pub refusal: Refusal,
    /// Whether it is worth trying again by itself.
    pub passing: bool,
}

/// The task. Dropping it stops what it does.
#[derive(Debug)]
pub struct Worker {
    messages: mpsc::UnboundedSender<Message>,
    view: watch::Receiver<View>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Message {
    Ask(Ask),
    Rearm,
}

/// Somebody wants a run.
#[derive(Debug)]
struct Ask {
    /// A run that comes to this snapshot, even if it began earlier; without one, only a run that begins now will do.
    wanted: Option<SnapshotNumber>,
    to: watch::Sender<PullState>,
}

impl Worker {
    /// Starts the task. `at_once` makes it begin with a run.
    pub fn spawn(job: Arc<dyn Job>, period: Option<u64>, at_once: bool) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (publish, view) = watch::channel(View::default());
        let schedule = Schedule::new(period.map(Duration::from_secs), at_once, Instant::now());
        let state =
            Running { job, inbox, schedule, publish, waiting: Vec::new(), joined: Vec::new(), newest: None };
        Self { messages, view, task: tokio::spawn(state.run()) }
    }

    /// Asks for a run and follows it. With `wanted`, one that is under way will do if it gets there.
    pub fn ask(&self, wanted: Option<SnapshotNumber>) -> watch::Receiver<PullState> {
        let (to, follow) = watch::channel(PullState::Running(Progress::default()));
        // If the task is gone, so is `to`, and the follower sees that.
        let _ = self.messages.send(Message::Ask(Ask { wanted, to }));
        follow
    }

    /// If it stopped, what stopped it may be over: it is tried again. What runs is not touched.
    pub fn rearm(&self) {
        let _ = self.messages.send(Message::Rearm);
    }

    /// What is going on.
    pub fn status(&self) -> WorkStatus {
        self.view.borrow().status(Instant::now())
    }

    /// The newest snapshot that somebody said the other side has.
    pub fn wanted(&self) -> Option<SnapshotNumber> {
        self.view.borrow().wanted
    }

    /// Ends the task and waits for its end.
    pub async fn stop(mut self) {
        self.task.abort();
        // Cancelled, which is what is wanted.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Running {
    job: Arc<dyn Job>,
    inbox: mpsc::UnboundedReceiver<Message>,
    schedule: Schedule,
    publish: watch::Sender<View>,
    /// Who waits for the run that begins next, or has begun.
    waiting: Vec<Ask>,
    /// Who came while it ran.
    joined: Vec<Ask>,
    /// The newest snapshot that somebody spoke of, whether or not they still wait.
    newest: Option<SnapshotNumber>,
}

impl Running {
    async fn run(mut self) {
        loop {
            let due = self.schedule.due();
            self.publish.send_modify(|view| view.next = due);
            let in_time = tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => {
                        self.receive(message);
                        false
                    }
                    None => return,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => true,
            };
            while let Ok(message) = self.inbox.try_recv() {
                self.receive(message);
            }
            if self.waiting.is_empty() {
                if !in_time {
                    continue;
                }
                if !self.job.due().await {
                    self.schedule.begin(Instant::now());
                    self.schedule.succeed(Instant::now());
                    self.publish.send_modify(|view| view.error = None);
                    continue;
                }
            }
            while self.attempt().await {}
        }
    }

    /// One run. True if another must follow at once.
    async fn attempt(&mut self) -> bool {
        self.schedule.begin(Instant::now());
        let (progress, mut changes) = watch::channel(Progress::default());
        let mut rate = Rate::default();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.show(Progress::default(), &mut rate);
        let job = self.job.clone();
        let mut run = std::pin::pin!(job.run(&progress));
        let result = loop {
            tokio::select! {
                biased;
                result = &mut run => break result,
                Some(message) = self.inbox.recv() => {
                    if let Message::Ask(ask) = message {
                        ask.to.send_replace(PullState::Running(*changes.borrow()));
                        self.join(ask);
                    }
                }
                Ok(()) = changes.changed() => {
                    let now = *changes.borrow_and_update();
                    self.show(now, &mut rate);
                }
                _ = tick.tick() => {
                    let now = *changes.borrow();
                    self.show(now, &mut rate);
                }
            }
        };
        // Who says while it runs that it might run again says so because it does.
        while let Ok(message) = self.inbox.try_recv() {
            if let Message::Ask(ask) = message {
                self.join(ask);
            }
        }
        job.ended(&result).await;
        match result {
            Ok(summary) => self.succeeded(summary),
            Err(trouble) => self.failed(&trouble),
        }
    }

    /// True if somebody wants more than this run came to.
    fn succeeded(&mut self, summary: PullSummary) -> bool {
        self.schedule.succeed(Instant::now());
        let last = LastRun { at: Timestamp::now(), summary };
        self.publish.send_modify(|view| {
            *view = View { last: Some(last), wanted: view.wanted, ..View::default() };
        });
        for ask in self.waiting.drain(..) {
            ask.to.send_replace(PullState::Done(summary));
        }
        for ask in self.joined.drain(..) {
            if ask.wanted.is_some_and(|wanted| summary.number >= Some(wanted)) {
                ask.to.send_replace(PullState::Done(summary));
            } else {
                self.waiting.push(ask);
            }
        }
        // Only after a run that brought something: a peer that speaks of what it does not have is asked once.
        !self.waiting.is_empty() || (summary.received && self.newest > summary.number)
    }

    /// True if somebody came while it ran: what it failed of, such as a connection that was dead already, may not
    /// concern them.
    fn failed(&mut self, trouble: &Trouble) -> bool {
        if trouble.passing {
            self.schedule.fail(Instant::now(), rand::random());
        } else {
            self.schedule.stop(Instant::now());
        }
        let error = WorkError {
            text: trouble.refusal.text.clone(),
            at: Timestamp::now(),
            permanent: !trouble.passing,
        };
        self.publish.send_modify(|view| {
            *view = View { error: Some(error), last: view.last, wanted: view.wanted, ..View::default() };
        });
        let joined = std::mem::take(&mut self.joined);
        for ask in self.waiting.drain(..) {
            ask.to.send_replace(PullState::Failed(trouble.refusal.clone()));
        }
        if trouble.passing {
            self.waiting = joined;
            return !self.waiting.is_empty();
        }
        for ask in joined {
            ask.to.send_replace(PullState::Failed(trouble.refusal.clone()));
        }
        false
    }

    fn show(&mut self, progress: Progress, rate: &mut Rate) {
        let now = rate.note(Instant::now(), progress.wire);
        let remark = self.job.remark();
        self.publish.send_modify(|view| {
            view.running = Some(progress);
            view.remark = remark;
            if !matches!(progress.phase, Phase::Connecting | Phase::Planning) {
                // Whatever it was, it has been got over.
                view.error = None;
            }
            view.rate = now;
        });
        for ask in self.waiting.iter().chain(&self.joined) {
            ask.to.send_replace(PullState::Running(progress));
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Ask(ask) => {
                self.note(&ask);
                self.waiting.push(ask);
            }
            Message::Rearm => self.schedule.rearm(Instant::now()),
        }
    }

    fn join(&mut self, ask: Ask) {
        self.note(&ask);
        self.joined.push(ask);
    }

    fn note(&mut self, ask: &Ask) {
        self.newest = self.newest.max(ask.wanted);
        let wanted = self.newest;
        self.publish.send_modify(|view| view.wanted = wanted);
    }
}
