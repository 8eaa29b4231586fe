//! Who uses which bytes of the disk: what each snapshot has to itself, and what all of them have together.
//!
//! Lists are merged in pairs of about equal length, and what has the same users becomes one stretch. So the time grows
//! with the number of extents times the logarithm of the number of lists, and memory with what really differs.

use std::ops::Range;

/// Who uses a stretch of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    /// This snapshot alone.
    One(u32),
    /// More than one snapshot, and nothing else.
    Snapshots,
    /// Also something that stays when all snapshots go.
    Others,
}

impl Users {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Others, _) | (_, Self::Others) => Self::Others,
            (Self::One(a), Self::One(b)) if a == b => self,
            _ => Self::Snapshots,
        }
    }
}

/// Ascending and disjoint.
type Stretches = Vec<(Range<u64>, Users)>;

/// The lists that were merged so far, each about twice as large as the next.
#[derive(Debug, Default)]
pub(super) struct Shares(Vec<(u32, Stretches)>);

impl Shares {
    /// Adds what a snapshot uses, in any order. Gives the number of bytes.
    pub(super) fn snapshot(&mut self, index: u32, used: Vec<Range<u64>>) -> u64 {
        self.add(Users::One(index), used)
    }

    /// Adds what is used beside the snapshots, in any order.
    pub(super) fn others(&mut self, used: Vec<Range<u64>>) {
        self.add(Users::Others, used);
    }

    fn add(&mut self, users: Users, mut used: Vec<Range<u64>>) -> u64 {
        used.sort_unstable_by_key(|range| range.start);
        let mut list = Stretches::new();
        used.into_iter().for_each(|range| push(&mut list, range, users));
        let bytes = list.iter().map(|(range, _)| range.end - range.start).sum();
        let mut rank = 0;
        while let Some((_, other)) = self.0.pop_if(|(other, _)| *other == rank) {
            list = merge(&other, &list);
            rank += 1;
        }
        self.0.push((rank, list));
        bytes
    }

    /// The bytes that each of `count` snapshots has to itself, and those that nothing but snapshots use.
    pub(super) fn count(self, count: usize) -> (Vec<u64>, u64) {
        let mut all = Stretches::new();
        for (_, list) in self.0.into_iter().rev() {
            all = merge(&all, &list);
        }
        let (mut own, mut together) = (vec![0; count], 0);
        for (range, users) in all {
            let bytes = range.end - range.start;
            match users {
                Users::One(index) => {
                    own[index as usize] += bytes;
                    together += bytes;
                }
                Users::Snapshots => together += bytes,
                Users::Others => {}
            }
        }
        (own, together)
    }
}

/// Adds a stretch that begins at or behind the beginning of the last one.
fn push(list: &mut Stretches, range: Range<u64>, users: Users) {
    match list.last_mut() {
        Some((last, same)) if *same == users && last.end >= range.start => last.end = last.end.max(range.end),
        _ if range.is_empty() => {}
        _ => list.push((range, users)),
    }
}

fn merge(a: &Stretches, b: &Stretches) -> Stretches {
    let mut all = Stretches::with_capacity(a.len().max(b.len()));
    let (mut i, mut j, mut position) = (0, 0, 0);
    loop {
        while a.get(i).is_some_and(|(range, _)| range.end <= position) {
            i += 1;
        }
        while b.get(j).is_some_and(|(range, _)| range.end <= position) {
            j += 1;
        }
        let next = [a.get(i), b.get(j)];
        let Some(start) = next.iter().flatten().map(|(range, _)| range.start.max(position)).min() else {
            return all;
        };
        let here = |(range, _): &&&(Range<u64>, Users)| range.start <= start;
        let users = next.iter().flatten().filter(here).map(|(_, users)| *users).reduce(Users::and);
        let ends =
            |(range, _): &&(Range<u64>, Users)| if range.start > start { range.start } else { range.end };
        let end = next.iter().flatten().map(ends).min().expect("there is one");
        push(&mut all, start..end, users.expect("one begins here"));
        position = end;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((0u64..60, 0u64..20).prop_map(|(start, length)| start..start + length), 0..8)
    }

    proptest! {
        #[test]
        fn bytes_are_counted_by_who_uses_them(
            snapshots in prop::collection::vec(ranges(), 0..7),
            others in prop::collection::vec(ranges(), 0..3),
        ) {
            let set = |ranges: &Vec<Range<u64>>| ranges.iter().cloned().flatten().collect::<BTreeSet<u64>>();
            let sets: Vec<_> = snapshots.iter().map(set).collect();
            let beside: BTreeSet<u64> = others.iter().flat_map(set).collect();
            let mut shares = Shares::default();
            for (index, used) in (0..).zip(&snapshots) {
                prop_assert_eq!(shares.snapshot(index, used.clone()), sets[index as usize].len() as u64);
            }
            others.into_iter().for_each(|used| shares.others(used));
            let (own, together) = shares.count(snapshots.len());
            for (index, set) in sets.iter().enumerate() {
                let alone = |byte: &&u64| {
                    !beside.contains(byte) && sets.iter().enumerate().all(|(i, s)| i == index || !s.contains(byte))
                };
                prop_assert_eq!(own[index], set.iter().filter(alone).count() as u64);
            }
            let all: BTreeSet<u64> = sets.iter().flatten().copied().collect();
            prop_assert_eq!(together, all.difference(&beside).count() as u64);
        }
    }
}
