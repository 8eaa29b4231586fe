//! Memory for large reads and writes.

use std::ops::{Deref, DerefMut};

use crate::PAGE;

/// Bytes, zero at first, that begin at a page in memory: a store can read and write them past the page cache.
#[derive(Debug)]
pub struct PageBuf {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl PageBuf {
    /// A buffer of `length` bytes.
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + PAGE as usize];
        let start = memory.as_ptr().align_offset(PAGE as usize);
        Self { memory, start, length }
    }
}

impl Deref for PageBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for PageBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page() {
        for length in [0, 1, 4096, 100_000] {
            let mut buffer = PageBuf::new(length);
            assert_eq!((buffer.as_ptr().align_offset(PAGE as usize), buffer.len()), (0, length));
            buffer.fill(7);
        }
    }
}
