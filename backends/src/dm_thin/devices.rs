//! The devices that a volume is made of.

use std::{
    fs::{self, File, OpenOptions},
    os::{linux::fs::MetadataExt, unix::fs::FileTypeExt, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
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

    /// What is known of it, whatever name it has today: by the kernel, or for a partition by the table that it stands in.
    pub(super) fn identity(&self, path: &Path) -> Option<String> {
        let dir = Path::new("/sys/dev/block").join(&self.number);
        identity(&dir).or_else(|| {
            dir.join("partition")
                .exists()
                .then(|| partition_id(path))
                .flatten()
                .map(|id| format!("partition {id}"))
        })
    }
}

/// What the kernel says of the block device whose directory this is.
fn identity(dir: &Path) -> Option<String> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    // The entry is a link to where the device really is. There, a partition lies below its disk.
    let real = fs::canonicalize(dir).ok()?;
    let partition = read(real.join("partition"));
    let disk = if partition.is_some() { real.parent()?.to_owned() } else { real };
    let names = ["dm/uuid", "md/uuid", "wwid", "serial", "device/wwid", "device/serial"];
    let known = names.iter().find_map(|name| read(disk.join(name)))?;
    Some(match partition {
        Some(partition) => format!("{known} partition {partition}"),
        None => known,
    })
}

/// The identity of a partition that its table has.
fn partition_id(path: &Path) -> Option<String> {
    let arguments = ["-p", "-o", "value", "-s", "PART_ENTRY_UUID"];
    let output = run("blkid", |command| command.args(arguments).arg(path)).ok()?;
    let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Some(id).filter(|id| !id.is_empty())
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_partition_is_known_by_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let at = |path: &str| sys.path().join(path);
        for dir in ["devices/host/nvme0n1/nvme0n1p2", "devices/virtual/loop0", "dev/block"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        fs::write(at("devices/host/nvme0n1/wwid"), "eui.0025\n").unwrap();
        fs::write(at("devices/host/nvme0n1/nvme0n1p2/partition"), "2\n").unwrap();
        // Not what the links lie in.
        fs::write(at("dev/block/wwid"), "another\n").unwrap();
        symlink("../../devices/host/nvme0n1", at("dev/block/259:0")).unwrap();
        symlink("../../devices/host/nvme0n1/nvme0n1p2", at("dev/block/259:2")).unwrap();
        symlink("../../devices/virtual/loop0", at("dev/block/7:0")).unwrap();
        assert_eq!(identity(&at("dev/block/259:0")).as_deref(), Some("eui.0025"));
        assert_eq!(identity(&at("dev/block/259:2")).as_deref(), Some("eui.0025 partition 2"));
        assert_eq!(identity(&at("dev/block/7:0")), None);
        assert_eq!(identity(&at("dev/block/1:1")), None);
    }
}
