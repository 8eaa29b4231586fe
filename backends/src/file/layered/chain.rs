//! Reading a snapshot through its layers.

use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use zumastor_core::{LEAF, LeafIndex, SnapshotReader, StoreError, digest::Source};

use super::layer::{Descriptor, Pin};
use crate::file::{
    reader::{check_bounds, read_exact, read_stored},
    runs::Runs,
};

/// The leaves of a layer, at their own offsets.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub file: File,
    pub path: PathBuf,
}

/// A run of leaves that all come from one data file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    leaves: Range<u64>,
    /// Position in the chain's list of files.
    file: u32,
}

/// The content of a layer: its own leaves, and those of the layers below it. Memory grows with the number of runs, not
/// with the volume.
#[derive(Debug)]
pub(crate) struct Chain {
    size: u64,
    pieces: Vec<Piece>,
    files: Vec<Arc<DataFile>>,
    _pin: Arc<Pin>,
}

/// The layers of a chain, newest first, with their data files open where there are data.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub size: u64,
    pub layers: Vec<(Arc<Descriptor>, Option<Arc<DataFile>>)>,
    pub pin: Arc<Pin>,
}

impl Pinned {
    /// Finds out which layer each leaf comes from.
    pub(crate) fn index(self) -> Chain {
        let mut files = Vec::new();
        let mut indexes: Vec<Vec<Piece>> = Vec::new();
        for (layer, file) in self.layers {
            let Some(data) = file else { continue };
            let file = files.len() as u32;
            indexes.push(pieces(&layer.runs, file));
            files.push(data);
        }
        // Neighbours first, so that a long chain costs its runs times the logarithm of its length.
        while indexes.len() > 1 {
            let mut newest_first = indexes.into_iter();
            let mut merged = Vec::new();
            while let Some(newer) = newest_first.next() {
                merged.push(match newest_first.next() {
                    Some(older) => overlay(newer, older),
                    None => newer,
                });
            }
            indexes = merged;
        }
        let pieces = indexes.pop().unwrap_or_default();
        Chain { size: self.size, pieces, files, _pin: self.pin }
    }
}

/// Reads from a data file.
type ReadFile = fn(&File, &Path, u64, &mut [u8]) -> Result<(), StoreError>;

impl Chain {
    fn read(&self, offset: u64, buf: &mut [u8], read: ReadFile) -> Result<(), StoreError> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        let end = offset + buf.len() as u64;
        let mut position = offset;
        for (leaves, data) in self.pieces_within(&(offset / LEAF..LeafIndex::count(end))) {
            let range = (leaves.start * LEAF).max(offset)..(leaves.end * LEAF).min(end);
            buf[(position - offset) as usize..(range.start - offset) as usize].fill(0);
            let part = &mut buf[(range.start - offset) as usize..(range.end - offset) as usize];
            read(&data.file, &data.path, range.start, part)?;
            position = range.end;
        }
        buf[(position - offset) as usize..].fill(0);
        Ok(())
    }

    /// The data files that hold these bytes, which begin where a leaf does, and the part that each holds. What no layer has
    /// is left out.
    pub(crate) fn places(&self, range: Range<u64>) -> Vec<(Range<u64>, Arc<DataFile>)> {
        let bytes = |leaves: Range<u64>| leaves.start * LEAF..(leaves.end * LEAF).min(range.end);
        let leaves = range.start / LEAF..LeafIndex::count(range.end);
        self.pieces_within(&leaves).map(|(leaves, data)| (bytes(leaves), data.clone())).collect()
    }

    /// The leaves that some layer has.
    fn pieces_within(&self, leaves: &Range<u64>) -> impl Iterator<Item = (Range<u64>, &Arc<DataFile>)> {
        let first = self.pieces.partition_point(|piece| piece.leaves.end <= leaves.start);
        let (start, end) = (leaves.start, leaves.end);
        self.pieces[first..].iter().take_while(move |piece| piece.leaves.start < end).map(move |piece| {
            let range = piece.leaves.start.max(start)..piece.leaves.end.min(end);
            (range, &self.files[piece.file as usize])
        })
    }
}

impl SnapshotReader for Chain {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.read(offset, buf, read_exact)
    }

    fn read_stored(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.read(offset, buf, read_stored)
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        Source::data(self, window)
    }
}

impl Source for Chain {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        SnapshotReader::read_at(self, offset, buf)
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        let leaves = window.start / LEAF..LeafIndex::count(window.end);
        let runs: Runs = self.pieces_within(&leaves).map(|(leaves, _)| leaves).collect();
        let clip = |run: Range<u64>| (run.start * LEAF).max(window.start)..(run.end * LEAF).min(window.end);
        Ok(runs.iter().map(clip).collect())
    }
}

fn pieces(runs: &Runs, file: u32) -> Vec<Piece> {
    runs.iter().map(|leaves| Piece { leaves, file }).collect()
}

/// What is seen when `newer` lies over `older`.
fn overlay(newer: Vec<Piece>, older: Vec<Piece>) -> Vec<Piece> {
    let mut seen = Vec::with_capacity(newer.len() + older.len());
    let mut over = newer.into_iter().peekable();
    for piece in older {
        let mut start = piece.leaves.start;
        while let Some(next) = over.peek() {
            if next.leaves.start >= piece.leaves.end {
                break;
            }
            if next.leaves.end > start {
                if next.leaves.start > start {
                    seen.push(Piece { leaves: start..next.leaves.start, file: piece.file });
                }
                start = next.leaves.end;
            }
            if next.leaves.end > piece.leaves.end {
                break;
            }
            seen.push(over.next().expect("just seen"));
        }
        if start < piece.leaves.end {
            seen.push(Piece { leaves: start..piece.leaves.end, file: piece.file });
        }
    }
    seen.extend(over);
    seen
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn seen(pieces: &[Piece]) -> Vec<Option<u32>> {
        let mut leaves = vec![None; 60];
        let mut last = 0;
        for piece in pieces {
            assert!(piece.leaves.start >= last && !piece.leaves.is_empty(), "{pieces:?}");
            last = piece.leaves.end;
            leaves[piece.leaves.start as usize..piece.leaves.end as usize].fill(Some(piece.file));
        }
        leaves
    }

    proptest! {
        #[test]
        fn the_newer_layer_is_seen_first(
            new in proptest::collection::btree_set(0u64..50, 0..40),
            old in proptest::collection::btree_set(0u64..50, 0..40),
        ) {
            let runs = |set: &BTreeSet<u64>| set.iter().map(|leaf| *leaf..leaf + 1).collect::<Runs>();
            let merged = overlay(pieces(&runs(&new), 0), pieces(&runs(&old), 1));
            for (leaf, file) in (0..).zip(seen(&merged)) {
                let expected = if new.contains(&leaf) { Some(0) } else { old.contains(&leaf).then_some(1) };
                prop_assert_eq!(file, expected, "leaf {}", leaf);
            }
        }
    }
}
