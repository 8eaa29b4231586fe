//! Replications and what belongs to them, with a daemon killed at every step: a replica shows one whole snapshot or the other.

use std::process::Child;

use crate::common::{Node, master_and_replica, ran, wait_for, write};
use zumastor::api::{HeadStatus, Status};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

/// How a replication is asked for, at beta, and who is killed.
#[derive(Clone, Copy)]
struct Tried {
    beta_is_killed: bool,
    /// Once killed, it is killed at each step of its start too.
    at_starts: bool,
    options: &'static [&'static str],
}

const RECEIVING: Tried = Tried { beta_is_killed: true, at_starts: false, options: &["--wait"] };

#[test]
fn a_replica_that_is_killed_while_it_receives() {
    killed(RECEIVING);
}

#[test]
fn a_master_that_is_killed_while_it_sends() {
    killed(Tried { beta_is_killed: false, ..RECEIVING });
}

#[test]
fn a_replica_that_is_killed_as_it_starts() {
    killed(Tried { at_starts: true, ..RECEIVING });
}

#[test]
fn a_replica_that_is_killed_when_nobody_waits() {
    killed(Tried { options: &[], ..RECEIVING });
}

#[test]
fn a_replica_that_is_killed_before_what_was_asked_for_begins() {
    killed(Tried { options: &["--delay", "1"], ..RECEIVING });
}

/// What a volume shows, if that is a snapshot and the daemon is there.
fn shown(node: &Node) -> Option<u64> {
    let status: Status = serde_json::from_str(&node.run(&["status", "v", "--json"]).out).ok()?;
    match status.volumes[0].head {
        Some(HeadStatus::Snapshot(SnapshotNumber(number))) => Some(number),
        _ => None,
    }
}

fn is_over(command: &mut Child) -> bool {
    command.try_wait().unwrap().is_some()
}

fn killed(tried: Tried) {
    if cfg!(not(debug_assertions)) {
        println!("left out: this build has no steps to be killed at");
        return;
    }
    let Tried { beta_is_killed, at_starts, options } = tried;
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    let replicate = [&["replicate", "v", "alpha"], options].concat();
    let (mut number, mut starts) = (0u64, 0);
    // The transfer is that of the others: what is noted before it is looked at, and some of what comes later.
    let few = |steps: &u32| !options.contains(&"--delay") || [1, 2, 3, 4, 10, 20, 60].contains(steps);
    for steps in (1..).filter(few) {
        write(&alpha.path("v.img"), 8192, &(number + 1).to_le_bytes());
        alpha.ok(&["snapshot", "v"]);
        number += 1;
        let content = alpha.digest("v");
        // The digest is computed beside everything else: its steps are not those of the transfer.
        alpha.wait_until("v", "the digest", |v| v.snapshots.last().unwrap().digest.is_some());
        (if beta_is_killed { &beta } else { &alpha }).kill_at(steps);
        let mut command = beta.spawn(&replicate);
        // When it is started again at once, the other end need not find out that it is gone.
        let was_killed = match beta_is_killed {
            true if options.contains(&"--wait") => beta.was_killed_before(|_| is_over(&mut command)),
            true => beta.was_killed_before(|beta| shown(beta) == Some(number)),
            false => alpha.was_killed_before(|_| is_over(&mut command)),
        };
        if was_killed && at_starts {
            starts += ended_at_each_start(&mut beta);
        } else if was_killed {
            (if beta_is_killed { &mut beta } else { &mut alpha }).up();
        }
        let ran = ran(&command.wait_with_output().unwrap());
        if !was_killed {
            assert_eq!((shown(&beta), ran.code), (Some(number), 0), "{ran:?}");
            assert!(steps > 2, "a replication passed {} steps", steps - 1);
            println!("{} steps, and {starts} of starts", steps - 1);
            return;
        }
        let now = wait_for("a whole snapshot to be shown", || shown(&beta));
        assert!(now == number || now == number - 1, "{now} of {number}");
        if options.contains(&"--delay") && ran.code == 0 {
            // It goes on by itself.
            wait_for("what was asked for", || (shown(&beta) == Some(number)).then_some(()));
            assert_eq!(beta.digest("v"), content);
        }
        let acknowledged = ran.code == 0 && options.contains(&"--wait");
        assert!(!acknowledged || now == number, "what was acknowledged is gone: {ran:?}");
        beta.ok(&["replicate", "v", "alpha", "--wait"]);
        assert_eq!((shown(&beta), beta.digest("v")), (Some(number), content));
    }
}

/// Starts a daemon, which is killed at the first step of that, at the second, and so on until it shows its volume. Gives how
/// often it was.
fn ended_at_each_start(node: &mut Node) -> u32 {
    for step in 1.. {
        node.kill_at(step);
        if node.comes_up() && !node.was_killed_before(|node| shown(node).is_some()) {
            return step - 1;
        }
    }
    unreachable!("it comes up at last")
}
