//! Small files that describe something, and what went wrong with a file.
//!
//! A description is 8 bytes of magic, the BLAKE3 hash of the rest, then the value in postcard.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};
use zumastor_core::{StoreError, files};

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

    /// Writes a file that is not yet visible; the caller makes it durable.
    fn write_new(&self, path: &Path) -> Result<File, StoreError> {
        let mut file = File::create(path).map_err(failed("writing", path))?;
        file.write_all(&self.to_bytes()).map_err(failed("writing", path))?;
        Ok(file)
    }

    /// Replaces the file in one durable step.
    fn replace(&self, path: &Path) -> Result<(), StoreError> {
        files::write_atomically(path, &self.to_bytes(), 0o600).map_err(failed("writing", path))
    }
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    files::sync_dir(dir).map_err(failed("syncing", dir))
}

/// Makes the entries of a directory durable, and all that is in these files.
pub(crate) fn sync_together(dir: &Path, files: &[(&File, &Path)]) -> Result<(), StoreError> {
    let entries = File::open(dir).map_err(failed("opening", dir))?;
    let all: Vec<(&File, &Path)> = [(&entries, dir)].into_iter().chain(files.iter().copied()).collect();
    let only: Vec<&File> = all.iter().map(|(file, _)| *file).collect();
    let mut synced = files::sync_together(&only).into_iter().zip(&all);
    synced.try_for_each(|(synced, (_, path))| synced.map_err(failed("syncing", path)))
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
