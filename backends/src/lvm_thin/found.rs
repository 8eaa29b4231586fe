//! What of a volume is there, by its tags and by what LVM has: people change it too.

use std::collections::BTreeMap;

use uuid::Uuid;
use zumastor_core::SnapshotNumber;

use super::{
    lvm::Lv,
    tags::{self, Found, Recorded},
};
use crate::thin::{Catalogue, ThinId};

/// What a store consists of by its tags, and what LVM has of it by thin device; snapshots that are gone are reported. `there` is all
/// of the pool.
pub(super) fn load(
    store: Uuid,
    recorded: &Recorded,
    there: &BTreeMap<String, Lv>,
    volume: &str,
    name: &str,
) -> Option<(Catalogue, BTreeMap<ThinId, Lv>)> {
    let Found { mut catalogue, gone } = recorded.found(store, there)?;
    for kept in &gone {
        removed(volume, kept.record.number());
    }
    let (named, tag, ours) = (catalogue.thins(), tags::of_store(store), format!("{name}_zuma"));
    let by_id = there.values().filter_map(|lv| Some((lv.thin?, lv)));
    // What a person made as a copy of ours is none of ours.
    let belongs = |id: &ThinId, lv: &Lv| {
        named.contains(id) || lv.tags.contains(&tag) && (lv.name == name || lv.name.starts_with(&ours))
    };
    let volumes: BTreeMap<_, _> =
        by_id.filter(|(id, lv)| belongs(id, lv)).map(|(id, lv)| (id, lv.clone())).collect();
    let size = volumes.get(&catalogue.head.thin)?.size;
    resized(&mut catalogue, size);
    Some((catalogue, volumes))
}

/// Tells that a snapshot is gone.
pub(super) fn removed(volume: &str, number: SnapshotNumber) {
    tracing::warn!(
        volume,
        snapshot = %number,
        "the logical volume of a snapshot was removed by somebody else: the snapshot is gone"
    );
}

/// What the head is when its logical volume has this size: LVM's tools change it too.
pub(super) fn resized(catalogue: &mut Catalogue, size: u64) {
    let head = &mut catalogue.head;
    if head.size == size {
        return;
    }
    // What was to become smaller and did not is as it was; what lies beyond a smaller end is to be made zero.
    head.tail = head.tail.max(Some(head.size)).filter(|tail| *tail > size);
    head.size = size;
    head.shows = None;
}
