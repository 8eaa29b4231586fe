//! Which snapshot a downstream gets next, and upon which it is built. Only looking at lists.

use std::collections::HashSet;

use zumastor_core::{Selection, SnapshotNumber, SnapshotRecord};

use crate::wire::Want;

/// What of a volume a downstream is to have, as the upstream is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// The snapshots that go there.
    pub selection: Selection,
    /// Each of them, in order; otherwise the newest at the time.
    pub all: bool,
    /// Another one that somebody at the upstream wants it to have.
    pub also: Option<SnapshotNumber>,
    /// Only those before this one: the others may be taken back yet.
    pub before: Option<SnapshotNumber>,
    /// All of each, as if nothing of it were there. For tests.
    pub whole: bool,
}

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    /// There is nothing for it.
    Nothing,
    /// It has what it is to have. The newest that both have is this one.
    Has(SnapshotNumber),
    /// It wants a snapshot that is not there, or not for it.
    NotFor(SnapshotNumber),
    /// It gets a snapshot.
    Gets {
        /// Which.
        target: &'a SnapshotRecord,
        /// The newest that both have.
        base: Option<&'a SnapshotRecord>,
        /// Whether others follow.
        more: bool,
    },
}

/// Chooses among the snapshots of a volume, which are in ascending order of number.
pub(super) fn choose<'a>(snapshots: &'a [SnapshotRecord], want: &Want, offer: &Offer) -> Choice<'a> {
    let have: HashSet<_> = want.have.iter().collect();
    let there = |number: SnapshotNumber| offer.before.is_none_or(|before| number < before);
    let ours =
        || snapshots.iter().filter(move |record| !record.number().is_local() && there(record.number()));
    let base = ours().rev().find(|record| have.contains(&record.guid()));
    let common = base.map(SnapshotRecord::number);
    if let Some(wanted) = want.wanted {
        let for_it = |record: &&SnapshotRecord| {
            record.number() == wanted && (offer.also == Some(wanted) || offer.selection.takes(record))
        };
        return match (common, ours().find(for_it)) {
            (Some(common), _) if common >= wanted => Choice::Has(common),
            (_, Some(target)) => Choice::Gets { target, base, more: false },
            (_, None) => Choice::NotFor(wanted),
        };
    }
    let mut selected =
        ours().filter(|record| offer.selection.takes(record) && Some(record.number()) > common);
    let Some(newest) = selected.clone().next_back() else {
        return common.map_or(Choice::Nothing, Choice::Has);
    };
    let target = if offer.all {
        selected.next().expect("there is a newest")
    } else {
        // What was begun is finished first, unless something newer has arrived there by other ways.
        selected.find(|record| want.resume == Some(record.guid())).unwrap_or(newest)
    };
    Choice::Gets { target, base, more: offer.all && target.number() < newest.number() }
}

#[cfg(test)]
mod tests {
    use zumastor_core::{Lineage, NewSnapshot, SnapshotGuid};

    use super::*;

    /// Snapshots 0 to 9; each third is a daily one, the others are manual.
    fn volume() -> Vec<SnapshotRecord> {
        let lineage = Lineage::generate();
        let record = |number| {
            let mut new = NewSnapshot::manual(SnapshotNumber(number), lineage);
            if number % 3 == 0 {
                new.rotations.push("daily".to_owned());
            }
            SnapshotRecord { new, size: 0, digest: None }
        };
        let local = NewSnapshot::manual(SnapshotNumber::local(0), lineage);
        (0..10).map(record).chain([SnapshotRecord { new: local, size: 0, digest: None }]).collect()
    }

    fn want(have: &[&SnapshotRecord]) -> Want {
        let have = have.iter().map(|record| record.guid()).collect();
        Want { volume: "v".into(), have, resume: None, wanted: None, epoch: None }
    }

    /// Target, base, and whether more follow, by number.
    fn gets(choice: Choice<'_>) -> (u64, Option<u64>, bool) {
        let Choice::Gets { target, base, more } = choice else { panic!("{choice:?}") };
        (target.number().0, base.map(|base| base.number().0), more)
    }

    fn daily(all: bool) -> Offer {
        Offer { selection: Selection::new(["daily".to_owned()]).unwrap(), all, ..Offer::default() }
    }

    #[test]
    fn the_newest_or_each_in_order() {
        let all = volume();
        let every = Offer { all: true, ..Offer::default() };
        let v = &all[..];
        assert_eq!(gets(choose(v, &want(&[]), &Offer::default())), (9, None, false));
        assert_eq!(gets(choose(v, &want(&[&v[2], &v[4]]), &Offer::default())), (9, Some(4), false));
        assert_eq!(gets(choose(v, &want(&[]), &every)), (0, None, true));
        assert_eq!(gets(choose(v, &want(&[&v[4]]), &every)), (5, Some(4), true));
        assert_eq!(gets(choose(v, &want(&[&v[8]]), &every)), (9, Some(8), false));
        assert_eq!(choose(v, &want(&[&v[9]]), &every), Choice::Has(SnapshotNumber(9)));
        assert_eq!(choose(&v[10..], &want(&[]), &every), Choice::Nothing);
    }

    #[test]
    fn only_what_is_selected() {
        let all = volume();
        let v = &all[..9];
        assert_eq!(gets(choose(v, &want(&[]), &daily(false))), (6, None, false));
        assert_eq!(gets(choose(v, &want(&[&v[4]]), &daily(false))), (6, Some(4), false));
        assert_eq!(gets(choose(v, &want(&[&v[0]]), &daily(true))), (3, Some(0), true));
        // It has something newer than what is selected.
        assert_eq!(choose(v, &want(&[&v[7]]), &daily(false)), Choice::Has(SnapshotNumber(7)));
        assert_eq!(choose(&v[1..3], &want(&[]), &daily(false)), Choice::Nothing);
    }

    #[test]
    fn what_was_begun_is_finished() {
        let all = volume();
        let v = &all[..];
        let resume = |index: usize| Want { resume: Some(v[index].guid()), ..want(&[&v[2]]) };
        assert_eq!(gets(choose(v, &resume(5), &Offer::default())), (5, Some(2), false));
        assert_eq!(gets(choose(v, &resume(1), &Offer::default())), (9, Some(2), false));
        assert_eq!(gets(choose(v, &resume(5), &daily(false))), (9, Some(2), false));
        assert_eq!(gets(choose(v, &resume(6), &daily(true))), (3, Some(2), true));
        let unknown = Want { resume: Some(SnapshotGuid::generate()), ..want(&[]) };
        assert_eq!(gets(choose(v, &unknown, &Offer::default())), (9, None, false));
    }

    #[test]
    fn what_is_asked_for() {
        let all = volume();
        let v = &all[..];
        let wanted = |number| Want { wanted: Some(SnapshotNumber(number)), ..want(&[&v[4]]) };
        assert_eq!(gets(choose(v, &wanted(7), &Offer::default())), (7, Some(4), false));
        for older in [3, 4] {
            assert_eq!(choose(v, &wanted(older), &Offer::default()), Choice::Has(SnapshotNumber(4)));
        }
        assert_eq!(choose(v, &wanted(99), &Offer::default()), Choice::NotFor(SnapshotNumber(99)));
        assert_eq!(choose(v, &wanted(7), &daily(true)), Choice::NotFor(SnapshotNumber(7)));
        let also = Offer { also: Some(SnapshotNumber(7)), ..daily(true) };
        assert_eq!(gets(choose(v, &wanted(7), &also)), (7, Some(4), false));
        let local = Want { wanted: Some(SnapshotNumber::local(0)), ..want(&[]) };
        assert_eq!(choose(v, &local, &Offer::default()), Choice::NotFor(SnapshotNumber::local(0)));
    }
}
