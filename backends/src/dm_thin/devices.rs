//! The devices that a volume is made of.

use std::{
    fs::{self, File, OpenOptions},
    os::{linux::fs::MetadataExt, unix::fs::FileTypeExt, unix::fs::OpenOptionsExt},
    path::Path,
};

use rustix::fs::SeekFrom;
use zumastor_core::StoreError;

use crate::{
    described::failed,
    thin::programs::{run, run_well, said},
};

/// A block device as it is now.
#[derive(Debug, Clone)]
pub(super) struct BlockDevice {
    /// `major:minor`.
    pub number: String,
    /// In bytes.
    pub size: u64,
}

impl BlockDevice {
    pub(super) fn look(path: &Path) -> Result<Self, StoreError> {
        let metadata = fs::metadata(path).map_err(failed("looking at", path))?;
        if !metadata.file_type().is_block_device() {
            return Err(StoreError::Unsupported(format!(
                "{} is no block device: origin, snapshot store and metadata device are all block devices, or the origin is \
                 a file and the snapshot store a directory",
                path.display()
            )));
        }
        let number = metadata.st_rdev();
        let number = format!("{}:{}", libc::major(number), libc::minor(number));
        let file = File::open(path).map_err(failed("opening", path))?;
        let size = rustix::fs::seek(&file, SeekFrom::End(0));
        let size = size.map_err(|error| failed("looking at", path)(error.into()))?;
        Ok(Self { number, size })
    }

    /// What the kernel says that it is, whatever name it has today.
    pub(super) fn identity(&self) -> Option<String> {
        let dir = format!("/sys/dev/block/{}", self.number);
        let read = |name: &str| {
            let text = fs::read_to_string(format!("{dir}/{name}")).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        // A partition is known by its disk and its number.
        let disk = ["dm/uuid", "md/uuid", "wwid", "serial", "device/wwid", "device/serial"];
        let whole = disk.iter().find_map(|name| read(name));
        let parent = || disk.iter().find_map(|name| read(&format!("../{name}")));
        match read("partition") {
            Some(partition) => parent().map(|disk| format!("{disk} partition {partition}")),
            None => whole,
        }
    }
}

/// Refuses a device that somebody uses: a mounted file system, swap space, RAID, LVM, another device-mapper device.
pub(super) fn check_unused(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(StoreError::Unsupported(format!(
            "{} is in use: a file system on it is mounted, or another device is made of it; `lsblk {0}` shows which",
            path.display()
        ))),
        Err(error) => Err(failed("opening", path)(error)),
    }
}

/// What stands on a device by its signatures, if anything.
pub(crate) fn signature(path: &Path) -> Result<Option<String>, StoreError> {
    let arguments = ["-p", "-o", "export"];
    let output = run("blkid", |command| command.args(arguments).arg(path))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
    match output.status.code() {
        Some(0) => Ok(Some(match (value("TYPE="), value("PTTYPE=")) {
            (Some(kind), _) if kind == "swap" => "swap space".to_owned(),
            (Some(kind), _) if kind.ends_with("_member") => format!("a member of something ({kind})"),
            (Some(kind), _) => format!("a file system or volume of type {kind}"),
            (None, Some(kind)) => format!("a partition table ({kind})"),
            (None, None) => "something that blkid knows".to_owned(),
        })),
        Some(2) => Ok(None),
        // More than one signature.
        Some(8) => Ok(Some("signatures of more than one kind".to_owned())),
        _ => Err(said("blkid", path, &output.stderr)),
    }
}

/// Removes all signatures from a device.
pub(super) fn wipe(path: &Path) -> Result<(), StoreError> {
    run_well("wipefs", path, |command| command.args(["-a", "-f", "-q"]).arg(path))
}
