//! What ought to happen, found by looking at every minute of the year.

use jiff::{
    SignedDuration, Timestamp, ToSpan,
    civil::{DateTime, Weekday},
    tz::TimeZone,
};

/// The rotations of the test, by their place: name, number kept, and times where the name does not say.
pub const ROTATIONS: [(&str, usize, &str); 6] = [
    ("hourly", 24, ""),
    ("daily", 7, ""),
    ("weekly", 5, ""),
    ("monthly", 12, ""),
    ("six", 9, "6h"),
    ("night", 4, "30 1-2 * * *"),
];

/// Minutes of a year, and how far beyond it on both sides the clock may be set.
pub const YEAR: i64 = 365 * 24 * 60;
pub const MARGIN: i64 = 45 * 24 * 60;

/// For each rotation and each minute, how many ticks there were until then.
pub struct Calendar {
    start: Timestamp,
    ticks: [Vec<u32>; 6],
}

impl Calendar {
    /// Of a year from `start` on. The first tick of each rotation is unknown and none is needed: it lies in the margin.
    pub fn new(tz: &TimeZone, start: Timestamp) -> Self {
        let mut ticks: [Vec<u32>; 6] = Default::default();
        let mut count = [0; 6];
        let mut time = start - SignedDuration::from_mins(MARGIN);
        // The furthest that the local clock has ever shown.
        let mut furthest = tz.to_datetime(time);
        for _ in 0..YEAR + 2 * MARGIN {
            let shown = tz.to_datetime(time);
            let mut names = [false; 6];
            names[0] = shown.minute() == 0;
            names[4] = time.as_second() / 60 % 360 == 0;
            while furthest < shown {
                furthest += 1.minute();
                for (name, reached) in names.iter_mut().zip(reached(furthest)) {
                    *name |= reached;
                }
            }
            for rotation in 0..6 {
                count[rotation] += u32::from(names[rotation]);
                ticks[rotation].push(count[rotation]);
            }
            time += SignedDuration::from_mins(1);
        }
        Self { start, ticks }
    }

    /// The moment that is so many minutes after the start.
    pub fn time(&self, minute: i64) -> Timestamp {
        self.start + SignedDuration::from_mins(minute)
    }

    /// The minutes from the start to a moment, which must be a whole minute.
    pub fn minute(&self, time: Timestamp) -> i64 {
        let since = time.duration_since(self.start);
        assert_eq!(since.as_secs() % 60, 0, "{time} is no whole minute");
        since.as_mins()
    }

    /// The latest tick of a rotation at that minute.
    pub fn tick(&self, rotation: usize, minute: i64) -> u32 {
        self.ticks[rotation][usize::try_from(minute + MARGIN).unwrap()]
    }
}

/// Rotations with a tick when the local clock first reaches a time, or passes it over.
fn reached(time: DateTime) -> [bool; 6] {
    let midnight = (time.hour(), time.minute()) == (0, 0);
    let monday = time.date().weekday() == Weekday::Monday;
    let night = time.minute() == 30 && (time.hour() == 1 || time.hour() == 2);
    [false, midnight, midnight && monday, midnight && time.day() == 1, false, night]
}

/// A set of rotations by their place, a bit each.
pub type Rotations = u8;

/// A snapshot: its number, the minute that the clock showed, its rotations, and whether it is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub number: u64,
    pub minute: i64,
    pub rotations: Rotations,
    pub held: bool,
}

/// The snapshots there ought to be.
pub struct Oracle<'a> {
    pub calendar: &'a Calendar,
    pub kept: Vec<Snapshot>,
    pub taken: Vec<(i64, Rotations)>,
}

impl Oracle<'_> {
    /// A minute in which the daemon runs.
    pub fn minute(&mut self, minute: i64) {
        let same =
            |rotation, other| self.calendar.tick(rotation, minute) == self.calendar.tick(rotation, other);
        let mut open: Rotations =
            members(Rotations::MAX).filter(|rotation| !same(*rotation, 0)).map(|r| 1 << r).sum();
        for snapshot in self.kept.iter().rev() {
            for rotation in members(open & snapshot.rotations) {
                if same(rotation, snapshot.minute) {
                    open &= !(1 << rotation);
                }
            }
        }
        if open != 0 {
            let number = self.taken.len() as u64;
            self.taken.push((minute, open));
            self.kept.push(Snapshot { number, minute, rotations: open, held: false });
            self.drop_old();
        }
    }

    fn drop_old(&mut self) {
        let all = self.kept.clone();
        let newer = |snapshot: &Snapshot, rotation: usize| {
            let is_newer =
                |other: &&Snapshot| other.number > snapshot.number && other.rotations >> rotation & 1 == 1;
            all.iter().filter(is_newer).count()
        };
        self.kept.retain(|snapshot| {
            let keeps = |rotation| newer(snapshot, rotation) < ROTATIONS[rotation].1;
            snapshot.held || members(snapshot.rotations).any(keeps)
        });
    }
}

/// The places of the rotations in a set.
pub fn members(rotations: Rotations) -> impl Iterator<Item = usize> {
    (0..ROTATIONS.len()).filter(move |rotation| rotations >> rotation & 1 == 1)
}
