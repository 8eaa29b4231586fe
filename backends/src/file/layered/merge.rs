//! Giving back what no snapshot needs any more: layers without snapshot are dropped, or merged with the one above.

use std::{collections::BTreeSet, fs, io, ops::Range, sync::Arc};

use zumastor_core::{LEAF, LeafIndex, StoreError, files};

use super::{
    chain::DataFile,
    layer::{Descriptor, Layers},
};
use crate::file::{
    inner::Inner,
    layout::{Described, failed, numbered, sync_dir},
    runs::Runs,
};

/// What can be done about a layer that no snapshot is made of.
enum Step {
    /// Nothing is built upon it.
    Drop(u64),
    /// One layer is built upon it, and the two can become one.
    Merge { parent: u64, child: u64 },
}

/// How two layers become one.
enum Way {
    /// The child's leaves are written over the parent's.
    Down,
    /// The parent's leaves that the child does not have are added to the child's.
    Up,
}

impl Inner {
    /// Drops and merges layers until every layer that is left is needed. The caller holds the control lock.
    pub(crate) fn collect_layers(&self) -> Result<(), StoreError> {
        if self.something_is_damaged() {
            return Ok(());
        }
        // A merge that must wait for a reader is tried again after the next change.
        let mut deferred = BTreeSet::new();
        while let Some(step) = self.next_step(&deferred) {
            match step {
                Step::Drop(id) => self.drop_layer(id)?,
                Step::Merge { parent, child } => {
                    if !self.merge(parent, child)? {
                        deferred.insert(parent);
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes data files that no layer names: what a crash left. Only when the store is opened.
    pub(crate) fn collect_data(&self) -> Result<(), StoreError> {
        if self.something_is_damaged() {
            return Ok(());
        }
        let (used, staged) = {
            let state = self.state();
            let used: BTreeSet<u64> = state.layers.map.values().map(|layer| layer.data).collect();
            (used, state.staged.as_ref().and_then(|staged| staged.plan.layer))
        };
        for id in numbered(&self.layout.data_dir())? {
            if !used.contains(&id) && staged != Some(id) {
                let path = self.layout.data(id);
                fs::remove_file(&path).map_err(failed("removing", &path))?;
            }
        }
        Ok(())
    }

    fn something_is_damaged(&self) -> bool {
        let state = self.state();
        !state.damaged.is_empty() || state.layers.any_damaged()
    }

    fn next_step(&self, deferred: &BTreeSet<u64>) -> Option<Step> {
        let state = self.state();
        let needed: BTreeSet<u64> = state.snapshots.values().filter_map(|kept| kept.layer).collect();
        let staged_on = state.staged.as_ref().and_then(|staged| staged.plan.parent);
        let spare = |id: &&u64| !needed.contains(id) && staged_on != Some(**id) && !deferred.contains(id);
        let spare: Vec<(u64, Vec<u64>)> =
            state.layers.map.keys().filter(spare).map(|id| (*id, state.layers.children(*id))).collect();
        // First what nothing is built upon: a commit that failed may have left a layer whose data are gone.
        let unused = spare.iter().find(|(_, children)| children.is_empty()).map(|(id, _)| Step::Drop(*id));
        unused.or_else(|| {
            spare.iter().find_map(|(parent, children)| match children[..] {
                [child] => Some(Step::Merge { parent: *parent, child }),
                _ => None,
            })
        })
    }

    fn drop_layer(&self, id: u64) -> Result<(), StoreError> {
        let path = self.layout.layer(id);
        self.faults.at("collect: before dropping a layer")?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("removing", &path)(e)),
            _ => {}
        }
        sync_dir(&self.layout.layers())?;
        let data = {
            let mut state = self.state();
            let layer = state.layers.map.remove(&id).expect("a layer that was just seen");
            let staged = state.staged.as_ref().and_then(|staged| staged.plan.layer);
            let shared =
                staged == Some(layer.data) || state.layers.map.values().any(|other| other.data == layer.data);
            (!shared).then_some(layer.data)
        };
        self.faults.at("collect: before removing data")?;
        if let Some(data) = data {
            self.remove_data(data);
        }
        Ok(())
    }

    /// Removes a data file that nothing names any more. What is left by a failure goes when the store is opened.
    pub(crate) fn remove_data(&self, id: u64) {
        let path = self.layout.data(id);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "could not remove data of a deleted snapshot");
        }
    }

    /// Makes `child` independent of `parent`; the parent is then dropped. False when a reader is in the way.
    ///
    /// Nothing that a snapshot shows passes through a state in between: leaves are added to the child's file where the
    /// child does not look, or written to the parent's file where only the child's own leaves were seen. Then the
    /// child's descriptor is replaced in one step.
    fn merge(&self, parent: u64, child: u64) -> Result<bool, StoreError> {
        let (old, new, way) = {
            let state = self.state();
            let (old, new) = (state.layers.map[&parent].clone(), state.layers.map[&child].clone());
            let Some(way) = choose(&state.layers, child, &old, &new) else { return Ok(false) };
            (old, new, way)
        };
        let missing = unshadowed(&old, &new);
        let (from, to) = {
            let mut state = self.state();
            let below = state.layers.data_file(&self.layout, old.data)?;
            let above = state.layers.data_file(&self.layout, new.data)?;
            match way {
                Way::Down => (above, below),
                Way::Up => (below, above),
            }
        };
        let (data, runs) = match way {
            Way::Down => (old.data, &new.runs),
            Way::Up => (new.data, &missing),
        };
        self.faults.at("merge: before copying")?;
        copy_leaves(&from, &to, runs, new.size)?;
        self.faults.at("merge: after copying")?;
        to.file.sync_all().map_err(failed("syncing", &to.path))?;
        let merged = Descriptor { parent: old.parent, data, size: new.size, runs: missing.union(&new.runs) };
        self.faults.at("merge: before the descriptor")?;
        self.or_broken(merged.replace(&self.layout.layer(child)))?;
        self.state().layers.map.insert(child, Arc::new(merged));
        self.faults.at("merge: after the descriptor")?;
        if new.data != data {
            self.remove_data(new.data);
        }
        Ok(true)
    }
}

/// The parent's leaves that are seen through the child.
fn unshadowed(parent: &Descriptor, child: &Descriptor) -> Runs {
    parent.runs.without(&child.runs).before(LeafIndex::count(child.size))
}

/// The way that moves less; nothing when that has to wait for a reader.
fn choose(layers: &Layers, child: u64, old: &Descriptor, new: &Descriptor) -> Option<Way> {
    if unshadowed(old, new).leaves() <= new.runs.leaves() {
        return Some(Way::Up);
    }
    layers.may_overwrite(old.data, child).then_some(Way::Down)
}

/// Makes `to` hold `from`'s leaves in `runs`, for a volume of `size` bytes.
fn copy_leaves(from: &DataFile, to: &DataFile, runs: &Runs, size: u64) -> Result<(), StoreError> {
    to.file.set_len(size).map_err(failed("resizing", &to.path))?;
    let copy = |range: Range<u64>| -> io::Result<()> {
        if !files::data_ranges(&to.file, range.clone())?.is_empty() {
            files::punch_hole(&to.file, range.clone())?;
        }
        files::copy_sparse(&from.file, &to.file, range)
    };
    for run in runs.iter() {
        copy(run.start * LEAF..(run.end * LEAF).min(size)).map_err(failed("writing", &to.path))?;
    }
    Ok(())
}
