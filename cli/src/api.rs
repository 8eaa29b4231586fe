//! Requests and answers of the control API, which is JSON over HTTP on the control socket, below `/v1`.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /status`, `GET /status/VOLUME` | | [`Status`] |
//! | `POST /volumes/VOLUME` | [`DefineVolume`] | [`Outcome`] |
//! | `DELETE /volumes/VOLUME` | | [`Outcome`] |
//! | `PUT /volumes/VOLUME/master` | | [`Outcome`] |
//! | `PUT /volumes/VOLUME/source` | [`DefineSource`] | [`Outcome`] |
//! | `DELETE /volumes/VOLUME/source` | | [`Outcome`] |
//! | `PUT /volumes/VOLUME/targets` | [`DefineTarget`] | [`Outcome`] |
//! | `DELETE /volumes/VOLUME/targets/HOST` | | [`Outcome`] |
//! | `POST /volumes/VOLUME/snapshots` | | [`SnapshotStatus`] |
//! | `PUT`, `DELETE /volumes/VOLUME/snapshots/NUMBER/holds/NAME` | | [`Outcome`] |
//! | `POST /volumes/VOLUME/replicate` | [`Replicate`] | [`Outcome`]; with `wait`, lines of [`ReplicateEvent`] |
//! | `GET /peers` | | a list of [`PeerStatus`] |
//! | `POST /peers` | [`AddPeer`] | [`Outcome`] |
//! | `DELETE /peers/NAME` | | [`Outcome`] |
//!
//! Every error is a [`Failure`](crate::exit::Failure). Snapshot numbers are numbers; a local one is 2^48 and more.

use std::{net::SocketAddr, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zumastor_core::{
    Hold, NodeName, SnapshotGuid, SnapshotNumber, StoreInfo, VolumeName,
    config::{SourceConfig, TargetConfig},
    digest::Digest,
};
use zumastor_net::{Progress, PullSummary};

use crate::exit::Failure;

/// Version of [`Status`]: raised when a field changes its meaning or goes away.
pub const STATUS_SCHEMA: u32 = 1;

/// `define volume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefineVolume {
    /// Absolute path of the origin.
    pub origin: PathBuf,
    /// Absolute path of the snapshot store.
    pub snapstore: PathBuf,
}

/// `define source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefineSource {
    /// `HOST[:PORT]`: a peer's name, or one of its addresses.
    pub host: String,
    /// Seconds between two questions for something new.
    pub period: Option<u64>,
    /// The volume's name there.
    pub name: Option<String>,
}

/// `define target`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefineTarget {
    /// `HOST[:PORT]`: a peer's name, or one of its addresses.
    pub host: String,
    /// How it is sent.
    pub options: TargetConfig,
}

/// `replicate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replicate {
    /// A target of the volume, or its source.
    pub host: String,
    /// Follow the replication to its end.
    #[serde(default)]
    pub wait: bool,
}

/// `peer add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddPeer {
    /// What to call it here.
    pub name: NodeName,
    /// What it printed as its ticket.
    pub ticket: String,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether anything is different now.
    pub changed: bool,
    /// What was done.
    pub done: String,
    /// What is good to know about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Outcome {
    pub(crate) fn changed(done: impl Into<String>) -> Self {
        Self { changed: true, done: done.into(), notes: Vec::new() }
    }

    pub(crate) fn already(done: impl Into<String>) -> Self {
        Self { changed: false, ..Self::changed(done) }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// A line of the answer to [`Replicate`] with `wait`. The last is `Done` or `Failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicateEvent {
    /// It runs.
    Progress(Progress),
    /// It is done.
    Done(PullSummary),
    /// It failed.
    Failed(Failure),
}

/// A node and all it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`STATUS_SCHEMA`].
    pub schema: u32,
    /// The node.
    pub node: NodeStatus,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// What it calls itself.
    pub name: NodeName,
    /// Its public key, hexadecimal.
    pub key: String,
    /// Where it really listens.
    pub listen: SocketAddr,
    /// Version of the program.
    pub version: String,
    /// When the daemon was started.
    pub started: Timestamp,
}

/// A volume on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: VolumeName,
    /// Master, replica, or neither yet.
    pub role: Role,
    /// How it is doing.
    pub health: Health,
    /// Why it is not well.
    pub trouble: Option<String>,
    /// The origin.
    pub origin: PathBuf,
    /// The snapshot store.
    pub snapstore: PathBuf,
    /// How snapshots are made.
    pub store: Option<StoreInfo>,
    /// Size of the head in bytes.
    pub size: Option<u64>,
    /// Bytes that snapshots and what is being received take.
    pub used: Option<u64>,
    /// Bytes free for more.
    pub free: Option<u64>,
    /// What the head shows.
    pub head: Option<HeadStatus>,
    /// The snapshots, in ascending order.
    pub snapshots: Vec<SnapshotStatus>,
    /// The snapshot that is staged: being received, or to be resumed.
    pub staged: Option<SnapshotNumber>,
    /// Where it comes from.
    pub source: Option<SourceStatus>,
    /// Where it is sent.
    pub targets: Vec<TargetStatus>,
    /// The newest transfers, the newest first.
    pub history: Vec<TransferRecord>,
}

/// What this node is for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It takes the snapshots.
    Master,
    /// It receives them.
    Replica,
    /// Not decided yet.
    Undecided,
}

/// How a volume is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Well.
    Ok,
    /// Something failed and will be tried again.
    Retrying,
    /// A person has to decide.
    Stopped,
    /// Its store cannot be opened.
    Unavailable,
}

/// What the head shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadStatus {
    /// Nothing yet.
    Empty,
    /// Exactly this snapshot.
    Snapshot(SnapshotNumber),
    /// Something else, as a volume in use does.
    Written,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Its number.
    pub number: SnapshotNumber,
    /// Its name: the time it was taken, in this node's time zone.
    pub name: String,
    /// Its identity on every node.
    pub guid: SnapshotGuid,
    /// When it was taken.
    pub created: Timestamp,
    /// Size of the volume at that moment.
    pub size: u64,
    /// Digest of its content, once it has been computed.
    pub digest: Option<Digest>,
    /// Why it must stay.
    pub holds: Vec<Hold>,
}

/// The upstream of a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// How it was defined.
    pub config: SourceConfig,
    /// Address of the connection, if there is one.
    pub connected: Option<SocketAddr>,
    /// What both have, and how far this node is behind.
    pub lag: Lag,
    /// What is going on.
    pub work: WorkStatus,
}

/// A downstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// The peer.
    pub host: NodeName,
    /// How it was defined.
    pub config: TargetConfig,
    /// Address of the connection, if there is one.
    pub connected: Option<SocketAddr>,
    /// What both have, and how far it is behind.
    pub lag: Lag,
    /// What is going on.
    pub work: WorkStatus,
    /// Bytes of volume data sent since the daemon started.
    pub sent_data: u64,
    /// Bytes on the wire for them.
    pub sent_wire: u64,
}

/// How far a downstream is behind its upstream, as far as this node knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// The newest snapshot that both have.
    pub common: Option<SnapshotNumber>,
    /// When it was confirmed last that the downstream has it.
    pub confirmed: Option<Timestamp>,
    /// Newer snapshots that are known of.
    pub behind: u64,
    /// Age of the newest common snapshot: so old is what the downstream shows. Grows while a peer is silent.
    pub age_seconds: Option<u64>,
}

/// What a replication is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkStatus {
    /// In a word.
    pub state: WorkState,
    /// How far it is, while it runs.
    pub progress: Option<Progress>,
    /// Bytes a second, on the wire, during the last seconds.
    pub rate: u64,
    /// When it runs next without being asked.
    pub next: Option<Timestamp>,
    /// What went wrong the last time, unless it has gone well since.
    pub error: Option<WorkError>,
    /// What came of the last one that went well.
    pub last: Option<LastRun>,
}

/// What a replication is doing, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkState {
    /// Nothing.
    Idle,
    /// Waiting for a connection.
    Connecting,
    /// Finding out what is needed.
    Planning,
    /// Moving data.
    Transferring,
    /// Checking and committing what was received.
    Verifying,
    /// Making the volume show the new snapshot.
    Flipping,
    /// Waiting to try again after an error.
    Waiting,
    /// An error that a person has to do something about; the next command or announcement tries again.
    Stopped,
}

/// What went wrong with a replication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkError {
    /// In words.
    pub text: String,
    /// When.
    pub at: Timestamp,
    /// Whether a person has to do something about it.
    pub permanent: bool,
}

/// What came of a replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// When it ended.
    pub at: Timestamp,
    /// What it did.
    pub summary: PullSummary,
}

/// A transfer that ended, well or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRecord {
    /// When it ended.
    pub at: Timestamp,
    /// The other node.
    pub peer: NodeName,
    /// Which way.
    pub direction: Direction,
    /// What it did, if it went well.
    pub summary: Option<PullSummary>,
    /// What went wrong, if it did not.
    pub error: Option<String>,
}

/// Which way a transfer went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the peer.
    Sent,
    /// From the peer.
    Received,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name here.
    pub name: NodeName,
    /// Its public key, hexadecimal.
    pub key: String,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// Address of the connection, if there is one.
    pub connected: Option<SocketAddr>,
    /// The volumes that come from it or go to it.
    pub volumes: Vec<VolumeName>,
}
