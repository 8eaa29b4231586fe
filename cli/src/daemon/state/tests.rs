//! What the database keeps, and what it forgets.

use super::*;
use crate::api::Direction;

fn fixture() -> (tempfile::TempDir, State, VolumeName, NodeName) {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("state.redb")).unwrap();
    (dir, state, "v".parse().unwrap(), "beta".parse().unwrap())
}

fn names(state: &State, volume: &VolumeName) -> Vec<String> {
    let holds = state.holds(volume).unwrap();
    holds.iter().map(|hold| format!("{} {} {}", hold.number, hold.owner, hold.name)).collect()
}

#[test]
fn holds_of_a_peer_are_replaced_and_survive_a_restart() {
    let (dir, state, volume, beta) = fixture();
    let gamma: NodeName = "gamma".parse().unwrap();
    // A volume whose name begins alike stays apart.
    let other: VolumeName = "v2".parse().unwrap();
    state.replace_holds(&other, &beta, &[(SnapshotNumber(9), "base")], None, || true).unwrap();
    assert!(state.hold(&volume, SnapshotNumber(1), &HoldOwner::User, "keep me").unwrap());
    assert!(!state.hold(&volume, SnapshotNumber(1), &HoldOwner::User, "keep me").unwrap());
    state.replace_holds(&volume, &gamma, &[(SnapshotNumber(0), "base")], None, || true).unwrap();
    let both = [(SnapshotNumber(1), "base"), (SnapshotNumber(2), "transfer")];
    state.replace_holds(&volume, &beta, &both, None, || true).unwrap();
    let expected = ["0 gamma base", "1 beta base", "1 user keep me", "2 beta transfer"];
    assert_eq!(names(&state, &volume), expected);
    assert_eq!(state.cursor(&volume, &beta).unwrap(), None);

    let common = SnapshotNumber(2);
    state.replace_holds(&volume, &beta, &[(common, "base")], Some(common), || true).unwrap();
    drop(state);
    let state = State::open(&dir.path().join("state.redb")).unwrap();
    assert_eq!(names(&state, &volume), ["0 gamma base", "1 user keep me", "2 beta base"]);
    assert_eq!(state.cursor(&volume, &beta).unwrap().unwrap().common, common);

    assert!(!state.replace_holds(&volume, &beta, &both, Some(common), || false).unwrap());
    assert_eq!(names(&state, &volume), ["0 gamma base", "1 user keep me", "2 beta base"]);
    let mode = fs::metadata(dir.path().join("state.redb")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    state.forget_pair(&volume, &beta).unwrap();
    assert_eq!(names(&state, &volume), ["0 gamma base", "1 user keep me"]);
    assert_eq!(state.cursor(&volume, &beta).unwrap(), None);
    state.forget_volume(&volume).unwrap();
    assert!(names(&state, &volume).is_empty());
    assert_eq!(names(&state, &other), ["9 beta base"]);
}

#[test]
fn what_is_known_is_not_written_again() {
    let (dir, state, volume, beta) = fixture();
    let file = dir.path().join("state.redb");
    let replace = |number: u64| {
        let number = SnapshotNumber(number);
        assert!(state.replace_holds(&volume, &beta, &[(number, "base")], Some(number), || true).unwrap());
        (state.cursor(&volume, &beta).unwrap().unwrap(), fs::read(&file).unwrap())
    };
    let (first, written) = replace(1);
    let (again, unchanged) = replace(1);
    assert!(again.confirmed > first.confirmed && again.common == first.common);
    assert!(written == unchanged, "what was known was written");
    // Nobody is told that it is well where the pair is not defined any more.
    let held = [(SnapshotNumber(1), "base")];
    assert!(!state.replace_holds(&volume, &beta, &held, Some(SnapshotNumber(1)), || false).unwrap());
    let (next, changed) = replace(2);
    assert!(next.common == SnapshotNumber(2) && changed != written);
    // A hold that went is made again, though the same is common.
    state.release(&volume, SnapshotNumber(2), &HoldOwner::Peer(beta.clone()), "base").unwrap();
    replace(2);
    assert_eq!(names(&state, &volume), ["2 beta base"]);
    let (last, _) = replace(2);
    drop(state);
    // After a restart it seems to be older than it is, never newer.
    let state = State::open(&file).unwrap();
    let found = state.cursor(&volume, &beta).unwrap().unwrap();
    assert!(found.common == last.common && found.confirmed < last.confirmed);
    // Unless the daemon came to its end.
    let number = SnapshotNumber(2);
    assert!(state.replace_holds(&volume, &beta, &[(number, "base")], Some(number), || true).unwrap());
    let last = state.cursor(&volume, &beta).unwrap();
    state.write_confirmed().unwrap();
    drop(state);
    let state = State::open(&file).unwrap();
    assert_eq!(state.cursor(&volume, &beta).unwrap(), last);
    state.forget_pair(&volume, &beta).unwrap();
    assert_eq!(state.cursor(&volume, &beta).unwrap(), None);
}

#[test]
fn what_is_known_is_confirmed_without_the_database_until_something_changes() {
    let (_dir, state, volume, beta) = fixture();
    let number = SnapshotNumber(1);
    let held = [(number, "base")];
    let confirm = |held: &[_], number| state.confirm(&volume, &beta, held, number, || true);
    let replace = || assert!(state.replace_holds(&volume, &beta, &held, Some(number), || true).unwrap());
    assert_eq!(confirm(&held, number), None);
    replace();
    // What was written is read once more.
    replace();
    let before = state.cursor(&volume, &beta).unwrap().unwrap();
    assert_eq!(confirm(&held, number), Some(true));
    let after = state.cursor(&volume, &beta).unwrap().unwrap();
    assert!(after.common == before.common && after.confirmed > before.confirmed);
    // Anything else is to be written.
    assert_eq!(confirm(&[(SnapshotNumber(2), "base")], SnapshotNumber(2)), None);
    assert_eq!(confirm(&[(number, "transfer")], number), None);
    assert_eq!(confirm(&[], number), None);
    assert_eq!(state.confirm(&volume, &beta, &held, number, || false), Some(false));
    // A change, whoever makes it, is seen.
    for change in [0, 1, 2] {
        replace();
        replace();
        assert_eq!(confirm(&held, number), Some(true));
        match change {
            0 => drop(state.release(&volume, number, &HoldOwner::Peer(beta.clone()), "base").unwrap()),
            1 => state.forget_pair(&volume, &beta).unwrap(),
            _ => state.forget_number(&volume, number).unwrap(),
        }
        assert_eq!(confirm(&held, number), None, "{change}");
    }
    let lineage = Lineage::generate();
    assert_eq!(state.era_in_memory(lineage), None);
    assert_eq!(state.era(lineage).unwrap().latest, 0);
    assert_eq!(state.era_in_memory(lineage).unwrap().latest, 0);
    state.hear_epoch(lineage, 7, &beta).unwrap();
    assert_ne!(state.era_in_memory(lineage).map(|era| era.latest), Some(0));
    assert_eq!(state.era(lineage).unwrap().latest, 7);
}

#[test]
fn when_one_pair_is_written_the_others_are_with_it() {
    let (dir, state, volume, beta) = fixture();
    let other: VolumeName = "w".parse().unwrap();
    let replace = |volume: &VolumeName, number| {
        let number = SnapshotNumber(number);
        assert!(state.replace_holds(volume, &beta, &[(number, "base")], Some(number), || true).unwrap());
        state.cursor(volume, &beta).unwrap().unwrap()
    };
    let written = replace(&other, 1);
    let confirmed = replace(&other, 1);
    assert!(confirmed.confirmed > written.confirmed);
    // One that is forgotten meanwhile does not come back.
    let gamma: NodeName = "gamma".parse().unwrap();
    let held = [(SnapshotNumber(1), "base")];
    for _ in 0..2 {
        state.replace_holds(&other, &gamma, &held, Some(SnapshotNumber(1)), || true).unwrap();
    }
    state.forget_pair(&other, &gamma).unwrap();
    replace(&volume, 1);
    assert_eq!(state.cursor(&other, &beta).unwrap(), Some(confirmed));
    drop(state);
    let state = State::open(&dir.path().join("state.redb")).unwrap();
    assert_eq!(state.cursor(&other, &beta).unwrap(), Some(confirmed));
    assert_eq!(state.cursor(&other, &gamma).unwrap(), None);
}

#[test]
fn numbers_are_never_given_twice() {
    let (_dir, state, volume, _) = fixture();
    let lineage = state.lineage(&volume).unwrap();
    assert_eq!(state.lineage(&volume).unwrap(), lineage);
    let zero = SnapshotNumber(0);
    assert_eq!(state.take_number(lineage, zero).unwrap(), SnapshotNumber(0));
    assert_eq!(state.take_number(lineage, zero).unwrap(), SnapshotNumber(1));
    // Nothing came of number 1.
    state.return_number(lineage, SnapshotNumber(1)).unwrap();
    assert_eq!(state.take_number(lineage, zero).unwrap(), SnapshotNumber(1));
    // Number 5 was received and deleted, and 9 is on the store.
    state.note_number(lineage, SnapshotNumber(5)).unwrap();
    state.note_number(lineage, SnapshotNumber::local(0)).unwrap();
    assert_eq!(state.take_number(lineage, zero).unwrap(), SnapshotNumber(6));
    assert_eq!(state.take_number(lineage, SnapshotNumber(10)).unwrap(), SnapshotNumber(10));
    state.forget_volume(&volume).unwrap();
    assert_eq!(state.take_number(lineage, zero).unwrap(), SnapshotNumber(11));
    assert_ne!(state.lineage(&volume).unwrap(), lineage);
}

#[test]
fn the_history_is_bounded() {
    let (_dir, state, volume, peer) = fixture();
    let record = |index: u64| {
        let (at, peer, error) = (Timestamp::now(), peer.clone(), Some(index.to_string()));
        TransferRecord { at, peer, direction: Direction::Sent, summary: None, error }
    };
    // One write, because each waits for the disk.
    let most = |txn: &WriteTransaction| {
        let mut table = txn.open_table(HISTORY)?;
        (0..HISTORY_LENGTH + 4)
            .try_for_each(|index| append(&mut table, &volume, &record(index), HISTORY_LENGTH))
    };
    state.write(most).unwrap();
    state.record(&volume, &record(HISTORY_LENGTH + 4)).unwrap();
    let history = state.history(&volume, usize::MAX).unwrap();
    assert_eq!(history.len() as u64, HISTORY_LENGTH);
    assert_eq!(history[0].error.as_deref(), Some("1004"));
    assert_eq!(history.last().unwrap().error.as_deref(), Some("5"));
}

/// The volume may be forgotten while a transfer waits to write its holds.
#[test]
fn no_hold_comes_after_the_forgetting() {
    let (_dir, state, volume, beta) = fixture();
    for _ in 0..20 {
        let defined = std::sync::atomic::AtomicBool::new(true);
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                state.replace_holds(&volume, &beta, &[(SnapshotNumber(0), "base")], None, || {
                    defined.load(order)
                })
            });
            defined.store(false, order);
            state.forget_pair(&volume, &beta).unwrap();
        });
        assert!(names(&state, &volume).is_empty());
    }
}

/// Two transfers of one pair replace each other's holds, whatever each saw before.
#[test]
fn holds_that_are_replaced_at_once_are_those_of_the_last() {
    let (_dir, state, volume, beta) = fixture();
    for _ in 0..20 {
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (state, volume, beta) = (&state, &volume, &beta);
                scope.spawn(move || {
                    state.replace_holds(volume, beta, &[(SnapshotNumber(number), "base")], None, || true)
                });
            }
        });
        assert_eq!(names(&state, &volume).len(), 1);
    }
}

#[test]
fn of_a_number_that_is_given_up_nothing_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("state.redb")).unwrap();
    let (volume, other) = ("v".parse().unwrap(), "w".parse().unwrap());
    let (beta, gamma) = ("beta".parse().unwrap(), "gamma".parse().unwrap());
    let (old, kept, own) = (SnapshotNumber(5), SnapshotNumber(4), SnapshotNumber::local(1));
    for (volume, peer, common) in [(&volume, &beta, kept), (&volume, &gamma, old), (&other, &gamma, old)] {
        state.replace_holds(volume, peer, &[(common, "base")], Some(common), || true).unwrap();
    }
    state.hold(&volume, old, &HoldOwner::User, "mine").unwrap();
    let common = |volume, peer| state.cursor(volume, peer).unwrap().map(|cursor| cursor.common);
    let held = |number| {
        let holds = state.holds(&volume).unwrap();
        holds.into_iter().filter(|hold| hold.number == number).map(|hold| hold.name).collect::<Vec<_>>()
    };
    state.copy_holds(&volume, old, own).unwrap();
    // Whatever happens now, the snapshot is held under both numbers, and nobody is believed to have it.
    assert_eq!(held(own), ["mine", "set-aside"]);
    assert!(held(old).contains(&"mine".to_owned()));
    assert_eq!((common(&volume, &gamma), common(&volume, &beta)), (None, Some(kept)));
    state.forget_number(&volume, old).unwrap();
    assert_eq!((held(old).len(), held(own).len(), held(kept)), (0, 2, vec!["base".to_owned()]));
    assert_eq!(common(&other, &gamma), Some(old));
}
