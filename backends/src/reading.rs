//! Reading from files and devices without surprises.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{Advice, fadvise},
    io::{Errno, ReadWriteFlags, preadv2},
};
use zumastor_core::StoreError;

use crate::{described::failed, direct::Direct};

/// Fills `buf` from a file that must reach that far. Files are read, never mapped: one that somebody cuts short gives
/// an error instead of a signal.
pub(crate) fn read_exact(file: &File, path: &Path, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
    read_uncached(file, buf, offset).map_err(|error| reading(error, path, offset, buf.len()))
}

/// As [`read_exact`], from the disk, whatever the page cache has of it. Where the file system knows no reading past the page cache,
/// or has to go through it (btrfs, for what it keeps compressed), the kernel is asked to forget these bytes before, and after: it
/// keeps folios that reach beyond them.
pub(crate) fn read_stored(file: &File, path: &Path, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
    // Opened for each read, which is nothing beside it: a snapshot in layers may have thousands of files. That it could not be
    // opened says nothing of what is stored: too many may be open.
    if let Ok(direct) = Direct::file(file) {
        match direct.read_exact_at(offset, buf) {
            Err(error) if is_refusal(&error) => {}
            read => return read.map_err(|error| reading(error, path, offset, buf.len())),
        }
    }
    let length = NonZeroU64::new(buf.len() as u64);
    let forget = || fadvise(file, offset, length, Advice::DontNeed);
    let _ = forget();
    let read = read_exact(file, path, offset, buf);
    let _ = forget();
    read
}

/// Whether this is what file systems say of what they cannot do.
fn is_refusal(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| [Errno::INVAL, Errno::OPNOTSUPP].contains(&errno))
}

/// Says what a read of `length` bytes failed of.
pub(crate) fn reading(error: io::Error, path: &Path, offset: u64, length: usize) -> StoreError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        let what = format!("it ends before byte {}: it was cut short", offset + length as u64);
        return StoreError::Damaged { path: path.to_owned(), what };
    }
    failed(&format!("reading from byte {offset} of"), path)(error)
}

/// Reads; much at once without leaving it in the page cache, where the kernel can (`RWF_DONTCACHE`, Linux 6.14): what is
/// there already is used and stays.
fn read_uncached(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    static REFUSED: AtomicBool = AtomicBool::new(false);
    while buf.len() >= MUCH && !REFUSED.load(Ordering::Relaxed) {
        match preadv2(file, &mut [IoSliceMut::new(buf)], offset, DONTCACHE) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                buf = &mut buf[read..];
            }
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => REFUSED.store(true, Ordering::Relaxed),
            Err(error) => return Err(error.into()),
        }
    }
    file.read_exact_at(buf, offset)
}

/// From include/uapi/linux/fs.h.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// Bytes from which on the cache is left alone.
const MUCH: usize = 128 << 10;

pub(crate) fn check_bounds(offset: u64, length: u64, size: u64) -> Result<(), StoreError> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        end => Err(StoreError::OutOfBounds { range: offset..end.unwrap_or(u64::MAX), size }),
    }
}
