//! One task per replication. It runs when its period is over, when it is asked, and again after an error; whoever asks
//! while it runs joins in.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use zumastor_core::SnapshotNumber;
use zumastor_net::{Phase, Progress, PullState, PullSummary, wire::Refusal};

use super::schedule::Schedule;
use crate::api::{LastRun, WorkError, WorkState, WorkStatus};

/// A replication that a worker runs again and again.
#[async_trait]
pub trait Job: Send + Sync + 'static {
    /// Whether there is anything to do when the time has come. What is asked for is done in any case.
    async fn due(&self) -> bool;

    /// Does it once. May be dropped at any point.
    async fn run(&self, progress: &watch::Sender<Progress>) -> Result<PullSummary, Trouble>;

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
    asks: mpsc::UnboundedSender<Ask>,
    view: watch::Receiver<View>,
    task: JoinHandle<()>,
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
        let (asks, asked) = mpsc::unbounded_channel();
        let (publish, view) = watch::channel(View::default());
        let schedule = Schedule::new(period.map(Duration::from_secs), at_once, Instant::now());
        let state =
            Running { job, asked, schedule, publish, waiting: Vec::new(), joined: Vec::new(), newest: None };
        Self { asks, view, task: tokio::spawn(state.run()) }
    }

    /// Asks for a run and follows it. With `wanted`, one that is under way will do if it gets there.
    pub fn ask(&self, wanted: Option<SnapshotNumber>) -> watch::Receiver<PullState> {
        let (to, follow) = watch::channel(PullState::Running(Progress::default()));
        // If the task is gone, so is `to`, and the follower sees that.
        let _ = self.asks.send(Ask { wanted, to });
        follow
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

/// What is to be seen of a worker.
#[derive(Debug, Clone, Default)]
struct View {
    running: Option<Progress>,
    rate: u64,
    next: Option<Instant>,
    error: Option<WorkError>,
    last: Option<LastRun>,
    wanted: Option<SnapshotNumber>,
}

impl View {
    fn status(&self, now: Instant) -> WorkStatus {
        let state = match (&self.running, &self.error) {
            (Some(progress), _) => match progress.phase {
                Phase::Connecting => WorkState::Connecting,
                Phase::Planning => WorkState::Planning,
                Phase::Transferring => WorkState::Transferring,
                Phase::Verifying => WorkState::Verifying,
                Phase::Flipping => WorkState::Flipping,
            },
            (None, Some(error)) if error.permanent => WorkState::Stopped,
            (None, Some(_)) => WorkState::Waiting,
            (None, None) => WorkState::Idle,
        };
        let next = self.next.filter(|_| self.running.is_none()).map(|next| {
            let wait =
                SignedDuration::try_from(next.saturating_duration_since(now)).unwrap_or(SignedDuration::MAX);
            Timestamp::now().saturating_add(wait).unwrap_or(Timestamp::MAX)
        });
        WorkStatus {
            state,
            progress: self.running,
            rate: if self.running.is_some() { self.rate } else { 0 },
            next,
            error: self.error.clone(),
            last: self.last,
        }
    }
}

struct Running {
    job: Arc<dyn Job>,
    asked: mpsc::UnboundedReceiver<Ask>,
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
            let asked = tokio::select! {
                ask = self.asked.recv() => match ask {
                    Some(ask) => {
                        self.note(&ask);
                        self.waiting.push(ask);
                        true
                    }
                    None => return,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => false,
            };
            while let Ok(ask) = self.asked.try_recv() {
                self.note(&ask);
                self.waiting.push(ask);
            }
            if !asked && self.waiting.is_empty() && !self.job.due().await {
                self.schedule.begin(Instant::now());
                self.schedule.succeed(Instant::now());
                self.publish.send_modify(|view| view.error = None);
                continue;
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
                Some(ask) = self.asked.recv() => {
                    self.note(&ask);
                    ask.to.send_replace(PullState::Running(*changes.borrow()));
                    self.joined.push(ask);
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
        while let Ok(ask) = self.asked.try_recv() {
            self.note(&ask);
            self.joined.push(ask);
        }
        job.ended(&result).await;
        match result {
            Ok(summary) => self.succeeded(summary),
            Err(trouble) => {
                self.failed(&trouble);
                false
            }
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

    fn failed(&mut self, trouble: &Trouble) {
        if trouble.passing {
            self.schedule.fail(Instant::now(), rand::random());
        } else {
            self.schedule.stop();
        }
        let error = WorkError {
            text: trouble.refusal.text.clone(),
            at: Timestamp::now(),
            permanent: !trouble.passing,
        };
        self.publish.send_modify(|view| {
            *view = View { error: Some(error), last: view.last, wanted: view.wanted, ..View::default() };
        });
        for ask in self.waiting.drain(..).chain(self.joined.drain(..)) {
            ask.to.send_replace(PullState::Failed(trouble.refusal.clone()));
        }
    }

    fn show(&mut self, progress: Progress, rate: &mut Rate) {
        let now = rate.note(Instant::now(), progress.wire);
        self.publish.send_modify(|view| {
            view.running = Some(progress);
            view.rate = now;
        });
        for ask in self.waiting.iter().chain(&self.joined) {
            ask.to.send_replace(PullState::Running(progress));
        }
    }

    fn note(&mut self, ask: &Ask) {
        self.newest = self.newest.max(ask.wanted);
        let wanted = self.newest;
        self.publish.send_modify(|view| view.wanted = wanted);
    }
}

/// Bytes a second during the last seconds.
#[derive(Debug, Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    const WINDOW: Duration = Duration::from_secs(5);
    const STEP: Duration = Duration::from_millis(200);

    fn note(&mut self, now: Instant, bytes: u64) -> u64 {
        while self.0.len() > 1 && now - self.0[1].0 > Self::WINDOW {
            self.0.pop_front();
        }
        if self.0.back().is_none_or(|(last, _)| now - *last >= Self::STEP) {
            self.0.push_back((now, bytes));
        }
        let (since, before) = self.0.front().copied().unwrap_or((now, bytes));
        let seconds = (now - since).as_secs_f64();
        if seconds > 0.0 { (bytes.saturating_sub(before) as f64 / seconds) as u64 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    };

    use tokio::sync::Semaphore;
    use zumastor_net::wire::RefusalCode;

    use super::*;

    /// Runs take as long as the test wants, and come to what it says.
    struct Fake {
        runs: AtomicU32,
        nothing_to_do: AtomicBool,
        gate: Semaphore,
        results: Mutex<VecDeque<Result<PullSummary, Trouble>>>,
    }

    #[async_trait]
    impl Job for Fake {
        async fn due(&self) -> bool {
            !self.nothing_to_do.load(Ordering::SeqCst)
        }

        async fn run(&self, progress: &watch::Sender<Progress>) -> Result<PullSummary, Trouble> {
            self.runs.fetch_add(1, Ordering::SeqCst);
            progress.send_modify(|progress| progress.phase = Phase::Transferring);
            self.gate.acquire().await.expect("never closed").forget();
            self.results.lock().unwrap().pop_front().unwrap_or(Ok(got(0, false)))
        }

        async fn ended(&self, _: &Result<PullSummary, Trouble>) {}
    }

    fn got(number: u64, received: bool) -> PullSummary {
        let number = Some(SnapshotNumber(number));
        PullSummary { number, received, base: None, data: 0, wire: 0, resumed: 0, refetched: 0, millis: 0 }
    }

    fn trouble(passing: bool) -> Trouble {
        Trouble { refusal: Refusal::new(RefusalCode::Failed, "broken"), passing }
    }

    fn fake(permits: usize, results: Vec<Result<PullSummary, Trouble>>) -> Arc<Fake> {
        Arc::new(Fake {
            runs: AtomicU32::new(0),
            nothing_to_do: AtomicBool::new(false),
            gate: Semaphore::new(permits),
            results: Mutex::new(results.into()),
        })
    }

    impl Fake {
        fn runs(&self) -> u32 {
            self.runs.load(Ordering::SeqCst)
        }
    }

    async fn end(mut follow: watch::Receiver<PullState>) -> PullState {
        follow.wait_for(|state| !matches!(state, PullState::Running(_))).await.unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn it_runs_once_a_period_and_not_when_there_is_nothing_to_do() {
        let job = fake(1000, vec![]);
        let worker = Worker::spawn(job.clone(), Some(60), true);
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(job.runs(), 1);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(job.runs(), 3);
        job.nothing_to_do.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(job.runs(), 3);
        // What is asked for is done all the same.
        assert_eq!(end(worker.ask(None)).await, PullState::Done(got(0, false)));
        assert_eq!(job.runs(), 4);
        worker.stop().await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(job.runs(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn passing_errors_are_tried_again_and_lasting_ones_are_not() {
        let results = vec![Err(trouble(true)), Err(trouble(true)), Ok(got(1, true)), Err(trouble(false))];
        let job = fake(1000, results);
        let worker = Worker::spawn(job.clone(), None, false);
        assert_eq!(end(worker.ask(None)).await, PullState::Failed(trouble(true).refusal));
        let status = worker.status();
        assert_eq!((status.state, status.next.is_some()), (WorkState::Waiting, true));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(job.runs(), 3);
        assert_eq!((worker.status().state, worker.status().error), (WorkState::Idle, None));

        assert_eq!(end(worker.ask(None)).await, PullState::Failed(trouble(false).refusal));
        assert_eq!(worker.status().state, WorkState::Stopped);
        assert_eq!(worker.status().next, None);
        tokio::time::sleep(Duration::from_secs(86400)).await;
        assert_eq!(job.runs(), 4);
        assert_eq!(end(worker.ask(None)).await, PullState::Done(got(0, false)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_during_a_run_joins_it_and_gets_what_was_asked_for() {
        let job = fake(0, vec![Ok(got(4, true)), Ok(got(5, true))]);
        let worker = Worker::spawn(job.clone(), None, false);
        let first = worker.ask(None);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(worker.status().state, WorkState::Transferring);
        let satisfied = worker.ask(Some(SnapshotNumber(4)));
        let later = worker.ask(Some(SnapshotNumber(5)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(matches!(*later.borrow(), PullState::Running(p) if p.phase == Phase::Transferring));
        job.gate.add_permits(1);
        assert_eq!(end(first).await, PullState::Done(got(4, true)));
        assert_eq!(end(satisfied).await, PullState::Done(got(4, true)));
        assert!(matches!(*later.borrow(), PullState::Running(_)));
        job.gate.add_permits(1);
        assert_eq!(end(later).await, PullState::Done(got(5, true)));
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(job.runs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_announcement_counts_even_if_its_sender_is_gone() {
        let job = fake(0, vec![Ok(got(4, true)), Ok(got(5, true))]);
        let worker = Worker::spawn(job.clone(), None, true);
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(worker.ask(Some(SnapshotNumber(5))));
        job.gate.add_permits(100);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(job.runs(), 2);
        assert_eq!(worker.status().last.map(|last| last.summary), Some(got(5, true)));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut rate = Rate::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.note(at(0), 0), 0);
        for second in 1..=10 {
            assert_eq!(rate.note(at(second), second * 100), 100);
        }
        // Nothing comes any more.
        assert_eq!(rate.note(at(30), 1000), 0);
    }
}
