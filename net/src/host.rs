//! What replication needs from the daemon around it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use tokio::sync::watch;
use zumastor_core::{Lineage, NodeName, SnapshotGuid, SnapshotNumber, SnapshotStore, StoreError};

use crate::{
    channel::Channel,
    compression::Compression,
    permit::Permit,
    progress::{Progress, PullSummary},
    rate::RateLimiter,
    room::SendRoom,
    transfer::Offer,
    wire::{Announce, Refusal, Trace, TraceReply},
};

/// Answers for this node when a peer asks.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// The volume that a peer wants to read, if it is a target of it.
    async fn serve(&self, peer: &NodeName, volume: &str) -> Result<Served, Refusal>;

    /// The volume whose snapshots a peer may ask for leaf by leaf, to repair its own: also the source of a volume, of what
    /// it has sent.
    async fn lend(&self, peer: &NodeName, volume: &str) -> Result<Served, Refusal> {
        self.serve(peer, volume).await
    }

    /// A peer says that it has something new. If it is the source of that volume, a pull is begun (or the one that
    /// runs goes on) and what it does can be followed.
    async fn announced(
        &self,
        peer: &NodeName,
        announce: &Announce,
    ) -> Result<watch::Receiver<PullState>, Unheard>;

    /// Whether a volume that a peer receives from here goes round in a circle. Answers soon, whoever else has to be asked: see
    /// [`trace_patience`](crate::trace_patience).
    async fn trace(&self, peer: &NodeName, trace: &Trace) -> TraceReply;

    /// A peer has that lineage in an epoch that is later than the one of the volume it asked for.
    async fn superseded(&self, peer: &NodeName, volume: &str, lineage: Lineage, epoch: u64);
}

/// Why an announcement comes to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unheard {
    /// It is not for this node, or cannot be followed now.
    Refused(Refusal),
    /// The volume has another master since: it is here in this epoch.
    Superseded(u64),
}

impl From<Refusal> for Unheard {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What a peer may read, and how it is sent.
#[derive(Debug, Clone)]
pub struct Served {
    /// The volume.
    pub store: Arc<dyn SnapshotStore>,
    /// Its holds for that peer.
    pub holds: Arc<dyn Holds>,
    /// The epoch of the volume.
    pub epoch: u64,
    /// What of the volume that peer is to have.
    pub offer: Offer,
    /// Seconds between two replications that this node begins; none if it begins none.
    pub period: Option<u64>,
    /// How what is sent is compressed; none to send it as it is.
    pub compression: Option<Arc<Compression>>,
    /// Bounds what is sent to that peer for this volume.
    pub limiter: Option<Arc<RateLimiter>>,
    /// Counts what is sent.
    pub meter: Arc<Meter>,
    /// Follows what that peer fetches, if it is of interest.
    pub outgoing: Option<Arc<dyn Outgoing>>,
    /// Ends what is being sent when that is not allowed any more. Taken before it was found out that it is allowed now.
    pub permit: Permit,
    /// Memory for what is sent of the volume, to whomever.
    pub room: Arc<SendRoom>,
}

/// The holds of one pair of volume and peer. Each call replaces the holds of the one before, durably, and before it
/// returns.
#[async_trait]
pub trait Holds: fmt::Debug + Send + Sync {
    /// A transfer from `base` to `target` is under way. On the downstream, `target` does not exist yet.
    async fn transferring(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
    ) -> Result<(), StoreError>;

    /// The newest snapshot that both have is this one.
    async fn common(&self, number: SnapshotNumber) -> Result<(), StoreError>;
}

/// Follows what one peer fetches of one volume, as far as the end that sends knows it.
#[async_trait]
pub trait Outgoing: fmt::Debug + Send + Sync {
    /// The peer has been told what there is for it, and is going to fetch that; what it was told before is not fetched any
    /// more.
    fn planned(&self, plan: &Planned);

    /// A stream of it begins.
    fn begun(&self, target: SnapshotGuid);

    /// So many bytes of volume data, before compression, were sent in so many bytes.
    fn sent(&self, target: SnapshotGuid, data: u64, wire: u64);

    /// A stream of it ended: it brought all that it was to bring, or it broke.
    async fn ended(&self, target: SnapshotGuid, broken: Option<Broken>);

    /// The peer has that snapshot. This may be said again, and of those that it has had for long.
    async fn arrived(&self, number: SnapshotNumber);
}

/// What a peer is going to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// The snapshot.
    pub target: SnapshotGuid,
    /// Its number.
    pub number: SnapshotNumber,
    /// The snapshot that both have.
    pub base: Option<SnapshotNumber>,
    /// Bytes of the volume that may differ, at most. What an earlier run has brought is among them.
    pub total: u64,
    /// Whether another snapshot follows at once.
    pub more: bool,
}

/// Why a stream broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// What is sent could not be read, and the peer was told so.
    Refused(String),
    /// The peer does not take it any more, or cannot be reached.
    Lost(String),
    /// It may not be sent any more.
    Withdrawn,
}

/// Makes room for what comes into one volume.
#[async_trait]
pub trait MakeRoom: fmt::Debug + Send + Sync {
    /// So many bytes are about to come in. What cannot be had is noticed by whoever asks the store.
    async fn make_room(&self, bytes: u64);
}

/// What a pull that was asked for is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum PullState {
    /// It runs.
    Running(Progress),
    /// It is done.
    Done(PullSummary),
    /// It failed.
    Failed(Refusal),
}

/// Counts bytes sent for one pair of volume and peer, since the daemon started.
#[derive(Debug, Default)]
pub struct Meter {
    data: AtomicU64,
    wire: AtomicU64,
}

impl Meter {
    /// Bytes of volume data sent, before compression.
    pub fn data(&self) -> u64 {
        self.data.load(Ordering::Relaxed)
    }

    /// Bytes sent for them.
    pub fn wire(&self) -> u64 {
        self.wire.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, data: u64, wire: u64) {
        self.data.fetch_add(data, Ordering::Relaxed);
        self.wire.fetch_add(wire, Ordering::Relaxed);
    }
}

/// Opens streams to one peer: a QUIC connection, or a pipe in a test.
#[async_trait]
pub trait Link: Send + Sync {
    /// Opens a bidirectional stream.
    async fn open(&self) -> std::io::Result<Channel>;

    /// Whether the peer has said that it knows nothing of this connection: it was started again since. What nothing was heard of
    /// may be sent again over a new one.
    fn is_forgotten(&self) -> bool {
        false
    }

    /// What the peer can do beyond the revision of the protocol that is spoken, a bit each.
    fn features(&self) -> u64 {
        0
    }
}
