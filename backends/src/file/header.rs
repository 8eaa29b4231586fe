//! What a snapshot store is: decided when it is made, and asked from the file systems.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock, statfs},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zumastor_core::StoreError;

use super::{
    destroy::{condemned_text, is_condemned},
    fiemap,
    layout::{Described, Layout, failed},
    lease::{Writers, writers},
    reflink::try_clone,
};

/// How a store makes snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// A snapshot shares the origin's blocks until either is written (XFS, btrfs, bcachefs): it takes a moment.
    Reflink,
    /// A snapshot keeps what differs from the one before (any file system): it reads the whole volume.
    Layered,
}

/// The file `store`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Identity of this store.
    pub id: Uuid,
    pub mode: Mode,
}

impl Described for Header {
    const MAGIC: &'static [u8; 8] = b"ZUMASTR\x01";
}

/// The identity of the store in a directory, if there is one.
pub(crate) fn store_id(snapstore: &Path) -> Result<Option<Uuid>, StoreError> {
    if is_condemned(snapstore) {
        return Err(StoreError::Unsupported(condemned_text(snapstore)));
    }
    Ok(Header::load(&Layout::new(snapstore.to_owned()).store())?.map(|header| header.id))
}

/// Opens the store's header, or makes one in an empty directory. Returns the lock, held while the file is open.
pub(crate) fn open(
    layout: &Layout,
    origin: &Path,
    create: bool,
    mode: Option<Mode>,
) -> Result<(Header, File), StoreError> {
    let root = layout.root();
    let unsupported = |what: String| StoreError::Unsupported(what);
    if let Some(header) = Header::load(&layout.store())? {
        let lock = lock(layout)?;
        if header.mode == Mode::Reflink && !still_one(&directory(origin), root)? {
            return Err(unsupported(format!(
                "the snapshots in {} share blocks with their origin, but {} is not on the same file system: put both \
                 on one",
                root.display(),
                origin.display()
            )));
        }
        return Ok((header, lock));
    }
    if is_condemned(root) {
        return Err(unsupported(condemned_text(root)));
    }
    if !create {
        return Err(unsupported(format!("{} is no snapshot store", root.display())));
    }
    fs::create_dir_all(root).map_err(failed("making", root))?;
    for entry in fs::read_dir(root).map_err(failed("listing", root))? {
        let name = entry.map_err(failed("listing", root))?.file_name();
        // What an earlier attempt to make the store may have left, and what every ext4 has at its top.
        let ours = ["lost+found", "lock", ".store.new"].iter().any(|ours| name == *ours);
        if !ours && !name.to_string_lossy().starts_with(PROBE) {
            return Err(unsupported(format!(
                "{} is not empty and no snapshot store ({} is in it): give a new or empty directory",
                root.display(),
                name.to_string_lossy()
            )));
        }
    }
    let lock = lock(layout)?;
    let mode = match mode {
        Some(mode) => mode,
        None if can_reflink(&directory(origin), root)? => Mode::Reflink,
        None => Mode::Layered,
    };
    let header = Header { id: Uuid::now_v7(), mode };
    header.replace(&layout.store())?;
    Ok((header, lock))
}

/// Whether two directories that could share blocks when the store was made are still on one file system.
fn still_one(from: &Path, to: &Path) -> Result<bool, StoreError> {
    let device =
        |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).map_err(failed("looking at", path));
    if device(from)? == device(to)? {
        return Ok(true);
    }
    // Subvolumes of one btrfs look like two. To try it takes space, which a full disk has not.
    match can_reflink(from, to) {
        Err(StoreError::NoSpace { .. }) => Ok(true),
        tried => tried,
    }
}

/// The name of the file system that holds `path`.
pub(crate) fn file_system(path: &Path) -> String {
    let Ok(stat) = statfs(path) else { return "an unknown file system".into() };
    // Only the lower 32 bits are the magic, whatever the sign they are given.
    match stat.f_type as u32 {
        0x5846_5342 => "xfs".into(),
        0x9123_683E => "btrfs".into(),
        0xCA45_1A4E => "bcachefs".into(),
        0xEF53 => "ext4".into(),
        0x0102_1994 => "tmpfs".into(),
        0x2FC1_2FC1 => "zfs".into(),
        0x794C_7630 => "overlayfs".into(),
        0x6969 => "nfs".into(),
        0xF2F5_2010 => "f2fs".into(),
        other => format!("file system {other:#x}"),
    }
}

/// Whether the file system may leave the time of a file as it is when somebody writes through a mapping.
pub(crate) fn hides_mapped_writes(path: &Path) -> bool {
    // tmpfs, ramfs, NFS, FUSE
    statfs(path)
        .is_ok_and(|stat| matches!(stat.f_type as u32, 0x0102_1994 | 0x8584_58F6 | 0x6969 | 0x6573_5546))
}

/// What a person should know of a store in layered mode, in one line.
pub(crate) fn caution(layout: &Layout, origin: &Path) -> Option<String> {
    let (dir, root) = (directory(origin), layout.root());
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let either = || can_reflink(root, root).unwrap_or(false) || can_reflink(&dir, &dir).unwrap_or(false);
    let cost = "a replica takes up to three times its data; a snapshot reads the whole volume, and is refused while \
                someone writes";
    let mut caution = if device(&dir) != device(root) && either() {
        format!(
            "origin and snapshot store are on different file systems, so reflink is impossible; put them on one. \
             Until then {cost}"
        )
    } else {
        format!("{cost}; on XFS or btrfs it takes a moment and space is shared")
    };
    let unknown = || File::open(origin).is_ok_and(|file| matches!(writers(file), Writers::Unknown));
    if hides_mapped_writes(&dir) && unknown() {
        caution += "; on this file system, a program that writes through a mapping meanwhile is not noticed";
    }
    Some(caution)
}

/// The directory that a file is in.
pub(crate) fn directory(path: &Path) -> PathBuf {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

const PROBE: &str = ".zumastor-probe";

/// Whether a file in `to` can share the blocks of one in `from`, and tell so.
fn can_reflink(from: &Path, to: &Path) -> Result<bool, StoreError> {
    let (a, b) = (probe(from)?, probe(to)?);
    a.write_all_at(&[1; 8192], 0).map_err(failed("writing to", from))?;
    if !try_clone(&a, &b).map_err(failed("cloning to", to))? {
        return Ok(false);
    }
    let maps = fiemap::map(&a, &(0..8192)).and_then(|a| Ok((a, fiemap::map(&b, &(0..8192))?)));
    Ok(maps.is_ok_and(|(a, b)| !a.is_empty() && a == b))
}

/// A file without a name.
fn probe(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(format!("{PROBE}-{}", Uuid::now_v7()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(failed("writing to", dir))?;
    fs::remove_file(&path).map_err(failed("writing to", dir))?;
    Ok(file)
}

pub(super) fn lock(layout: &Layout) -> Result<File, StoreError> {
    let path = layout.lock();
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(failed("opening", &path))?;
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            // A process that is being started has a copy of all our files for a moment, also of one just closed.
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_PATIENCE / 20),
            Err(Errno::WOULDBLOCK) => {
                return Err(StoreError::Unsupported(format!(
                    "the snapshot store {} is in use by another process: is a daemon running?",
                    layout.root().display()
                )));
            }
            Err(error) => return Err(failed("locking", &path)(io::Error::from(error))),
        }
    }
}

/// How long a store may still be locked after it was closed.
const LOCK_PATIENCE: Duration = Duration::from_millis(400);
