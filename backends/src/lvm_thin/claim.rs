//! Which volume of this machine has a thin volume of LVM's, and whether that was activated for it.
//!
//! A file for each store says so, by the identity of the store: names change. It lies where a reboot leaves nothing, as a reboot leaves
//! nothing active.

use std::{fs::File, io::Write, path::PathBuf};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;
use zumastor_core::StoreError;

use crate::{
    described::failed,
    thin::lock::{lock, lock_file},
};

/// The right to have a store open; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    volume: String,
    file: File,
    path: PathBuf,
}

impl Claim {
    /// Takes the store for a volume, against all others on this machine. `device` is what it is called in messages.
    pub(super) fn take(store: Uuid, volume: &str, device: &str) -> Result<Self, StoreError> {
        let (file, path) = lock_file(&format!("{}.lock", store.simple()))?;
        let claim = Self { volume: volume.to_owned(), file, path };
        if let Err(error) = lock(&claim.file, &claim.path) {
            return Err(match (error, claim.lines().into_iter().next()) {
                (StoreError::Unsupported(_), Some(holder)) => StoreError::Unsupported(format!(
                    "{device} is in use by another process, as volume {holder}: `zumastor forget volume {holder}` first, on the node \
                     that has it"
                )),
                (error, _) => error,
            });
        }
        let activated = claim.has_activated();
        claim.note(activated)?;
        Ok(claim)
    }

    /// Whether the volume was activated for the store, by this run of the program or an earlier one.
    pub(super) fn has_activated(&self) -> bool {
        self.lines().iter().any(|line| line == ACTIVATED)
    }

    /// Notes whether the volume was activated for the store: to be called before that is done, and after that was undone.
    pub(super) fn note(&self, activated: bool) -> Result<(), StoreError> {
        let text = format!("{}\n{}\n", self.volume, if activated { ACTIVATED } else { "" });
        let noted = self.file.set_len(0).and_then(|()| (&self.file).write_all(text.as_bytes()));
        noted.map_err(failed("writing", &self.path))
    }

    /// Gives the store up.
    pub(super) fn release(&self) -> Result<(), StoreError> {
        flock(&self.file, FlockOperation::Unlock)
            .map_err(|error| failed("unlocking", &self.path)(error.into()))
    }

    /// The volume's name comes first.
    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

/// No name of a volume begins so.
const ACTIVATED: &str = "+activated";
