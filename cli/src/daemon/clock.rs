//! The time of day and the calendar, as the daemon sees them: the machine's, or a test's.

use std::{fmt, fs, path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use crate::exit::chain;

/// Tells the time. Waiting is tokio's, whose clock a test can drive as well.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time of day. It may jump in either direction.
    fn now(&self) -> Timestamp;

    /// The zone in which calendars are read.
    fn zone(&self) -> TimeZone;

    /// Longest time between two looks at it by who waits for a time of day.
    fn look(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// The clock that the daemon goes by: this machine's. A program that is built for debugging can be told another one, by a file
/// that a test writes.
pub fn of_the_daemon() -> Arc<dyn Clock> {
    match std::env::var_os("ZUMASTOR_TEST_CLOCK") {
        Some(file) if cfg!(debug_assertions) => Arc::new(TestClock(file.into())),
        _ => Arc::new(SystemClock),
    }
}

/// The clock of this machine.
#[derive(Debug)]
struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn zone(&self) -> TimeZone {
        TimeZone::system()
    }
}

/// Ahead of this machine's clock by as many milliseconds as a file says, and in its zone.
#[derive(Debug)]
struct TestClock(PathBuf);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let ahead = fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok());
        Timestamp::now() + SignedDuration::from_millis(ahead.unwrap_or(0))
    }

    fn zone(&self) -> TimeZone {
        SystemClock.zone()
    }

    fn look(&self) -> Duration {
        Duration::from_millis(10)
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
