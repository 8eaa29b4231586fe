//! Where things lie in a snapshot store, and the small files that describe them.
//!
//! ```text
//! store             what this directory is: the mode, decided once
//! condemned         what `store` is called while all of it is being deleted for good
//! lock              held by the process that has the store open
//! head              which snapshot the origin shows, and how to tell that it was not written since
//! alternate         what the second image beside the origin holds (layered mode)
//! snapshots/N/      one directory per snapshot: `record`, `leaves`, in reflink mode `image`, while it is mended `repair`
//! layers/ID         a layer's descriptor (layered mode)
//! data/ID           a layer's leaves, each at its own offset in a sparse file (layered mode)
//! staging/          what is being received: `plan`, `progress`, `leaves`, and in reflink mode `image`
//! tmp/, trash/      half made and half removed; emptied when the store is opened
//! ```
//! A description is 8 bytes of magic, the BLAKE3 hash of the rest, then the value in postcard.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use zumastor_core::{SnapshotNumber, StoreError, files};

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

/// A kind of description, told apart by its magic.
pub(crate) trait Described: Serialize + DeserializeOwned {
    /// The first 8 bytes of the file; the last is the version.
    const MAGIC: &'static [u8; 8];

    /// The file's bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("plain data is written to memory");
        let mut bytes = Vec::with_capacity(body.len() + 40);
        bytes.extend_from_slice(Self::MAGIC);
        bytes.extend_from_slice(blake3::hash(&body).as_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads the file, or nothing when there is none.
    fn load(path: &Path) -> Result<Option<Self>, StoreError> {
        let bytes = match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed("reading", path))?,
        };
        let damaged = |what: &str| StoreError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let (magic, rest) = bytes.split_at_checked(8).ok_or_else(|| damaged("cut short"))?;
        if magic[..7] != Self::MAGIC[..7] {
            return Err(damaged("not what a snapshot store keeps here"));
        }
        if magic != Self::MAGIC {
            return Err(damaged("written by a version of this program that this one does not know"));
        }
        let (check, body) = rest.split_at_checked(32).ok_or_else(|| damaged("cut short"))?;
        if blake3::hash(body).as_bytes() != check {
            return Err(damaged("its checksum does not fit: restore this file from a backup"));
        }
        postcard::from_bytes(body).map(Some).map_err(|_| damaged("its content cannot be understood"))
    }

    /// Reads a file that only saves work: one that is missing or damaged is as good as an empty one.
    fn recall(path: &Path) -> Self
    where
        Self: Default,
    {
        let loaded = Self::load(path).unwrap_or_else(|error| {
            tracing::warn!(%error, "ignored");
            None
        });
        loaded.unwrap_or_default()
    }

    /// Writes a file that is not yet visible, and makes it durable.
    fn write_new(&self, path: &Path) -> Result<(), StoreError> {
        let mut file = File::create(path).map_err(failed("writing", path))?;
        file.write_all(&self.to_bytes()).and_then(|()| file.sync_all()).map_err(failed("writing", path))
    }

    /// Replaces the file in one durable step.
    fn replace(&self, path: &Path) -> Result<(), StoreError> {
        files::write_atomically(path, &self.to_bytes(), 0o600).map_err(failed("writing", path))
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

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    files::sync_dir(dir).map_err(failed("syncing", dir))
}

/// Wraps an I/O error with what was done to which file.
pub(crate) fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    StoreError::io(format!("{doing} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Thing(u64, String);

    impl Described for Thing {
        const MAGIC: &'static [u8; 8] = b"ZUMTEST\x01";
    }

    #[test]
    fn descriptions_are_read_back_and_damaged_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thing");
        assert!(Thing::load(&path).unwrap().is_none());
        let thing = Thing(7, "seven".into());
        thing.replace(&path).unwrap();
        assert_eq!(Thing::load(&path).unwrap(), Some(thing));
        let good = fs::read(&path).unwrap();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(matches!(Thing::load(&path), Err(StoreError::Damaged { .. })), "byte {position}");
            fs::write(&path, &good[..position]).unwrap();
            assert!(matches!(Thing::load(&path), Err(StoreError::Damaged { .. })), "{position} bytes");
        }
    }
}
