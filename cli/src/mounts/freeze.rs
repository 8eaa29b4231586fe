//! File systems that hold still for a moment: everything is on the device, and whoever writes waits.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, StatxFlags, statx};
use zumastor_core::steps;

use super::{
    file_system::Identity,
    table::{Mount, Table},
};

/// A file system that holds still until this is dropped.
#[derive(Debug)]
pub struct Frozen {
    root: File,
    at: PathBuf,
}

/// Makes the image that is mounted at a directory hold still. Nothing if it is not mounted there, or if somebody else makes
/// it hold still already.
pub fn freeze(at: &Path, image: &Path) -> io::Result<Option<Frozen>> {
    let root = File::open(at)?;
    // What was opened, and not what may be there by now: it must not be the file system around.
    let mount = statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
    let table = Table::read()?;
    let is_head = |mount: &&Mount| Identity::of(mount) == Identity::of_head(image);
    if table.0.iter().find(|there| there.id == mount).filter(is_head).is_none() {
        return Ok(None);
    }
    match call(&root, FIFREEZE) {
        Ok(()) => {
            let frozen = Frozen { root, at: at.to_owned() };
            steps::pass("mount: holds still");
            Ok(Some(frozen))
        }
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets a file system go on that a daemon which was killed had made hold still.
pub fn thaw(at: &Path) -> io::Result<bool> {
    match call(&File::open(at)?, FITHAW) {
        Ok(()) => Ok(true),
        // It does not hold still.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        steps::pass("mount: before it goes on");
        if let Err(error) = call(&self.root, FITHAW) {
            tracing::error!(at = %self.at.display(), %error, "the file system still holds still: `fsfreeze -u` lets it go on");
        }
    }
}

fn call(root: &File, request: u64) -> io::Result<()> {
    // SAFETY: these requests take no argument.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(root.as_raw_fd(), request as _, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

// From include/uapi/linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
const FIFREEZE: u64 = 0xC004_5877;
const FITHAW: u64 = 0xC004_5878;
