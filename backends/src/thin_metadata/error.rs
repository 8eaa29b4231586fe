//! Why thin metadata could not be read.

use std::{io, path::PathBuf};

use zumastor_core::StoreError;

/// Why thin metadata could not be read, or a held root not dropped: nothing was changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThinMetadataError {
    /// The device or file failed.
    #[error("reading block {block} of {}: {source}", path.display())]
    Io {
        /// The metadata device.
        path: PathBuf,
        /// The first block that was wanted.
        block: u64,
        /// Why it failed.
        source: io::Error,
    },
    /// This is no thin metadata, or of a kind that is not known.
    #[error("{}, block {block}: no superblock of thin metadata that can be read: {what}", path.display())]
    Superblock {
        /// The metadata device.
        path: PathBuf,
        /// The block.
        block: u64,
        /// What is wrong.
        what: String,
    },
    /// A node of a tree is not as it must be: the metadata is damaged, or was changed while it was read.
    #[error("{}, block {block}: the thin metadata is damaged: {what}", path.display())]
    Damaged {
        /// The metadata device.
        path: PathBuf,
        /// The block.
        block: u64,
        /// What is wrong.
        what: String,
    },
    /// There is no held root: reserve one (`reserve_metadata_snap`) before reading, and release it afterwards.
    #[error("{}: the pool holds no root for readers", path.display())]
    NoHeldRoot {
        /// The metadata device.
        path: PathBuf,
    },
    /// There is no such thin device.
    #[error("{}: the pool has no thin device {device}", path.display())]
    NoDevice {
        /// The metadata device.
        path: PathBuf,
        /// Its id.
        device: u32,
    },
}

impl From<ThinMetadataError> for StoreError {
    fn from(error: ThinMetadataError) -> Self {
        let what = error.to_string();
        match error {
            ThinMetadataError::Io { path, block, source } => {
                Self::io(format!("reading block {block} of {}", path.display()))(source)
            }
            ThinMetadataError::Superblock { path, .. } | ThinMetadataError::Damaged { path, .. } => {
                Self::Damaged { path, what: format!("{what}: see what thin_check says of it") }
            }
            ThinMetadataError::NoHeldRoot { .. } | ThinMetadataError::NoDevice { .. } => {
                Self::Unsupported(what)
            }
        }
    }
}
