//! `scrub`: reads snapshots against their digests, and fetches what is bad from whoever else has it.

use std::{
    ops::Range,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use zumastor_core::{
    HeadRepair, NodeName, SnapshotNumber, SnapshotRecord, SnapshotStore, StoreError, VolumeName,
    scrub::{Findings, Scan, Watch},
};
use zumastor_net::{Mending, Patience, Phase, Progress, PullError, Reporter, mend};

use super::{Daemon, holds::blocking, snapshots::no_snapshot, volume::Volume};
use crate::{
    api::{Outcome, RANGES_TOLD, Role, Scrub, ScrubEvent, ScrubReport, ScrubResult, left},
    exit::{Failure, chain},
};

/// Pause between two reports of progress.
const REPORT: Duration = Duration::from_millis(200);
/// Events that wait for somebody who follows slowly; he misses those that come then.
const QUEUE: usize = 1024;

/// A volume's scrub, as the rest of the daemon sees it. Dropping it stops the task.
#[derive(Debug, Default)]
pub struct Scrubber(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    task: JoinHandle<()>,
    progress: watch::Receiver<Progress>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scrubber {
    /// How far it is, if it runs.
    pub fn progress(&self) -> Option<Progress> {
        let running = self.0.lock().expect("no panic while locked");
        running
            .as_ref()
            .filter(|running| !running.task.is_finished())
            .map(|running| *running.progress.borrow())
    }

    /// Ends the task and waits for its end.
    pub async fn stop(&self) {
        let running = self.0.lock().expect("no panic while locked").take();
        if let Some(mut running) = running {
            running.task.abort();
            // Cancelled, which is what is wanted.
            let _ = (&mut running.task).await;
        }
    }
}

/// Ends the threads of a scan that nobody waits for any more.
struct StopOnDrop(Arc<Watch>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Daemon {
    /// Begins to scrub, and gives what it takes to follow it. It goes on if nobody does.
    pub async fn scrub(
        self: &Arc<Self>,
        name: &VolumeName,
        asked: &Scrub,
    ) -> Result<(Outcome, mpsc::Receiver<ScrubEvent>), Failure> {
        let volume = self.volume(name)?;
        if asked.all && asked.snapshot.is_some() {
            return Err(Failure::usage("name one snapshot, or ask for all of them"));
        }
        let snapshots = volume.store().await?.snapshots().await?;
        let chosen: Vec<SnapshotNumber> = match asked.snapshot {
            Some(number) if snapshots.iter().any(|record| record.number() == number) => vec![number],
            Some(number) => return Err(no_snapshot(name, number)),
            None => {
                let all = snapshots.iter().rev().map(SnapshotRecord::number);
                let (own, numbered): (Vec<_>, Vec<_>) = all.partition(|number| number.is_local());
                let newest_first = numbered.into_iter().chain(own);
                if asked.all { newest_first.collect() } else { newest_first.take(1).collect() }
            }
        };
        if chosen.is_empty() {
            return Err(Failure::failed(format!("volume {name} has no snapshot yet"))
                .remedy("there is nothing to scrub before the first has been taken or received"));
        }
        let (events, followed) = mpsc::channel(QUEUE);
        let reporter = Reporter::new();
        let mut running = volume.scrubber.0.lock().expect("no panic while locked");
        if running.as_ref().is_some_and(|running| !running.task.is_finished()) {
            return Err(Failure::failed(format!("volume {name} is being scrubbed already"))
                .remedy(format!("`zumastor status {name}` shows how far it is")));
        }
        let what = match &chosen[..] {
            [number] => format!("snapshot {number} of volume {name}"),
            all => format!("{} snapshots of volume {name}", all.len()),
        };
        let progress = reporter.subscribe();
        let (daemon, owned, keep) = (self.clone(), volume.clone(), asked.keep);
        let task =
            tokio::spawn(async move { daemon.scrub_all(&owned, chosen, keep, &reporter, events).await });
        *running = Some(Running { task, progress });
        Ok((Outcome::changed(format!("{what}: being read against the digest")), followed))
    }

    async fn scrub_all(
        &self,
        volume: &Arc<Volume>,
        chosen: Vec<SnapshotNumber>,
        keep: bool,
        reporter: &Reporter,
        events: mpsc::Sender<ScrubEvent>,
    ) {
        let (name, mut damaged, mut repaired) = (&volume.name, Vec::new(), 0);
        for number in &chosen {
            let scrubbed = {
                let mut scrub = std::pin::pin!(self.scrub_one(volume, *number, keep, reporter));
                loop {
                    match tokio::time::timeout(REPORT, &mut scrub).await {
                        Ok(done) => break done,
                        Err(_) => drop(events.try_send(ScrubEvent::Progress(reporter.current()))),
                    }
                }
            };
            match scrubbed {
                Ok(report) => {
                    if report.result == ScrubResult::Damaged {
                        tracing::error!(volume = %name, snapshot = %number, left = report.left, "a snapshot is damaged");
                        damaged.push(report.clone());
                    }
                    repaired += usize::from(report.result == ScrubResult::Repaired);
                    let _ = events.try_send(ScrubEvent::Snapshot(report));
                }
                // It was deleted meanwhile, which is no damage.
                Err(_) if chosen.len() > 1 && self.is_gone(volume, *number).await => {}
                Err(failure) => return drop(events.try_send(ScrubEvent::Failed(failure))),
            }
        }
        let last = match damaged.is_empty() {
            true if repaired == 0 => ScrubEvent::Done(Outcome::already("all is as it was")),
            true => ScrubEvent::Done(Outcome::changed("all is as it was again")),
            false => ScrubEvent::Failed(damage(name, &damaged)),
        };
        let _ = events.try_send(last);
    }

    async fn is_gone(&self, volume: &Volume, number: SnapshotNumber) -> bool {
        let Ok(store) = volume.store().await else { return false };
        store.snapshots().await.is_ok_and(|all| all.iter().all(|record| record.number() != number))
    }

    /// Reads one snapshot and, unless it is only to be looked at, puts right what is bad.
    async fn scrub_one(
        &self,
        volume: &Arc<Volume>,
        number: SnapshotNumber,
        keep: bool,
        reporter: &Reporter,
    ) -> Result<ScrubReport, Failure> {
        let store = volume.store().await?;
        reporter.set(Progress { number: Some(number), ..Progress::default() });
        let mut work = Work::new(self, volume, store.clone(), number).await?;
        if let Some(scan) = work.scan().await? {
            let mut findings = work.look(&scan, None, reporter).await?;
            work.found(&findings);
            if !findings.is_clean() && !keep {
                work.repair(scan, &mut findings, reporter).await?;
            } else if !keep && self.head_was_left(volume, &work.record).await? {
                // An earlier repair could not put the volume itself right.
                let repair = store.repair(number, Vec::new(), true).await?;
                work.head(run(move || repair.finish(false)).await?);
            }
            work.left(&findings);
        }
        let report = work.report(self, keep);
        let there = store.snapshots().await?;
        let Some(record) = there.iter().find(|record| record.guid() == work.record.guid()) else {
            return Err(no_snapshot(&volume.name, number));
        };
        let (guid, there) = (record.guid(), there.iter().map(SnapshotRecord::guid).collect::<Vec<_>>());
        let (state, owned, noted) = (self.state.clone(), volume.name.clone(), report.clone());
        blocking(move || state.note_scrub(&owned, guid, &noted, &there)).await?;
        tracing::info!(volume = %volume.name, snapshot = %number, result = ?report.result, bad = report.bad, "scrubbed");
        Ok(report)
    }

    async fn head_was_left(&self, volume: &Volume, record: &SnapshotRecord) -> Result<bool, Failure> {
        let before = self.last_scrub(&volume.name, record).await?;
        Ok(volume.role() == Role::Replica && before.is_some_and(|report| report.head.is_some()))
    }

    /// What came of the last scrub of a snapshot.
    pub async fn last_scrub(
        &self,
        name: &VolumeName,
        record: &SnapshotRecord,
    ) -> Result<Option<ScrubReport>, Failure> {
        let (state, name, guid) = (self.state.clone(), name.clone(), record.guid());
        let all = blocking(move || state.scrubs(&name)).await?;
        let found = all.into_iter().find(|(of, _)| *of == guid);
        Ok(found.map(|(_, report)| ScrubReport { number: record.number(), ..report }))
    }
}

/// One snapshot on its way through a scrub.
struct Work<'a> {
    daemon: &'a Daemon,
    volume: &'a Arc<Volume>,
    store: Arc<dyn SnapshotStore>,
    record: SnapshotRecord,
    bad: Vec<Range<u64>>,
    left: Vec<Range<u64>>,
    tree: bool,
    whole: bool,
    from: Vec<NodeName>,
    head: Option<String>,
    troubles: Vec<String>,
}

impl<'a> Work<'a> {
    async fn new(
        daemon: &'a Daemon,
        volume: &'a Arc<Volume>,
        store: Arc<dyn SnapshotStore>,
        number: SnapshotNumber,
    ) -> Result<Self, Failure> {
        let record = store.snapshots().await?.into_iter().find(|record| record.number() == number);
        let record = record.ok_or_else(|| no_snapshot(&volume.name, number))?;
        Ok(Self {
            daemon,
            volume,
            store,
            record,
            bad: Vec::new(),
            left: Vec::new(),
            tree: false,
            whole: true,
            from: Vec::new(),
            head: None,
            troubles: Vec::new(),
        })
    }

    /// What is to be read; nothing if it cannot be.
    async fn scan(&mut self) -> Result<Option<Scan>, Failure> {
        let number = self.record.number();
        let tree = match self.store.leaves(number).await {
            Ok(tree) => Some(tree),
            Err(StoreError::Damaged { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let digest = self.record.digest.or_else(|| tree.as_ref().and_then(|tree| tree.digest()));
        let reader = match self.store.open_snapshot(number).await {
            Ok(reader) => reader,
            Err(error @ StoreError::Damaged { .. }) => {
                self.unreadable(chain(&error));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        match digest {
            Some(digest) => Ok(Some(Scan { reader, tree, digest })),
            None => {
                self.unreadable("its digest is lost, and its leaf tree cannot be made".to_owned());
                Ok(None)
            }
        }
    }

    /// Nothing of it can be had.
    fn unreadable(&mut self, why: String) {
        let all = 0..self.record.size;
        (self.bad, self.left) = (vec![all.clone()], vec![all]);
        self.whole = false;
        self.troubles.push(why);
    }

    /// Reads all of it, or again what was suspect.
    async fn look(
        &self,
        scan: &Scan,
        again: Option<&Findings>,
        reporter: &Reporter,
    ) -> Result<Findings, Failure> {
        let watch = Arc::new(Watch::default());
        let _stop = StopOnDrop(watch.clone());
        let total = if again.is_none() { self.record.size } else { 0 };
        let number = Some(self.record.number());
        let begun = Progress { phase: Phase::Verifying, number, total, ..Progress::default() };
        reporter.set(begun);
        let (scan, again, watched) = (scan.clone(), again.cloned(), watch.clone());
        let look = move || match again {
            None => scan.run(&watched),
            Some(mut findings) => scan.again(&mut findings, &watched).map(|()| findings),
        };
        let mut task = tokio::task::spawn_blocking(look);
        loop {
            match tokio::time::timeout(REPORT, &mut task).await {
                Ok(done) => return Ok(done.expect("scans do not panic")?),
                Err(_) => reporter.set(Progress { done: watch.done.load(Ordering::Relaxed), ..begun }),
            }
        }
    }

    fn found(&mut self, findings: &Findings) {
        (self.bad, self.tree) = (findings.bad(), findings.is_tree_damaged());
    }

    fn left(&mut self, findings: &Findings) {
        self.left = findings.bad();
        self.whole = findings.is_clean();
    }

    fn head(&mut self, head: HeadRepair) {
        match head {
            HeadRepair::Untouched => {}
            HeadRepair::Repaired => self.head = None,
            HeadRepair::Left(why) => self.head = Some(why),
        }
    }

    /// Puts right what can be without anybody, then asks one peer after the other.
    async fn repair(
        &mut self,
        mut scan: Scan,
        findings: &mut Findings,
        reporter: &Reporter,
    ) -> Result<(), Failure> {
        let config = self.volume.config();
        let here = || self.volume.name.to_string();
        let source = config.source.iter().map(|source| (source.host.clone(), source.name.clone()));
        let targets = config.target.iter().map(|(host, target)| (host.clone(), target.name.clone()));
        let peers = source.chain(targets).map(|(host, name)| Some((host, name.unwrap_or_else(here))));
        for peer in std::iter::once(None).chain(peers) {
            if findings.is_clean() {
                break;
            }
            let link = match &peer {
                None => None,
                Some((host, _)) => match self.daemon.node().link(host).await {
                    Ok(link) => Some(link),
                    Err(error) => {
                        self.troubles.push(format!("{host}: {}", chain(&error)));
                        continue;
                    }
                },
            };
            let (host, remote) = peer.clone().map_or((None, here()), |(host, name)| (Some(host), name));
            let mended = mend(
                &Mending {
                    link: link.as_deref(),
                    volume: &remote,
                    store: &self.store,
                    record: &self.record,
                    head: self.volume.role() == Role::Replica,
                    patience: &Patience::default(),
                    reporter,
                },
                &scan,
                findings,
            )
            .await;
            let mut trouble = |error: &PullError| {
                if let Some(host) = &host {
                    self.troubles.push(format!("{host}: {}", chain(error)));
                }
            };
            match mended {
                Ok(mended) => {
                    mended.failed.iter().for_each(&mut trouble);
                    if mended.leaves > 0 {
                        self.from.extend(host);
                    }
                    self.head(mended.head);
                }
                Err(PullError::Store(error)) => {
                    let text = chain(&error);
                    match error {
                        // Another peer would not help.
                        StoreError::NoSpace { .. } | StoreError::Unsupported(_) => {
                            self.troubles.push(text);
                            return Ok(());
                        }
                        StoreError::Damaged { .. } | StoreError::Io { .. } => self.troubles.push(text),
                        error => return Err(error.into()),
                    }
                }
                Err(error) => trouble(&error),
            }
            let Some(fresh) = self.scan().await? else { return Ok(()) };
            scan = fresh;
            *findings = self.look(&scan, Some(findings), reporter).await?;
        }
        // A tree that was damaged along with what it says is made anew when that is right again.
        if findings.is_content_good() && !findings.is_clean() {
            let repair = self.store.repair(self.record.number(), Vec::new(), false).await?;
            run(move || repair.finish(true)).await?;
            if let Some(fresh) = self.scan().await? {
                *findings = self.look(&fresh, Some(findings), reporter).await?;
            }
        }
        Ok(())
    }

    fn report(&self, daemon: &Daemon, keep: bool) -> ScrubReport {
        let Self { bad, left, tree, whole, from, head, record, troubles, .. } = self;
        let (some, size) =
            (!bad.is_empty() || *tree, |all: &[Range<u64>]| all.iter().map(|r| r.end - r.start).sum());
        let result = match (some || !whole, left.is_empty() && *whole && !(keep && some)) {
            (false, _) => ScrubResult::Clean,
            (true, true) => ScrubResult::Repaired,
            (true, false) => ScrubResult::Damaged,
        };
        let told = |all: &[Range<u64>]| all.iter().take(RANGES_TOLD).cloned().collect();
        ScrubReport {
            number: record.number(),
            at: daemon.now(),
            result,
            size: record.size,
            bad: size(bad),
            ranges: told(bad),
            left: size(left),
            left_ranges: told(left),
            tree: *tree,
            from: from.clone(),
            head: head.clone(),
            troubles: if result == ScrubResult::Damaged { troubles.clone() } else { Vec::new() },
        }
    }
}

/// What is bad still, and what to do about it.
fn damage(name: &VolumeName, damaged: &[ScrubReport]) -> Failure {
    let each = damaged
        .iter()
        .map(|report| format!("snapshot {} of volume {name} is damaged: {}", report.number, left(report)));
    let mut troubles: Vec<_> = damaged.iter().flat_map(|report| &report.troubles).cloned().collect();
    troubles.dedup();
    let number = damaged[0].number;
    let again = format!(
        "`zumastor scrub {name} {number}` repairs it from a node that has the same snapshot, once that can be reached; or \
         `zumastor delete {name} {number}`, if another snapshot will do"
    );
    let failure = Failure::failed(each.collect::<Vec<_>>().join("; "));
    failure.remedy(if troubles.is_empty() { again } else { format!("{}. {again}", troubles.join("; ")) })
}

async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.expect("stores do not panic")
}
