//! Random lives of a master and its replica: whatever happens, the replica is one complete snapshot.

use std::sync::Arc;

use proptest::prelude::*;
use zumastor_core::{HeadState, SnapshotNumber, SnapshotStore};
use zumastor_net::PullError;

use crate::harness::{Downstream, Pipes, Upstream, noise};

#[derive(Debug, Clone)]
enum Step {
    Write {
        at: f64,
        length: usize,
        seed: u64,
    },
    Zero {
        at: f64,
        length: usize,
    },
    Resize(u64),
    Snapshot,
    /// Deletes a snapshot that is not held.
    Delete(usize),
    /// Pulls, over a connection that may break after so many bytes.
    Pull(Option<i64>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0.0..1.0f64, 1usize..200_000, any::<u64>()).prop_map(|(at, length, seed)| Step::Write { at, length, seed }),
        1 => (0.0..1.0f64, 1usize..300_000).prop_map(|(at, length)| Step::Zero { at, length }),
        1 => (0u64..900_000).prop_map(Step::Resize),
        3 => Just(Step::Snapshot),
        1 => any::<usize>().prop_map(Step::Delete),
        3 => proptest::option::of(0i64..600_000).prop_map(Step::Pull),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn a_replica_is_always_one_complete_snapshot(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(live(steps));
    }
}

async fn live(steps: Vec<Step>) {
    let upstream = Arc::new(Upstream::new(500_000));
    let downstream = Downstream::new();
    let mut next = 0;
    for step in steps {
        let size = upstream.store.geometry().unwrap().size;
        let place = |at: f64, length: usize| {
            let start = (at * size as f64) as u64;
            (start, length.min((size - start) as usize))
        };
        match step {
            Step::Write { at, length, seed } => {
                let (start, length) = place(at, length);
                upstream.store.write_head(start, &noise(length, seed));
            }
            Step::Zero { at, length } => {
                let (start, length) = place(at, length);
                upstream.store.write_head(start, &vec![0; length]);
            }
            Step::Resize(size) => upstream.store.resize(size).await.unwrap(),
            Step::Snapshot => {
                upstream.snapshot(next).await;
                next += 1;
            }
            Step::Delete(which) => {
                let held = upstream.holds.last().map_or([None, None], |(base, target)| [base, target]);
                let snapshots = upstream.store.snapshots().await.unwrap();
                let free: Vec<_> = snapshots.iter().filter(|r| !held.contains(&Some(r.number().0))).collect();
                // The newest number must not be given twice, so the newest stays.
                if free.len() > 1 {
                    upstream.store.delete_snapshot(free[which % (free.len() - 1)].number()).await.unwrap();
                }
            }
            Step::Pull(budget) => pull(&upstream, &downstream, budget).await,
        }
        check(&upstream, &downstream).await;
    }
    pull(&upstream, &downstream, None).await;
    pull(&upstream, &downstream, None).await;
    if let Some(newest) = upstream.store.snapshots().await.unwrap().last() {
        downstream.assert_shows(&upstream, newest.number().0).await;
    }
}

async fn pull(upstream: &Arc<Upstream>, downstream: &Downstream, budget: Option<i64>) {
    let link = budget.map_or_else(|| Pipes::to(upstream), |budget| Pipes::breaking_after(upstream, budget));
    match downstream.pull(&link).await {
        Ok(_) => {}
        Err(PullError::Link(_) | PullError::Frame(_)) if budget.is_some() => {}
        Err(error) => panic!("{error}"),
    }
}

/// The head is exactly the newest snapshot here, and every snapshot has the digest it was sent with.
async fn check(upstream: &Upstream, downstream: &Downstream) {
    let snapshots = downstream.store.snapshots().await.unwrap();
    let Some(newest) = snapshots.last() else {
        assert_eq!(downstream.store.head().await.unwrap(), HeadState::Empty);
        return;
    };
    assert_eq!(downstream.store.head().await.unwrap(), HeadState::Shows(newest.number()));
    let ours: Vec<SnapshotNumber> = snapshots.iter().map(|record| record.number()).collect();
    for record in upstream.store.snapshots().await.unwrap() {
        if ours.contains(&record.number()) {
            let theirs = upstream.store.leaves(record.number()).await.unwrap();
            let here = downstream.store.leaves(record.number()).await.unwrap();
            assert_eq!(here.digest(), theirs.digest(), "snapshot {}", record.number());
        }
    }
    // The newest snapshot that both have is held on both sides.
    if let (Some((Some(held), _)), Some((Some(here), _))) = (upstream.holds.last(), downstream.holds.last()) {
        assert!(ours.contains(&SnapshotNumber(here)));
        assert!(held <= here, "the upstream holds {held}, but the newest common snapshot is {here}");
        let theirs = upstream.store.snapshots().await.unwrap();
        assert!(theirs.iter().any(|record| record.number().0 == held), "the base was deleted");
    }
}
