//! Rotations: series of snapshots, each with its times and the number that is kept.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Every, GroupId, InvalidEvery, InvalidName, every::as_text};

/// The name of a rotation. Shown and sorted from `hourly` to `monthly`, custom ones last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RotationName {
    /// At minute 0 of each hour.
    Hourly,
    /// At local midnight.
    Daily,
    /// At the local midnight that begins Monday.
    Weekly,
    /// At the local midnight that begins a month.
    Monthly,
    /// Whatever its [`Every`] says.
    Custom(CustomName),
}

/// The name of a custom rotation: what names a volume could name one, save the names that are taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CustomName(String);

/// A rotation that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidRotation {
    /// Not a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The name means something else.
    #[error(
        "{0:?} cannot be the name of a custom rotation: hourly, daily, weekly and monthly are built in, and a manual \
         snapshot belongs to no rotation; choose another name"
    )]
    Reserved(String),
    /// Not `NAME,N` or `NAME,N,EVERY`.
    #[error("{0:?} is no custom rotation: write NAME,N or NAME,N,EVERY, such as frequent,96,15m")]
    Form(String),
    /// Not a number of snapshots.
    #[error("{0:?} is no number of snapshots to keep: write 0 to {max}", max = RotationSpec::MAX_KEEP)]
    Keep(String),
    /// Not a time at which snapshots could be taken.
    #[error(transparent)]
    Every(#[from] InvalidEvery),
}

impl RotationName {
    /// The rotations that have a name of their own.
    pub const BUILTIN: [Self; 4] = [Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly];

    /// The name as text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Custom(name) => name.as_str(),
        }
    }

    /// When a rotation of this name takes its snapshots, if its name says so.
    pub fn every(&self) -> Option<Every> {
        let expression = match self {
            Self::Hourly => "0 * * * *",
            Self::Daily => "0 0 * * *",
            Self::Weekly => "0 0 * * mon",
            Self::Monthly => "0 0 1 * *",
            Self::Custom(_) => return None,
        };
        Some(Every::Calendar(expression.parse().expect("a test reads each of them")))
    }

    fn builtin(name: &str) -> Option<Self> {
        Self::BUILTIN.into_iter().find(|builtin| builtin.as_str() == name)
    }
}

impl FromStr for RotationName {
    type Err = InvalidRotation;

    fn from_str(name: &str) -> Result<Self, InvalidRotation> {
        Self::builtin(name).map_or_else(|| name.parse().map(Self::Custom), Ok)
    }
}

impl CustomName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CustomName {
    type Err = InvalidRotation;

    fn from_str(name: &str) -> Result<Self, InvalidRotation> {
        let lower = name.to_ascii_lowercase();
        if RotationName::builtin(&lower).is_some()
            || lower == "manual"
            || GroupId::from_label(&lower).is_some()
        {
            return Err(InvalidRotation::Reserved(name.to_owned()));
        }
        InvalidName::check("rotation", name)?;
        Ok(Self(name.to_owned()))
    }
}

/// One rotation of a volume: how many of its snapshots are kept, and when they are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationSpec {
    /// Its name.
    pub name: RotationName,
    /// How many of its snapshots are kept. With 0 none is taken either.
    pub keep: u32,
    /// When a snapshot is taken; without it, only when `snapshot VOLUME NAME` asks for one.
    pub every: Option<Every>,
}

impl RotationSpec {
    /// Most snapshots that a rotation keeps.
    pub const MAX_KEEP: u32 = 100_000;

    /// A rotation that takes its snapshots when its name says.
    pub fn new(name: RotationName, keep: u32) -> Self {
        Self { every: name.every(), name, keep }
    }

    /// Reads a custom rotation as the command line has it: `NAME,N` or `NAME,N,EVERY`.
    pub fn parse_custom(text: &str) -> Result<Self, InvalidRotation> {
        let mut parts = text.splitn(3, ',').map(str::trim);
        let (Some(name), Some(keep)) = (parts.next(), parts.next()) else {
            return Err(InvalidRotation::Form(text.to_owned()));
        };
        let name = RotationName::Custom(name.parse()?);
        let every = parts.next().map(Every::from_str).transpose()?;
        Ok(Self { name, keep: Self::parse_keep(keep)?, every })
    }

    /// Reads a number of snapshots to keep.
    pub fn parse_keep(text: &str) -> Result<u32, InvalidRotation> {
        let keep = text.parse().ok().filter(|keep| *keep <= Self::MAX_KEEP);
        keep.ok_or_else(|| InvalidRotation::Keep(text.to_owned()))
    }
}

as_text!(RotationName, InvalidRotation);
as_text!(CustomName, InvalidRotation);

impl fmt::Display for RotationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for CustomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_shown_and_sorted_by_length() {
        let mut names: Vec<RotationName> =
            ["a.b-c_9", "monthly", "hourly", "weekly", "daily"].map(|name| name.parse().unwrap()).into();
        names.sort();
        let shown: Vec<_> = names.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["hourly", "daily", "weekly", "monthly", "a.b-c_9"]);
        for builtin in RotationName::BUILTIN {
            assert!(builtin.every().is_some(), "{builtin} has no times");
        }
        assert_eq!(names[4].every(), None);
    }

    #[test]
    fn taken_names_are_refused() {
        for taken in ["hourly", "Daily", "WEEKLY", "monthly", "manual"] {
            assert_eq!(taken.parse::<CustomName>(), Err(InvalidRotation::Reserved(taken.into())));
        }
        assert!("manual".parse::<RotationName>().is_err() && "Hourly".parse::<RotationName>().is_err());
        let error = "../up".parse::<RotationName>().unwrap_err().to_string();
        assert!(error.starts_with("\"../up\" cannot be a rotation name: use"), "{error}");
    }

    #[test]
    fn custom_rotations_on_the_command_line() {
        let parse = RotationSpec::parse_custom;
        let name: RotationName = "db".parse().unwrap();
        assert_eq!(parse("db,7"), Ok(RotationSpec { name: name.clone(), keep: 7, every: None }));
        let spec = parse("db, 7, 0 8,20 * * mon-fri").unwrap();
        assert_eq!(spec, RotationSpec { name, keep: 7, every: Some("0 8,20 * * mon-fri".parse().unwrap()) });
        assert_eq!(spec.every.unwrap().to_string(), "0 8,20 * * mon-fri");
        assert_eq!(parse("db"), Err(InvalidRotation::Form("db".into())));
        assert_eq!(parse("hourly,7"), Err(InvalidRotation::Reserved("hourly".into())));
        assert_eq!(parse("db,-1"), Err(InvalidRotation::Keep("-1".into())));
        assert_eq!(parse("db,100001"), Err(InvalidRotation::Keep("100001".into())));
        assert_eq!(
            parse("db,100001").unwrap_err().to_string(),
            "\"100001\" is no number of snapshots to keep: write 0 to 100000"
        );
        for bad in ["", ",7", "a/b,7", "db,7,", "db,7,hourly", "db,7,0 8"] {
            assert!(parse(bad).is_err(), "{bad:?} was taken for a rotation");
        }
    }
}
