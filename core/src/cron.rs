//! Calendar expressions as cron has them, and the moments they name in a time zone.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, DateTime},
    tz::{AmbiguousOffset, TimeZone},
};
use serde::{Deserialize, Serialize};

/// Minutes of the calendar, in the five fields of `crontab(5)`: minute, hour, day of month, month, weekday.
///
/// A field is `*`, a number, a range `A-B`, either with a step as in `*/15` or `8-18/2`, or several of these with
/// commas between. Months and weekdays may be written `jan` … `dec` and `sun` … `sat`; Sunday is 0 or 7. When neither
/// the day of month nor the weekday begins with `*`, one of the two is enough.
///
/// Where the local clock is set forward or back, an expression that names every hour follows what the clock shows:
/// an hour that is repeated counts twice, what is skipped does not count. Any other expression counts each of its
/// times once: the first of two, and the first moment after the gap for what is skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CronExpression {
    text: String,
    minutes: Set,
    hours: Set,
    days: Set,
    months: Set,
    weekdays: Set,
    /// Whether one of day and weekday is enough.
    either_day: bool,
}

/// Text that is no calendar expression.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidCron {
    /// Not five fields.
    #[error(
        "{text:?} has {found} of the 5 fields of a calendar expression: write minute, hour, day of month, month and \
         weekday, such as \"30 2 * * mon-fri\""
    )]
    Fields {
        /// What was written.
        text: String,
        /// Its number of fields.
        found: usize,
    },
    /// A field that says nothing.
    #[error(
        "{part:?} is no {field} in {text:?}: write *, a number, A-B, */STEP or A-B/STEP, with numbers {from} to {to}"
    )]
    Field {
        /// What was written.
        text: String,
        /// Which field.
        field: &'static str,
        /// The part of it that cannot be read.
        part: String,
        /// The smallest number that it takes.
        from: u8,
        /// The largest.
        to: u8,
    },
    /// A date that no year has.
    #[error("{text:?} names a day that never comes: check the day of month against the months")]
    Never {
        /// What was written.
        text: String,
    },
}

impl CronExpression {
    /// The first moment after `time` that this names; none when time ends before.
    pub fn after(&self, tz: &TimeZone, time: Timestamp) -> Option<Timestamp> {
        if self.hours == Set::of(0..=23) { self.shown_after(tz, time) } else { self.once_after(tz, time) }
    }

    /// As the clock shows it: a search in each stretch of time in which the clock is not set.
    fn shown_after(&self, tz: &TimeZone, time: Timestamp) -> Option<Timestamp> {
        let mut from = time.checked_add(SignedDuration::from_nanos(1)).ok()?;
        loop {
            let offset = tz.to_offset(from);
            let named = self.first_from(round_up(offset.to_datetime(from))?)?;
            let moment = offset.to_timestamp(named).ok();
            match tz.following(from).next().map(|transition| transition.timestamp()) {
                Some(set) if moment.is_none_or(|moment| moment >= set) => from = set,
                _ => return moment,
            }
        }
    }

    /// Each time once: [`resolve`] never turns a later time into an earlier moment, so a plain walk finds the first.
    fn once_after(&self, tz: &TimeZone, time: Timestamp) -> Option<Timestamp> {
        let mut from = round_down(tz.to_datetime(time));
        loop {
            let named = self.first_from(from)?;
            let moment = resolve(tz, named)?;
            if moment > time {
                return Some(moment);
            }
            from = named.checked_add(MINUTE).ok()?;
        }
    }

    /// The first time at or after `from`, a whole minute, that this names.
    fn first_from(&self, from: DateTime) -> Option<DateTime> {
        let mut date = from.date();
        if self.has(date)
            && let Some((hour, minute)) = self.time_from(from.hour(), from.minute())
        {
            return Some(date.at(hour, minute, 0, 0));
        }
        loop {
            date = date.tomorrow().ok()?;
            while !self.months.has(date.month()) {
                date = date.first_of_month().checked_add(jiff::Span::new().months(1)).ok()?;
            }
            if self.has(date) {
                return Some(date.at(self.hours.from(0)?, self.minutes.from(0)?, 0, 0));
            }
        }
    }

    fn time_from(&self, hour: i8, minute: i8) -> Option<(i8, i8)> {
        let this_hour = self.minutes.from(minute).filter(|_| self.hours.has(hour));
        match this_hour {
            Some(minute) => Some((hour, minute)),
            None => Some((self.hours.from(hour + 1)?, self.minutes.from(0)?)),
        }
    }

    fn has(&self, date: Date) -> bool {
        let day = self.days.has(date.day());
        let weekday = self.weekdays.has(date.weekday().to_sunday_zero_offset());
        self.months.has(date.month()) && if self.either_day { day || weekday } else { day && weekday }
    }

    /// Whether some year has a day like that.
    fn comes(&self) -> bool {
        let longest = |month| if month == 2 { 29 } else { Date::constant(2024, month, 1).days_in_month() };
        let first = self.days.from(1).unwrap_or(i8::MAX);
        self.either_day || (1..=12).any(|month| self.months.has(month) && first <= longest(month))
    }
}

impl FromStr for CronExpression {
    type Err = InvalidCron;

    fn from_str(text: &str) -> Result<Self, InvalidCron> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let fields: Vec<_> = text.split(' ').filter(|field| !field.is_empty()).collect();
        let &[minute, hour, day, month, weekday] = &fields[..] else {
            return Err(InvalidCron::Fields { found: fields.len(), text });
        };
        let read = |kind: &Field, field: &str| kind.read(field).map_err(|part| kind.error(&text, part));
        let expression = Self {
            minutes: read(&MINUTES, minute)?,
            hours: read(&HOURS, hour)?,
            days: read(&DAYS, day)?,
            months: read(&MONTHS, month)?,
            weekdays: read(&WEEKDAYS, weekday)?.sunday_first(),
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
            text: text.clone(),
        };
        if expression.comes() { Ok(expression) } else { Err(InvalidCron::Never { text }) }
    }
}

impl TryFrom<String> for CronExpression {
    type Error = InvalidCron;

    fn try_from(text: String) -> Result<Self, InvalidCron> {
        text.parse()
    }
}

impl From<CronExpression> for String {
    fn from(expression: CronExpression) -> Self {
        expression.text
    }
}

impl fmt::Display for CronExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// The moment of a time of the local clock: the first of two; for a time that is skipped, the end of the gap.
fn resolve(tz: &TimeZone, time: DateTime) -> Option<Timestamp> {
    let ambiguous = tz.to_ambiguous_timestamp(time);
    let skipped = matches!(ambiguous.offset(), AmbiguousOffset::Gap { .. });
    let earlier = ambiguous.earlier().ok()?;
    if skipped { Some(tz.following(earlier).next()?.timestamp()) } else { Some(earlier) }
}

fn round_down(time: DateTime) -> DateTime {
    time.date().at(time.hour(), time.minute(), 0, 0)
}

fn round_up(time: DateTime) -> Option<DateTime> {
    let down = round_down(time);
    if down == time { Some(time) } else { down.checked_add(MINUTE).ok() }
}

/// Small numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Set(u64);

impl Set {
    fn of(numbers: impl Iterator<Item = u8>) -> Self {
        Self(numbers.fold(0, |bits, number| bits | 1 << number))
    }

    fn has(self, number: i8) -> bool {
        self.0 >> number & 1 == 1
    }

    /// The smallest number in it that is at least `number`.
    fn from(self, number: i8) -> Option<i8> {
        let rest = self.0 >> number << number;
        (rest != 0).then(|| rest.trailing_zeros() as i8)
    }

    /// Sunday is 7 as well as 0.
    fn sunday_first(self) -> Self {
        Self((self.0 | self.0 >> 7) & 0x7f)
    }
}

/// One of the five fields.
struct Field {
    name: &'static str,
    range: RangeInclusive<u8>,
    /// Names of the numbers from `range.start()` on.
    names: &'static [&'static str],
}

impl Field {
    /// Reads a field; on error gives back the part that cannot be read.
    fn read<'a>(&self, field: &'a str) -> Result<Set, &'a str> {
        let mut parts = field.split(',').map(|part| self.part(part).ok_or(part));
        parts.try_fold(Set::default(), |all, part| Ok(Set(all.0 | part?.0)))
    }

    fn part(&self, part: &str) -> Option<Set> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step).filter(|step| *step > 0)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (*self.range.start(), *self.range.end()),
            Some((first, last)) => (self.number(first)?, self.last(last)?),
            // `5/10` means one thing to one cron and another to the next.
            None if step.is_some() => return None,
            None => (self.number(range)?, self.number(range)?),
        };
        (first <= last).then(|| Set::of((first..=last).step_by(step.unwrap_or(1).into())))
    }

    fn number(&self, text: &str) -> Option<u8> {
        let named =
            self.names.iter().zip(self.range.clone()).find(|(name, _)| name.eq_ignore_ascii_case(text));
        named.map(|(_, number)| number).or_else(|| number(text)).filter(|number| self.range.contains(number))
    }

    /// The end of a range: a week may end with Sunday.
    fn last(&self, text: &str) -> Option<u8> {
        let number = self.number(text)?;
        Some(if number == 0 && self.name == WEEKDAYS.name { 7 } else { number })
    }

    fn error(&self, text: &str, part: &str) -> InvalidCron {
        let (from, to) = self.range.clone().into_inner();
        InvalidCron::Field { text: text.to_owned(), field: self.name, part: part.to_owned(), from, to }
    }
}

/// Digits alone: what `str::parse` takes besides is no part of the syntax.
fn number(text: &str) -> Option<u8> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

const MINUTE: SignedDuration = SignedDuration::from_mins(1);
const MINUTES: Field = Field { name: "minute", range: 0..=59, names: &[] };
const HOURS: Field = Field { name: "hour", range: 0..=23, names: &[] };
const DAYS: Field = Field { name: "day of month", range: 1..=31, names: &[] };
const MONTHS: Field = Field {
    name: "month",
    range: 1..=12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Field =
    Field { name: "weekday", range: 0..=7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

#[cfg(test)]
mod tests;
