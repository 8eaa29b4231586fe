//! Durable and sparse files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    thread,
};

use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::Errno,
};

use crate::{PAGE, steps};

/// Makes the entries of a directory durable: what was created, renamed or removed in it.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes files and directories durable, in no order: what a file system does for one of them serves the others too, where one
/// after the other each would wait for a write to its journal. Gives what came of each.
pub fn sync_together(files: &[&File]) -> Vec<io::Result<()>> {
    let Some((own, others)) = files.split_first() else { return Vec::new() };
    thread::scope(|scope| {
        let begun: Vec<_> = others
            .iter()
            .map(|file| (file, thread::Builder::new().spawn_scoped(scope, || file.sync_all())))
            .collect();
        let synced = own.sync_all();
        // Without a thread, it is done here.
        let ended = begun.into_iter().map(|(file, thread)| match thread {
            Ok(thread) => thread.join().expect("syncing does not panic"),
            Err(_) => file.sync_all(),
        });
        [synced].into_iter().chain(ended).collect()
    })
}

/// Replaces the content of `path` in one durable step: after a crash the file holds the old bytes or the new.
/// A file that did not exist gets `mode`.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let temporary = dir.join(format!(".{}.new", name.to_string_lossy()));
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    if let Ok(existing) = fs::metadata(path) {
        file.set_permissions(existing.permissions())?;
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    steps::pass("file: before rename");
    fs::rename(&temporary, path)?;
    steps::pass("file: after rename");
    sync_dir(dir)
}

/// Makes `to`, a new and empty file, share all of `from`'s blocks (`FICLONE`). False where the file system cannot.
pub fn reflink(from: &File, to: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::XDEV | Errno::NOTTY | Errno::NOSYS | Errno::TXTBSY) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes a range of one file share the blocks of the other's; copies what cannot be shared. Both are on one file system.
pub fn share_range(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let (mut read, mut write) = (range.start, range.start);
    while read < range.end {
        let left = usize::try_from(range.end - read).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The ranges of a file within `window` that hold data; everything else reads as zeros. The seek position of the file
/// is not preserved.
pub fn data_ranges(file: &File, window: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut position = window.start;
    while position < window.end {
        let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(start) if start < window.end => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => position,
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(window.end),
            Err(Errno::INVAL) => window.end,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        ranges.push(start..end);
        position = end;
    }
    Ok(ranges)
}

/// Makes a range of a regular file zero, giving its blocks back where the file system can; the size stays. What reaches to the
/// end of the file gives its last block back too.
pub fn punch_hole(file: &File, range: Range<u64>) -> io::Result<()> {
    let size = file.metadata()?.len();
    let Range { start, end } = range.start..range.end.min(size);
    if start >= end {
        return Ok(());
    }
    // Only whole blocks are given back. No further than that: ext4 refuses what reaches beyond its largest file, which ends with one.
    let punched = if end == size { end.next_multiple_of(PAGE) } else { end };
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, start, punched - start) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(file, start..end),
        Err(error) => Err(error.into()),
    }
}

/// Copies the data of `from` within `window` to the same place in `to`, leaving holes where there is none. `to` must
/// read as zeros there.
pub fn copy_sparse(from: &File, to: &File, window: Range<u64>) -> io::Result<()> {
    for range in data_ranges(from, window)? {
        copy_range(from, to, range)?;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let (mut read, mut write) = (range.start, range.start);
    while read < range.end {
        let length = usize::try_from((range.end - read).min(1 << 30)).expect("fits");
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return copy_range_by_hand(from, to, read..range.end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_range_by_hand(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut position = range.start;
    while position < range.end {
        let length = (range.end - position).min(buffer.len() as u64) as usize;
        from.read_exact_at(&mut buffer[..length], position)?;
        to.write_all_at(&buffer[..length], position)?;
        position += length as u64;
    }
    Ok(())
}

fn write_zeros(file: &File, range: Range<u64>) -> io::Result<()> {
    let zeros = vec![0; (range.end - range.start).min(1 << 20) as usize];
    let mut position = range.start;
    while position < range.end {
        let length = (range.end - position).min(zeros.len() as u64) as usize;
        file.write_all_at(&zeros[..length], position)?;
        position += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_writes_replace_and_keep_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomically(&path, b"one", 0o600).unwrap();
        write_atomically(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_that_cannot_be_synced_is_told_of() {
        let (good, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (_reader, writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(writer));
        let synced = |files: &[&File]| {
            let kinds = sync_together(files).into_iter().map(|synced| synced.map_err(|error| error.kind()));
            kinds.collect::<Vec<_>>()
        };
        assert_eq!(synced(&[]), []);
        assert_eq!(synced(&[&good, &other]), [Ok(()); 2]);
        let failed = Err(io::ErrorKind::InvalidInput);
        assert_eq!(synced(&[&pipe, &good, &other]), [failed, Ok(()), Ok(())]);
        assert_eq!(synced(&[&good, &pipe]), [Ok(()), failed]);
    }

    #[test]
    fn copies_keep_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for file in [&from, &to] {
            file.set_len(64 << 20).unwrap();
        }
        from.write_all_at(&[7; 100_000], 10 << 20).unwrap();
        copy_sparse(&from, &to, 0..64 << 20).unwrap();
        let ranges = data_ranges(&to, 0..64 << 20).unwrap();
        let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        assert!((100_000..1 << 20).contains(&bytes), "{ranges:?}");
        let mut read = vec![0; 100_000];
        to.read_exact_at(&mut read, 10 << 20).unwrap();
        assert!(read.iter().all(|b| *b == 7));
        punch_hole(&to, 0..64 << 20).unwrap();
        assert!(data_ranges(&to, 0..64 << 20).unwrap().is_empty());
    }

    #[test]
    fn a_hole_to_the_end_gives_the_last_block_back() {
        let file = tempfile::tempfile().unwrap();
        let size = (256 << 10) + 1;
        file.write_all_at(&vec![7; size], 0).unwrap();
        let size = size as u64;
        punch_hole(&file, size..size + 5).unwrap();
        punch_hole(&file, 128 << 10..1 << 30).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        let data = data_ranges(&file, 0..size).unwrap();
        assert_eq!((data.len(), data[0].clone()), (1, 0..128 << 10));
    }
}
