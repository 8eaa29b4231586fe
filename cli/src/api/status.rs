//! What `status` tells.

use std::{fmt, net::SocketAddr, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zumastor_core::{
    Fill, GroupId, GroupName, Hold, HoldOwner, NodeName, SnapshotGuid, SnapshotNumber, StoreInfo, VolumeName,
    config::{SourceConfig, TargetConfig},
    digest::Digest,
};
use zumastor_net::{Phase, Progress, PullSummary};

use super::{HookRun, Part, ScheduleStatus, ScrubReport, VolumeEvent};

/// Version of [`Status`]: raised when a field changes its meaning or goes away.
pub const STATUS_SCHEMA: u32 = 1;

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
    /// Set on a master when another node has been made the master since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded: Option<Superseded>,
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
    /// The pool in which volume and snapshots lie, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolStatus>,
    /// Bytes that deleting all snapshots would free, if that was asked for and can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_snapshots: Option<u64>,
    /// Memory that the daemon takes for it.
    #[serde(default)]
    pub cache: CacheStatus,
    /// What is done when space gets short, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<SpaceStatus>,
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
    /// Its rotations, if it has any.
    #[serde(default)]
    pub schedule: Option<ScheduleStatus>,
    /// What a person stopped.
    #[serde(default)]
    pub stopped: Vec<Part>,
    /// How far a scrub is that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<Progress>,
    /// What happened to its snapshots, the newest first.
    #[serde(default)]
    pub events: Vec<VolumeEvent>,
    /// The group of volumes that its snapshots are taken with.
    #[serde(default)]
    pub group: Option<GroupName>,
    /// What its hooks did last, or do now, since the daemon was started.
    #[serde(default)]
    pub hooks: Vec<HookRun>,
    /// What is mounted of it; nothing where nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounts: Option<MountStatus>,
}

/// What is mounted of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where the volume is mounted.
    pub mountpoint: Option<PathBuf>,
    /// The snapshot that is seen there; nothing when it is the head.
    pub shows: Option<SnapshotNumber>,
    /// Below which directory its snapshots are mounted.
    pub snappath: Option<PathBuf>,
    /// How many of these directories are exported by NFS.
    #[serde(default)]
    pub exported: usize,
    /// Whether Samba shares the volume.
    #[serde(default)]
    pub shared: bool,
    /// What is not mounted as it should be, and why. It is tried again and again.
    pub troubles: Vec<String>,
    /// What is good to know about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
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

/// That another node is the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superseded {
    /// Its epoch: the time it was made the master, in milliseconds since 1970.
    pub epoch: u64,
    /// The peer that said so.
    pub by: NodeName,
    /// When.
    pub heard: Timestamp,
}

/// How a volume is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Well.
    Ok,
    /// Something failed and will be tried again.
    Retrying,
    /// This replica or a target is further behind than it may be.
    Late,
    /// There is too little space, and nothing that may be dropped.
    Full,
    /// A person has to decide.
    Stopped,
    /// A scrub found bad bytes in a snapshot, and they are bad still.
    Damaged,
    /// Its store cannot be opened.
    Unavailable,
}

/// Memory that the daemon takes for a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Bytes that it may take: as many as its file gives it, or as it needs if that is more.
    pub size: u64,
    /// Bytes that are kept now because they may be asked for again.
    pub kept: u64,
    /// Streams that the volume is received over.
    pub streams: u64,
    /// What is to be said where its file gives it too little.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caution: Option<String>,
}

/// How full the pool is in which a volume and its snapshots lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// For what they hold.
    pub data: Fill,
    /// For what says which block belongs to which of them.
    pub metadata: Fill,
    /// Whether the metadata suffice for all snapshots that the schedule keeps, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<MetadataPlan>,
}

/// The metadata that a volume and its snapshots take, in bytes. What is to come is an estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataPlan {
    /// Chunks of the volume.
    pub chunks: u64,
    /// For the volume, when all of it is in use.
    pub volume: u64,
    /// Snapshots that there are.
    pub snapshots: u64,
    /// What one of them takes on average.
    pub each: u64,
    /// Snapshots that the rotations keep, and what is there besides.
    pub planned: u64,
    /// What the volume and as many snapshots take if they go on as they did.
    pub needed: u64,
    /// The same if all of the volume was written over between any two snapshots.
    pub worst: u64,
}

/// What is done when space gets short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// With less than that many bytes free, snapshots are dropped.
    pub minimum_free: u64,
    /// Manual ones as well, after all others.
    pub drop_manual: bool,
    /// Snapshots that were dropped for it since the daemon started.
    pub dropped: u64,
    /// Since when there is too little, and nothing that may be dropped.
    pub full_since: Option<Timestamp>,
    /// What to do about that.
    pub remedy: Option<String>,
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
    /// The rotations it belongs to; none if it is manual.
    #[serde(default)]
    pub rotations: Vec<String>,
    /// The identity that it shares with the snapshots of other volumes that were taken together with it.
    #[serde(default)]
    pub group: Option<GroupId>,
    /// Size of the volume at that moment.
    pub size: u64,
    /// Digest of its content, once it has been computed.
    pub digest: Option<Digest>,
    /// Why it must stay.
    pub holds: Vec<HoldStatus>,
    /// What came of the last scrub of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubReport>,
    /// Where it is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounted: Option<PathBuf>,
    /// What can be mounted or read as a file, where there is such a thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PathBuf>,
    /// What it takes, if that was asked for and can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<SpaceOfSnapshot>,
}

/// What the hold is called of a target that is to have each snapshot, on one that it has not got yet.
pub const UNSENT: &str = "unsent";

/// Why a snapshot must stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// Who holds it.
    pub owner: HoldOwner,
    /// What the owner calls the hold.
    pub name: String,
    /// Since when.
    pub since: Timestamp,
    /// Why, in words.
    pub why: String,
}

impl From<&Hold> for HoldStatus {
    fn from(hold: &Hold) -> Self {
        let why = match (&hold.owner, hold.name.as_str()) {
            (HoldOwner::Peer(_), "base") => "the next transfer builds upon it",
            (HoldOwner::Peer(_), "transfer") => "it is being sent",
            (HoldOwner::Peer(_), UNSENT) => {
                "the target is to have each snapshot, and has not got it yet; it goes if space gets short"
            }
            (HoldOwner::User, "set-aside") => "another master's volume goes on without it",
            (_, name) => name,
        };
        Self { owner: hold.owner.clone(), name: hold.name.clone(), since: hold.since, why: why.to_owned() }
    }
}

/// What a snapshot takes, in bytes of the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceOfSnapshot {
    /// Of the blocks that hold its content.
    pub referenced: u64,
    /// Of those, the ones that nothing else uses: about what deleting it would free.
    pub exclusive: u64,
    /// Of those, the ones that another snapshot or the head uses as well.
    pub shared: u64,
}

/// One snapshot: the answer to `status VOLUME SNAPSHOT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// [`STATUS_SCHEMA`].
    pub schema: u32,
    /// The node that has it.
    pub node: NodeName,
    /// The volume.
    pub volume: VolumeName,
    /// What this node is for the volume.
    pub role: Role,
    /// The snapshot.
    pub snapshot: SnapshotStatus,
}

/// The upstream of a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// How it was defined.
    pub config: SourceConfig,
    /// Address of the connection, if there is one.
    pub connected: Option<SocketAddr>,
    /// What is to be said of how it is defined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caution: Option<String>,
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
    /// What it misses of what it was to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<Missed>,
}

/// What a target misses that is to have each snapshot: they were dropped before they were sent. Told until it has got a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// How many.
    pub count: u64,
    /// The newest of them.
    pub newest: SnapshotNumber,
    /// When the first was dropped.
    pub since: Timestamp,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, newest, .. } = self;
        let snapshots = if *count == 1 { "snapshot" } else { "snapshots" };
        write!(
            f,
            "misses {count} {snapshots} up to {newest}: dropped before they were sent, because space was short"
        )
    }
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
    /// At the upstream, how long the oldest snapshot that the downstream is to have and has not has been there; at the
    /// downstream, for how long nothing has been heard. Grows while a peer is silent.
    #[serde(default)]
    pub waiting_seconds: u64,
    /// How long that may be: the period and a margin.
    #[serde(default)]
    pub allowed_seconds: u64,
    /// By how much it is longer than that, if it is, and nobody stopped this.
    #[serde(default)]
    pub late_seconds: Option<u64>,
}

/// What a replication is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkStatus {
    /// In a word.
    pub state: WorkState,
    /// How far it is, while it runs.
    pub progress: Option<Progress>,
    /// What else is to be said while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    /// Bytes a second, on the wire, during the last seconds.
    pub rate: u64,
    /// When it runs next without being asked.
    pub next: Option<Timestamp>,
    /// The next run that somebody asked to begin later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<AskedRun>,
    /// What went wrong the last time, unless it has gone well since.
    pub error: Option<WorkError>,
    /// What came of the last one that went well.
    pub last: Option<LastRun>,
}

/// A replication that somebody asked for, to begin later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedRun {
    /// When it begins.
    pub at: Timestamp,
    /// The snapshot it is for; without one, the newest at that time.
    pub snapshot: Option<SnapshotNumber>,
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
    /// An error that a person has to do something about; the next command, announcement or snapshot tries again, and
    /// rarely it is tried without.
    Stopped,
}

impl From<Phase> for WorkState {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Connecting => Self::Connecting,
            Phase::Planning => Self::Planning,
            Phase::Transferring => Self::Transferring,
            Phase::Verifying => Self::Verifying,
            Phase::Flipping => Self::Flipping,
        }
    }
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
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
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

/// The nodes that are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerList {
    /// [`PEERS_SCHEMA`].
    pub schema: u32,
    /// In the order of their names.
    pub peers: Vec<PeerStatus>,
}

/// Version of [`PeerList`]: raised when a field changes its meaning or goes away.
pub const PEERS_SCHEMA: u32 = 1;

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
