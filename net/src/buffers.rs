//! Memory for batches, used again and again: memory that is new costs more than what is done with it.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard},
};

use zumastor_core::PageBuf;

/// Keeps buffers that were given back.
#[derive(Debug)]
pub(crate) struct Buffers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    free: Vec<PageBuf>,
    /// What was wanted last; others are not kept.
    capacity: usize,
    most: usize,
}

impl Buffers {
    /// Keeps at most so many.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Kept { most, ..Kept::default() })))
    }

    /// From now on keeps at most as many as this says, which nobody else does meanwhile.
    pub(crate) fn keep(&self, most: impl FnOnce() -> usize) {
        let mut kept = self.kept();
        kept.most = most();
        let most = kept.most;
        kept.free.truncate(most);
    }

    /// A buffer that can hold so many bytes, and is empty.
    pub(crate) fn take(self: &Arc<Self>, capacity: usize) -> Buffer {
        if capacity == 0 {
            return Buffer { memory: None, length: 0, kept: Arc::clone(self) };
        }
        let free = {
            let mut kept = self.kept();
            if kept.capacity != capacity {
                kept.capacity = capacity;
                kept.free.clear();
            }
            kept.free.pop()
        };
        let memory = Some(free.unwrap_or_else(|| PageBuf::new(capacity)));
        Buffer { memory, length: 0, kept: Arc::clone(self) }
    }

    /// How many are kept now.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.kept().free.len()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("no panic while locked")
    }
}

/// Bytes that begin at a page in memory. Whoever drops it gives it back.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Nothing if it can hold nothing.
    memory: Option<PageBuf>,
    length: usize,
    kept: Arc<Buffers>,
}

impl Buffer {
    /// All that it can hold, whatever it holds now.
    pub(crate) fn all(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().unwrap_or_default()
    }

    /// How many bytes it can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.memory.as_deref().map_or(0, <[u8]>::len)
    }

    /// From now on it holds the first `length` bytes.
    ///
    /// # Panics
    /// When it cannot hold as many.
    pub(crate) fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity(), "a buffer of {} bytes cannot hold {length}", self.capacity());
        self.length = length;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.as_deref().unwrap_or_default()[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut kept = self.kept.kept();
        if kept.free.len() < kept.most && kept.capacity == memory.len() {
            kept.free.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_is_said() {
        let buffers = Buffers::new(2);
        let taken: Vec<_> = (0..3).map(|_| buffers.take(4096)).collect();
        drop(taken);
        assert_eq!(buffers.free(), 2);
        let mut buffer = buffers.take(4096);
        assert_eq!((buffer.len(), buffer.capacity(), buffers.free()), (0, 4096, 1));
        buffer.all().fill(7);
        buffer.set_len(3);
        assert_eq!(*buffer, [7; 3]);
        // What can hold nothing takes nothing.
        let nothing = buffers.take(0);
        assert_eq!((nothing.len(), nothing.capacity(), buffers.free()), (0, 0, 1));
        drop(nothing);
        assert_eq!(buffers.free(), 1);
        // Of another size, it is not what is wanted, then and when it comes back.
        let other = buffers.take(64);
        assert_eq!((other.capacity(), buffers.free()), (64, 0));
        drop((buffer, other));
        assert_eq!(buffers.free(), 1);
        buffers.keep(|| 0);
        assert_eq!(buffers.free(), 0);
    }
}
