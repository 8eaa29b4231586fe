//! Making ranges of a thin device zero, and giving their space back.
//!
//! A discard is advice: what does not cover whole chunks is left as it is, and so is what the kernel finds in use at that
//! moment, without an error. So what must be zero is looked at afterwards, and written where it is not; reading what is
//! not mapped costs no I/O.

use std::{fs::File, io, ops::Range, os::fd::AsRawFd};

use zumastor_core::{PageBuf, is_zero};

/// What is made zero.
pub(crate) trait Zeroed {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn device(&self) -> &File;
}

/// Makes a range zero. The space of whole chunks is given back.
pub(crate) fn make_zero(target: &dyn Zeroed, range: Range<u64>, chunk: u64) -> io::Result<()> {
    let whole = range.start.next_multiple_of(chunk)..range.end / chunk * chunk;
    if !whole.is_empty() {
        discard(target.device(), &whole)?;
    }
    let mut buffer = PageBuf::new(PART as usize);
    let zeros = PageBuf::new(PART as usize);
    let mut start = range.start;
    while start < range.end {
        // Pieces that end at a multiple of their length, so that most are aligned.
        let end = (start / PART * PART + PART).min(range.end);
        let length = (end - start) as usize;
        target.read(start, &mut buffer[..length])?;
        // What is not mapped stays so: only the chunks that hold something are written.
        let mut at = start;
        while at < end {
            let next = (at / chunk * chunk + chunk).min(end);
            let piece = (at - start) as usize..(next - start) as usize;
            if !is_zero(&buffer[piece.clone()]) {
                target.write(at, &zeros[piece])?;
            }
            at = next;
        }
        start = end;
    }
    Ok(())
}

/// Bytes looked at together.
const PART: u64 = 256 << 10;

/// Tells the device that a range is not needed any more.
fn discard(device: &File, range: &Range<u64>) -> io::Result<()> {
    // From include/uapi/linux/fs.h: _IO(0x12, 119).
    const BLKDISCARD: libc::c_ulong = 0x1277;
    let arguments = [range.start, range.end - range.start];
    // SAFETY: the kernel reads two 64-bit numbers behind the pointer, which live as long as the call.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD as _, arguments.as_ptr()) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if done == 0 => Ok(()),
        // It is advice: a device that does not take it is written.
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// A file, which takes no discards.
    struct Plain(File);

    impl Zeroed for Plain {
        fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.0.read_exact_at(buf, offset)
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write_all_at(data, offset)
        }
        fn device(&self) -> &File {
            &self.0
        }
    }

    #[test]
    fn what_a_discard_leaves_is_written() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 3 << 20], 0).unwrap();
        let range = (100_001..(2 << 20) + 17u64).clone();
        make_zero(&Plain(file.try_clone().unwrap()), range.clone(), 64 << 10).unwrap();
        let mut found = vec![0; 3 << 20];
        file.read_exact_at(&mut found, 0).unwrap();
        for (at, byte) in found.into_iter().enumerate() {
            assert_eq!(byte, if range.contains(&(at as u64)) { 0 } else { 7 }, "at {at}");
        }
    }

    #[test]
    fn only_chunks_that_hold_something_are_written() {
        const CHUNK: u64 = 64 << 10;
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * CHUNK).unwrap();
        file.write_all_at(&[7; CHUNK as usize], 0).unwrap();
        make_zero(&Plain(file.try_clone().unwrap()), 512..8 * CHUNK, CHUNK).unwrap();
        let mapped = zumastor_core::files::data_ranges(&file, 0..8 * CHUNK).unwrap();
        assert!(mapped.iter().all(|range| range.end <= CHUNK), "{mapped:?}");
    }
}
