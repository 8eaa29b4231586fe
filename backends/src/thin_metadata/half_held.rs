//! A root that is named as held and not counted as in use.
//!
//! To hold a root, the kernel writes its place into the superblock, which arrives with the first flush of the transaction; what is in use is
//! counted with the second (`__reserve_metadata_snap` and `__commit_transaction`, drivers/md/dm-thin-metadata.c). When the power goes in between,
//! everything else is as it was before, but a release would count down what nobody counted up: the trees that are in use become free.

use std::{fs::OpenOptions, io, os::unix::fs::FileExt, path::Path};

use zumastor_core::PageBuf;

use super::{
    Blocks, ThinMetadataError,
    format::{
        BITMAP_ENTRIES, BITMAP_SALT, BLOCK, HELD_ROOT, INDEX_SALT, METADATA_BITMAPS, SUPERBLOCK_SALT,
        Superblock, checksum, put, u32_at, u64_at,
    },
    write::seal,
};

/// Whether the held root of a pool's last transaction is none. The pool may be active.
///
/// # Errors
/// What cannot be read, and metadata that are damaged.
pub fn is_half_held(path: &Path) -> Result<bool, ThinMetadataError> {
    let blocks = Blocks::open(path)?;
    let mut superblock = read(&blocks, 0)?;
    for _ in 0..TRIES {
        let so = is_so(&blocks, &superblock);
        if matches!(so, Ok(false)) {
            return so;
        }
        // What one transaction names may be something else after the next.
        let again = read(&blocks, 0)?;
        if *again == *superblock {
            return so;
        }
        superblock = again;
    }
    Err(blocks.damaged(0, "it changes faster than it can be read"))
}

/// How often what changes is read.
const TRIES: u32 = 100;

/// Takes such a root out of the superblock again, durably; false if there is none. The pool must not be active.
///
/// # Errors
/// What cannot be read or written, and metadata that are damaged.
pub fn drop_half_held(path: &Path) -> Result<bool, ThinMetadataError> {
    let blocks = Blocks::open(path)?;
    let mut superblock = read(&blocks, 0)?;
    if !is_so(&blocks, &superblock)? {
        return Ok(false);
    }
    put(&mut superblock, HELD_ROOT, &[0; 8]);
    seal(&mut superblock, SUPERBLOCK_SALT);
    let write = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(&superblock, 0)?;
        file.sync_data()
    };
    write().map_err(|source| ThinMetadataError::Io { path: path.to_owned(), block: 0, source })?;
    Ok(true)
}

fn is_so(blocks: &Blocks, superblock: &[u8]) -> Result<bool, ThinMetadataError> {
    let held = Superblock::parse(blocks, 0, superblock)?.held_root;
    Ok(held != 0 && !is_counted(blocks, superblock, held)?)
}

/// Whether a block is in use, as the space map of the metadata says.
fn is_counted(blocks: &Blocks, superblock: &[u8], block: u64) -> Result<bool, ThinMetadataError> {
    let index = checked(blocks, u64_at(superblock, METADATA_BITMAPS), INDEX_SALT)?;
    let entry = 16 + (block / BITMAP_ENTRIES) as usize * 16;
    if entry >= BLOCK {
        return Err(blocks.damaged(0, format!("it says that block {block} is held")));
    }
    let bitmap = checked(blocks, u64_at(&index, entry), BITMAP_SALT)?;
    let at = (block % BITMAP_ENTRIES) as usize;
    Ok(bitmap[16 + at / 4] >> (at % 4 * 2) & 0b11 != 0)
}

/// Names a block as held, for tests.
#[cfg(test)]
pub(crate) fn name_as_held(path: &Path, block: u64) {
    let blocks = Blocks::open(path).unwrap();
    let mut superblock = read(&blocks, 0).unwrap();
    put(&mut superblock, HELD_ROOT, &block.to_le_bytes());
    seal(&mut superblock, SUPERBLOCK_SALT);
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&superblock, 0).unwrap();
}

fn checked(blocks: &Blocks, block: u64, salt: u32) -> Result<PageBuf, ThinMetadataError> {
    let bytes = read(blocks, block)?;
    if u32_at(&bytes, 0) != checksum(&bytes, salt) || u64_at(&bytes, 8) != block {
        return Err(blocks.damaged(block, "it is no block of the space map"));
    }
    Ok(bytes)
}

fn read(blocks: &Blocks, block: u64) -> Result<PageBuf, ThinMetadataError> {
    if block >= blocks.count() {
        return Err(blocks.damaged(block, format!("there are only {} blocks", blocks.count())));
    }
    let mut buffer = PageBuf::new(BLOCK);
    blocks.read(block, &mut buffer)?;
    Ok(buffer)
}
