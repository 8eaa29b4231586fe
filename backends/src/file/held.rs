//! What the images of reflink snapshots hold, for `usage`, which is asked often: each pair of neighbours is looked at once, and what
//! was found is kept over restarts in the file `held`.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::PathBuf};

use serde::{Deserialize, Serialize};
use zumastor_core::{Changes, Extent, ExtentKind, SnapshotGuid, SnapshotNumber, StoreError};

use super::{
    fiemap,
    inner::Inner,
    layout::{Described, failed, sync_dir},
    reader::ImageReader,
};

/// The file `held`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct HeldFile {
    /// The store that it is about.
    place: Place,
    /// Images by guid, each with the next one, and the bytes of it that the next does not share.
    pairs: Vec<(SnapshotGuid, SnapshotGuid, u64)>,
}

/// Where a store lies: inode and time of change (seconds and nanoseconds) of its file `store`. A copy of the store has the same
/// snapshots, and others of them share blocks there, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place(u64, i64, i64);

impl Described for HeldFile {
    const MAGIC: &'static [u8; 8] = b"ZUMHELD\x02";
}

/// What is known of neighbours.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pairs: BTreeMap<(SnapshotGuid, SnapshotGuid), u64>,
    /// Whether the file was read.
    recalled: bool,
    /// Whether the file has what is in memory.
    saved: bool,
}

impl Inner {
    /// Bytes that the images hold and the next ones do not share: what an image shares with the next is counted there,
    /// if at all. What the newest does not share with the head is not looked for: the head may be large and is written.
    pub(super) fn held_by_images(&self) -> Result<u64, StoreError> {
        self.recall_held();
        let snapshots: Vec<(SnapshotNumber, SnapshotGuid)> =
            self.state().snapshots.iter().map(|(number, kept)| (*number, kept.record.guid())).collect();
        let mut counted = BTreeMap::new();
        let mut found = false;
        for pair in snapshots.windows(2) {
            let ((number, guid), (next, next_guid)) = (pair[0], pair[1]);
            // Images do not change; what is deleted meanwhile takes nothing.
            let known = self.held().pairs.get(&(guid, next_guid)).copied();
            let Some(held) = known.map_or_else(|| self.not_shared(number, next), |held| Ok(Some(held)))?
            else {
                continue;
            };
            found |= known.is_none();
            counted.insert((guid, next_guid), held);
        }
        let total = counted.values().sum();
        let mut held = self.held();
        if found || !held.saved || counted.len() != held.pairs.len() {
            held.saved = self.save_held(&counted).is_ok();
        }
        held.pairs = counted;
        Ok(total)
    }

    /// Looks at a new snapshot and the one before it, which for a file that is written all over takes long: so that whoever
    /// asks need not wait for it.
    pub(super) fn note_held(&self, new: SnapshotNumber) {
        let pair = {
            let state = self.state();
            let before = state.snapshots.range(..new).next_back();
            before
                .zip(state.snapshots.get(&new))
                .map(|((number, kept), new)| (*number, kept.record.guid(), new.record.guid()))
        };
        let Some((before, guid, new_guid)) = pair else { return };
        // What cannot be told now is looked for when somebody asks.
        if let Ok(Some(bytes)) = self.not_shared(before, new) {
            let mut held = self.held();
            held.pairs.insert((guid, new_guid), bytes);
            held.saved = false;
        }
    }

    /// Images have changed: nothing is known of them any more, not after a restart either.
    pub(super) fn forget_held(&self) -> Result<(), StoreError> {
        let mut held = self.held();
        *held = Held { recalled: true, ..Held::default() };
        let path = self.layout.held();
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(self.layout.root()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("removing", &path)(error)),
        }
    }

    fn recall_held(&self) {
        let mut held = self.held();
        if !held.recalled {
            let file = HeldFile::recall(&self.layout.held());
            let here = self.place().is_ok_and(|place| place == file.place);
            for (guid, next, bytes) in file.pairs.into_iter().filter(|_| here) {
                held.pairs.entry((guid, next)).or_insert(bytes);
            }
            held.recalled = true;
        }
    }

    /// Nothing depends on the file, so nobody waits until it is durable; half of it fails its checksum.
    fn save_held(&self, pairs: &BTreeMap<(SnapshotGuid, SnapshotGuid), u64>) -> io::Result<()> {
        let pairs = pairs.iter().map(|((guid, next), bytes)| (*guid, *next, *bytes)).collect();
        let file = HeldFile { place: self.place()?, pairs };
        let path = self.layout.held();
        let new: PathBuf = self.layout.tmp().join("held");
        fs::write(&new, file.to_bytes()).and_then(|()| fs::rename(&new, &path))
    }

    fn place(&self) -> io::Result<Place> {
        let store = fs::metadata(self.layout.store())?;
        Ok(Place(store.ino(), store.ctime(), store.ctime_nsec()))
    }

    /// Bytes of an image that another does not share; nothing if one of them is gone.
    fn not_shared(&self, number: SnapshotNumber, other: SnapshotNumber) -> Result<Option<u64>, StoreError> {
        let (Ok(image), Ok(other)) = (self.image(number), self.image(other)) else { return Ok(None) };
        not_shared(&image, &other).map(Some).map_err(failed("mapping", &self.layout.image(number)))
    }
}

fn not_shared(image: &ImageReader, other: &ImageReader) -> io::Result<u64> {
    use zumastor_core::SnapshotReader as _;
    let window = 0..image.size();
    let (theirs, ours) =
        (fiemap::map_synced(other.file(), &window)?, fiemap::map_synced(image.file(), &window)?);
    let mut changes = Changes::new();
    fiemap::differences(&theirs, &ours, window, &mut changes);
    Ok(changes.iter().filter(|extent| extent.kind == ExtentKind::Data).map(Extent::len).sum())
}
