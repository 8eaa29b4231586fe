//! How much memory what is sent of a volume may take.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use zumastor_core::LEAF;

use crate::{
    buffers::{Buffer, Buffers},
    wire::MAX_BATCH,
};

/// Most streams that one volume is fetched over by one node.
pub const MOST_STREAMS: usize = 4;

/// Batches that a stream has at a time: one that is being made, the bytes of the base that it is compared with, one that is
/// compressed from another, two that wait and one that is being sent; and two more that QUIC has besides what it counts, as it
/// lets go of a batch when all of it has arrived. The memory of as many is kept to be used again.
const BATCHES: u64 = 8;
/// What else a stream takes: a compressor, where a segment has changed, its hashes.
const BESIDE: u64 = 768 << 10;

/// Bytes of memory that it takes at least to send a volume to one node.
pub const LEAST_FOR_A_TARGET: u64 = MOST_STREAMS as u64 * (BATCHES * LEAF + BESIDE);

/// Memory for all streams together that send one volume: the more of them there may be, the smaller the batches of each.
#[derive(Debug)]
pub struct SendRoom {
    bytes: AtomicU64,
    expected: AtomicUsize,
    streams: AtomicUsize,
    /// For what is sent.
    buffers: Arc<Buffers>,
}

impl SendRoom {
    /// So many bytes for streams to so many nodes.
    pub fn new(bytes: u64, targets: usize) -> Self {
        let room = Self {
            bytes: AtomicU64::new(0),
            expected: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            buffers: Buffers::new(0),
        };
        room.set(bytes, targets);
        room
    }

    /// From now on there are so many bytes for so many nodes.
    pub fn set(&self, bytes: u64, targets: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.expected.store(targets.max(1) * MOST_STREAMS, Ordering::Relaxed);
    }

    /// Another stream begins, until what this gives is dropped.
    pub(crate) fn enter(self: Arc<Self>) -> Sending {
        self.buffers.keep(|| BATCHES as usize * (self.streams.fetch_add(1, Ordering::Relaxed) + 1));
        Sending(self)
    }

    /// Memory for a batch of so many bytes, empty.
    pub(crate) fn buffer(&self, capacity: usize) -> Buffer {
        self.buffers.take(capacity)
    }

    /// How many buffers wait to be used again.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.buffers.free()
    }

    /// Bytes of volume data that the next batch may have: whole leaves, and at least one.
    pub(crate) fn batch(&self) -> usize {
        let streams = self.streams.load(Ordering::Relaxed).max(self.expected.load(Ordering::Relaxed));
        let each = self.bytes.load(Ordering::Relaxed) / streams as u64;
        let batch = each.saturating_sub(BESIDE) / BATCHES / LEAF * LEAF;
        batch.clamp(LEAF, MAX_BATCH as u64) as usize
    }
}

/// A stream that sends a volume.
pub(crate) struct Sending(Arc<SendRoom>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.buffers.keep(|| BATCHES as usize * (self.0.streams.fetch_sub(1, Ordering::Relaxed) - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_streams_together_stay_within_it() {
        for mib in [12u64, 18, 24, 48, 96, 1024] {
            for targets in 1..=(mib << 20) / LEAST_FOR_A_TARGET {
                let room = Arc::new(SendRoom::new(mib << 20, targets as usize));
                let all: Vec<_> =
                    (0..targets * MOST_STREAMS as u64).map(|_| Arc::clone(&room).enter()).collect();
                let batch = room.batch() as u64;
                assert!(batch.is_multiple_of(LEAF) && (LEAF..=MAX_BATCH as u64).contains(&batch), "{batch}");
                assert!(all.len() as u64 * (BATCHES * batch + BESIDE) <= mib << 20, "{mib} MiB, {targets}");
            }
        }
        // What is usual is as fast as it can be, and who opens more streams than that gets smaller ones.
        let room = Arc::new(SendRoom::new(96 << 20, 1));
        assert_eq!(room.batch(), MAX_BATCH);
        let all: Vec<_> = (0..64).map(|_| Arc::clone(&room).enter()).collect();
        assert_eq!(room.batch() as u64, LEAF);
        drop(all);
        assert_eq!(room.batch(), MAX_BATCH);
        room.set(12 << 20, 1);
        assert_eq!(room.batch(), 256 << 10);
    }
}
