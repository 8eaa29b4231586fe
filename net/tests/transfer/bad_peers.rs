//! What a peer may send, and how little comes of it.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use zumastor_core::{
    HeadState, Lineage, NewSnapshot, SEGMENT, SegmentIndex, SnapshotNumber, SnapshotRecord, SnapshotStore,
    digest::{Digest, Hash},
};
use zumastor_net::{
    Channel, Link, Patience, PullError, Reporter, frame, pull, trace,
    wire::{
        BatchEntry, BatchHeader, BatchPart, ChangedSegment, Codec, FetchReply, Hop, MAX_HOPS, Plan, Refusal,
        RefusalCode, TraceReply, WalkReply, WantReply,
    },
};

use crate::harness::{Downstream, Pipes, Rogue, Upstream, noise};

const SIZE: u64 = SEGMENT + 100_000;

fn plan() -> Plan {
    let new = NewSnapshot::manual(SnapshotNumber(0), Lineage::generate());
    let record = SnapshotRecord { new, size: SIZE, digest: Some(Digest([1; 32])) };
    let changed = vec![ChangedSegment { segment: SegmentIndex(0), bytes: 65_536 }];
    Plan { record, base: None, changed, more: false, epoch: 0 }
}

fn want(reply: WantReply) -> Vec<u8> {
    frame::encode(&reply, &[]).to_vec()
}

fn leaf(position: u16, data: u16, zero: u16, hash: Hash) -> BatchEntry {
    BatchEntry::Leaf { leaf: position, data, zero, hash }
}

fn batch(segment: u64, codec: Codec, entries: Vec<BatchEntry>, payload: &[u8]) -> Vec<u8> {
    batch_of(codec, vec![BatchPart { segment: SegmentIndex(segment), entries }], payload)
}

fn batch_of(codec: Codec, parts: Vec<BatchPart>, payload: &[u8]) -> Vec<u8> {
    frame::encode(&FetchReply::Batch(BatchHeader { codec, parts }), payload).to_vec()
}

async fn assert_untouched(downstream: &Downstream) {
    assert_eq!(downstream.store.head().await.unwrap(), HeadState::Empty);
    assert!(downstream.store.snapshots().await.unwrap().is_empty());
}

#[tokio::test]
async fn plans_that_make_no_sense_are_refused() {
    let bad = |change: fn(&mut Plan)| {
        let mut plan = plan();
        change(&mut plan);
        want(WantReply::Plan(plan))
    };
    let answers = [
        bad(|plan| plan.record.digest = None),
        bad(|plan| plan.record.size = u64::MAX),
        bad(|plan| plan.record.new.number = SnapshotNumber::local(1)),
        bad(|plan| plan.base = Some(plan.record.guid())),
        bad(|plan| plan.changed[0].segment = SegmentIndex(2)),
        bad(|plan| plan.changed[0].segment = SegmentIndex(u64::MAX)),
        bad(|plan| plan.changed[0].bytes = u32::MAX),
        bad(|plan| plan.changed.push(plan.changed[0])),
        bad(|plan| plan.record.new.rotations = vec!["x".repeat(10_000)]),
        bad(|plan| plan.record.new.rotations = vec!["../up".into()]),
        want(WantReply::UpToDate { number: SnapshotNumber(77), epoch: 0 }),
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        let downstream = Downstream::new();
        let error = downstream.pull(&Rogue::answering([answer])).await.unwrap_err();
        assert!(matches!(error, PullError::Malformed(_)), "{index}: {error}");
        assert_untouched(&downstream).await;
    }
}

#[tokio::test]
async fn frames_that_are_none_are_refused() {
    let huge = [&u32::MAX.to_le_bytes()[..], &[0; 4], b"rest"].concat();
    let nonsense = [&5u32.to_le_bytes()[..], &[0; 4], &[0xff; 5]].concat();
    let cut = want(WantReply::Plan(plan()))[..20].to_vec();
    let mut crowded = plan();
    crowded.record.new.rotations = vec![String::new(); 1 << 20];
    for answer in [huge, nonsense, cut, Vec::new(), want(WantReply::Plan(crowded))] {
        let downstream = Downstream::new();
        let error = downstream.pull(&Rogue::answering([answer])).await.unwrap_err();
        assert!(matches!(error, PullError::Frame(_)), "{error}");
        assert_untouched(&downstream).await;
    }
}

#[tokio::test]
async fn batches_that_make_no_sense_are_refused() {
    let page = noise(4096, 1);
    let hash = Hash([3; 32]);
    let bomb = zstd::encode_all(&vec![0; 64 << 20][..], 1).unwrap();
    let raw = |entries, payload: &[u8]| batch(0, Codec::Raw, entries, payload);
    let zeros = |segment, first| BatchPart {
        segment: SegmentIndex(segment),
        entries: vec![BatchEntry::Zeros { first, count: 1 }],
    };
    let parts = |parts| batch_of(Codec::Raw, parts, &[]);
    let end = frame::encode(&FetchReply::End, &[]).to_vec();
    let answers = [
        ("another segment", batch(1, Codec::Raw, vec![leaf(0, 1, 0, hash)], &page)),
        ("beyond the end", raw(vec![leaf(1024, 1, 0, hash)], &page)),
        ("zeros beyond the end", raw(vec![BatchEntry::Zeros { first: 1000, count: u16::MAX }], &[])),
        ("no zeros", raw(vec![BatchEntry::Zeros { first: 0, count: 0 }], &[])),
        (
            "twice the same leaf",
            raw(vec![leaf(3, 1, 0, hash), leaf(3, 2, 0, hash)], &[&page[..], &page].concat()),
        ),
        ("data and zero", raw(vec![leaf(0, 1, 1, hash)], &page)),
        ("no page", raw(vec![leaf(0, 0, 0, hash)], &[])),
        ("empty", raw(vec![], &[])),
        ("nothing at all", parts(vec![])),
        ("a part that is empty", parts(vec![zeros(0, 1), BatchPart { entries: vec![], ..zeros(0, 1) }])),
        ("and another segment", parts(vec![zeros(0, 1), zeros(1, 1)])),
        ("a part twice", parts(vec![zeros(0, 5), zeros(0, 5)])),
        ("parts out of order", parts(vec![zeros(0, 5), zeros(0, 3)])),
        ("too little data", raw(vec![leaf(0, 3, 0, hash)], &page)),
        ("too much data", raw(vec![leaf(0, 1, 0, hash)], &[&page[..], &page].concat())),
        ("a bomb", batch(0, Codec::Zstd, vec![leaf(0, 1, 0, hash)], &bomb)),
        ("no zstd", batch(0, Codec::Zstd, vec![leaf(0, 1, 0, hash)], &page)),
        ("too large", raw((0..100).map(|i| leaf(i, 0xffff, 0, hash)).collect(), &page)),
        ("the same again", {
            let zeros = raw(vec![BatchEntry::Zeros { first: 5, count: 1 }], &[]);
            [zeros.clone(), zeros].concat()
        }),
    ];
    for (what, answer) in answers {
        let downstream = Downstream::new();
        let rogue = Rogue::answering([want(WantReply::Plan(plan())), [answer, end.clone()].concat()]);
        let error = downstream.pull(&rogue).await.unwrap_err();
        assert!(matches!(error, PullError::Malformed(_)), "{what}: {error}");
        assert_untouched(&downstream).await;
    }
}

#[tokio::test]
async fn segments_out_of_order_are_refused() {
    let zeros = |segment| BatchPart {
        segment: SegmentIndex(segment),
        entries: vec![BatchEntry::Zeros { first: 0, count: 1 }],
    };
    let of = |parts| batch_of(Codec::Raw, parts, &[]);
    let end = frame::encode(&FetchReply::End, &[]).to_vec();
    let mut plan = plan();
    plan.changed.push(ChangedSegment { segment: SegmentIndex(1), bytes: 4096 });
    for (what, batches) in [
        ("in one batch", vec![of(vec![zeros(1), zeros(0)])]),
        ("in two", vec![of(vec![zeros(1)]), of(vec![zeros(0)])]),
        ("the second time", vec![of(vec![zeros(0), zeros(1)]), of(vec![zeros(1)])]),
    ] {
        let downstream = Downstream::new();
        let answer = [batches.concat(), end.clone()].concat();
        let rogue = Rogue::answering([want(WantReply::Plan(plan.clone())), answer]);
        let error = downstream.pull(&rogue).await.unwrap_err();
        assert!(matches!(error, PullError::Malformed(_)), "{what}: {error}");
        assert_untouched(&downstream).await;
    }
}

#[tokio::test]
async fn a_wrong_leaf_hash_is_never_staged() {
    let page = noise(65_536, 1);
    let answer = [
        batch(0, Codec::Raw, vec![leaf(2, 0xffff, 0, Hash([3; 32]))], &page),
        frame::encode(&FetchReply::End, &[]).to_vec(),
    ]
    .concat();
    let downstream = Downstream::new();
    let rogue = Rogue::answering([want(WantReply::Plan(plan())), answer.clone(), answer]);
    let error = downstream.pull(&rogue).await.unwrap_err();
    assert!(matches!(error, PullError::Corrupt { offset: 131_072 }), "{error}");
    assert_untouched(&downstream).await;
}

#[tokio::test]
async fn a_leaf_that_was_not_asked_for_again_is_not_taken() {
    let page = noise(65_536, 1);
    let end = frame::encode(&FetchReply::End, &[]).to_vec();
    let wrong = batch(0, Codec::Raw, vec![leaf(2, 0xffff, 0, Hash([3; 32]))], &page);
    let other = batch(0, Codec::Raw, vec![leaf(7, 0xffff, 0, Hash::of_leaf(&page))], &page);
    let downstream = Downstream::new();
    let rogue = Rogue::answering([
        want(WantReply::Plan(plan())),
        [wrong, end.clone()].concat(),
        [other, end].concat(),
    ]);
    let error = downstream.pull(&rogue).await.unwrap_err();
    assert!(matches!(error, PullError::Malformed(what) if what.contains("not asked for")), "{error}");
    assert_untouched(&downstream).await;
}

#[tokio::test]
async fn a_digest_that_does_not_fit_is_never_committed() {
    // All leaves are right by their own hashes, but together they are not what the plan names.
    let page = noise(65_536, 1);
    let data = [
        frame::encode(&FetchReply::Working, &[]).to_vec(),
        batch(0, Codec::Raw, vec![leaf(2, 0xffff, 0, Hash::of_leaf(&page))], &page),
        frame::encode(&FetchReply::Working, &[]).to_vec(),
        frame::encode(&FetchReply::End, &[]).to_vec(),
    ]
    .concat();
    // The walk that looks for what differs is answered with what is here, so there is nothing to mend.
    let mut segment = zumastor_core::digest::SegmentLeaves::zeros(SegmentIndex(0), SIZE);
    segment.set(2, Some(Hash::of_leaf(&page)));
    let nodes = vec![
        segment.node(SegmentIndex(0), SIZE),
        zumastor_core::digest::SegmentLeaves::zero_node(SegmentIndex(1), SIZE),
    ];
    let walk = frame::encode(&WalkReply::Hashes(nodes), &[]).to_vec();
    let downstream = Downstream::new();
    let rogue = Rogue::answering([want(WantReply::Plan(plan())), data, walk]);
    let error = downstream.pull(&rogue).await.unwrap_err();
    assert!(matches!(error, PullError::DigestMismatch { .. }), "{error}");
    assert_untouched(&downstream).await;
}

#[tokio::test]
async fn a_refusal_is_shown_as_it_is() {
    let refusal = Refusal::new(RefusalCode::NotAllowed, "vol is not for you");
    let downstream = Downstream::new();
    let error = downstream.pull(&Rogue::answering([want(WantReply::Refused(refusal))])).await.unwrap_err();
    assert_eq!(error.to_string(), "vol is not for you");
    let upstream = Arc::new(Upstream::new(1 << 20));
    let stranger = Pipes { peer: "stranger".parse().unwrap(), ..Pipes::to(&upstream) };
    let error = downstream.pull(&stranger).await.unwrap_err();
    assert!(matches!(&error, PullError::Refused(r) if r.code == RefusalCode::NotAllowed), "{error}");
}

/// A peer that takes the stream and says nothing, or says for ever that it is working.
struct Silent {
    working: bool,
}

#[async_trait]
impl Link for Silent {
    async fn open(&self) -> io::Result<Channel> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let working = self.working;
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(20)).await;
                let frame = frame::encode(&WantReply::Working, &[]);
                if working && tokio::io::AsyncWriteExt::write_all(&mut theirs, &frame).await.is_err() {
                    return;
                }
            }
        });
        let (recv, send) = tokio::io::split(ours);
        Ok(Channel::over(send, recv))
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever() {
    let patience = Patience::default();
    for working in [false, true] {
        let downstream = Downstream::new();
        let started = tokio::time::Instant::now();
        let error =
            pull(&Silent { working }, &downstream.replica, &patience, &Reporter::new()).await.unwrap_err();
        let took = started.elapsed();
        if working {
            assert!(
                matches!(error, PullError::Deadline(_)) && took >= patience.planning,
                "{error} after {took:?}"
            );
        } else {
            let stalled = matches!(error, PullError::Frame(frame::FrameError::Stalled(_)));
            assert!(stalled && took >= patience.stall && took < patience.stall * 2, "{error} after {took:?}");
        }
    }
}

/// A peer that says it can answer every question.
struct Able(Rogue);

#[async_trait]
impl Link for Able {
    async fn open(&self) -> io::Result<Channel> {
        self.0.open().await
    }
    fn features(&self) -> u64 {
        u64::MAX
    }
}

/// A peer that takes what it is asked and says nothing.
struct Mute;

#[async_trait]
impl Link for Mute {
    async fn open(&self) -> io::Result<Channel> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        // It stays open.
        std::mem::forget(theirs);
        let (recv, send) = tokio::io::split(ours);
        Ok(Channel::over(send, recv))
    }
    fn features(&self) -> u64 {
        u64::MAX
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_about_a_circle_is_bounded_and_not_waited_for_long() {
    let hop = Hop { key: [1; 32], node: "n".parse().unwrap(), volume: "v".parse().unwrap() };
    let answer = |hops| frame::encode(&TraceReply::Circle(vec![hop.clone(); hops]), &[]).to_vec();
    let ask = async |link: &dyn Link| trace(link, "vol", vec![hop.clone()]).await;
    let told = ask(&Able(Rogue::answering([answer(MAX_HOPS)]))).await.unwrap();
    assert!(matches!(told, TraceReply::Circle(hops) if hops.len() == MAX_HOPS));
    let huge = [&u32::MAX.to_le_bytes()[..], &[0; 4], b"rest"].concat();
    for bytes in [answer(MAX_HOPS + 1), huge, vec![]] {
        let error = ask(&Able(Rogue::answering([bytes]))).await.unwrap_err();
        assert!(matches!(error, PullError::Frame(_)), "{error}");
    }
    let before = tokio::time::Instant::now();
    ask(&Mute).await.unwrap_err();
    assert!(before.elapsed() <= Duration::from_secs(4));
    // A node from before this could be asked is not asked.
    let old = Rogue::answering([answer(1)]);
    assert_eq!(ask(&old).await.unwrap(), TraceReply::Clear);
    assert_eq!(*old.asked.lock().unwrap(), 0);
}
