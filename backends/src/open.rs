//! From paths to a store: the kind is seen, not asked.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use uuid::Uuid;
use zumastor_core::{SnapshotStore, StoreError, VolumeName};

#[cfg(feature = "device-mapper")]
use crate::lvm_thin;
use crate::{Faults, FileStore, FileStoreOptions, file};

/// Whether a volume may be opened before its origin exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginMust {
    /// The origin has the data: it must be there.
    Exist,
    /// The volume is to be received, so there may be nothing yet.
    MayBeAbsent,
}

/// What a volume is made of, as it was defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name here, after which devices are named.
    pub name: VolumeName,
    /// Holds the head.
    pub origin: PathBuf,
    /// Holds the snapshots.
    pub snapstore: PathBuf,
    /// Holds what says which blocks belong to which snapshot, where that is not in the snapshot store.
    pub metadev: Option<PathBuf>,
    /// Unit of allocation in bytes of a store that is made now, where it can be chosen.
    pub chunk: Option<u64>,
    /// A directory for what can be made again if it is lost, such as leaf trees, where the snapshot store has no place for
    /// it.
    pub notes: PathBuf,
}

/// How a store is made on block devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Making {
    /// Begin with a volume of zeros, not with what the origin holds.
    pub initialize: bool,
    /// Overwrite what is on the snapshot store and the metadata device.
    pub overwrite: bool,
}

/// Opens the store of a volume, and makes it if there is none.
///
/// # Errors
/// [`StoreError::Unsupported`] for what this build cannot keep volumes on, for an origin that should be there and is
/// not, for a snapshot store that holds something else, and when another process has the store open.
pub async fn open_volume(
    spec: &VolumeSpec,
    must: OriginMust,
    making: Making,
) -> Result<Arc<dyn SnapshotStore>, StoreError> {
    let spec = spec.clone();
    let open = move || -> Result<Arc<dyn SnapshotStore>, StoreError> {
        match kind(&spec)? {
            Kind::Devices => open_devices(&spec, Some(making), Faults::none()),
            Kind::Lvm => open_lvm(&spec, Some(making), Faults::none()),
            Kind::Files => {
                check(&spec, must)?;
                Ok(Arc::new(FileStore::open_or_create(spec.origin, spec.snapstore, options())?))
            }
        }
    };
    tokio::task::spawn_blocking(open).await.expect("opening a store does not panic")
}

/// Opens the store of a volume that was defined before, and never makes one: a file system that is not mounted leaves
/// an empty directory behind, which must not pass for a volume without snapshots. The origin may be absent, as it is
/// until a replica received its first snapshot.
///
/// # Errors
/// As [`open_volume`]; [`StoreError::Unsupported`] also when there is no store, or another one than `expected`.
pub async fn reopen_volume(
    spec: &VolumeSpec,
    expected: Option<Uuid>,
) -> Result<Arc<dyn SnapshotStore>, StoreError> {
    let spec = spec.clone();
    let open = move || -> Result<Arc<dyn SnapshotStore>, StoreError> {
        let kind = kind(&spec)?;
        if kind == Kind::Files {
            check(&spec, OriginMust::MayBeAbsent)?;
        }
        let there = store_id(&spec.origin, &spec.snapstore)?;
        match (there, expected) {
            (None, _) => Err(StoreError::Unsupported(kind.no_store(&spec))),
            (Some(id), Some(expected)) if id != expected => {
                Err(StoreError::Unsupported(kind.another_store(&spec)))
            }
            _ if kind == Kind::Devices => open_devices(&spec, None, Faults::none()),
            _ if kind == Kind::Lvm => open_lvm(&spec, None, Faults::none()),
            _ => Ok(Arc::new(FileStore::open(spec.origin, spec.snapstore, options())?)),
        }
    };
    tokio::task::spawn_blocking(open).await.expect("opening a store does not panic")
}

/// Lets what a program that was killed left standing still of a volume go on, without opening its store: for one that is not to be opened,
/// or cannot be. `expected` is the identity of the store, as far as it is known. Tells how many devices stood still; those of image files
/// never do.
///
/// # Errors
/// [`StoreError::Unsupported`] if another process has the store open, and where it cannot be known what a device should go on with.
pub async fn let_go_on(spec: &VolumeSpec, expected: Option<Uuid>) -> Result<usize, StoreError> {
    let spec = spec.clone();
    let go_on = move || -> Result<usize, StoreError> {
        #[cfg(feature = "device-mapper")]
        return match lvm_thin::place(&spec.origin, &spec.snapstore)? {
            Some(place) => lvm_thin::go_on(&place),
            // Images.
            None if spec.origin.is_file() || spec.snapstore.is_dir() => Ok(0),
            None if Path::new(CONTROL).exists() => crate::dm_thin::go_on(&spec, expected),
            None => Ok(0),
        };
        #[cfg(not(feature = "device-mapper"))]
        return Ok({
            let _ = (spec, expected);
            0
        });
    };
    tokio::task::spawn_blocking(go_on).await.expect("letting devices go on does not panic")
}

/// Device-mapper's own device, where the kernel has it.
#[cfg(feature = "device-mapper")]
const CONTROL: &str = "/dev/mapper/control";

/// Opens the store of a volume on block devices, or makes it if `making` says how. Blocking.
///
/// # Errors
/// As [`open_volume`].
#[cfg(feature = "device-mapper")]
pub fn open_devices(
    spec: &VolumeSpec,
    making: Option<Making>,
    faults: Faults,
) -> Result<Arc<dyn SnapshotStore>, StoreError> {
    Ok(Arc::new(crate::dm_thin::open(spec, making, faults)?))
}

/// Opens the store of a volume that is a thin volume of LVM's: an origin `/dev/VG/LV` and a snapshot store `/dev/VG/POOL`. Or makes it
/// if `making` says how. Blocking.
///
/// # Errors
/// As [`open_volume`].
#[cfg(feature = "device-mapper")]
pub fn open_lvm(
    spec: &VolumeSpec,
    making: Option<Making>,
    faults: Faults,
) -> Result<Arc<dyn SnapshotStore>, StoreError> {
    let place = lvm_thin::place(&spec.origin, &spec.snapstore)?.ok_or_else(|| {
        StoreError::Unsupported(format!("{} is no thin pool of LVM's", spec.snapstore.display()))
    })?;
    Ok(Arc::new(lvm_thin::open(&place, spec, making, faults)?))
}

/// The pool of a thin volume of LVM's, as the path that stands for its snapshot store. Blocking.
///
/// # Errors
/// [`StoreError::Unsupported`] for anything else, which needs a snapshot store of its own; the error says so.
pub fn pool_of(origin: &Path) -> Result<PathBuf, StoreError> {
    #[cfg(feature = "device-mapper")]
    return lvm_thin::pool_of(origin);
    #[cfg(not(feature = "device-mapper"))]
    return Err(StoreError::Unsupported(format!(
        "say where the snapshots of {} shall be kept: thin volumes of LVM's are for builds with the cargo feature `device-mapper`",
        origin.display()
    )));
}

/// Device-mapper's name of a logical volume of LVM's, whose path this is; nothing for any other. Blocking.
pub fn logical_name(origin: &Path) -> Option<String> {
    #[cfg(feature = "device-mapper")]
    return lvm_thin::device_name(origin);
    #[cfg(not(feature = "device-mapper"))]
    return {
        let _ = origin;
        None
    };
}

/// Whether a snapshot store is a thin pool of LVM's, which several volumes may have. Blocking.
///
/// # Errors
/// If LVM cannot be asked.
pub fn is_pool(snapstore: &Path) -> Result<bool, StoreError> {
    #[cfg(feature = "device-mapper")]
    return lvm_thin::is_pool(snapstore);
    #[cfg(not(feature = "device-mapper"))]
    return Ok({
        let _ = snapstore;
        false
    });
}

/// Whether there is an origin: a file, a device, or a logical volume that may be inactive. Blocking.
pub fn origin_exists(origin: &Path) -> bool {
    #[cfg(feature = "device-mapper")]
    if !origin.exists() {
        return lvm_thin::is_volume(origin).unwrap_or(false);
    }
    origin.exists()
}

#[cfg(not(feature = "device-mapper"))]
fn open_lvm(
    spec: &VolumeSpec,
    _making: Option<Making>,
    _faults: Faults,
) -> Result<Arc<dyn SnapshotStore>, StoreError> {
    Err(no_devices(&spec.snapstore))
}

#[cfg(not(feature = "device-mapper"))]
fn open_devices(
    spec: &VolumeSpec,
    _making: Option<Making>,
    _faults: Faults,
) -> Result<Arc<dyn SnapshotStore>, StoreError> {
    Err(no_devices(&spec.snapstore))
}

#[cfg(not(feature = "device-mapper"))]
fn no_devices(path: &Path) -> StoreError {
    StoreError::Unsupported(format!(
        "{} is a block device: this build keeps volumes in image files only, because it was made without the cargo feature \
         `device-mapper`; give a file as origin and a directory as snapshot store",
        path.display()
    ))
}

/// What stands on a block device by its signatures, such as a file system; nothing for anything else than a device.
pub fn signature(path: &Path) -> Result<Option<String>, StoreError> {
    if !is_block_device(path)? {
        return Ok(None);
    }
    #[cfg(feature = "device-mapper")]
    return crate::dm_thin::signature(path);
    #[cfg(not(feature = "device-mapper"))]
    return Err(no_devices(path));
}

/// The identity of the snapshot store in a directory, on a device, or in a thin pool of LVM's, given to it when it was made; nothing
/// where there is none.
pub fn store_id(origin: &Path, snapstore: &Path) -> Result<Option<Uuid>, StoreError> {
    #[cfg(feature = "device-mapper")]
    if let Some(place) = lvm_thin::place(origin, snapstore)? {
        return lvm_thin::store_id(&place);
    }
    #[cfg(not(feature = "device-mapper"))]
    let _ = origin;
    if !is_block_device(snapstore)? {
        return file::store_id(snapstore);
    }
    #[cfg(feature = "device-mapper")]
    return crate::dm_thin::store_id(snapstore);
    #[cfg(not(feature = "device-mapper"))]
    return Err(no_devices(snapstore));
}

/// What a volume is kept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Files,
    Devices,
    /// A thin volume of LVM's.
    Lvm,
}

impl Kind {
    /// What is said where there should be a store.
    fn no_store(self, spec: &VolumeSpec) -> String {
        let (origin, snapstore) = (spec.origin.display(), spec.snapstore.display());
        match self {
            Self::Files => {
                format!("there is no snapshot store in {snapstore} (any more): is its file system mounted?")
            }
            Self::Devices => {
                format!("there is no snapshot store on {snapstore} (any more): is it the right device?")
            }
            Self::Lvm => format!(
                "{origin} is no volume of ours (any more): was it removed or renamed, or is another in its place? `lvs -a -o \
                 +lv_tags` shows what there is"
            ),
        }
    }

    /// What is said where there is another store.
    fn another_store(self, spec: &VolumeSpec) -> String {
        let (origin, snapstore) = (spec.origin.display(), spec.snapstore.display());
        match self {
            Self::Files => format!(
                "the snapshot store in {snapstore} is not the one that this volume was defined with: is the right file system \
                 mounted there?"
            ),
            Self::Devices => format!(
                "the snapshot store on {snapstore} is not the one that this volume was defined with: is it the right device?"
            ),
            // The pool may well be the right one: a volume in it is known by its origin.
            Self::Lvm => format!(
                "{origin} is not the logical volume that this volume was defined with, but one that belongs to another: was it renamed?"
            ),
        }
    }
}

fn kind(spec: &VolumeSpec) -> Result<Kind, StoreError> {
    let VolumeSpec { origin, snapstore, metadev, .. } = spec;
    #[cfg(feature = "device-mapper")]
    if lvm_thin::place(origin, snapstore)?.is_some() {
        return Ok(Kind::Lvm);
    }
    let device = match (is_block_device(origin)?, is_block_device(snapstore)?) {
        (true, true) => return Ok(Kind::Devices),
        (true, false) => Some((origin, snapstore, "snapshot store")),
        (false, true) => Some((snapstore, origin, "origin")),
        (false, false) => None,
    };
    if let Some((device, other, what)) = device {
        return Err(StoreError::Unsupported(format!(
            "{} is a block device, and the {what} {} is none: either both are, or the origin is a file and the snapshot \
             store a directory",
            device.display(),
            other.display()
        )));
    }
    if let Some(metadev) = metadev {
        return Err(StoreError::Unsupported(format!(
            "a metadata device ({}) goes with block devices; a volume in an image file has none",
            metadev.display()
        )));
    }
    Ok(Kind::Files)
}

fn is_block_device(path: &Path) -> Result<bool, StoreError> {
    Ok(look(path)?.is_some_and(|metadata| metadata.file_type().is_block_device()))
}

fn options() -> FileStoreOptions {
    FileStoreOptions { prepare: Some(WORTHWHILE), clone_ahead: Some(SLOW), ..FileStoreOptions::default() }
}

/// A clone that takes as long is made ahead.
const SLOW: Duration = Duration::from_millis(2);

/// Bytes from which on a copy takes long enough for somebody to notice.
const WORTHWHILE: u64 = 1 << 30;

fn check(spec: &VolumeSpec, must: OriginMust) -> Result<(), StoreError> {
    let origin = &spec.origin;
    match look(origin)? {
        Some(metadata) if !metadata.is_file() => {
            Err(StoreError::Unsupported(format!("the origin {} is no regular file", origin.display())))
        }
        None if fs::symlink_metadata(origin).is_ok() => Err(StoreError::Unsupported(format!(
            "the origin {} is a link to something that does not exist",
            origin.display()
        ))),
        None if must == OriginMust::Exist => {
            Err(StoreError::Unsupported(format!("the origin {} does not exist", origin.display())))
        }
        _ => Ok(()),
    }
}

fn look(path: &Path) -> Result<Option<fs::Metadata>, StoreError> {
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(StoreError::io(format!("looking at {}", path.display()))),
    }
}
