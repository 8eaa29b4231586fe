//! Making batches out of changed pages, and their compression.

use std::sync::Arc;

use bytes::Bytes;
use zumastor_core::{PAGE, SegmentIndex, digest::Hash};

use crate::{
    buffers::Buffer,
    channel::Capacity,
    compression::Compression,
    frame,
    room::SendRoom,
    wire::{BatchEntry, BatchHeader, BatchPart, Codec, FetchReply, PAGES_PER_LEAF},
};

/// Collects changed leaves into frames of at most [`MAX_BATCH`](crate::wire::MAX_BATCH) bytes of data, fewer where there is less
/// room. Small changes are collected over many segments, which compress better together and take fewer frames.
pub(super) struct BatchBuilder {
    room: Arc<SendRoom>,
    /// Bytes of data that the batch may have that is being made.
    most: usize,
    compressor: Option<(zstd::bulk::Compressor<'static>, Arc<Compression>)>,
    capacity: Option<Capacity>,
    parts: Vec<BatchPart>,
    /// Entries of all parts.
    entries: usize,
    payload: Buffer,
}

/// A finished batch, or another frame.
pub(super) struct Encoded {
    /// The frame, in pieces.
    pub frame: [Bytes; 2],
    /// Bytes of volume data in it, before compression.
    pub data: u64,
}

impl Encoded {
    /// A sign of life.
    pub fn working() -> Self {
        Self { frame: [frame::encode(&FetchReply::Working, &[]), Bytes::new()], data: 0 }
    }

    /// Bytes of the frame.
    pub fn length(&self) -> u64 {
        self.frame.iter().map(|piece| piece.len() as u64).sum()
    }
}

impl BatchBuilder {
    /// Without compression, data are left as they are.
    pub fn new(
        compression: Option<Arc<Compression>>,
        capacity: Option<Capacity>,
        room: Arc<SendRoom>,
    ) -> std::io::Result<Self> {
        let with = |compression: Arc<Compression>| {
            Ok::<_, std::io::Error>((zstd::bulk::Compressor::new(compression.level())?, compression))
        };
        let most = room.batch();
        Ok(Self {
            payload: room.buffer(most),
            room,
            most,
            compressor: compression.map(with).transpose()?,
            capacity,
            parts: Vec::new(),
            entries: 0,
        })
    }

    /// Bytes of data that the batch may have that is being made: whole leaves, and at least one.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether `length` more bytes of data would be too many.
    pub fn is_full_for(&self, length: usize) -> bool {
        self.payload.len() + length > self.most || self.entries >= MAX_ENTRIES
    }

    /// Whether it is time to send what there is, so that the downstream works while more is read.
    pub fn is_enough(&self) -> bool {
        self.payload.len() >= ENOUGH
    }

    /// Where the next `length` bytes of data are put together, before [`add`](Self::add) says how many of them are left. It must
    /// not be [full for them](Self::is_full_for), or empty.
    pub fn next(&mut self, length: usize) -> &mut [u8] {
        let (at, end) = (self.payload.len(), self.payload.len() + length);
        // The room became less between the two.
        if end > self.payload.capacity() {
            self.payload = self.room.buffer(end);
        }
        &mut self.payload.all()[at..end]
    }

    /// Adds so many bytes to the data, which are there already.
    pub fn add(&mut self, length: usize) {
        self.payload.set_len(self.payload.len() + length);
    }

    /// Adds a leaf, by its position in its segment, whose data pages are in the data.
    pub fn leaf(&mut self, segment: SegmentIndex, leaf: u16, data: u16, zero: u16, hash: Hash) {
        self.push(segment, BatchEntry::Leaf { leaf, data, zero, hash });
    }

    /// Adds a leaf that is entirely zero.
    pub fn zeros(&mut self, segment: SegmentIndex, leaf: u16) {
        let last = self.parts.last_mut().filter(|part| part.segment == segment);
        match last.and_then(|part| part.entries.last_mut()) {
            Some(BatchEntry::Zeros { first, count }) if *first + *count == leaf => *count += 1,
            _ => self.push(segment, BatchEntry::Zeros { first: leaf, count: 1 }),
        }
    }

    fn push(&mut self, segment: SegmentIndex, entry: BatchEntry) {
        self.entries += 1;
        match self.parts.last_mut().filter(|part| part.segment == segment) {
            Some(part) => part.entries.push(entry),
            None => self.parts.push(BatchPart { segment, entries: vec![entry] }),
        }
    }

    /// The batch of what was added, if anything was.
    pub fn finish(&mut self) -> Option<Encoded> {
        if self.parts.is_empty() {
            return None;
        }
        let parts = std::mem::take(&mut self.parts);
        self.entries = 0;
        let data = self.payload.len() as u64;
        let compressed = self.compress();
        self.most = self.room.batch();
        let (codec, payload) = match compressed {
            Some(compressed) => (Codec::Zstd, in_flight(compressed)),
            None => {
                let next = self.room.buffer(self.most);
                (Codec::Raw, in_flight(std::mem::replace(&mut self.payload, next)))
            }
        };
        self.payload.set_len(0);
        if self.payload.capacity() != self.most {
            self.payload = self.room.buffer(self.most);
        }
        let header = FetchReply::Batch(BatchHeader { codec, parts });
        let head = frame::head(&header, payload.len()).into();
        Some(Encoded { frame: [head, payload], data })
    }

    fn compress(&mut self) -> Option<Buffer> {
        let (compressor, compression) = self.compressor.as_mut()?;
        if self.payload.is_empty() {
            return None;
        }
        let capacity = self.capacity.as_ref().map(|capacity| capacity());
        if !compression.is_worthwhile(self.payload.len(), capacity) || !is_compressible(&self.payload) {
            return None;
        }
        let mut compressed = self.room.buffer(self.payload.capacity());
        // What does not fit where it came from is not worth it.
        let length = compressor.compress_to_buffer(&self.payload[..], compressed.all()).ok()?;
        compressed.set_len(length);
        (length < self.payload.len() / 100 * 97).then_some(compressed)
    }
}

/// What is sent. QUIC has it until it has arrived, and counts the bytes of it: memory that is mostly empty is not given away.
fn in_flight(payload: Buffer) -> Bytes {
    if payload.len() < payload.capacity() / 2 {
        return Bytes::copy_from_slice(&payload);
    }
    Bytes::from_owner(payload)
}

/// Whether a sample of the data has fewer different bytes than random data would: a sample costs a thirtieth of what
/// trying costs. It is looked at so often that one compressible leaf among random ones is found, and at an odd distance of pages, so that
/// of pages which are random by turns others are seen too.
fn is_compressible(data: &[u8]) -> bool {
    data.chunks(5 * PAGE as usize).any(|piece| {
        let half = ((piece.len() / PAGE as usize / 2) | 1) * PAGE as usize;
        let half = if half < piece.len() { half } else { piece.len() / 2 };
        let sample = [0, half].map(|at| &piece[at..(at + SAMPLE).min(piece.len())]);
        sample.iter().any(|piece| {
            let mut counts = [0u16; 256];
            piece.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
            // For random bytes the sum of squares has the mean n + n(n-1)/256 and hardly varies.
            let squares: u64 = counts.iter().map(|count| u64::from(*count).pow(2)).sum();
            let n = piece.len() as u64;
            squares > (n + n * n / 256) * 5 / 4
        })
    })
}

/// The bytes of page `index` of a leaf that is `length` bytes long.
pub(super) fn page_range(index: u32, length: usize) -> std::ops::Range<usize> {
    let start = (index as usize * PAGE as usize).min(length);
    start..(start + PAGE as usize).min(length)
}

/// One bit per page of a leaf that is `length` bytes long.
pub(super) fn all_pages(length: u64) -> u16 {
    let pages = length.div_ceil(PAGE);
    if pages >= u64::from(PAGES_PER_LEAF) { u16::MAX } else { (1u16 << pages) - 1 }
}

const SAMPLE: usize = 512;
/// Bytes of data that compress about as well as more of them.
const ENOUGH: usize = 256 << 10;
/// Keeps the header below its limit: an entry takes at most 41 bytes, and one in a segment of its own 5 more.
const MAX_ENTRIES: usize = 1024;

#[cfg(test)]
mod tests {
    use zumastor_core::LEAF;

    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        let step = |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u8
        };
        (0..length).map(step).collect()
    }

    #[test]
    fn random_data_is_not_even_tried() {
        let random = noise(1 << 20);
        assert!(!is_compressible(&random));
        let text = "the quick brown fox jumps over the lazy dog. ".repeat(2000);
        assert!(is_compressible(text.as_bytes()));
        let mut mixed = random;
        mixed[LEAF as usize * 7..][..text.len()].copy_from_slice(text.as_bytes());
        assert!(is_compressible(&mixed));
        // Single pages of several leaves.
        for (count, every, first) in
            [(64, 2, 0), (64, 2, 1), (64, 4, 1), (64, 8, 7), (64, 16, 15), (5, 2, 1), (4, 2, 1), (2, 2, 1)]
        {
            let mut pages = noise(count * PAGE as usize);
            for page in pages.chunks_mut(PAGE as usize).skip(first).step_by(every) {
                page.copy_from_slice(&text.as_bytes()[..PAGE as usize]);
            }
            assert!(is_compressible(&pages), "of {count} one in {every} from {first}");
        }
    }

    #[test]
    fn what_is_on_its_way_has_no_memory_that_is_mostly_empty() {
        for (pages, given_away) in [(1, false), (127, false), (128, true), (256, true)] {
            let room = Arc::new(SendRoom::new(96 << 20, 1));
            let _sending = Arc::clone(&room).enter();
            let mut builder = BatchBuilder::new(None, None, Arc::clone(&room)).unwrap();
            let data = noise(pages * PAGE as usize);
            builder.next(data.len()).copy_from_slice(&data);
            builder.add(data.len());
            builder.leaf(SegmentIndex(0), 0, 1, 0, Hash::of_leaf(&data));
            let encoded = builder.finish().unwrap();
            assert_eq!(encoded.frame[1], data);
            assert_eq!((encoded.data, room.free()), (data.len() as u64, usize::from(!given_away)));
            drop(encoded);
            assert_eq!(room.free(), 1);
        }
    }

    #[test]
    fn masks_of_short_leaves() {
        assert_eq!(all_pages(LEAF), 0xffff);
        assert_eq!(all_pages(1), 1);
        assert_eq!(all_pages(PAGE * 3), 7);
        assert_eq!(page_range(1, 5000), 4096..5000);
        assert!(page_range(2, 5000).is_empty());
    }
}
