//! One program at a time for a store.

use std::{
    fs::{self, File},
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
    let dir = Path::new(LOCKS);
    fs::create_dir_all(dir).map_err(failed("making", dir))?;
    let path = dir.join(name);
    let file = File::options().create(true).append(true).open(&path).map_err(failed("opening", &path))?;
    Ok((file, path))
}

/// Where programs on one machine meet, whatever directories they have.
pub(super) const LOCKS: &str = "/run/lock/zumastor";
