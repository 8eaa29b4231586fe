//! Reading what changed, and making batches of it. Blocking: it runs on a thread of its own.

use std::{ops::Range, sync::Arc};

use tokio::runtime::Handle;
use zumastor_core::{
    Changes, Extent, ExtentKind, LEAF, LeafIndex, PAGE, SegmentIndex, SnapshotNumber, SnapshotReader,
    SnapshotStore, StoreError,
    digest::{LeafTree, SegmentLeaves},
    is_zero,
};

use super::batch::{BatchBuilder, Encoded, all_pages, page_range};
use crate::wire::{MAX_BATCH, PAGES_PER_LEAF, SegmentLeafSet};

/// Reads one snapshot for one request.
pub(super) struct Sender {
    pub store: Arc<dyn SnapshotStore>,
    pub number: SnapshotNumber,
    /// Whether all is sent, changed or not.
    pub whole: bool,
    pub target: Arc<dyn SnapshotReader>,
    pub base: Option<(SnapshotNumber, Arc<dyn SnapshotReader>)>,
    pub leaves: Arc<LeafTree>,
    pub builder: BatchBuilder,
    pub runtime: Handle,
}

/// Why sending stopped.
pub(super) enum Stop {
    /// The store failed.
    Store(StoreError),
    /// Nobody listens any more.
    Gone,
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Which pages of a block to send, a bit each.
#[derive(Clone, Copy, Default)]
struct Pages {
    read: u16,
    zero: u16,
}

impl Sender {
    /// Sends what changed in a segment since the base; without one, what is not zero. If the last of it is little, it goes with what
    /// follows, or when it is [flushed](Self::flush).
    pub fn changes(&mut self, segment: SegmentIndex, sink: &mut Sink<'_>) -> Result<(), Stop> {
        let window = segment.range(self.target.size());
        let base = self.base.as_ref().map(|(number, _)| *number);
        let changes = match self.whole {
            true => Changes::from_iter([Extent::data(window.clone())]),
            false => self.runtime.block_on(self.store.changes(base, self.number, window.clone()))?,
        };
        let leaves = self.leaves.segment(segment)?;
        let mut base_pages = Vec::new();
        let mut start = window.start;
        while start < window.end {
            let block = start..(start + self.builder.most() as u64).min(window.end);
            start = block.end;
            let mut pages = [Pages::default(); (BLOCK / LEAF) as usize];
            for extent in changes.within(&block) {
                mark(&mut pages, &block, extent.range, extent.kind);
            }
            self.block(segment, &leaves, block, pages, self.whole, &mut base_pages, sink)?;
        }
        if self.builder.is_enough() { self.flush(sink) } else { Ok(()) }
    }

    /// Sends whole leaves, whatever the downstream has in their place. The last of them go with what follows, or when that is
    /// [flushed](Self::flush).
    pub fn leaves(&mut self, set: &SegmentLeafSet, sink: &mut Sink<'_>) -> Result<(), Stop> {
        let size = self.target.size();
        let leaves = self.leaves.segment(set.segment)?;
        let mut base_pages = Vec::new();
        for position in &set.leaves {
            let range = LeafIndex(set.segment.first_leaf() + u64::from(*position)).range(size);
            if range.is_empty() {
                continue;
            }
            let mut pages = [Pages::default(); (BLOCK / LEAF) as usize];
            pages[0].read = all_pages(range.end - range.start);
            self.block(set.segment, &leaves, range, pages, true, &mut base_pages, sink)?;
        }
        Ok(())
    }

    /// Sends the marked pages of at most [`BLOCK`] bytes that begin at a leaf. With `full`, zero pages are sent as
    /// such even without a base.
    #[allow(clippy::too_many_arguments)]
    fn block(
        &mut self,
        segment: SegmentIndex,
        leaves: &SegmentLeaves,
        block: Range<u64>,
        mut pages: [Pages; (BLOCK / LEAF) as usize],
        full: bool,
        base_pages: &mut Vec<u8>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Stop> {
        let first = (block.start / LEAF - segment.first_leaf()) as usize;
        for (index, pages) in pages.iter_mut().enumerate().filter(|(_, pages)| pages.read != 0) {
            // What the tree knows to be zero need not be read.
            if leaves.is_zero(first + index) {
                pages.zero |= std::mem::take(&mut pages.read);
            }
        }
        if pages.iter().all(|pages| pages.read | pages.zero == 0) {
            return Ok(());
        }
        let size = self.target.size();
        let length = (block.end - block.start) as usize;
        let read = wanted(&pages, length).map(|run| run.len()).sum();
        if self.builder.is_full_for(read) {
            self.flush(sink)?;
        }
        // What is read is put together where the batch will have it, and what need not be sent is taken out of it.
        let new = self.builder.next(read);
        let mut at = 0;
        for run in wanted(&pages, length) {
            self.target.read_at(block.start + run.start as u64, &mut new[at..at + run.len()])?;
            at += run.len();
        }
        let old = match &self.base {
            Some((_, base)) => Some(read_base(&**base, &block, wanted(&pages, length), base_pages, read)?),
            None => None,
        };
        let (mut at, mut kept) = (0, 0);
        let mut marked = Vec::new();
        for (index, pages) in pages.iter().enumerate().filter(|(_, pages)| pages.read | pages.zero != 0) {
            let leaf = LeafIndex(segment.first_leaf() + (first + index) as u64);
            let length = (leaf.range(size).end - leaf.range(size).start) as usize;
            let (mut data, mut zero) = (0u16, pages.zero);
            for page in (0..PAGES_PER_LEAF).filter(|page| pages.read >> page & 1 == 1) {
                let bytes = at..at + page_range(page, length).len();
                at = bytes.end;
                let old = old.map(|old| &old[bytes.clone()]);
                if is_zero(&new[bytes.clone()]) {
                    if full || old.is_some_and(|old| !is_zero(old)) {
                        zero |= 1 << page;
                    }
                } else if old.is_none_or(|old| old != &new[bytes.clone()]) {
                    data |= 1 << page;
                    if kept != bytes.start {
                        new.copy_within(bytes.clone(), kept);
                    }
                    kept += bytes.len();
                }
            }
            if !full && self.base.is_none() {
                zero = 0;
            }
            marked.push((index, data, zero));
        }
        self.builder.add(kept);
        for (index, data, zero) in marked {
            let position = (first + index) as u16;
            if data == 0 && zero != 0 && leaves.is_zero(first + index) {
                self.builder.zeros(segment, position);
            } else if data | zero != 0 {
                self.builder.leaf(segment, position, data, zero, leaves.hash(segment, first + index, size));
            }
        }
        Ok(())
    }

    /// Sends what is not sent yet.
    pub fn flush(&mut self, sink: &mut Sink<'_>) -> Result<(), Stop> {
        self.builder.finish().map_or(Ok(()), sink)
    }
}

/// Takes finished batches.
pub(super) type Sink<'a> = dyn FnMut(Encoded) -> Result<(), Stop> + 'a;

/// The runs of pages of a block of `length` bytes that are read, as ranges in it.
fn wanted(pages: &[Pages], length: usize) -> impl Iterator<Item = Range<usize>> {
    let is_wanted = |page: &usize| {
        let (leaf, bit) = (page / PAGES_PER_LEAF as usize, page % PAGES_PER_LEAF as usize);
        pages.get(leaf).is_some_and(|pages| pages.read >> bit & 1 == 1)
    };
    let count = length.div_ceil(PAGE as usize);
    let mut page = 0;
    std::iter::from_fn(move || {
        let first = (page..count).find(is_wanted)?;
        page = (first..count).find(|page| !is_wanted(page)).unwrap_or(count);
        Some(first * PAGE as usize..(page * PAGE as usize).min(length))
    })
}

/// Reads runs of a block of the base, one behind the other. Behind the end of a smaller base there are zeros.
fn read_base<'b>(
    base: &dyn SnapshotReader,
    block: &Range<u64>,
    runs: impl Iterator<Item = Range<usize>>,
    buffer: &'b mut Vec<u8>,
    length: usize,
) -> Result<&'b [u8], StoreError> {
    buffer.resize(length.max(buffer.len()), 0);
    let mut at = 0;
    for run in runs {
        let start = block.start + run.start as u64;
        let mut there = base.size().saturating_sub(start).min(run.len() as u64) as usize;
        // Finding that there is nothing takes less than reading it.
        if there > 0 && base.data(start..start + there as u64)?.is_empty() {
            there = 0;
        }
        if there > 0 {
            base.read_at(start, &mut buffer[at..at + there])?;
        }
        buffer[at + there..at + run.len()].fill(0);
        at += run.len();
    }
    Ok(&buffer[..length])
}

/// Marks the pages that an extent touches. Only pages that lie in a zero extent entirely are known to be zero.
fn mark(pages: &mut [Pages], block: &Range<u64>, range: Range<u64>, kind: ExtentKind) {
    let offset = |position: u64| position - block.start;
    let (first, end) = (offset(range.start) / PAGE, offset(range.end).div_ceil(PAGE));
    let inner_end = if range.end == block.end { end } else { offset(range.end) / PAGE };
    let inner = offset(range.start).div_ceil(PAGE)..inner_end;
    for page in first..end {
        let bit = 1 << (page % u64::from(PAGES_PER_LEAF));
        let leaf = &mut pages[(page / u64::from(PAGES_PER_LEAF)) as usize];
        if kind == ExtentKind::Zero && inner.contains(&page) && leaf.read & bit == 0 {
            leaf.zero |= bit;
        } else {
            leaf.read |= bit;
            leaf.zero &= !bit;
        }
    }
}

/// Most bytes that are looked at together: a batch's worth.
const BLOCK: u64 = MAX_BATCH as u64;
