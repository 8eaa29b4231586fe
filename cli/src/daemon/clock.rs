//! The time of day and the calendar, as the daemon sees them: the machine's, or a test's.

use std::fmt;

use jiff::{Timestamp, tz::TimeZone};

use crate::exit::chain;

/// Tells the time. Waiting is tokio's, whose clock a test can drive as well.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time of day. It may jump in either direction.
    fn now(&self) -> Timestamp;

    /// The zone in which calendars are read.
    fn zone(&self) -> TimeZone;
}

/// The clock of this machine.
#[derive(Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn zone(&self) -> TimeZone {
        TimeZone::system()
    }
}

/// Says so if this machine's time zone is not to be had: calendars are read in UTC then.
pub fn warn_of_zone() {
    if let Err(error) = TimeZone::try_system() {
        tracing::warn!(
            error = %chain(&error),
            "the time zone of this machine is not known, so schedules go by UTC: see to TZ or /etc/localtime, then \
             restart the daemon"
        );
    }
}

/// What a time zone is called.
pub fn zone_name(zone: &TimeZone) -> String {
    match zone.iana_name() {
        Some(name) => name.to_owned(),
        None if zone.is_unknown() => "UTC, because the time zone is not known".to_owned(),
        None => zone
            .to_fixed_offset()
            .map_or_else(|_| "the local time zone".to_owned(), |offset| format!("UTC{offset}")),
    }
}
