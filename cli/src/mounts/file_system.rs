//! Mounting what a volume or a snapshot holds: as it is, and never repaired.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
};

use rustix::mount::MountAttrFlags;

use super::{
    Options, Snapshot,
    kernel::{Aside, is_block_device},
    loops::{self, LoopDevice},
    probe::Kind,
    table::Mount,
};

/// What a mount is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The snapshot with this guid, in an image.
    Snapshot(String),
    /// The head, in the image with this device and inode.
    Head((u64, u64)),
    /// The block device with this number.
    Device(u64),
    /// Something else.
    Other,
}

impl Identity {
    /// What is mounted somewhere.
    pub fn of(mount: &Mount) -> Self {
        if let Some(described) = loops::described(&mount.source) {
            if let Some(guid) = described.note.strip_prefix(SNAPSHOT) {
                return Self::Snapshot(guid.to_owned());
            }
            return if described.note == HEAD { Self::Head(described.file) } else { Self::Other };
        }
        if !mount.source.starts_with("/dev") {
            return Self::Other;
        }
        if let (major @ 1.., minor) = mount.device {
            // Whatever else has that name by now.
            return Self::Device(rustix::fs::makedev(major, minor));
        }
        match fs::metadata(&mount.source) {
            Ok(metadata) if is_block_device(&mount.source) => Self::Device(metadata.rdev()),
            _ => Self::Other,
        }
    }

    /// What the mount of a snapshot is of.
    pub fn of_snapshot(snapshot: &Snapshot) -> Self {
        if is_block_device(&snapshot.device) {
            return Self::of_device(&snapshot.device);
        }
        Self::Snapshot(snapshot.guid.to_string())
    }

    /// What the mount of a head is of.
    pub fn of_head(device: &Path) -> Self {
        if is_block_device(device) {
            return Self::of_device(device);
        }
        fs::metadata(device).map_or(Self::Other, |metadata| Self::Head((metadata.dev(), metadata.ino())))
    }

    fn of_device(device: &Path) -> Self {
        fs::metadata(device).map_or(Self::Other, |metadata| Self::Device(metadata.rdev()))
    }
}

/// The loop devices that hold a snapshot, as long as anybody uses it.
pub fn devices_of(guid: &str) -> Vec<std::path::PathBuf> {
    loops::with_note(&format!("{SNAPSHOT}{guid}"))
}

/// Whether a device is a loop device that holds a snapshot.
pub fn is_snapshots_loop(device: &Path) -> bool {
    loops::described(device).is_some_and(|described| described.note.starts_with(SNAPSHOT))
}

/// Mounts a snapshot aside, read only; nothing if it holds no file system that is known here.
pub fn snapshot(snapshot: &Snapshot, options: &Options, whole: bool) -> io::Result<Option<Aside>> {
    let Some(kind) = Kind::of(&snapshot.device)? else { return Ok(None) };
    let mut given = Vec::new();
    if whole {
        // What concerns only the mount holds for all of a volume; what is for the file system, for its own place.
        given.extend(options.parameters.iter().map(|(key, value)| (key.as_str(), value.as_deref())));
    }
    if kind == Kind::Xfs {
        // The volume, or another of its snapshots, may be mounted.
        given.push(("nouuid", None));
    }
    let attributes = options.attributes;
    let as_it_is = [&given[..], &[kind.without_replay()]].concat();
    let mount = |source: &Path, parameters: &[(&str, Option<&str>)]| {
        Aside::mount(kind.driver(), source, true, attributes, parameters)
    };
    let journal = matches!(kind, Kind::Xfs | Kind::Ext { replay: true });
    let mounted = if is_block_device(&snapshot.device) {
        // Whatever a file system does with what it mounts, it does not write there.
        set_read_only(&snapshot.device)?;
        if journal {
            mount(&snapshot.device, &as_it_is)
        } else {
            mount(&snapshot.device, &given)
                .or_else(|error| mount(&snapshot.device, &as_it_is).map_err(|_| error))
        }
    } else {
        let note = format!("{SNAPSHOT}{}", snapshot.guid);
        // A copy that shares all blocks takes what the journal says, which the snapshot itself must not.
        let copied = journal.then(|| {
            let device = LoopDevice::attach(&loops::nameless_clone(&snapshot.device)?, false, &note)?;
            mount(&device.path, &given)
        });
        match copied {
            Some(Ok(mounted)) => Ok(mounted),
            _ => {
                let device = LoopDevice::attach(&File::open(&snapshot.device)?, true, &note)?;
                let first =
                    if journal { mount(&device.path, &as_it_is) } else { mount(&device.path, &given) };
                first.or_else(|error| mount(&device.path, &as_it_is).map_err(|_| error))
            }
        }
    };
    mounted.map(Some).map_err(|error| explained(kind, error))
}

/// Mounts the head aside; nothing if it holds no file system that is known here.
pub fn head(device: &Path, options: &Options) -> io::Result<Option<Aside>> {
    let Some(kind) = Kind::of(device)? else { return Ok(None) };
    let mut parameters: Vec<_> =
        options.parameters.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
    if kind == Kind::Xfs {
        parameters.push(("nouuid", None));
    }
    let mount = |source: &Path, attributes: MountAttrFlags| {
        Aside::mount(kind.driver(), source, options.read_only, attributes, &parameters)
    };
    let mounted = if is_block_device(device) {
        mount(device, options.attributes)
    } else {
        if zumastor_backends::open_for_writing(device) {
            return Err(io::Error::other(format!(
                "{} is open for writing by another program, which would write into the mounted file system",
                device.display()
            )));
        }
        let image = OpenOptions::new().read(true).write(!options.read_only).open(device)?;
        let device = LoopDevice::attach(&image, options.read_only, HEAD)?;
        mount(&device.path, options.attributes)
    };
    mounted.map(Some).map_err(|error| explained(kind, error))
}

/// Whether what is on a device may not be mounted while a snapshot of it is.
pub fn may_be_alone(device: &Path) -> bool {
    matches!(Kind::of(device), Ok(Some(Kind::Btrfs)))
}

fn explained(kind: Kind, error: io::Error) -> io::Error {
    match (kind, error.raw_os_error()) {
        (Kind::Btrfs, Some(libc::EEXIST | libc::EBUSY)) => io::Error::other(
            "this kernel mounts one btrfs of an identity at a time, and the volume or another of its snapshots is mounted \
             already; Linux 6.7 and later mount them side by side",
        ),
        (kind, Some(libc::EINVAL | libc::EUCLEAN)) => io::Error::other(format!(
            "the kernel does not mount this {}: {error}; its messages (dmesg) say why",
            kind.driver()
        )),
        _ => error,
    }
}

fn set_read_only(device: &Path) -> io::Result<()> {
    let (file, yes): (_, libc::c_int) = (File::open(device)?, 1);
    // SAFETY: the request takes a pointer to an integer, which lives until it returns.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(file.as_raw_fd(), BLKROSET as _, &raw const yes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From include/uapi/linux/fs.h: _IO(0x12, 93).
const BLKROSET: u64 = 0x125D;

/// How loop devices are marked, so that they are known again: a snapshot's, with its guid, and a head's.
const SNAPSHOT: &str = "zumastor:snapshot:";
const HEAD: &str = "zumastor:head";
