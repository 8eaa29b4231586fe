//! Reading block devices past the page cache.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::{OFlags, ioctl_blksszget};
use zumastor_core::PageBuf;

/// A block device whose content is read from itself and not from the page cache: a file system that is mounted from the same device,
/// if only to be read, keeps its own idea of some blocks there (ext4 of its journal's superblock). What others wrote through the page
/// cache is written out first, by the kernel.
#[derive(Debug)]
pub(crate) struct DirectDevice {
    file: File,
    /// Bytes of the device's blocks: what is read begins and ends with one, on the device and in memory.
    block: u64,
}

impl DirectDevice {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
        let block = ioctl_blksszget(&file)?;
        Ok(Self { file, block: block.into() })
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?)
    }

    /// Fills `buf`, without a copy where it begins and ends with blocks.
    pub(crate) fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
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
