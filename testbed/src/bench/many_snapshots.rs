//! What it costs that a volume has thousands of snapshots: the same commands, with few and with many, on a file system that
//! shares blocks.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use zumastor::exit::Failure;
use zumastor_testbed::{FileSystem, Node, Scratch, image, introduce};

use super::{
    content::CHUNK,
    report::{Machine, align},
    say,
};

/// Bytes of the volume.
const SIZE: u64 = 64 << 20;
/// Chunks of it that are written, one before each snapshot, in turn. A clone costs what the file has extents: so it has as
/// many with few snapshots as with many.
const WRITTEN: u64 = 64;
/// Numbers of snapshots.
const SNAPSHOTS: [usize; 2] = [10, 5000];
/// How often each command is measured in a round.
const RUNS: u32 = 5;

const SNAPSHOT: &str = "`snapshot v`";
const STATUS: &str = "`status`";
const ONE: &str = "`status v`";
const PLAN: &str = "`plan v`";
const REPLICATE: &str = "`replicate v beta --wait`, one chunk of 64 KiB changed";
const AGAIN: &str = "`replicate v beta --wait`, nothing new";
const DELETE: &str = "`delete v N`, in the middle";
const START: &str = "start of the daemon to the end of the first `status v`";
const COMMANDS: [&str; 8] = [SNAPSHOT, STATUS, ONE, PLAN, REPLICATE, AGAIN, DELETE, START];

/// Measures below `parent`, and gives the table.
pub fn run(program: &Path, parent: &Path, rounds: u32) -> Result<String, Failure> {
    let scratch = Scratch::mount(FileSystem::Xfs, 32 << 30, parent)?;
    let mut lab = Lab::new(program, scratch.path())?;
    let mut columns = Vec::new();
    for count in SNAPSHOTS {
        say(format_args!("taking snapshots until there are {count}"));
        lab.grow(count)?;
        say(format_args!("measuring with {count} snapshots"));
        columns.push(lab.measure(rounds)?);
    }
    let heads = SNAPSHOTS.iter().flat_map(|count| [format!("{count} snapshots, ms"), "worst".to_owned()]);
    let mut rows = vec![["".to_owned()].into_iter().chain(heads).collect::<Vec<_>>()];
    for command in COMMANDS {
        let cells = columns.iter().flat_map(|column| column.cells(command));
        rows.push([command.to_owned()].into_iter().chain(cells).collect());
    }
    let machine = Machine::here(scratch.path()).line();
    Ok(format!("**Few and many snapshots of one volume**\n\n{machine}\n\n{}", align(&rows)))
}

/// A master of a volume and a target that is up to date.
pub(super) struct Lab {
    pub alpha: Node,
    pub beta: Node,
    image: PathBuf,
    /// Snapshots that were taken.
    taken: u64,
}

impl Lab {
    /// Starts both below `dir`, and writes all of the volume.
    pub fn new(program: &Path, dir: &Path) -> Result<Self, Failure> {
        let (alpha, beta) = (Node::start(program, dir, "alpha")?, Node::start(program, dir, "beta")?);
        introduce(&alpha, &beta)?;
        let path = alpha.path("v.img");
        image(&path, SIZE, 1)?;
        alpha.define("v", alpha.root())?;
        alpha.ok(&["define", "master", "v"])?;
        alpha.ok(&["define", "target", "v", "beta"])?;
        beta.define("v", beta.root())?;
        beta.ok(&["define", "source", "v", "alpha"])?;
        let mut lab = Self { alpha, beta, image: path, taken: 0 };
        // All chunks are written once before anything is measured.
        lab.grow(WRITTEN as usize)?;
        let old: Vec<String> = (0..WRITTEN - SNAPSHOTS[0] as u64).map(|number| number.to_string()).collect();
        let delete = ["delete", "v"].into_iter().chain(old.iter().map(String::as_str));
        lab.alpha.ok(&delete.collect::<Vec<_>>())?;
        Ok(lab)
    }

    /// Takes snapshots until there are so many.
    fn grow(&mut self, count: usize) -> Result<(), Failure> {
        for _ in self.alpha.volume("v")?.snapshots.len()..count {
            self.snapshot()?;
        }
        self.settled()?;
        self.replicate()
    }

    /// Brings the newest snapshot to the target.
    pub fn replicate(&self) -> Result<(), Failure> {
        self.alpha.ok(&["replicate", "v", "beta", "--wait"]).map(drop)
    }

    /// Deletes the oldest snapshots on both sides until there are no more than so many.
    pub fn thin_out(&self, most: usize) -> Result<(), Failure> {
        for node in [&self.alpha, &self.beta] {
            let snapshots = node.volume("v")?.snapshots;
            for snapshot in &snapshots[..snapshots.len().saturating_sub(most)] {
                node.ok(&["delete", "v", &snapshot.number.to_string()])?;
            }
        }
        Ok(())
    }

    /// Checks that the replica is the master's file, byte for byte.
    pub fn check(&self) -> Result<(), Failure> {
        let (here, replica) = (self.alpha.digest(&self.image)?, self.beta.digest(&self.beta.path("v.img"))?);
        if here == replica {
            return Ok(());
        }
        Err(Failure::failed(format!("the replica differs from the master: {replica} and {here}")))
    }

    /// Changes a chunk and takes a snapshot; tells how long that took.
    pub fn snapshot(&mut self) -> Result<Duration, Failure> {
        let chunk = self.taken % WRITTEN * (SIZE / WRITTEN);
        let mut bytes = vec![0; CHUNK as usize];
        SmallRng::seed_from_u64(self.taken).fill_bytes(&mut bytes);
        let written = File::options().write(true).open(&self.image).and_then(|file| {
            file.write_all_at(&bytes, chunk)?;
            // As a user who takes snapshots and does not wait for them: what was written before is on the disk.
            file.sync_all()
        });
        written.map_err(Failure::doing(self.image.display()))?;
        self.taken += 1;
        timed(&self.alpha, &["snapshot", "v"])
    }

    /// Waits for the digest of the newest snapshot, which is made in the background.
    pub fn settled(&mut self) -> Result<(), Failure> {
        let digest = |volume: &zumastor::api::VolumeStatus| volume.snapshots.last()?.digest;
        self.alpha.wait_for("v", "the digest", Duration::from_secs(60), digest).map(drop)
    }

    fn measure(&mut self, rounds: u32) -> Result<Column, Failure> {
        let mut column = Column::default();
        let count = self.alpha.volume("v")?.snapshots.len();
        for _ in 0..rounds {
            for _ in 0..RUNS {
                column.add(SNAPSHOT, self.snapshot()?);
                self.settled()?;
                column.add(STATUS, timed(&self.alpha, &["status"])?);
                column.add(ONE, timed(&self.alpha, &["status", "v"])?);
                column.add(PLAN, timed(&self.alpha, &["plan", "v"])?);
                for what in [REPLICATE, AGAIN] {
                    column.add(what, timed(&self.alpha, &["replicate", "v", "beta", "--wait"])?);
                }
                // As many as before.
                let middle = self.alpha.volume("v")?.snapshots[count / 2].number.to_string();
                column.add(DELETE, timed(&self.alpha, &["delete", "v", &middle])?);
            }
            self.alpha.down()?;
            let start = Instant::now();
            self.alpha.up()?;
            self.alpha.ok(&["status", "v"])?;
            column.add(START, start.elapsed());
            let there = self.alpha.volume("v")?.snapshots.len();
            if there != count {
                return Err(Failure::failed(format!("{there} snapshots are there, and {count} should be")));
            }
        }
        self.check()?;
        Ok(column)
    }
}

/// How long a command takes, from its start to its end.
fn timed(node: &Node, args: &[&str]) -> Result<Duration, Failure> {
    let start = Instant::now();
    node.ok(args)?;
    Ok(start.elapsed())
}

/// What was measured with one number of snapshots.
#[derive(Default)]
struct Column(Vec<(&'static str, Duration)>);

impl Column {
    fn add(&mut self, command: &'static str, took: Duration) {
        self.0.push((command, took));
    }

    /// The median and the longest.
    fn cells(&self, command: &str) -> [String; 2] {
        let mut all: Vec<Duration> =
            self.0.iter().filter(|(of, _)| *of == command).map(|(_, took)| *took).collect();
        all.sort();
        let ms = |took: Option<&Duration>| {
            took.map_or("–".to_owned(), |took| format!("{:.0}", took.as_secs_f64() * 1e3))
        };
        [ms(all.get(all.len() / 2)), ms(all.last())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_the_worst() {
        let mut column = Column::default();
        for ms in [30, 10, 20] {
            column.add(STATUS, Duration::from_millis(ms));
        }
        assert_eq!(column.cells(STATUS), ["20", "30"]);
        assert_eq!(column.cells(PLAN), ["–", "–"]);
    }
}
