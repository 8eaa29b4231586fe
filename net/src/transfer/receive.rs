//! Checking batches and staging them. Blocking: it runs on a thread of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use zumastor_core::{
    LeafIndex, PageBuf, SegmentIndex, Staging, StoreError,
    digest::{Hash, SegmentLeaves},
    is_zero,
};

use super::batch::{all_pages, page_range};
use crate::wire::{BatchEntry, BatchHeader, BatchPart, Codec, MAX_BATCH, PAGES_PER_LEAF, SegmentLeafSet};

/// Checks the batches of one stream and writes them to what is staged.
pub(super) struct Receiver<'a> {
    staging: &'a dyn Staging,
    size: u64,
    decompressor: zstd::bulk::Decompressor<'static>,
    /// What was decompressed last.
    data: Option<PageBuf>,
    leaf: Vec<u8>,
    /// Leaf hashes of what was written and is not checkpointed yet.
    leaves: BTreeMap<SegmentIndex, SegmentLeaves>,
    current: Option<SegmentIndex>,
    /// The segments of which something came since [`news`](Self::news) was asked.
    touched: BTreeSet<SegmentIndex>,
    /// The leaves that were asked for; all of the segments' if nothing.
    asked: Option<Vec<SegmentLeafSet>>,
    /// Where the next leaf may be: leaves come in order, so a peer cannot send one for ever.
    next: LeafIndex,
    mismatches: Vec<LeafIndex>,
}

/// Why a batch was not taken.
#[derive(Debug)]
pub(super) enum BatchError {
    /// It makes no sense.
    Malformed(&'static str),
    /// The store failed.
    Store(StoreError),
}

impl From<StoreError> for BatchError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<'a> Receiver<'a> {
    /// `leaves` are the hashes that an earlier receiver of the same segments has collected. With `asked`, other leaves
    /// than those are not taken.
    pub fn new(
        staging: &'a dyn Staging,
        leaves: BTreeMap<SegmentIndex, SegmentLeaves>,
        asked: Option<Vec<SegmentLeafSet>>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            staging,
            size: staging.plan().record.size,
            decompressor: zstd::bulk::Decompressor::new().map_err(StoreError::io("zstd"))?,
            data: None,
            leaf: Vec::new(),
            leaves,
            current: None,
            touched: BTreeSet::new(),
            asked,
            next: LeafIndex(0),
            mismatches: Vec::new(),
        })
    }

    /// Stages one batch and returns the bytes of volume data in it. A leaf that does not match its hash is not
    /// written but remembered as a mismatch.
    pub fn batch(&mut self, header: &BatchHeader, payload: &[u8]) -> Result<u64, BatchError> {
        let (expected, end) = self.validate(header)?;
        let mut data = self.data.take().unwrap_or_else(|| PageBuf::new(MAX_BATCH));
        let bytes = match header.codec {
            Codec::Raw => payload,
            Codec::Zstd => {
                let decoded = self.decompressor.decompress_to_buffer(payload, &mut *data);
                &data
                    [..decoded.map_err(|_| BatchError::Malformed("a payload that cannot be decompressed"))?]
            }
        };
        if bytes.len() != expected {
            return Err(BatchError::Malformed("a payload of the wrong length"));
        }
        self.next = end;
        let mut rest = bytes;
        for part in &header.parts {
            let used = self.part(part, rest)?;
            rest = &rest[used..];
        }
        self.data = Some(data);
        Ok(expected as u64)
    }

    /// Stages the leaves of one segment, whose pages come first in `bytes`, and returns how many bytes they are.
    fn part(&mut self, part: &BatchPart, bytes: &[u8]) -> Result<usize, StoreError> {
        let segment = part.segment;
        self.enter(segment)?;
        let mut at = 0;
        let mut run = Run { start: 0, bytes: 0..0 };
        for entry in &part.entries {
            match entry {
                BatchEntry::Leaf { leaf, data, zero, hash } => {
                    let index = LeafIndex(segment.first_leaf() + u64::from(*leaf));
                    let range = index.range(self.size);
                    let length = (range.end - range.start) as usize;
                    if *data == all_pages(length as u64) {
                        // Most leaves of a full copy: written as they are, neighbours together.
                        let whole = at..at + length;
                        at = whole.end;
                        if Hash::of_leaf(&bytes[whole.clone()]) != *hash {
                            self.mismatches.push(index);
                            continue;
                        }
                        self.set(segment, *leaf, &bytes[whole.clone()], *hash);
                        if !run.take(range.start, &whole) {
                            run.write(self.staging, bytes)?;
                            run = Run { start: range.start, bytes: whole };
                        }
                    } else {
                        at += self.pages(segment, *leaf, *data, *zero, *hash, &bytes[at..])?;
                    }
                }
                BatchEntry::Zeros { first, count } => self.zeros(segment, *first, *count)?,
            }
        }
        run.write(self.staging, bytes)?;
        Ok(at)
    }

    /// The leaf hashes of all segments of which something came since this was asked last.
    pub fn news(&mut self) -> Vec<(SegmentIndex, SegmentLeaves)> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        touched.filter_map(|segment| Some((segment, self.leaves.get(&segment)?.clone()))).collect()
    }

    /// The leaf hashes, and the leaves whose content did not match theirs, in the order they came.
    pub fn finish(self) -> (BTreeMap<SegmentIndex, SegmentLeaves>, Vec<LeafIndex>) {
        (self.leaves, self.mismatches)
    }

    /// Checks positions and masks; returns the length that the payload must have, and where the next batch begins.
    fn validate(&self, header: &BatchHeader) -> Result<(usize, LeafIndex), BatchError> {
        if header.parts.is_empty() {
            return Err(BatchError::Malformed("an empty batch"));
        }
        let (mut next, mut expected) = (self.next, 0);
        for part in &header.parts {
            let (bytes, end) = self.validate_part(part, next)?;
            (next, expected) = (end, expected + bytes);
        }
        if expected > MAX_BATCH {
            return Err(BatchError::Malformed("a batch that is too large"));
        }
        Ok((expected, next))
    }

    /// The same of one segment, whose leaves do not begin before `next`.
    fn validate_part(&self, part: &BatchPart, next: LeafIndex) -> Result<(usize, LeafIndex), BatchError> {
        let leaves = part.segment.leaves(self.size);
        let count = leaves.end.saturating_sub(leaves.start);
        if part.entries.is_empty() {
            return Err(BatchError::Malformed("an empty batch"));
        }
        let (mut next, mut expected) = (next.0.saturating_sub(leaves.start), 0usize);
        for entry in &part.entries {
            let (first, end) = match entry {
                BatchEntry::Leaf { leaf, .. } => (u64::from(*leaf), u64::from(*leaf) + 1),
                BatchEntry::Zeros { first, count } => {
                    (u64::from(*first), u64::from(*first) + u64::from(*count))
                }
            };
            if first < next || end > count || first == end {
                return Err(BatchError::Malformed("leaves out of order or beyond the end of the volume"));
            }
            if !self.was_asked(part.segment, first..end) {
                return Err(BatchError::Malformed("leaves that were not asked for"));
            }
            next = end;
            if let BatchEntry::Leaf { data, zero, .. } = entry {
                let length = self.leaf_length(part.segment, first);
                if data & zero != 0 || (data | zero) & !all_pages(length as u64) != 0 || data | zero == 0 {
                    return Err(BatchError::Malformed("pages that are not in their leaf"));
                }
                let pages = (0..PAGES_PER_LEAF).filter(|page| data >> page & 1 == 1);
                expected += pages.map(|page| page_range(page, length).len()).sum::<usize>();
            }
        }
        Ok((expected, LeafIndex(leaves.start + next)))
    }

    fn was_asked(&self, segment: SegmentIndex, mut leaves: Range<u64>) -> bool {
        let Some(asked) = &self.asked else { return true };
        let set = asked.iter().find(|set| set.segment == segment);
        set.is_some_and(|set| {
            leaves.all(|leaf| u16::try_from(leaf).is_ok_and(|leaf| set.leaves.binary_search(&leaf).is_ok()))
        })
    }

    fn enter(&mut self, segment: SegmentIndex) -> Result<(), StoreError> {
        self.touched.insert(segment);
        if self.current != Some(segment) {
            self.current = Some(segment);
            if !self.leaves.contains_key(&segment) {
                self.leaves.insert(segment, self.staging.leaves().segment(segment)?);
            }
        }
        Ok(())
    }

    /// Stages pages of one leaf, which come first in the payload, and returns how many bytes they are.
    fn pages(
        &mut self,
        segment: SegmentIndex,
        position: u16,
        data: u16,
        zero: u16,
        hash: Hash,
        payload: &[u8],
    ) -> Result<usize, StoreError> {
        let index = LeafIndex(segment.first_leaf() + u64::from(position));
        let start = index.range(self.size).start;
        let length = self.leaf_length(segment, u64::from(position));
        let all = all_pages(length as u64);
        self.leaf.resize(length, 0);
        if data | zero == all {
            self.leaf.fill(0);
        } else {
            self.staging.read_at(start, &mut self.leaf)?;
        }
        let mut rest = payload;
        for page in 0..PAGES_PER_LEAF {
            let range = page_range(page, length);
            if data >> page & 1 == 1 {
                let (bytes, after) = rest.split_at(range.len());
                self.leaf[range].copy_from_slice(bytes);
                rest = after;
            } else if zero >> page & 1 == 1 {
                self.leaf[range].fill(0);
            }
        }
        if Hash::of_leaf(&self.leaf) != hash {
            self.mismatches.push(index);
            return Ok(payload.len() - rest.len());
        }
        for (first, end) in runs(data) {
            let range = page_range(first, length).start..page_range(end - 1, length).end;
            self.staging.write_at(start + range.start as u64, &self.leaf[range])?;
        }
        for (first, end) in runs(zero) {
            let range = page_range(first, length).start..page_range(end - 1, length).end;
            self.staging.zero(start + range.start as u64..start + range.end as u64)?;
        }
        let leaf = std::mem::take(&mut self.leaf);
        self.set(segment, position, &leaf, hash);
        self.leaf = leaf;
        Ok(payload.len() - rest.len())
    }

    fn zeros(&mut self, segment: SegmentIndex, first: u16, count: u16) -> Result<(), StoreError> {
        let start = LeafIndex(segment.first_leaf() + u64::from(first)).range(self.size).start;
        let last = LeafIndex(segment.first_leaf() + u64::from(first) + u64::from(count) - 1);
        self.staging.zero(start..last.range(self.size).end)?;
        let leaves = self.leaves.get_mut(&segment).expect("the segment was entered");
        (first..first + count).for_each(|position| leaves.set(usize::from(position), None));
        Ok(())
    }

    fn set(&mut self, segment: SegmentIndex, position: u16, leaf: &[u8], hash: Hash) {
        let leaves = self.leaves.get_mut(&segment).expect("the segment was entered");
        leaves.set(usize::from(position), (!is_zero(leaf)).then_some(hash));
    }

    fn leaf_length(&self, segment: SegmentIndex, position: u64) -> usize {
        let range = LeafIndex(segment.first_leaf() + position).range(self.size);
        (range.end - range.start) as usize
    }
}

/// Neighbouring whole leaves: where they begin in the volume, and where they are in the batch.
struct Run {
    start: u64,
    bytes: Range<usize>,
}

impl Run {
    /// Adds a leaf if it follows.
    fn take(&mut self, start: u64, bytes: &Range<usize>) -> bool {
        let follows = self.start + self.bytes.len() as u64 == start && self.bytes.end == bytes.start;
        if follows {
            self.bytes.end = bytes.end;
        }
        follows
    }

    fn write(&self, staging: &dyn Staging, batch: &[u8]) -> Result<(), StoreError> {
        if self.bytes.is_empty() { Ok(()) } else { staging.write_at(self.start, &batch[self.bytes.clone()]) }
    }
}

/// The runs of set bits, as first and end.
fn runs(mask: u16) -> impl Iterator<Item = (u32, u32)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = (at..PAGES_PER_LEAF).find(|page| mask >> page & 1 == 1)?;
        let end = (first..PAGES_PER_LEAF).find(|page| mask >> page & 1 == 0).unwrap_or(PAGES_PER_LEAF);
        at = end;
        Some((first, end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits() {
        assert_eq!(runs(0).count(), 0);
        assert_eq!(runs(0xffff).collect::<Vec<_>>(), [(0, 16)]);
        assert_eq!(runs(0b1000_0000_0110_0001).collect::<Vec<_>>(), [(0, 1), (5, 7), (15, 16)]);
    }
}
