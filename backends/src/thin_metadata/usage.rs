//! What each device alone takes.

use std::ops::Range;

use zumastor_core::PageBuf;

use super::{
    Blocks, ThinMetadataError,
    cursor::{check_block, check_keys, check_level, height, read_one},
    format::{BLOCK, Node, data_block},
};

/// Data blocks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceUsage {
    /// Id of the thin device.
    pub device: u32,
    /// Data blocks that only this device is mapped to: what deleting it would free.
    pub exclusive: u64,
    /// Data blocks that others are mapped to as well.
    pub shared: u64,
}

/// Counts the data blocks that each device has for itself, given the roots of all.
///
/// Nodes that trees share are found among the inner ones, a small part of all; each leaf is read once, or twice if it is one device's
/// own, in the order in which they lie on the device. Memory is 4 bytes a metadata block and 2 bits a data block.
pub(super) fn exclusive(
    blocks: &Blocks,
    data_blocks: u64,
    roots: &[u64],
) -> Result<Vec<u64>, ThinMetadataError> {
    let mut nodes = Nodes { blocks, owners: vec![0; blocks.count() as usize] };
    let mut buffer = PageBuf::new(BLOCK);
    for (device, root) in roots.iter().enumerate() {
        let levels = height(blocks, *root, 8, &mut buffer)?;
        nodes.mark(*root, levels, device as u32 + 1, 0..u64::MAX)?;
    }
    let (mut seen, mut several) = (Bits::default(), Bits::default());
    nodes.leaves(
        data_blocks,
        |_| true,
        |owner, data| {
            if owner == SHARED || seen.set(data) {
                several.set(data);
            }
        },
    )?;
    let mut exclusive = vec![0; roots.len()];
    nodes.leaves(
        data_blocks,
        |owner| owner != SHARED,
        |owner, data| {
            exclusive[owner as usize - 1] += u64::from(!several.has(data));
        },
    )?;
    Ok(exclusive)
}

/// More than one device has the node. Others have one more than the place of their device, 0 is nobody.
const SHARED: u32 = LEAF - 1;

/// Set for nodes whose values are entries.
const LEAF: u32 = 1 << 31;

/// Whose the nodes are.
struct Nodes<'a> {
    blocks: &'a Blocks,
    owners: Vec<u32>,
}

impl Nodes<'_> {
    /// Marks the node in `block`, and all below it, as this owner's too.
    fn mark(
        &mut self,
        block: u64,
        levels: u32,
        owner: u32,
        keys: Range<u64>,
    ) -> Result<(), ThinMetadataError> {
        check_block(self.blocks, block)?;
        let flag = if levels == 0 { LEAF } else { 0 };
        let known = &mut self.owners[block as usize];
        let before = *known & !LEAF;
        if before != 0 && *known & LEAF != flag {
            return Err(self.blocks.damaged(block, "it is found at two levels of trees"));
        }
        let owner = match before {
            0 => owner,
            // So is all below.
            SHARED => return Ok(()),
            before if before == owner => {
                return Err(self.blocks.damaged(block, "one tree names it twice"));
            }
            _ => SHARED,
        };
        *known = owner | flag;
        if levels == 0 {
            return Ok(());
        }
        let mut buffer = PageBuf::new(BLOCK);
        let node = Node::parse(self.blocks, block, read_one(self.blocks, block, &mut buffer)?, 8)?;
        check_level(self.blocks, node, block, levels)?;
        let lows: Vec<_> = node.keys().collect();
        check_keys(self.blocks, block, &lows, keys.clone(), false)?;
        for (at, child) in node.numbers().enumerate() {
            let high = lows.get(at + 1).copied().unwrap_or(keys.end);
            self.mark(child, levels - 1, owner, lows[at]..high)?;
        }
        Ok(())
    }

    /// Reads the leaves of chosen owners, in order, and gives each data block they map to.
    fn leaves(
        &self,
        data_blocks: u64,
        wanted: impl Fn(u32) -> bool,
        mut each: impl FnMut(u32, u64),
    ) -> Result<(), ThinMetadataError> {
        let wanted = |at: usize| self.owners[at] & LEAF != 0 && wanted(self.owners[at] & !LEAF);
        let mut buffer = PageBuf::new(AHEAD * BLOCK);
        let mut next = 0;
        while let Some(first) = (next..self.owners.len()).find(|at| wanted(*at)) {
            let mut end = first + 1;
            while let Some(more) =
                (end..(end + GAP).min(first + AHEAD).min(self.owners.len())).find(|at| wanted(*at))
            {
                end = more + 1;
            }
            let read = &mut buffer[..(end - first) * BLOCK];
            self.blocks.read(first as u64, read)?;
            for (at, bytes) in (first..end).zip(read.chunks_exact(BLOCK)).filter(|(at, _)| wanted(*at)) {
                let node = Node::parse(self.blocks, at as u64, bytes, 8)?;
                check_level(self.blocks, node, at as u64, 0)?;
                for mapping in node.numbers() {
                    if data_block(mapping) >= data_blocks {
                        let what = format!("it maps to data block {} of {data_blocks}", data_block(mapping));
                        return Err(self.blocks.damaged(at as u64, what));
                    }
                    each(self.owners[at] & !LEAF, data_block(mapping));
                }
            }
            next = end;
        }
        Ok(())
    }
}

/// Blocks that are read at once, at most.
const AHEAD: usize = 128;

/// Blocks up to which it is sooner read than left out.
const GAP: usize = 8;

/// A set of numbers that lie near each other.
#[derive(Default)]
struct Bits {
    pieces: Vec<Option<Box<[u64; PIECE]>>>,
}

const PIECE: usize = 1024;

impl Bits {
    /// Takes a number in, and tells whether it was in before.
    fn set(&mut self, number: u64) -> bool {
        let (piece, word, bit) = place(number);
        if piece >= self.pieces.len() {
            self.pieces.resize(piece + 1, None);
        }
        let word = &mut self.pieces[piece].get_or_insert_with(|| Box::new([0; PIECE]))[word];
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    fn has(&self, number: u64) -> bool {
        let (piece, word, bit) = place(number);
        self.pieces.get(piece).and_then(Option::as_ref).is_some_and(|words| words[word] & bit != 0)
    }
}

fn place(number: u64) -> (usize, usize, u64) {
    let word = (number / 64) as usize;
    (word / PIECE, word % PIECE, 1 << (number % 64))
}
