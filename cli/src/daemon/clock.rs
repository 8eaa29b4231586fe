//! The time of day and the calendar, as the daemon sees them: the machine's, or a test's.

use std::fmt;

use jiff::{Timestamp, tz::TimeZone};

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
