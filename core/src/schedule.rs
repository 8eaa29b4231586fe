//! When the next snapshot of a volume is to be taken, and in which rotations.
//!
//! Everything follows from the snapshots there are and the clock; nothing else is remembered. A rotation has *ticks*,
//! the moments that its [`Every`] names. A tick is *served* by any snapshot of the rotation that was created from then
//! on until before the next tick, and only the latest tick counts:
//!
//! - However many ticks were missed, by a machine that was off or a clock that was set forward, the latest is caught up
//!   once and the others are gone.
//! - When the clock is set back, it passes ticks again whose snapshots are there; they are served. Where there is no
//!   snapshot, one is taken, so times in the future, even far off, keep nothing from being taken.
//! - The moment at which the schedule began counts like a snapshot: the first one is taken at the first tick after it.
//!
//! So a tick whose snapshot was deleted since is no longer served, and another is taken at once. Who does not want that
//! gives, for the moment at which the schedule began, a later one at which nothing was left to take.

use std::collections::HashMap;

use jiff::{Timestamp, tz::TimeZone};

use crate::{Every, NewSnapshot, RotationName, RotationSpec, SnapshotRecord};

/// What is to be done at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    /// The rotations of the one snapshot that is to be taken now; when empty, none is.
    pub take: Vec<RotationName>,
    /// The next tick of any rotation, if there is one: when to ask again, and earlier when the schedule changes or the
    /// clock is set. Where the clock was set back, that tick may turn out to be served.
    pub next: Option<Timestamp>,
}

/// What a volume's schedule asks for at `now`, given all of its snapshots and the moment since when it has the schedule.
/// The snapshot that is taken must carry `now` as its time, so that it serves the ticks it was taken for.
///
/// When more rotations are due than a snapshot may belong to, the others follow with the next one, at once.
pub fn plan_tick(
    specs: &[RotationSpec],
    snapshots: &[SnapshotRecord],
    tz: &TimeZone,
    since: Timestamp,
    now: Timestamp,
) -> Tick {
    let mut taken: HashMap<&str, Vec<Timestamp>> = HashMap::new();
    for snapshot in snapshots {
        for rotation in &snapshot.new.rotations {
            taken.entry(rotation).or_default().push(snapshot.new.created);
        }
    }
    let mut tick = Tick { take: Vec::new(), next: None };
    for spec in specs.iter().filter(|spec| spec.keep > 0) {
        let Some(every) = &spec.every else { continue };
        let served = Served::new(since, taken.get(spec.name.as_str()).cloned().unwrap_or_default());
        if due(every, tz, &served, now).is_some() {
            tick.take.push(spec.name.clone());
        }
        tick.next = tick.next.into_iter().chain(every.after(tz, now)).min();
    }
    if tick.take.len() > NewSnapshot::MAX_ROTATIONS {
        tick.take.truncate(NewSnapshot::MAX_ROTATIONS);
        tick.next = Some(now);
    }
    tick
}

/// The moment since when a snapshot is due; none when the latest tick is served.
pub fn due(every: &Every, tz: &TimeZone, served: &Served, now: Timestamp) -> Option<Timestamp> {
    let missed = match served.until(now) {
        Some(last) => every.after(tz, last).filter(|tick| *tick <= now)?,
        // All that is known lies in the future, so the clock was set back: whether a tick was missed cannot be told.
        None => now,
    };
    let served_ahead = served.any(now, every.after(tz, now));
    (!served_ahead).then_some(missed)
}

/// The moments that serve the ticks of one rotation.
#[derive(Debug, Clone)]
pub struct Served(Vec<Timestamp>);

impl Served {
    /// From the times of the rotation's snapshots, in any order, and the moment since when there is a schedule.
    pub fn new(since: Timestamp, mut taken: Vec<Timestamp>) -> Self {
        taken.push(since);
        taken.sort_unstable();
        Self(taken)
    }

    /// The latest that is not after `now`.
    fn until(&self, now: Timestamp) -> Option<Timestamp> {
        self.0[..self.0.partition_point(|time| *time <= now)].last().copied()
    }

    /// Whether there is one from `start` on, before `end`.
    fn any(&self, start: Timestamp, end: Option<Timestamp>) -> bool {
        let first = self.0.get(self.0.partition_point(|time| *time < start));
        first.is_some_and(|first| end.is_none_or(|end| *first < end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lineage, SnapshotNumber};

    const BERLIN: &str = "Europe/Berlin";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn specs(texts: &[&str]) -> Vec<RotationSpec> {
        let builtin = |name: &str| RotationSpec::new(name.parse().unwrap(), 5);
        texts.iter().map(|text| RotationSpec::parse_custom(text).unwrap_or_else(|_| builtin(text))).collect()
    }

    /// Snapshots as their time and their rotations.
    fn snapshots(all: &[(&str, &[&str])]) -> Vec<SnapshotRecord> {
        let record = |(index, (created, rotations)): (usize, &(&str, &[&str]))| {
            let manual = NewSnapshot::manual(SnapshotNumber(index as u64), Lineage::generate());
            let rotations = rotations.iter().map(ToString::to_string).collect();
            let new = NewSnapshot { created: at(created), rotations, ..manual };
            SnapshotRecord { new, size: 0, digest: None }
        };
        all.iter().enumerate().map(record).collect()
    }

    /// What is taken at `now`, and when to ask again, in Berlin by a schedule that began with 2026.
    fn plan(rotations: &[&str], all: &[(&str, &[&str])], now: &str) -> (String, String) {
        let tz = TimeZone::get(BERLIN).unwrap();
        let tick = plan_tick(&specs(rotations), &snapshots(all), &tz, at("2026-01-01T00:30:00Z"), at(now));
        let take: Vec<_> = tick.take.iter().map(RotationName::as_str).collect();
        (take.join(" "), tick.next.map_or_else(|| "never".to_owned(), |next| next.to_string()))
    }

    fn says(take: &str, next: &str) -> (String, String) {
        (take.to_owned(), next.to_owned())
    }

    #[test]
    fn the_first_snapshot_is_taken_at_the_first_tick() {
        let none = &[];
        assert_eq!(plan(&["hourly"], none, "2026-01-01T00:30:00Z"), says("", "2026-01-01T01:00:00Z"));
        assert_eq!(plan(&["hourly"], none, "2026-01-01T00:59:59.999Z"), says("", "2026-01-01T01:00:00Z"));
        assert_eq!(plan(&["hourly"], none, "2026-01-01T01:00:00Z"), says("hourly", "2026-01-01T02:00:00Z"));
        assert_eq!(plan(&["daily"], none, "2026-01-01T23:00:00Z"), says("daily", "2026-01-02T23:00:00Z"));
    }

    #[test]
    fn what_is_due_together_shares_a_snapshot() {
        let all: &[(&str, &[&str])] =
            &[("2026-05-31T21:00:00Z", &["hourly", "daily", "weekly", "monthly", "x"])];
        let rotations = ["hourly", "daily", "weekly", "monthly", "x,5,10m", "manually,3"];
        // Monday, 1 June, 00:00 local time.
        let (take, next) = plan(&rotations, all, "2026-05-31T22:00:00.25Z");
        assert_eq!((take.as_str(), next.as_str()), ("hourly daily weekly monthly x", "2026-05-31T22:10:00Z"));
    }

    #[test]
    fn missed_ticks_are_caught_up_once() {
        let before: (&str, &[&str]) = ("2026-03-01T11:00:00Z", &["hourly", "daily"]);
        let now = "2026-03-11T11:20:00Z";
        let rotations = ["hourly", "daily"];
        assert_eq!(plan(&rotations, &[before], now), says("hourly daily", "2026-03-11T12:00:00Z"));
        let caught_up: (&str, &[&str]) = (now, &["hourly", "daily"]);
        assert_eq!(plan(&rotations, &[before, caught_up], now), says("", "2026-03-11T12:00:00Z"));
        let later = "2026-03-11T12:00:00Z";
        assert_eq!(plan(&rotations, &[before, caught_up], later), says("hourly", "2026-03-11T13:00:00Z"));
    }

    #[test]
    fn due_tells_since_when() {
        let every: Every = "1h".parse().unwrap();
        let served = Served::new(at("2026-01-01T00:00:00Z"), vec![at("2026-01-01T03:10:00Z")]);
        let due = |now| due(&every, &TimeZone::UTC, &served, at(now));
        assert_eq!(due("2026-01-01T03:59:59Z"), None);
        assert_eq!(due("2026-01-01T09:30:00Z"), Some(at("2026-01-01T04:00:00Z")));
    }

    #[test]
    fn a_tick_that_the_clock_passes_again_stays_served() {
        let all: &[(&str, &[&str])] =
            &[("2026-05-05T08:00:01Z", &["hourly"]), ("2026-05-05T09:00:05Z", &["hourly"])];
        // Set back after 09:00:05, by seconds or by most of an hour: 09:00 comes again and is served.
        for (now, next) in [("08:20:00", "09"), ("08:59:55", "09"), ("09:00:00", "10"), ("09:00:04", "10")] {
            let next = format!("2026-05-05T{next}:00:00Z");
            assert_eq!(plan(&["hourly"], all, &format!("2026-05-05T{now}Z")), says("", &next), "at {now}");
        }
        assert_eq!(plan(&["hourly"], all, "2026-05-05T10:00:00Z").0, "hourly");
    }

    #[test]
    fn times_in_the_future_starve_nobody() {
        // The clock was wrong for a while: 2037 instead of 2026.
        let wrong: &[(&str, &[&str])] = &[("2037-05-05T08:00:00Z", &["hourly"])];
        assert_eq!(plan(&["hourly"], wrong, "2026-05-05T09:20:00Z"), says("hourly", "2026-05-05T10:00:00Z"));
        // So it was when the schedule began.
        let tz = TimeZone::UTC;
        let tick = |taken: &[(&str, &[&str])], now| {
            plan_tick(&specs(&["daily"]), &snapshots(taken), &tz, at("2037-01-01T00:00:00Z"), at(now)).take
        };
        assert_eq!(tick(&[], "2026-05-05T09:20:00Z"), [RotationName::Daily]);
        assert!(tick(&[("2026-05-05T09:20:00Z", &["daily"])], "2026-05-05T09:21:00Z").is_empty());
    }

    #[test]
    fn a_repeated_hour_is_two_hours_and_one_day() {
        let twice: &[(&str, &[&str])] = &[("2026-10-25T00:00:00Z", &["hourly", "night"])];
        // 02:00 summer time was just served; an hour later it is 02:00 again.
        let rotations = ["hourly", "night,5,0 2 * * *"];
        assert_eq!(plan(&rotations, twice, "2026-10-25T00:30:00Z"), says("", "2026-10-25T01:00:00Z"));
        assert_eq!(plan(&rotations, twice, "2026-10-25T01:00:00Z"), says("hourly", "2026-10-25T02:00:00Z"));
    }

    #[test]
    fn without_times_or_snapshots_to_keep_there_is_nothing_to_do() {
        let nothing = says("", "never");
        assert_eq!(plan(&[], &[], "2027-01-01T00:00:00Z"), nothing);
        assert_eq!(plan(&["by-hand,5", "none,0,1h"], &[], "2027-01-01T00:00:00Z"), nothing);
    }

    #[test]
    fn a_snapshot_asked_for_by_hand_serves_its_tick() {
        let all: &[(&str, &[&str])] = &[("2026-05-05T08:40:00Z", &["hourly"])];
        assert_eq!(plan(&["hourly"], all, "2026-05-05T08:50:00Z"), says("", "2026-05-05T09:00:00Z"));
        let manual: &[(&str, &[&str])] = &[("2026-05-05T08:40:00Z", &[])];
        assert_eq!(plan(&["hourly"], manual, "2026-05-05T08:50:00Z").0, "hourly");
    }

    #[test]
    fn more_rotations_than_a_snapshot_has_follow_at_once() {
        let names: Vec<_> = (0..70).map(|i| format!("r{i:02},5,1h")).collect();
        let rotations: Vec<_> = names.iter().map(String::as_str).collect();
        let now = "2026-05-05T08:00:00Z";
        let (take, next) = plan(&rotations, &[], now);
        let first: Vec<_> = take.split(' ').collect();
        assert_eq!((first.len(), next.as_str()), (NewSnapshot::MAX_ROTATIONS, now));
        assert_eq!(
            plan(&rotations, &[(now, &first)], now),
            says("r64 r65 r66 r67 r68 r69", "2026-05-05T09:00:00Z")
        );
    }
}
