//! Why a store could not do what it was asked.

use std::{io, ops::Range, path::PathBuf};

use crate::{SnapshotNumber, digest::Digest};

/// Why a store could not do what it was asked. Unless the variant says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such snapshot; it may have been deleted, so list again.
    #[error("there is no snapshot {number}")]
    NotFound {
        /// The number asked for.
        number: SnapshotNumber,
    },
    /// A snapshot with this number is already there.
    #[error("snapshot {number} exists already")]
    Exists {
        /// The number.
        number: SnapshotNumber,
    },
    /// The range does not lie within the volume or snapshot.
    #[error("bytes {}..{} lie beyond the end of the volume ({size} bytes)", range.start, range.end)]
    OutOfBounds {
        /// What was asked for.
        range: Range<u64>,
        /// Where the volume ends.
        size: u64,
    },
    /// Another transfer is staged for this volume: take it up or discard it first.
    #[error("snapshot {number} is already being received into this volume")]
    StagingBusy {
        /// The snapshot that is staged.
        number: SnapshotNumber,
    },
    /// What was staged is not the content that the digest names. It stays staged, and nothing shows it.
    #[error("what was received for snapshot {number} has digest {found}, not {expected}")]
    DigestMismatch {
        /// The snapshot that was to be committed.
        number: SnapshotNumber,
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        found: Digest,
    },
    /// The origin was written while a store that must copy it was copying it, each time it was tried; or it is open for
    /// writing where a write cannot be noticed.
    #[error(
        "{} was or could be written while it was being copied, so no snapshot of one moment could be taken: stop the writer for \
         the time of the snapshot, or keep the volume on XFS or btrfs, where a snapshot takes a moment", path.display()
    )]
    OriginBusy {
        /// The origin.
        path: PathBuf,
    },
    /// The head holds something that no snapshot has: replacing it would lose that.
    #[error("{} was written to since it showed a snapshot", path.display())]
    HeadWritten {
        /// The head.
        path: PathBuf,
    },
    /// Another program may write to the head at any moment: what it wrote after a flip would be lost. Try again later.
    #[error("{} is open for writing by another program: a replica's volume may only be read", path.display())]
    HeadBusy {
        /// The head.
        path: PathBuf,
    },
    /// Out of space. Nothing that was there before is touched, and what is staged stays for another try.
    #[error("no space left: {what}")]
    NoSpace {
        /// What was being written.
        what: String,
    },
    /// The store holds something that it never writes, or lacks something that it needs.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong, and what can be done.
        what: String,
    },
    /// The store cannot be used like this.
    #[error("{0}")]
    Unsupported(String),
    /// The device or file failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl StoreError {
    /// Wraps an I/O error with what was being done; `ENOSPC` and `EDQUOT` become [`StoreError::NoSpace`].
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { what },
            _ => Self::Io { what, source },
        }
    }
}
