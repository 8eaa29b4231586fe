//! Taking a thin volume as it is, or making one to receive into.

use uuid::Uuid;
use zumastor_core::StoreError;

use super::{
    Place, Seen, fresh,
    lvm::{Lv, Lvm, joined, run},
    smallest,
    tags::{self, Recorded},
};
use crate::{
    Faults, VolumeSpec,
    thin::{
        kernel::{SECTOR, check_name},
        mapper::Mapper,
    },
};

/// Makes a store of a thin volume. The tags of the volume group, which are set in one step, make it one. Tells too whether the volume
/// was activated for that.
pub(super) fn make(
    place: &Place,
    spec: &VolumeSpec,
    seen: &Seen,
    mapper: &Mapper,
    faults: &Faults,
) -> Result<(Uuid, Recorded, bool), StoreError> {
    let lvm = Lvm { vg: place.vg.clone() };
    let refused = |what: String| Err(StoreError::Unsupported(what));
    if let Some(metadev) = &spec.metadev {
        return refused(format!(
            "the metadata are those of the pool {}: leave out `--metadev {}`",
            lvm.of(&place.pool),
            metadev.display()
        ));
    }
    if let Some(chunk) = spec.chunk.filter(|chunk| *chunk != seen.pool.chunk) {
        return refused(format!(
            "the pool {} has chunks of {} bytes, not of {chunk}: leave out `--chunksize`",
            lvm.of(&place.pool),
            seen.pool.chunk
        ));
    }
    check_name(mapper, spec.name.as_str())?;
    if mapper.find(spec.name.as_str())?.is_some() {
        return refused(format!(
            "there is a device /dev/mapper/{} already: choose another name for the volume, or remove the device",
            spec.name
        ));
    }
    let store = Uuid::now_v7();
    let (found, activated) = match seen.volume(&place.lv) {
        Some(lv) => (lv.clone(), check(place, seen, lv, mapper)?),
        None => (create(place, seen, &lvm, store)?, false),
    };
    let catalogue = fresh(store, &found)
        .ok_or_else(|| StoreError::Unsupported(format!("{} is no thin volume", lvm.of(&place.lv))))?;
    faults.at("make: before the header")?;
    let tags: Vec<_> = tags::encode(&catalogue, &place.lv, &|_| found.uuid.clone()).into_iter().collect();
    let mut arguments: Vec<_> = tags.iter().flat_map(|tag| ["--addtag", tag]).collect();
    arguments.push(&place.vg);
    run("vgchange", &arguments)?;
    faults.at("make: after the header")?;
    let recorded = tags::stores(&tags).remove(&store).expect("its tags were just made");
    Ok((store, recorded, activated))
}

/// Refuses what cannot be taken, or is somebody's already. Tells whether it had to be activated.
fn check(place: &Place, seen: &Seen, lv: &Lv, mapper: &Mapper) -> Result<bool, StoreError> {
    let lvm = Lvm { vg: place.vg.clone() };
    let name = lvm.of(&lv.name);
    let refused = |what: String| Err(StoreError::Unsupported(what));
    if lv.kind != "thin" {
        return refused(format!(
            "{name} is no thin volume, but of type {}: give a device for its snapshots in the place of the pool",
            lv.kind
        ));
    }
    if lv.pool != place.pool {
        return refused(format!(
            "{name} is in the pool {}, not in {}",
            lvm.of(&lv.pool),
            lvm.of(&place.pool)
        ));
    }
    let of = |id: &Uuid| seen.stores.get(id).and_then(|recorded| recorded.head());
    let mine = lv.tags.iter().filter_map(|tag| Some((tag, tags::store(tag)?)));
    for (tag, store) in mine {
        if let Some((_, head)) = of(&store) {
            return refused(format!(
                "{name} belongs to the volume on {}, whose snapshots it is one of: take a copy, `lvcreate -s -n NAME {name}`",
                lvm.of(head)
            ));
        }
        // What was begun and did not come to its end.
        run("lvchange", &["--deltag", tag, &name])?;
    }
    let inactive = mapper.find(&joined(&lvm.vg, &lv.name))?.is_none();
    if inactive {
        run("lvchange", &["-ay", "-K", &name])?;
    }
    let device = joined(&lvm.vg, &lv.name);
    if mapper.table(&device)?.iter().any(|(.., words)| words.split(' ').count() > 2) {
        return refused(format!(
            "{name} shows another volume where it was not written, and is no thin volume by itself: copy it to one"
        ));
    }
    if mapper.find(&device)?.is_some_and(|there| there.read_only) {
        return refused(format!("{name} can only be read: `lvchange -prw {name}` first"));
    }
    Ok(inactive)
}

/// Makes a volume to receive into: as small as can be, it gets its size with the first snapshot.
fn create(place: &Place, seen: &Seen, lvm: &Lvm, store: Uuid) -> Result<Lv, StoreError> {
    let size = format!("{}s", smallest(seen.group.extent) / SECTOR);
    let (tag, pool) = (tags::of_store(store), lvm.of(&place.pool));
    run("lvcreate", &["-Wn", "-n", &place.lv, "--addtag", &tag, "-V", &size, "-T", &pool])?;
    let made = lvm.volumes()?.into_iter().find(|lv| lv.name == place.lv);
    made.ok_or_else(|| {
        StoreError::Unsupported(format!("{} is gone although LVM has just made it", lvm.of(&place.lv)))
    })
}
