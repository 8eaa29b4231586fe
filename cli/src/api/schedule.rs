//! Rotations, what becomes of snapshots because of them, and what is stopped.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zumastor_core::{
    Every, GroupId, GroupName, NodeName, RotationName, RotationSpec, SnapshotNumber, VolumeName,
};

use super::SnapshotStatus;

/// `define master`. What is not named stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefineMaster {
    /// The rotations to add or to change.
    #[serde(default)]
    pub rotations: Vec<Rotation>,
    /// The group to be of from now on; without it, that stays as it is.
    #[serde(default)]
    pub group: Option<GroupName>,
    /// Be of no group any more.
    #[serde(default)]
    pub no_group: bool,
    /// Do not mount the snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_snapmount: Option<bool>,
    /// Let the snapshots be seen as `.snapshot` in the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dotsnapshot: Option<bool>,
    /// Share the volume by Samba, with its snapshots as previous versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samba: Option<bool>,
    /// Who may mount the volume and its snapshots by NFS; nobody when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<Vec<String>>,
}

/// `define schedule`. Rotations that are not named stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefineRotations {
    /// The rotations to add or to change.
    #[serde(default)]
    pub rotations: Vec<Rotation>,
}

/// One rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// Its name.
    pub name: RotationName,
    /// How many of its snapshots are kept. With 0 none is taken either.
    pub keep: u32,
    /// When one is taken; of a custom rotation that is there already, what it says stays if this is absent. Those built
    /// in have times of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Every>,
}

impl From<RotationSpec> for Rotation {
    fn from(spec: RotationSpec) -> Self {
        let RotationSpec { name, keep, every } = spec;
        let every = every.filter(|_| matches!(name, RotationName::Custom(_)));
        Self { name, keep, every }
    }
}

/// `snapshot`. No body is as good as an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeSnapshot {
    /// The rotation it belongs to; without one it is manual.
    #[serde(default)]
    pub rotation: Option<String>,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenSnapshot {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: SnapshotStatus,
    /// What went wrong afterwards: it exists all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The snapshots of a group, taken together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenGroup {
    /// The identity that they share.
    pub group: GroupId,
    /// One of each volume.
    pub snapshots: BTreeMap<VolumeName, TakenSnapshot>,
    /// What went wrong afterwards: they exist all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// `delete`: all of these, or none if one of them must stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteSnapshots {
    /// The snapshots.
    #[serde(default)]
    pub numbers: Vec<SnapshotNumber>,
    /// All that need not stay instead.
    #[serde(default)]
    pub all: bool,
    /// Delete all of them without asking.
    #[serde(default)]
    pub yes: bool,
    /// Only tell what would be deleted.
    #[serde(default)]
    pub dry_run: bool,
}

/// `destroy`: a volume, or what is left of one that was forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destroy {
    /// The volume.
    #[serde(default)]
    pub volume: Option<VolumeName>,
    /// Instead, the absolute path of its origin, which stays;
    #[serde(default)]
    pub origin: Option<PathBuf>,
    /// and that of its snapshot store, which goes.
    #[serde(default)]
    pub snapstore: Option<PathBuf>,
    /// Do not ask.
    #[serde(default)]
    pub yes: bool,
}

/// The schedule of a volume, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleStatus {
    /// Its rotations, in the order of their names.
    pub rotations: Vec<RotationStatus>,
    /// When the next snapshot is taken; nothing on a replica, or while that is stopped.
    pub next: Option<Timestamp>,
    /// Why the last scheduled snapshot could not be taken, unless one has been since.
    pub error: Option<ScheduleError>,
}

/// One rotation of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationStatus {
    /// Its name.
    pub name: RotationName,
    /// How many of its snapshots are kept.
    pub keep: u32,
    /// When one is taken, if the schedule takes any.
    pub every: Option<Every>,
    /// When the next one is taken: in the past if it should have been taken already. Nothing where none is taken.
    pub next: Option<Timestamp>,
}

/// Why a scheduled snapshot could not be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleError {
    /// What went wrong.
    pub text: String,
    /// What to do about it.
    pub remedy: Option<String>,
    /// When it was tried.
    pub at: Timestamp,
    /// When it is tried again.
    pub next: Timestamp,
}

/// Something that happened to a volume's snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEvent {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: EventKind,
    /// The snapshot, if there is one.
    pub number: Option<SnapshotNumber>,
    /// Why.
    pub text: String,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// Retention dropped a snapshot.
    Dropped,
    /// A person deleted a snapshot.
    Deleted,
    /// A scheduled snapshot could not be taken.
    Failed,
    /// There is too little space, and nothing that may be dropped.
    Full,
    /// Retention would have dropped a snapshot, and something uses its mount.
    Kept,
    /// A hook failed.
    Hook,
}

/// A part of a volume's work that can be stopped. As text `volume`, `master`, `source` or `target HOST`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Part {
    /// All of it.
    Volume,
    /// Scheduled snapshots.
    Master,
    /// Receiving.
    Source,
    /// Sending to this node.
    Target(NodeName),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume => f.write_str("volume"),
            Self::Master => f.write_str("master"),
            Self::Source => f.write_str("source"),
            Self::Target(host) => write!(f, "target {host}"),
        }
    }
}

impl From<Part> for String {
    fn from(part: Part) -> Self {
        part.to_string()
    }
}

impl TryFrom<String> for Part {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "volume" => Ok(Self::Volume),
            "master" => Ok(Self::Master),
            "source" => Ok(Self::Source),
            other => {
                let host = other.strip_prefix("target ").and_then(|host| host.parse().ok());
                host.map(Self::Target).ok_or_else(|| format!("{other:?} is no part of a volume's work"))
            }
        }
    }
}

/// Version of [`VolumePlan`]: raised when a field changes its meaning or goes away.
pub const PLAN_SCHEMA: u32 = 1;

/// What would be done now: the answer to `plan`. Nothing is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePlan {
    /// [`PLAN_SCHEMA`].
    pub schema: u32,
    /// The volume.
    pub volume: VolumeName,
    /// When this was so.
    pub at: Timestamp,
    /// The time zone in which the node reads calendars and names snapshots: its IANA name, or what is known of it.
    pub zone: String,
    /// The rotations of the snapshot that is due now; none when no snapshot is.
    pub take: Vec<RotationName>,
    /// The rotations and their next snapshots.
    pub rotations: Vec<RotationStatus>,
    /// Why the schedule takes no snapshots here, if it takes none.
    pub idle: Option<String>,
    /// What retention makes of each snapshot, from the newest to the oldest.
    pub snapshots: Vec<SnapshotFate>,
    /// What is sent.
    pub targets: Vec<PlannedSend>,
}

/// What retention makes of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFate {
    /// Its number.
    pub number: SnapshotNumber,
    /// Its name: the time it was taken.
    pub name: String,
    /// Whether it stays.
    pub stays: bool,
    /// Why.
    pub reasons: Vec<String>,
}

/// What a target would be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSend {
    /// The target.
    pub host: NodeName,
    /// The newest snapshot that it is known to have.
    pub has: Option<SnapshotNumber>,
    /// The snapshot that it would be sent; nothing when it has the newest.
    pub sends: Option<SnapshotNumber>,
    /// When that is tried without being asked; nothing when it waits for the target or for a person.
    pub next: Option<Timestamp>,
    /// Whether sending is stopped.
    pub stopped: bool,
}
