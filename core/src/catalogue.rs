//! What is known of each snapshot, and why some must stay.

use std::fmt;

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor},
};

use crate::{GroupId, Lineage, NodeName, SnapshotGuid, SnapshotNumber, digest::Digest};

/// What a node decides before it takes a snapshot. The store keeps it with the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct NewSnapshot {
    /// Its number in the volume.
    pub number: SnapshotNumber,
    /// Its identity on every node.
    pub guid: SnapshotGuid,
    /// The volume it belongs to, on every node.
    pub lineage: Lineage,
    /// When it was taken.
    pub created: Timestamp,
    /// The rotations it belongs to; none for a manual snapshot. At most [`MAX_ROTATIONS`](Self::MAX_ROTATIONS).
    pub rotations: Vec<String>,
    /// The snapshots of other volumes that were taken together with it.
    pub group: Option<GroupId>,
}

impl NewSnapshot {
    /// Most rotations that a snapshot belongs to.
    pub const MAX_ROTATIONS: usize = 64;

    /// A manual snapshot of `lineage`, taken now.
    pub fn manual(number: SnapshotNumber, lineage: Lineage) -> Self {
        let guid = SnapshotGuid::generate();
        Self { number, guid, lineage, created: now(), rotations: Vec::new(), group: None }
    }
}

/// As it is written, on disks and on the wire. A group stands last among the names of the rotations, under a name that no
/// rotation has: so what was written before there were groups is read the same way, and a node that knows nothing of them
/// keeps the name and passes it on.
#[derive(Serialize, Deserialize)]
struct Written {
    number: SnapshotNumber,
    guid: SnapshotGuid,
    lineage: Lineage,
    #[serde(with = "millis")]
    created: Timestamp,
    #[serde(deserialize_with = "rotations")]
    rotations: Vec<String>,
}

impl From<Written> for NewSnapshot {
    fn from(written: Written) -> Self {
        let Written { number, guid, lineage, created, mut rotations } = written;
        let group = rotations.iter().find_map(|name| GroupId::from_label(name));
        rotations.retain(|name| GroupId::from_label(name).is_none());
        Self { number, guid, lineage, created, rotations, group }
    }
}

impl From<NewSnapshot> for Written {
    fn from(new: NewSnapshot) -> Self {
        let NewSnapshot { number, guid, lineage, created, mut rotations, group } = new;
        rotations.extend(group.map(GroupId::label));
        Self { number, guid, lineage, created, rotations }
    }
}

/// A snapshot as a store keeps it. The store's own account is the truth: whatever else is remembered about
/// snapshots can be lost without losing one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Number, identity and time.
    pub new: NewSnapshot,
    /// Size of the volume at that moment, in bytes.
    pub size: u64,
    /// Digest of the content, once it has been computed.
    pub digest: Option<Digest>,
}

impl SnapshotRecord {
    /// The number in the volume.
    pub fn number(&self) -> SnapshotNumber {
        self.new.number
    }

    /// The identity on every node.
    pub fn guid(&self) -> SnapshotGuid {
        self.new.guid
    }
}

/// Whom a hold belongs to: only the owner lifts it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HoldOwner {
    /// A person, by `zumastor hold`.
    User,
    /// Replication to or from this peer.
    Peer(NodeName),
}

impl fmt::Display for HoldOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.pad("user"),
            Self::Peer(name) => name.fmt(f),
        }
    }
}

/// A named reason why a snapshot must not be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The snapshot.
    pub number: SnapshotNumber,
    /// Who holds it.
    pub owner: HoldOwner,
    /// What the owner calls the hold; one owner may hold a snapshot under several names.
    pub name: String,
    /// Since when.
    #[serde(with = "millis")]
    pub since: Timestamp,
}

fn now() -> Timestamp {
    // The resolution that is kept, so that a record read back equals the one written.
    Timestamp::from_millisecond(Timestamp::now().as_millisecond()).expect("the present is a valid time")
}

/// Rotations, and a group.
const MAX_NAMES: usize = NewSnapshot::MAX_ROTATIONS + 1;

/// Reads the names of rotations, and stops where there are more than there can be.
fn rotations<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    struct Bounded;

    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_NAMES} names")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Vec<String>, A::Error> {
            let mut all = Vec::new();
            while let Some(name) = names.next_element()? {
                if all.len() == MAX_NAMES {
                    return Err(A::Error::invalid_length(all.len() + 1, &self));
                }
                all.push(name);
            }
            Ok(all)
        }
    }
    d.deserialize_seq(Bounded)
}

/// Times are kept as milliseconds since 1970-01-01T00:00:00Z.
mod millis {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_i64(time.as_millisecond())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
        Timestamp::from_millisecond(i64::deserialize(d)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_written_among_the_rotations() {
        let plain = NewSnapshot {
            rotations: vec!["daily".to_owned()],
            ..NewSnapshot::manual(SnapshotNumber(3), Lineage::generate())
        };
        let grouped = NewSnapshot { group: Some(GroupId::generate()), ..plain.clone() };
        let written = Written::from(grouped.clone());
        assert_eq!(written.rotations, ["daily".to_owned(), format!("group.{}", grouped.group.unwrap())]);
        assert_eq!(NewSnapshot::from(written), grouped);
        assert_eq!(Written::from(plain.clone()).rotations, ["daily"]);
        assert_eq!(NewSnapshot::from(Written::from(plain.clone())), plain);
        // Older nodes take it for a name, and no rotation can have it.
        let label = grouped.group.unwrap().label();
        assert!(label.parse::<crate::VolumeName>().is_ok() && label.parse::<crate::RotationName>().is_err());
        assert!("group.mine".parse::<crate::RotationName>().is_ok());
    }
}
