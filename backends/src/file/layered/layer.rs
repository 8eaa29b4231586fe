//! Layers: what differs between one snapshot and the one it was taken upon.
//!
//! A layer has a set of leaves, each at its own offset in a sparse data file; a leaf that is in the set but a hole in
//! the file is zero. A leaf of a snapshot is that of the newest layer on its chain that has it, or zero when none has.
//! When a layer is larger than its parent, it has every leaf from the one that holds the parent's end on; when it is
//! smaller, it has the leaf that its own end cuts. So a leaf never has bytes that a change of size took away.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Weak},
};

use serde::{Deserialize, Serialize};
use zumastor_core::{LEAF, LeafIndex, StoreError};

use super::chain::{DataFile, Pinned};
use crate::file::{
    layout::{Described, Layout, failed, numbered},
    runs::Runs,
};

/// The file `layers/ID`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    /// The layer that has what this one has not.
    pub parent: Option<u64>,
    /// Which data file holds the leaves. Two layers share one only while they are merged.
    pub data: u64,
    /// Size of the volume in bytes.
    pub size: u64,
    /// The leaves it has.
    pub runs: Runs,
}

impl Described for Descriptor {
    const MAGIC: &'static [u8; 8] = b"ZUMALAY\x01";
}

/// The leaves that a layer of `size` bytes must have because its parent has another size.
pub(crate) fn forced_by_size(parent_size: u64, size: u64) -> Range<u64> {
    if parent_size == size {
        return 0..0;
    }
    parent_size.min(size) / LEAF..LeafIndex::count(size)
}

/// All layers of a store.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    pub map: BTreeMap<u64, Arc<Descriptor>>,
    /// Descriptors that cannot be read, and why.
    damaged: BTreeMap<u64, String>,
    next: u64,
    open: HashMap<u64, Weak<DataFile>>,
    /// The chains that readers hold: what a merge must not change under them.
    pinned: Vec<Weak<Pin>>,
}

/// The layers that a reader may read from, newest first, as `(layer, data file)`.
#[derive(Debug)]
pub(crate) struct Pin {
    pub layers: Vec<(u64, u64)>,
}

impl Layers {
    /// Reads all descriptors. `staged` is the layer that is being received, which has data and no descriptor yet.
    pub(crate) fn load(layout: &Layout, staged: Option<u64>) -> Result<Self, StoreError> {
        let mut layers = Self::default();
        let ids = numbered(&layout.layers())?;
        for id in &ids {
            match Descriptor::load(&layout.layer(*id)) {
                Ok(descriptor) => {
                    layers.map.extend(descriptor.map(|descriptor| (*id, Arc::new(descriptor))));
                }
                Err(StoreError::Damaged { what, .. }) => drop(layers.damaged.insert(*id, what)),
                Err(error) => return Err(error),
            }
        }
        let newest = ids.iter().chain(&staged).max().copied();
        let newest_data = numbered(&layout.data_dir())?.last().copied();
        layers.next = newest.max(newest_data).map_or(0, |id| id + 1);
        Ok(layers)
    }

    /// Whether all layers are there that `top` needs.
    pub(crate) fn check(&self, layout: &Layout, top: u64) -> Result<(), StoreError> {
        let missing = match self.ancestors(top).last() {
            None => Some(top),
            Some((_, last)) => last.parent,
        };
        let Some(missing) = missing else { return Ok(()) };
        let what = self.damaged.get(&missing).cloned();
        let what = what.unwrap_or_else(|| format!("layer {missing} is missing, and a snapshot needs it"));
        Err(StoreError::Damaged { path: layout.layer(missing), what })
    }

    /// Whether it is unknown what some layer needs.
    pub(crate) fn any_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// A number for a new layer, which is also that of its data file.
    pub(crate) fn allocate(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The layers from `top` to the root.
    pub(crate) fn ancestors(&self, top: u64) -> impl Iterator<Item = (u64, &Arc<Descriptor>)> {
        let mut next = Some(top);
        std::iter::from_fn(move || {
            let id = next?;
            let layer = self.map.get(&id)?;
            next = layer.parent;
            Some((id, layer))
        })
    }

    /// The layers built upon `id`.
    pub(crate) fn children(&self, id: u64) -> Vec<u64> {
        self.map.iter().filter(|(_, layer)| layer.parent == Some(id)).map(|(child, _)| *child).collect()
    }

    /// Takes hold of the chain from `top`: its data files stay readable, and are not changed where they are read.
    pub(crate) fn pin(&mut self, layout: &Layout, top: u64) -> Result<Pinned, StoreError> {
        self.check(layout, top)?;
        let chain: Vec<_> = self.ancestors(top).map(|(id, layer)| (id, layer.clone())).collect();
        let size = chain.first().map_or(0, |(_, layer)| layer.size);
        let mut layers = Vec::with_capacity(chain.len());
        for (_, layer) in &chain {
            // A layer without leaves is never read.
            let file =
                if layer.runs.leaves() == 0 { None } else { Some(self.data_file(layout, layer.data)?) };
            layers.push((layer.clone(), file));
        }
        let pin = Arc::new(Pin { layers: chain.iter().map(|(id, layer)| (*id, layer.data)).collect() });
        self.pinned.retain(|pin| pin.strong_count() > 0);
        self.pinned.push(Arc::downgrade(&pin));
        Ok(Pinned { size, layers, pin })
    }

    /// Whether leaves of `child` may be written over those of its parent, whose data file is `data`: not while a reader
    /// has that file open that does not look at the child's leaves first.
    pub(crate) fn may_overwrite(&self, data: u64, child: u64) -> bool {
        let below = |pin: &Pin| {
            let reads = pin.layers.iter().any(|(_, file)| *file == data);
            reads && !pin.layers.iter().any(|(layer, _)| *layer == child)
        };
        !self.pinned.iter().filter_map(Weak::upgrade).any(|pin| below(&pin))
    }

    /// The data file of a number, opened once for all who read it.
    pub(crate) fn data_file(&mut self, layout: &Layout, id: u64) -> Result<Arc<DataFile>, StoreError> {
        if let Some(open) = self.open.get(&id).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let path: PathBuf = layout.data(id);
        let file = match File::options().read(true).write(true).open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Damaged { path, what: "the data of a layer are missing".into() });
            }
            file => Arc::new(DataFile { file: file.map_err(failed("opening", &path))?, path }),
        };
        self.open.retain(|_, file| file.strong_count() > 0);
        self.open.insert(id, Arc::downgrade(&file));
        Ok(file)
    }
}
