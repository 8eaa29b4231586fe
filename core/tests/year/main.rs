//! A year of scheduled snapshots under a clock of our own, in several time zones: with restarts, times in which the
//! machine is off, and clocks that are set. Snapshots are exactly those of an oracle that looks at every minute.

mod oracle;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{Timestamp, tz::TimeZone};
use oracle::{Calendar, MARGIN, Oracle, ROTATIONS, Rotations, Snapshot, YEAR, members};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use zumastor_core::{
    Hold, HoldOwner, Lineage, NewSnapshot, RotationName, RotationSpec, SnapshotNumber, SnapshotRecord,
    retention::{self, Fate},
    schedule::{self, Tick},
};

/// Time zones, each with a year that sets the clock in its own way.
const ZONES: [(&str, &str); 6] = [
    ("UTC", "2024-01-01T00:00:00Z"),
    ("Europe/Berlin", "2026-01-10T09:17:00Z"),
    ("America/New_York", "2025-07-04T13:30:00Z"),
    // Half an hour of daylight saving.
    ("Australia/Lord_Howe", "2025-06-30T23:59:00Z"),
    // No midnight on 15 October 2017, and 23:00 twice on 17 February 2018.
    ("America/Sao_Paulo", "2017-07-01T12:00:00Z"),
    // No midnight on 28 April 2023.
    ("Africa/Cairo", "2023-01-31T05:05:00Z"),
];

/// What happens to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The daemon starts anew, and knows only what the snapshots say.
    Restart,
    /// Off for so many minutes.
    Off(i64),
    /// The clock is set, by so many minutes.
    Set(i64),
    /// A person holds the newest snapshot.
    Hold,
}

/// Events with the minute of the year in which they happen.
type Script = Vec<(i64, Event)>;

/// What runs on the machine: the code under test, woken when it asked to be.
struct Machine<'a> {
    calendar: &'a Calendar,
    tz: TimeZone,
    specs: Vec<RotationSpec>,
    limits: BTreeMap<RotationName, u32>,
    snapshots: Vec<SnapshotRecord>,
    holds: Vec<Hold>,
    taken: Vec<(i64, Rotations)>,
    /// When to look again, by the clock; none when only an event can change something.
    wake: Option<i64>,
}

impl Machine<'_> {
    fn look(&mut self, minute: i64) {
        let now = self.calendar.time(minute);
        let plan = |all: &[_]| schedule::plan_tick(&self.specs, all, &self.tz, self.calendar.time(0), now);
        let Tick { take, next } = plan(&self.snapshots);
        self.wake = next.map(|next| self.calendar.minute(next));
        if take.is_empty() {
            return;
        }
        let number = SnapshotNumber(self.taken.len() as u64);
        let names: Vec<_> = take.iter().map(ToString::to_string).collect();
        self.taken.push((minute, places(&names)));
        let new = NewSnapshot {
            created: now,
            rotations: names,
            ..NewSnapshot::manual(number, Lineage::generate())
        };
        self.snapshots.push(SnapshotRecord { new, size: 0, digest: None });
        assert_eq!(plan(&self.snapshots), Tick { take: vec![], next }, "what was taken is due again");
        self.drop_old();
        self.check(minute);
    }

    fn drop_old(&mut self) {
        let verdicts = retention::plan(&self.snapshots, &self.limits, &self.holds);
        let goes = |fate: &Fate| matches!(fate, Fate::Drop(_));
        let dropped: BTreeSet<_> =
            verdicts.iter().filter(|verdict| goes(&verdict.fate)).map(|verdict| verdict.number).collect();
        self.snapshots.retain(|snapshot| !dropped.contains(&snapshot.number()));
    }

    /// What must hold at any moment: one snapshot a tick, and no more than the limits and the holds allow.
    fn check(&self, minute: i64) {
        let mut served = BTreeSet::new();
        for snapshot in self.kept() {
            for rotation in members(snapshot.rotations) {
                let tick = self.calendar.tick(rotation, snapshot.minute);
                assert!(
                    served.insert((rotation, tick)),
                    "{} twice for a tick, at {minute}",
                    ROTATIONS[rotation].0
                );
            }
        }
        let most = ROTATIONS.iter().map(|(_, keep, _)| keep).sum::<usize>() + self.holds.len();
        assert!(self.snapshots.len() <= most, "{} snapshots at {minute}", self.snapshots.len());
    }

    fn kept(&self) -> Vec<Snapshot> {
        let plain = |record: &SnapshotRecord| Snapshot {
            number: record.number().0,
            minute: self.calendar.minute(record.new.created),
            rotations: places(&record.new.rotations),
            held: self.holds.iter().any(|hold| hold.number == record.number()),
        };
        self.snapshots.iter().map(plain).collect()
    }
}

/// Lives through a year, compares with the oracle, and gives back the snapshots that were taken.
fn live(zone: usize, calendar: &Calendar, script: &Script) -> Vec<(i64, Rotations)> {
    let specs: Vec<_> = ROTATIONS.iter().map(spec).collect();
    let mut machine = Machine {
        calendar,
        tz: TimeZone::get(ZONES[zone].0).unwrap(),
        limits: specs.iter().map(|spec| (spec.name.clone(), spec.keep)).collect(),
        specs,
        snapshots: vec![],
        holds: vec![],
        taken: vec![],
        wake: None,
    };
    let mut oracle = Oracle { calendar, kept: vec![], taken: vec![] };
    let mut events = script.iter().peekable();
    let (mut set_by, mut off_until) = (0i64, 0);
    for minute in 0..YEAR {
        let mut happened = minute == off_until;
        while let Some((_, event)) = events.next_if(|(at, _)| *at <= minute) {
            happened = true;
            match event {
                Event::Restart => {}
                Event::Off(minutes) => off_until = off_until.max(minute + minutes),
                // Not out of the calendar.
                Event::Set(minutes) => set_by = (set_by + minutes).clamp(-MARGIN + 1, MARGIN - 1),
                Event::Hold => hold_newest(&mut machine, &mut oracle),
            }
        }
        let clock = minute + set_by;
        if minute >= off_until {
            if happened || machine.wake.is_some_and(|wake| wake <= clock) {
                machine.look(clock);
            }
            oracle.minute(clock);
        }
    }
    assert_eq!(machine.taken, oracle.taken);
    assert_eq!(machine.kept(), oracle.kept);
    machine.taken
}

fn places(names: &[String]) -> Rotations {
    let place = |name| ROTATIONS.iter().position(|(other, ..)| *other == name).unwrap();
    names.iter().map(|name| 1 << place(name.as_str())).sum()
}

fn spec((name, keep, every): &(&str, usize, &str)) -> RotationSpec {
    match *every {
        "" => RotationSpec::new(name.parse().unwrap(), u32::try_from(*keep).unwrap()),
        every => RotationSpec::parse_custom(&format!("{name},{keep},{every}")).unwrap(),
    }
}

fn hold_newest(machine: &mut Machine, oracle: &mut Oracle) {
    let (Some(newest), Some(same)) = (machine.snapshots.last(), oracle.kept.last_mut()) else { return };
    same.held = true;
    let number = newest.number();
    let hold = Hold { number, owner: HoldOwner::User, name: "audit".into(), since: Timestamp::UNIX_EPOCH };
    machine.holds.push(hold);
}

fn calendar(zone: usize) -> Calendar {
    let (name, start) = ZONES[zone];
    Calendar::new(&TimeZone::get(name).unwrap(), start.parse().unwrap())
}

fn scripts() -> impl Strategy<Value = Script> {
    const DAY: i64 = 24 * 60;
    let event = prop_oneof![
        4 => Just(Event::Restart),
        3 => (1..DAY).prop_map(Event::Off),
        1 => (DAY..40 * DAY).prop_map(Event::Off),
        2 => (-90..90i64).prop_map(Event::Set),
        1 => (-30 * DAY..30 * DAY).prop_map(Event::Set),
        2 => Just(Event::Hold),
    ];
    prop::collection::vec((0..YEAR, event), 0..40).prop_map(|mut script| {
        script.sort_by_key(|(minute, _)| *minute);
        script
    })
}

#[test]
fn a_quiet_year_has_a_snapshot_for_every_tick() {
    for (zone, (name, _)) in ZONES.iter().enumerate() {
        let calendar = calendar(zone);
        let taken = live(zone, &calendar, &vec![]);
        for (rotation, (title, ..)) in ROTATIONS.iter().enumerate() {
            let times = taken.iter().filter(|(_, rotations)| rotations >> rotation & 1 == 1).count() as u32;
            let ticks = calendar.tick(rotation, YEAR - 1) - calendar.tick(rotation, 0);
            assert_eq!(times, ticks, "{title} in {name}");
        }
    }
}

#[test]
fn weeks_off_are_caught_up_by_one_snapshot() {
    let (zone, off, on) = (1, 100_000, 100_000 + 5 * 7 * 24 * 60 + 20);
    let calendar = calendar(zone);
    let taken = live(zone, &calendar, &vec![(off, Event::Off(on - off))]);
    let since: Vec<_> = taken.iter().filter(|(minute, _)| *minute >= off).take(2).cloned().collect();
    assert_eq!(since[0], (on, 0b11_1111));
    assert!(since[1].0 > on && calendar.tick(0, since[1].0) == calendar.tick(0, on) + 1, "{since:?}");
}

#[test]
fn a_clock_set_back_beyond_the_oldest_snapshot_that_is_kept() {
    // The ticks that come again are served at first, and no longer once limits drop the snapshots that serve them.
    let script = vec![(44_342, Event::Off(69)), (67_066, Event::Set(31)), (253_682, Event::Set(-1598))];
    live(0, &calendar(0), &script);
}

#[test]
fn years_with_incidents_in_every_zone() {
    let mut runner = TestRunner::deterministic();
    for zone in 0..ZONES.len() {
        let calendar = calendar(zone);
        for _ in 0..3 {
            let script = scripts().new_tree(&mut runner).unwrap().current();
            live(zone, &calendar, &script);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn years_with_any_incidents(zone in 0..ZONES.len(), script in scripts()) {
        live(zone, &calendar(zone), &script);
    }
}
