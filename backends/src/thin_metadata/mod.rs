//! Reads the metadata of a dm-thin pool: which devices there are, what they are mapped to, and where two of them differ; and writes that of a
//! [new one](NewPool).
//!
//! What is there is never written to but by [`drop_half_held`], no library is needed, and the pool may be in use: then its owner reserves a root
//! (`reserve_metadata_snap`), opens it here with [`ThinMetadata::open_held`], reads, and releases it. What lies below a held root is never
//! changed in place. [`ThinMetadata::open_current`] is for a pool that is not active.
//!
//! Trees of snapshots share nodes, and [`ThinMetadata::diff`] leaves out what both sides share: it costs what has changed, not what is mapped.
//!
//! Whatever is read is checked before it is believed: checksums, levels, order and range of keys, places of nodes and data. Damage is an error that
//! names the block. All numbers are of blocks: metadata blocks of 4 KiB, data blocks of [`ThinMetadata::data_block_size`], and the
//! virtual blocks of a device, which have the same size. The metadata does not know how long a device is: what was mapped before it was made
//! shorter is still there.

mod ahead;
mod blocks;
mod cursor;
mod diff;
mod error;
mod format;
mod half_held;
#[cfg(test)]
mod tests;
mod usage;
mod write;

use std::{ops::Range, path::Path, sync::Arc};

use zumastor_core::PageBuf;

#[cfg(test)]
pub(crate) use self::half_held::name_as_held;
use self::{
    blocks::Blocks,
    cursor::{Cursor, check_keys, check_level, height, read_one},
    format::{BLOCK, DETAILS, Node, Superblock, u32_at, u64_at},
};
pub use self::{
    diff::{Diff, DiffRun, Difference, MappedRun, Mappings},
    error::ThinMetadataError,
    half_held::{drop_half_held, is_half_held},
    usage::DeviceUsage,
    write::NewPool,
};

/// The metadata of a pool, as it was at one moment.
#[derive(Debug)]
pub struct ThinMetadata {
    blocks: Arc<Blocks>,
    superblock: Superblock,
    data_blocks: u64,
}

/// What the pool knows of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceDetails {
    /// Its id, which has 24 bits.
    pub device: u32,
    /// Data blocks it is mapped to.
    pub mapped_blocks: u64,
    /// The pool's transaction id when it was made.
    pub transaction_id: u64,
    /// The pool's time, which counts snapshots, when it was made.
    pub creation_time: u32,
    /// The pool's time when a snapshot was last taken of it, or it was made as one.
    pub snapshot_time: u32,
}

impl ThinMetadata {
    /// The root that the pool holds for readers. It must stay held until this is dropped.
    ///
    /// # Errors
    /// [`ThinMetadataError::NoHeldRoot`] if it holds none.
    pub fn open_held(path: &Path) -> Result<Self, ThinMetadataError> {
        let (blocks, live) = open(path)?;
        if live.held_root == 0 {
            return Err(ThinMetadataError::NoHeldRoot { path: path.to_owned() });
        }
        let superblock = superblock(&blocks, live.held_root)?;
        // The pool may have grown since, which does no harm.
        Ok(Self { blocks: Arc::new(blocks), superblock, data_blocks: live.data_blocks })
    }

    /// The last transaction of a pool that is not active.
    pub fn open_current(path: &Path) -> Result<Self, ThinMetadataError> {
        let (blocks, superblock) = open(path)?;
        Ok(Self { blocks: Arc::new(blocks), data_blocks: superblock.data_blocks, superblock })
    }

    /// Bytes of a data block.
    pub fn data_block_size(&self) -> u64 {
        u64::from(self.superblock.data_block_size) * 512
    }

    /// Data blocks of the pool.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// The pool's time: how many snapshots were ever taken in it.
    pub fn time(&self) -> u32 {
        self.superblock.time
    }

    /// The pool's transaction id, which its owner counts.
    pub fn transaction_id(&self) -> u64 {
        self.superblock.transaction_id
    }

    /// All devices, by id.
    pub fn devices(&self) -> Result<Vec<DeviceDetails>, ThinMetadataError> {
        let mut devices = Vec::new();
        self.walk(self.superblock.details_root, DETAILS, &mut |key, value| {
            devices.push(DeviceDetails {
                device: device_id(key)?,
                mapped_blocks: u64_at(value, 0),
                transaction_id: u64_at(value, 8),
                creation_time: u32_at(value, 16),
                snapshot_time: u32_at(value, 20),
            });
            Some(())
        })?;
        Ok(devices)
    }

    /// What a device is mapped to within a window of virtual blocks.
    pub fn mappings(&self, device: u32, window: Range<u64>) -> Result<Mappings<'_>, ThinMetadataError> {
        let root = Some(self.root(device)?);
        Ok(Mappings { cursor: self.cursor(root, window)?, run: None })
    }

    /// Where two devices differ, within a window of virtual blocks: where they are mapped to different data blocks, or one of them
    /// is not mapped.
    pub fn diff(&self, left: u32, right: u32, window: Range<u64>) -> Result<Diff<'_>, ThinMetadataError> {
        let [left, right] = [self.root(left)?, self.root(right)?];
        let (left, right) = (self.cursor(Some(left), window.clone())?, self.cursor(Some(right), window)?);
        Ok(Diff { left, right, run: None })
    }

    /// What each device alone takes, by id. Reads all metadata once or twice.
    pub fn usage(&self) -> Result<Vec<DeviceUsage>, ThinMetadataError> {
        let mut roots = Vec::new();
        self.walk(self.superblock.mapping_root, 8, &mut |key, value| {
            roots.push((device_id(key)?, u64_at(value, 0)));
            Some(())
        })?;
        let trees: Vec<_> = roots.iter().map(|(_, root)| *root).collect();
        let exclusive = usage::exclusive(&self.blocks, self.data_blocks, &trees)?;
        let details = self.devices()?;
        let mapped = |device| {
            let at = details.binary_search_by_key(&device, |details| details.device);
            at.map_or(0, |at| details[at].mapped_blocks)
        };
        let usage = roots.iter().zip(exclusive).map(|((device, _), exclusive)| DeviceUsage {
            device: *device,
            exclusive,
            shared: mapped(*device).saturating_sub(exclusive),
        });
        Ok(usage.collect())
    }

    fn cursor(&self, root: Option<u64>, window: Range<u64>) -> Result<Cursor<'_>, ThinMetadataError> {
        Cursor::new(&self.blocks, self.data_blocks, root, window)
    }

    /// Root of a device's own tree.
    fn root(&self, device: u32) -> Result<u64, ThinMetadataError> {
        let mut buffer = PageBuf::new(BLOCK);
        let (mut block, key) = (self.superblock.mapping_root, u64::from(device));
        let missing = || ThinMetadataError::NoDevice { path: self.blocks.path().to_owned(), device };
        for level in (0..=height(&self.blocks, block, 8, &mut buffer)?).rev() {
            let node = Node::parse(&self.blocks, block, read_one(&self.blocks, block, &mut buffer)?, 8)?;
            check_level(&self.blocks, node, block, level)?;
            let before = node.keys().take_while(|found| *found <= key).count();
            let found = before.checked_sub(1).and_then(|at| node.keys().zip(node.numbers()).nth(at));
            let (found, value) = found.ok_or_else(missing)?;
            if level == 0 && found != key {
                return Err(missing());
            }
            block = value;
        }
        Ok(block)
    }

    /// Gives each entry of a tree, in order. `each` refuses a key that cannot be.
    fn walk(
        &self,
        root: u64,
        value_size: usize,
        each: &mut dyn FnMut(u64, &[u8]) -> Option<()>,
    ) -> Result<(), ThinMetadataError> {
        let levels = height(&self.blocks, root, value_size, &mut PageBuf::new(BLOCK))?;
        self.walk_node((root, levels, true), value_size, 0..u64::MAX, each)
    }

    fn walk_node(
        &self,
        (block, level, is_root): (u64, u32, bool),
        value_size: usize,
        range: Range<u64>,
        each: &mut dyn FnMut(u64, &[u8]) -> Option<()>,
    ) -> Result<(), ThinMetadataError> {
        let mut buffer = PageBuf::new(BLOCK);
        let bytes = read_one(&self.blocks, block, &mut buffer)?;
        let node = Node::parse(&self.blocks, block, bytes, value_size)?;
        check_level(&self.blocks, node, block, level)?;
        let keys: Vec<_> = node.keys().collect();
        check_keys(&self.blocks, block, &keys, range.clone(), is_root && level == 0)?;
        if level == 0 {
            for (key, value) in keys.iter().zip(node.values()) {
                each(*key, value)
                    .ok_or_else(|| self.blocks.damaged(block, format!("no device can have the id {key}")))?;
            }
            return Ok(());
        }
        for (at, child) in node.numbers().enumerate() {
            let high = keys.get(at + 1).copied().unwrap_or(range.end);
            self.walk_node((child, level - 1, false), value_size, keys[at]..high, each)?;
        }
        Ok(())
    }
}

/// A key as the id of a device, if it can be one.
fn device_id(key: u64) -> Option<u32> {
    u32::try_from(key).ok().filter(|id| *id < 1 << 24)
}

/// Opens a metadata device and reads its superblock.
fn open(path: &Path) -> Result<(Blocks, Superblock), ThinMetadataError> {
    let blocks = Blocks::open(path)?;
    if blocks.count() == 0 {
        return Err(blocks.no_superblock(0, "it has no blocks"));
    }
    let read = superblock(&blocks, 0)?;
    Ok((blocks, read))
}

fn superblock(blocks: &Blocks, block: u64) -> Result<Superblock, ThinMetadataError> {
    if block >= blocks.count() {
        return Err(blocks.no_superblock(block, format!("there are only {} blocks", blocks.count())));
    }
    let mut buffer = PageBuf::new(BLOCK);
    blocks.read(block, &mut buffer)?;
    Superblock::parse(blocks, block, &buffer)
}
