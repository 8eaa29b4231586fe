//! Many volumes at once: one cycle in which each has a small change, beside rsync; and what they cost while nothing changes.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use zumastor::{api::VolumeStatus, exit::Failure};
use zumastor_core::{HumanBytes, VolumeName};
use zumastor_testbed::{Node, bytes_read, introduce};

use super::{
    Args,
    content::{self, SPARSE},
    fresh,
    link::{Kind, Link},
    measure::{Sample, daemons},
    peers::{self, DELTA_OF_ALL, Job},
    report::{Machine, OURS, Table, align},
    say,
};

/// Volumes.
const VOLUMES: u64 = 200;
/// Bytes of each, most of them a hole.
const SIZE: u64 = 256 << 20;
/// Seconds between two times that a volume's source is asked for news.
const PERIOD: u64 = 10;
/// So long it is measured what that costs.
const STRETCH: Duration = Duration::from_secs(60);

/// Bytes of all that is written to the volumes, at most: what a file system for this is made for.
pub const ROOM: u64 = 8 << 30;

const SNAPSHOTS: &str = "(zumastor snapshots)";
const DIGESTS: &str = "(the same, and their digests)";

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    machine: Machine,
    volumes: u64,
    size: u64,
    path: Kind,
    rounds: u32,
    notes: Vec<String>,
    cycle: Table,
    idle: Vec<Idle>,
}

/// What both daemons cost while nothing changes.
#[derive(Debug, Serialize)]
struct Idle {
    what: &'static str,
    /// How often a source was asked in each stretch.
    polls: u64,
    stretches: Vec<Stretch>,
}

/// One stretch of it.
#[derive(Debug, Clone, Copy, Serialize)]
struct Stretch {
    cost: Sample,
    /// Bytes that both daemons read from files.
    read: u64,
}

/// Measures below `parent`, prints the tables, and writes them where they are wanted.
pub fn run(args: &Args, program: &Path, parent: &Path, note: Option<String>) -> Result<(), Failure> {
    let link = Link::new(args.path)?;
    let dir = tempfile::Builder::new()
        .prefix("zb-")
        .tempdir_in(parent)
        .map_err(Failure::doing(parent.display()))?;
    let mut notes: Vec<String> = note.into_iter().collect();
    let missing = DELTA_OF_ALL.missing();
    let beside = !args.no_peers && missing.is_none();
    if !args.no_peers {
        notes.extend(peers::versions());
        notes.extend(missing);
    }
    let lab = Lab::new(&link, program, dir.path())?;
    let cycle = lab.cycles(args.rounds, beside)?;
    let store = lab.upstream.volume(lab.volumes[0].as_str())?.store;
    notes.extend(store.map(|store| format!("Snapshots of the volumes: {}.", store.kind)));
    let quiet = lab.idle("nobody asks", 0, args.rounds)?;
    lab.ask_every_period()?;
    let idle = vec![quiet, lab.idle("each source is asked every 10 s", PERIOD, args.rounds)?];
    lab.check()?;
    let (machine, rounds, path) = (Machine::here(dir.path()), args.rounds, args.path);
    let found = Found { machine, volumes: VOLUMES, size: SIZE, path, rounds, notes, cycle, idle };
    println!("{}", found.markdown());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&found).map_err(Failure::doing("writing JSON"))?;
        fs::write(path, json).map_err(Failure::doing(path.display()))?;
    }
    Ok(())
}

/// Two daemons that have all volumes, and where rsync copies their images to.
struct Lab<'a> {
    link: &'a Link,
    upstream: Node,
    downstream: Node,
    images: PathBuf,
    /// Where rsync copies them to.
    copies: PathBuf,
    volumes: Vec<VolumeName>,
}

impl<'a> Lab<'a> {
    /// Makes the volumes and replicates them once, so that everybody has everything.
    fn new(link: &'a Link, program: &Path, dir: &Path) -> Result<Self, Failure> {
        let (images, copies) = (fresh(dir, "images")?, fresh(dir, "copies")?);
        let upstream = link.node(program, dir, "upstream", false)?;
        let downstream = link.node(program, dir, "downstream", true)?;
        introduce(&upstream, &downstream)?;
        let name = |number| format!("v{number}").parse().expect("a volume's name");
        let volumes = (0..VOLUMES).map(name).collect();
        let lab = Self { link, upstream, downstream, images, copies, volumes };
        say(format_args!("making {VOLUMES} volumes of {}", HumanBytes(SIZE)));
        for (volume, seed) in lab.volumes.iter().zip(0..) {
            let (image, volume) = (lab.image(volume), volume.as_str());
            content::create_sparse(&image, SIZE, seed).map_err(Failure::doing(image.display()))?;
            let snapshots = lab.upstream.path(&format!("{volume}.snaps"));
            lab.upstream.ok(&[
                "define",
                "volume",
                volume,
                &image.to_string_lossy(),
                &snapshots.to_string_lossy(),
            ])?;
            lab.upstream.ok(&["define", "master", volume])?;
            lab.upstream.ok(&["define", "target", volume, "downstream"])?;
            lab.downstream.define(volume, lab.downstream.root())?;
            lab.downstream.ok(&["define", "source", volume, "upstream"])?;
        }
        Ok(lab)
    }

    fn image(&self, volume: &VolumeName) -> PathBuf {
        self.images.join(format!("{volume}.img"))
    }

    fn cycles(&self, rounds: u32, beside: bool) -> Result<Table, Failure> {
        let title = format!("{VOLUMES} volumes of {}, one chunk of 64 KiB changed in each", HumanBytes(SIZE));
        let mut table = Table::new(title);
        say(format_args!("a first full copy for everyone"));
        self.upstream.snapshot_all(&self.volumes)?;
        self.digests()?;
        self.downstream.replicate_all(&self.volumes, "upstream")?;
        let from = self.images.join("");
        let job = Job { link: self.link, image: &from, dir: &self.copies };
        if beside {
            let to = job.copy();
            fs::create_dir(&to).map_err(Failure::doing(to.display()))?;
            for (volume, seed) in self.volumes.iter().zip(0..) {
                let copy = to.join(format!("{volume}.img"));
                content::create_sparse(&copy, SIZE, seed).map_err(Failure::doing(copy.display()))?;
            }
        }
        for round in 0..rounds {
            table.bytes = 0;
            for (volume, seed) in self.volumes.iter().zip(0..) {
                let (image, generation) = (self.image(volume), u64::from(round) + 1);
                table.bytes += content::change_sparse(&image, SIZE, seed, generation)
                    .map_err(Failure::doing(image.display()))?;
            }
            let ours_is_first = round.is_multiple_of(2);
            for ours in [ours_is_first, !ours_is_first] {
                rustix::fs::sync();
                if ours {
                    say(format_args!("one cycle, round {}: {OURS}", round + 1));
                    self.ours(&mut table)?;
                } else if beside {
                    say(format_args!("one cycle, round {}: {}", round + 1, DELTA_OF_ALL.name));
                    table.add(DELTA_OF_ALL.name, DELTA_OF_ALL.run(&job)?);
                }
            }
        }
        self.check()?;
        Ok(table)
    }

    /// Takes a snapshot of each and replicates them.
    fn ours(&self, table: &mut Table) -> Result<(), Failure> {
        let pid = self.upstream.pid();
        let mut command = Sample::default();
        let whole = daemons(self.link, pid, pid, || {
            let start = Instant::now();
            self.upstream.snapshot_all(&self.volumes)?;
            command.seconds = start.elapsed().as_secs_f64();
            self.digests()
        })?;
        table.add(SNAPSHOTS, command);
        // Nothing of it goes to the peer.
        table.add(DIGESTS, Sample { receiver: Default::default(), wire: 0, ..whole });
        let replicated = daemons(self.link, pid, self.downstream.pid(), || {
            self.downstream.replicate_all(&self.volumes, "upstream")
        })?;
        table.add(OURS, replicated);
        Ok(())
    }

    /// Waits until the newest snapshot of each has its digest.
    fn digests(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + LONG;
        loop {
            let without = |volume: &VolumeStatus| {
                volume.snapshots.last().is_none_or(|snapshot| snapshot.digest.is_none())
            };
            if !self.upstream.status()?.volumes.iter().any(without) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::failed("not all snapshots get a digest"));
            }
            // What is asked costs what is measured.
            sleep(Duration::from_millis(50));
        }
    }

    /// Checks that each replica's file is its master's, byte for byte.
    fn check(&self) -> Result<(), Failure> {
        for volume in &self.volumes {
            let replica = self.downstream.path(&format!("{volume}.img"));
            let (here, there) =
                (self.upstream.digest(&self.image(volume))?, self.downstream.digest(&replica)?);
            if here != there {
                let text = format!("the replica of {volume} differs from its master: {there} and {here}");
                return Err(Failure::failed(text));
            }
        }
        Ok(())
    }

    /// From now on every source is asked by itself.
    fn ask_every_period(&self) -> Result<(), Failure> {
        let period = PERIOD.to_string();
        for volume in &self.volumes {
            self.downstream.ok(&["define", "source", volume.as_str(), "upstream", "--period", &period])?;
        }
        let deadline = Instant::now() + LONG;
        while self.unasked_since(Timestamp::UNIX_EPOCH)?.is_some() {
            if Instant::now() > deadline {
                return Err(Failure::failed("not all sources are asked"));
            }
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// A volume whose source was not asked successfully since then.
    fn unasked_since(&self, since: Timestamp) -> Result<Option<VolumeName>, Failure> {
        let asked = |volume: &VolumeStatus| {
            let last = volume.source.as_ref().and_then(|source| source.work.last);
            last.is_some_and(|last| last.at >= since && !last.summary.received)
        };
        Ok(self.downstream.status()?.volumes.into_iter().find(|volume| !asked(volume)).map(|v| v.name))
    }

    /// Measures what both daemons cost while they are left alone.
    fn idle(&self, what: &'static str, period: u64, rounds: u32) -> Result<Idle, Failure> {
        let pids = [self.upstream.pid(), self.downstream.pid()];
        let read = || pids.iter().map(|pid| bytes_read(*pid)).sum::<std::io::Result<u64>>();
        let read =
            || read().map_err(|error| Failure::failed(format!("a daemon cannot be measured: {error}")));
        let mut stretches = Vec::new();
        for round in 0..rounds {
            say(format_args!("{what}, round {}: {} s", round + 1, STRETCH.as_secs()));
            // What was begun before is not counted.
            sleep(Duration::from_secs(PERIOD));
            let before = read()?;
            let cost = daemons(self.link, pids[0], pids[1], || {
                sleep(STRETCH);
                Ok(())
            })?;
            stretches.push(Stretch { cost, read: read()? - before });
            if period > 0 {
                let since = Timestamp::now() - SignedDuration::from_secs(2 * period as i64);
                if let Some(volume) = self.unasked_since(since)? {
                    return Err(Failure::failed(format!("the source of {volume} was not asked in time")));
                }
            }
        }
        let polls = VOLUMES * STRETCH.as_secs().checked_div(period).unwrap_or(0);
        Ok(Idle { what, polls, stretches })
    }
}

impl Found {
    /// As it stands in a document.
    pub fn markdown(&self) -> String {
        let Self { machine, path, rounds, notes, cycle, idle, .. } = self;
        let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
        let full = HumanBytes(SIZE / SPARSE as u64);
        format!(
            "{} {VOLUMES} volumes of {}, of which {full} are full, {}; medians of {rounds}.\n{notes}\n{}\n**{VOLUMES} volumes of which \
             nothing changes, for {} s**\n\n{}",
            machine.line(),
            HumanBytes(SIZE),
            path.words(),
            cycle.markdown(),
            STRETCH.as_secs(),
            align(&rows(idle))
        )
    }
}

fn rows(idle: &[Idle]) -> Vec<Vec<String>> {
    let header = [
        "",
        "upstream, % of a core",
        "downstream",
        "both",
        "min–max",
        "ms of CPU per poll",
        "wire KB",
        "KB read from files",
    ];
    let rows = idle.iter().map(|idle| {
        let samples: Vec<_> = idle.stretches.iter().map(|stretch| stretch.cost).collect();
        let Sample { seconds, sender, receiver, wire } = Sample::median(&samples);
        let percent = |cpu: f64, seconds: f64| 100.0 * cpu / seconds;
        let both = samples.iter().map(|s| percent(s.sender.cpu + s.receiver.cpu, s.seconds));
        let (least, most) = (both.clone().fold(f64::MAX, f64::min), both.fold(0.0, f64::max));
        let each = |all: f64| match idle.polls {
            0 => "–".to_owned(),
            polls => format!("{:.2}", all / polls as f64),
        };
        let mut read: Vec<_> = idle.stretches.iter().map(|stretch| stretch.read).collect();
        read.sort_unstable();
        vec![
            idle.what.to_owned(),
            format!("{:.2}", percent(sender.cpu, seconds)),
            format!("{:.2}", percent(receiver.cpu, seconds)),
            format!("{:.2}", percent(sender.cpu + receiver.cpu, seconds)),
            format!("{least:.2}–{most:.2}"),
            each(1e3 * (sender.cpu + receiver.cpu)),
            each(wire as f64 / 1e3),
            each(read[read.len() / 2] as f64 / 1e3),
        ]
    });
    [header.map(str::to_owned).to_vec()].into_iter().chain(rows).collect()
}

/// Longer than anything takes that works.
const LONG: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::{super::measure::Spent, *};

    #[test]
    fn what_idling_costs_is_told_in_parts_of_a_core_and_for_each_poll() {
        let cost = |up: f64, down: f64| {
            let spent = |cpu| Spent { cpu, peak: 1 };
            let cost = Sample { seconds: 60.0, sender: spent(up), receiver: spent(down), wire: 1_200_000 };
            Stretch { cost, read: 600_000 }
        };
        let stretches = vec![cost(0.3, 0.6), cost(0.6, 0.6), cost(0.3, 0.6)];
        let idle = [
            Idle { what: "asked", polls: 1200, stretches: stretches.clone() },
            Idle { what: "not", polls: 0, stretches },
        ];
        let rows = rows(&idle);
        assert_eq!(rows[1], ["asked", "0.50", "1.00", "1.50", "1.50–2.00", "0.75", "1.00", "0.50"]);
        assert_eq!(rows[2][5..], ["–", "–", "–"]);
    }
}
