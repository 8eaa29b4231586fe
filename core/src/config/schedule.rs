//! The rotations of a volume, as its configuration has them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{CustomName, Every, InvalidRotation, NewSnapshot, RotationName, RotationSpec};

/// `[schedule]`: the rotations of a volume. A master takes their snapshots; a master and a replica each keep as many as
/// are written on their side.
///
/// ```toml
/// [schedule]
/// hourly = 24
/// daily = 7
///
/// [schedule.custom.frequent]
/// keep = 8
/// every = "15m"
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// How many hourly snapshots are kept.
    #[serde(default, deserialize_with = "keep_some", skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u32>,
    /// How many daily snapshots are kept.
    #[serde(default, deserialize_with = "keep_some", skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// How many weekly snapshots are kept.
    #[serde(default, deserialize_with = "keep_some", skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// How many monthly snapshots are kept.
    #[serde(default, deserialize_with = "keep_some", skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u32>,
    /// A table `[schedule.custom.NAME]` for each other rotation; with the built-in ones, at most as many as a snapshot
    /// may belong to.
    #[serde(default, deserialize_with = "few", skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<CustomName, CustomConfig>,
}

/// `[schedule.custom.NAME]`: a rotation with times of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomConfig {
    /// How many of its snapshots are kept.
    #[serde(deserialize_with = "keep")]
    pub keep: u32,
    /// When one is taken: `6h`, or `30 2 * * mon-fri`. Without it, only when `snapshot VOLUME NAME` asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Every>,
}

/// A schedule that cannot be. What is read from a file was checked; what a program put together was not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidSchedule {
    /// More snapshots than can be kept.
    #[error("{field}: {source}")]
    Keep {
        /// Where that is written.
        field: String,
        /// What is wrong.
        source: InvalidRotation,
    },
    /// More rotations than a snapshot may belong to.
    #[error("schedule.custom: {0} rotations are too many: a volume has at most {max}, with those built in", max = MAX_CUSTOM)]
    Rotations(usize),
}

impl ScheduleConfig {
    /// Whether there are no rotations.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The rotations, in the order of their names.
    pub fn specs(&self) -> Vec<RotationSpec> {
        let builtin = |name: RotationName| Some(RotationSpec::new(name.clone(), self.builtin(&name)?));
        let custom = |(name, config): (&CustomName, &CustomConfig)| RotationSpec {
            name: RotationName::Custom(name.clone()),
            keep: config.keep,
            every: config.every.clone(),
        };
        let builtin = RotationName::BUILTIN.into_iter().filter_map(builtin);
        builtin.chain(self.custom.iter().map(custom)).collect()
    }

    /// How many snapshots each rotation keeps.
    pub fn limits(&self) -> BTreeMap<RotationName, u32> {
        self.specs().into_iter().map(|spec| (spec.name, spec.keep)).collect()
    }

    /// Adds a rotation, or changes the one of that name. A built-in one takes its times from its name.
    pub fn set(&mut self, spec: RotationSpec) {
        let RotationSpec { name, keep, every } = spec;
        let builtin = match name {
            RotationName::Hourly => &mut self.hourly,
            RotationName::Daily => &mut self.daily,
            RotationName::Weekly => &mut self.weekly,
            RotationName::Monthly => &mut self.monthly,
            RotationName::Custom(name) => {
                self.custom.insert(name, CustomConfig { keep, every });
                return;
            }
        };
        *builtin = Some(keep);
    }

    /// Whether every number is one that can be.
    ///
    /// # Errors
    /// Names the first field that cannot, as it would be written in the volume's file.
    pub fn validate(&self) -> Result<(), InvalidSchedule> {
        for spec in self.specs() {
            let field = match &spec.name {
                RotationName::Custom(name) => format!("schedule.custom.{name}.keep"),
                builtin => format!("schedule.{builtin}"),
            };
            RotationSpec::parse_keep(&spec.keep.to_string())
                .map_err(|source| InvalidSchedule::Keep { field, source })?;
        }
        check_custom(&self.custom)
    }

    fn builtin(&self, name: &RotationName) -> Option<u32> {
        match name {
            RotationName::Hourly => self.hourly,
            RotationName::Daily => self.daily,
            RotationName::Weekly => self.weekly,
            RotationName::Monthly => self.monthly,
            RotationName::Custom(_) => None,
        }
    }
}

const MAX_CUSTOM: usize = NewSnapshot::MAX_ROTATIONS - RotationName::BUILTIN.len();

fn check_custom(custom: &BTreeMap<CustomName, CustomConfig>) -> Result<(), InvalidSchedule> {
    if custom.len() <= MAX_CUSTOM { Ok(()) } else { Err(InvalidSchedule::Rotations(custom.len())) }
}

/// A number of snapshots. Read as any number, so that one that cannot be is refused in the same words everywhere.
fn keep<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    RotationSpec::parse_keep(&i64::deserialize(d)?.to_string()).map_err(D::Error::custom)
}

fn keep_some<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    keep(d).map(Some)
}

fn few<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<CustomName, CustomConfig>, D::Error> {
    let custom = BTreeMap::deserialize(d)?;
    check_custom(&custom).map(|()| custom).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VolumeConfig;

    const VOLUME: &str = "origin = \"/v.img\"\nsnapstore = \"/v.snaps\"\n";

    fn read(schedule: &str) -> Result<ScheduleConfig, String> {
        let volume: Result<VolumeConfig, _> = toml::from_str(&format!("{VOLUME}{schedule}"));
        volume.map(|volume| volume.schedule).map_err(|error| error.to_string())
    }

    const FULL: &str = r#"
[schedule]
daily = 7
hourly = 24

[schedule.custom.frequent]
keep = 8
every = "15m"

[schedule.custom.by-hand]
keep = 3

[schedule.custom.night]
keep = 5
every = "30 2 * * mon-fri"
"#;

    #[test]
    fn a_schedule_is_read_and_written_back() {
        let schedule = read(FULL).unwrap();
        let texts: Vec<_> = schedule.specs().iter().map(show).collect();
        assert_eq!(
            texts,
            [
                "hourly 24 0 * * * *",
                "daily 7 0 0 * * *",
                "by-hand 3 -",
                "frequent 8 15m",
                "night 5 30 2 * * mon-fri"
            ]
        );
        assert_eq!(schedule.limits()[&RotationName::Daily], 7);
        assert_eq!(schedule.limits().len(), 5);
        let written = toml::to_string(&schedule).unwrap();
        assert_eq!(toml::from_str::<ScheduleConfig>(&written).unwrap(), schedule);
        assert!(!written.contains("weekly") && !schedule.is_empty(), "{written}");
    }

    fn show(spec: &RotationSpec) -> String {
        let every = spec.every.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        format!("{} {} {every}", spec.name, spec.keep)
    }

    #[test]
    fn a_volume_without_a_schedule_says_nothing_of_it() {
        let volume: VolumeConfig = toml::from_str(VOLUME).unwrap();
        assert!(volume.schedule.is_empty() && volume.schedule.specs().is_empty());
        assert_eq!(toml::to_string(&volume).unwrap(), VOLUME);
        assert!(!read("[schedule]\nweekly = 0").unwrap().is_empty());
    }

    #[test]
    fn errors_show_the_line_and_the_remedy() {
        for (schedule, line, reason) in [
            ("[schedule]\nhourly = 100001", "4 | hourly = 100001", "write 0 to 100000"),
            ("[schedule]\ndaily = -1", "4 | daily = -1", "\"-1\" is no number of snapshots to keep"),
            ("[schedule]\nyearly = 1", "4 | yearly = 1", "unknown field `yearly`"),
            ("[schedule.custom.daily]\nkeep = 1", "3 | [schedule.custom.daily]", "choose another name"),
            (
                "[schedule.custom.\"a/b\"]\nkeep = 1",
                "3 | [schedule.custom.\"a/b\"]",
                "cannot be a rotation name",
            ),
            ("[schedule.custom.a]\nkeep = 5000000000", "4 | keep = 5000000000", "write 0 to 100000"),
            (
                "[schedule.custom.a]\nkeep = 1\nevery = \"0s\"",
                "5 | every = \"0s\"",
                "write one of 1s to 520w",
            ),
            ("[schedule.custom.a]\nkeep = 1\nevery = \"0 25 * * *\"", "5 | every", "\"25\" is no hour"),
            ("[schedule.custom.a]\nevery = \"1h\"", "3 | [schedule.custom.a]", "missing field `keep`"),
        ] {
            let error = read(schedule).unwrap_err();
            assert!(error.contains(line) && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn what_a_program_put_together_is_checked_too() {
        let mut schedule = ScheduleConfig::default();
        schedule.set(RotationSpec::new(RotationName::Weekly, 5));
        schedule.set(RotationSpec::parse_custom("a,3,6h").unwrap());
        assert_eq!(schedule.specs().iter().map(show).collect::<Vec<_>>(), ["weekly 5 0 0 * * mon", "a 3 6h"]);
        assert_eq!(schedule.validate(), Ok(()));
        let mut spec = RotationSpec::parse_custom("a,3").unwrap();
        spec.keep = 100_001;
        schedule.set(spec);
        assert_eq!(
            schedule.validate().unwrap_err().to_string(),
            "schedule.custom.a.keep: \"100001\" is no number of snapshots to keep: write 0 to 100000"
        );
        let mut crowded = ScheduleConfig { weekly: Some(1), ..ScheduleConfig::default() };
        for index in 0..60 {
            assert_eq!(crowded.validate(), Ok(()));
            crowded.set(RotationSpec::parse_custom(&format!("r{index},1")).unwrap());
        }
        crowded.set(RotationSpec::parse_custom("one-more,1").unwrap());
        assert_eq!(crowded.validate(), Err(InvalidSchedule::Rotations(61)));
        assert!(toml::from_str::<ScheduleConfig>(&toml::to_string(&crowded).unwrap()).is_err());
    }
}
