//! The volume that the benchmark moves: holes, text, and what does not compress; the same on every machine.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng, seq::index};

/// Bytes of a chunk: what is all of one kind, and what changes as a whole.
pub const CHUNK: u64 = 64 << 10;

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: a hole.
    Hole,
    /// Words.
    Text,
    /// What does not compress.
    Random,
}

impl Kind {
    /// What the chunk at this position holds: a quarter holes, half text, a quarter random.
    pub fn of(chunk: u64) -> Self {
        match seeded(chunk, u64::MAX).random_range(0..4) {
            0 => Self::Hole,
            1 | 2 => Self::Text,
            _ => Self::Random,
        }
    }

    /// Writes the content that a chunk of this kind has after `generation` changes.
    fn fill(self, words: &Words, chunk: u64, generation: u64, buffer: &mut [u8]) {
        let mut random = seeded(chunk, generation);
        match self {
            Self::Hole => buffer.fill(0),
            Self::Text => words.fill(&mut random, buffer),
            Self::Random => random.fill_bytes(buffer),
        }
    }
}

/// Makes the image, and gives the bytes of it that are not holes.
pub fn create(path: &Path, size: u64) -> io::Result<u64> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let words = Words::new();
    let (next, written) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || -> io::Result<()> {
        let mut buffer = vec![0; CHUNK as usize];
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            let kind = Kind::of(chunk);
            if chunk * CHUNK >= size {
                return Ok(());
            }
            if kind != Kind::Hole {
                kind.fill(&words, chunk, 0, &mut buffer);
                let length = (size - chunk * CHUNK).min(CHUNK);
                file.write_all_at(&buffer[..length as usize], chunk * CHUNK)?;
                written.fetch_add(length, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("writing does not panic"))
    })?;
    file.sync_all()?;
    Ok(written.into_inner())
}

/// Rewrites one in a hundred of all chunks, none of them a hole, with new content of the same kind; others each
/// `generation`. Gives the bytes that were written.
pub fn change(path: &Path, size: u64, generation: u64) -> io::Result<u64> {
    let file = File::options().write(true).open(path)?;
    let words = Words::new();
    let full: Vec<u64> = (0..size / CHUNK).filter(|chunk| Kind::of(*chunk) != Kind::Hole).collect();
    let count = ((size / CHUNK / 100).max(1) as usize).min(full.len());
    let mut buffer = vec![0; CHUNK as usize];
    for at in index::sample(&mut seeded(u64::MAX, generation), full.len(), count) {
        let chunk = full[at];
        Kind::of(chunk).fill(&words, chunk, generation, &mut buffer);
        file.write_all_at(&buffer, chunk * CHUNK)?;
    }
    file.sync_all()?;
    Ok(count as u64 * CHUNK)
}

/// Makes an image most of which is a hole: of every [`SPARSE`] chunks one is full, text and what does not compress in turn. Another
/// one for each `seed`.
pub fn create_sparse(path: &Path, size: u64, seed: u64) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let words = Words::new();
    for chunk in (0..size / CHUNK).step_by(SPARSE) {
        write_sparse(&file, &words, chunk, seed)?;
    }
    file.sync_all()
}

/// Rewrites one of the full chunks of such an image, another one each `generation`, which is from 1 on. Gives the bytes that were
/// written.
pub fn change_sparse(path: &Path, size: u64, seed: u64, generation: u64) -> io::Result<u64> {
    let file = File::options().write(true).open(path)?;
    let full = size / CHUNK / SPARSE as u64;
    let chunk = seeded(seed, generation).random_range(0..full) * SPARSE as u64;
    write_sparse(&file, &Words::new(), chunk, seed ^ generation.rotate_left(32))?;
    file.sync_all()?;
    Ok(CHUNK)
}

/// What [`change_units`] has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changed {
    /// Bytes that were written.
    pub bytes: u64,
    /// Chunks that have another content.
    pub chunks: u64,
    /// Bytes that zstd, level 1, makes of what was written, 1 MiB at a time.
    pub compressed: u64,
}

/// Rewrites one in `one_in` units of so many bytes of an image, wherever they are, text and what does not compress in turn; others each
/// `generation`.
pub fn change_units(path: &Path, size: u64, unit: u64, one_in: u64, generation: u64) -> io::Result<Changed> {
    let file = File::options().write(true).open(path)?;
    let words = Words::new();
    // Not what the image began with.
    let generation = generation | 1 << 32;
    let (units, mut random) = ((size / unit) as usize, seeded(u64::MAX - 1, generation));
    let mut places = index::sample(&mut random, units, (units / one_in as usize).max(1)).into_vec();
    places.sort_unstable();
    let mut written = Vec::with_capacity(places.len() * unit as usize);
    for (number, place) in places.iter().enumerate() {
        let (kind, at) = (if number % 2 == 0 { Kind::Text } else { Kind::Random }, written.len());
        written.resize(at + unit as usize, 0);
        kind.fill(&words, *place as u64, generation, &mut written[at..]);
        file.write_all_at(&written[at..], *place as u64 * unit)?;
    }
    file.sync_all()?;
    let mut compressed = 0;
    for piece in written.chunks(1 << 20) {
        compressed += zstd::bulk::compress(piece, 1)?.len() as u64;
    }
    places.dedup_by_key(|place| *place as u64 * unit / CHUNK);
    Ok(Changed { bytes: written.len() as u64, chunks: places.len() as u64, compressed })
}

fn write_sparse(file: &File, words: &Words, chunk: u64, generation: u64) -> io::Result<()> {
    let kind = if (chunk / SPARSE as u64).is_multiple_of(2) { Kind::Text } else { Kind::Random };
    let mut buffer = vec![0; CHUNK as usize];
    kind.fill(words, chunk, generation, &mut buffer);
    file.write_all_at(&buffer, chunk * CHUNK)
}

/// Of so many chunks of an image that is mostly a hole, one is full.
pub const SPARSE: usize = 64;

fn seeded(chunk: u64, generation: u64) -> SmallRng {
    SmallRng::seed_from_u64(SEED ^ chunk.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ generation.rotate_left(40))
}

/// Any number would do.
const SEED: u64 = 0x5A75_6D61;

/// What text is made of: phrases of a few words, the first ones the most often.
struct Words(Vec<Vec<u8>>);

impl Words {
    fn new() -> Self {
        let mut random = SmallRng::seed_from_u64(SEED);
        let vocabulary: Vec<Vec<u8>> = (1..=VOCABULARY).map(|rank| word(rank, &mut random)).collect();
        let phrase = |_| {
            let words = random.random_range(1..=LONGEST_PHRASE);
            (0..words).flat_map(|_| vocabulary[skewed(&mut random, VOCABULARY)].iter().copied()).collect()
        };
        Self((0..PHRASES).map(phrase).collect())
    }

    /// Phrases one after the other, with something unique or a line's end here and there.
    fn fill(&self, random: &mut SmallRng, buffer: &mut [u8]) {
        let mut at = 0;
        while at < buffer.len() {
            let number;
            let piece: &[u8] = match random.next_u32() {
                dice if dice % 16 == 0 => b"\n",
                dice if dice % 16 < UNIQUE => {
                    number = random.random::<[u8; 12]>().map(|byte| SYMBOLS[byte as usize % SYMBOLS.len()]);
                    &number
                }
                _ => &self.0[skewed(random, PHRASES)],
            };
            let length = piece.len().min(buffer.len() - at);
            buffer[at..at + length].copy_from_slice(&piece[..length]);
            at += length;
        }
    }
}

/// A word, the longer the rarer, and a space.
fn word(rank: usize, random: &mut SmallRng) -> Vec<u8> {
    let length = 2 + rank.ilog2() / 2 + random.random_range(0..4);
    let letter = |_| {
        let square = random.random_range(0..LETTERS.len() * LETTERS.len());
        LETTERS[square.isqrt()]
    };
    (0..length).map(letter).chain([b' ']).collect()
}

/// A number below `end`; small ones come more often.
fn skewed(random: &mut SmallRng, end: usize) -> usize {
    let unit = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    (unit * unit * unit * end as f64) as usize
}

const VOCABULARY: usize = 3000;

const PHRASES: usize = 1500;

/// Of sixteen pieces so many less one are unique, as names, numbers and keys are.
const UNIQUE: u32 = 8;

/// What they are made of.
const SYMBOLS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";

/// Words of the longest phrase.
const LONGEST_PHRASE: usize = 12;

/// The later ones come more often.
const LETTERS: &[u8; 26] = b"zqxjkvbywgpfmucdlhrsniotae";

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(kind: Kind, level: i32) -> f64 {
        let words = Words::new();
        let mut buffer = vec![0; CHUNK as usize];
        let mut compressed = 0;
        for chunk in 0..64 {
            kind.fill(&words, chunk, 0, &mut buffer);
            compressed += zstd::bulk::compress(&buffer, level).unwrap().len();
        }
        (64 * CHUNK) as f64 / compressed as f64
    }

    #[test]
    fn text_compresses_as_text_does() {
        let (fast, usual) = (ratio(Kind::Text, -1), ratio(Kind::Text, 1));
        println!("zstd level -1: {fast:.2}, level 1: {usual:.2}");
        assert!((2.2..2.7).contains(&usual), "{usual:.2}");
        assert!((1.7..2.7).contains(&fast), "{fast:.2}");
        assert!(ratio(Kind::Random, 1) < 1.001);
    }

    #[test]
    fn images_with_holes_differ_and_change_by_a_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let [one, same, other] = ["1", "2", "3"].map(|name| dir.path().join(name));
        let size = 16 << 20;
        for (path, seed) in [(&one, 1), (&same, 1), (&other, 2)] {
            create_sparse(path, size, seed).unwrap();
        }
        let read = |path| std::fs::read(path).unwrap();
        let full =
            read(&one).chunks(CHUNK as usize).filter(|chunk| chunk.iter().any(|byte| *byte != 0)).count();
        assert_eq!(full, 4);
        assert!(read(&one) == read(&same) && read(&one) != read(&other));
        let differ = |before: &[u8], after: &[u8]| {
            let pairs = before.chunks(CHUNK as usize).zip(after.chunks(CHUNK as usize));
            pairs.filter(|(before, after)| before != after).count()
        };
        for generation in 1..4 {
            let before = read(&one);
            assert_eq!(change_sparse(&one, size, 1, generation).unwrap(), CHUNK);
            assert_eq!(differ(&before, &read(&one)), 1);
        }
    }

    #[test]
    fn images_are_the_same_and_changes_are_new() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        let size = 32 << 20;
        let written = create(&one, size).unwrap();
        assert!((size * 7 / 10..size * 8 / 10).contains(&written), "{written}");
        create(&two, size).unwrap();
        assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
        for generation in 1..3 {
            let before = std::fs::read(&one).unwrap();
            assert_eq!(change(&one, size, generation).unwrap(), 5 * CHUNK);
            let after = std::fs::read(&one).unwrap();
            let differ = before
                .chunks(CHUNK as usize)
                .zip(after.chunks(CHUNK as usize))
                .filter(|(before, after)| before != after)
                .count();
            assert_eq!(differ, 5);
        }
    }
}
