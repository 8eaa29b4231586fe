//! The times of a rotation: a fixed interval, or what the calendar says.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::{CronExpression, InvalidCron};

/// When a rotation takes its snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Every {
    /// Whenever so much time has passed.
    Interval(Interval),
    /// When the local calendar says.
    Calendar(CronExpression),
}

/// A length of time, counted from Monday, 5 January 1970, 00:00 UTC on: its moments do not move when a node starts
/// anew, and intervals that divide each other have moments in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interval(u32);

/// Text that is no time for snapshots.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidEvery {
    /// Neither an interval nor an expression.
    #[error(
        "{0:?} says no time: write an interval such as 90s, 15m, 6h, 2d or 1w, or a calendar expression such as \
         \"30 2 * * mon-fri\""
    )]
    Form(String),
    /// An interval that nobody means.
    #[error("{0:?} cannot be an interval: write one of 1s to {max}", max = Interval::MAX)]
    Range(String),
    /// A calendar expression that is none.
    #[error(transparent)]
    Calendar(#[from] InvalidCron),
}

impl Every {
    /// The first moment after `time` at which a snapshot is to be taken; none when time ends before.
    pub fn after(&self, tz: &TimeZone, time: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Interval(interval) => interval.after(time),
            Self::Calendar(expression) => expression.after(tz, time),
        }
    }
}

impl FromStr for Every {
    type Err = InvalidEvery;

    fn from_str(text: &str) -> Result<Self, InvalidEvery> {
        let words = text.split_whitespace().count();
        if words > 1 { Ok(Self::Calendar(text.parse()?)) } else { Ok(Self::Interval(text.parse()?)) }
    }
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interval(interval) => interval.fmt(f),
            Self::Calendar(expression) => expression.fmt(f),
        }
    }
}

impl Interval {
    /// The longest: ten years.
    pub const MAX: Self = Self(520 * 7 * 24 * 60 * 60);
    /// From the largest on, so that an interval is shown in the largest that measures it.
    const UNITS: [(char, u32); 5] =
        [('w', 7 * 24 * 60 * 60), ('d', 24 * 60 * 60), ('h', 60 * 60), ('m', 60), ('s', 1)];
    /// 1970-01-05T00:00:00Z.
    const ORIGIN: i64 = 4 * 24 * 60 * 60;

    /// Its length in seconds.
    pub fn seconds(self) -> u32 {
        self.0
    }

    fn after(self, time: Timestamp) -> Option<Timestamp> {
        let length = i64::from(self.0);
        // Rounds down before 1970 as well.
        let second = i64::try_from(time.as_nanosecond().div_euclid(1_000_000_000)).ok()?;
        let past = (second - Self::ORIGIN).rem_euclid(length);
        Timestamp::from_second(second - past + length).ok()
    }
}

/// Seconds as people write them: a number, or one with `s`, `m`, `h`, `d` or `w`, such as `90`, `15m` or `6h`.
///
/// # Errors
/// Says what may be written.
pub fn parse_seconds(text: &str) -> Result<u64, InvalidSeconds> {
    let invalid = || InvalidSeconds(text.to_owned());
    let trimmed = text.trim();
    let unit = Interval::UNITS.iter().find(|(unit, _)| trimmed.ends_with(*unit));
    let digits = &trimmed[..trimmed.len() - unit.iter().count()];
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let count = digits.parse::<u64>().map_err(|_| invalid())?;
    count.checked_mul(unit.map_or(1, |(_, length)| u64::from(*length))).ok_or_else(invalid)
}

/// Text that is no number of seconds.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no length of time: write seconds, or a number with s, m, h, d or w, such as 90, 15m or 6h")]
pub struct InvalidSeconds(String);

/// For `deserialize_with`: a number of seconds, or a text such as `15m`.
pub(crate) fn seconds<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    struct Seconds;

    impl serde::de::Visitor<'_> for Seconds {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a length of time, such as 90 or \"15m\"")
        }

        fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<u64, E> {
            Ok(seconds)
        }

        fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<u64, E> {
            u64::try_from(seconds).map_err(|_| E::custom(InvalidSeconds(seconds.to_string())))
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u64, E> {
            parse_seconds(text).map_err(E::custom)
        }
    }

    struct Given(u64);

    impl<'de> Deserialize<'de> for Given {
        fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            d.deserialize_any(Seconds).map(Self)
        }
    }

    Ok(Option::<Given>::deserialize(d)?.map(|Given(seconds)| seconds))
}

impl FromStr for Interval {
    type Err = InvalidEvery;

    fn from_str(text: &str) -> Result<Self, InvalidEvery> {
        let form = || InvalidEvery::Form(text.to_owned());
        let trimmed = text.trim();
        let unit = Self::UNITS.iter().find(|(unit, _)| trimmed.ends_with(*unit)).ok_or_else(form)?;
        let digits = &trimmed[..trimmed.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(form());
        }
        let length = digits.parse::<u32>().ok().and_then(|count| count.checked_mul(unit.1));
        length
            .filter(|length| (1..=Self::MAX.0).contains(length))
            .map(Self)
            .ok_or_else(|| InvalidEvery::Range(text.to_owned()))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measures = |(_, length): &&(char, u32)| self.0.is_multiple_of(*length);
        let (unit, length) = Self::UNITS.iter().find(measures).expect("a second measures all");
        f.pad(&format!("{}{unit}", self.0 / length))
    }
}

/// Serde takes these as text.
macro_rules! as_text {
    ($name:ident, $error:ty) => {
        impl TryFrom<String> for $name {
            type Error = $error;
            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}
pub(crate) use as_text;
as_text!(Every, InvalidEvery);

#[cfg(test)]
mod tests {
    use super::*;

    fn every(text: &str) -> Every {
        text.parse().unwrap()
    }

    #[test]
    fn intervals_are_shown_in_the_largest_unit() {
        for (text, seconds, shown) in [
            ("90s", 90, "90s"),
            ("15m", 900, "15m"),
            (" 6h ", 21_600, "6h"),
            ("48h", 172_800, "2d"),
            ("7d", 604_800, "1w"),
            ("520w", 314_496_000, "520w"),
        ] {
            let interval: Interval = text.parse().unwrap();
            assert_eq!((interval.seconds(), interval.to_string().as_str()), (seconds, shown));
        }
        for (bad, error) in [
            ("90", InvalidEvery::Form("90".into())),
            ("h", InvalidEvery::Form("h".into())),
            ("", InvalidEvery::Form("".into())),
            ("+5m", InvalidEvery::Form("+5m".into())),
            ("1.5h", InvalidEvery::Form("1.5h".into())),
            ("6ö", InvalidEvery::Form("6ö".into())),
            ("0s", InvalidEvery::Range("0s".into())),
            ("521w", InvalidEvery::Range("521w".into())),
            ("99999999999w", InvalidEvery::Range("99999999999w".into())),
        ] {
            assert_eq!(bad.parse::<Every>(), Err(error));
        }
        assert!("0s".parse::<Every>().unwrap_err().to_string().ends_with("write one of 1s to 520w"));
    }

    #[test]
    fn seconds_are_read_with_a_unit_or_without() {
        for (text, seconds) in
            [("90", 90), ("0", 0), ("15m", 900), (" 6h ", 21_600), ("30s", 30), ("1w", 604_800)]
        {
            assert_eq!(parse_seconds(text), Ok(seconds), "{text}");
        }
        for bad in ["", "m", "-1", "1.5h", "soon", "6ö", "99999999999999999999", "9999999999999999999w"] {
            assert_eq!(parse_seconds(bad), Err(InvalidSeconds(bad.to_owned())));
        }
    }

    #[test]
    fn intervals_count_from_a_monday() {
        let after = |text: &str, time: &str| {
            every(text).after(&TimeZone::UTC, time.parse().unwrap()).unwrap().to_string()
        };
        assert_eq!(after("6h", "2026-05-05T05:59:59.9Z"), "2026-05-05T06:00:00Z");
        assert_eq!(after("6h", "2026-05-05T06:00:00Z"), "2026-05-05T12:00:00Z");
        assert_eq!(after("1w", "2026-05-05T06:00:00Z"), "2026-05-11T00:00:00Z");
        assert_eq!(after("90s", "2026-05-05T00:00:01Z"), "2026-05-05T00:01:30Z");
        assert_eq!(after("1d", "1969-12-31T23:59:59.5Z"), "1970-01-01T00:00:00Z");
        assert_eq!(every("1s").after(&TimeZone::UTC, Timestamp::MAX), None);
    }
}
