//! Reading past the page cache.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

use rustix::fs::{OFlags, ioctl_blksszget};
use zumastor_core::{PAGE, PageBuf};

/// A block device or file whose content is read from the disk and not from the page cache. What others wrote through the page cache
/// is written out first, by the kernel.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    /// Bytes of a block: what is read begins and ends with one, on the disk and in memory.
    block: u64,
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)
}

impl Direct {
    /// A block device. A file system that is mounted from it, if only to be read, keeps its own idea of some blocks in the page
    /// cache (ext4 of its journal's superblock).
    pub(crate) fn device(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let block = ioctl_blksszget(&file)?;
        Ok(Self { file, block: block.into() })
    }

    /// A file that is open already. Some file systems refuse (`EINVAL`), here or when it is read.
    pub(crate) fn file(file: &File) -> io::Result<Self> {
        let file = open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))?;
        // Disks have blocks of at most a page, and so have the file systems on them.
        Ok(Self { file, block: PAGE })
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
            let all = buf.len();
            return self.fill(offset, buf, all);
        }
        let begin = offset / self.block * self.block;
        let end = (offset + length).next_multiple_of(self.block);
        let mut blocks = PageBuf::new((end - begin) as usize);
        let skipped = (offset - begin) as usize;
        // A file may end within the last of them.
        self.fill(begin, &mut blocks, skipped + buf.len())?;
        buf.copy_from_slice(&blocks[skipped..skipped + buf.len()]);
        Ok(())
    }

    /// Fills `blocks`, and at least so many bytes of them.
    fn fill(&self, offset: u64, blocks: &mut [u8], least: usize) -> io::Result<()> {
        let mut done = 0;
        while done < least {
            // What is not whole blocks was the end.
            if !(done as u64).is_multiple_of(self.block) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match self.file.read_at(&mut blocks[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
