//! Running a history on a store and on the model.

use std::{
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
};

use zumastor_core::{
    Changes, ExtentKind, HeadState, LEAF, LeafIndex, Lineage, NewSnapshot, SegmentIndex, SnapshotNumber,
    SnapshotReader, SnapshotStore, StoreError, UsageBySnapshot, is_zero, scrub,
};

use super::{
    Bytes, Damage, Op, Subject, deliver,
    model::{Kept, Model, Staged},
    ops::{Receive, Way},
    plan_for, repair,
};
use crate::Faults;

pub(super) fn run(subject: &mut dyn Subject, history: &[Op]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut run = Run {
        subject,
        model: Model::default(),
        store: None,
        lineage: Lineage::generate(),
        taken: 0,
        begun: None,
        readers: Vec::new(),
    };
    runtime.block_on(async {
        run.reopen(Faults::none());
        for op in history {
            run.step(op).await;
            run.verify(op).await;
        }
    });
}

struct Run<'a> {
    subject: &'a mut dyn Subject,
    model: Model,
    store: Option<Arc<dyn SnapshotStore>>,
    lineage: Lineage,
    /// How many numbers were given.
    taken: u64,
    /// The last transfer that was begun.
    begun: Option<Staged>,
    /// Readers of deleted snapshots, and what they should read.
    readers: Vec<(Arc<dyn SnapshotReader>, Bytes)>,
}

impl Run<'_> {
    fn store(&self) -> Arc<dyn SnapshotStore> {
        self.store.clone().expect("open")
    }

    fn reopen(&mut self, faults: Faults) {
        self.readers.clear();
        self.store = None;
        self.store = Some(self.subject.open(faults).expect("a store can be opened again"));
    }

    async fn step(&mut self, op: &Op) {
        match op {
            Op::Crash(step, op) => self.crash(*step, op).await,
            Op::Reopen => self.reopen(Faults::none()),
            op => {
                let mut model = self.model.clone();
                self.act(op, &mut model).await.unwrap_or_else(|error| panic!("{op:?}: {error}"));
                self.model = model;
            }
        }
    }

    /// Lets the operation stop at a step. What is there then must be the state before or the state after.
    async fn crash(&mut self, step: usize, op: &Op) {
        let passed = Arc::new(AtomicUsize::new(0));
        let stop = move |_: &'static str| passed.fetch_add(1, Ordering::Relaxed) == step;
        let faults = Faults::new(stop);
        let mut model = self.model.clone();
        self.readers.clear();
        self.store = None;
        let done = match self.subject.open(faults.clone()) {
            Ok(store) => {
                self.store = Some(store);
                self.act(op, &mut model).await
            }
            // Opening finishes what was left half done, which has steps too.
            Err(error) => Err(error),
        };
        assert!(done.is_ok() || faults.stopped(), "{op:?}: {}", done.expect_err("just seen"));
        let stopped = done.is_err();
        self.reopen(Faults::none());
        if let Op::Repair(_) = op {
            self.mend_all().await.unwrap_or_else(|error| panic!("after a crash in {op:?}: {error}"));
        }
        if !stopped {
            self.model = model;
            return;
        }
        // The staged content is not visible; whatever is left must be a plan that was made.
        let staged = self.store().staged().await.expect("lists what is staged");
        let plans = [self.model.staged.as_ref(), self.begun.as_ref()];
        let left = plans.into_iter().flatten().find(|s| Some(&s.plan) == staged.as_ref()).cloned();
        assert!(staged.is_none() || left.is_some(), "unknown plan staged after a crash in {op:?}");
        let numbers: Vec<_> = self.numbers().await;
        let head = self.subject.read_head();
        let fits = |m: &Model| m.snapshots.keys().copied().eq(numbers.iter().copied()) && m.head.0 == head;
        if fits(&model) {
            self.model = model;
        } else {
            assert!(
                fits(&self.model),
                "after a crash in {op:?}: neither the old state nor the new: {numbers:?}"
            );
        }
        self.model.staged = left;
    }

    /// A size that the volume can have.
    fn size(&self, wanted: u64) -> u64 {
        let unit = self.subject.unit();
        if unit == 1 { wanted } else { wanted.next_multiple_of(unit).max(unit) }
    }

    async fn numbers(&self) -> Vec<SnapshotNumber> {
        let records = self.store().snapshots().await.expect("lists snapshots");
        records.iter().map(|record| record.number()).collect()
    }

    async fn act(&mut self, op: &Op, model: &mut Model) -> Result<(), StoreError> {
        if let Op::Receive(receive) = op {
            return self.receive(receive, model).await;
        }
        let store = self.store();
        match op {
            Op::Write(write) => {
                let range = model.head.cut(write);
                if write.2 == 0 {
                    self.subject.punch_head(range.start as u64..range.end as u64);
                } else {
                    self.subject.write_head(range.start as u64, &vec![write.2; range.len()]);
                }
                model.head.write(write);
            }
            Op::Snapshot => {
                let new = NewSnapshot::manual(SnapshotNumber(self.taken), self.lineage);
                self.taken += 1;
                model.snapshots.insert(new.number, Kept { new: new.clone(), content: model.head.clone() });
                let record = store.create_snapshot(new.clone()).await?;
                assert_eq!((&record.new, record.size), (&new, model.head.0.len() as u64));
                let again = store.create_snapshot(new).await;
                assert!(matches!(again, Err(StoreError::Exists { .. })), "a number was given twice");
            }
            Op::Delete(pick) | Op::DeleteWhileRead(pick) => {
                let Some(number) = model.pick(*pick) else { return Ok(()) };
                let reader = store.open_snapshot(number).await?;
                let kept = model.snapshots.remove(&number).expect("picked");
                let before = store.usage_by_snapshot().await?;
                if matches!(op, Op::DeleteWhileRead(_)) {
                    self.readers.push((reader, kept.content));
                } else {
                    drop(reader);
                }
                store.delete_snapshot(number).await?;
                let read = matches!(op, Op::DeleteWhileRead(_));
                check_freed(number, before, store.usage_by_snapshot().await?, store.geometry()?.chunk, read);
                assert!(matches!(store.delete_snapshot(number).await, Err(StoreError::NotFound { .. })));
                assert!(matches!(store.open_snapshot(number).await, Err(StoreError::NotFound { .. })));
            }
            Op::Revert(pick) => {
                let Some(number) = model.pick(*pick) else { return Ok(()) };
                model.head = model.snapshots[&number].content.clone();
                store.revert(number).await?;
                assert_eq!(store.head().await?, HeadState::Shows(number));
            }
            Op::Resize(size) => {
                let size = self.size(*size);
                model.head.0.resize(size as usize, 0);
                store.resize(size).await?;
            }
            Op::Discard => {
                model.staged = None;
                store.discard_staged().await?;
                assert_eq!(store.staged().await?, None);
            }
            Op::Repair(damage) => self.damage(damage, model).await?,
            Op::Reopen | Op::Crash(..) | Op::Receive(_) => {}
        }
        Ok(())
    }

    async fn receive(&mut self, receive: &Receive, model: &mut Model) -> Result<(), StoreError> {
        let base = receive.base.and_then(|pick| model.pick(pick));
        let start = base.map_or_else(Bytes::default, |base| model.snapshots[&base].content.clone());
        let mut target = start.clone();
        let size = if receive.size == 0 && base.is_some() {
            start.0.len()
        } else {
            self.size(receive.size) as usize
        };
        target.0.resize(size, 0);
        receive.writes.iter().for_each(|write| target.write(write));
        let plan = plan_for(SnapshotNumber(self.taken), self.lineage, base, &target);
        self.taken += 1;
        let mut staged = Staged { plan, base: start, target };
        if let Some(other) = model.staged.clone() {
            // Something was begun earlier: it is in the way, and it is what can be finished.
            let busy = self.store().stage(staged.plan.clone()).await;
            assert!(matches!(busy, Err(StoreError::StagingBusy { .. })), "two transfers into one volume");
            staged = other;
        }
        self.begun = Some(staged.clone());
        model.staged = Some(staged.clone());
        let Staged { plan, base, target } = staged;
        let (size, number) = (target.0.len() as u64, plan.record.number());
        let mut staging = self.store().stage(plan.clone()).await?;
        assert_eq!(staging.plan(), &plan);
        if receive.way != Way::Whole {
            let leaves = deliver(&*staging, &base, &target, 0..size / 2)?;
            staging.checkpoint(&leaves, &[])?;
        }
        if matches!(receive.way, Way::Resumed | Way::Broken) {
            drop(staging);
            self.reopen_between();
            if receive.way == Way::Broken {
                return Ok(());
            }
            staging = self.store().stage(plan.clone()).await?;
        }
        let leaves = deliver(&*staging, &base, &target, 0..size)?;
        let mut content = vec![0xEE; size as usize];
        staging.read_at(0, &mut content)?;
        assert!(content == target.0, "what is staged is not what was written");
        let segments: Vec<_> = (0..SegmentIndex::count(size)).map(SegmentIndex).collect();
        staging.checkpoint(&leaves, &segments)?;
        if receive.way == Way::WrongDigest {
            let wrong = Bytes(vec![1; 100]).digest();
            let refused = staging.commit(wrong);
            assert!(
                matches!(refused, Err(StoreError::DigestMismatch { found, .. }) if found == target.digest())
                    || refused.as_ref().is_err_and(|e| matches!(e, StoreError::Io { .. })),
                "a wrong digest: {refused:?}"
            );
            if let Err(error @ StoreError::Io { .. }) = refused {
                return Err(error);
            }
            staging = self.store().stage(plan.clone()).await?;
            assert_eq!(staging.finished(), segments);
        }
        model.staged = None;
        let content = target.clone();
        model.snapshots.insert(number, Kept { new: plan.record.new.clone(), content });
        let record = staging.commit(target.digest())?;
        assert_eq!(record, plan.record);
        Ok(())
    }

    /// Lets the medium damage a snapshot, looks whether that is found, and puts it right.
    async fn damage(&mut self, damage: &Damage, model: &mut Model) -> Result<(), StoreError> {
        let Some(number) = model.pick(damage.pick) else { return Ok(()) };
        let store = self.store();
        let content = model.snapshots[&number].content.clone();
        let cut = content.cut(&damage.write);
        // Each leaf for itself: what was written at once need not lie together.
        let shown = store.head().await? == HeadState::Shows(number);
        let (mut hit, size) = (Vec::new(), content.0.len() as u64);
        for leaf in (cut.start as u64 / LEAF..LeafIndex::count(cut.end as u64)).filter(|_| !cut.is_empty()) {
            let range = LeafIndex(leaf).range(size);
            let good = &content.0[range.start as usize..range.end as usize];
            let mut bad = good.to_vec();
            let at = (cut.start as u64).max(range.start)..(cut.end as u64).min(range.end);
            bad[(at.start - range.start) as usize..(at.end - range.start) as usize]
                .iter_mut()
                .for_each(|b| *b ^= 0x55);
            // Nothing lies where zeros are.
            if !is_zero(good) && self.subject.damage(number, range.start, good, &bad, damage.head && shown) {
                hit.push(range);
            }
        }
        if let Some(at) = damage.tree {
            self.subject.damage_tree(number, at);
        }
        let findings = repair::scan(&*store, number).await?;
        assert_eq!(findings.is_content_good(), hit.is_empty(), "{findings:?}");
        if findings.unknown().is_empty() && findings.knows_nodes() {
            assert_eq!(findings.bad(), scrub::join(hit), "{findings:?}");
        }
        self.mend_all().await?;
        // What was being received upon what was bad may have been given up.
        if store.staged().await?.is_none() {
            model.staged = None;
        }
        Ok(())
    }

    /// Puts all right that is not.
    async fn mend_all(&mut self) -> Result<(), StoreError> {
        for (number, kept) in &self.model.snapshots {
            match repair::mend(&*self.store(), *number, &kept.content).await {
                // A store may have no way to.
                Err(StoreError::Unsupported(_)) if !self.subject.durable() => {}
                mended => drop(mended?),
            }
        }
        Ok(())
    }

    /// Opens the store anew in the middle of a transfer, where what is staged survives that.
    fn reopen_between(&mut self) {
        if self.subject.durable() {
            self.reopen(Faults::none());
        }
    }

    /// Compares everything that can be seen with the model.
    async fn verify(&mut self, op: &Op) {
        let store = self.store();
        let head = self.subject.read_head();
        assert!(head == self.model.head.0, "the head after {op:?}");
        assert_eq!(store.geometry().expect("has a geometry").size, head.len() as u64);
        match store.head().await.expect("looks at the head") {
            HeadState::Empty => assert!(is_zero(&head), "a head with data is called empty after {op:?}"),
            HeadState::Shows(number) => {
                let kept = self.model.snapshots.get(&number).expect("a head shows a snapshot that exists");
                assert!(kept.content.0 == head, "the head does not show {number} after {op:?}");
            }
            HeadState::Written => {}
        }
        let staged = store.staged().await.expect("looks at what is staged");
        assert_eq!(staged.as_ref(), self.model.staged.as_ref().map(|staged| &staged.plan), "after {op:?}");
        let records = store.snapshots().await.expect("lists snapshots");
        let expected: Vec<_> =
            self.model.snapshots.values().map(|kept| (&kept.new, kept.content.0.len() as u64)).collect();
        let found: Vec<_> = records.iter().map(|record| (&record.new, record.size)).collect();
        assert_eq!(found, expected, "after {op:?}");
        for (number, kept) in &self.model.snapshots {
            let reader = store.open_snapshot(*number).await.expect("opens");
            assert!(kept.content == *reader, "snapshot {number} after {op:?}");
            let size = kept.content.0.len() as u64;
            let beyond = reader.read_at(size, &mut [0]);
            assert!(matches!(beyond, Err(StoreError::OutOfBounds { .. })), "read beyond the end");
            let tree = store.leaves(*number).await.expect("has leaves");
            assert_eq!(tree.digest(), Some(kept.content.digest()), "the digest of {number} after {op:?}");
            assert_eq!(
                tree.root().expect("has a root"),
                kept.content.digest(),
                "the leaves of {number} after {op:?}"
            );
        }
        for (reader, content) in &self.readers {
            assert!(*content == **reader, "a reader of a deleted snapshot after {op:?}");
        }
        if let Some(usage) = store.usage_by_snapshot().await.expect("looks at what snapshots take") {
            let numbers: Vec<_> = usage.snapshots.iter().map(|usage| usage.number).collect();
            assert!(numbers.iter().eq(self.model.snapshots.keys()), "usage of {numbers:?} after {op:?}");
            let sane = usage.snapshots.iter().all(|usage| usage.exclusive <= usage.referenced);
            let own: u64 = usage.snapshots.iter().map(|usage| usage.exclusive).sum();
            assert!(sane && own <= usage.all, "{usage:?} after {op:?}");
        }
        self.verify_changes(&*store, op).await;
    }

    async fn verify_changes(&self, store: &dyn SnapshotStore, op: &Op) {
        let nothing = Bytes::default();
        let bases = self.model.snapshots.iter().map(|(n, kept)| (Some(*n), &kept.content));
        for (base, old) in bases.chain([(None, &nothing)]) {
            for (target, kept) in &self.model.snapshots {
                let new = &kept.content.0;
                let size = new.len() as u64;
                for window in [0..u64::MAX, size / 3..size / 3 * 2 + 1] {
                    let changes = store.changes(base, *target, window.clone()).await.expect("lists changes");
                    let context = || format!("{base:?} to {target} in {window:?} after {op:?}");
                    check_changes(&changes, &old.0, new, window.start..window.end.min(size), &context);
                }
            }
        }
    }
}

/// Deleting a snapshot frees about what it had to itself, and nobody has less to themselves than before. What is still read
/// may keep its space until it is not.
fn check_freed(
    number: SnapshotNumber,
    before: Option<UsageBySnapshot>,
    after: Option<UsageBySnapshot>,
    chunk: u64,
    read: bool,
) {
    let (Some(before), Some(after)) = (before, after) else { return };
    let context = || format!("deleting {number}: {before:?}, then {after:?}");
    let own = |usage: &UsageBySnapshot, number| {
        let found = usage.snapshots.iter().find(|usage| usage.number == number);
        found.map(|usage| usage.exclusive)
    };
    let freed = own(&before, number).unwrap_or_else(|| panic!("not counted: {}", context()));
    assert_eq!(own(&after, number), None, "{}", context());
    // Not to the byte: what was shared may have been written anew in larger pieces, or moved.
    let slack = SLACK_CHUNKS * chunk + freed / 4;
    let most = before.all - if read { 0 } else { freed };
    assert!(after.all + slack >= before.all - freed && after.all <= most + slack, "{}", context());
    for usage in &after.snapshots {
        let least = own(&before, usage.number).unwrap_or(0).saturating_sub(slack);
        assert!(usage.exclusive >= least, "{}", context());
    }
}

/// By so many chunks usage may be wrong.
const SLACK_CHUNKS: u64 = 2;

fn check_changes(
    changes: &Changes,
    old: &[u8],
    new: &[u8],
    window: std::ops::Range<u64>,
    context: &dyn Fn() -> String,
) {
    let mut covered = vec![false; new.len()];
    for extent in changes {
        let (start, end) = (extent.range.start, extent.range.end);
        assert!(window.start <= start && start < end && end <= window.end, "{extent:?}: {}", context());
        let range = start as usize..end as usize;
        assert!(
            extent.kind != ExtentKind::Zero || is_zero(&new[range.clone()]),
            "{extent:?} is not zero: {}",
            context()
        );
        covered[range].fill(true);
    }
    let end = (window.end as usize).min(new.len());
    let mut start = window.start as usize;
    while start < end {
        let block = start..(start + 1024).min(end);
        start = block.end;
        if old.get(block.clone()).is_some_and(|old| *old == new[block.clone()]) {
            continue;
        }
        for position in block {
            let same = old.get(position).copied().unwrap_or(0) == new[position];
            assert!(same || covered[position], "byte {position} differs and is not listed: {}", context());
        }
    }
}
