//! Sets of leaves, as runs.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A set of leaf positions: ascending, disjoint, non-empty runs that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Runs(Vec<Range<u64>>);

impl Runs {
    /// Adds a run that begins at or behind the end of the last one; an empty one is left out.
    pub(crate) fn push(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
            _ => self.0.push(run),
        }
    }

    /// The runs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().cloned()
    }

    /// Number of leaves.
    pub(crate) fn leaves(&self) -> u64 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }

    /// What is in either.
    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut all = Self::default();
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x.start <= y.start => a.next(),
                (_, Some(_)) => b.next(),
                (Some(_), None) => a.next(),
                (None, None) => return all,
            };
            all.push(next.expect("just seen").clone());
        }
    }

    /// What is in this set and not in the other.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        let mut cuts = other.0.iter().peekable();
        for run in &self.0 {
            let mut start = run.start;
            while let Some(cut) = cuts.peek() {
                if cut.start >= run.end {
                    break;
                }
                rest.push(start..cut.start.max(start));
                start = start.max(cut.end);
                if cut.end > run.end {
                    break;
                }
                cuts.next();
            }
            rest.push(start.min(run.end)..run.end);
        }
        rest
    }

    /// What lies before leaf `end`.
    pub(crate) fn before(&self, end: u64) -> Self {
        let mut rest = Self::default();
        self.0
            .iter()
            .take_while(|run| run.start < end)
            .for_each(|run| rest.push(run.start..run.end.min(end)));
        rest
    }
}

impl FromIterator<Range<u64>> for Runs {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(runs: I) -> Self {
        let mut set = Self::default();
        runs.into_iter().for_each(|run| set.push(run));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn runs(set: &BTreeSet<u64>) -> Runs {
        set.iter().map(|leaf| *leaf..leaf + 1).collect()
    }

    fn set(runs: &Runs) -> BTreeSet<u64> {
        runs.iter().flatten().collect()
    }

    proptest! {
        #[test]
        fn runs_are_sets(
            a in proptest::collection::btree_set(0u64..40, 0..30),
            b in proptest::collection::btree_set(0u64..40, 0..30),
            end in 0u64..40,
        ) {
            let (x, y) = (runs(&a), runs(&b));
            prop_assert_eq!(set(&x), a.clone());
            prop_assert_eq!(x.leaves(), a.len() as u64);
            prop_assert_eq!(set(&x.union(&y)), a.union(&b).copied().collect());
            prop_assert_eq!(x.union(&y), runs(&a.union(&b).copied().collect()));
            prop_assert_eq!(set(&x.without(&y)), a.difference(&b).copied().collect());
            prop_assert_eq!(x.without(&y), runs(&a.difference(&b).copied().collect()));
            prop_assert_eq!(set(&x.before(end)), a.iter().copied().filter(|l| *l < end).collect());
        }
    }
}
