//! One task per replication. It runs when its period is over, when it is asked, and again after an error; whoever asks
//! while it runs joins in.

mod view;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use zumastor_core::SnapshotNumber;
use zumastor_net::{
    Phase, Progress, PullState, PullSummary,
    wire::{Refusal, RefusalCode},
};

pub use self::view::Rate;
use self::view::View;
use super::schedule::Schedule;
use crate::api::{LastRun, WorkError, WorkStatus};

/// A replication that a worker runs again and again.
#[async_trait]
pub trait Job: Send + Sync + 'static {
    /// Whether there is anything to do when the time has come. What is asked for is done in any case.
    async fn due(&self) -> bool;

    /// Does it once: to the newest snapshot, or to exactly this one. May be dropped at any point.
    async fn run(
        &self,
        exactly: Option<SnapshotNumber>,
        progress: &watch::Sender<Progress>,
    ) -> Result<PullSummary, Trouble>;

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

/// What somebody wants of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wish {
    /// A run that comes to this snapshot, even if it began earlier; without one, only a run that begins now will do.
    pub wanted: Option<SnapshotNumber>,
    /// A run to that snapshot, although there may be newer ones.
    pub exactly: bool,
    /// So long is waited before it begins.
    pub delay: Option<Duration>,
}

/// Somebody wants a run.
#[derive(Debug)]
struct Ask {
    wish: Wish,
    to: watch::Sender<PullState>,
}

impl Ask {
    /// The snapshot that the run is to be for.
    fn exactly(&self) -> Option<SnapshotNumber> {
        self.wish.wanted.filter(|_| self.wish.exactly)
    }

    /// Whether a run came to what is wanted, whenever it began.
    fn has(&self, summary: &PullSummary) -> bool {
        self.wish.wanted.is_some_and(|wanted| summary.number >= Some(wanted))
    }
}

impl Worker {
    /// Starts the task. `at_once` makes it begin with a run.
    pub fn spawn(job: Arc<dyn Job>, period: Option<u64>, at_once: bool) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (publish, view) = watch::channel(View::default());
        let schedule =
            Schedule::new(period.map(Duration::from_secs), at_once, Instant::now()).together(*START);
        let state = Running {
            job,
            inbox,
            schedule,
            publish,
            delayed: Vec::new(),
            waiting: Vec::new(),
            joined: Vec::new(),
            unfinished: None,
            newest: None,
        };
        Self { messages, view, task: tokio::spawn(state.run()) }
    }

    /// Asks for a run and follows it.
    pub fn ask(&self, wish: Wish) -> watch::Receiver<PullState> {
        let (to, follow) = watch::channel(PullState::Running(Progress::default()));
        // If the task is gone, so is `to`, and the follower sees that.
        let _ = self.messages.send(Message::Ask(Ask { wish, to }));
        follow
    }

    /// If it stopped, what stopped it may be over: it is tried again. What runs is not touched.
    pub fn rearm(&self) {
        let stopped = {
            let view = self.view.borrow();
            // What runs may stop yet.
            view.running.is_some() || view.error.as_ref().is_some_and(|error| error.permanent)
        };
        if !stopped {
            return;
        }
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

/// Since when this program's moments are counted.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

struct Running {
    job: Arc<dyn Job>,
    inbox: mpsc::UnboundedReceiver<Message>,
    schedule: Schedule,
    publish: watch::Sender<View>,
    /// Who wants a run later, and when.
    delayed: Vec<(Instant, Ask)>,
    /// Who waits for the run that begins next, or has begun.
    waiting: Vec<Ask>,
    /// Who came while it ran.
    joined: Vec<Ask>,
    /// The snapshot that the last run was for, if that failed and is worth another try.
    unfinished: Option<SnapshotNumber>,
    /// The newest snapshot that somebody spoke of, whether or not they still wait.
    newest: Option<SnapshotNumber>,
}

impl Running {
    async fn run(mut self) {
        loop {
            let due = self.schedule.due();
            self.publish.send_modify(|view| view.next = due);
            let wake = self.delayed.iter().map(|(at, _)| *at).chain(due).min();
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.receive(message),
                    None => return,
                },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            while let Ok(message) = self.inbox.try_recv() {
                self.receive(message);
            }
            self.admit_delayed();
            if self.waiting.is_empty() {
                if due.is_none_or(|due| due > Instant::now()) {
                    continue;
                }
                if self.unfinished.is_none() && !self.job.due().await {
                    self.schedule.begin(Instant::now());
                    self.schedule.succeed(Instant::now());
                    self.publish.send_modify(|view| view.error = None);
                    continue;
                }
            }
            while self.attempt().await {
                self.admit_delayed();
            }
        }
    }

    /// One run. True if another must follow at once.
    async fn attempt(&mut self) -> bool {
        // What is asked for by number goes first: it is the older.
        let asked = self.waiting.iter().filter_map(Ask::exactly).min();
        let exactly = asked.or(self.unfinished.filter(|_| self.waiting.is_empty()));
        self.schedule.begin(Instant::now());
        let (progress, mut changes) = watch::channel(Progress::default());
        let mut rate = Rate::default();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.show(Progress::default(), &mut rate);
        let job = self.job.clone();
        let mut run = std::pin::pin!(job.run(exactly, &progress));
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
            Ok(summary) => self.succeeded(exactly, summary),
            Err(trouble) => self.failed(exactly, &trouble),
        }
    }

    /// True if somebody wants more than this run came to.
    fn succeeded(&mut self, exactly: Option<SnapshotNumber>, summary: PullSummary) -> bool {
        self.unfinished = None;
        self.schedule.succeed(Instant::now());
        let last = LastRun { at: Timestamp::now(), summary };
        self.publish.send_modify(|view| {
            *view = View { last: Some(last), wanted: view.wanted, asked: view.asked, ..View::default() };
        });
        // A run to the newest is for all who waited for it, a run to one snapshot for those who asked for that.
        let waited = std::mem::take(&mut self.waiting).into_iter().map(|ask| (ask.exactly() == exactly, ask));
        let joined = std::mem::take(&mut self.joined).into_iter().map(|ask| (false, ask));
        for (served, ask) in waited.chain(joined) {
            if served || ask.has(&summary) {
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
    fn failed(&mut self, exactly: Option<SnapshotNumber>, trouble: &Trouble) -> bool {
        if exactly.is_some() && trouble.refusal.code == RefusalCode::Gone {
            return self.not_there(exactly, trouble);
        }
        self.unfinished = exactly.filter(|_| trouble.passing);
        if trouble.passing {
            self.schedule.fail(Instant::now(), rand::random());
        } else {
            self.schedule.stop(Instant::now());
        }
        let error = WorkError {
            text: trouble.refusal.text.clone(),
            at: Timestamp::now(),
            permanent: !trouble.passing,
            remedy: None,
        };
        self.publish.send_modify(|view| {
            let View { last, wanted, asked, .. } = *view;
            *view = View { error: Some(error), last, wanted, asked, ..View::default() };
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

    /// The snapshot that was asked for is not to be had. That concerns only who asked; true if others wait.
    fn not_there(&mut self, exactly: Option<SnapshotNumber>, trouble: &Trouble) -> bool {
        self.unfinished = None;
        self.schedule.succeed(Instant::now());
        self.publish.send_modify(|view| {
            let View { last, wanted, asked, .. } = *view;
            *view = View { last, wanted, asked, ..View::default() };
        });
        let joined = std::mem::take(&mut self.joined);
        for ask in std::mem::take(&mut self.waiting) {
            if ask.exactly() == exactly {
                ask.to.send_replace(PullState::Failed(trouble.refusal.clone()));
            } else {
                self.waiting.push(ask);
            }
        }
        self.waiting.extend(joined);
        !self.waiting.is_empty()
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
                if let Some(ask) = self.delay(ask) {
                    self.note(&ask);
                    self.waiting.push(ask);
                }
            }
            Message::Rearm => self.schedule.rearm(Instant::now()),
        }
    }

    fn join(&mut self, ask: Ask) {
        if let Some(ask) = self.delay(ask) {
            self.note(&ask);
            self.joined.push(ask);
        }
    }

    /// Puts aside what is not to begin yet, and gives back what is.
    fn delay(&mut self, mut ask: Ask) -> Option<Ask> {
        let Some(delay) = ask.wish.delay.take() else { return Some(ask) };
        let Some(at) = Instant::now().checked_add(delay) else { return Some(ask) };
        self.delayed.push((at, ask));
        self.show_delayed();
        None
    }

    /// Whose time has come waits for a run like everybody else.
    fn admit_delayed(&mut self) {
        let now = Instant::now();
        let (ripe, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.delayed).into_iter().partition(|(at, _)| *at <= now);
        self.delayed = later;
        for (_, ask) in ripe {
            self.note(&ask);
            self.waiting.push(ask);
        }
        self.show_delayed();
    }

    fn show_delayed(&self) {
        let next = self.delayed.iter().min_by_key(|(at, _)| *at);
        let asked = next.map(|(at, ask)| (*at, ask.exactly()));
        self.publish.send_modify(|view| view.asked = asked);
    }

    fn note(&mut self, ask: &Ask) {
        self.newest = self.newest.max(ask.wish.wanted);
        let wanted = self.newest;
        self.publish.send_modify(|view| view.wanted = wanted);
    }
}
