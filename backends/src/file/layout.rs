//! Where things lie in a snapshot store, and the small files that describe them.
//!
//! ```text
//! store             what this directory is: the mode, decided once
//! condemned         what `store` is called while all of it is being deleted for good
//! lock              held by the process that has the store open
//! head              which snapshot the origin shows, and how to tell that it was not written since
//! alternate         what the second image beside the origin holds (layered mode)
//! held              how much of each image the next one does not share (reflink mode; only saves work)
//! snapshots/N/      one directory per snapshot: `record`, `leaves`, in reflink mode `image`, while it is mended `repair`
//! layers/ID         a layer's descriptor (layered mode)
//! data/ID           a layer's leaves, each at its own offset in a sparse file (layered mode)
//! staging/          what is being received: `plan`, `progress`, `leaves`, and in reflink mode `image`
//! tmp/, trash/      half made and half removed; emptied when the store is opened
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
};

use zumastor_core::{SnapshotNumber, StoreError};

pub(crate) use crate::described::{Described, failed, sync_dir, sync_together};

/// The paths of a snapshot store.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// What `store` is called from the moment that all of it is to be deleted.
    pub(crate) fn condemned(&self) -> PathBuf {
        self.root.join("condemned")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn head(&self) -> PathBuf {
        self.root.join("head")
    }

    pub(crate) fn alternate(&self) -> PathBuf {
        self.root.join("alternate")
    }

    pub(crate) fn held(&self) -> PathBuf {
        self.root.join("held")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn snapshot(&self, number: SnapshotNumber) -> PathBuf {
        self.snapshots().join(format!("{:010}", number.0))
    }

    pub(crate) fn image(&self, number: SnapshotNumber) -> PathBuf {
        self.snapshot(number).join("image")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, id: u64) -> PathBuf {
        self.layers().join(format!("{id:010}"))
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(crate) fn data(&self, id: u64) -> PathBuf {
        self.data_dir().join(format!("{id:010}"))
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Makes the directories that are missing, and empties those for half made and half removed things.
    pub(crate) fn prepare(&self) -> Result<(), StoreError> {
        // Nothing is made that is there already: a volume on a full disk must stay within reach.
        for dir in [self.tmp(), self.trash()] {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries {
                let path = entry.map_err(failed("listing", &dir))?.path();
                let is_dir = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
                let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(failed("removing", &path))?;
            }
        }
        for dir in [self.tmp(), self.trash(), self.snapshots(), self.layers(), self.data_dir()] {
            if !dir.is_dir() {
                fs::create_dir_all(&dir).map_err(failed("making", &dir))?;
                sync_dir(&self.root)?;
            }
        }
        Ok(())
    }

    /// A new, empty directory in `tmp/`.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf, StoreError> {
        let dir = self.tmp().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).map_err(failed("making", &dir))?;
        Ok(dir)
    }

    /// Takes a directory out of sight in one durable step; its space is given back afterwards.
    pub(crate) fn bury(&self, dir: &Path, name: &str) -> Result<(), StoreError> {
        let grave = self.trash().join(name);
        let _ = fs::remove_dir_all(&grave);
        fs::rename(dir, &grave).map_err(failed("removing", dir))?;
        sync_dir(dir.parent().expect("lies in the store"))
    }

    /// Gives back the space of what was buried. Not an error when it fails: it is tried again at the next opening.
    pub(crate) fn empty_grave(&self, name: &str) {
        let grave = self.trash().join(name);
        if let Err(error) = fs::remove_dir_all(&grave) {
            tracing::warn!(path = %grave.display(), %error, "could not remove what was deleted");
        }
    }
}

/// The numbers that name the entries of a directory. What is named otherwise is not ours and is left alone.
pub(crate) fn numbered(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("listing", dir))? {
        let entry = entry.map_err(failed("listing", dir))?;
        numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
