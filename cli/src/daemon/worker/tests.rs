//! Workers on a clock that waits for nobody.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use tokio::sync::Semaphore;
use zumastor_net::wire::RefusalCode;

use super::*;
use crate::api::WorkState;

/// Runs take as long as the test wants, and come to what it says.
struct Fake {
    runs: AtomicU32,
    nothing_to_do: AtomicBool,
    gate: Semaphore,
    /// What each run was for.
    exactly: Mutex<Vec<Option<u64>>>,
    results: Mutex<VecDeque<Result<PullSummary, Trouble>>>,
}

#[async_trait]
impl Job for Fake {
    async fn due(&self) -> bool {
        !self.nothing_to_do.load(Ordering::SeqCst)
    }

    async fn run(
        &self,
        exactly: Option<SnapshotNumber>,
        progress: &watch::Sender<Progress>,
    ) -> Result<PullSummary, Trouble> {
        self.exactly.lock().unwrap().push(exactly.map(|number| number.0));
        self.runs.fetch_add(1, Ordering::SeqCst);
        progress.send_modify(|progress| progress.phase = Phase::Transferring);
        self.gate.acquire().await.expect("never closed").forget();
        self.results.lock().unwrap().pop_front().unwrap_or(Ok(got(0, false)))
    }

    async fn ended(&self, _: &Result<PullSummary, Trouble>) {}
}

fn got(number: u64, received: bool) -> PullSummary {
    let number = Some(SnapshotNumber(number));
    let snapshots = u64::from(received);
    PullSummary {
        number,
        received,
        snapshots,
        base: None,
        data: 0,
        wire: 0,
        resumed: 0,
        refetched: 0,
        millis: 0,
    }
}

/// A wish for a run that comes to a snapshot.
fn to(number: u64) -> Wish {
    Wish { wanted: Some(SnapshotNumber(number)), ..Wish::default() }
}

/// A wish for a run to exactly that snapshot.
fn exactly(number: u64) -> Wish {
    Wish { exactly: true, ..to(number) }
}

fn trouble(passing: bool) -> Trouble {
    Trouble { refusal: Refusal::new(RefusalCode::Failed, "broken"), passing }
}

fn fake(permits: usize, results: Vec<Result<PullSummary, Trouble>>) -> Arc<Fake> {
    Arc::new(Fake {
        runs: AtomicU32::new(0),
        nothing_to_do: AtomicBool::new(false),
        gate: Semaphore::new(permits),
        exactly: Mutex::default(),
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
    assert_eq!(end(worker.ask(Wish::default())).await, PullState::Done(got(0, false)));
    assert_eq!(job.runs(), 4);
    worker.stop().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(job.runs(), 4);
}

#[tokio::test(start_paused = true)]
async fn passing_errors_are_tried_again_soon_and_lasting_ones_rarely() {
    let results = vec![Err(trouble(true)), Err(trouble(true)), Ok(got(1, true)), Err(trouble(false))];
    let job = fake(1000, results);
    let worker = Worker::spawn(job.clone(), None, false);
    assert_eq!(end(worker.ask(Wish::default())).await, PullState::Failed(trouble(true).refusal));
    let status = worker.status();
    assert_eq!((status.state, status.next.is_some()), (WorkState::Waiting, true));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(job.runs(), 3);
    assert_eq!((worker.status().state, worker.status().error), (WorkState::Idle, None));

    assert_eq!(end(worker.ask(Wish::default())).await, PullState::Failed(trouble(false).refusal));
    assert_eq!(worker.status().state, WorkState::Stopped);
    assert!(worker.status().next.is_some());
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert_eq!(job.runs(), 4);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(job.runs(), 5);
    assert_eq!((worker.status().state, worker.status().error), (WorkState::Idle, None));
    assert_eq!(end(worker.ask(Wish::default())).await, PullState::Done(got(0, false)));
}

#[tokio::test(start_paused = true)]
async fn what_stopped_can_be_rearmed() {
    let results = vec![Err(trouble(false)), Err(trouble(false)), Ok(got(1, true)), Err(trouble(true))];
    let job = fake(0, results);
    let worker = Worker::spawn(job.clone(), None, false);
    let moment = || tokio::time::sleep(Duration::from_millis(100));
    worker.rearm();
    moment().await;
    assert_eq!(job.runs(), 0, "it had not stopped");
    let first = worker.ask(Wish::default());
    moment().await;
    // What runs is not touched, and does not run again for that when it stops.
    worker.rearm();
    job.gate.add_permits(100);
    assert_eq!(end(first).await, PullState::Failed(trouble(false).refusal));
    moment().await;
    assert_eq!(job.runs(), 1);
    worker.rearm();
    moment().await;
    assert_eq!((job.runs(), worker.status().state), (2, WorkState::Stopped));
    worker.rearm();
    moment().await;
    assert_eq!((job.runs(), worker.status().state), (3, WorkState::Idle));
    // A pause after a passing error is not cut short, and what is done already needs no run.
    end(worker.ask(Wish::default())).await;
    worker.rearm();
    moment().await;
    assert_eq!((job.runs(), worker.status().state), (4, WorkState::Waiting));
}

#[tokio::test(start_paused = true)]
async fn who_asks_during_a_run_joins_it_and_gets_what_was_asked_for() {
    let job = fake(0, vec![Ok(got(4, true)), Ok(got(5, true))]);
    let worker = Worker::spawn(job.clone(), None, false);
    let first = worker.ask(Wish::default());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(worker.status().state, WorkState::Transferring);
    let satisfied = worker.ask(to(4));
    let later = worker.ask(to(5));
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
    drop(worker.ask(to(5)));
    job.gate.add_permits(100);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(job.runs(), 2);
    assert_eq!(worker.status().last.map(|last| last.summary), Some(got(5, true)));
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_run_that_fails_gets_a_run_of_their_own() {
    let job = fake(0, vec![Err(trouble(true)), Err(trouble(true)), Err(trouble(false))]);
    let worker = Worker::spawn(job.clone(), None, false);
    let first = worker.ask(Wish::default());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = worker.ask(to(1));
    job.gate.add_permits(1);
    assert_eq!(end(first).await, PullState::Failed(trouble(true).refusal));
    assert!(matches!(*second.borrow(), PullState::Running(_)));
    job.gate.add_permits(1);
    assert_eq!(end(second).await, PullState::Failed(trouble(true).refusal));
    assert_eq!(job.runs(), 2);
    // Unless a person has to decide: that goes for all.
    let third = worker.ask(Wish::default());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let fourth = worker.ask(Wish::default());
    job.gate.add_permits(1);
    assert_eq!(end(third).await, PullState::Failed(trouble(false).refusal));
    assert_eq!(end(fourth).await, PullState::Failed(trouble(false).refusal));
    assert_eq!(job.runs(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_run_to_one_snapshot_is_for_those_who_asked_for_it() {
    let job = fake(0, vec![Ok(got(3, true)), Ok(got(9, true))]);
    let worker = Worker::spawn(job.clone(), None, false);
    let newest = worker.ask(Wish::default());
    let (three, two) = (worker.ask(exactly(3)), worker.ask(exactly(2)));
    job.gate.add_permits(1);
    // The one that is older goes first. Where a newer one is there, that will do.
    assert_eq!(end(two).await, PullState::Done(got(3, true)));
    assert_eq!(end(three).await, PullState::Done(got(3, true)));
    assert!(matches!(*newest.borrow(), PullState::Running(_)));
    job.gate.add_permits(1);
    assert_eq!(end(newest).await, PullState::Done(got(9, true)));
    assert_eq!(*job.exactly.lock().unwrap(), [Some(2), None]);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_by_number_is_tried_again_as_such_unless_it_is_not_there() {
    let gone = Trouble { refusal: Refusal::new(RefusalCode::Gone, "no such snapshot"), passing: true };
    let job = fake(1000, vec![Err(trouble(true)), Ok(got(3, true)), Err(gone.clone())]);
    let worker = Worker::spawn(job.clone(), None, false);
    assert_eq!(end(worker.ask(exactly(3))).await, PullState::Failed(trouble(true).refusal));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(*job.exactly.lock().unwrap(), [Some(3), Some(3)]);
    assert_eq!(end(worker.ask(exactly(7))).await, PullState::Failed(gone.refusal));
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(job.runs(), 3);
    assert_eq!((worker.status().state, worker.status().next), (WorkState::Idle, None));
}

#[tokio::test(start_paused = true)]
async fn a_delayed_run_begins_when_its_time_has_come_although_nobody_follows() {
    let job = fake(1000, vec![]);
    let worker = Worker::spawn(job.clone(), None, false);
    let delay = Some(Duration::from_secs(100));
    drop(worker.ask(Wish { delay, ..exactly(3) }));
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Somebody else is not kept waiting.
    assert_eq!(end(worker.ask(Wish::default())).await, PullState::Done(got(0, false)));
    let asked = worker.status().asked.unwrap();
    assert_eq!(asked.snapshot, Some(SnapshotNumber(3)));
    tokio::time::sleep(Duration::from_secs(98)).await;
    assert_eq!(*job.exactly.lock().unwrap(), [None]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(*job.exactly.lock().unwrap(), [None, Some(3)]);
    assert_eq!(worker.status().asked, None);
}
