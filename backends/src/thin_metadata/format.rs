//! The format on disk, as the kernel has it in `drivers/md/dm-thin-metadata.c` and `persistent-data/dm-btree-internal.h`.
//!
//! Blocks of 4 KiB; all integers little-endian; each block begins with the CRC-32C of the rest.
//!
//! Superblock (block 0, and a copy for readers where its `held root` says):
//!
//! | offset | bytes | field                                                                        |
//! |-------:|------:|------------------------------------------------------------------------------|
//! |      0 |     4 | checksum                                                                     |
//! |      8 |     8 | number of this block                                                         |
//! |     32 |     8 | magic, 27022010                                                              |
//! |     40 |     4 | version, 1 or 2                                                              |
//! |     44 |     4 | time: counts snapshots                                                       |
//! |     48 |     8 | transaction id                                                               |
//! |     56 |     8 | held root, 0 if none                                                         |
//! |     64 |   128 | root of the data space map: begins with the number of data blocks            |
//! |    192 |   128 | root of the metadata space map                                               |
//! |    320 |     8 | root of the mapping tree: device → root of a tree, virtual block → data block |
//! |    328 |     8 | root of the details tree: device → details                                   |
//! |    336 |     4 | data block size in sectors                                                   |
//! |    340 |     4 | metadata block size in sectors, 8                                            |
//! |    360 |     4 | features that a reader must know: none so far                                |
//!
//! Node of a tree:
//!
//! | offset | bytes | field                                              |
//! |-------:|------:|----------------------------------------------------|
//! |      0 |     4 | checksum                                           |
//! |      4 |     4 | 1: its values are nodes; 2: its values are entries |
//! |      8 |     8 | number of this block                               |
//! |     16 |     4 | keys and values in use                             |
//! |     20 |     4 | keys and values there is room for                  |
//! |     24 |     4 | bytes of a value                                   |
//! |     32 |       | keys of 8 bytes, then values                       |
//!
//! Root of a space map: number of blocks (8 bytes), of those in use (8), root of what leads to the bitmaps (8), root of the tree of what is used
//! more than twice (8). What leads to the bitmaps is a tree for data, and for metadata a block of its own. A bitmap has two bits for a block, the
//! upper of the number first, so that 1 is `10` as bits are counted in a byte.
//!
//! | offset | bytes | of a bitmap, or the index of the metadata's |
//! |-------:|------:|---------------------------------------------|
//! |      0 |     4 | checksum                                    |
//! |      8 |     8 | number of this block                        |
//! |     16 |       | a bitmap's bits; an index's entries         |
//!
//! An entry for a bitmap: its block (8 bytes), how many of its blocks are free (4), before which none is (4).
//!
//! A mapping is `data block << 24 | time`. Details of a device: blocks mapped (8 bytes), transaction id (8), time when it was made (4), and
//! of its last snapshot (4).

use super::{Blocks, ThinMetadataError};

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;

pub(super) const MAGIC: u64 = 27_022_010;
pub(super) const SUPERBLOCK_SALT: u32 = 160_774;
pub(super) const NODE_SALT: u32 = 121_107;
pub(super) const BITMAP_SALT: u32 = 240_779;
pub(super) const INDEX_SALT: u32 = 160_478;
/// Where a superblock has the held root.
pub(super) const HELD_ROOT: usize = 56;
/// Where it has the root of what leads to the bitmaps of the metadata.
pub(super) const METADATA_BITMAPS: usize = 192 + 16;
/// Bytes before the keys of a node.
pub(super) const HEADER: usize = 32;
/// Blocks that a bitmap is for.
pub(super) const BITMAP_ENTRIES: u64 = (BLOCK as u64 - 16) * 4;
/// Bitmaps that metadata can have.
pub(super) const INDEX_ENTRIES: u64 = (BLOCK as u64 - 16) / 16;

/// Bytes of what the details tree has for a device.
pub(super) const DETAILS: usize = 24;

/// What is read of a superblock.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) time: u32,
    pub(super) transaction_id: u64,
    pub(super) held_root: u64,
    /// Not in the copy for readers.
    pub(super) data_blocks: u64,
    pub(super) mapping_root: u64,
    pub(super) details_root: u64,
    /// In sectors.
    pub(super) data_block_size: u32,
}

impl Superblock {
    pub(super) fn parse(blocks: &Blocks, block: u64, bytes: &[u8]) -> Result<Self, ThinMetadataError> {
        let wrong = |what: String| Err(blocks.no_superblock(block, what));
        if u64_at(bytes, 32) != MAGIC {
            return wrong("it has another magic number".to_owned());
        }
        if u32_at(bytes, 0) != checksum(bytes, SUPERBLOCK_SALT) {
            return wrong("its checksum is wrong".to_owned());
        }
        if u64_at(bytes, 8) != block {
            return wrong(format!("it says that it is block {}", u64_at(bytes, 8)));
        }
        let version = u32_at(bytes, 40);
        if !(1..=2).contains(&version) {
            return wrong(format!("version {version} is not known"));
        }
        let features = u32_at(bytes, 360);
        if features != 0 {
            return wrong(format!("it uses features that are not known ({features:#x})"));
        }
        if u32_at(bytes, 340) as usize * 512 != BLOCK {
            return wrong(format!("its blocks have {} sectors", u32_at(bytes, 340)));
        }
        let data_block_size = u32_at(bytes, 336);
        if data_block_size == 0 || !data_block_size.is_multiple_of(128) || data_block_size > 1 << 21 {
            return wrong(format!("its data blocks have {data_block_size} sectors"));
        }
        Ok(Self {
            time: u32_at(bytes, 44),
            transaction_id: u64_at(bytes, 48),
            held_root: u64_at(bytes, HELD_ROOT),
            data_blocks: u64_at(bytes, 64),
            mapping_root: u64_at(bytes, 320),
            details_root: u64_at(bytes, 328),
            data_block_size,
        })
    }
}

/// What leads to a bitmap.
#[derive(Debug, Clone, Copy)]
pub(super) struct BitmapEntry {
    pub(super) block: u64,
    /// How many of its blocks are free.
    pub(super) free: u32,
    /// None before this one is.
    pub(super) first_free: u32,
}

impl BitmapEntry {
    pub(super) fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        put(&mut bytes, 0, &self.block.to_le_bytes());
        put(&mut bytes, 8, &self.free.to_le_bytes());
        put(&mut bytes, 12, &self.first_free.to_le_bytes());
        bytes
    }
}

/// A node of a tree, checked as far as it can be by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) is_leaf: bool,
    keys: &'a [u8],
    values: &'a [u8],
    value_size: usize,
}

impl<'a> Node<'a> {
    /// Reads the node in a block; its entries, if it has such, have `value_size` bytes each.
    pub(super) fn parse(
        blocks: &Blocks,
        block: u64,
        bytes: &'a [u8],
        value_size: usize,
    ) -> Result<Self, ThinMetadataError> {
        let wrong = |what: String| Err(blocks.damaged(block, what));
        if u32_at(bytes, 0) != checksum(bytes, NODE_SALT) {
            return wrong("its checksum is wrong".to_owned());
        }
        if u64_at(bytes, 8) != block {
            return wrong(format!("it says that it is block {}", u64_at(bytes, 8)));
        }
        let is_leaf = match u32_at(bytes, 4) {
            1 => false,
            2 => true,
            flags => return wrong(format!("it is no node of a tree ({flags:#x})")),
        };
        let expected = if is_leaf { value_size } else { 8 };
        let (used, room, size) =
            (u32_at(bytes, 16) as usize, u32_at(bytes, 20) as usize, u32_at(bytes, 24) as usize);
        if size != expected {
            return wrong(format!("its values have {size} bytes, not {expected}"));
        }
        if used > room || room > (BLOCK - HEADER) / (8 + size) {
            return wrong(format!("it says that it has {used} of {room} values"));
        }
        let values = HEADER + room * 8;
        Ok(Self {
            is_leaf,
            keys: &bytes[HEADER..HEADER + used * 8],
            values: &bytes[values..values + used * size],
            value_size: size,
        })
    }

    pub(super) fn keys(self) -> impl Iterator<Item = u64> + 'a {
        self.keys.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// The values as numbers; only for those of 8 bytes.
    pub(super) fn numbers(self) -> impl Iterator<Item = u64> + 'a {
        self.values.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }

    pub(super) fn values(self) -> impl Iterator<Item = &'a [u8]> {
        self.values.chunks_exact(self.value_size)
    }
}

/// Keys, and values of `size` bytes, that a node has room for: the kernel wants a multiple of three.
pub(super) fn room(size: usize) -> usize {
    (BLOCK - HEADER) / (8 + size) / 3 * 3
}

/// Data block of a mapping.
pub(super) fn data_block(mapping: u64) -> u64 {
    mapping >> 24
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Checksum of a block, over all but its own field. The kernel leaves out the last inversion of a CRC-32C.
pub(super) fn checksum(bytes: &[u8], salt: u32) -> u32 {
    !crc32c::crc32c(&bytes[4..BLOCK]) ^ salt
}
