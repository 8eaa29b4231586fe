//! The configuration as people and `define` write it: `zumastor.toml`, `peers.toml` and `volumes/NAME.toml`.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{ByteSize, GroupName, NodeName, Selection};

mod hooks;
mod schedule;

pub use hooks::{HookKind, HooksConfig};
pub use schedule::{CustomConfig, InvalidSchedule, ScheduleConfig};

/// UDP port that nodes listen on unless told otherwise.
pub const DEFAULT_PORT: u16 = 11235;

/// `zumastor.toml`: this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Address and UDP port to listen on; `[::]:11235` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// What this node calls itself; the host name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
}

/// `peers.toml`: the nodes this one trusts, by the name it knows them under.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeersConfig {
    /// A table `[peer.NAME]` each.
    #[serde(default)]
    pub peer: BTreeMap<NodeName, PeerConfig>,
}

/// One trusted node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Its Ed25519 public key, hexadecimal: what the node *is*, wherever it connects from.
    pub key: String,
    /// Where it can be reached, as `HOST` or `HOST:PORT`; empty for a node that always connects to us.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// `volumes/NAME.toml`: one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// The origin: the file that holds the head.
    pub origin: PathBuf,
    /// The snapshot store: the directory that holds the snapshots.
    pub snapstore: PathBuf,
    /// The metadata device, if the volume has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadev: Option<PathBuf>,
    /// The identity of the store in there, noted when the volume was defined: another store, or none because a file
    /// system is not mounted, is not taken for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<Uuid>,
    /// Whether its origin is just being made zero. Where it is there without that, that was broken off, and the origin may be
    /// zero in part.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub initializing: bool,
    /// Where the volume is mounted. Without it, a block device is mounted below the runtime directory, and an image file,
    /// which others write, not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
    /// Options of that mount, as `mount -o` takes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mountopts: Option<String>,
    /// The directory below which the snapshots are mounted; below the runtime directory when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snappath: Option<PathBuf>,
    /// Bytes of memory that the daemon may take for the volume; the smaller of 128 MiB and a quarter of the machine's when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<ByteSize>,
    /// Unit of allocation that the store was made with, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<ByteSize>,
    /// Present on the node that masters the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<MasterConfig>,
    /// Present on a node that receives the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceConfig>,
    /// The group of volumes that its snapshots are taken with, on the master.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// How many snapshots of which rotations are kept and, on the master, when they are taken.
    #[serde(default, skip_serializing_if = "ScheduleConfig::is_empty")]
    pub schedule: ScheduleConfig,
    /// What is done when space gets short.
    #[serde(default, skip_serializing_if = "SpaceConfig::is_empty")]
    pub space: SpaceConfig,
    /// Programs that are run around snapshots and replication.
    #[serde(default, skip_serializing_if = "HooksConfig::is_empty")]
    pub hooks: HooksConfig,
    /// The nodes the volume is sent to, by the name they are known under.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub target: BTreeMap<NodeName, TargetConfig>,
}

impl VolumeConfig {
    /// A volume that is defined and nothing else.
    pub fn new(origin: impl Into<PathBuf>, snapstore: impl Into<PathBuf>) -> Self {
        Self {
            origin: origin.into(),
            snapstore: snapstore.into(),
            metadev: None,
            cache: None,
            chunk: None,
            store: None,
            initializing: false,
            mountpoint: None,
            mountopts: None,
            snappath: None,
            master: None,
            source: None,
            group: None,
            schedule: ScheduleConfig::default(),
            space: SpaceConfig::default(),
            hooks: HooksConfig::default(),
            target: BTreeMap::new(),
        }
    }
}

/// `[space]`: what is done when space gets short where the snapshots are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceConfig {
    /// With less than that free, snapshots that nobody holds are dropped, the oldest first. When absent, never; where the
    /// volume itself lies in the same pool, with less than that pool's own mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_free: Option<ByteSize>,
    /// Manual snapshots as well, after all others. When absent, no; where the volume itself could no longer be written
    /// otherwise, yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_manual: Option<bool>,
}

impl SpaceConfig {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `[master]`: this node takes the volume's snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MasterConfig {
    /// The time, in milliseconds since 1970, at which this node was made the master in place of another: the later one is the
    /// master. Written by `promote`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u64,
    /// Do not mount the snapshots.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_snapmount: bool,
    /// Let the snapshots be seen as `.snapshot` in the volume.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dotsnapshot: bool,
    /// Share the volume by Samba, with its snapshots as previous versions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub samba: bool,
    /// Who may mount the volume and its snapshots by NFS, read only, as exports(5) names clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// `[source]`: where the volume comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// The upstream node.
    pub host: NodeName,
    /// Seconds between two questions for something new; without it, the upstream is waited for.
    #[serde(default, deserialize_with = "crate::every::seconds", skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// The volume's name there, if it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Mount the snapshots that are received.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mount_snap: bool,
    /// Who may mount the volume and its snapshots by NFS, read only, as exports(5) names clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<String>,
    /// Seconds beyond the period that nothing may be heard before this replica is called late; half the period, and at least
    /// a minute, when absent. Without a period all the time that is allowed, and then a day when absent.
    #[serde(default, deserialize_with = "crate::every::seconds", skip_serializing_if = "Option::is_none")]
    pub margin: Option<u64>,
}

/// A way to send that is of use in tests only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestFeature {
    /// Each replication sends the whole volume, as if nothing of it were there.
    FullVolume,
}

/// `[target.HOST]`: a node the volume is sent to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// Seconds between two replications; without it, the target asks or `replicate` is typed.
    #[serde(default, deserialize_with = "crate::every::seconds", skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// The volume's name there, if it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Most bytes a second that may be sent; no limit when absent.
    #[serde(default, deserialize_with = "crate::units::bytes", skip_serializing_if = "Option::is_none")]
    pub ratelimit: Option<u64>,
    /// Send without compressing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncompressed: bool,
    /// The rotations whose snapshots are sent, `manual` for those of none; every snapshot when absent.
    #[serde(default, skip_serializing_if = "Selection::is_all")]
    pub rotations: Selection,
    /// Send each of those snapshots, in order; otherwise the newest at the time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Seconds beyond the period that a snapshot may wait to be there before the target is called late; half the period, and
    /// at least a minute, when absent. Without a period all the time that is allowed, and then a day when absent.
    #[serde(default, deserialize_with = "crate::every::seconds", skip_serializing_if = "Option::is_none")]
    pub margin: Option<u64>,
    /// For tests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<TestFeature>,
}
