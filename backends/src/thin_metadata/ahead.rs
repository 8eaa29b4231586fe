//! Reading leaves of a tree before they are asked for, several at a time: where they lie apart, a device answers many questions in
//! the time of one.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
};

use zumastor_core::PageBuf;

use super::{Blocks, ThinMetadataError, cursor::check_block, format::BLOCK};

/// Leaves that are read at once, at most.
const AHEAD: usize = 64;

/// Threads that read them, beside the one that waits for them.
const READERS: usize = 7;

/// Blocks that are read for nothing rather than reading twice.
const GAP: u32 = 8;

/// Leaves that were read with one that was wanted.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    runs: Vec<Run>,
    readers: Option<Readers>,
}

/// Blocks one behind the other on the device.
#[derive(Debug)]
struct Run {
    blocks: Range<u64>,
    content: PageBuf,
}

impl Run {
    fn new(blocks: Range<u64>) -> Self {
        let content = PageBuf::new((blocks.end - blocks.start) as usize * BLOCK);
        Self { blocks, content }
    }

    fn read(mut self, blocks: &Blocks) -> Result<Self, ThinMetadataError> {
        blocks.read(self.blocks.start, &mut self.content)?;
        Ok(self)
    }
}

impl Ahead {
    /// A leaf, and with it, if it must be read, some of its `siblings` that are wanted too.
    pub(super) fn get(
        &mut self,
        blocks: &Arc<Blocks>,
        block: u64,
        siblings: &[u64],
        unwanted: &[u64],
    ) -> Result<&[u8], ThinMetadataError> {
        let run = match self.runs.iter().position(|run| run.blocks.contains(&block)) {
            Some(at) => &self.runs[at],
            None => {
                check_block(blocks, block)?;
                let wanted = runs(block, siblings, unwanted, blocks.count());
                let wanted = wanted.into_iter().map(Run::new).collect();
                // What is not wanted yet may be unreadable.
                self.runs = self.read(blocks, wanted).unwrap_or_default();
                let at = self.runs.iter().position(|run| run.blocks.contains(&block));
                if let Some(at) = at {
                    &self.runs[at]
                } else {
                    self.runs = vec![Run::new(block..block + 1).read(blocks)?];
                    &self.runs[0]
                }
            }
        };
        let at = (block - run.blocks.start) as usize * BLOCK;
        Ok(&run.content[at..at + BLOCK])
    }

    /// Gives what was read, in any order.
    fn read(&mut self, blocks: &Arc<Blocks>, runs: Vec<Run>) -> Result<Vec<Run>, ThinMetadataError> {
        if runs.len() == 1 {
            return runs.into_iter().map(|run| run.read(blocks)).collect();
        }
        self.readers.get_or_insert_with(|| Readers::new(blocks)).read(blocks, runs)
    }
}

/// Threads that read for one walk.
#[derive(Debug)]
struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do, or never again.
    news: Condvar,
    /// All is done.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Run>,
    /// Taken out of there, and not done.
    reading: usize,
    done: Vec<Run>,
    failed: Option<ThinMetadataError>,
    closed: bool,
}

impl Readers {
    fn new(blocks: &Arc<Blocks>) -> Self {
        let shared = Arc::<Shared>::default();
        let start = |_| {
            let (shared, blocks) = (shared.clone(), blocks.clone());
            std::thread::Builder::new().name("metadata".into()).spawn(move || shared.work(&blocks)).ok()
        };
        // Where there can be no more threads, the others do it.
        let threads = (0..READERS).map_while(start).collect();
        Self { shared, threads }
    }

    fn read(&self, blocks: &Blocks, runs: Vec<Run>) -> Result<Vec<Run>, ThinMetadataError> {
        let mut state = self.shared.state();
        state.waiting.extend(runs);
        self.shared.news.notify_all();
        state = self.shared.read_all(blocks, state);
        while state.reading > 0 {
            state = self.shared.done.wait(state).expect("no panic while locked");
        }
        let done = std::mem::take(&mut state.done);
        state.failed.take().map_or(Ok(done), Err)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.news.notify_all();
        // They have the device open: it is to be free afterwards.
        for thread in self.threads.drain(..) {
            thread.join().expect("reading does not panic");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    fn work(&self, blocks: &Blocks) {
        let mut state = self.state();
        while !state.closed {
            state = self.read_all(blocks, state);
            if !state.closed {
                state = self.news.wait(state).expect("no panic while locked");
            }
        }
    }

    /// Reads until nothing waits.
    fn read_all<'a>(&'a self, blocks: &Blocks, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while let Some(run) = state.waiting.pop_front() {
            state.reading += 1;
            drop(state);
            let read = run.read(blocks);
            state = self.state();
            state.reading -= 1;
            match read {
                Ok(run) => state.done.push(run),
                Err(error) => state.failed = Some(error),
            }
            if state.reading == 0 && state.waiting.is_empty() {
                self.done.notify_all();
            }
        }
        state
    }
}

/// The blocks that are read together with a leaf, which comes first: its `siblings`, as far as they are wanted and exist.
fn runs(block: u64, siblings: &[u64], unwanted: &[u64], end: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut room = AHEAD;
    for &first in std::iter::once(&block).chain(siblings) {
        let is_read = runs.iter().any(|run| run.contains(&first));
        if is_read || first == 0 || first >= end || (first != block && unwanted.contains(&first)) {
            continue;
        }
        let count = span(first, siblings, unwanted, room).min((end - first) as usize);
        runs.push(first..first + count as u64);
        room -= count;
        if room == 0 {
            break;
        }
    }
    runs
}

/// How many blocks from `block` on are worth reading at once, up to `most`.
fn span(block: u64, siblings: &[u64], unwanted: &[u64], most: usize) -> usize {
    let mut wanted = 1_u64;
    for sibling in siblings {
        let distance = sibling.wrapping_sub(block);
        if distance < AHEAD as u64 && !unwanted.contains(sibling) {
            wanted |= 1 << distance;
        }
    }
    let mut count = 1;
    while count < most {
        let gap = (wanted >> count).trailing_zeros();
        if gap > GAP || count + gap as usize >= most {
            break;
        }
        count += gap as usize + 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_together_is_read_together() {
        let span = |siblings: &[u64], unwanted: &[u64]| span(10, siblings, unwanted, AHEAD);
        assert_eq!(span(&[10], &[]), 1);
        assert_eq!(span(&[10, 11, 12], &[]), 3);
        assert_eq!(span(&[10, 13, 12], &[13]), 3);
        assert_eq!(span(&[10, 19], &[]), 10, "a gap of eight");
        assert_eq!(span(&[10, 20], &[]), 1, "a gap of nine");
        assert_eq!(span(&(10..200).collect::<Vec<_>>(), &[]), AHEAD);
        assert_eq!(span(&[10, 9, 5], &[]), 1);
    }

    #[test]
    fn what_lies_apart_is_read_at_once() {
        assert_eq!(runs(10, &[10, 50, 30, 31], &[], 1000), [10..11, 50..51, 30..32]);
        assert_eq!(
            runs(10, &[10, 50, 30], &[10, 50], 1000),
            [10..11, 30..31],
            "what is wanted is read in any case"
        );
        assert_eq!(runs(10, &[10, 0, 40, 2000], &[], 41), [10..11, 40..41], "what there is");
        let apart: Vec<_> = (1..200).map(|at| at * 20).collect();
        assert_eq!(runs(20, &apart, &[], 10_000).len(), AHEAD);
        let together: Vec<_> = (20..300).collect();
        assert_eq!(runs(20, &together, &[], 10_000).first(), Some(&(20..84)));
    }
}
