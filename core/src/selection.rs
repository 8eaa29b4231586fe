//! Which snapshots go to a target.

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{InvalidRotation, RotationName, SnapshotRecord};

/// The rotations whose snapshots are taken; without any, every snapshot is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Selection(Vec<String>);

impl Selection {
    /// How snapshots that belong to no rotation are selected.
    pub const MANUAL: &str = "manual";

    /// A selection of these rotations, each named once.
    ///
    /// # Errors
    /// Names what is neither a rotation nor `manual`.
    pub fn new(names: impl IntoIterator<Item = String>) -> Result<Self, InvalidRotation> {
        let mut all = Vec::new();
        for name in names {
            if name != Self::MANUAL {
                name.parse::<RotationName>()?;
            }
            if !all.contains(&name) {
                all.push(name);
            }
        }
        Ok(Self(all))
    }

    /// Whether every snapshot is selected.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, as they were written.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Whether a snapshot is selected. A local one never is: it is nobody else's business.
    pub fn takes(&self, record: &SnapshotRecord) -> bool {
        let rotations = &record.new.rotations;
        let named = |name: &String| {
            if name == Self::MANUAL { rotations.is_empty() } else { rotations.contains(name) }
        };
        !record.number().is_local() && (self.is_all() || self.0.iter().any(named))
    }
}

impl<'de> Deserialize<'de> for Selection {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(Vec::<String>::deserialize(d)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lineage, NewSnapshot, SnapshotNumber};

    fn record(number: SnapshotNumber, rotations: &[&str]) -> SnapshotRecord {
        let mut new = NewSnapshot::manual(number, Lineage::generate());
        new.rotations = rotations.iter().map(|name| (*name).to_owned()).collect();
        SnapshotRecord { new, size: 0, digest: None }
    }

    #[test]
    fn snapshots_are_selected_by_their_rotations() {
        let of = |names: &[&str]| Selection::new(names.iter().map(|name| (*name).to_owned())).unwrap();
        let number = SnapshotNumber(1);
        let (manual, hourly, both) =
            (record(number, &[]), record(number, &["hourly"]), record(number, &["hourly", "daily"]));
        let taken = |names: &[&str]| [&manual, &hourly, &both].map(|record| of(names).takes(record));
        assert_eq!(taken(&[]), [true, true, true]);
        assert_eq!(taken(&["daily"]), [false, false, true]);
        assert_eq!(taken(&["manual", "daily", "daily"]), [true, false, true]);
        assert!(!of(&[]).takes(&record(SnapshotNumber::local(1), &[])));
        assert_eq!(of(&["daily", "daily"]).names(), ["daily"]);
        assert!(Selection::new(["no/name".to_owned()]).is_err());
    }
}
