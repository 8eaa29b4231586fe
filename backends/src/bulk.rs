//! Writing much to a file, and reading it back, without filling the page cache.

use std::{
    cell::RefCell,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::OFlags;
use zumastor_core::{PAGE, PageBuf};

/// A file whose large writes go past the page cache (`O_DIRECT`) where the file system can.
///
/// A transfer writes what nobody reads soon: through the cache it would push out what is in use, and allocating the
/// pages costs the processor more than everything else does. Small writes do go through the cache, where they are
/// gathered.
#[derive(Debug)]
pub(crate) struct BulkFile {
    file: File,
    direct: Option<File>,
    /// Set when the file system opened the file for this but does not take the writes.
    refused: AtomicBool,
}

impl BulkFile {
    /// `file` is what is at `path`, open for writing.
    pub(crate) fn new(file: File, path: &Path) -> Self {
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(path)
            .ok();
        Self { file, direct, refused: AtomicBool::new(false) }
    }

    /// The file, for everything else.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes all of `data`.
    pub(crate) fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let direct = self.direct.as_ref().filter(|_| {
            data.len() >= LEAST
                && offset.is_multiple_of(ALIGN as u64)
                && !self.refused.load(Ordering::Relaxed)
        });
        let Some(direct) = direct else {
            return self.file.write_all_at(data, offset);
        };
        let (bulk, rest) = data.split_at(data.len() / ALIGN * ALIGN);
        match write_aligned(direct, bulk, offset) {
            // Some file systems say only now that they want another alignment, or none of this.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                self.refused.store(true, Ordering::Relaxed);
                self.file.write_all_at(data, offset)
            }
            Ok(()) if !rest.is_empty() => self.file.write_all_at(rest, offset + bulk.len() as u64),
            written => written,
        }
    }

    /// Fills `buf` as it lies on the disk, where the file system can and `buf` is worth it and aligned.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let direct = self.direct.as_ref().filter(|_| {
            buf.len() >= LEAST
                && offset.is_multiple_of(ALIGN as u64)
                && buf.len().is_multiple_of(ALIGN)
                && buf.as_ptr().align_offset(ALIGN) == 0
                && !self.refused.load(Ordering::Relaxed)
        });
        match direct.map(|direct| direct.read_exact_at(buf, offset)) {
            None => self.file.read_exact_at(buf, offset),
            Some(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => self.file.read_exact_at(buf, offset),
            Some(read) => read,
        }
    }
}

/// Writes a multiple of [`ALIGN`] bytes, from memory that is aligned as well.
fn write_aligned(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    if data.as_ptr().align_offset(ALIGN) == 0 {
        return file.write_all_at(data, offset);
    }
    BUFFER.with_borrow_mut(|buffer| {
        for (part, offset) in data.chunks(CHUNK).zip((offset..).step_by(CHUNK)) {
            let aligned = &mut buffer[..part.len()];
            aligned.copy_from_slice(part);
            file.write_all_at(aligned, offset)?;
        }
        Ok(())
    })
}

thread_local! {
    static BUFFER: RefCell<PageBuf> = RefCell::new(PageBuf::new(CHUNK));
}

/// What offsets, lengths and addresses must be multiples of: no block device wants more.
const ALIGN: usize = PAGE as usize;
/// Below this, gathering in the page cache is faster than waiting for the disk.
const LEAST: usize = 64 << 10;
/// Bytes written by one call.
const CHUNK: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_alignment_the_bytes_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        let bulk = BulkFile::new(file, &path);
        let data: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 7) as u8).collect();
        let mut expected = vec![0; 8 << 20];
        for (offset, from, length) in [
            (0, 0, 1 << 20),
            (4096, 1, (2 << 20) + 100),
            (5 << 20, 3, LEAST),
            (7 << 20, 5, 100),
            (6_000_001, 0, LEAST),
        ] {
            bulk.write_all_at(&data[from..from + length], offset).unwrap();
            expected[offset as usize..][..length].copy_from_slice(&data[from..from + length]);
        }
        let mut read = vec![0; 8 << 20];
        bulk.file().read_exact_at(&mut read, 0).unwrap();
        assert!(read == expected);
    }
}
