//! Receiving a snapshot into a layer of its own.

use std::{
    fs::File,
    ops::Range,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use zumastor_core::{LEAF, LeafIndex, SEGMENT, SegmentIndex, SnapshotReader, StoreError, files, is_zero};

use super::{chain::Chain, layer::forced_by_size};
use crate::bulk::BulkFile;
use crate::file::{
    body::Body,
    layout::failed,
    reader::{check_bounds, read_exact, reading},
    runs::Runs,
};

/// The layer that is being received. Leaves it does not have are read from the base.
#[derive(Debug)]
pub(crate) struct LayerBody {
    data: BulkFile,
    path: PathBuf,
    size: u64,
    base: Option<Chain>,
    /// A bit for each leaf that the layer has.
    present: Vec<AtomicU64>,
    /// Who writes to a segment holds one of these, so that two parts of a leaf are not copied up at once.
    writing: Vec<Mutex<()>>,
    /// Whether the data file may hold leaves that are not present: what a crash left.
    littered: bool,
}

impl LayerBody {
    /// A layer of `size` bytes in a data file of that size; `present` when it was begun earlier.
    pub(crate) fn new(
        data: File,
        path: PathBuf,
        size: u64,
        base: Option<Chain>,
        present: Option<&Runs>,
    ) -> Result<Self, StoreError> {
        let words = LeafIndex::count(size).div_ceil(64);
        let body = Self {
            data: BulkFile::new(data, &path),
            path,
            size,
            base,
            present: (0..words).map(|_| AtomicU64::new(0)).collect(),
            writing: (0..64).map(|_| Mutex::new(())).collect(),
            littered: present.is_some(),
        };
        match present {
            Some(runs) => runs.iter().for_each(|run| body.set(run)),
            None => body.begin()?,
        }
        Ok(body)
    }

    /// Takes the leaves that the layer must have because its base has another size.
    fn begin(&self) -> Result<(), StoreError> {
        let Some(base) = &self.base else { return Ok(()) };
        let forced = forced_by_size(base.size(), self.size);
        let cut = LeafIndex(forced.start).range(base.size().min(self.size));
        if !forced.is_empty() && !cut.is_empty() {
            let mut bytes = vec![0; (cut.end - cut.start) as usize];
            base.read_at(cut.start, &mut bytes)?;
            if !is_zero(&bytes) {
                self.write(cut.start, &bytes)?;
            }
        }
        self.set(forced);
        Ok(())
    }

    fn has(&self, leaf: u64) -> bool {
        self.present[(leaf / 64) as usize].load(Ordering::Relaxed) >> (leaf % 64) & 1 == 1
    }

    fn set(&self, leaves: Range<u64>) {
        let mut leaf = leaves.start;
        while leaf < leaves.end {
            let bits = (64 - leaf % 64).min(leaves.end - leaf);
            let mask = (u64::MAX >> (64 - bits)) << (leaf % 64);
            // Whoever sees the bit sees the data that were written before it.
            self.present[(leaf / 64) as usize].fetch_or(mask, Ordering::Release);
            leaf += bits;
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.data.write_all_at(bytes, offset).map_err(failed("writing", &self.path))
    }

    fn punch(&self, range: Range<u64>) -> Result<(), StoreError> {
        files::punch_hole(self.data.file(), range).map_err(failed("writing", &self.path))
    }

    fn lock(&self, segment: SegmentIndex) -> MutexGuard<'_, ()> {
        self.writing[segment.0 as usize % self.writing.len()].lock().expect("no panic while locked")
    }

    /// Writes a part of a leaf. One that is not here is completed from the base.
    fn write_part(&self, leaf: LeafIndex, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if self.has(leaf.0) {
            return self.write(offset, bytes);
        }
        let range = leaf.range(self.size);
        if let Some(base) = &self.base {
            let mut whole = vec![0; (range.end - range.start) as usize];
            base.read_at(range.start, &mut whole)?;
            whole[(offset - range.start) as usize..][..bytes.len()].copy_from_slice(bytes);
            self.write(range.start, &whole)?;
        } else {
            if self.littered {
                self.punch(range)?;
            }
            self.write(offset, bytes)?;
        }
        self.set(leaf.0..leaf.0 + 1);
        Ok(())
    }

    /// The range cut where segments end.
    fn by_segment(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut start = range.start;
        std::iter::from_fn(move || {
            let end = (start / SEGMENT * SEGMENT + SEGMENT).min(range.end);
            let part = start..end;
            start = end;
            (!part.is_empty()).then_some(part)
        })
    }

    /// The first part of a range that is a part of a leaf, or a run of whole leaves.
    fn first_part(&self, range: &Range<u64>) -> (Range<u64>, bool) {
        let leaf = LeafIndex::containing(range.start).range(self.size);
        if range.start > leaf.start || range.end < leaf.end {
            return (range.start..range.end.min(leaf.end), false);
        }
        let end = if range.end == self.size { range.end } else { range.end / LEAF * LEAF };
        (range.start..end, true)
    }

    fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        here: impl Fn(u64, &mut [u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        let end = offset + buf.len() as u64;
        let mut position = offset;
        while position < end {
            let has = self.has(position / LEAF);
            let mut next = (position / LEAF + 1) * LEAF;
            while next < end && self.has(next / LEAF) == has {
                next += LEAF;
            }
            let next = next.min(end);
            let part = &mut buf[(position - offset) as usize..(next - offset) as usize];
            match &self.base {
                _ if has => here(position, part)?,
                Some(base) => base.read_at(position, part)?,
                None => part.fill(0),
            }
            position = next;
        }
        Ok(())
    }
}

impl Body for LayerBody {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.read(offset, buf, |at, part| read_exact(self.data.file(), &self.path, at, part))
    }

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let read = |at, part: &mut [u8]| {
            self.data.read_exact_at(part, at).map_err(|error| reading(error, &self.path, at, part.len()))
        };
        self.read(offset, buf, read)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        for mut rest in Self::by_segment(offset..offset + data.len() as u64) {
            let _writing = self.lock(SegmentIndex::containing(rest.start));
            while !rest.is_empty() {
                let (part, whole) = self.first_part(&rest);
                let bytes = &data[(part.start - offset) as usize..(part.end - offset) as usize];
                if whole {
                    self.write(part.start, bytes)?;
                    self.set(part.start / LEAF..LeafIndex::count(part.end));
                } else {
                    self.write_part(LeafIndex::containing(part.start), part.start, bytes)?;
                }
                rest.start = part.end;
            }
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> Result<(), StoreError> {
        for mut rest in Self::by_segment(range) {
            let _writing = self.lock(SegmentIndex::containing(rest.start));
            while !rest.is_empty() {
                let (part, whole) = self.first_part(&rest);
                let leaf = LeafIndex::containing(part.start);
                if whole {
                    self.punch(part.clone())?;
                    // Without a base, what is not here is zero already.
                    if self.base.is_some() {
                        self.set(part.start / LEAF..LeafIndex::count(part.end));
                    }
                } else if self.has(leaf.0) {
                    self.punch(part.clone())?;
                } else if self.base.is_some() {
                    self.write_part(leaf, part.start, &vec![0; (part.end - part.start) as usize])?;
                }
                rest.start = part.end;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.data.file().sync_data().map_err(failed("syncing", &self.path))
    }

    fn runs(&self) -> Runs {
        let mut runs = Runs::default();
        for (word, bits) in (0..).zip(&self.present) {
            let mut bits = bits.load(Ordering::Acquire);
            let mut leaf = word * 64;
            while bits != 0 {
                let skip = bits.trailing_zeros();
                bits >>= skip;
                leaf += u64::from(skip);
                let ones = bits.trailing_ones();
                runs.push(leaf..leaf + u64::from(ones));
                bits = bits.checked_shr(ones).unwrap_or(0);
                leaf += u64::from(ones);
            }
        }
        runs
    }
}
