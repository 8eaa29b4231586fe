//! The file that keeps a snapshot's leaf hashes.
//!
//! ```text
//! offset 0      header, 4,096 bytes, integers little-endian
//!                 0   8  magic "ZUMALEAF"
//!                 8   4  version, 1
//!                12   4  1 when sealed: root, nodes and leaves are complete
//!                16   8  size of the volume in bytes
//!                24  32  root digest, when sealed
//!                56  32  BLAKE3 of bytes 0..56
//! offset 4096   one node hash per segment, padded to a multiple of 4,096 bytes
//! then          32,768 bytes per segment: its 1,024 leaf hashes
//! ```
//! A hash of 32 zero bytes stands for zeros of that length, so an empty region costs nothing: it is a hole. Hashes are
//! read and written a segment at a time with `pread` and `pwrite`, not mapped: a segment is 32 KiB, which is as large
//! as a read should be, and a file that someone truncates gives an error instead of a signal.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use super::{Digest, Hash};
use crate::{
    Changes, Extent, ExtentKind, LEAVES_PER_SEGMENT, LeafIndex, SEGMENT, SegmentIndex, SnapshotReader,
    StoreError, files, is_zero,
};

/// The leaf hashes of one snapshot, in a file. Calls for different segments may run on different threads.
#[derive(Debug)]
pub struct LeafTree {
    file: File,
    path: PathBuf,
    size: u64,
    sealed: Option<Digest>,
}

/// The leaf hashes of one segment of a volume, by position within the segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentLeaves {
    hashes: Vec<Hash>,
}

impl LeafTree {
    /// Creates the tree of a volume of zeros. An existing file is replaced.
    pub fn create(path: &Path, size: u64) -> Result<Self, StoreError> {
        let _ = std::fs::remove_file(path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let tree =
            Self { file: file.map_err(Self::failed(path))?, path: path.to_owned(), size, sealed: None };
        tree.write_header()?;
        Ok(tree)
    }

    /// A tree that lives in memory only, of a volume of zeros.
    pub fn anonymous(size: u64) -> Result<Self, StoreError> {
        let path = PathBuf::from("(leaf tree in memory)");
        let fd = rustix::fs::memfd_create("zumastor-leaves", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|e| Self::failed(&path)(e.into()))?;
        let tree = Self { file: File::from(fd), path, size, sealed: None };
        tree.write_header()?;
        Ok(tree)
    }

    /// Opens a tree, sealed or not.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the header is not one of ours. The tree can be computed again from the snapshot.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(Self::failed(path))?;
        let damaged = |what: &str| StoreError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).map_err(|_| damaged("too short for a leaf tree"))?;
        if &header[..8] != MAGIC {
            return Err(damaged("not a leaf tree"));
        }
        if header[8..12] != VERSION.to_le_bytes() {
            return Err(damaged("a leaf tree of a version this program does not know"));
        }
        if blake3::hash(&header[..56]).as_bytes() != &header[56..88] {
            return Err(damaged("the header of the leaf tree is damaged"));
        }
        let size = u64::from_le_bytes(header[16..24].try_into().expect("8 bytes"));
        let sealed = (header[12] == 1).then(|| Digest(header[24..56].try_into().expect("32 bytes")));
        let tree = Self { file, path: path.to_owned(), size, sealed };
        let length = tree.file.metadata().map_err(Self::failed(path))?.len();
        if length != tree.file_length() { Err(damaged("the leaf tree is cut short")) } else { Ok(tree) }
    }

    /// A copy at `path`, not sealed, for a volume of `size` bytes: a larger one is zero behind the old end, a smaller
    /// one is cut. Shares blocks where the file system can. [`rehash_end`](Self::rehash_end) then
    /// hashes the leaf that the old or new end cuts.
    pub fn copy(&self, path: &Path, size: u64) -> Result<Self, StoreError> {
        let copy = Self::create(path, size)?;
        self.copy_into(&copy)?;
        Ok(copy)
    }

    /// As [`copy`](Self::copy), in memory.
    pub fn copy_anonymous(&self, size: u64) -> Result<Self, StoreError> {
        let copy = Self::anonymous(size)?;
        self.copy_into(&copy)?;
        Ok(copy)
    }

    fn copy_into(&self, copy: &Self) -> Result<(), StoreError> {
        if copy.size == self.size {
            if !files::reflink(&self.file, &copy.file).map_err(Self::failed(&copy.path))? {
                files::copy_sparse(&self.file, &copy.file, 0..self.file_length())
                    .map_err(Self::failed(&copy.path))?;
            }
            return copy.write_header();
        }
        for index in 0..SegmentIndex::count(self.size.min(copy.size)) {
            let segment = SegmentIndex(index);
            let mut leaves = self.segment(segment)?;
            if leaves.hashes.iter().all(|hash| hash.0 == ZERO) {
                continue;
            }
            let count = segment.leaves(copy.size);
            leaves.hashes.resize((count.end - count.start) as usize, Hash(ZERO));
            copy.set_segment(segment, &leaves)?;
        }
        Ok(())
    }

    /// Size of the volume in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest, if the tree is complete.
    pub fn digest(&self) -> Option<Digest> {
        self.sealed
    }

    /// The leaf hashes of a segment.
    pub fn segment(&self, segment: SegmentIndex) -> Result<SegmentLeaves, StoreError> {
        let leaves = segment.leaves(self.size);
        let mut bytes = vec![0; (leaves.end - leaves.start) as usize * 32];
        self.read(&mut bytes, self.leaves_at(segment))?;
        let hashes = bytes.chunks_exact(32).map(|hash| Hash(hash.try_into().expect("32 bytes"))).collect();
        Ok(SegmentLeaves { hashes })
    }

    /// The node over a segment's leaves.
    pub fn node(&self, segment: SegmentIndex) -> Result<Hash, StoreError> {
        let mut hash = [0; 32];
        self.read(&mut hash, HEADER as u64 + segment.0 * 32)?;
        Ok(self.node_of(segment, Hash(hash)))
    }

    /// The nodes of all segments, left to right: 32 bytes per 64 MiB of volume.
    pub fn nodes(&self) -> Result<Vec<Hash>, StoreError> {
        let count = SegmentIndex::count(self.size);
        let mut bytes = vec![0; count as usize * 32];
        self.read(&mut bytes, HEADER as u64)?;
        let hash = |chunk: &[u8]| Hash(chunk.try_into().expect("32 bytes"));
        Ok((0..).zip(bytes.chunks_exact(32)).map(|(i, h)| self.node_of(SegmentIndex(i), hash(h))).collect())
    }

    /// Sets the leaf hashes of a segment, and its node.
    ///
    /// # Panics
    /// When the number of hashes is not the segment's number of leaves.
    pub fn set_segment(&self, segment: SegmentIndex, leaves: &SegmentLeaves) -> Result<(), StoreError> {
        assert!(self.sealed.is_none(), "{} is sealed", self.path.display());
        let count = segment.leaves(self.size);
        assert_eq!(leaves.hashes.len() as u64, count.end - count.start, "leaves of segment {segment:?}");
        let zero = leaves.hashes.iter().all(|hash| hash.0 == ZERO);
        let bytes: Vec<u8> = leaves.hashes.iter().flat_map(|hash| hash.0).collect();
        let failed = || Self::failed(&self.path);
        let node = if zero { Hash(ZERO) } else { leaves.node(segment, self.size) };
        self.file.write_all_at(&bytes, self.leaves_at(segment)).map_err(failed())?;
        self.file.write_all_at(&node.0, HEADER as u64 + segment.0 * 32).map_err(failed())
    }

    /// Makes every node agree with its leaves again, where a power cut came between the two.
    pub fn mend(&self) -> Result<(), StoreError> {
        for segment in (0..SegmentIndex::count(self.size)).map(SegmentIndex) {
            let leaves = self.segment(segment)?;
            if self.node(segment)? != leaves.node(segment, self.size) {
                self.set_segment(segment, &leaves)?;
            }
        }
        Ok(())
    }

    /// The root over what the tree holds now.
    pub fn root(&self) -> Result<Digest, StoreError> {
        Ok(Digest::from_nodes(self.size, self.nodes()?))
    }

    /// Completes the tree: computes the root and makes all of it durable.
    pub fn seal(mut self) -> Result<Self, StoreError> {
        let root = self.root()?;
        self.sync()?;
        self.sealed = Some(root);
        self.write_header()?;
        self.sync()?;
        Ok(self)
    }

    /// Makes what was set durable.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(Self::failed(&self.path))
    }

    /// Hashes the leaves that `changes` touch, as `reader` has them now. The extents must lie within the volume.
    pub fn update(&self, changes: &Changes, reader: &dyn SnapshotReader) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        let mut current: Option<(SegmentIndex, SegmentLeaves)> = None;
        let mut next = 0;
        for extent in changes {
            let first = LeafIndex::containing(extent.range.start).0.max(next);
            let end = LeafIndex::count(extent.range.end);
            for leaf in (first..end).map(LeafIndex) {
                let segment = leaf.segment();
                if current.as_ref().is_none_or(|(index, _)| *index != segment) {
                    self.put(current.take())?;
                    current = Some((segment, self.segment(segment)?));
                }
                let (_, leaves) = current.as_mut().expect("just set");
                let range = leaf.range(self.size);
                let position = (leaf.0 - segment.first_leaf()) as usize;
                let all_zero = extent.kind == ExtentKind::Zero
                    && extent.range.start <= range.start
                    && range.end <= extent.range.end;
                let hash = if all_zero {
                    None
                } else {
                    buffer.resize((range.end - range.start) as usize, 0);
                    reader.read_at(range.start, &mut buffer)?;
                    (!is_zero(&buffer)).then(|| Hash::of_leaf(&buffer))
                };
                leaves.set(position, hash);
            }
            next = next.max(end);
        }
        self.put(current)
    }

    /// Hashes the leaf that a change of size from `old_size` cut or lengthened, if there is one: its hash differs even
    /// where nothing was written. To be called after a [`copy`](Self::copy) to another size.
    pub fn rehash_end(&self, old_size: u64, reader: &dyn SnapshotReader) -> Result<(), StoreError> {
        let cut = LeafIndex::containing(old_size.min(self.size)).range(self.size);
        if old_size == self.size || cut.is_empty() {
            return Ok(());
        }
        self.update(&[Extent::data(cut)].into_iter().collect(), reader)
    }

    fn put(&self, current: Option<(SegmentIndex, SegmentLeaves)>) -> Result<(), StoreError> {
        current.map_or(Ok(()), |(segment, leaves)| self.set_segment(segment, &leaves))
    }

    fn node_of(&self, segment: SegmentIndex, stored: Hash) -> Hash {
        if stored.0 == ZERO { SegmentLeaves::zero_node(segment, self.size) } else { stored }
    }

    fn leaves_at(&self, segment: SegmentIndex) -> u64 {
        leaves_region(self.size) + segment.0 * LEAVES_PER_SEGMENT * 32
    }

    fn file_length(&self) -> u64 {
        leaves_region(self.size) + LeafIndex::count(self.size) * 32
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), StoreError> {
        self.file.read_exact_at(bytes, offset).map_err(Self::failed(&self.path))
    }

    fn write_header(&self) -> Result<(), StoreError> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&self.size.to_le_bytes());
        if let Some(root) = self.sealed {
            header[12] = 1;
            header[24..56].copy_from_slice(&root.0);
        }
        let check = blake3::hash(&header[..56]);
        header[56..88].copy_from_slice(check.as_bytes());
        self.file.set_len(self.file_length()).map_err(Self::failed(&self.path))?;
        self.file.write_all_at(&header, 0).map_err(Self::failed(&self.path))
    }

    fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        StoreError::io(format!("leaf tree {}", path.display()))
    }
}

impl SegmentLeaves {
    /// The leaves of a segment of zeros in a volume of `size` bytes.
    pub fn zeros(segment: SegmentIndex, size: u64) -> Self {
        let leaves = segment.leaves(size);
        Self { hashes: vec![Hash(ZERO); (leaves.end - leaves.start) as usize] }
    }

    /// The node over a segment of zeros in a volume of `size` bytes.
    pub fn zero_node(segment: SegmentIndex, size: u64) -> Hash {
        static FULL: LazyLock<Hash> =
            LazyLock::new(|| SegmentLeaves::zeros(SegmentIndex(0), SEGMENT).node(SegmentIndex(0), SEGMENT));
        let range = segment.range(size);
        if range.end - range.start == SEGMENT {
            *FULL
        } else {
            Self::zeros(segment, size).node(segment, size)
        }
    }

    /// The hash of the leaf at `position` within the segment, in a volume of `size` bytes.
    pub fn hash(&self, segment: SegmentIndex, position: usize, size: u64) -> Hash {
        let hash = self.hashes[position];
        if hash.0 != ZERO {
            return hash;
        }
        let range = LeafIndex(segment.first_leaf() + position as u64).range(size);
        Hash::of_zero_leaf(range.end - range.start)
    }

    /// Whether the leaf is known to be zero.
    pub fn is_zero(&self, position: usize) -> bool {
        self.hashes[position].0 == ZERO
    }

    /// Sets a leaf's hash; none for zeros.
    pub fn set(&mut self, position: usize, hash: Option<Hash>) {
        self.hashes[position] = hash.unwrap_or(Hash(ZERO));
    }

    /// Number of leaves.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The hashes of all leaves, left to right.
    pub fn hashes(&self, segment: SegmentIndex, size: u64) -> Vec<Hash> {
        (0..self.hashes.len()).map(|position| self.hash(segment, position, size)).collect()
    }

    /// The node over these leaves, in a volume of `size` bytes.
    pub fn node(&self, segment: SegmentIndex, size: u64) -> Hash {
        Hash::of_node(&self.hashes(segment, size))
    }
}

const MAGIC: &[u8; 8] = b"ZUMALEAF";
const VERSION: u32 = 1;
const HEADER: usize = 4096;
const ZERO: [u8; 32] = [0; 32];

/// Where the leaf hashes begin.
fn leaves_region(size: u64) -> u64 {
    HEADER as u64 + (SegmentIndex::count(size) * 32).next_multiple_of(4096)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;
    use crate::digest::{Source, digest_of};

    #[derive(Debug)]
    struct Bytes(Vec<u8>);

    impl SnapshotReader for Bytes {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
            buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
            Ok(())
        }
    }

    impl Source for Bytes {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
            SnapshotReader::read_at(self, offset, buf)
        }
        fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
            Ok(vec![window])
        }
    }

    /// The digest as the module's table says it, and nothing else of this program.
    fn by_the_book(bytes: &[u8]) -> Digest {
        let mut level: Vec<[u8; 32]> =
            bytes.chunks(65_536).map(|leaf| *blake3::hash(leaf).as_bytes()).collect();
        loop {
            let up = |children: &[[u8; 32]]| *blake3::hash(&children.concat()).as_bytes();
            level = if level.is_empty() { vec![up(&[])] } else { level.chunks(1024).map(up).collect() };
            if level.len() == 1 {
                break;
            }
        }
        let mut hasher = blake3::Hasher::new_derive_key("zumastor volume digest v1");
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(&level[0]);
        Digest(*hasher.finalize().as_bytes())
    }

    fn pattern(size: usize, seed: u8) -> Vec<u8> {
        (0..size).map(|i| ((i / 4096 % 3) as u8).wrapping_mul(seed.wrapping_add((i % 251) as u8))).collect()
    }

    #[test]
    fn the_digest_is_the_one_of_the_table() {
        for size in [0, 1, 512, 65_536, 65_537, 3 * 65_536 - 1, (64 << 20) + 70_000] {
            let bytes = pattern(size, 3);
            let tree = LeafTree::anonymous(size as u64).unwrap();
            assert_eq!(
                digest_of(&Bytes(bytes.clone()), Some(&tree)).unwrap(),
                by_the_book(&bytes),
                "{size} bytes"
            );
            assert_eq!(tree.root().unwrap(), by_the_book(&bytes), "tree of {size} bytes");
            assert_eq!(
                LeafTree::anonymous(size as u64).unwrap().root().unwrap(),
                by_the_book(&vec![0; size])
            );
        }
    }

    #[test]
    fn a_sealed_tree_is_read_back_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leaves");
        let bytes = Bytes(pattern(300_000, 9));
        let tree = LeafTree::create(&path, 300_000).unwrap();
        digest_of(&bytes, Some(&tree)).unwrap();
        let digest = tree.seal().unwrap().digest().unwrap();
        assert_eq!(digest, by_the_book(&bytes.0));
        assert_eq!(LeafTree::open(&path).unwrap().digest(), Some(digest));
        for (offset, byte) in [(0, b'X'), (8, 9), (16, 1), (30, 1)] {
            let copy = dir.path().join("damaged");
            std::fs::copy(&path, &copy).unwrap();
            File::options().write(true).open(&copy).unwrap().write_all_at(&[byte], offset).unwrap();
            assert!(matches!(LeafTree::open(&copy), Err(StoreError::Damaged { .. })), "byte {offset}");
        }
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        assert!(matches!(LeafTree::open(&path), Err(StoreError::Damaged { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Updating by changes gives what computing from scratch gives, whatever the sizes and the changes.
        #[test]
        fn updates_equal_computing_anew(
            old_size in 0usize..400_000,
            new_size in 0usize..400_000,
            writes in proptest::collection::vec((0usize..400_000, 1usize..70_000, any::<u8>()), 0..6),
        ) {
            let old = pattern(old_size, 1);
            let mut new = old.clone();
            new.resize(new_size, 0);
            let mut touched = vec![false; new_size];
            for (start, length, value) in writes {
                let range = start.min(new_size)..(start + length).min(new_size);
                new[range.clone()].fill(value);
                touched[range].fill(true);
            }
            let changes: Changes = (0..new_size as u64)
                .filter(|i| touched[*i as usize])
                .map(|i| if new[i as usize] == 0 { Extent::zero(i..i + 1) } else { Extent::data(i..i + 1) })
                .collect();
            let tree = LeafTree::anonymous(old_size as u64).unwrap();
            digest_of(&Bytes(old), Some(&tree)).unwrap();
            let copy = tree.copy_anonymous(new_size as u64).unwrap();
            copy.rehash_end(old_size as u64, &Bytes(new.clone())).unwrap();
            copy.update(&changes, &Bytes(new.clone())).unwrap();
            prop_assert_eq!(copy.seal().unwrap().digest().unwrap(), by_the_book(&new));
        }
    }
}
