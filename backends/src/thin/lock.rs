//! One program at a time for a store.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use zumastor_core::StoreError;

use crate::described::failed;

/// Makes this the only program that has the store open.
pub(crate) fn lock(file: &File, path: &Path) -> Result<(), StoreError> {
    let begun = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE => thread::sleep(PATIENCE / 40),
            Err(Errno::WOULDBLOCK) => {
                return Err(StoreError::Unsupported(format!(
                    "the snapshot store {} is in use by another process: is a daemon running?",
                    path.display()
                )));
            }
            Err(error) => return Err(failed("locking", path)(error.into())),
        }
    }
}

/// How long others may look at it, or still have it locked after it was closed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A file to lock, by a name that says for what.
pub(crate) fn lock_file(name: &str) -> Result<(File, PathBuf), StoreError> {
    let path = locks()?.join(name);
    let file = File::options().create(true).append(true).open(&path).map_err(failed("opening", &path))?;
    Ok((file, path))
}

/// The directory for that, which nobody else may look into: what others can open, they can lock.
pub(super) fn locks() -> Result<&'static Path, StoreError> {
    let dir = Path::new(LOCKS);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let there = made.and_then(|()| fs::symlink_metadata(dir)).map_err(failed("making", dir))?;
    if !there.is_dir() || there.uid() != rustix::process::geteuid().as_raw() {
        return Err(StoreError::Unsupported(format!(
            "{} was made by somebody else, who could keep all volumes from being used: remove it",
            dir.display()
        )));
    }
    if there.mode() & 0o077 != 0 {
        fs::set_permissions(dir, Permissions::from_mode(0o700))
            .map_err(failed("keeping others from", dir))?;
    }
    Ok(dir)
}

/// Where programs on one machine meet, whatever directories they have.
pub(super) const LOCKS: &str = "/run/lock/zumastor";
