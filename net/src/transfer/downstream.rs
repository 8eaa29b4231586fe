//! The end that receives: it drives the transfer, because it alone knows what it has.

use std::{
    collections::HashSet,
    fmt, io,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use tokio::time;
use zumastor_core::{
    HeadState, HumanBytes, LEAF, Lineage, NewSnapshot, SEGMENT, SegmentIndex, SnapshotNumber, SnapshotRecord,
    SnapshotStore, StagePlan, StoreError, VolumeName,
    digest::{Digest, LeafTree},
};

use super::{
    Patience,
    checkpoints::{PAUSE, Unrecorded},
    era::{self, Epochs, ForgetfulEpochs},
    fetch::{BATCHES, Find, Job, Writers, ask},
    upstream::describe,
    verify,
};
use crate::{
    buffers::Buffers,
    frame::{self, FrameError},
    host::{Holds, Link, MakeRoom},
    progress::{Phase, Progress, PullSummary, Reporter},
    room::MOST_STREAMS,
    wire::{
        ChangedSegment, Committed, CommittedReply, MAX_CONTROL, MAX_HAVE, MAX_SHORT, MAX_VOLUME, Plan,
        Refusal, RefusalCode, Request, Want, WantReply,
    },
};

/// A volume that is received here.
#[derive(Clone)]
pub struct Replica {
    /// Where it is kept.
    pub store: Arc<dyn SnapshotStore>,
    /// Its holds for the upstream.
    pub holds: Arc<dyn Holds>,
    /// Its name at the upstream.
    pub volume: String,
    /// Streams to fetch over.
    pub streams: usize,
    /// The time between two checkpoints, which make durable what has arrived: not much more than twice of it is what a crash costs.
    pub pause: Duration,
    /// The snapshot to receive, unless a more recent one is here already; without it, the newest there is for this node.
    pub wanted: Option<SnapshotNumber>,
    /// The epoch of what is here.
    pub epochs: Arc<dyn Epochs>,
    /// Makes room before anything comes in, if anybody does.
    pub room: Option<Arc<dyn MakeRoom>>,
}

impl Replica {
    /// A replica that is fetched over as many streams as are of use and made durable every quarter of a second.
    pub fn new(store: Arc<dyn SnapshotStore>, holds: Arc<dyn Holds>, volume: impl Into<String>) -> Self {
        let epochs = Arc::new(ForgetfulEpochs::default());
        Self {
            store,
            holds,
            volume: volume.into(),
            streams: MOST_STREAMS,
            pause: PAUSE,
            wanted: None,
            epochs,
            room: None,
        }
    }
}

/// Why a pull did not succeed. What was received so far stays, and the volume shows what it showed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// No stream could be opened.
    #[error("the connection is gone: {0}")]
    Link(#[source] io::Error),
    /// The stream broke, or what came on it is no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The upstream says no.
    #[error(transparent)]
    Refused(Refusal),
    /// The upstream sent something that makes no sense.
    #[error("the upstream sent {0}")]
    Malformed(&'static str),
    /// A phase took too long.
    #[error("{0} took too long")]
    Deadline(&'static str),
    /// A leaf did not match its hash, twice.
    #[error(
        "the 64 KiB at offset {offset} do not match the upstream's hash of them, twice in a row: \
         the upstream's disk or memory gives wrong data, or its leaf hashes are damaged"
    )]
    Corrupt {
        /// Where in the volume.
        offset: u64,
    },
    /// A leaf was right when it was written, twice, and was not when it was read back.
    #[error(
        "the 64 KiB at offset {offset} were written twice and read back wrong twice: the disk under the snapshot store, or \
         this machine's memory, gives wrong data; nothing was committed"
    )]
    Rotten {
        /// Where in the volume.
        offset: u64,
    },
    /// Everything matched its hash, but all of it together is not the snapshot.
    #[error("what was received has digest {found}, but the snapshot has {expected}; nothing was committed")]
    DigestMismatch {
        /// The snapshot's.
        expected: Digest,
        /// Ours.
        found: Digest,
    },
    /// There is not enough space to begin.
    #[error(
        "up to {} are to be received but only {} are free in the snapshot store: make space, then it goes on by itself",
        HumanBytes(*needed), HumanBytes(*free)
    )]
    NoSpace {
        /// Bytes that may be needed.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// What is here and what is there do not belong together. A person has to decide.
    #[error("{0}")]
    Divergence(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PullError {
    /// Whether trying again is of no use until a person has done something.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Divergence(_) => true,
            Self::Refused(refusal) => refusal.code == RefusalCode::Stopped,
            _ => false,
        }
    }

    /// The error as it is told to an upstream that announced the snapshot.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal.clone(),
            Self::Divergence(text) => Refusal::new(RefusalCode::Stopped, text.clone()),
            other => Refusal::new(RefusalCode::Failed, describe(other)),
        }
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("volume", &self.volume).field("store", &self.store).finish()
    }
}

/// Brings a replica to what the upstream has for it, going on where an earlier pull was broken off: to the newest of its
/// snapshots, one after the other where each is sent; or to the one that is [wanted](Replica::wanted).
///
/// Cancel safety: dropping the future stops the transfer; what was checkpointed is taken up by the next call.
pub async fn pull(
    link: &dyn Link,
    replica: &Replica,
    patience: &Patience,
    reporter: &Reporter,
) -> Result<PullSummary, PullError> {
    finish(replica).await?;
    pull_finished(link, replica, patience, reporter).await
}

/// As [`pull`], of a replica that was [finished](finish) a moment ago: what its volume shows is not looked at once more.
pub async fn pull_finished(
    link: &dyn Link,
    replica: &Replica,
    patience: &Patience,
    reporter: &Reporter,
) -> Result<PullSummary, PullError> {
    let started = Instant::now();
    let (mut summary, mut more) = pull_one(link, replica, patience, reporter).await?;
    while more {
        reporter.update(|progress| *progress = Progress::default());
        let next;
        (next, more) = pull_one(link, replica, patience, reporter).await?;
        summary.number = next.number.or(summary.number);
        summary.snapshots += next.snapshots;
        summary.data += next.data;
        summary.wire += next.wire;
        summary.resumed += next.resumed;
        summary.refetched += next.refetched;
        summary.millis = started.elapsed().as_millis() as u64;
    }
    Ok(summary)
}

/// Receives one snapshot, if there is one to be received; also tells whether another follows.
async fn pull_one(
    link: &dyn Link,
    replica: &Replica,
    patience: &Patience,
    reporter: &Reporter,
) -> Result<(PullSummary, bool), PullError> {
    let started = Instant::now();
    reporter.phase(Phase::Planning);
    let mut here = replica.store.snapshots().await?;
    let staged = replica.store.staged().await?;
    let plan = match want(link, replica, &here, staged.as_ref(), patience).await? {
        WantReply::Plan(plan) => plan,
        WantReply::UpToDate { number, epoch } => {
            let Some(common) = here.iter().find(|record| record.number() == number && !number.is_local())
            else {
                return Err(PullError::Malformed("the number of a snapshot that is not here"));
            };
            let lineage = common.new.lineage;
            let shown = newest(&here);
            era::follow(replica, &mut here, Some(number), lineage, epoch).await?;
            none_beyond(&here, number.next())?;
            if replica.wanted.is_none() && staged.is_some() {
                replica.store.discard_staged().await?;
            }
            replica.holds.common(number).await?;
            if shown != Some(number) {
                // What was newer was set aside.
                finish(replica).await?;
            }
            return Ok((summary(Some(number), started), false));
        }
        WantReply::Nothing => return Ok((summary(None, started), false)),
        WantReply::Refused(refusal) => return Err(PullError::Refused(refusal)),
        WantReply::Working => return Err(PullError::Malformed("no answer")),
    };
    let digest = validate(&plan)?;
    same_lineage(&plan, &here)?;
    let common = here.iter().find(|record| Some(record.guid()) == plan.base && !record.number().is_local());
    let common = common.map(SnapshotRecord::number);
    if plan.base.is_some() && common.is_none() {
        return Err(PullError::Malformed("a plan on a base that is not here"));
    }
    era::follow(replica, &mut here, common, plan.record.new.lineage, plan.epoch).await?;
    let base = diverges_not(&plan, &here)?;
    let (number, more) = (plan.record.number(), plan.more);
    if replica.wanted.is_some_and(|wanted| wanted != number) {
        return Err(PullError::Malformed("a plan for another snapshot than the one that was asked for"));
    }
    reporter.update(|progress| progress.number = Some(number));

    // Without a common snapshot, whatever is here is still likely to hold most of it: only what differs is fetched.
    let begun = staged.as_ref().filter(|staged| staged.record.guid() == plan.record.guid());
    let seed = match (base, begun) {
        (Some(_), _) => None,
        // A base that is gone is none: it is begun anew then.
        (None, Some(begun)) if begun.base.is_none_or(|base| here.iter().any(|r| r.number() == base)) => {
            begun.base
        }
        (None, Some(_)) => seed(replica, here).await?,
        (None, None) => seed(replica, here).await?,
    };
    let find = if seed.is_some() { Find::Hashes } else { Find::Changes(plan.base) };
    let start = base.or(seed);
    let stage_plan = StagePlan { record: plan.record.clone(), base: start };
    let resumed = staged.as_ref() == Some(&stage_plan);
    if staged.is_some() && !resumed {
        tracing::info!(%number, "what was being received is not wanted any more, beginning anew");
        replica.store.discard_staged().await?;
    }
    replica.holds.transferring(base, number).await?;
    let staging = replica.store.stage(stage_plan.clone()).await?;
    let base_leaves = match start {
        Some(start) => Some(replica.store.leaves(start).await?),
        None => None,
    };
    let job = Job {
        link,
        patience,
        reporter,
        volume: &replica.volume,
        target: plan.record.guid(),
        staging: Arc::new(staging),
        pause: replica.pause,
        resumed,
        refetched: AtomicU64::new(0),
        writers: Writers::new(),
        unrecorded: Unrecorded::default(),
        buffers: Buffers::new(BATCHES * replica.streams),
    };
    let fetched = fetch_all(&job, replica, find, plan.changed, base_leaves, digest).await;
    job.writers.ended().await;
    if let Err(error) = fetched {
        if let Err(error) = job.keep().await {
            // It is fetched again.
            tracing::debug!(error = %describe(&error), "what came last could not be kept");
        }
        return Err(error);
    }
    let refetched = job.refetched.into_inner();
    let staging = Arc::into_inner(job.staging).expect("all streams have ended");
    let record = blocking(move || staging.commit(digest)).await?;

    replica.holds.common(number).await?;
    reporter.phase(Phase::Flipping);
    show(replica, number).await?;
    if let Err(error) = tell(link, replica, &record, patience).await {
        // It learns it from the next `Want`; its hold stays where it was until then.
        tracing::debug!(error = %describe(&error), "the upstream does not know yet that the snapshot has arrived");
    }
    let progress = reporter.current();
    let received = PullSummary {
        number: Some(number),
        received: true,
        snapshots: 1,
        base,
        data: progress.data,
        wire: progress.wire,
        resumed: progress.resumed,
        refetched,
        millis: started.elapsed().as_millis() as u64,
    };
    Ok((received, more))
}

/// Makes the volume show its newest received snapshot, if a crash came between commit and flip.
///
/// # Errors
/// [`PullError::Divergence`] when someone has written to the volume since.
pub async fn finish(replica: &Replica) -> Result<(), PullError> {
    let Some(newest) = newest(&replica.store.snapshots().await?) else { return Ok(()) };
    match replica.store.head().await? {
        HeadState::Shows(number) if number == newest => Ok(()),
        _ => show(replica, newest).await,
    }
}

/// The newest snapshot that was received.
fn newest(here: &[SnapshotRecord]) -> Option<SnapshotNumber> {
    here.iter().rev().map(SnapshotRecord::number).find(|number| !number.is_local())
}

/// Makes the volume show a snapshot, unless that would lose what somebody wrote to it.
async fn show(replica: &Replica, number: SnapshotNumber) -> Result<(), PullError> {
    match replica.store.show(number).await {
        Err(StoreError::HeadWritten { path }) => Err(PullError::Divergence(format!(
            "the volume ({}) was written to since it showed a snapshot, and a replica never overwrites what is not its \
             own: move the file away to keep what was written, and snapshot {number} is shown",
            path.display()
        ))),
        shown => Ok(shown?),
    }
}

/// What a first transfer begins with, if anything is here: the newest of what was kept before, or what the volume held
/// before it became a replica, which is kept as a local snapshot now.
async fn seed(replica: &Replica, mut here: Vec<SnapshotRecord>) -> Result<Option<SnapshotNumber>, PullError> {
    let store = &replica.store;
    let received = here.iter().any(|record| !record.number().is_local());
    if !received && store.head().await? == HeadState::Written {
        let number = era::next_local(&here);
        tracing::info!(%number, "keeping what the volume holds as a local snapshot");
        here.push(store.create_snapshot(NewSnapshot::manual(number, Lineage::generate())).await?);
        // Just after a write the store cannot tell whether another one followed. A moment later it can.
        for _ in 0..KEEP_ATTEMPTS {
            if store.head().await? != HeadState::Written {
                break;
            }
            time::sleep(KEEP_WAIT).await;
            store.delete_snapshot(number).await?;
            here.pop();
            here.push(store.create_snapshot(NewSnapshot::manual(number, Lineage::generate())).await?);
        }
    }
    Ok(here.iter().max_by_key(|record| record.new.created).map(SnapshotRecord::number))
}

async fn want(
    link: &dyn Link,
    replica: &Replica,
    here: &[SnapshotRecord],
    staged: Option<&StagePlan>,
    patience: &Patience,
) -> Result<WantReply, PullError> {
    let have = here
        .iter()
        .filter(|record| !record.number().is_local())
        .map(SnapshotRecord::guid)
        .collect::<Vec<_>>();
    let have = have[have.len().saturating_sub(MAX_HAVE)..].to_vec();
    let resume = staged.map(|staged| staged.record.guid());
    let epoch = match era::lineage(here) {
        Some(lineage) => Some((lineage, replica.epochs.epoch(lineage).await?)),
        None => None,
    };
    let (volume, wanted) = (replica.volume.clone(), replica.wanted);
    let request = Request::Want(Want { volume, have, resume, wanted, epoch });
    let mut channel = ask(link, &request, patience).await?;
    let answer = async {
        loop {
            match frame::read(&mut channel.recv, MAX_CONTROL, patience.stall).await {
                Ok(WantReply::Working) => {}
                Ok(reply) => return Ok(reply),
                Err(error) => return Err(PullError::Frame(error)),
            }
        }
    };
    time::timeout(patience.planning, answer)
        .await
        .map_err(|_| PullError::Deadline("planning at the upstream"))?
}

/// Checks a plan against the limits, and for what every plan has; returns the digest.
fn validate(plan: &Plan) -> Result<Digest, PullError> {
    let record = &plan.record;
    let digest = record.digest.ok_or(PullError::Malformed("a plan without a digest"))?;
    if record.size > MAX_VOLUME || record.number().is_local() {
        return Err(PullError::Malformed("a plan beyond the limits"));
    }
    if record.new.rotations.iter().any(|name| name.parse::<VolumeName>().is_err()) {
        return Err(PullError::Malformed("a plan with rotations that cannot be names"));
    }
    let count = SegmentIndex::count(record.size);
    let ascending = plan.changed.windows(2).all(|pair| pair[0].segment < pair[1].segment);
    let inside = plan.changed.iter().all(|c| c.segment.0 < count && u64::from(c.bytes) <= SEGMENT);
    if ascending && inside {
        Ok(digest)
    } else {
        Err(PullError::Malformed("a plan that does not fit its volume"))
    }
}

/// Checks that plan and replica are of one volume.
fn same_lineage(plan: &Plan, here: &[SnapshotRecord]) -> Result<(), PullError> {
    let record = &plan.record;
    let mut received = here.iter().filter(|record| !record.number().is_local());
    let Some(other) = received.find(|other| other.new.lineage != record.new.lineage) else { return Ok(()) };
    Err(PullError::Divergence(format!(
        "the upstream's volume is another one (lineage {}) than the one that snapshot {} here belongs to ({}). Nothing was \
         changed. If the volume here may be replaced, `forget` it and define it again with an empty snapshot store; \
         otherwise correct the name or the host of its source",
        record.new.lineage,
        other.number(),
        other.new.lineage
    )))
}

/// Checks that nothing here is in the way of the plan; returns the base by its number here.
fn diverges_not(plan: &Plan, here: &[SnapshotRecord]) -> Result<Option<SnapshotNumber>, PullError> {
    // The same number would be another snapshot: what both have is not sent again.
    none_beyond(here, plan.record.number())?;
    let received = here.iter().filter(|record| !record.number().is_local());
    let base = plan.base.and_then(|base| received.clone().find(|record| record.guid() == base));
    Ok(base.map(SnapshotRecord::number))
}

/// Fetches until what is staged has the digest of the snapshot.
async fn fetch_all(
    job: &Job<'_>,
    replica: &Replica,
    find: Find,
    changed: Vec<ChangedSegment>,
    base: Option<Arc<LeafTree>>,
    digest: Digest,
) -> Result<(), PullError> {
    let changed = match find {
        Find::Changes(_) => changed,
        Find::Hashes => {
            if job.resumed {
                job.with_staged(|staging| staging.leaves().mend()).await?;
            }
            job.differing_segments().await?
        }
    };
    let mut todo = outstanding(job, changed);
    if let Find::Changes(_) = find {
        admit(replica, &todo).await?;
    }
    job.reporter.phase(Phase::Transferring);
    if job.resumed && matches!(find, Find::Changes(_)) {
        // Of what was begun, only the leaves that are not right yet.
        let begun;
        (begun, todo) = job.begun(base.clone(), todo).await?;
        job.run(Find::Hashes, begun, replica.streams).await?;
    }
    // All that is staged of these segments is of this run, unless hashes decide what is fetched of them.
    let mut known = HashSet::new();
    if !job.resumed || matches!(find, Find::Changes(_)) {
        known.extend(todo.iter().map(|changed| changed.segment));
    }
    job.run(find, todo, replica.streams).await?;

    job.reporter.phase(Phase::Verifying);
    let mut found = job.with_staged(|staging| staging.leaves().root()).await?;
    if found != digest {
        known.clear();
        repair(job, replica.streams).await?;
        found = job.with_staged(|staging| staging.leaves().root()).await?;
    }
    if found != digest {
        return Err(PullError::DigestMismatch { expected: digest, found });
    }
    let streams = replica.streams;
    let damaged = async |base: Option<Arc<LeafTree>>, known| {
        job.with_staged(move |staging| verify::damaged(staging, base.as_deref(), &known, streams)).await
    };
    let leaves = damaged(base.clone(), known.clone()).await?;
    if leaves.is_empty() {
        return Ok(());
    }
    tracing::warn!(leaves = leaves.len(), "what was staged is not what was written, fetching it again");
    job.refetch(leaves).await?;
    match damaged(base, known).await?.first() {
        None => Ok(()),
        Some(leaf) => Err(PullError::Rotten { offset: leaf.0 * LEAF }),
    }
}

/// Checks that no received snapshot has this number or a higher one, which the upstream would have to know.
fn none_beyond(here: &[SnapshotRecord], number: SnapshotNumber) -> Result<(), PullError> {
    let newer = here.iter().find(|other| !other.number().is_local() && other.number() >= number);
    newer.map_or(Ok(()), |other| {
        Err(PullError::Divergence(format!(
            "snapshot {} ({}) is here, but the upstream does not have it and is not beyond it: was it set back, or is it \
             another volume? Nothing was changed. If the volume here may be replaced, `forget` it and define it again \
             with an empty snapshot store",
            other.number(),
            other.guid()
        )))
    })
}

/// What is left to fetch; counts what is not.
fn outstanding(job: &Job<'_>, changed: Vec<ChangedSegment>) -> Vec<ChangedSegment> {
    let finished: HashSet<SegmentIndex> = job.staging.finished().into_iter().collect();
    let bytes = |segments: &[ChangedSegment]| segments.iter().map(|c| u64::from(c.bytes)).sum::<u64>();
    let total = bytes(&changed);
    let todo: Vec<_> = changed.into_iter().filter(|changed| !finished.contains(&changed.segment)).collect();
    let resumed = total - bytes(&todo);
    job.reporter.update(|progress| {
        (progress.total, progress.done, progress.resumed) = (total, resumed, resumed);
    });
    todo
}

/// Makes sure that what is to come fits: it comes in whole chunks of the store, and may take metadata as well.
async fn admit(replica: &Replica, todo: &[ChangedSegment]) -> Result<(), PullError> {
    let store = &replica.store;
    // A store that has no volume yet has no chunks either.
    let chunk = store.geometry().map_or(1, |geometry| geometry.chunk.max(1));
    let needed: u64 = todo.iter().map(|changed| u64::from(changed.bytes).next_multiple_of(chunk)).sum();
    if let Some(room) = &replica.room {
        room.make_room(needed).await;
    }
    let free = store.free().await?;
    if needed > free {
        return Err(PullError::NoSpace { needed, free });
    }
    let Some(room) = store.pool().await? else { return Ok(()) };
    let (metadata, free) =
        (room.metadata_for(needed), room.metadata.free().saturating_sub(room.metadata.least));
    if metadata > free {
        let what = format!(
            "up to {} of metadata are needed to receive {}, and only {} are free: delete snapshots, or {}",
            HumanBytes(metadata),
            HumanBytes(needed),
            HumanBytes(free),
            room.more_metadata
        );
        return Err(StoreError::NoSpace { what }.into());
    }
    Ok(())
}

/// Fetches whatever differs from the upstream's leaf hashes, when all that was sent does not add up.
async fn repair(job: &Job<'_>, streams: usize) -> Result<(), PullError> {
    let differing = job.differing_segments().await?;
    tracing::warn!(segments = differing.len(), "the digest does not match, fetching what differs");
    // All of this has been counted once already.
    let uncounted = differing.into_iter().map(|changed| ChangedSegment { bytes: 0, ..changed }).collect();
    job.run(Find::Hashes, uncounted, streams).await
}

async fn tell(
    link: &dyn Link,
    replica: &Replica,
    record: &SnapshotRecord,
    patience: &Patience,
) -> Result<(), PullError> {
    let request = Request::Committed(Committed { volume: replica.volume.clone(), target: record.guid() });
    let mut channel = ask(link, &request, patience).await?;
    match frame::read(&mut channel.recv, MAX_SHORT, patience.stall).await? {
        CommittedReply::Noted => Ok(()),
        CommittedReply::Refused(refusal) => Err(PullError::Refused(refusal)),
    }
}

fn summary(number: Option<SnapshotNumber>, started: Instant) -> PullSummary {
    PullSummary {
        number,
        received: false,
        snapshots: 0,
        base: None,
        data: 0,
        wire: 0,
        resumed: 0,
        refetched: 0,
        millis: started.elapsed().as_millis() as u64,
    }
}

/// How often, and after what time, it is looked again whether a volume that is kept is still being written.
const KEEP_ATTEMPTS: u32 = 5;
const KEEP_WAIT: Duration = Duration::from_millis(50);

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.expect("stores do not panic")
}
