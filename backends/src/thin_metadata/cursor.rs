//! A walk through the mapping tree of one device, from its first entry to its last, in which whole subtrees can be left out.

use std::{ops::Range, sync::Arc};

use zumastor_core::PageBuf;

use super::{
    Blocks, ThinMetadataError,
    ahead::Ahead,
    format::{BLOCK, Node, data_block},
};

/// More levels than any tree that fits on a metadata device (16 GiB) has.
const DEPTH: u32 = 12;

/// What comes next in a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// A subtree with keys from `low` on.
    Node { low: u64, block: u64, height: u32 },
    /// A virtual block and its mapping.
    Entry { key: u64, mapping: u64 },
}

/// Where a walk is. The levels above hold what comes after the node that is walked below.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    blocks: &'a Arc<Blocks>,
    /// Data blocks there are.
    data_blocks: u64,
    window: Range<u64>,
    /// Not yet read.
    root: Option<(u64, u32)>,
    levels: Vec<Level>,
    /// Levels that were walked to their end: their memory is used again.
    spare: Vec<Level>,
    leaves: Ahead,
    single: PageBuf,
}

/// What is left of a node.
#[derive(Debug, Default)]
struct Level {
    block: u64,
    height: u32,
    keys: Vec<u64>,
    values: Vec<u64>,
    at: usize,
    /// No key reaches it.
    high: u64,
}

impl<'a> Cursor<'a> {
    /// A walk through the entries in `window` of the tree at `root`; of an empty tree without one.
    pub(super) fn new(
        blocks: &'a Arc<Blocks>,
        data_blocks: u64,
        root: Option<u64>,
        window: Range<u64>,
    ) -> Result<Self, ThinMetadataError> {
        let mut single = PageBuf::new(BLOCK);
        let root = match root {
            Some(root) if !window.is_empty() => Some((root, height(blocks, root, 8, &mut single)?)),
            _ => None,
        };
        let (levels, spare, leaves) = (Vec::new(), Vec::new(), Ahead::default());
        Ok(Self { blocks, data_blocks, window, root, levels, spare, leaves, single })
    }

    /// What comes next; nothing at the end.
    pub(super) fn head(&mut self) -> Option<Head> {
        if let Some((block, height)) = self.root {
            return Some(Head::Node { low: 0, block, height });
        }
        while let Some(level) = self.levels.last() {
            if level.at < level.keys.len() {
                let (key, value) = (level.keys[level.at], level.values[level.at]);
                if key >= self.window.end {
                    return None;
                }
                return Some(match level.height {
                    0 => Head::Entry { key, mapping: value },
                    height => Head::Node { low: key, block: value, height: height - 1 },
                });
            }
            self.spare.extend(self.levels.pop());
        }
        None
    }

    /// Leaves out what comes next.
    pub(super) fn skip(&mut self) {
        if self.root.take().is_none()
            && let Some(level) = self.levels.last_mut()
        {
            level.at += 1;
        }
    }

    /// Goes into the node that comes next. Leaves that `other` has before it too are not read ahead: they will be left out.
    pub(super) fn enter(&mut self, other: Option<&Cursor<'_>>) -> Result<(), ThinMetadataError> {
        let (low, high, block, height) = match (self.root, self.levels.last()) {
            (Some((block, height)), _) => (0, u64::MAX, block, height),
            (None, Some(level)) if level.height > 0 && level.at < level.keys.len() => {
                let high = level.keys.get(level.at + 1).copied().unwrap_or(level.high);
                (level.keys[level.at], high, level.values[level.at], level.height - 1)
            }
            _ => return Ok(()),
        };
        let mut level = self.spare.pop().unwrap_or_default();
        let bytes = if height == 0 {
            let siblings = self.levels.last().map_or(&[][..], |level| level.to_come(self.window.end));
            self.leaves.get(self.blocks, block, siblings, other.map_or(&[], Cursor::leaves_to_come))?
        } else {
            read_one(self.blocks, block, &mut self.single)?
        };
        let node = Node::parse(self.blocks, block, bytes, 8)?;
        level.fill(self.blocks, node, (block, height), low..high, self.root.is_some())?;
        if height == 0 {
            let beyond = level.values.iter().find(|mapping| data_block(**mapping) >= self.data_blocks);
            if let Some(mapping) = beyond {
                let (at, count) = (data_block(*mapping), self.data_blocks);
                let what = format!("it maps to data block {at}, and the pool has {count}");
                return Err(self.blocks.damaged(block, what));
            }
        }
        level.seek(self.window.start);
        self.skip();
        self.levels.push(level);
        Ok(())
    }

    /// Leaves out all that is left.
    pub(super) fn end(&mut self) {
        self.root = None;
        self.levels.clear();
    }

    fn leaves_to_come(&self) -> &[u64] {
        let above = self.levels.iter().rev().find(|level| level.height == 1);
        above.map_or(&[], |level| level.to_come(self.window.end))
    }
}

impl Level {
    fn fill(
        &mut self,
        blocks: &Blocks,
        node: Node<'_>,
        (block, height): (u64, u32),
        keys: Range<u64>,
        is_root: bool,
    ) -> Result<(), ThinMetadataError> {
        check_level(blocks, node, block, height)?;
        self.keys.clear();
        self.keys.extend(node.keys());
        self.values.clear();
        self.values.extend(node.numbers());
        (self.block, self.height, self.at, self.high) = (block, height, 0, keys.end);
        check_keys(blocks, block, &self.keys, keys, is_root && height == 0)
    }

    /// What is left of it, as far as it begins before `end`.
    fn to_come(&self, end: u64) -> &[u64] {
        let count = self.keys.partition_point(|key| *key < end);
        &self.values[self.at.min(count)..count]
    }

    /// Goes to the first entry at or after `key`, or to the node that may have it.
    fn seek(&mut self, key: u64) {
        let before = self.keys.partition_point(|found| *found < key);
        let exact = self.keys.get(before) == Some(&key);
        self.at = if self.height == 0 || exact { before } else { before.saturating_sub(1) };
    }
}

/// Levels below the node at `root`: 0 if its values are entries.
pub(super) fn height(
    blocks: &Blocks,
    root: u64,
    value_size: usize,
    buffer: &mut PageBuf,
) -> Result<u32, ThinMetadataError> {
    let mut block = root;
    for height in 0..DEPTH {
        let node = Node::parse(blocks, block, read_one(blocks, block, buffer)?, value_size)?;
        if node.is_leaf {
            return Ok(height);
        }
        block = node.numbers().next().ok_or_else(|| blocks.damaged(block, "it has no values"))?;
    }
    Err(blocks.damaged(root, "the tree below it has no end"))
}

/// Reads a block by itself.
pub(super) fn read_one<'b>(
    blocks: &Blocks,
    block: u64,
    buffer: &'b mut PageBuf,
) -> Result<&'b [u8], ThinMetadataError> {
    check_block(blocks, block)?;
    blocks.read(block, buffer)?;
    Ok(buffer)
}

/// Whether a tree may have a node in a block.
pub(super) fn check_block(blocks: &Blocks, block: u64) -> Result<(), ThinMetadataError> {
    if block == 0 || block >= blocks.count() {
        return Err(blocks.damaged(block, format!("a tree names it, and there are {}", blocks.count())));
    }
    Ok(())
}

/// Whether a node is as far above the entries as where it was found says.
pub(super) fn check_level(
    blocks: &Blocks,
    node: Node<'_>,
    block: u64,
    height: u32,
) -> Result<(), ThinMetadataError> {
    if node.is_leaf != (height == 0) {
        return Err(blocks.damaged(block, "it is not at the level of the tree where it was found"));
    }
    Ok(())
}

/// Whether keys are in order and where the level above says.
pub(super) fn check_keys(
    blocks: &Blocks,
    block: u64,
    keys: &[u64],
    range: Range<u64>,
    may_be_empty: bool,
) -> Result<(), ThinMetadataError> {
    if keys.is_empty() && !may_be_empty {
        return Err(blocks.damaged(block, "it has no values"));
    }
    let inside = keys.first().is_none_or(|key| range.contains(key))
        && keys.last().is_none_or(|key| range.contains(key));
    if !inside || !keys.is_sorted_by(|a, b| a < b) {
        return Err(blocks.damaged(block, "its keys are out of order"));
    }
    Ok(())
}
