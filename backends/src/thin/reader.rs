//! Reading the device of a snapshot.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::Arc,
};

use rustix::fs::{OFlags, ioctl_blksszget};
use zumastor_core::{ExtentKind, PageBuf, SnapshotReader, StoreError, digest::Source};

use super::changes::Delta;
use crate::{
    described::failed,
    reading::{check_bounds, reading},
};

/// Reads a thin device that nobody writes. While it is open, the device stays, whatever becomes of the snapshot.
///
/// What is read comes from the device and not from the page cache: a file system that is mounted from the same device, if only to be
/// read, keeps its own idea of some blocks there (ext4 of its journal's superblock), which is not what the snapshot holds.
#[derive(Debug)]
pub(crate) struct DeviceReader {
    file: File,
    path: PathBuf,
    size: u64,
    /// Bytes of the device's blocks: what is read begins and ends with one, on the device and in memory.
    block: u64,
}

impl DeviceReader {
    pub(crate) fn open(path: PathBuf, size: u64) -> Result<Self, StoreError> {
        let direct = OFlags::DIRECT.bits() as i32;
        let file = File::options().read(true).custom_flags(direct).open(&path);
        let file = file.map_err(failed("opening", &path))?;
        let block = ioctl_blksszget(&file).map_err(|error| failed("looking at", &path)(error.into()))?;
        Ok(Self { file, path, size, block: u64::from(block) })
    }

    fn read_blocks(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let length = buf.len() as u64;
        let whole = |number: u64| number.is_multiple_of(self.block);
        if whole(offset) && whole(length) && whole(buf.as_ptr() as u64) {
            return self.file.read_exact_at(buf, offset);
        }
        let begin = offset / self.block * self.block;
        let end = (offset + length).next_multiple_of(self.block);
        let mut blocks = PageBuf::new((end - begin) as usize);
        self.file.read_exact_at(&mut blocks, begin)?;
        let skipped = (offset - begin) as usize;
        buf.copy_from_slice(&blocks[skipped..skipped + buf.len()]);
        Ok(())
    }
}

impl SnapshotReader for DeviceReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        self.read_blocks(offset, buf).map_err(|error| reading(error, &self.path, offset, buf.len()))
    }

    fn read_stored(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.read_at(offset, buf)
    }
}

/// A snapshot to compute a digest of: what is not mapped is not read.
#[derive(Debug)]
pub(crate) struct Mapped<'a> {
    pub reader: &'a DeviceReader,
    pub mapped: Arc<Delta>,
}

impl Source for Mapped<'_> {
    fn size(&self) -> u64 {
        SnapshotReader::size(self.reader)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        SnapshotReader::read_at(self.reader, offset, buf)
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        let changes = self.mapped.within(&window, Source::size(self));
        let data = changes.iter().filter(|extent| extent.kind == ExtentKind::Data);
        Ok(data.map(|extent| extent.range.clone()).collect())
    }
}
