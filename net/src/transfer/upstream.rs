//! The end that sends: it answers what a downstream asks, and tells it of news.

use std::{ops::Range, time::Duration};

use tokio::{sync::Semaphore, time};
use zumastor_core::{
    ExtentKind, LEAF, SegmentIndex, SnapshotGuid, SnapshotNumber, SnapshotRecord, SnapshotStore, StoreError,
};

use super::{
    Patience,
    choose::{Choice, choose},
    data::answer_fetch,
};
use crate::{
    channel::Channel,
    frame::{self, FrameError},
    host::{Host, Link, Planned, PullState, Served, Unheard},
    progress::{Progress, PullSummary},
    wire::{
        Announce, AnnounceReply, ChangedSegment, Committed, CommittedReply, MAX_HAVE, MAX_REQUEST, MAX_SHORT,
        MAX_VOLUME, Plan, Refusal, RefusalCode, Request, TermsReply, Walk, WalkLevel, WalkReply, Want,
        WantReply,
    },
};

/// Answers the one request that comes on a stream which `peer` has opened.
///
/// `reading` bounds how many requests are being read at the same time.
///
/// # Errors
/// What the peer sent is no request, or the stream broke. A request that is understood but refused is no error.
pub async fn serve(
    channel: &mut Channel,
    peer: &zumastor_core::NodeName,
    host: &dyn Host,
    patience: &Patience,
    reading: &Semaphore,
) -> Result<(), FrameError> {
    let request = {
        let _reading = reading.acquire().await.expect("the semaphore is never closed");
        let read = frame::read::<_, Request>(&mut channel.recv, MAX_REQUEST, patience.answer);
        time::timeout(patience.answer, read).await.map_err(|_| FrameError::Stalled(patience.answer))??
    };
    match request {
        Request::Announce(announce) => {
            let state = match announce.number.is_local() {
                false => host.announced(peer, &announce).await,
                true => {
                    let what = "a number that no master gives was announced";
                    Err(Refusal::new(RefusalCode::Malformed, what).into())
                }
            };
            follow(channel, state, patience).await
        }
        Request::Want(want) => {
            let served = host.serve(peer, &want.volume).await;
            let served = match served {
                Ok(served) => not_superseded(served, peer, host, &want).await,
                refused => refused,
            };
            plan_for(channel, served, &want, patience).await
        }
        Request::Fetch(fetch) => answer_fetch(channel, peer, host, fetch, patience).await,
        Request::Walk(walk) => {
            let served = host.lend(peer, &walk.volume).await;
            let reply = match hashes(served, &walk).await {
                Ok(hashes) => WalkReply::Hashes(hashes),
                Err(refusal) => WalkReply::Refused(refusal),
            };
            frame::write(&mut channel.send, &frame::encode(&reply, &[]), patience.stall).await
        }
        Request::Committed(committed) => {
            let served = host.serve(peer, &committed.volume).await;
            let reply = match note(served, &committed).await {
                Ok(()) => CommittedReply::Noted,
                Err(refusal) => CommittedReply::Refused(refusal),
            };
            frame::write(&mut channel.send, &frame::encode(&reply, &[]), patience.stall).await
        }
        Request::Terms(terms) => {
            let reply = match host.serve(peer, &terms.volume).await {
                Ok(served) => TermsReply::Terms { period: served.period },
                Err(refusal) => TermsReply::Refused(refusal),
            };
            frame::write(&mut channel.send, &frame::encode(&reply, &[]), patience.stall).await
        }
        Request::Trace(trace) => {
            let reply = host.trace(peer, &trace).await;
            frame::write(&mut channel.send, &frame::encode(&reply, &[]), patience.stall).await
        }
    }?;
    finish(channel, patience).await
}

/// Tells a downstream that there is something new, and follows what it does about it until it has it.
pub async fn announce(
    link: &dyn Link,
    announce: Announce,
    patience: &Patience,
    on_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<PullSummary, AnnounceError> {
    let opened = time::timeout(patience.answer, link.open()).await;
    let mut channel = opened.map_err(|_| FrameError::Stalled(patience.answer))?.map_err(FrameError::Io)?;
    let request = frame::encode(&Request::Announce(announce), &[]);
    frame::write(&mut channel.send, &request, patience.stall).await?;
    loop {
        match frame::read(&mut channel.recv, MAX_SHORT, patience.stall).await? {
            AnnounceReply::Progress(progress) => on_progress(progress),
            AnnounceReply::Done(summary) => return Ok(summary),
            AnnounceReply::Failed(refusal) => return Err(AnnounceError::Refused(refusal)),
            AnnounceReply::Superseded(epoch) => return Err(AnnounceError::Superseded(epoch)),
        }
    }
}

/// Why a downstream that was told of news did not get them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// The connection failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The downstream refused, or its pull failed.
    #[error(transparent)]
    Refused(Refusal),
    /// The downstream has the volume in this epoch, a later one.
    #[error("the volume has another master since")]
    Superseded(u64),
}

/// Reports what a pull does until it ends; something is said every few seconds even if nothing moves.
async fn follow(
    channel: &mut Channel,
    state: Result<tokio::sync::watch::Receiver<PullState>, Unheard>,
    patience: &Patience,
) -> Result<(), FrameError> {
    let mut state = match state {
        Ok(state) => state,
        Err(unheard) => {
            let reply = match unheard {
                Unheard::Refused(refusal) => AnnounceReply::Failed(refusal),
                Unheard::Superseded(epoch) => AnnounceReply::Superseded(epoch),
            };
            let reply = frame::encode(&reply, &[]);
            return frame::write(&mut channel.send, &reply, patience.stall).await;
        }
    };
    loop {
        let current = state.borrow_and_update().clone();
        let (reply, last) = match current {
            PullState::Running(progress) => (AnnounceReply::Progress(progress), false),
            PullState::Done(summary) => (AnnounceReply::Done(summary), true),
            PullState::Failed(refusal) => (AnnounceReply::Failed(refusal), true),
        };
        frame::write(&mut channel.send, &frame::encode(&reply, &[]), patience.stall).await?;
        if last {
            return Ok(());
        }
        let next = time::Instant::now() + REPORT;
        match time::timeout(heartbeat(patience), state.changed()).await {
            Ok(Err(_)) => {
                let gone = Refusal::new(RefusalCode::Failed, "the downstream stopped");
                let reply = frame::encode(&AnnounceReply::Failed(gone), &[]);
                return frame::write(&mut channel.send, &reply, patience.stall).await;
            }
            // Progress may change with every batch; an end is told at once.
            Ok(Ok(())) => {
                let ended = |state: &PullState| !matches!(state, PullState::Running(_));
                let _ = time::timeout_at(next, state.wait_for(ended)).await;
            }
            Err(_) => {}
        }
    }
}

/// Refuses to send a volume to a node that has it in a later epoch, and remembers that there is one.
async fn not_superseded(
    served: Served,
    peer: &zumastor_core::NodeName,
    host: &dyn Host,
    want: &Want,
) -> Result<Served, Refusal> {
    let Some((lineage, epoch)) = want.epoch.filter(|(_, epoch)| *epoch > served.epoch) else {
        return Ok(served);
    };
    let snapshots = served.store.snapshots().await.map_err(|error| failed(&error))?;
    if !snapshots.iter().any(|record| !record.number().is_local() && record.new.lineage == lineage) {
        // Another volume: the downstream finds that out.
        return Ok(served);
    }
    host.superseded(peer, &want.volume, lineage, epoch).await;
    let superseded =
        "the volume there has another master since: define that one, or a replica of it, as the source";
    Err(Refusal::new(RefusalCode::Stopped, superseded))
}

async fn plan_for(
    channel: &mut Channel,
    served: Result<Served, Refusal>,
    want: &Want,
    patience: &Patience,
) -> Result<(), FrameError> {
    let work = async {
        let served = served?;
        if want.have.len() > MAX_HAVE {
            return Err(Refusal::new(RefusalCode::Malformed, "the peer names too many snapshots"));
        }
        plan(&served, want).await.map_err(|error| failed(&error))
    };
    tokio::pin!(work);
    let reply = loop {
        match time::timeout(heartbeat(patience), &mut work).await {
            Ok(reply) => break reply.unwrap_or_else(WantReply::Refused),
            Err(_) => {
                frame::write(&mut channel.send, &frame::encode(&WantReply::Working, &[]), patience.stall)
                    .await?;
            }
        }
    };
    frame::write(&mut channel.send, &frame::encode(&reply, &[]), patience.stall).await
}

/// Decides what a downstream needs, and holds it.
async fn plan(served: &Served, want: &Want) -> Result<WantReply, StoreError> {
    let store = &served.store;
    let snapshots = store.snapshots().await?;
    let (target, common, more) = match choose(&snapshots, want, &served.offer) {
        Choice::Nothing => return Ok(WantReply::Nothing),
        Choice::Has(common) => {
            served.holds.common(common).await?;
            if let Some(outgoing) = &served.outgoing {
                outgoing.arrived(common).await;
            }
            return Ok(WantReply::UpToDate { number: common, epoch: served.epoch });
        }
        Choice::NotFor(number) => {
            let why = format!("the upstream has no snapshot {number}, or does not send it to this node");
            return Ok(WantReply::Refused(Refusal::new(RefusalCode::Gone, why)));
        }
        Choice::Gets { target, base, more } => (target, base, more),
    };
    if target.size > MAX_VOLUME {
        return Err(StoreError::Unsupported("volumes beyond 128 TiB cannot be replicated".into()));
    }
    let base = common.map(SnapshotRecord::number);
    served.holds.transferring(base, target.number()).await?;
    if let Some(compression) = &served.compression {
        compression.begin();
    }
    let leaves = store.leaves(target.number()).await?;
    let record = SnapshotRecord { digest: leaves.digest(), ..target.clone() };
    let changed = match served.offer.whole {
        true => all_segments(record.size),
        false => changed_segments(&**store, base, target.number(), record.size).await?,
    };
    if let Some(outgoing) = &served.outgoing {
        if let Some(base) = base {
            outgoing.arrived(base).await;
        }
        let (target, number) = (record.guid(), record.number());
        let total = changed.iter().map(|changed| u64::from(changed.bytes)).sum();
        outgoing.planned(&Planned { target, number, base, total, more });
    }
    Ok(WantReply::Plan(Plan {
        record,
        base: common.map(SnapshotRecord::guid),
        changed,
        more,
        epoch: served.epoch,
    }))
}

/// The segments of a whole volume, as if all of it had changed.
fn all_segments(size: u64) -> Vec<ChangedSegment> {
    let changed = |segment: SegmentIndex| {
        let range = segment.range(size);
        ChangedSegment {
            segment,
            bytes: u32::try_from(range.end - range.start).expect("a segment has 64 MiB"),
        }
    };
    (0..SegmentIndex::count(size)).map(SegmentIndex).map(changed).collect()
}

/// Which segments carry changes, and how many bytes at most. Looks at a bounded part of the volume at a time.
async fn changed_segments(
    store: &dyn SnapshotStore,
    base: Option<SnapshotNumber>,
    target: SnapshotNumber,
    size: u64,
) -> Result<Vec<ChangedSegment>, StoreError> {
    let count = SegmentIndex::count(size);
    let mut changed = Vec::new();
    for first in (0..count).step_by(SEGMENTS_AT_ONCE) {
        let last = (first + SEGMENTS_AT_ONCE as u64).min(count) - 1;
        let window: Range<u64> = SegmentIndex(first).range(size).start..SegmentIndex(last).range(size).end;
        let changes = store.changes(base, target, window).await?;
        if changes.is_empty() {
            continue;
        }
        for segment in (first..=last).map(SegmentIndex) {
            let window = segment.range(size);
            if changes.within(&window).next().is_some() {
                let data = changes.within(&window).filter(|extent| extent.kind == ExtentKind::Data);
                let bytes: u64 = data.map(|extent| extent.len()).sum();
                let bytes = u32::try_from(bytes).expect("a segment has 64 MiB");
                changed.push(ChangedSegment { segment, bytes });
            }
        }
    }
    Ok(changed)
}

async fn hashes(
    served: Result<Served, Refusal>,
    walk: &Walk,
) -> Result<Vec<zumastor_core::digest::Hash>, Refusal> {
    let store = served?.store;
    let snapshots = store.snapshots().await.map_err(|error| failed(&error))?;
    let target = find(&snapshots, walk.target)?;
    walk.validate(target.size)?;
    let tree = store.leaves(target.number()).await.map_err(|error| failed(&error))?;
    let (level, first, count, size) = (walk.level, walk.first.0, walk.count, target.size);
    let read = move || {
        let segments = (first..first + count).map(SegmentIndex);
        match level {
            WalkLevel::Nodes => segments.map(|segment| tree.node(segment)).collect(),
            WalkLevel::Leaves => {
                let mut all = Vec::with_capacity((count * zumastor_core::SEGMENT / LEAF) as usize);
                for segment in segments {
                    all.extend(tree.segment(segment)?.hashes(segment, size));
                }
                Ok(all)
            }
        }
    };
    let result: Result<_, StoreError> =
        tokio::task::spawn_blocking(read).await.expect("reading does not panic");
    result.map_err(|error| failed(&error))
}

async fn note(served: Result<Served, Refusal>, committed: &Committed) -> Result<(), Refusal> {
    let served = served?;
    let snapshots = served.store.snapshots().await.map_err(|error| failed(&error))?;
    let target = find(&snapshots, committed.target)?;
    served.holds.common(target.number()).await.map_err(|error| failed(&error))?;
    if let Some(outgoing) = &served.outgoing {
        outgoing.arrived(target.number()).await;
    }
    Ok(())
}

pub(super) fn find(snapshots: &[SnapshotRecord], guid: SnapshotGuid) -> Result<&SnapshotRecord, Refusal> {
    let found = snapshots.iter().find(|record| record.guid() == guid && !record.number().is_local());
    found.ok_or_else(|| {
        Refusal::new(RefusalCode::Gone, format!("the upstream has no snapshot {guid} any more"))
    })
}

pub(super) fn failed(error: &StoreError) -> Refusal {
    let code =
        if matches!(error, StoreError::NotFound { .. }) { RefusalCode::Gone } else { RefusalCode::Failed };
    Refusal::new(code, format!("on the other node: {}", describe(error)))
}

/// An error with its causes, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

async fn finish(channel: &mut Channel, patience: &Patience) -> Result<(), FrameError> {
    let shutdown = tokio::io::AsyncWriteExt::shutdown(&mut channel.send);
    let ended = time::timeout(patience.stall, shutdown).await;
    ended.map_err(|_| FrameError::Stalled(patience.stall))?.map_err(FrameError::Io)
}

/// How often something is said while there is nothing to say: well within the other end's patience.
fn heartbeat(patience: &Patience) -> Duration {
    patience.stall / 6
}

/// Least time between two reports of progress.
const REPORT: Duration = Duration::from_millis(100);
/// Segments whose changes are looked at together: 1 GiB, so that even one extent per page stays a few MiB.
const SEGMENTS_AT_ONCE: usize = 16;
