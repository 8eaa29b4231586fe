//! When a replication runs: its period, and the pauses after errors. Only arithmetic, so that tests need no clock.

use std::time::Duration;

use tokio::time::Instant;

/// Pause after the first error.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after an error.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Even a short period does not make a peer that is away be tried more often than this for long.
const LEAST_LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Least pause after an error that only a person can change: nobody may ever say here that they have.
const SLOW: Duration = Duration::from_secs(600);

/// Longest time by which something begins earlier to begin together with others.
const MOMENT: Duration = Duration::from_secs(1);

/// When a replication runs next. A time that was missed, because the machine was off or the one before took too long,
/// is made up for once, not once per miss.
#[derive(Debug)]
pub struct Schedule {
    period: Option<Duration>,
    began: Option<Instant>,
    failures: u32,
    stopped: bool,
    due: Option<Instant>,
    /// Since when moments are counted, where what falls into the same one is to begin together.
    moments: Option<Instant>,
}

impl Schedule {
    /// Runs every `period`, if there is one, and `at_once` or when a period is over for the first time.
    pub fn new(period: Option<Duration>, at_once: bool, now: Instant) -> Self {
        let due = if at_once { Some(now) } else { period.map(|period| now + period) };
        Self { period, began: None, failures: 0, stopped: false, due, moments: None }
    }

    /// Begins at the beginning of a moment, counted from `start`, where its period ends in that. With all others of this node that
    /// do so: threads are woken once for all of them, and what they say to a peer goes in the same packets. A moment is a tenth of
    /// the period, and a second at most; the periods after the first are as long as they should be.
    pub fn together(self, start: Instant) -> Self {
        Self { moments: Some(start), ..self }
    }

    /// When it runs next without being asked.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A run begins, for whatever reason.
    pub fn begin(&mut self, now: Instant) {
        self.began = Some(now);
        self.stopped = false;
    }

    /// It went well, or there was nothing to do.
    pub fn succeed(&mut self, now: Instant) {
        self.failures = 0;
        let began = self.began.unwrap_or(now);
        self.due = self.period.map(|period| self.moment(began + period, period).max(now));
    }

    /// The beginning of the moment that a time falls into.
    fn moment(&self, at: Instant, period: Duration) -> Instant {
        let length = (period / 10).min(MOMENT).as_nanos();
        let since = self.moments.map_or(0, |start| at.saturating_duration_since(start).as_nanos());
        let into = since.checked_rem(length).unwrap_or(0);
        at - Duration::from_nanos(u64::try_from(into).expect("less than a second"))
    }

    /// It failed and is worth another try. `jitter` is between 0 and 1: nodes that lost each other at the same moment
    /// must not all come back at the same moment.
    pub fn fail(&mut self, now: Instant, jitter: f64) {
        let longest =
            self.period.map_or(LONGEST_PAUSE, |period| period.clamp(LEAST_LONGEST_PAUSE, LONGEST_PAUSE));
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        self.due = Some(now + pause.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0));
    }

    /// It failed in a way that only a person can change: it runs when it is asked for, or [rearmed](Self::rearm), and
    /// otherwise rarely.
    pub fn stop(&mut self, now: Instant) {
        self.failures = 0;
        self.stopped = true;
        self.due = Some(now + self.period.map_or(SLOW, |period| period.max(SLOW)));
    }

    /// If it stopped, it is worth another try now.
    pub fn rearm(&mut self, now: Instant) {
        if self.stopped {
            self.due = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_five_minutes_and_start_again_after_a_success() {
        let now = Instant::now();
        let mut schedule = Schedule::new(None, false, now);
        assert_eq!(schedule.due(), None);
        let pauses: Vec<u64> = (0..11)
            .map(|_| {
                schedule.fail(now, 0.5);
                (schedule.due().unwrap() - now).as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        schedule.succeed(now);
        assert_eq!(schedule.due(), None);
        schedule.fail(now, 0.0);
        assert_eq!(schedule.due(), Some(now + SECOND.mul_f64(0.75)));
        schedule.rearm(now);
        assert_eq!(schedule.due(), Some(now + SECOND.mul_f64(0.75)));
        schedule.stop(now);
        assert_eq!(schedule.due(), Some(now + SECOND * 600));
        schedule.rearm(now);
        assert_eq!(schedule.due(), Some(now));
        let mut daily = Schedule::new(Some(SECOND * 86400), true, now);
        daily.stop(now);
        assert_eq!(daily.due(), Some(now + SECOND * 86400));
    }

    #[test]
    fn a_period_bounds_the_pauses() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Some(SECOND * 20), true, now);
        for _ in 0..40 {
            schedule.fail(now, 0.5);
        }
        assert_eq!(schedule.due(), Some(now + SECOND * 20));
    }

    #[test]
    fn what_falls_into_the_same_moment_begins_together() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let schedule = |began| {
            let mut schedule = Schedule::new(Some(SECOND * 10), true, began).together(start);
            schedule.begin(began);
            schedule.succeed(began + SECOND);
            schedule
        };
        let (mut one, two, three) = (schedule(ms(1200)), schedule(ms(1999)), schedule(ms(2000)));
        assert_eq!((one.due(), two.due()), (Some(ms(11_000)), Some(ms(11_000))));
        assert_eq!(three.due(), Some(ms(12_000)));
        // From then on a period after the other, though each begins a little late.
        for turn in 1..5 {
            one.begin(ms(1000 + turn * 10_000 + 3));
            one.succeed(ms(1000 + turn * 10_000 + 50));
            assert_eq!(one.due(), Some(ms(1000 + (turn + 1) * 10_000)));
        }
        // A short period is not shortened by much.
        let mut short = Schedule::new(Some(SECOND), true, start).together(start);
        short.begin(ms(1090));
        short.succeed(ms(1090));
        assert_eq!(short.due(), Some(ms(2000)));
        // Pauses after errors are as they were.
        short.fail(ms(2090), 0.5);
        assert_eq!(short.due(), Some(ms(3090)));
    }

    #[test]
    fn missed_periods_are_made_up_for_once() {
        let start = Instant::now();
        let mut schedule = Schedule::new(Some(SECOND * 10), true, start);
        assert_eq!(schedule.due(), Some(start));
        schedule.begin(start);
        schedule.succeed(start + SECOND * 2);
        assert_eq!(schedule.due(), Some(start + SECOND * 10));
        // One run takes three periods and a half; the next begins at once, the one after that a period later.
        let begun = start + SECOND * 10;
        schedule.begin(begun);
        let ended = begun + SECOND * 35;
        schedule.succeed(ended);
        assert_eq!(schedule.due(), Some(ended));
        schedule.begin(ended);
        schedule.succeed(ended + SECOND);
        assert_eq!(schedule.due(), Some(ended + SECOND * 10));
    }
}
