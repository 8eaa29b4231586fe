//! Groups of volumes on block devices: snapshots of one moment, and no volume that stands still afterwards.
#![cfg(feature = "device-mapper")]

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::devices::{Head, machine, start};
use zumastor::exit::Failure;
use zumastor_core::PageBuf;
use zumastor_testbed::{Node, lab, output};

const TOOLS: &[&str] = &["thin_restore", "blkid", "dmsetup"];

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Writes a counter to one volume and then to the other, again and again.
struct Writer {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Writer {
    fn start() -> Self {
        let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (count.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let heads = ["a", "b"].map(Head::open);
            let mut page = PageBuf::new(4096);
            while !stopped.load(Ordering::Relaxed) {
                let next = counter.load(Ordering::Relaxed) + 1;
                page[..8].copy_from_slice(&next.to_le_bytes());
                for head in &heads {
                    head.0.write_all_at(&page, 0).expect("the head can be written");
                }
                counter.store(next, Ordering::Relaxed);
            }
        });
        Self { count, stop, thread }
    }

    /// Waits until it has gone on by some rounds: neither volume stands still.
    fn goes_on(&self) {
        let before = self.count.load(Ordering::Relaxed);
        let begun = Instant::now();
        while self.count.load(Ordering::Relaxed) < before + 3 {
            assert!(begun.elapsed() < PATIENCE, "a volume stands still");
            thread::sleep(Duration::from_millis(5));
        }
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
                let kill = node.path("kill");
                fs::write(&kill, steps.to_string()).map_err(Failure::doing("writing"))?;
                let ran = node.run(&["snapshot", "--group", "db"])?;
                let _ = fs::remove_file(&kill);
                // The last steps come after the answer.
                let killed = ran.code != 0 || node.run(&["status"])?.code != 0;
                if killed {
                    let suspended = |name| output("dmsetup", |c| c.args(["info", name]));
                    still += ["a", "b"]
                        .into_iter()
                        .filter(|name| suspended(name).is_ok_and(|info| info.contains("SUSPENDED")))
                        .count();
                    node.kill()?;
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
