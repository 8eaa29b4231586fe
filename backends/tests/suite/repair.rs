//! Putting a snapshot right, where the head shows another one.

use std::ops::Range;

use crate::common::{content, fill, layered, take, wait};
use zumastor_backends::conformance::Subject;
use zumastor_core::{HeadRepair, LEAF, SnapshotNumber, SnapshotStore};

/// One leaf, as the damage of a snapshot.
fn leaf(at: u64) -> Vec<Range<u64>> {
    std::iter::once(at..at + 1).collect()
}

const BYTES: usize = LEAF as usize;

/// What the two have in common is put right with the first. The head is not made anew from the other before all of that is
/// well: where the other is bad too, the head has the only good copy.
#[test]
fn a_good_head_is_not_replaced_by_what_is_bad_elsewhere() {
    let mut volume = layered();
    let (zero, one) = (SnapshotNumber(0), SnapshotNumber(1));
    let store = volume.store();
    fill(&volume, 2 * LEAF, &[(0, 2 * LEAF, 1)]);
    take(&store, 0);
    fill(&volume, 2 * LEAF, &[(LEAF, LEAF, 2)]);
    take(&store, 1);
    for number in [zero, one] {
        wait(store.leaves(number)).unwrap();
    }
    let good = content(&store, 1);
    assert!(volume.damage(one, 0, &[1; BYTES], &[3; BYTES], true));
    assert!(volume.damage(one, LEAF, &[2; BYTES], &[4; BYTES], false));

    let repair = wait(store.repair(zero, leaf(0), true)).unwrap();
    repair.write(0, &[1; BYTES]).unwrap();
    let head = repair.finish(false).unwrap();
    assert!(matches!(&head, HeadRepair::Left(why) if why.contains("scrub snapshot 1")), "{head:?}");
    assert_eq!(volume.read_head()[BYTES..], good[BYTES..], "the good half of the head");

    let repair = wait(store.repair(one, leaf(1), true)).unwrap();
    repair.write(LEAF, &[2; BYTES]).unwrap();
    repair.finish(false).unwrap();
    assert_eq!(content(&store, 1), good);
    assert!(volume.read_head() == good, "the head is not what snapshot 1 is");
}
