//! Deleting a volume's snapshots for good, with everything that its store keeps.

use std::{os::unix::fs::FileTypeExt, path::Path};

use zumastor_core::StoreError;

use crate::{Faults, file};

/// Takes a snapshot store out of use, for ever, in one durable step. Blocking.
///
/// # Errors
/// [`StoreError::Unsupported`] when there is no store, and for what is on block devices.
pub fn condemn_store(snapstore: &Path) -> Result<(), StoreError> {
    no_device(snapstore)?;
    file::condemn(snapstore, &Faults::none())
}

/// Deletes what is left of a condemned store; may be called again after a crash. The origin stays. Blocking.
///
/// # Errors
/// [`StoreError::Unsupported`] when the store was not condemned, or somebody still has it open.
pub fn remove_store(origin: &Path, snapstore: &Path) -> Result<(), StoreError> {
    no_device(snapstore)?;
    file::remove(origin, snapstore, &Faults::none())
}

fn no_device(snapstore: &Path) -> Result<(), StoreError> {
    match std::fs::metadata(snapstore) {
        Ok(found) if found.file_type().is_block_device() => Err(StoreError::Unsupported(format!(
            "{} is a block device, and only snapshot stores in directories are deleted: delete the snapshots with \
             `zumastor delete VOLUME --all`, forget the volume, and overwrite the device",
            snapstore.display()
        ))),
        _ => Ok(()),
    }
}
