//! What each snapshot takes: in reflink mode by the blocks of its image, in layered mode by the leaves that it shows.

use std::{collections::HashMap, fs::File, ops::Range, rc::Rc};

use zumastor_core::{SnapshotNumber, SnapshotUsage, StoreError, UsageBySnapshot};

use super::{Mode, fiemap, inner::Inner, layout::failed, shares::Shares};

impl Inner {
    pub(super) fn usage_by_snapshot(&self) -> Result<UsageBySnapshot, StoreError> {
        match self.header.mode {
            Mode::Reflink => self.usage_by_image(),
            Mode::Layered => self.usage_by_layers(),
        }
    }

    /// By where on the disk the blocks of each image lie, and those of the head and of what is staged.
    fn usage_by_image(&self) -> Result<UsageBySnapshot, StoreError> {
        let numbers: Vec<SnapshotNumber> = self.state().snapshots.keys().copied().collect();
        let mut shares = Shares::default();
        let mut usages: Vec<SnapshotUsage> = Vec::with_capacity(numbers.len());
        // Of blocks without a certain address, the file system says no more than whether anybody shares them.
        let mut alone = Vec::new();
        for number in numbers {
            // What is deleted meanwhile takes nothing.
            let Ok(image) = self.image(number) else { continue };
            let blocks =
                fiemap::blocks(image.file()).map_err(failed("mapping", &self.layout.image(number)))?;
            let certain = shares.snapshot(usages.len() as u32, blocks.certain);
            usages.push(SnapshotUsage {
                number,
                referenced: certain + blocks.alone + blocks.shared,
                exclusive: 0,
            });
            alone.push(blocks.alone);
        }
        for path in [self.origin.clone(), self.layout.staging().join("image")] {
            let Ok(file) = File::open(&path) else { continue };
            shares.others(fiemap::blocks(&file).map_err(failed("mapping", &path))?.certain);
        }
        Ok(sum(usages, shares, alone))
    }

    /// By which leaves of which data file are seen through each snapshot's layers. The head shares nothing.
    fn usage_by_layers(&self) -> Result<UsageBySnapshot, StoreError> {
        // No layer is merged or dropped meanwhile.
        let _control = self.control()?;
        let (snapshots, staged, layers) = {
            let state = self.state();
            let snapshots: Vec<_> =
                state.snapshots.iter().filter_map(|(number, kept)| Some((*number, kept.layer?))).collect();
            (snapshots, state.staged.as_ref().and_then(|staged| staged.plan.parent), state.layers.map.clone())
        };
        let mut space = Space::default();
        for layer in layers.values().filter(|layer| layer.runs.leaves() > 0) {
            let path = self.layout.data(layer.data);
            let file = File::open(&path).map_err(failed("opening", &path))?;
            space.add(layer.data, &file, layer.size).map_err(failed("mapping", &path))?;
        }
        let mut wanted: HashMap<u64, Vec<Option<SnapshotNumber>>> = HashMap::new();
        for (number, layer) in snapshots {
            wanted.entry(layer).or_default().push(Some(number));
        }
        // What is received is built upon this layer, whether or not a snapshot still is.
        if let Some(layer) = staged {
            wanted.entry(layer).or_default().push(None);
        }
        let mut children: HashMap<Option<u64>, Vec<u64>> = HashMap::new();
        for (id, layer) in &layers {
            children.entry(layer.parent).or_default().push(*id);
        }
        let mut shares = Shares::default();
        let mut usages: Vec<SnapshotUsage> = Vec::new();
        // From the roots up: what is seen through a layer is its own, and what is seen through its parent elsewhere.
        let below = Rc::new(Vec::new());
        let roots = children.get(&None).into_iter().flatten();
        let mut next: Vec<(u64, Rc<Vec<Seen>>)> = roots.map(|id| (*id, below.clone())).collect();
        while let Some((id, below)) = next.pop() {
            let layer = &layers[&id];
            let seen =
                Rc::new(seen_through(layer.data, &layer.runs.iter().collect::<Vec<_>>(), layer.size, &below));
            drop(below);
            for user in wanted.get(&id).into_iter().flatten() {
                let used: Vec<_> = seen.iter().flat_map(|(data, bytes)| space.of(*data, bytes)).collect();
                match user {
                    None => shares.others(used),
                    Some(number) => {
                        let referenced = shares.snapshot(usages.len() as u32, used);
                        usages.push(SnapshotUsage { number: *number, referenced, exclusive: 0 });
                    }
                }
            }
            next.extend(children.get(&Some(id)).into_iter().flatten().map(|child| (*child, seen.clone())));
        }
        let alone = vec![0; usages.len()];
        let mut usage = sum(usages, shares, alone);
        usage.snapshots.sort_by_key(|usage| usage.number);
        Ok(usage)
    }
}

fn sum(mut usages: Vec<SnapshotUsage>, shares: Shares, alone: Vec<u64>) -> UsageBySnapshot {
    let (own, together) = shares.count(usages.len());
    let all = together + alone.iter().sum::<u64>();
    for ((usage, own), alone) in usages.iter_mut().zip(own).zip(alone) {
        usage.exclusive = own + alone;
    }
    UsageBySnapshot { snapshots: usages, all }
}

/// Bytes of a data file that are seen, at the offset that they have in the volume.
type Seen = (u64, Range<u64>);

/// What is seen when a layer's leaves lie over what is below it.
fn seen_through(data: u64, runs: &[Range<u64>], size: u64, below: &[Seen]) -> Vec<Seen> {
    use zumastor_core::LEAF;
    let own: Vec<Range<u64>> = runs
        .iter()
        .map(|run| run.start * LEAF..(run.end * LEAF).min(size))
        .filter(|run| !run.is_empty())
        .collect();
    let mut seen: Vec<Seen> = Vec::with_capacity(own.len() + below.len());
    for (file, bytes) in below {
        let end = bytes.end.min(size);
        let mut start = bytes.start;
        let first = own.partition_point(|run| run.end <= start);
        for run in own[first..].iter().take_while(|run| run.start < end) {
            if run.start > start {
                seen.push((*file, start..run.start));
            }
            start = run.end;
        }
        if start < end {
            seen.push((*file, start..end));
        }
    }
    seen.extend(own.into_iter().map(|run| (data, run)));
    seen
}

/// The blocks of the data files, one file behind the other, without their holes.
#[derive(Debug, Default)]
struct Space {
    /// Of each file, its parts that have blocks, and where in the space each begins.
    files: HashMap<u64, Vec<(Range<u64>, u64)>>,
    end: u64,
}

impl Space {
    fn add(&mut self, data: u64, file: &File, size: u64) -> std::io::Result<()> {
        if self.files.contains_key(&data) {
            return Ok(());
        }
        let mut parts = Vec::new();
        for range in zumastor_core::files::data_ranges(file, 0..size)? {
            let length = range.end - range.start;
            parts.push((range, self.end));
            self.end += length;
        }
        self.files.insert(data, parts);
        Ok(())
    }

    /// Where in the space a part of a file has its blocks.
    fn of<'a>(&'a self, data: u64, bytes: &'a Range<u64>) -> impl Iterator<Item = Range<u64>> + 'a {
        let parts = self.files.get(&data).map_or(&[][..], Vec::as_slice);
        let first = parts.partition_point(|(part, _)| part.end <= bytes.start);
        parts[first..].iter().take_while(|(part, _)| part.start < bytes.end).map(|(part, at)| {
            let (start, end) = (part.start.max(bytes.start), part.end.min(bytes.end));
            at + (start - part.start)..at + (end - part.start)
        })
    }
}
