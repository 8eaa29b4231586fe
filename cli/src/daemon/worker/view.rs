//! What is to be seen of a worker from outside.

use std::{collections::VecDeque, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use zumastor_core::SnapshotNumber;
use zumastor_net::Progress;

use crate::api::{AskedRun, LastRun, WorkError, WorkState, WorkStatus};

/// What is to be seen of a worker.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub running: Option<Progress>,
    pub remark: Option<String>,
    pub rate: u64,
    pub next: Option<Instant>,
    pub error: Option<WorkError>,
    pub last: Option<LastRun>,
    pub wanted: Option<SnapshotNumber>,
    pub asked: Option<(Instant, Option<SnapshotNumber>)>,
}

impl View {
    /// As the API tells it.
    pub fn status(&self, now: Instant) -> WorkStatus {
        let state = match (&self.running, &self.error) {
            (Some(progress), _) => progress.phase.into(),
            (None, Some(error)) if error.permanent => WorkState::Stopped,
            (None, Some(_)) => WorkState::Waiting,
            (None, None) => WorkState::Idle,
        };
        let time = |at: Instant| {
            let wait =
                SignedDuration::try_from(at.saturating_duration_since(now)).unwrap_or(SignedDuration::MAX);
            Timestamp::now().saturating_add(wait).unwrap_or(Timestamp::MAX)
        };
        let next = self.next.filter(|_| self.running.is_none()).map(time);
        let asked = self.asked.map(|(at, snapshot)| AskedRun { at: time(at), snapshot });
        WorkStatus {
            state,
            progress: self.running,
            remark: self.remark.clone().filter(|_| self.running.is_some()),
            rate: if self.running.is_some() { self.rate } else { 0 },
            next,
            asked,
            error: self.error.clone(),
            last: self.last,
        }
    }
}

/// Bytes a second during the last seconds.
#[derive(Debug, Default)]
pub struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    const WINDOW: Duration = Duration::from_secs(5);
    const STEP: Duration = Duration::from_millis(200);

    /// Notes how many bytes there are by now, and gives the rate.
    pub fn note(&mut self, now: Instant, bytes: u64) -> u64 {
        while self.0.len() > 1 && now - self.0[1].0 > Self::WINDOW {
            self.0.pop_front();
        }
        if self.0.back().is_none_or(|(last, _)| now - *last >= Self::STEP) {
            self.0.push_back((now, bytes));
        }
        let (since, before) = self.0.front().copied().unwrap_or((now, bytes));
        let seconds = (now - since).as_secs_f64();
        if seconds > 0.0 { (bytes.saturating_sub(before) as f64 / seconds) as u64 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut rate = Rate::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.note(at(0), 0), 0);
        for second in 1..=10 {
            assert_eq!(rate.note(at(second), second * 100), 100);
        }
        // Nothing comes any more.
        assert_eq!(rate.note(at(30), 1000), 0);
    }
}
