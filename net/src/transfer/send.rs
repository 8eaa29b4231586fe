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
    /// Sends what changed in a segment since the base; without one, what is not zero.
    pub fn changes(&mut self, segment: SegmentIndex, sink: &mut Sink<'_>) -> Result<(), Stop> {
        let window = segment.range(self.target.size());
        let base = self.base.as_ref().map(|(number, _)| *number);
        let changes = match self.whole {
            true => Changes::from_iter([Extent::data(window.clone())]),
            false => self.runtime.block_on(self.store.changes(base, self.number, window.clone()))?,
        };
        let leaves = self.leaves.segment(segment)?;
        let mut buffers = Buffers::default();
        let mut start = window.start;
        while start < window.end {
            let block = start..(start + self.builder.most() as u64).min(window.end);
            start = block.end;
            let mut pages = [Pages::default(); (BLOCK / LEAF) as usize];
            for extent in changes.within(&block) {
                mark(&mut pages, &block, extent.range, extent.kind);
            }
            self.block(segment, &leaves, block, pages, self.whole, &mut buffers, sink)?;
        }
        self.flush(segment, sink)
    }

    /// Sends whole leaves, whatever the downstream has in their place.
    pub fn leaves(&mut self, set: &SegmentLeafSet, sink: &mut Sink<'_>) -> Result<(), Stop> {
        let size = self.target.size();
        let leaves = self.leaves.segment(set.segment)?;
        let mut buffers = Buffers::default();
        for position in &set.leaves {
            let range = LeafIndex(set.segment.first_leaf() + u64::from(*position)).range(size);
            if range.is_empty() {
                continue;
            }
            let mut pages = [Pages::default(); (BLOCK / LEAF) as usize];
            pages[0].read = all_pages(range.end - range.start);
            self.block(set.segment, &leaves, range, pages, true, &mut buffers, sink)?;
        }
        self.flush(set.segment, sink)
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
        buffers: &mut Buffers,
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
        buffers.fill(&pages, &block, &*self.target, self.base.as_ref().map(|(_, base)| &**base))?;
        let read: u32 = pages.iter().map(|pages| pages.read.count_ones()).sum();
        if self.builder.is_full_for(read as usize * PAGE as usize) {
            self.flush(segment, sink)?;
        }
        let size = self.target.size();
        for (index, pages) in pages.iter().enumerate().filter(|(_, pages)| pages.read | pages.zero != 0) {
            let leaf = LeafIndex(segment.first_leaf() + (first + index) as u64);
            let length = (leaf.range(size).end - leaf.range(size).start) as usize;
            let at = index * LEAF as usize;
            let new = &buffers.target[at..at + length];
            let old = self.base.is_some().then(|| &buffers.base[at..at + length]);
            let (mut data, mut zero) = (0u16, pages.zero);
            for page in (0..PAGES_PER_LEAF).filter(|page| pages.read >> page & 1 == 1) {
                let range = page_range(page, length);
                let bytes = &new[range.clone()];
                if is_zero(bytes) {
                    if full || old.is_some_and(|old| !is_zero(&old[range])) {
                        zero |= 1 << page;
                    }
                } else if old.is_none_or(|old| old[range] != *bytes) {
                    data |= 1 << page;
                }
            }
            if !full && self.base.is_none() {
                zero = 0;
            }
            let position = (first + index) as u16;
            if data == 0 && zero != 0 && leaves.is_zero(first + index) {
                self.builder.zeros(position);
            } else if data | zero != 0 {
                let hash = leaves.hash(segment, first + index, size);
                self.builder.leaf(position, data, zero, hash, |page| &new[page_range(page, length)]);
            }
        }
        Ok(())
    }

    fn flush(&mut self, segment: SegmentIndex, sink: &mut Sink<'_>) -> Result<(), Stop> {
        self.builder.finish(segment).map_or(Ok(()), sink)
    }
}

/// Takes finished batches.
pub(super) type Sink<'a> = dyn FnMut(Encoded) -> Result<(), Stop> + 'a;

/// The bytes of a block, of the target and of the base.
#[derive(Default)]
struct Buffers {
    target: Vec<u8>,
    base: Vec<u8>,
}

impl Buffers {
    /// Reads the marked pages, neighbours in one call.
    fn fill(
        &mut self,
        pages: &[Pages],
        block: &Range<u64>,
        target: &dyn SnapshotReader,
        base: Option<&dyn SnapshotReader>,
    ) -> Result<(), StoreError> {
        let length = (block.end - block.start) as usize;
        self.target.resize(length.max(self.target.len()), 0);
        if base.is_some() {
            self.base.resize(length.max(self.base.len()), 0);
        }
        let wanted = |page: u64| {
            let leaf = (page / u64::from(PAGES_PER_LEAF)) as usize;
            leaf < pages.len() && pages[leaf].read >> (page % u64::from(PAGES_PER_LEAF)) & 1 == 1
        };
        let count = (block.end - block.start).div_ceil(PAGE);
        let mut page = 0;
        while page < count {
            if !wanted(page) {
                page += 1;
                continue;
            }
            let end = (page..count).find(|page| !wanted(*page)).unwrap_or(count);
            let (from, to) = ((page * PAGE) as usize, ((end * PAGE) as usize).min(length));
            target.read_at(block.start + from as u64, &mut self.target[from..to])?;
            if let Some(base) = base {
                // Behind the end of a smaller base there are zeros.
                let there =
                    base.size().saturating_sub(block.start + from as u64).min((to - from) as u64) as usize;
                if there > 0 {
                    base.read_at(block.start + from as u64, &mut self.base[from..from + there])?;
                }
                self.base[from + there..to].fill(0);
            }
            page = end;
        }
        Ok(())
    }
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
