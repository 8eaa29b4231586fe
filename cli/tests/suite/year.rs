//! A year of a daemon whose clock is set: it is there for some hours only, is killed, sleeps for weeks, and its summer time begins
//! and ends. `core/tests/year` looks at every minute of such years, without a daemon.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp, ToSpan, ZonedDateTime, civil::date, tz::TimeZone};

use crate::common::{Node, image, wait_for};

/// Rotations and how many of each are kept.
const KEPT: [(&str, usize); 4] = [("hourly", 30), ("daily", 10), ("weekly", 6), ("monthly", 9)];

/// The snapshots that are to be there.
struct Expected {
    zone: TimeZone,
    /// When the rotations were defined.
    since: ZonedDateTime,
    /// How many were taken.
    taken: u64,
    /// Number, moment and rotations.
    there: Vec<(u64, ZonedDateTime, BTreeSet<&'static str>)>,
}

/// The last tick of a rotation at a moment.
fn tick(rotation: &str, at: &ZonedDateTime) -> i64 {
    let day = at.date();
    let first = match rotation {
        // The zone's clock is set by whole hours.
        "hourly" => return at.timestamp().as_second() / 3600,
        "daily" => day,
        "weekly" => day - i64::from(day.weekday().to_monday_zero_offset()).days(),
        "monthly" => day.first_of_month(),
        _ => unreachable!(),
    };
    first.to_zoned_datetime(at.time_zone().clone()).unwrap().timestamp().as_second()
}

impl Expected {
    /// The daemon is there at this moment.
    fn at(&mut self, moment: Timestamp) {
        let now = moment.to_zoned_datetime(self.zone.clone());
        let due = |rotation: &str| {
            let same = |then: &ZonedDateTime| tick(rotation, then) == tick(rotation, &now);
            let served = self.there.iter().any(|(_, then, of)| of.contains(rotation) && same(then));
            !served && !same(&self.since)
        };
        let due: BTreeSet<_> = KEPT.iter().map(|(name, _)| *name).filter(|name| due(name)).collect();
        if due.is_empty() {
            return;
        }
        self.there.push((self.taken, now, due));
        self.taken += 1;
        let newest = |(rotation, keep): &(&'static str, usize)| {
            let of = self.there.iter().rev().filter(|(_, _, rotations)| rotations.contains(rotation));
            of.take(*keep).map(|(number, ..)| *number).collect::<Vec<_>>()
        };
        let kept: BTreeSet<_> = KEPT.iter().flat_map(newest).collect();
        self.there.retain(|(number, ..)| kept.contains(number));
    }
}

/// The moments at which the daemon is there: each hour around the days on which the clocks are set, and in the last days of the
/// year; otherwise once or twice a day.
fn moments(zone: &TimeZone) -> Vec<Timestamp> {
    let mut moments = Vec::new();
    let mut day = date(2026, 1, 2);
    while day < date(2027, 1, 1) {
        let set = [date(2026, 3, 29), date(2026, 10, 25)];
        let busy = set.iter().any(|set| (*set - day).get_days().abs() <= 1) || day >= date(2026, 12, 30);
        let begins = day.to_zoned_datetime(zone.clone()).unwrap().timestamp();
        let ends = day.tomorrow().unwrap().to_zoned_datetime(zone.clone()).unwrap().timestamp();
        let minutes = ends.duration_since(begins).as_mins();
        let n = i64::from(day.day_of_year());
        let seen = match busy {
            true => (0..minutes / 60).map(|hour| hour * 60).collect(),
            false if n % 3 == 0 => vec![n * 37 % 700, 700 + n * 11 % 700],
            false => vec![n * 53 % 1400],
        };
        moments.extend(seen.into_iter().map(|minute| begins + SignedDuration::from_secs(minute * 60 + 1)));
        day = day.tomorrow().unwrap();
    }
    moments
}

#[test]
fn a_year_of_a_daemon_leaves_exactly_the_snapshots_that_are_expected() {
    if cfg!(not(debug_assertions)) {
        println!("left out: this build has no clock that could be set");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    node.down();
    node.zone = "Europe/Berlin";
    let begin = date(2026, 1, 1).at(12, 20, 0, 0).to_zoned_datetime(zone.clone()).unwrap();
    node.set_clock(begin.timestamp());
    node.up();
    image(&node.path("v.img"), 64 << 10, 1);
    node.define("v");
    let kept = KEPT.map(|(name, keep)| [format!("--{name}"), keep.to_string()]).concat();
    let kept: Vec<_> = kept.iter().map(String::as_str).collect();
    node.ok(&[&["define", "master", "v"], &kept[..]].concat());

    let mut expected = Expected { zone: zone.clone(), since: begin, taken: 0, there: Vec::new() };
    let mut off = 0;
    let moments = moments(&zone);
    for (n, moment) in moments.iter().copied().enumerate() {
        // Off for three weeks of July.
        let day = moment.to_zoned_datetime(zone.clone()).date();
        if (date(2026, 7, 3)..date(2026, 7, 24)).contains(&day) {
            off += 1;
            continue;
        }
        match n % 40 {
            10 => node.kill(),
            20 => assert_eq!(node.down(), 0),
            _ => {}
        }
        expected.at(moment);
        node.set_clock(moment);
        if [10, 20].contains(&(n % 40)) {
            node.up();
        }
        settled(&node, &expected, moment);
        if n % 50 == 25 {
            // Set back, and on again: nothing is taken twice.
            for set in [moment - SignedDuration::from_mins(20), moment] {
                expected.at(set);
                node.set_clock(set);
                settled(&node, &expected, set);
            }
        }
    }
    assert!(off > 20 && expected.taken > 400, "{off} days off, {} snapshots", expected.taken);
    let full = |(name, keep): &(&str, usize)| {
        expected.there.iter().filter(|(.., of)| of.contains(name)).count() >= *keep
    };
    assert!(KEPT.iter().all(full), "the year is too short for the limits");
    println!("{} snapshots taken at {} moments", expected.taken, moments.len());
}

/// Waits until everything that was due was done, and looks at what there is.
fn settled(node: &Node, expected: &Expected, moment: Timestamp) {
    let wanted: Vec<_> =
        expected.there.iter().map(|(number, _, of)| (*number, of.iter().copied().collect())).collect();
    wait_for(&format!("what is expected at {moment}"), || {
        let volume = node.volume("v");
        let next = volume.schedule.as_ref()?.next?;
        let there: Vec<(u64, BTreeSet<&str>)> = volume
            .snapshots
            .iter()
            .map(|snapshot| (snapshot.number.0, snapshot.rotations.iter().map(String::as_str).collect()))
            .collect();
        (next > moment && there == wanted).then_some(())
    });
    for ((number, then, _), snapshot) in expected.there.iter().zip(node.volume("v").snapshots) {
        let late = snapshot.created.duration_since(then.timestamp());
        assert!(
            (0..60).contains(&late.as_secs()),
            "snapshot {number}: {} instead of {then}",
            snapshot.created
        );
    }
}
