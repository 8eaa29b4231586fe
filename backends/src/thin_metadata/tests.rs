//! Trees that share nodes, made by hand, and damaged ones.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    path::Path,
};

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::{
    DiffRun, Difference, NewPool, ThinMetadata, ThinMetadataError, drop_half_held,
    format::{BITMAP_ENTRIES, BLOCK, DETAILS, NODE_SALT, put},
    is_half_held, name_as_held,
    write::{node, seal, superblock},
};

/// Mappings of each device: virtual block → data block and time.
type Devices = BTreeMap<u32, BTreeMap<u64, (u64, u32)>>;

/// Nodes by what they hold: what is equal is one node, as it is when it was shared and never written since.
#[derive(Default)]
struct Image {
    blocks: Vec<Vec<u8>>,
    known: HashMap<Vec<(u64, Vec<u8>)>, u64>,
}

impl Image {
    /// Metadata of a pool with these devices; `held` tells whether they are only found below the root for readers.
    fn of(devices: &Devices, data_blocks: u64, held: bool) -> Self {
        let mut image = Self { blocks: vec![Vec::new()], ..Self::default() };
        let (mut roots, mut details) = (Vec::new(), Vec::new());
        for (device, mappings) in devices {
            let entries = mappings
                .iter()
                .map(|(key, (data, time))| (*key, (data << 24 | u64::from(*time)).to_le_bytes().to_vec()));
            let root = image.tree(entries.collect(), 8, 4);
            roots.push((u64::from(*device), root.to_le_bytes().to_vec()));
            let mut value = vec![0; DETAILS];
            put(&mut value, 0, &(mappings.len() as u64).to_le_bytes());
            put(&mut value, 8, &u64::from(*device + 1).to_le_bytes());
            put(&mut value, 16, &(*device + 2).to_le_bytes());
            put(&mut value, 20, &(*device + 3).to_le_bytes());
            details.push((u64::from(*device), value));
        }
        let roots = [image.tree(roots, 8, 2), image.tree(details, DETAILS, 2)];
        let space = [[data_blocks, 0, 0, 0], [0; 4]];
        if held {
            let empty = [image.tree(Vec::new(), 8, 2), image.tree(Vec::new(), DETAILS, 2)];
            let copy = image.blocks.len() as u64;
            image.blocks.push(superblock(copy, 0, 7, roots, [[0; 4]; 2], 128));
            image.blocks[0] = superblock(0, copy, 7, empty, space, 128);
        } else {
            image.blocks[0] = superblock(0, 0, 7, roots, space, 128);
        }
        image
    }

    /// A tree whose nodes have those keys in common that are equal but for their last bits.
    fn tree(&mut self, entries: Vec<(u64, Vec<u8>)>, size: usize, fan: u64) -> u64 {
        let mut leaf = true;
        let mut level = entries;
        let mut width = fan;
        loop {
            let mut groups: BTreeMap<u64, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
            for (key, value) in level {
                groups.entry(key / width).or_default().push((key, value));
            }
            if groups.len() <= 1 && width >= 256 {
                let root = groups.into_values().next().unwrap_or_default();
                return self.node(leaf || root.is_empty(), root, size);
            }
            let size = if leaf { size } else { 8 };
            level = groups
                .into_values()
                .map(|group| (group[0].0, self.node(leaf, group, size).to_le_bytes().to_vec()))
                .collect();
            leaf = false;
            width *= fan;
        }
    }

    fn node(&mut self, leaf: bool, entries: Vec<(u64, Vec<u8>)>, size: usize) -> u64 {
        let size = if leaf { size } else { 8 };
        // What is a leaf and what is not never has equal entries here but for this.
        let name = [vec![(u64::from(leaf), vec![size as u8])], entries.clone()].concat();
        let next = self.blocks.len() as u64;
        let block = *self.known.entry(name).or_insert(next);
        if block == next {
            self.blocks.push(node(next, leaf, &entries, size));
        }
        block
    }

    fn write(&self) -> NamedTempFile {
        // In memory where that can be: each walk reads it block by block.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let mut file = NamedTempFile::new_in(place).unwrap();
        file.write_all(&self.blocks.concat()).unwrap();
        file
    }
}

#[derive(Debug, Clone)]
enum Op {
    Write { device: u32, begin: u64, length: u64, step: u64 },
    Discard { device: u32, begin: u64, length: u64 },
    Snapshot { of: u32, to: u32 },
    Delete { device: u32 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let device = || 0..6_u32;
    let op = prop_oneof![
        4 => (device(), 0..600_u64, 1..40_u64, 1..9_u64)
            .prop_map(|(device, begin, length, step)| Op::Write { device, begin, length, step }),
        1 => (device(), 0..600_u64, 1..90_u64).prop_map(|(device, begin, length)| Op::Discard { device, begin, length }),
        3 => (device(), device()).prop_map(|(of, to)| Op::Snapshot { of, to }),
        1 => device().prop_map(|device| Op::Delete { device }),
    ];
    prop::collection::vec(op, 1..30)
}

/// What a pool would have after this.
fn play(ops: &[Op]) -> (Devices, u64) {
    let mut devices = Devices::from([(0, BTreeMap::new())]);
    let (mut data, mut time) = (0, 0);
    for op in ops {
        match *op {
            Op::Write { device, begin, length, step } => {
                for at in 0..length {
                    devices.entry(device).or_default().insert(begin + at * step, (data, time));
                    data += 1;
                }
            }
            Op::Discard { device, begin, length } => {
                let gone = begin..begin + length;
                devices.entry(device).or_default().retain(|block, _| !gone.contains(block));
            }
            Op::Snapshot { of, to } => {
                time += 1;
                let copy = devices.entry(of).or_default().clone();
                devices.insert(to, copy);
            }
            Op::Delete { device } => {
                devices.remove(&device);
            }
        }
    }
    (devices, data.max(1))
}

/// What the walk must find, block by block.
fn expected(
    left: &BTreeMap<u64, (u64, u32)>,
    right: &BTreeMap<u64, (u64, u32)>,
    blocks: u64,
) -> Vec<Option<Difference>> {
    let kind = |block| match (left.get(&block), right.get(&block)) {
        (Some(a), Some(b)) => (a.0 != b.0).then_some(Difference::Different),
        (Some(_), None) => Some(Difference::LeftOnly),
        (None, Some(_)) => Some(Difference::RightOnly),
        (None, None) => None,
    };
    (0..blocks).map(kind).collect()
}

fn spread(runs: &[DiffRun], blocks: u64) -> Vec<Option<Difference>> {
    let mut all = vec![None; blocks as usize];
    let mut before: Option<&DiffRun> = None;
    for run in runs {
        let follows = before.is_none_or(|before| {
            let end = before.begin + before.length;
            end < run.begin || end == run.begin && before.kind != run.kind
        });
        assert!(run.length > 0 && follows, "{before:?}, then {run:?}");
        all[run.begin as usize..(run.begin + run.length) as usize].fill(Some(run.kind));
        before = Some(run);
    }
    all
}

const BLOCKS: u64 = 1000;

fn check(metadata: &ThinMetadata, devices: &Devices) {
    let found: Vec<_> =
        metadata.devices().unwrap().iter().map(|found| (found.device, found.mapped_blocks)).collect();
    let wanted: Vec<_> = devices.iter().map(|(device, mappings)| (*device, mappings.len() as u64)).collect();
    assert_eq!(found, wanted);
    let windows = [0..u64::MAX, 100..101, 250..700, 512..512, 3..BLOCKS];
    let mut references: HashMap<u64, u64> = HashMap::new();
    for (left, mappings) in devices {
        for (data, _) in mappings.values() {
            *references.entry(*data).or_default() += 1;
        }
        for window in windows.clone() {
            let runs =
                metadata.mappings(*left, window.clone()).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
            let spread: Vec<_> = runs
                .iter()
                .flat_map(|run| (0..run.length).map(|at| (run.begin + at, run.data + at)))
                .collect();
            let wanted: Vec<_> =
                mappings.range(window.clone()).map(|(block, (data, _))| (*block, *data)).collect();
            assert_eq!(spread, wanted);
        }
        for (right, other) in devices {
            for window in windows.clone() {
                let runs =
                    metadata.diff(*left, *right, window.clone()).unwrap().collect::<Result<Vec<_>, _>>();
                let mut wanted = expected(mappings, other, BLOCKS);
                for (block, kind) in wanted.iter_mut().enumerate() {
                    *kind = kind.filter(|_| window.contains(&(block as u64)));
                }
                assert_eq!(spread_of(runs), wanted, "{left} and {right} in {window:?}");
            }
        }
    }
    for usage in metadata.usage().unwrap() {
        let mappings = &devices[&usage.device];
        let exclusive = mappings.values().filter(|(data, _)| references[data] == 1).count() as u64;
        assert_eq!(
            (usage.exclusive, usage.shared),
            (exclusive, mappings.len() as u64 - exclusive),
            "{usage:?}"
        );
    }
}

fn spread_of(runs: Result<Vec<DiffRun>, ThinMetadataError>) -> Vec<Option<Difference>> {
    spread(&runs.unwrap(), BLOCKS)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_is_found_as_it_was_made(ops in ops(), held in any::<bool>()) {
        let (devices, data) = play(&ops);
        let file = Image::of(&devices, data, held).write();
        let metadata = if held { ThinMetadata::open_held(file.path()) } else { ThinMetadata::open_current(file.path()) };
        check(&metadata.unwrap(), &devices);
    }

    /// Whatever is written into a block, reading ends, and with an error unless the block was not needed.
    #[test]
    fn damage_is_an_error(
        ops in ops(),
        block in any::<prop::sample::Index>(),
        hits in prop::collection::vec((prop_oneof![4..48_usize, 32..200_usize, 4..BLOCK], any::<u8>()), 1..5),
        sealed in any::<bool>(),
    ) {
        let (devices, data) = play(&ops);
        let mut image = Image::of(&devices, data, false);
        let block = block.index(image.blocks.len());
        let before = image.blocks[block].clone();
        for (at, value) in hits {
            image.blocks[block][at] = value;
        }
        prop_assume!(before != image.blocks[block]);
        if sealed {
            seal(&mut image.blocks[block], NODE_SALT);
        }
        let file = image.write();
        let all = read_all(file.path(), &devices);
        if !sealed {
            let error = all.expect_err("a wrong checksum was believed");
            prop_assert!(error.to_string().contains(&format!("block {block}:")), "block {}: {}", block, error);
        }
    }
}

/// Reads everything that can be read.
fn read_all(path: &Path, devices: &Devices) -> Result<(), ThinMetadataError> {
    let metadata = ThinMetadata::open_current(path)?;
    metadata.devices()?;
    for left in devices.keys() {
        metadata.mappings(*left, 0..u64::MAX)?.try_for_each(|run| run.map(drop))?;
        for right in devices.keys() {
            metadata.diff(*left, *right, 0..u64::MAX)?.try_for_each(|run| run.map(drop))?;
        }
    }
    metadata.usage()?;
    Ok(())
}

fn two() -> Devices {
    let base: BTreeMap<_, _> = (0..500).map(|block| (block, (block, 0))).collect();
    let mut changed = base.clone();
    changed.insert(123, (500, 1));
    Devices::from([(1, base), (2, changed)])
}

/// A damaged node that both sides have does not matter to what differs.
#[test]
fn what_is_shared_is_not_read() {
    let mut image = Image::of(&two(), 501, false);
    let leaf = |image: &Image, key: u64| {
        let name = image.known.iter().find(|(name, _)| name[0].0 == 1 && name[1].0 == key && name.len() == 5);
        *name.expect("there is such a leaf").1 as usize
    };
    let shared = leaf(&image, 400);
    image.blocks[shared][100] ^= 1;
    let file = image.write();
    let metadata = ThinMetadata::open_current(file.path()).unwrap();
    let runs: Vec<_> = metadata.diff(1, 2, 0..u64::MAX).unwrap().map(Result::unwrap).collect();
    assert_eq!(runs, [DiffRun { begin: 123, length: 1, kind: Difference::Different }]);
    let error = metadata.mappings(1, 0..u64::MAX).unwrap().find_map(Result::err).expect("it is damaged");
    assert!(error.to_string().contains(&format!("block {shared}:")), "{error}");
    let mut window = metadata.mappings(1, 0..399).unwrap();
    assert!(window.all(|run| run.is_ok()), "outside the window");
}

#[test]
fn trees_that_go_round_in_circles_end() {
    let mut image = Image::of(&two(), 501, false);
    let count = image.blocks.len();
    for block in 1..count {
        // Every node names itself.
        image.blocks[block] = node(block as u64, false, &[(0, (block as u64).to_le_bytes().to_vec())], 8);
    }
    let file = image.write();
    let error = ThinMetadata::open_current(file.path()).unwrap().devices().expect_err("no end");
    assert!(error.to_string().contains("no end"), "{error}");
}

#[test]
fn what_is_no_metadata_is_refused() {
    let mut file = NamedTempFile::new().unwrap();
    let refused =
        |file: &NamedTempFile| ThinMetadata::open_current(file.path()).expect_err("no metadata").to_string();
    assert!(refused(&file).contains("no blocks"));
    file.write_all(&vec![0; 2 * BLOCK]).unwrap();
    assert!(refused(&file).contains("magic"), "{}", refused(&file));
    let image = Image::of(&two(), 501, false);
    let file = image.write();
    let error = ThinMetadata::open_held(file.path()).expect_err("nothing is held");
    assert!(matches!(error, ThinMetadataError::NoHeldRoot { .. }));
    let metadata = ThinMetadata::open_current(file.path()).unwrap();
    assert!(matches!(metadata.mappings(7, 0..1), Err(ThinMetadataError::NoDevice { device: 7, .. })));
    assert_eq!(
        (metadata.data_block_size(), metadata.data_blocks(), metadata.transaction_id()),
        (65536, 501, 7)
    );
    // Data beyond the end of the pool.
    let file = Image::of(&two(), 400, false).write();
    let error = read_all(file.path(), &two()).expect_err("beyond the end");
    assert!(error.to_string().contains("data block"), "{error}");
}

/// A root that is named as held and not counted is taken out, and nothing else changes; one that is counted stays.
#[test]
fn only_a_root_that_is_not_counted_is_dropped() {
    let file = NamedTempFile::new().unwrap();
    let new = NewPool {
        device: 0,
        mapped: 1000,
        data_blocks: 2000,
        data_block_size: 128,
        metadata_blocks: 2 * BITMAP_ENTRIES,
    };
    file.as_file().set_len(new.metadata_blocks * BLOCK as u64).unwrap();
    new.write(file.path()).unwrap();
    let before = std::fs::read(file.path()).unwrap();
    let hold = |block: u64| name_as_held(file.path(), block);
    let used = ThinMetadata::open_current(file.path()).unwrap().superblock.details_root;
    for (held, half) in [(0, false), (used, false), (100, true), (BITMAP_ENTRIES + 5, true)] {
        hold(held);
        assert_eq!(is_half_held(file.path()).unwrap(), half, "{held}");
        assert_eq!(drop_half_held(file.path()).unwrap(), half, "{held}");
        let left = if half { 0 } else { held };
        assert_eq!(ThinMetadata::open_current(file.path()).unwrap().superblock.held_root, left);
        hold(0);
        assert!(std::fs::read(file.path()).unwrap() == before, "{held}");
    }
    hold(2 * BITMAP_ENTRIES + 5);
    let error = drop_half_held(file.path()).unwrap_err();
    assert!(matches!(error, ThinMetadataError::Damaged { .. }), "{error}");
}
