//! Names and identities.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A name that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{name:?} cannot be a {what} name: use 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit"
)]
pub struct InvalidName {
    what: &'static str,
    name: String,
}

impl InvalidName {
    /// Whether `name` can be the name of a `what`.
    pub(crate) fn check(what: &'static str, name: &str) -> Result<(), Self> {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let good = name.len() <= 63
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(inner);
        if good { Ok(()) } else { Err(Self { what, name: name.to_owned() }) }
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                InvalidName::check($what, name).map(|()| Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                name.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a volume on one node. Also a file name, so it holds nothing that a path could misread.
    VolumeName,
    "volume"
);
name_type!(
    /// The name of a group of volumes whose snapshots are taken together.
    GroupName,
    "group"
);
name_type!(
    /// What a node calls itself, and what others call it in their configuration.
    NodeName,
    "node"
);

/// Identity of a snapshot, the same on every node (UUIDv7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotGuid(pub Uuid);

/// Identity of a volume across nodes: every snapshot names the lineage it belongs to, so that two volumes which
/// merely share a name are never mixed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lineage(pub Uuid);

/// Identity of the snapshots of several volumes that were taken together, the same on every node (UUIDv7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub Uuid);

impl GroupId {
    const LABEL: &str = "group.";

    /// As it stands among the names of a snapshot's rotations.
    pub(crate) fn label(self) -> String {
        format!("{}{self}", Self::LABEL)
    }

    /// Reads what [`label`](Self::label) wrote.
    pub(crate) fn from_label(label: &str) -> Option<Self> {
        label.strip_prefix(Self::LABEL)?.parse().ok().map(Self)
    }
}

macro_rules! uuid_type {
    ($name:ident) => {
        impl $name {
            /// A new identity, ordered by time of creation (UUIDv7, RFC 9562).
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
uuid_type!(SnapshotGuid);
uuid_type!(GroupId);
uuid_type!(Lineage);

/// The number of a snapshot within its volume: 0, 1, 2 …, given by the master and the same on every node.
///
/// A node that must keep content of its own on a volume it does not master (what an image held before it became a
/// replica) gives it a *local* number, shown as `L0`, `L1` …, from a range that no master uses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotNumber(pub u64);

impl SnapshotNumber {
    const LOCAL: u64 = 1 << 48;

    /// The local number `index`.
    pub fn local(index: u64) -> Self {
        Self(Self::LOCAL + index)
    }

    /// Whether this number was given by this node for itself, not by a master.
    pub fn is_local(self) -> bool {
        self.0 >= Self::LOCAL
    }

    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for SnapshotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_local() {
            f.pad(&format!("L{}", self.0 - Self::LOCAL))
        } else {
            f.pad(&self.0.to_string())
        }
    }
}

impl fmt::Debug for SnapshotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{self}")
    }
}

impl FromStr for SnapshotNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(['L', 'l']) {
            Some(index) => index.parse::<u32>().map(|i| Self::local(u64::from(i))),
            None => text.parse::<u32>().map(|n| Self(u64::from(n))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for bad in ["", ".", "..", ".x", "a/b", "-a", "a b", "a\0", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?} was taken for a name");
        }
        for good in ["a", "vm-100.disk_0", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<VolumeName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn local_numbers_are_shown_apart_and_read_back() {
        for (number, shown) in [(SnapshotNumber(7), "7"), (SnapshotNumber::local(2), "L2")] {
            assert_eq!(number.to_string(), shown);
            assert_eq!(shown.parse::<SnapshotNumber>().unwrap(), number);
        }
        assert!("L".parse::<SnapshotNumber>().is_err());
    }
}
