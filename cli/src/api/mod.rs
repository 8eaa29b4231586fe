//! Requests and answers of the control API, which is JSON over HTTP on the control socket, below `/v1`.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /status`, `GET /status/VOLUME` | | [`Status`]; with `?usage=true`, also what each snapshot takes |
//! | `GET /status/VOLUME/NUMBER` | | [`SnapshotReport`], likewise |
//! | `GET /volumes/VOLUME/history`, with `?most=N` | | [`History`] |
//! | `POST /volumes/VOLUME` | [`DefineVolume`] | [`Outcome`] |
//! | `DELETE /volumes/VOLUME` | | [`Outcome`] |
//! | `PUT /volumes/VOLUME/master` | [`DefineMaster`] or none | [`Outcome`] |
//! | `PUT /volumes/VOLUME/mounts` | [`Mounts`] or none | [`Outcome`] |
//! | `POST /volumes/VOLUME/promote` | | [`Outcome`] |
//! | `PUT /volumes/VOLUME/schedule` | [`DefineRotations`] | [`Outcome`] |
//! | `DELETE /volumes/VOLUME/schedule` | | [`Outcome`] |
//! | `GET /volumes/VOLUME/plan` | | [`VolumePlan`] |
//! | `PUT`, `DELETE /volumes/VOLUME/stopped/PART` | | [`Outcome`]; PART is `volume`, `master`, `source` or `target HOST` |
//! | `PUT /volumes/VOLUME/source` | [`DefineSource`] | [`Outcome`] |
//! | `DELETE /volumes/VOLUME/source` | | [`Outcome`] |
//! | `PUT /volumes/VOLUME/targets` | [`DefineTarget`] | [`Outcome`] |
//! | `DELETE /volumes/VOLUME/targets/HOST` | | [`Outcome`] |
//! | `POST /volumes/VOLUME/snapshots` | [`TakeSnapshot`] or none | [`TakenSnapshot`] |
//! | `POST /groups/GROUP/snapshots` | [`TakeSnapshot`] or none | [`TakenGroup`] |
//! | `DELETE /volumes/VOLUME/snapshots` | [`DeleteSnapshots`] | [`Outcome`] |
//! | `PUT`, `DELETE /volumes/VOLUME/snapshots/NUMBER/holds/NAME` | | [`Outcome`] |
//! | `POST /volumes/VOLUME/snapshots/NUMBER/revert` | | [`Outcome`] |
//! | `PUT /volumes/VOLUME/size` | [`Resize`] | [`Outcome`] |
//! | `POST /volumes/VOLUME/replicate` | [`Replicate`] | [`Outcome`]; with `wait`, lines of [`ReplicateEvent`] |
//! | `POST /volumes/VOLUME/scrub` | [`Scrub`] | [`Outcome`]; with `wait`, lines of [`ScrubEvent`] |
//! | `POST /destroy` | [`Destroy`] | [`Outcome`] |
//! | `POST /reload` | | [`Outcome`] |
//! | `GET /peers` | | [`PeerList`] |
//! | `POST /peers` | [`AddPeer`] | [`Outcome`] |
//! | `DELETE /peers/NAME` | | [`Outcome`] |
//!
//! Every error is a [`Failure`]. Snapshot numbers are numbers; a local one is 2^48 and more.

mod history;
mod hooks;
mod schedule;
mod scrub;
mod status;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zumastor_core::{NodeName, SnapshotNumber, config::TargetConfig};
use zumastor_net::{Progress, PullSummary};

pub use history::*;
pub use hooks::*;
pub use schedule::*;
pub use scrub::*;
pub use status::*;

use crate::exit::Failure;

/// Tells what is wrong with the name of a hold, if anything.
pub fn check_hold_name(name: &str) -> Result<(), String> {
    if (1..=63).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err("a hold's name has 1 to 63 bytes and no control characters".to_owned())
}

/// `define volume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefineVolume {
    /// Absolute path of the origin.
    pub origin: PathBuf,
    /// Absolute path of the snapshot store. A thin volume of LVM's has its pool's, `/dev/VG/POOL`, also if none is given.
    #[serde(default)]
    pub snapstore: Option<PathBuf>,
    /// Absolute path of the metadata device, if there is one.
    #[serde(default)]
    pub metadev: Option<PathBuf>,
    /// Bytes in a block of metadata.
    #[serde(default)]
    pub blocksize: Option<u64>,
    /// Bytes in a chunk of data.
    #[serde(default)]
    pub chunksize: Option<u64>,
    /// Bytes of memory for the volume.
    #[serde(default)]
    pub cachesize: Option<u64>,
    /// Overwrite the origin with zeros.
    #[serde(default)]
    pub initialize: bool,
    /// Do so without asking, whatever it holds.
    #[serde(default)]
    pub yes: bool,
    /// Where it is mounted, and how. On a volume that is defined so already, only this changes.
    #[serde(default)]
    pub mounts: Mounts,
}

/// Where a volume is mounted, and how: `remount`, and a part of `define volume`. What is absent stays as it is; what is empty is
/// as if it had never been said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mounts {
    /// Absolute path of the directory that the volume is mounted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
    /// Options of that mount, as `mount -o` takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountopts: Option<String>,
    /// Absolute path of the directory that the snapshots are mounted below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snappath: Option<PathBuf>,
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
    /// Mount the snapshots that are received.
    #[serde(default)]
    pub mount_snap: bool,
    /// Who may mount the volume and its snapshots by NFS.
    #[serde(default)]
    pub export: Vec<String>,
    /// Seconds beyond the period that nothing may be heard before it is called late.
    #[serde(default)]
    pub margin: Option<u64>,
    /// Make a master a replica without asking.
    #[serde(default)]
    pub yes: bool,
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

/// `resize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// New size of the head in bytes.
    #[serde(default)]
    pub origin: Option<u64>,
    /// Use so many bytes of the snapshot store, where that is a block device.
    #[serde(default)]
    pub snapshot: Option<u64>,
    /// Use so many bytes for metadata, where the volume is on block devices.
    #[serde(default)]
    pub metadata: Option<u64>,
    /// Cut off what lies beyond the new end.
    #[serde(default)]
    pub yes: bool,
}

/// `replicate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replicate {
    /// A target of the volume, or its source.
    pub host: String,
    /// That snapshot, unless a more recent one has been replicated already; without it, the newest.
    #[serde(default)]
    pub snapshot: Option<SnapshotNumber>,
    /// Seconds to wait before it begins.
    #[serde(default)]
    pub delay: Option<u64>,
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

/// A line of the answer to [`Replicate`] with `wait`. The last is `Done`, `Already` or `Failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicateEvent {
    /// It runs.
    Progress(Progress),
    /// It is done.
    Done(PullSummary),
    /// There was nothing to do.
    Already(Outcome),
    /// It failed.
    Failed(Failure),
}
