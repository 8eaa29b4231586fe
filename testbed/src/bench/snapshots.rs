//! What snapshots cost those who write: how long one takes while they do, and how fast they write once there are many.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::fs::OFlags;
use zumastor::exit::Failure;
use zumastor_core::{PageBuf, files};
use zumastor_testbed::{FileSystem, Node, Scratch, find, image, output};

use super::{
    content::CHUNK,
    fresh,
    report::{Machine, align},
    say,
};

/// Bytes of the volume.
const SIZE: u64 = 1 << 30;
/// Bytes of a write.
const WRITE: u64 = 4096;
/// Threads that write, each one write after the other.
const WRITERS: u64 = 2;
/// Snapshots in a round, if they take no longer than [`ENOUGH`]: while others write, a file comes to have so many extents that sharing
/// them takes seconds.
const TAKEN: usize = 100;
/// After that no more snapshots are begun.
const ENOUGH: Duration = Duration::from_secs(60);
/// Numbers of snapshots that a volume has when it is written to.
const SNAPSHOTS: [usize; 5] = [0, 1, 8, 64, 512];
/// Writes that are measured then, each into another chunk.
const WRITES: u64 = 8192;

const SNAPSHOT: &str = "`zumastor snapshot v`";
const COMMAND: &str = "`zumastor status v`, which does nothing";
const CLONE: &str = "a reflink of the file (FICLONE) alone";

const PLAIN: &str = "a plain file";
const OURS: &str = "the head of a volume of zumastor";
const QCOW2: &str = "qcow2 with internal snapshots";

/// Measures below `parent`, and prints the tables, each as soon as it is there.
pub fn run(program: &Path, parent: &Path, rounds: u32) -> Result<(), Failure> {
    if find("qemu-img").is_none() {
        return Err(Failure::failed("qemu-img is not installed, which writes in this benchmark")
            .remedy("install it (Debian: package qemu-utils)"));
    }
    let scratch = Scratch::mount(FileSystem::Xfs, 64 << 30, parent)?;
    let machine = Machine::here(scratch.path()).line();
    let latency = latencies(program, scratch.path(), rounds)?;
    println!(
        "{machine} Volume of 1 GiB, written all over, medians of {rounds} rounds.\n\n\
         **How long a snapshot takes, ms**\n\n{latency}"
    );
    let speed = speeds(program, scratch.path(), rounds)?;
    println!(
        "**Random writes of 4 KiB per second, each into a chunk of 64 KiB that all snapshots share**\n\n{speed}"
    );
    Ok(())
}

/// A volume that is the master of its own, with its image written all over.
fn volume(program: &Path, dir: &Path) -> Result<Node, Failure> {
    let node = Node::start(program, dir, "alpha")?;
    image(&node.path("v.img"), SIZE, 1)?;
    node.define("v", node.root())?;
    node.ok(&["define", "master", "v"])?;
    Ok(node)
}

/// Takes a snapshot and waits for its digest, which is made in the background; gives how long the command took.
fn snapshot(node: &mut Node) -> Result<Duration, Failure> {
    let start = Instant::now();
    node.ok(&["snapshot", "v"])?;
    let took = start.elapsed();
    node.wait_for("v", "the digest", LONG, |volume| volume.snapshots.last()?.digest)?;
    Ok(took)
}

/// The table of how long snapshots take.
fn latencies(program: &Path, dir: &Path, rounds: u32) -> Result<String, Failure> {
    let dir = fresh(dir, "latency")?;
    let mut node = volume(program, &dir)?;
    let path = node.path("v.img");
    let mut idle = Vec::new();
    let mut busy = Vec::new();
    let mut written = Vec::new();
    // The first would wait until the image is on the disk.
    rustix::fs::sync();
    for round in 0..rounds {
        say(format_args!("round {}: snapshots while nobody writes", round + 1));
        idle.extend(taken(&mut node, &path)?);
        say(format_args!("round {}: snapshots while {WRITERS} threads write", round + 1));
        let (samples, writes) = while_writing(&path, u64::from(round), || taken(&mut node, &path))?;
        busy.extend(samples);
        written.push(writes);
    }
    let mut rows =
        vec![["", "median", "p99", "worst", "median, writing", "p99", "worst"].map(str::to_owned).to_vec()];
    for name in [SNAPSHOT, COMMAND, CLONE] {
        let cells = [&idle, &busy].into_iter().flat_map(|samples| spread(name, samples));
        rows.push([name.to_owned()].into_iter().chain(cells).collect());
    }
    written.sort_by(f64::total_cmp);
    Ok(format!(
        "{}\nWriting: {WRITERS} threads, 4 KiB at random places with O_DIRECT, {:.0} writes a second meanwhile. {} snapshots, and {} \
         while they wrote.\n",
        align(&rows),
        written[written.len() / 2],
        count(&idle),
        count(&busy)
    ))
}

type Took = (&'static str, Duration);

/// Takes snapshots one after the other, and beside each does what it is compared with.
fn taken(node: &mut Node, path: &Path) -> Result<Vec<Took>, Failure> {
    let mut samples = Vec::new();
    let clone = path.with_extension("clone");
    let start = Instant::now();
    while count(&samples) < TAKEN && start.elapsed() < ENOUGH {
        samples.push((SNAPSHOT, snapshot(node)?));
        let start = Instant::now();
        node.ok(&["status", "v"])?;
        samples.push((COMMAND, start.elapsed()));
        let doing = || Failure::doing::<io::Error>(clone.display());
        let (from, to) = (File::open(path).map_err(doing())?, File::create(&clone).map_err(doing())?);
        let start = Instant::now();
        if !files::reflink(&from, &to).map_err(doing())? {
            return Err(Failure::failed("the file system does not share blocks"));
        }
        samples.push((CLONE, start.elapsed()));
        fs::remove_file(&clone).map_err(doing())?;
    }
    Ok(samples)
}

/// How many of these were snapshots.
fn count(samples: &[Took]) -> usize {
    samples.iter().filter(|(of, _)| *of == SNAPSHOT).count()
}

/// The median, the 99th percentile and the longest.
fn spread(name: &str, samples: &[Took]) -> [String; 3] {
    let mut all: Vec<_> = samples.iter().filter(|(of, _)| *of == name).map(|(_, took)| *took).collect();
    all.sort();
    let at = |part: f64| {
        let took = all.get(((all.len() as f64 * part).ceil() as usize).max(1) - 1);
        took.map_or("–".to_owned(), |took| format!("{:.1}", took.as_secs_f64() * 1e3))
    };
    [at(0.5), at(0.99), at(1.0)]
}

/// Does something while threads write at random; with how many writes they did in a second.
fn while_writing<T>(
    path: &Path,
    seed: u64,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<(T, f64), Failure> {
    let doing = || Failure::doing::<io::Error>(path.display());
    let mut options = File::options();
    let file = options.write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path).map_err(doing())?;
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let write = |seed: u64| -> io::Result<()> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut page = PageBuf::new(WRITE as usize);
        while !stop.load(Ordering::Relaxed) {
            page.fill(random.random());
            file.write_all_at(&page, random.random_range(0..SIZE / WRITE) * WRITE)?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let write = &write;
        let writers: Vec<_> =
            (0..WRITERS).map(|at| scope.spawn(move || write(seed * WRITERS + at))).collect();
        let done = work();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().expect("writing does not panic").map_err(doing())?;
        }
        Ok((done?, count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()))
    })
}

/// The table of how fast random writes are.
fn speeds(program: &Path, dir: &Path, rounds: u32) -> Result<String, Failure> {
    let mut samples: Vec<(&str, usize, f64)> = Vec::new();
    for round in 0..rounds {
        let mut order = [PLAIN, OURS, QCOW2];
        order.rotate_left(round as usize % 3);
        for name in order {
            let dir = fresh(dir, "speed")?;
            let mut written = Written::new(name, program, &dir)?;
            for count in SNAPSHOTS.into_iter().filter(|count| *count == 0 || name != PLAIN) {
                say(format_args!("round {}: {name}, {count} snapshots", round + 1));
                written.grow(count)?;
                samples.push((name, count, written.write()?));
            }
        }
    }
    let mut rows =
        vec![["".to_owned()].into_iter().chain(SNAPSHOTS.map(|n| format!("{n} snapshots"))).collect()];
    for name in [PLAIN, OURS, QCOW2] {
        let cells = SNAPSHOTS.map(|count| {
            let of = samples.iter().filter(|(n, c, _)| *n == name && *c == count);
            let mut values: Vec<f64> = of.map(|(_, _, speed)| *speed).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).map_or("–".to_owned(), |speed| format!("{speed:.0}"))
        });
        rows.push([name.to_owned()].into_iter().chain(cells).collect::<Vec<_>>());
    }
    Ok(align(&rows))
}

/// What is written to.
enum Written {
    Plain(PathBuf),
    Ours(Box<Node>),
    Qcow2(PathBuf, usize),
}

impl Written {
    /// Makes it, without a snapshot.
    fn new(name: &str, program: &Path, dir: &Path) -> Result<Self, Failure> {
        if name == OURS {
            return volume(program, dir).map(|node| Self::Ours(Box::new(node)));
        }
        let plain = dir.join("plain.img");
        image(&plain, SIZE, 1)?;
        if name == PLAIN {
            return Ok(Self::Plain(plain));
        }
        let qcow2 = dir.join("image.qcow2");
        output("qemu-img", |qemu| qemu.args(["convert", "-f", "raw", "-O", "qcow2"]).args([&plain, &qcow2]))?;
        Ok(Self::Qcow2(qcow2, 0))
    }

    /// Takes snapshots until there are so many.
    fn grow(&mut self, count: usize) -> Result<(), Failure> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Ours(node) => {
                (node.volume("v")?.snapshots.len()..count).try_for_each(|_| snapshot(node).map(drop))
            }
            Self::Qcow2(path, there) => {
                for number in *there..count {
                    let number = number.to_string();
                    output("qemu-img", |qemu| qemu.args(["snapshot", "-c", &number]).arg(&*path))?;
                }
                *there = count;
                Ok(())
            }
        }
    }

    /// Writes all over it, eight at a time, and gives how many writes were done in a second.
    fn write(&self) -> Result<f64, Failure> {
        rustix::fs::sync();
        let (path, format) = match self {
            Self::Plain(path) => (path.clone(), "raw"),
            Self::Ours(node) => (node.path("v.img"), "raw"),
            Self::Qcow2(path, _) => (path.clone(), "qcow2"),
        };
        let (size, count, step) = (WRITE.to_string(), WRITES.to_string(), (STEP * CHUNK).to_string());
        let said = output("qemu-img", |qemu| {
            let options =
                ["-w", "-t", "none", "-d", "8", "-s", &size, "-S", &step, "-c", &count, "-f", format];
            qemu.arg("bench").args(options).arg(&path)
        })?;
        let seconds = seconds(&said);
        seconds.map(|seconds| WRITES as f64 / seconds).ok_or_else(|| {
            Failure::failed(format!("qemu-img does not say how long it took: {}", said.trim()))
        })
    }
}

/// How long `qemu-img bench` says that it took.
fn seconds(said: &str) -> Option<f64> {
    said.lines().find_map(|line| line.strip_prefix("Run completed in ")?.split(' ').next()?.parse().ok())
}

/// Chunks from one write to the next. It has no divisor in common with the number of chunks: none is written twice.
const STEP: u64 = 17;

/// Longer than anything takes that works.
const LONG: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_of_one_name() {
        let mut samples: Vec<Took> = (1..=100).map(|ms| (SNAPSHOT, Duration::from_millis(ms))).collect();
        samples.push((CLONE, Duration::from_secs(1)));
        assert_eq!(spread(SNAPSHOT, &samples), ["50.0", "99.0", "100.0"]);
        assert_eq!(spread(COMMAND, &samples), ["–", "–", "–"]);
    }

    #[test]
    fn no_chunk_is_written_twice() {
        let chunks = SIZE / CHUNK;
        let written: std::collections::HashSet<_> = (0..WRITES).map(|at| at * STEP % chunks).collect();
        assert_eq!(written.len() as u64, WRITES);
    }

    #[test]
    fn what_qemu_says_is_understood() {
        assert_eq!(seconds("Sending 2000 write requests\nRun completed in 0.223 seconds.\n"), Some(0.223));
        assert_eq!(seconds("qemu-img: no"), None);
    }
}
