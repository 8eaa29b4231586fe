//! What nodes say to each other: the messages, and their limits. `docs/protocol.md` is the description for others.
//!
//! Messages are encoded with postcard, which numbers variants by position: new ones are appended, retired ones keep
//! their place. Everything a peer sends is bounded before it is believed; the bounds stand here.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor},
};
use zumastor_core::{
    LEAVES_PER_SEGMENT, Lineage, NodeName, PAGE, SegmentIndex, SnapshotGuid, SnapshotNumber, SnapshotRecord,
    VolumeName, digest::Hash,
};

use crate::progress::{Progress, PullSummary};

/// ALPN identifier; it carries the major version of the protocol.
pub const ALPN: &[u8] = b"zumastor/1";
/// Oldest and newest revision of the protocol that this program speaks. In revision 1 a batch was of one segment.
pub const PROTOCOL: (u16, u16) = (2, 2);

/// Feature bit of a node's greeting: it answers [`Request::Terms`].
pub const FEATURE_TERMS: u64 = 1;
/// Feature bit of a node's greeting: it answers [`Request::Trace`].
pub const FEATURE_TRACE: u64 = 2;

/// Largest volume that can be replicated: 128 TiB.
pub const MAX_VOLUME: u64 = 128 << 40;
/// Largest control message, in bytes: a `Want` with [`MAX_HAVE`] snapshots, or the `Plan` of the largest volume.
pub const MAX_CONTROL: usize = 24 << 20;
/// Largest reply that has no list in it, in bytes.
pub const MAX_SHORT: usize = 4096;
/// Largest request, in bytes.
pub const MAX_REQUEST: usize = 2 << 20;
/// Most snapshots that a downstream says it has; the newest are named when it has more.
pub const MAX_HAVE: usize = 65_536;
/// Largest header of a batch, in bytes.
pub const MAX_BATCH_HEADER: usize = 64 << 10;
/// Most bytes of volume data in a batch, before compression.
pub const MAX_BATCH: usize = 1 << 20;
/// Most segments in one request for data.
pub const MAX_SEGMENTS: usize = 65_536;
/// Most segments in a plan: those of the largest volume.
pub const MAX_PLAN_SEGMENTS: usize = (MAX_VOLUME / zumastor_core::SEGMENT) as usize;
/// Most segments whose leaf hashes one request asks for: 2 MiB of hashes.
pub const MAX_LEAF_SEGMENTS: u64 = 64;
/// Most sets of leaves in one request for data.
pub const MAX_LEAF_SETS: usize = MAX_LEAF_SEGMENTS as usize;
/// Most nodes that one request asks for: 2 MiB of hashes.
pub const MAX_NODES: u64 = 65_536;
/// Most nodes on the path of a [`Trace`]: longer chains are not followed to their end.
pub const MAX_HOPS: usize = 32;
/// Largest answer to a [`Trace`], in bytes: each hop has a key and two names of at most 63 bytes.
pub const MAX_TRACE_REPLY: usize = 8 << 10;
/// Longest text in an error, in bytes.
pub const MAX_TEXT: usize = 1024;
/// Pages in a leaf.
pub const PAGES_PER_LEAF: u32 = (zumastor_core::LEAF / PAGE) as u32;

/// First message on a stream that either side opens: what it wants on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Upstream to downstream: there is something new. Answered by [`AnnounceReply`]s.
    Announce(Announce),
    /// Downstream to upstream: what do I need? Answered by [`WantReply`]s.
    Want(Want),
    /// Downstream to upstream: send me this. Answered by batches.
    Fetch(Fetch),
    /// Downstream to upstream: hashes, to find what differs. Answered by one [`WalkReply`].
    Walk(Walk),
    /// Downstream to upstream: this snapshot is committed here, durably. Answered by one [`CommittedReply`].
    Committed(Committed),
    /// Downstream to upstream: what do you do by yourself? Answered by one [`TermsReply`]. Only for nodes that have
    /// [`FEATURE_TERMS`].
    Terms(Terms),
    /// Downstream to upstream: does what you send me come from me? Answered by one [`TraceReply`]. Only for nodes that have
    /// [`FEATURE_TRACE`].
    Trace(Trace),
}

/// There is something new in a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// The volume's name at the downstream.
    pub volume: String,
    /// The volume's name at the upstream.
    pub upstream_volume: String,
    /// The newest snapshot that the downstream is to have, or the one that was asked for.
    pub number: SnapshotNumber,
    /// Whether it is that snapshot which is to be received, although there may be newer ones.
    pub exactly: bool,
    /// The volume that it is a snapshot of, whatever it is called.
    pub lineage: Lineage,
    /// The epoch of the upstream's volume.
    pub epoch: u64,
}

/// What the downstream does about an [`Announce`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AnnounceReply {
    /// It is pulling, and this is how far it is.
    Progress(Progress),
    /// It has what was announced.
    Done(PullSummary),
    /// It refused, or failed.
    Failed(Refusal),
    /// It has the volume in this epoch, which is a later one: the upstream's has been superseded.
    Superseded(u64),
}

/// What a downstream has of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The volume's name at the upstream.
    pub volume: String,
    /// The snapshots it has, newest last.
    #[serde(deserialize_with = "bounded::<_, _, MAX_HAVE>")]
    pub have: Vec<SnapshotGuid>,
    /// The snapshot it was receiving when it was interrupted.
    pub resume: Option<SnapshotGuid>,
    /// The snapshot that somebody asked for, although there may be newer ones.
    pub wanted: Option<SnapshotNumber>,
    /// The volume that they are snapshots of, if there are any, and the epoch it has there.
    pub epoch: Option<(Lineage, u64)>,
}

/// Answer to a [`Want`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantReply {
    /// The upstream is hashing what it has not hashed before; another answer follows.
    Working,
    /// What to fetch.
    Plan(Plan),
    /// The newest snapshot that both have is this one, and it is all that the downstream is to have, or newer than what it
    /// wanted.
    UpToDate {
        /// That snapshot.
        number: SnapshotNumber,
        /// The epoch of the upstream's volume.
        epoch: u64,
    },
    /// The volume has no snapshot that could be sent.
    Nothing,
    /// No.
    Refused(Refusal),
}

/// A transfer, as the upstream proposes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The snapshot to receive, with its digest.
    pub record: SnapshotRecord,
    /// The newest snapshot that both have and that is older.
    pub base: Option<SnapshotGuid>,
    /// The segments that carry changes since the base (without one: data), ascending.
    #[serde(deserialize_with = "bounded::<_, _, MAX_PLAN_SEGMENTS>")]
    pub changed: Vec<ChangedSegment>,
    /// Whether the downstream is to have others after this one: it asks again when it has this.
    pub more: bool,
    /// The epoch of the upstream's volume.
    pub epoch: u64,
}

/// A segment with changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedSegment {
    /// Which.
    pub segment: SegmentIndex,
    /// At most so many bytes of data changed, as far as the upstream's store can tell without reading; zeros that took the
    /// place of data do not count.
    pub bytes: u32,
}

/// A request for data of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The volume's name at the upstream.
    pub volume: String,
    /// The snapshot.
    pub target: SnapshotGuid,
    /// What part of it.
    pub what: FetchWhat,
}

/// What part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchWhat {
    /// Of these segments, ascending, what changed since the base; without a base, what is not zero.
    Changes {
        /// The base.
        base: Option<SnapshotGuid>,
        /// The segments.
        #[serde(deserialize_with = "bounded::<_, _, MAX_SEGMENTS>")]
        segments: Vec<SegmentIndex>,
    },
    /// These leaves in full, by segment, ascending.
    Leaves(#[serde(deserialize_with = "bounded::<_, _, MAX_LEAF_SETS>")] Vec<SegmentLeafSet>),
}

/// Leaves of one segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentLeafSet {
    /// The segment.
    pub segment: SegmentIndex,
    /// Positions within the segment, ascending: at most 1,024.
    #[serde(deserialize_with = "bounded::<_, _, 1024>")]
    pub leaves: Vec<u16>,
}

/// Header of a frame that answers a [`Fetch`]. Only a batch has a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchReply {
    /// Changed leaves. Of the segments before its last, all has been sent then.
    Batch(BatchHeader),
    /// All that was asked for has been sent.
    End,
    /// No, or no more.
    Refused(Refusal),
    /// Nothing that differs was found for a while; it is being looked for.
    Working,
}

/// Changed leaves. The payload holds the data pages of all of them, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchHeader {
    /// How the payload is encoded.
    pub codec: Codec,
    /// By segment, ascending; at least one.
    pub parts: Vec<BatchPart>,
}

/// Changed leaves of one segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPart {
    /// The segment.
    pub segment: SegmentIndex,
    /// Ascending and disjoint; at least one.
    pub entries: Vec<BatchEntry>,
}

/// How a payload is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// One or more leaves of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchEntry {
    /// Pages of one leaf.
    Leaf {
        /// Position within the segment.
        leaf: u16,
        /// Bit `i` set: page `i` is in the payload.
        data: u16,
        /// Bit `i` set: page `i` is zero now.
        zero: u16,
        /// The leaf's hash, all pages together.
        hash: Hash,
    },
    /// Leaves that are entirely zero.
    Zeros {
        /// Position of the first within the segment.
        first: u16,
        /// How many.
        count: u16,
    },
}

/// A request for hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    /// The volume's name at the upstream.
    pub volume: String,
    /// The snapshot.
    pub target: SnapshotGuid,
    /// Whose.
    pub level: WalkLevel,
    /// First segment.
    pub first: SegmentIndex,
    /// Number of segments.
    pub count: u64,
}

/// Which hashes a [`Walk`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WalkLevel {
    /// The node of each segment.
    Nodes,
    /// All leaves of each segment, one segment after the other.
    Leaves,
}

/// Answer to a [`Walk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WalkReply {
    /// The hashes, left to right.
    Hashes(Vec<Hash>),
    /// No.
    Refused(Refusal),
}

/// A snapshot is committed at the downstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The volume's name at the upstream.
    pub volume: String,
    /// The snapshot.
    pub target: SnapshotGuid,
}

/// Answer to [`Committed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommittedReply {
    /// The upstream has noted it: its hold has moved.
    Noted,
    /// No.
    Refused(Refusal),
}

/// What the upstream does by itself for this downstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The volume's name at the upstream.
    pub volume: String,
}

/// Answer to [`Terms`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TermsReply {
    /// This.
    Terms {
        /// Seconds between two replications that it begins; nothing if it begins none.
        period: Option<u64>,
    },
    /// No.
    Refused(Refusal),
}

/// Follows a volume from downstream to upstream, to find out whether it goes round in a circle. Each node that receives the
/// volume from another adds itself and asks on; nobody remembers anything of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The volume's name at the upstream.
    pub volume: String,
    /// Who asked, from the first to the one that asks now: at least one, at most [`MAX_HOPS`].
    #[serde(deserialize_with = "bounded::<_, _, MAX_HOPS>")]
    pub path: Vec<Hop>,
}

/// A volume on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The node: its public key.
    pub key: [u8; 32],
    /// What it is called.
    pub node: NodeName,
    /// What the volume is called there.
    pub volume: VolumeName,
}

impl Hop {
    /// Whether it is the same volume of the same node, whatever that is called.
    pub fn is(&self, other: &Self) -> bool {
        self.key == other.key && self.volume == other.volume
    }
}

/// Answer to a [`Trace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TraceReply {
    /// The chain has a beginning: a node that receives the volume from nobody, or from nobody who sends it.
    Clear,
    /// It goes round: these hops, each of which receives from the one that follows, and the last from the first.
    Circle(#[serde(deserialize_with = "bounded::<_, _, MAX_HOPS>")] Vec<Hop>),
    /// It is not known: the volume is not for the node that asks, or somebody further up cannot be asked now.
    Refused(Refusal),
}

/// Why a peer will not do what it was asked. Clear enough to be shown to a person as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people; at most [`MAX_TEXT`] bytes, without control characters.
    #[serde(deserialize_with = "plain_text")]
    pub text: String,
}

/// Kind of a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The peer is no target (or not the source) of this volume, or there is no such volume: it is not said which.
    NotAllowed,
    /// The snapshot is not there any more; ask again.
    Gone,
    /// The request makes no sense.
    Malformed,
    /// Busy with another transfer of this volume; try later.
    Busy,
    /// Something failed over there.
    Failed,
    /// Stopped: a person has to decide. Trying again does not help.
    Stopped,
}

impl Refusal {
    /// A refusal; an overlong text is cut.
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        Self { code, text: plain(&text.into()) }
    }
}

/// What can be shown and kept: cut at [`MAX_TEXT`] bytes, without what a terminal would obey.
fn plain(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn plain_text<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Ok(plain(&String::deserialize(d)?))
}

/// Reads a sequence, and stops where it has more items than it may: memory is not spent on the rest.
fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(
    d: D,
) -> Result<Vec<T>, D::Error> {
    struct Bounded<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = items.next_element()? {
                if all.len() == MAX {
                    return Err(A::Error::invalid_length(MAX + 1, &self));
                }
                all.push(item);
            }
            Ok(all)
        }
    }
    d.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

impl Fetch {
    /// Checks what a peer asks for against the limits.
    pub fn validate(&self) -> Result<(), Refusal> {
        let good = match &self.what {
            FetchWhat::Changes { segments, .. } => ascending(segments) && segments.len() <= MAX_SEGMENTS,
            FetchWhat::Leaves(sets) => {
                sets.len() <= MAX_LEAF_SEGMENTS as usize
                    && sets.windows(2).all(|pair| pair[0].segment < pair[1].segment)
                    && sets.iter().all(|set| {
                        ascending(&set.leaves)
                            && set.leaves.last().is_none_or(|l| u64::from(*l) < LEAVES_PER_SEGMENT)
                    })
            }
        };
        if good { Ok(()) } else { Err(malformed("a request for data that is out of order or too large")) }
    }
}

impl BatchPart {
    /// Bytes of volume data that the payload holds of it, if all of its pages are whole.
    pub fn data_bytes(&self) -> u64 {
        let pages = |entry: &BatchEntry| match entry {
            BatchEntry::Leaf { data, .. } => u64::from(data.count_ones()),
            BatchEntry::Zeros { .. } => 0,
        };
        self.entries.iter().map(pages).sum::<u64>() * PAGE
    }
}

impl Walk {
    /// Checks what a peer asks for against the limits and a volume of `size` bytes.
    pub fn validate(&self, size: u64) -> Result<(), Refusal> {
        let most = match self.level {
            WalkLevel::Nodes => MAX_NODES,
            WalkLevel::Leaves => MAX_LEAF_SEGMENTS,
        };
        let end = self.first.0.checked_add(self.count);
        if self.count <= most && end.is_some_and(|end| end <= SegmentIndex::count(size)) {
            Ok(())
        } else {
            Err(malformed("a request for hashes that is too large or beyond the end of the volume"))
        }
    }
}

fn malformed(what: &str) -> Refusal {
    Refusal::new(RefusalCode::Malformed, format!("the peer sent {what}"))
}

fn ascending<T: Ord>(items: &[T]) -> bool {
    items.windows(2).all(|pair| pair[0] < pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte for byte: a change here breaks every node that is not updated at the same moment.
    #[test]
    fn messages_keep_their_bytes() {
        let guid = SnapshotGuid(uuid::Uuid::from_bytes([7; 16]));
        let fetch = Request::Fetch(Fetch {
            volume: "v".into(),
            target: guid,
            what: FetchWhat::Changes { base: None, segments: vec![SegmentIndex(300)] },
        });
        let mut expected = vec![2, /* name */ 1, b'v', /* guid */ 16];
        expected.extend([7; 16]);
        expected.extend([
            /* changes */ 0, /* no base */ 0, /* one segment */ 1,
            /* 300 as LEB128 */ 0xac, 0x02,
        ]);
        assert_eq!(postcard::to_stdvec(&fetch).unwrap(), expected);

        let leaf = BatchEntry::Leaf { leaf: 5, data: 1, zero: 0x8000, hash: Hash([9; 32]) };
        let zeros = BatchEntry::Zeros { first: 6, count: 2 };
        let part = |segment, entries| BatchPart { segment: SegmentIndex(segment), entries };
        let batch = FetchReply::Batch(BatchHeader {
            codec: Codec::Zstd,
            parts: vec![part(1, vec![leaf, zeros.clone()]), part(300, vec![zeros])],
        });
        let mut expected = vec![0, /* zstd */ 1, /* parts */ 2];
        expected.extend([
            /* segment */ 1, /* entries */ 2, 0, 5, 1, /* 0x8000 */ 0x80, 0x80, 0x02,
        ]);
        expected.extend([9; 32]);
        expected.extend([1, 6, 2]);
        expected.extend([/* segment */ 0xac, 0x02, /* entries */ 1, 1, 6, 2]);
        assert_eq!(postcard::to_stdvec(&batch).unwrap(), expected);

        assert_eq!(
            postcard::to_stdvec(&WantReply::UpToDate { number: SnapshotNumber(3), epoch: 9 }).unwrap(),
            [2, 3, 9]
        );
        let terms = Request::Terms(Terms { volume: "v".into() });
        assert_eq!(postcard::to_stdvec(&terms).unwrap(), [5, 1, b'v']);
        assert_eq!(postcard::to_stdvec(&TermsReply::Terms { period: Some(60) }).unwrap(), [0, 1, 60]);
        let hop = Hop { key: [7; 32], node: "n".parse().unwrap(), volume: "v".parse().unwrap() };
        let trace = Request::Trace(Trace { volume: "w".into(), path: vec![hop.clone()] });
        let key = [7; 32];
        let expected = [&[6, 1, b'w', /* hops */ 1][..], &key, &[1, b'n', 1, b'v']].concat();
        assert_eq!(postcard::to_stdvec(&trace).unwrap(), expected);
        let expected = [&[1, 1][..], &key, &[1, b'n', 1, b'v']].concat();
        assert_eq!(postcard::to_stdvec(&TraceReply::Circle(vec![hop])).unwrap(), expected);
        assert_eq!(
            postcard::to_stdvec(&Refusal::new(RefusalCode::Stopped, "no")).unwrap(),
            [5, 2, b'n', b'o']
        );
    }

    #[test]
    fn paths_are_bounded() {
        let long = "x".repeat(63);
        let hop = Hop { key: [7; 32], node: long.parse().unwrap(), volume: long.parse().unwrap() };
        let full = TraceReply::Circle(vec![hop.clone(); MAX_HOPS]);
        let bytes = postcard::to_stdvec(&full).unwrap();
        assert!(bytes.len() <= MAX_TRACE_REPLY, "{}", bytes.len());
        assert_eq!(postcard::from_bytes::<TraceReply>(&bytes).unwrap(), full);
        let trace = |hops| Trace { volume: "v".into(), path: vec![hop.clone(); hops] };
        let read = |trace: &Trace| postcard::from_bytes::<Trace>(&postcard::to_stdvec(trace).unwrap());
        assert!(read(&trace(MAX_HOPS)).is_ok());
        assert!(read(&trace(MAX_HOPS + 1)).is_err());
        let too_many = TraceReply::Circle(vec![hop; MAX_HOPS + 1]);
        assert!(postcard::from_bytes::<TraceReply>(&postcard::to_stdvec(&too_many).unwrap()).is_err());
        // A name that is none: a path, or longer than names are.
        for name in ["../up", &"x".repeat(64)] {
            let bytes = [&[1, 1][..], &[7; 32], &[name.len() as u8], name.as_bytes(), &[1, b'v']].concat();
            assert!(postcard::from_bytes::<TraceReply>(&bytes).is_err(), "{name}");
        }
    }

    #[test]
    fn requests_out_of_order_or_bounds_are_refused() {
        let fetch = |what| Fetch { volume: "v".into(), target: SnapshotGuid(uuid::Uuid::nil()), what };
        let segments = |s: &[u64]| FetchWhat::Changes {
            base: None,
            segments: s.iter().map(|i| SegmentIndex(*i)).collect(),
        };
        assert!(fetch(segments(&[1, 2, 9])).validate().is_ok());
        assert!(fetch(segments(&[2, 2])).validate().is_err());
        let leaves = |leaves| FetchWhat::Leaves(vec![SegmentLeafSet { segment: SegmentIndex(0), leaves }]);
        assert!(fetch(leaves(vec![0, 1023])).validate().is_ok());
        assert!(fetch(leaves(vec![0, 1024])).validate().is_err());
        let walk = |first, count| Walk {
            volume: "v".into(),
            target: SnapshotGuid(uuid::Uuid::nil()),
            level: WalkLevel::Leaves,
            first: SegmentIndex(first),
            count,
        };
        assert!(walk(0, 2).validate(100 << 20).is_ok());
        assert!(walk(1, 2).validate(100 << 20).is_err());
        assert!(walk(u64::MAX, 2).validate(100 << 20).is_err());
        assert!(walk(0, 65).validate(1 << 40).is_err());
    }
}
