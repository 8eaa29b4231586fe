//! Which blocks of the disk hold a file (`FS_IOC_FIEMAP`), and what two files that share blocks differ in.

use std::{fs::File, io, ops::Range};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use zumastor_core::{Changes, Extent, PAGE};

/// A part of a file that has blocks, as positions in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    range: Range<u64>,
    /// Where the first byte lies on the disk; nothing where the file system's answer does not name the very bytes.
    disk: Option<u64>,
}

/// The parts of `file` within `window` that have data, ascending. Whatever is not listed reads as zeros.
pub(crate) fn map(file: &File, window: &Range<u64>) -> io::Result<Vec<Mapped>> {
    map_as(file, window, SYNC)
}

/// As [`map`], of a file that was synced and not written since: asks nothing to be written to the disk.
pub(crate) fn map_synced(file: &File, window: &Range<u64>) -> io::Result<Vec<Mapped>> {
    map_as(file, window, 0)
}

fn map_as(file: &File, window: &Range<u64>, flags: u32) -> io::Result<Vec<Mapped>> {
    let mut parts = Vec::new();
    each_extent(file, window, flags, |extent| {
        // Preallocated blocks that were never written read as zeros.
        if extent.flags & UNWRITTEN != 0 {
            return;
        }
        let start = extent.logical.max(window.start);
        let end = extent.logical.saturating_add(extent.length).min(window.end);
        let disk = (extent.flags & VAGUE == 0).then(|| extent.physical + (start - extent.logical));
        if start < end {
            parts.push(Mapped { range: start..end, disk });
        }
    })?;
    Ok(parts)
}

/// The blocks that a file has, preallocated ones as well.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// Where they lie on the disk, in the order of the file.
    pub certain: Vec<Range<u64>>,
    /// Bytes of those whose place is not certain, and that no other file shares.
    pub alone: u64,
    /// Bytes of those whose place is not certain, and that another file shares.
    pub shared: u64,
}

/// Finds the blocks of a file; asks nothing to be written to the disk.
pub(crate) fn blocks(file: &File) -> io::Result<Blocks> {
    let mut blocks = Blocks::default();
    each_extent(file, &(0..i64::MAX as u64), 0, |extent| {
        match (extent.flags & VAGUE == 0, extent.flags & SHARED == 0) {
            (true, _) => blocks.certain.push(extent.physical..extent.physical.saturating_add(extent.length)),
            (false, true) => blocks.alone += extent.length,
            (false, false) => blocks.shared += extent.length,
        }
    })?;
    Ok(blocks)
}

fn each_extent(
    file: &File,
    window: &Range<u64>,
    flags: u32,
    mut visit: impl FnMut(&RawExtent),
) -> io::Result<()> {
    let mut request = Request::new();
    let mut position = window.start;
    while position < window.end {
        let count = request.run(file, position..window.end, flags)?;
        let extents = &request.extents[..count];
        extents.iter().for_each(&mut visit);
        match extents.last() {
            Some(last) if last.flags & LAST == 0 && last.logical + last.length > position => {
                position = last.logical + last.length;
            }
            _ => break,
        }
    }
    Ok(())
}

/// Adds to `changes` where `target` differs from `base` within `window`, by their maps. Same disk address at the same
/// position means same content, if both maps were true at one moment.
pub(crate) fn differences(base: &[Mapped], target: &[Mapped], window: Range<u64>, changes: &mut Changes) {
    let (mut b, mut t) = (0, 0);
    let mut position = window.start;
    while position < window.end {
        while base.get(b).is_some_and(|part| part.range.end <= position) {
            b += 1;
        }
        while target.get(t).is_some_and(|part| part.range.end <= position) {
            t += 1;
        }
        let (old, old_end) = at(base, b, position, window.end);
        let (new, new_end) = at(target, t, position, window.end);
        let end = old_end.min(new_end);
        match (old, new) {
            (None, None) => {}
            (Some(_), None) => changes.push(Extent::zero(position..end)),
            (Some(Some(old)), Some(Some(new))) if old == new => {}
            (_, Some(_)) => changes.push(Extent::data(position..end)),
        }
        position = end;
    }
}

/// What a map says of `position`: no data, or data and perhaps where; and how far that reaches.
fn at(map: &[Mapped], index: usize, position: u64, end: u64) -> (Option<Option<u64>>, u64) {
    match map.get(index) {
        None => (None, end),
        Some(part) if part.range.start > position => (None, part.range.start.min(end)),
        Some(part) => {
            let disk = part.disk.map(|disk| disk + (position - part.range.start));
            (Some(disk), part.range.end.min(end))
        }
    }
}

/// Where two files may differ within `window`. `base_end` is the base's size where the target is larger.
///
/// The file system may move blocks at any time (a balance or a defragmentation), and then an address that was read a
/// moment ago may belong to something else. So the base is mapped before and after the target: if it did not move,
/// there was a moment at which both maps were true.
pub(crate) fn changes(
    base: &File,
    base_end: Option<u64>,
    target: &File,
    window: Range<u64>,
) -> io::Result<Changes> {
    let mut changes = Changes::new();
    let mut before = map(base, &window)?;
    for _ in 0..ATTEMPTS {
        let new = map(target, &window)?;
        let after = map(base, &window)?;
        if before != after {
            before = after;
            continue;
        }
        // Where the base ends within a block, the block may be shared, and the bytes behind the end are the target's.
        let cut = base_end.map_or(0..0, |end| end / PAGE * PAGE..end.next_multiple_of(PAGE));
        let seam = cut.start.clamp(window.start, window.end)..cut.end.clamp(window.start, window.end);
        if seam.is_empty() {
            differences(&before, &new, window, &mut changes);
        } else {
            differences(&before, &new, window.start..seam.start, &mut changes);
            changes.push(Extent::data(seam.clone()));
            differences(&before, &new, seam.end..window.end, &mut changes);
        }
        return Ok(changes);
    }
    // It will not hold still. Reporting everything is right too, only slow.
    let vague = |parts: Vec<Mapped>| -> Vec<Mapped> {
        parts.into_iter().map(|part| Mapped { disk: None, ..part }).collect()
    };
    differences(&vague(before), &vague(map(target, &window)?), window, &mut changes);
    Ok(changes)
}

const ATTEMPTS: usize = 8;

const LAST: u32 = 0x1;
const UNWRITTEN: u32 = 0x800;
/// The address is not known yet (delayed), names a whole compressed or encrypted extent whatever the offset within it,
/// or the data lie within a block of metadata: nothing to compare by.
const VAGUE: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;
const SYNC: u32 = 0x1;
/// Some other file has these blocks as well.
const SHARED: u32 = 0x2000;
const BATCH: usize = 1024;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for a batch of extents.
#[repr(C)]
#[derive(Debug)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

impl Request {
    fn new() -> Box<Self> {
        Box::new(Self {
            start: 0,
            length: 0,
            flags: 0,
            mapped: 0,
            count: 0,
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        })
    }

    /// Asks for the extents of `window`; returns how many were found.
    fn run(&mut self, file: &File, window: Range<u64>, flags: u32) -> io::Result<usize> {
        self.start = window.start;
        self.length = window.end - window.start;
        self.flags = flags;
        self.mapped = 0;
        self.count = BATCH as u32;
        // SAFETY: `Request` has the layout of `struct fiemap` followed by `count` extents, which is all that the call
        // reads and writes.
        #[allow(unsafe_code)]
        unsafe {
            rustix::ioctl::ioctl(file, Fiemap(self))?;
        }
        Ok((self.mapped as usize).min(BATCH))
    }
}

struct Fiemap<'a>(&'a mut Request);

// SAFETY: the opcode is `FS_IOC_FIEMAP`, which takes a pointer to the `struct fiemap` that this holds and writes
// nothing but it.
#[allow(unsafe_code)]
unsafe impl Ioctl for Fiemap<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        // _IOWR('f', 11, struct fiemap)
        0xC020_660B
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(range: Range<u64>, disk: impl Into<Option<u64>>) -> Mapped {
        Mapped { range, disk: disk.into() }
    }

    fn differ(base: &[Mapped], target: &[Mapped]) -> Vec<Extent> {
        let mut changes = Changes::new();
        differences(base, target, 0..100, &mut changes);
        changes.iter().cloned().collect()
    }

    #[test]
    fn the_same_place_is_the_same_content() {
        let base = [part(0..50, 1000), part(60..80, 2000)];
        assert_eq!(differ(&base, &base), []);
        assert_eq!(differ(&[], &[]), []);
        assert_eq!(differ(&[], &base), [Extent::data(0..50), Extent::data(60..80)]);
        assert_eq!(differ(&base, &[]), [Extent::zero(0..50), Extent::zero(60..80)]);
    }

    #[test]
    fn extents_that_are_cut_otherwise_are_compared_by_byte() {
        let base = [part(0..50, 1000)];
        let target = [part(0..20, 1000), part(20..30, 5000), part(30..60, 1030)];
        assert_eq!(differ(&base, &target), [Extent::data(20..30), Extent::data(50..60)]);
        // Same address, other position: not the same content.
        assert_eq!(
            differ(&base, &[part(10..20, 1000)]),
            [Extent::zero(0..10), Extent::data(10..20), Extent::zero(20..50)]
        );
    }

    #[test]
    fn what_has_no_certain_address_is_never_equal() {
        assert_eq!(differ(&[part(0..10, None)], &[part(0..10, None)]), [Extent::data(0..10)]);
        assert_eq!(differ(&[part(0..10, 7)], &[part(0..10, None)]), [Extent::data(0..10)]);
    }
}
