//! What is to be mounted of a volume, and what came of it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use zumastor_core::{SnapshotGuid, SnapshotNumber, VolumeName};

use super::Options;

/// What is to be mounted of a volume.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The volume.
    pub volume: VolumeName,
    /// Device-mapper's name of it where it is a logical volume of LVM's, as far as is known.
    pub logical: Option<String>,
    /// Where the volume is mounted.
    pub mountpoint: PathBuf,
    /// Whether that directory is ours to make and to remove.
    pub own_mountpoint: bool,
    /// Where its snapshots are.
    pub snappath: PathBuf,
    /// How the volume is mounted.
    pub options: Options,
    /// What is mounted there.
    pub shown: Option<Shown>,
    /// The snapshots that are mounted.
    pub snapshots: Vec<Snapshot>,
    /// Links beside them, each with the name of the snapshot it leads to.
    pub links: BTreeMap<String, String>,
    /// Whether the snapshots are seen as `.snapshot` in the volume.
    pub dotsnapshot: bool,
    /// Directories in the volume that are views of snapshots, each with the name of the snapshot.
    pub views: BTreeMap<String, String>,
    /// Links to the two directories that are kept where the words of old lead to them.
    pub aliases: [PathBuf; 2],
}

/// What a volume's mountpoint shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// The head: a device or an image.
    Head(PathBuf),
    /// A snapshot.
    Snapshot(Snapshot),
}

/// A snapshot that can be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number.
    pub number: SnapshotNumber,
    /// Its identity.
    pub guid: SnapshotGuid,
    /// What its directory is called.
    pub name: String,
    /// The device or the image that holds it.
    pub device: PathBuf,
}

/// What is mounted of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether the volume is mounted, and which snapshot it shows if it is one.
    pub shown: Option<Option<SnapshotNumber>>,
    /// Where snapshots are mounted.
    pub mounted: BTreeMap<SnapshotNumber, PathBuf>,
    /// Snapshots that hold no file system that is known here.
    pub unknown: Vec<SnapshotNumber>,
    /// Why snapshots are not mounted.
    pub failed: BTreeMap<SnapshotNumber, String>,
    /// What is good to know.
    pub notes: Vec<String>,
    /// What could not be done, each in a sentence.
    pub troubles: Vec<String>,
}

impl Plan {
    /// The same places with nothing in them.
    pub fn nothing(&self) -> Self {
        let (snapshots, links, views) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { shown: None, snapshots, links, views, dotsnapshot: false, ..self.clone() }
    }

    /// That nothing is mounted, in the places that a volume has below `volumes` unless told otherwise; nothing if that is no name of
    /// one.
    pub fn of_unknown(volumes: &Path, name: &str) -> Option<Self> {
        let links = ["mount", "snapshot"];
        Some(Self {
            volume: name.parse().ok()?,
            logical: None,
            mountpoint: volumes.join(name),
            own_mountpoint: true,
            snappath: volumes.join(format!("{name}-snapshots")),
            options: Options::default(),
            shown: None,
            snapshots: Vec::new(),
            links: BTreeMap::new(),
            dotsnapshot: false,
            views: BTreeMap::new(),
            aliases: links.map(|kind| volumes.with_file_name(kind).join(name)),
        })
    }

    /// Whether it is about the same places.
    pub fn same_places(&self, other: &Self) -> bool {
        self.mountpoint == other.mountpoint
            && self.snappath == other.snappath
            && self.options == other.options
    }

    /// Where a snapshot is mounted.
    pub fn place(&self, snapshot: &Snapshot) -> PathBuf {
        self.snappath.join(&snapshot.name)
    }
}

/// Whether a name is one that a snapshot's directory has: `2026.11.29-14.30.00`, and more if two are of one second.
pub(super) fn is_snapshot_name(name: &str) -> bool {
    const FORM: &[u8] = b"0000.00.00-00.00.00";
    let Some((time, rest)) = name.split_at_checked(FORM.len()) else { return false };
    let fits =
        time.bytes().zip(FORM).all(|(c, form)| if *form == b'0' { c.is_ascii_digit() } else { c == *form });
    let number = |rest: &str| {
        let digits = rest.strip_prefix('L').unwrap_or(rest);
        !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit())
    };
    fits && (rest.is_empty() || rest.strip_prefix('.').is_some_and(number))
}

/// The name of the snapshot that a path directly below a directory is for, if it is one's.
pub(super) fn snapshot_name_at<'a>(snappath: &Path, at: &'a Path) -> Option<&'a str> {
    let name = at.file_name()?.to_str()?;
    (at.parent() == Some(snappath) && is_snapshot_name(name)).then_some(name)
}
