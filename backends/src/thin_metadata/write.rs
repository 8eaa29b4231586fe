//! Metadata of a new pool with one device that has been mapped onto the first data blocks, one to one: what `thin_restore` makes of one
//! `range_mapping`, but as fast as it can be written. Blocks are in the format that [`super::format`] describes, nodes are as full
//! as they can be, and nothing is shared, so that each block in use is used once.

use std::{fs::OpenOptions, io, os::unix::fs::FileExt, path::Path};

use super::format::{
    BITMAP_ENTRIES, BITMAP_SALT, BLOCK, BitmapEntry, DETAILS, HEADER, HELD_ROOT, INDEX_ENTRIES, INDEX_SALT,
    MAGIC, NODE_SALT, SUPERBLOCK_SALT, checksum, put, room,
};

/// Bytes that are written at once.
const BATCH: usize = 1 << 20;

/// A new pool, made of what its only device is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewPool {
    /// The id of its only device.
    pub device: u32,
    /// Its data blocks, from the first, that are the device.
    pub mapped: u64,
    /// All its data blocks.
    pub data_blocks: u64,
    /// Sectors of a data block.
    pub data_block_size: u32,
    /// Blocks of 4 KiB that its metadata may take. The kernel can use 255 × 16,320.
    pub metadata_blocks: u64,
}

impl NewPool {
    /// Writes its metadata, durably; the superblock, without which there is none, comes last.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::StorageFull`] if the metadata blocks do not suffice, and what cannot be written.
    pub fn write(&self, metadata: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(metadata)?;
        let mut blocks =
            Blocks { write: |at, bytes: &[u8]| file.write_all_at(bytes, at), next: 1, ready: Vec::new() };
        let superblock = self.lay_out(&mut blocks)?;
        blocks.flush()?;
        file.sync_data()?;
        file.write_all_at(&superblock, 0)?;
        file.sync_data()
    }

    /// Adds all blocks but the superblock, which it returns.
    fn lay_out<W: FnMut(u64, &[u8]) -> io::Result<()>>(&self, blocks: &mut Blocks<W>) -> io::Result<Vec<u8>> {
        let mappings =
            (0..self.mapped as usize).map(|block| (block as u64, ((block as u64) << 24).to_le_bytes()));
        let mappings = blocks.tree(mappings)?;
        let devices = blocks.tree([(u64::from(self.device), mappings.to_le_bytes())].into_iter())?;
        let mut details = [0; DETAILS];
        put(&mut details, 0, &self.mapped.to_le_bytes());
        let details = blocks.tree([(u64::from(self.device), details)].into_iter())?;

        let data = blocks.bitmaps(self.mapped, self.data_blocks)?;
        let data = blocks.tree(data.iter().enumerate().map(|(at, entry)| (at as u64, entry.bytes())))?;
        let more_than_two = blocks.tree::<4>([].into_iter())?;
        let data = [self.data_blocks, self.mapped, data, more_than_two];

        let more_than_two = blocks.tree::<4>([].into_iter())?;
        // What says which blocks are in use is among them: their bitmaps, and what leads to those.
        let all = self.metadata_blocks.min(BITMAP_ENTRIES * INDEX_ENTRIES);
        let used = blocks.next + all.div_ceil(BITMAP_ENTRIES) + 1;
        if used > all {
            let what = format!("{used} blocks of 4 KiB are needed for metadata, and there are {all}");
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        let entries = blocks.bitmaps(used, all)?;
        let index = blocks.add(|block| index(block, &entries))?;
        let metadata = [all, used, index, more_than_two];
        debug_assert_eq!(blocks.next, used, "what was counted is what there is");
        Ok(superblock(0, 0, 0, [devices, details], [data, metadata], self.data_block_size))
    }
}

/// Blocks one after the other, the first of which is the superblock's.
struct Blocks<W> {
    write: W,
    /// The number of the next block.
    next: u64,
    /// What was not written yet, up to the next block.
    ready: Vec<u8>,
}

impl<W: FnMut(u64, &[u8]) -> io::Result<()>> Blocks<W> {
    fn add(&mut self, make: impl FnOnce(u64) -> Vec<u8>) -> io::Result<u64> {
        let block = self.next;
        self.ready.extend(make(block));
        self.next += 1;
        if self.ready.len() >= BATCH {
            self.flush()?;
        }
        Ok(block)
    }

    fn flush(&mut self) -> io::Result<()> {
        let at = self.next * BLOCK as u64 - self.ready.len() as u64;
        (self.write)(at, &self.ready)?;
        self.ready.clear();
        Ok(())
    }

    /// A tree with these entries, in the order of their keys; its root.
    fn tree<const SIZE: usize>(
        &mut self,
        mut entries: impl ExactSizeIterator<Item = (u64, [u8; SIZE])>,
    ) -> io::Result<u64> {
        let mut level = Vec::new();
        for length in shares(entries.len(), room(SIZE)) {
            let of_leaf: Vec<_> = entries.by_ref().take(length).collect();
            let first = of_leaf.first().map_or(0, |(key, _)| *key);
            level.push((first, self.add(|block| node(block, true, &of_leaf, SIZE))?.to_le_bytes()));
        }
        while level.len() > 1 {
            let mut below = level.as_slice();
            let mut above = Vec::new();
            for length in shares(level.len(), room(8)) {
                let (children, rest) = below.split_at(length);
                above.push((children[0].0, self.add(|block| node(block, false, children, 8))?.to_le_bytes()));
                below = rest;
            }
            level = above;
        }
        Ok(u64::from_le_bytes(level[0].1))
    }

    /// The bitmaps of so many blocks, of which the first `used` are in use; what leads to each.
    fn bitmaps(&mut self, used: u64, blocks: u64) -> io::Result<Vec<BitmapEntry>> {
        let mut entries = Vec::new();
        for begin in (0..blocks).step_by(BITMAP_ENTRIES as usize) {
            let there = (blocks - begin).min(BITMAP_ENTRIES);
            let used = used.saturating_sub(begin).min(there);
            let block = self.add(|block| bitmap(block, used))?;
            // Not cut where the last one ends: the kernel adds nothing to it when there are more blocks, and leaves out what has none free.
            entries.push(BitmapEntry {
                block,
                free: (BITMAP_ENTRIES - used) as u32,
                first_free: used as u32,
            });
        }
        Ok(entries)
    }
}

/// How many of `entries` go to each node: as many to one as to another, because `thin_check` wants each but the root to be filled to a third.
fn shares(entries: usize, room: usize) -> impl Iterator<Item = usize> {
    let nodes = entries.div_ceil(room).max(1);
    (0..nodes).map(move |node| entries / nodes + usize::from(node < entries % nodes))
}

/// A node of a tree with these keys and values of `size` bytes.
pub(super) fn node<V: AsRef<[u8]>>(block: u64, is_leaf: bool, entries: &[(u64, V)], size: usize) -> Vec<u8> {
    let room = room(size);
    assert!(entries.len() <= room, "{} entries in a node for {room}", entries.len());
    let mut bytes = vec![0; BLOCK];
    put(&mut bytes, 4, &(if is_leaf { 2_u32 } else { 1 }).to_le_bytes());
    put(&mut bytes, 8, &block.to_le_bytes());
    put(&mut bytes, 16, &(entries.len() as u32).to_le_bytes());
    put(&mut bytes, 20, &(room as u32).to_le_bytes());
    put(&mut bytes, 24, &(size as u32).to_le_bytes());
    for (at, (key, value)) in entries.iter().enumerate() {
        put(&mut bytes, HEADER + at * 8, &key.to_le_bytes());
        put(&mut bytes, HEADER + room * 8 + at * size, value.as_ref());
    }
    seal(&mut bytes, NODE_SALT);
    bytes
}

/// A superblock: its block, the root held for readers, the transaction, the roots of devices and of details, and of the space maps of data and of
/// metadata.
pub(super) fn superblock(
    block: u64,
    held: u64,
    transaction: u64,
    roots: [u64; 2],
    spaces: [[u64; 4]; 2],
    data_block_size: u32,
) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    put(&mut bytes, 8, &block.to_le_bytes());
    put(&mut bytes, 32, &MAGIC.to_le_bytes());
    put(&mut bytes, 40, &2_u32.to_le_bytes());
    put(&mut bytes, 48, &transaction.to_le_bytes());
    put(&mut bytes, HELD_ROOT, &held.to_le_bytes());
    for (space, at) in spaces.iter().zip([64, 192]) {
        for (number, field) in space.iter().zip(0..) {
            put(&mut bytes, at + field * 8, &number.to_le_bytes());
        }
    }
    put(&mut bytes, 320, &roots[0].to_le_bytes());
    put(&mut bytes, 328, &roots[1].to_le_bytes());
    put(&mut bytes, 336, &data_block_size.to_le_bytes());
    put(&mut bytes, 340, &((BLOCK / 512) as u32).to_le_bytes());
    put(&mut bytes, 344, &spaces[1][0].to_le_bytes());
    seal(&mut bytes, SUPERBLOCK_SALT);
    bytes
}

/// A bitmap whose first `used` blocks are used once.
fn bitmap(block: u64, used: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    put(&mut bytes, 8, &block.to_le_bytes());
    let (whole, rest) = (used as usize / 4, used as usize % 4);
    bytes[16..16 + whole].fill(0b1010_1010);
    if rest > 0 {
        bytes[16 + whole] = 0b1010_1010 & ((1 << (2 * rest)) - 1);
    }
    seal(&mut bytes, BITMAP_SALT);
    bytes
}

/// Where the bitmaps of the metadata are.
fn index(block: u64, entries: &[BitmapEntry]) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    put(&mut bytes, 8, &block.to_le_bytes());
    for (at, entry) in entries.iter().enumerate() {
        put(&mut bytes, 16 + at * 16, &entry.bytes());
    }
    seal(&mut bytes, INDEX_SALT);
    bytes
}

pub(super) fn seal(bytes: &mut [u8], salt: u32) {
    let sum = checksum(bytes, salt);
    put(bytes, 0, &sum.to_le_bytes());
}
