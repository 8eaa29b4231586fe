//! Vouching for what the origin shows, also after the machine was restarted.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use zumastor_core::{SnapshotReader, SnapshotRecord, StoreError, digest::digest_of};

use super::{
    Mode, fiemap,
    head::{HeadMarker, Shown, Stamp},
    inner::{Inner, Kept},
    layout::{Described, failed},
};
use crate::plain_source;

/// Bytes compared at a time.
const PART: usize = 1 << 20;

impl Inner {
    /// That a file with this stamp, taken now, holds a snapshot.
    pub(super) fn showing(&self, record: &SnapshotRecord, stamp: Stamp) -> Shown {
        Shown { number: record.number(), guid: record.guid(), stamp, boot: self.boot.clone() }
    }

    /// Whether a stamp still proves something: not across a restart.
    pub(super) fn of_this_boot(&self, shown: &Shown) -> bool {
        self.boot.is_empty() || shown.boot == self.boot
    }

    /// The snapshot that the origin shows, if it is certain and the snapshot is still there.
    pub(crate) fn shown(&self) -> Result<Option<Shown>, StoreError> {
        let marker = HeadMarker::recall(&self.layout.head());
        let there = |shown: &Shown| {
            let Shown { number, guid, .. } = shown;
            self.kept(*number)
                .ok()
                .filter(|kept| kept.record.guid() == *guid)
                .map(|kept| (shown.clone(), kept))
        };
        let Some((shown, kept)) = marker.shown(&self.origin)?.find_map(there) else { return Ok(None) };
        if self.of_this_boot(&shown) {
            return Ok(Some(shown));
        }
        let now = Shown { boot: self.boot.clone(), ..shown };
        // Whoever asks meanwhile waits for the answer. It holds as long as the stamp does, for the machine runs on.
        let mut vouched = self.vouched.lock().expect("no panic while locked");
        let equal = match &*vouched {
            Some((known, equal)) if *known == now => *equal,
            _ => self.still_shows(&now, &kept)?,
        };
        *vouched = Some((now.clone(), equal));
        if equal && let Some(_control) = self.try_control() {
            // Without it, the comparison is made once more by whoever opens the store next.
            let marked = HeadMarker(vec![now.clone()]).replace(&self.layout.head());
            marked.or_else(|error| self.unless_stopped(error))?;
        }
        Ok(equal.then_some(now))
    }

    /// Compares the origin with the snapshot that it showed before the machine was restarted.
    fn still_shows(&self, shown: &Shown, kept: &Kept) -> Result<bool, StoreError> {
        if shown.stamp.size != kept.record.size {
            return Ok(false);
        }
        tracing::info!(origin = %self.origin.display(), "comparing the volume with its snapshot after a restart");
        let equal = match self.header.mode {
            Mode::Reflink => {
                let image = self.image(shown.number)?;
                let origin = File::open(&self.origin).map_err(failed("opening the origin", &self.origin))?;
                // What shares its blocks is equal; the rest, if any, is read.
                let differ = fiemap::changes(image.file(), None, &origin, 0..shown.stamp.size);
                let differ = differ.map_err(failed("mapping", &self.origin))?;
                let mut ranges = differ.iter().map(|extent| extent.range.clone());
                ranges.try_fold(true, |equal, range| {
                    Ok::<_, StoreError>(equal && same(&image, &origin, &self.origin, range.start, range.end)?)
                })?
            }
            Mode::Layered => match kept.record.digest {
                Some(digest) => digest_of(&plain_source(&self.origin)?, None)? == digest,
                None => false,
            },
        };
        Ok(equal && Stamp::at(&self.origin)? == Some(shown.stamp))
    }
}

fn same(
    image: &dyn SnapshotReader,
    origin: &File,
    path: &Path,
    mut start: u64,
    end: u64,
) -> Result<bool, StoreError> {
    let (mut a, mut b) = (vec![0; PART], vec![0; PART]);
    while start < end {
        let length = (end - start).min(PART as u64) as usize;
        image.read_at(start, &mut a[..length])?;
        origin.read_exact_at(&mut b[..length], start).map_err(failed("reading", path))?;
        if a[..length] != b[..length] {
            return Ok(false);
        }
        start += length as u64;
    }
    Ok(true)
}
