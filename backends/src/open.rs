//! From paths to a store: the kind is seen, not asked.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use zumastor_core::{SnapshotStore, StoreError};

use crate::{FileStore, FileStoreOptions};

/// Whether a volume may be opened before its origin exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginMust {
    /// The origin has the data: it must be there.
    Exist,
    /// The volume is to be received, so there may be nothing yet.
    MayBeAbsent,
}

/// Opens the store of a volume, and makes it if there is none: `origin` holds the head, `snapstore` the snapshots.
///
/// # Errors
/// [`StoreError::Unsupported`] for what this build cannot keep volumes on, for an origin that should be there and is
/// not, for a snapshot store that holds something else, and when another process has the store open.
pub async fn open_volume(
    origin: &Path,
    snapstore: &Path,
    must: OriginMust,
) -> Result<Arc<dyn SnapshotStore>, StoreError> {
    let (origin, snapstore) = (origin.to_owned(), snapstore.to_owned());
    let open = move || -> Result<Arc<dyn SnapshotStore>, StoreError> {
        check(&origin, &snapstore, must)?;
        let options = FileStoreOptions { prepare: Some(WORTHWHILE), ..FileStoreOptions::default() };
        Ok(Arc::new(FileStore::open_or_create(origin, snapstore, options)?))
    };
    tokio::task::spawn_blocking(open).await.expect("opening a store does not panic")
}

/// Bytes from which on a copy takes long enough for somebody to notice.
const WORTHWHILE: u64 = 1 << 30;

fn check(origin: &PathBuf, snapstore: &PathBuf, must: OriginMust) -> Result<(), StoreError> {
    for path in [origin, snapstore] {
        let Some(metadata) = look(path)? else { continue };
        if metadata.file_type().is_block_device() {
            return Err(StoreError::Unsupported(format!(
                "{} is a block device: this build keeps volumes in image files only; give a file as origin and a \
                 directory as snapshot store",
                path.display()
            )));
        }
    }
    match look(origin)? {
        Some(metadata) if !metadata.is_file() => {
            Err(StoreError::Unsupported(format!("the origin {} is no regular file", origin.display())))
        }
        None if must == OriginMust::Exist => {
            Err(StoreError::Unsupported(format!("the origin {} does not exist", origin.display())))
        }
        _ => Ok(()),
    }
}

fn look(path: &Path) -> Result<Option<fs::Metadata>, StoreError> {
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(StoreError::io(format!("looking at {}", path.display()))),
    }
}
