//! Groups of volumes on block devices: snapshots of one moment, and no volume that stands still afterwards.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::common::devices::{Head, machine, start};
use zumastor::exit::Failure;
use zumastor_core::PageBuf;
use zumastor_testbed::{Node, lab, output};

const TOOLS: &[&str] = &["blkid", "dmsetup"];

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Writes a counter to one volume and then to the other, again and again.
struct Writer {
    rounds: Arc<Rounds>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

/// What the counter has come to, and word of each next one.
#[derive(Default)]
struct Rounds {
    done: Mutex<u64>,
    another: Condvar,
}

impl Writer {
    fn start() -> Self {
        let (rounds, stop) = (Arc::<Rounds>::default(), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (rounds.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let heads = ["a", "b"].map(Head::open);
            let mut page = PageBuf::new(4096);
            let mut next = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                next += 1;
                page[..8].copy_from_slice(&next.to_le_bytes());
                for head in &heads {
                    head.0.write_all_at(&page, 0).expect("the head can be written");
                }
                *counter.done.lock().expect("no panic while locked") = next;
                counter.another.notify_all();
            }
        });
        Self { rounds, stop, thread }
    }

    /// Waits until it has gone on by some rounds: neither volume stands still.
    fn goes_on(&self) {
        let done = self.rounds.done.lock().expect("no panic while locked");
        let wanted = *done + 3;
        let waited = self.rounds.another.wait_timeout_while(done, PATIENCE, |done| *done < wanted);
        assert!(!waited.expect("no panic while locked").1.timed_out(), "a volume stands still");
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic");
    }
}

fn grouped() -> Result<Node, Failure> {
    let node = start("alpha")?;
    for (name, origin, store) in [("a", "/dev/ubda", "/dev/ubdb"), ("b", "/dev/ubdc", "/dev/ubdd")] {
        node.ok(&["define", "volume", name, origin, store])?;
        node.ok(&["define", "master", name, "--group", "db", "--no-snapmount"])?;
    }
    Ok(node)
}

const DISKS: [(&str, u64); 4] = [("a", 8), ("b", 64), ("c", 8), ("d", 64)];

/// The numbers of a volume's snapshots, with the counter that each holds.
fn counters(node: &Node, volume: &str) -> Result<Vec<(u64, u64)>, Failure> {
    let counter = |number: u64| {
        let mut count = [0; 8];
        let path = format!("/dev/mapper/{volume}({number})");
        let read = File::open(&path).and_then(|file| file.read_exact_at(&mut count, 0));
        read.map_err(Failure::doing(path)).map(|()| (number, u64::from_le_bytes(count)))
    };
    node.volume(volume)?.snapshots.iter().map(|snapshot| counter(snapshot.number.0)).collect()
}

#[test]
fn lab_snapshots_of_a_group_are_of_one_moment() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &DISKS),
        || {
            let node = grouped()?;
            let writer = Writer::start();
            for _ in 0..20 {
                node.ok(&["snapshot", "--group", "db"])?;
                writer.goes_on();
            }
            writer.end();
            let (a, b) = (counters(&node, "a")?, counters(&node, "b")?);
            println!("{a:?} {b:?}");
            assert_eq!((a.len(), b.len()), (20, 20));
            for ((number, a), (_, b)) in a.into_iter().zip(b) {
                assert!(b <= a && a <= b + 1, "snapshot {number}: {a} in the first, {b} in the second");
            }
            Ok(())
        },
    )
}

/// Killed at each step of a snapshot of the group: when the daemon is back, both volumes go on, and have the snapshot both or
/// neither.
#[test]
fn lab_a_daemon_that_is_killed_leaves_no_volume_standing_still() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &DISKS),
        || {
            let mut node = grouped()?;
            let writer = Writer::start();
            let mut still = 0;
            for steps in 1.. {
                node.kill_at(steps)?;
                node.run(&["snapshot", "--group", "db"])?;
                let killed = node.was_killed()?;
                if killed {
                    let suspended = |name| output("dmsetup", |c| c.args(["info", name]));
                    still += ["a", "b"]
                        .into_iter()
                        .filter(|name| suspended(name).is_ok_and(|info| info.contains("SUSPENDED")))
                        .count();
                    node.up()?;
                    for name in ["a", "b"] {
                        node.wait_for(name, "the store", PATIENCE, |volume| volume.size)?;
                    }
                }
                writer.goes_on();
                let numbers = |volume: &zumastor::api::VolumeStatus| volume.snapshots.len();
                let there = numbers(&node.volume("a")?);
                node.wait_for("b", "all or none", PATIENCE, |b| (numbers(b) == there).then_some(()))?;
                if !killed {
                    println!("{} steps, {still} volumes were found standing still", steps - 1);
                    assert!(steps > 4 && still >= 2, "no volume stood still at any of {steps} steps");
                    break;
                }
            }
            writer.end();
            let (a, b) = (counters(&node, "a")?, counters(&node, "b")?);
            // Their numbers may differ: one that was begun in vain is left out.
            let groups = |name: &str| -> Result<Vec<_>, Failure> {
                Ok(node.volume(name)?.snapshots.iter().map(|snapshot| snapshot.group).collect())
            };
            assert!(!a.is_empty() && groups("a")? == groups("b")?, "{a:?} {b:?}");
            assert!(a.iter().zip(&b).all(|((_, a), (_, b))| b <= a && *a <= b + 1), "{a:?} {b:?}");
            Ok(())
        },
    )
}
