//! What stands at the front of the snapshot store: what the volume consists of, in two copies.
//!
//! The format is described in `docs/formats.md`.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zumastor_core::StoreError;

use super::devices::BlockDevice;
use crate::{
    described::failed,
    thin::{
        Catalogue,
        lock::{lock, lock_file},
    },
};

/// Where everything is. It changes only when a device grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    /// Unit of allocation in bytes.
    pub chunk: u64,
    /// Bytes of the origin when the volume was made, whole sectors.
    pub origin: u64,
    /// What the kernel said then that the origin is, if it said anything.
    pub identity: Option<String>,
    /// What the pool's data are made of, in this order: first all of the origin.
    pub data: Vec<Piece>,
    /// What the pool's metadata are made of.
    pub metadata: Vec<Piece>,
}

/// A part of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub on: On,
    pub begin: u64,
    pub length: u64,
}

/// The devices that a volume is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum On {
    Origin,
    SnapshotStore,
    MetadataDevice,
}

/// All that a copy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    pub layout: Layout,
    /// The pool's transaction that this belongs to.
    pub transaction: u64,
    /// Whether a program has the store open, or had when it ended: then a moment of the metadata that is still held in
    /// the pool is one of its own.
    pub open: bool,
    pub catalogue: Catalogue,
}

/// Bytes at the front of the snapshot store that belong to the two copies.
pub(super) const HEADER: u64 = 2 * COPY;
/// Bytes of one copy.
const COPY: u64 = 2 << 20;
/// Bytes before the content of a copy.
const LEAD: u64 = 4096;
const MAGIC: &[u8; 8] = b"ZUMATHN\x01";

/// The two copies on a snapshot store.
#[derive(Debug)]
pub(super) struct Header {
    file: File,
    path: PathBuf,
    /// Of the copy that was written last; 0 when there is none.
    sequence: u64,
    /// What keeps others out.
    lock: Option<File>,
}

impl Header {
    /// Opens the snapshot store, and reads the newer one of the copies that are whole.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Content>), StoreError> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("opening", path))?;
        let mut header = Self { file, path: path.to_owned(), sequence: 0, lock: None };
        let mut newest = None;
        let mut strange = None;
        for copy in 0..2 {
            match header.read(copy) {
                Ok(Some((sequence, content))) if sequence > header.sequence => {
                    header.sequence = sequence;
                    newest = Some(content);
                }
                Ok(_) => {}
                Err(error) => strange = Some(error),
            }
        }
        match (newest, strange) {
            // A copy that a crash left half written is replaced by the next change.
            (Some(content), _) => Ok((header, Some(content))),
            (None, Some(error)) => Err(error),
            (None, None) => Ok((header, None)),
        }
    }

    /// The same, by the only program that has the store open, until it is unlocked or dropped. It is not the device that is locked: udev
    /// would wait for that, and whoever waits for udev, for minutes.
    pub(super) fn open_alone(path: &Path) -> Result<(Self, Option<Content>), StoreError> {
        let alone = Self::alone(path)?;
        let (mut header, content) = Self::open(path)?;
        header.lock = Some(alone);
        Ok((header, content))
    }

    /// Keeps others from opening the store, as long as what this gives is open.
    pub(super) fn alone(path: &Path) -> Result<File, StoreError> {
        let (file, _) = lock_file(&format!("{}.lock", BlockDevice::look(path)?.number))?;
        lock(&file, path)?;
        Ok(file)
    }

    pub(super) fn unlock(&mut self) -> Result<(), StoreError> {
        let unlocked = self.lock.take().map_or(Ok(()), |file| flock(&file, FlockOperation::Unlock));
        unlocked.map_err(|error| failed("unlocking", &self.path)(error.into()))
    }

    /// Another hand on the same copies.
    pub(super) fn try_clone(&self) -> Result<Self, StoreError> {
        let file = self.file.try_clone().map_err(failed("opening", &self.path))?;
        Ok(Self { file, path: self.path.clone(), sequence: self.sequence, lock: None })
    }

    fn read(&self, copy: u64) -> Result<Option<(u64, Content)>, StoreError> {
        let damaged = |what: &str| StoreError::Damaged { path: self.path.clone(), what: what.to_owned() };
        let mut lead = [0; 56];
        match self.file.read_exact_at(&mut lead, copy * COPY) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(failed("reading", &self.path))?,
        }
        if lead[..7] != MAGIC[..7] {
            return Ok(None);
        }
        if lead[..8] != MAGIC[..] {
            return Err(damaged("written by a version of this program that this one does not know"));
        }
        let number = |at: usize| u64::from_le_bytes(lead[at..at + 8].try_into().expect("8 bytes"));
        let (sequence, length) = (number(8), number(16));
        if length > COPY - LEAD {
            return Err(damaged("the header is damaged"));
        }
        let mut body = vec![0; length as usize];
        self.file.read_exact_at(&mut body, copy * COPY + LEAD).map_err(failed("reading", &self.path))?;
        if lead[24..56] != check(&lead[..24], &body) {
            return Err(damaged("the checksums of its header do not fit"));
        }
        let content = postcard::from_bytes(&body).map_err(|_| damaged("the header cannot be understood"))?;
        Ok(Some((sequence, content)))
    }

    /// Writes over the older copy. If that fails, or the power does, the other one still stands.
    pub(super) fn write(&mut self, content: &Content) -> Result<(), StoreError> {
        let body = postcard::to_stdvec(content).expect("plain data is written to memory");
        if body.len() as u64 > COPY - LEAD {
            let what = format!(
                "{} snapshots: the header of {} is full; delete some",
                content.catalogue.snapshots.len(),
                self.path.display()
            );
            return Err(StoreError::NoSpace { what });
        }
        let sequence = self.sequence + 1;
        let mut bytes = vec![0; LEAD as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&(body.len() as u64).to_le_bytes());
        let check = check(&bytes[..24], &body);
        bytes[24..56].copy_from_slice(&check);
        bytes.extend_from_slice(&body);
        // Whole pages, so that none has to be read.
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let written = self.file.write_all_at(&bytes, sequence % 2 * COPY);
        written.and_then(|()| self.file.sync_data()).map_err(failed("writing the header of", &self.path))?;
        self.sequence = sequence;
        Ok(())
    }
}

fn check(lead: &[u8], body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(lead).update(body);
    *hasher.finalize().as_bytes()
}

/// The identity of the store whose header stands on a device, if there is one.
pub(crate) fn store_id(path: &Path) -> Result<Option<Uuid>, StoreError> {
    Ok(Header::open(path)?.1.map(|content| content.catalogue.store))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thin::ThinId;

    fn content(size: u64) -> Content {
        let piece = |on, begin, length| Piece { on, begin, length };
        let layout = Layout {
            chunk: 65_536,
            origin: 1 << 20,
            identity: None,
            data: vec![piece(On::Origin, 0, 1 << 20), piece(On::SnapshotStore, HEADER + (4 << 20), 1 << 20)],
            metadata: vec![piece(On::SnapshotStore, HEADER, 4 << 20)],
        };
        Content {
            layout,
            transaction: 7,
            open: false,
            catalogue: Catalogue::new(Uuid::nil(), ThinId(0), size),
        }
    }

    #[test]
    fn a_torn_write_leaves_what_was_there_before() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(HEADER).unwrap();
        let (mut header, none) = Header::open(file.path()).unwrap();
        assert!(none.is_none());
        header.write(&content(1)).unwrap();
        header.write(&content(2)).unwrap();
        assert_eq!(Header::open(file.path()).unwrap().1, Some(content(2)));
        // The next one is torn somewhere.
        let whole = std::fs::read(file.path()).unwrap();
        header.write(&content(3)).unwrap();
        let after = std::fs::read(file.path()).unwrap();
        let differs = (0..whole.len()).filter(|at| whole[*at] != after[*at]);
        let differs: Vec<_> = differs.collect();
        assert!(!differs.is_empty());
        for torn in differs {
            let mut bytes = after.clone();
            bytes[torn] ^= 0x55;
            std::fs::write(file.path(), bytes).unwrap();
            assert_eq!(Header::open(file.path()).unwrap().1, Some(content(2)), "byte {torn}");
        }
        // Both damaged: said, not taken for an empty device.
        let mut bytes = after;
        bytes[9] ^= 1;
        bytes[COPY as usize + 9] ^= 1;
        std::fs::write(file.path(), bytes).unwrap();
        assert!(matches!(Header::open(file.path()), Err(StoreError::Damaged { .. })));
    }
}
