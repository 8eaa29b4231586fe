//! What a volume consists of, as tags of its volume group: LVM changes any number of them in one durable step.
//!
//! A tag is `zumastor.STORE.WHAT.LV.PART.CONTENT`: the identity of the store; `head`, `s` and the number of a snapshot, or `recv`,
//! for people; the uuid of the logical volume that it is about; the place of this part of the content, from 0; and the content,
//! postcard as base64. `zumastor.STORE.open` says that a program has the store open, or had when it ended. Logical volumes that
//! belong to a store have the tag `zumastor.STORE`.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64_NOPAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lvm::Lv;
use crate::thin::{Catalogue, Head, Kept, Staged, ThinId};

const PREFIX: &str = "zumastor.";
/// Most characters of content in a tag, of which LVM takes 1024 in all.
const PART: usize = 800;

/// The content of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Item {
    /// The volume itself, and the name of its logical volume.
    Head { head: Head, name: String },
    /// One of its snapshots.
    Snapshot(Kept),
    /// What is being received.
    Staged(Staged),
}

/// What the tags say of one store. The numbers of thin devices in it may be of long ago: logical volumes are known by their uuid.
#[derive(Debug, Clone, Default)]
pub(super) struct Recorded {
    pub open: bool,
    head: Option<(String, Head, String)>,
    snapshots: Vec<(String, Kept)>,
    staged: Option<(String, Staged)>,
    /// Something of it is not understood.
    pub damaged: bool,
}

/// What a store consists of, and what is not there any more.
#[derive(Debug)]
pub(super) struct Found {
    pub catalogue: Catalogue,
    pub gone: Vec<Kept>,
}

impl Recorded {
    /// The uuid and the name of the head's logical volume.
    pub(super) fn head(&self) -> Option<(&str, &str)> {
        self.head.as_ref().map(|(uuid, _, name)| (uuid.as_str(), name.as_str()))
    }

    /// With the logical volumes that there are; nothing if the head is not among them.
    pub(super) fn found(&self, store: Uuid, there: &BTreeMap<String, Lv>) -> Option<Found> {
        let thin = |uuid: &String| there.get(uuid).and_then(|lv| lv.thin);
        let (uuid, head, _) = self.head.as_ref()?;
        let mut catalogue = Catalogue::new(store, thin(uuid)?, head.size);
        catalogue.head = Head { thin: thin(uuid)?, ..head.clone() };
        let mut gone = Vec::new();
        for (uuid, kept) in &self.snapshots {
            match thin(uuid) {
                Some(thin) => catalogue.insert(Kept { thin, ..kept.clone() }),
                None => gone.push(kept.clone()),
            }
        }
        catalogue.staged = self
            .staged
            .as_ref()
            .and_then(|(uuid, staged)| Some(Staged { thin: thin(uuid)?, ..staged.clone() }));
        Some(Found { catalogue, gone })
    }
}

/// The tag of the logical volumes of a store.
pub(super) fn of_store(store: Uuid) -> String {
    format!("{PREFIX}{}", store.simple())
}

/// The tag of a store that a program has open.
pub(super) fn open(store: Uuid) -> String {
    format!("{PREFIX}{}.open", store.simple())
}

/// The store whose tag this is.
pub(super) fn store(tag: &str) -> Option<Uuid> {
    Uuid::try_parse(tag.strip_prefix(PREFIX)?.split('.').next()?).ok()
}

/// All stores that tags tell of.
pub(super) fn stores(tags: &[String]) -> BTreeMap<Uuid, Recorded> {
    let mut stores = BTreeMap::<Uuid, Recorded>::new();
    let mut parts = BTreeMap::<(Uuid, &str, &str), BTreeMap<usize, &str>>::new();
    for tag in tags {
        let Some(id) = store(tag) else { continue };
        let recorded = stores.entry(id).or_default();
        match tag.splitn(6, '.').skip(2).collect::<Vec<_>>()[..] {
            ["open"] => recorded.open = true,
            [what, uuid, part, content] => match part.parse() {
                Ok(part) => drop(parts.entry((id, what, uuid)).or_default().insert(part, content)),
                Err(_) => recorded.damaged = true,
            },
            _ => recorded.damaged = true,
        }
    }
    for ((id, _, uuid), parts) in parts {
        let recorded = stores.entry(id).or_default();
        let text: String = parts.into_values().collect();
        let bytes = BASE64_NOPAD.decode(text.as_bytes()).unwrap_or_default();
        let uuid = uuid.to_owned();
        match postcard::from_bytes(&bytes) {
            Ok(Item::Head { head, name }) => recorded.head = Some((uuid, head, name)),
            Ok(Item::Snapshot(kept)) => recorded.snapshots.push((uuid, kept)),
            Ok(Item::Staged(staged)) => recorded.staged = Some((uuid, staged)),
            Err(_) => recorded.damaged = true,
        }
    }
    stores
}

/// The tags that say all of a catalogue. `uuid` gives the logical volume of a thin device.
pub(super) fn encode(catalogue: &Catalogue, name: &str, uuid: &dyn Fn(ThinId) -> String) -> BTreeSet<String> {
    let mut tags = BTreeSet::new();
    let mut add = |what: &str, thin: ThinId, item: Item| {
        let bytes = postcard::to_stdvec(&item).expect("plain data is written to memory");
        let text = BASE64_NOPAD.encode(&bytes);
        let begin = format!("{}.{what}.{}", of_store(catalogue.store), uuid(thin));
        for (part, content) in text.as_bytes().chunks(PART).enumerate() {
            let content = str::from_utf8(content).expect("base64 is ASCII");
            tags.insert(format!("{begin}.{part}.{content}"));
        }
    };
    let Catalogue { head, snapshots, staged, .. } = catalogue;
    add("head", head.thin, Item::Head { head: head.clone(), name: name.to_owned() });
    for kept in snapshots {
        add(&format!("s{}", kept.record.number()), kept.thin, Item::Snapshot(kept.clone()));
    }
    if let Some(staged) = staged {
        add("recv", staged.thin, Item::Staged(staged.clone()));
    }
    tags
}

#[cfg(test)]
mod tests {
    use zumastor_core::{Lineage, NewSnapshot, SnapshotNumber, SnapshotRecord, StagePlan};

    use super::*;

    fn kept(number: u64, thin: u32, rotations: usize) -> Kept {
        let mut new = NewSnapshot::manual(SnapshotNumber(number), Lineage(Uuid::nil()));
        new.rotations = (0..rotations).map(|n| format!("rotation-with-a-long-name-{n}")).collect();
        Kept { record: SnapshotRecord { new, size: 1 << 30, digest: None }, thin: ThinId(thin) }
    }

    fn lv(name: &str, thin: u32) -> (String, Lv) {
        let lv = Lv {
            name: name.to_owned(),
            uuid: format!("uuid{thin}"),
            kind: "thin".to_owned(),
            size: 1 << 30,
            pool: "p".to_owned(),
            thin: Some(ThinId(thin)),
            tags: Vec::new(),
            metadata: String::new(),
            chunk: 0,
        };
        (lv.uuid.clone(), lv)
    }

    #[test]
    fn what_is_written_is_read_again_and_fits_into_tags() {
        let store = Uuid::now_v7();
        let mut catalogue = Catalogue::new(store, ThinId(1), 1 << 30);
        catalogue.insert(kept(3, 2, 0));
        catalogue.insert(kept(9, 4, 64));
        let plan = StagePlan { record: kept(5, 0, 1).record, base: Some(SnapshotNumber(3)) };
        catalogue.staged = Some(Staged { plan, thin: ThinId(5) });
        let mut tags: Vec<_> =
            encode(&catalogue, "na.me", &|thin| format!("uuid{thin}")).into_iter().collect();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&byte);
        assert!(tags.iter().all(|tag| tag.len() <= 1024 && tag.bytes().all(legal)), "{tags:?}");
        assert!(tags.len() > 5, "one of the snapshots takes several");
        tags.extend([open(store), "somebody.elses".to_owned(), "zumastor.not-a-uuid.head".to_owned()]);
        tags.extend(encode(&Catalogue::new(Uuid::nil(), ThinId(9), 5), "other", &|_| "x".to_owned()));
        tags.reverse();
        let stores = stores(&tags);
        let recorded = &stores[&store];
        assert_eq!(
            (recorded.open, recorded.damaged, recorded.head()),
            (true, false, Some(("uuid1", "na.me")))
        );
        let there = [lv("a", 1), lv("b", 2), lv("c", 4), lv("d", 5)].into();
        let Found { catalogue: read, gone } = recorded.found(store, &there).unwrap();
        assert!(read == catalogue && gone.is_empty());
        assert_eq!(stores[&Uuid::nil()].head(), Some(("x", "other")));
        assert_eq!(super::store(&of_store(store)), Some(store));
    }

    #[test]
    fn a_number_that_was_given_anew_is_not_taken_for_what_it_was() {
        let store = Uuid::now_v7();
        let mut catalogue = Catalogue::new(store, ThinId(1), 1 << 30);
        catalogue.insert(kept(3, 2, 0));
        catalogue.head.shows = Some(catalogue.snapshots[0].record.guid());
        let tags: Vec<_> = encode(&catalogue, "v", &|thin| format!("uuid{thin}")).into_iter().collect();
        // The snapshot's volume was removed, and its number went to another.
        let (_, other) = lv("other", 2);
        let there = [lv("v", 1), ("another".to_owned(), other)].into();
        let Found { catalogue: read, gone } = stores(&tags)[&store].found(store, &there).unwrap();
        assert!(read.snapshots.is_empty());
        assert_eq!(gone.len(), 1);
        assert!(stores(&tags)[&store].found(store, &BTreeMap::new()).is_none());
    }
}
