//! How far downstreams are behind, and whether that is more than it may be.
//!
//! A peer that is silent is the more behind the longer it is: what counts is the time since then, by this node's clock.

use jiff::Timestamp;
use zumastor_core::{
    NodeName, Selection, SnapshotRecord,
    config::{SourceConfig, TargetConfig},
};

use super::state::Cursor;
use crate::{
    api::{Lag, SourceStatus, TargetStatus},
    ui::Span,
};

/// What both ends of a link are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// The time.
    pub now: Timestamp,
    /// Since when it was to be worked on.
    pub since: Timestamp,
    /// Whether a person stopped it.
    pub stopped: bool,
}

/// How far a target is behind: the oldest snapshot that it is to have and has not must not wait for too long.
pub fn to_target(
    link: &Link,
    cursor: Option<Cursor>,
    records: &[SnapshotRecord],
    target: &TargetConfig,
) -> Lag {
    let lag = lag(link, cursor, records, &target.rotations);
    let mut missing = records
        .iter()
        .filter(|record| target.rotations.takes(record) && Some(record.number()) > lag.common)
        .map(|record| record.new.created);
    let since = missing.next().map(|oldest| match lag.common {
        Some(_) => oldest,
        // Nobody could have sent it before.
        None => oldest.max(link.since),
    });
    let waiting = since.map_or(0, |since| seconds(since, link.now));
    judged(lag, link, waiting, allowed(target.period, target.margin))
}

/// How far this node is behind its source: it must hear from it in time. Where it does not ask by itself, it waits for the
/// source, and a connection is as good as a word.
pub fn from_source(
    link: &Link,
    cursor: Option<Cursor>,
    records: &[SnapshotRecord],
    source: &SourceConfig,
    connected: bool,
) -> Lag {
    let lag = lag(link, cursor, records, &Selection::default());
    let heard = lag.confirmed.unwrap_or(link.since);
    let waiting = if source.period.is_none() && connected { 0 } else { seconds(heard, link.now) };
    judged(lag, link, waiting, allowed(source.period, source.margin))
}

/// Who is late, in words.
pub fn late(source: Option<&SourceStatus>, targets: &[TargetStatus]) -> Option<String> {
    let source = source.filter(|source| source.lag.late_seconds.is_some()).map(|source| {
        let (host, lag) = (&source.config.host, &source.lag);
        let (waiting, allowed) = (Span(lag.waiting_seconds), Span(lag.allowed_seconds));
        match source.work.progress.and_then(|progress| progress.number) {
            None => format!("nothing has been heard from {host} for {waiting}, and {allowed} are allowed"),
            Some(_) => {
                format!("what comes from {host} has been under way for {waiting}, and {allowed} are allowed")
            }
        }
    });
    let target = |target: &TargetStatus| told(&target.host, &target.lag);
    let misses = |target: &TargetStatus| {
        let missed = target.missed.as_ref()?;
        Some(format!("{} {missed}", target.host))
    };
    let targets = targets.iter().filter_map(target).chain(targets.iter().filter_map(misses));
    let all: Vec<_> = source.into_iter().chain(targets).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn told(host: &NodeName, lag: &Lag) -> Option<String> {
    lag.late_seconds?;
    let (waiting, allowed) = (Span(lag.waiting_seconds), Span(lag.allowed_seconds));
    Some(format!("{host} has lacked a snapshot for {waiting}, and {allowed} are allowed"))
}

/// Of the snapshots that are not there yet, those that are selected are behind.
fn lag(link: &Link, cursor: Option<Cursor>, records: &[SnapshotRecord], selection: &Selection) -> Lag {
    let common = cursor.map(|cursor| cursor.common);
    let newer = |record: &&SnapshotRecord| selection.takes(record) && Some(record.number()) > common;
    let shown = records.iter().find(|record| Some(record.number()) == common);
    Lag {
        common,
        confirmed: cursor.map(|cursor| cursor.confirmed),
        behind: records.iter().filter(newer).count() as u64,
        age_seconds: shown.map(|record| seconds(record.new.created, link.now)),
        ..Lag::default()
    }
}

fn judged(lag: Lag, link: &Link, waiting: u64, allowed: u64) -> Lag {
    let late = waiting.checked_sub(allowed).filter(|late| *late > 0 && !link.stopped);
    Lag { waiting_seconds: waiting, allowed_seconds: allowed, late_seconds: late, ..lag }
}

/// How long it may take until a snapshot is there, or something is heard.
fn allowed(period: Option<u64>, margin: Option<u64>) -> u64 {
    match (period, margin) {
        (Some(period), margin) => period.saturating_add(margin.unwrap_or((period / 2).max(LEAST_MARGIN))),
        (None, margin) => margin.unwrap_or(WITHOUT_PERIOD),
    }
}

/// A transfer takes its time, however short the period.
const LEAST_MARGIN: u64 = 60;
/// Where nobody said how often: it is to be noticed within a day that nothing happens.
const WITHOUT_PERIOD: u64 = 24 * 3600;

/// Seconds from one moment to a later one.
fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_secs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use zumastor_core::{Lineage, NewSnapshot, SnapshotNumber};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    /// Snapshots 0, 1 and 2, an hour apart.
    fn records() -> Vec<SnapshotRecord> {
        let record = |number| SnapshotRecord {
            new: NewSnapshot {
                created: at(number as i64 * 3600),
                ..NewSnapshot::manual(SnapshotNumber(number), Lineage::generate())
            },
            size: 1,
            digest: None,
        };
        (0..3).map(record).collect()
    }

    fn link(now: i64) -> Link {
        Link { now: at(now), since: at(0), stopped: false }
    }

    fn has(number: u64, confirmed: i64) -> Option<Cursor> {
        Some(Cursor { common: SnapshotNumber(number), confirmed: at(confirmed) })
    }

    #[test]
    fn a_target_is_late_when_a_snapshot_has_waited_for_the_period_and_the_margin() {
        let daily = TargetConfig { period: Some(3600), margin: Some(600), ..TargetConfig::default() };
        let lag = |now, cursor| to_target(&link(now), cursor, &records(), &daily);
        // It has all there is, however old that is.
        let all = lag(1_000_000, has(2, 7200));
        assert_eq!((all.behind, all.waiting_seconds, all.late_seconds), (0, 0, None));
        assert_eq!(all.age_seconds, Some(1_000_000 - 7200));
        // What it lacks counts from when that was taken.
        let behind = lag(3600 + 4200, has(0, 0));
        assert_eq!((behind.behind, behind.waiting_seconds, behind.late_seconds), (2, 4200, None));
        assert_eq!(lag(3600 + 4201, has(0, 0)).late_seconds, Some(1));
        // A day later it is a day later.
        assert_eq!(lag(3600 + 4201 + 86400, has(0, 0)).late_seconds, Some(86401));
        let stopped = Link { stopped: true, ..link(1_000_000) };
        assert_eq!(to_target(&stopped, has(0, 0), &records(), &daily).late_seconds, None);
        // With nothing in common, not from before this node was there.
        let fresh = Link { since: at(9000), ..link(9100) };
        assert_eq!(to_target(&fresh, None, &records(), &daily).waiting_seconds, 100);
    }

    #[test]
    fn a_replica_is_late_when_it_has_not_heard_from_its_source() {
        let source = |period, margin| {
            let host = "alpha".parse().unwrap();
            SourceConfig { host, period, name: None, margin, mount_snap: false, export: Vec::new() }
        };
        let lag =
            |now, source, connected| from_source(&link(now), has(2, 7200), &records(), &source, connected);
        let silent = lag(7200 + 91, source(Some(30), None), false);
        assert_eq!((silent.waiting_seconds, silent.allowed_seconds, silent.late_seconds), (91, 90, Some(1)));
        assert_eq!(silent.age_seconds, Some(91));
        // Asked in vain is not heard, connected or not.
        assert_eq!(lag(7200 + 91, source(Some(30), None), true).late_seconds, Some(1));
        // One that waits for its source is content with a connection.
        assert_eq!(lag(7200 + 90_000, source(None, None), true).late_seconds, None);
        assert_eq!(lag(7200 + 90_000, source(None, None), false).late_seconds, Some(3600));
        assert_eq!(lag(7200 + 20, source(None, Some(19)), false).late_seconds, Some(1));
    }
}
