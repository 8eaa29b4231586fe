//! Copies from one machine to another: ours, raw QUIC, and what else makes them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use zumastor::exit::Failure;
use zumastor_core::HumanBytes;

use super::{
    Args, What, content, fresh,
    link::Link,
    measure::Sample,
    ours::Pair,
    peers::{self, Job, Peer},
    raw,
    report::{Machine, OURS, RAW, RAW_FILES, Report, Table},
    say, warm,
};

/// Measures below `parent`, prints the tables, and writes them where they are wanted.
pub fn run(args: &Args, zumastor: &Path, parent: &Path, note: Option<String>) -> Result<(), Failure> {
    let link = Link::new(args.path)?;
    let dir = tempfile::Builder::new()
        .prefix("zb-")
        .tempdir_in(parent)
        .map_err(Failure::doing(parent.display()))?;
    let wanted = |what| args.what.is_empty() || args.what.contains(&what);
    let mut notes: Vec<String> = note.into_iter().collect();
    if !args.no_peers {
        let all = peers::FULL.iter().filter(|_| wanted(What::Full));
        let missing: Vec<String> = all.filter_map(Peer::missing).collect();
        missing.iter().for_each(|missing| say(format_args!("{missing}")));
        notes.extend(peers::versions());
        notes.extend(missing);
    }
    let image = dir.path().join("master.img");
    say(format_args!("making a volume of {}", HumanBytes(args.size)));
    let bytes = content::create(&image, args.size).map_err(Failure::doing(image.display()))?;
    let mut lab = Lab {
        link: &link,
        no_peers: args.no_peers,
        dir: dir.path().to_owned(),
        zumastor: zumastor.to_owned(),
        image,
        size: args.size,
        path: args.path.words(),
        bytes,
        store: String::new(),
    };
    let mut tables = Vec::new();
    if wanted(What::Full) {
        tables.push(lab.full(args.rounds)?);
    }
    if wanted(What::Incremental) {
        tables.push(lab.incremental(args.rounds)?);
    }
    notes.push(format!("Snapshots of the volume: {}.", lab.store));
    let machine = Machine::here(dir.path());
    let report = Report { machine, size: args.size, path: args.path, rounds: args.rounds, notes, tables };
    println!("{}", report.markdown());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).map_err(Failure::doing("writing JSON"))?;
        fs::write(path, json).map_err(Failure::doing(path.display()))?;
    }
    args.at_least.map_or(Ok(()), |least| fast_enough(&report.tables, least))
}

/// Checks that ours is at least so many times as fast as raw QUIC.
fn fast_enough(tables: &[Table], least: f64) -> Result<(), Failure> {
    let ratio = tables.first().and_then(|table| table.ratio(OURS, RAW));
    let ratio = ratio.ok_or_else(|| Failure::failed("nothing was measured that could be compared"))?;
    if ratio >= least {
        say(format_args!(
            "a full copy is {ratio:.3} times as fast as raw QUIC: at least {least} was asked for"
        ));
        return Ok(());
    }
    Err(Failure::failed(format!(
        "a full copy is {ratio:.3} times as fast as raw QUIC in the same run, and at least {least} was asked for"
    ))
    .remedy("find out what has become slower; run it again on an idle machine if in doubt"))
}

/// What all contenders use.
struct Lab<'a> {
    link: &'a Link,
    no_peers: bool,
    dir: PathBuf,
    zumastor: PathBuf,
    image: PathBuf,
    size: u64,
    /// The way from one side to the other, in words.
    path: String,
    /// Bytes of the image that are not holes.
    bytes: u64,
    store: String,
}

const SNAPSHOT: &str = "(zumastor snapshot)";
const DIGEST: &str = "(the same, and its digest)";

impl Lab<'_> {
    fn full(&mut self, rounds: u32) -> Result<Table, Failure> {
        let mut table = Table::new(format!("Full copy to a new replica, {}", self.path));
        table.bytes = self.bytes;
        let peers = self.peers(&peers::FULL);
        for round in 0..rounds {
            for contender in rotated(&[Contender::Ours, Contender::Raw, Contender::RawFiles], &peers, round) {
                say(format_args!("full, round {}: {}", round + 1, contender.name()));
                let dir = fresh(&self.dir, "copy")?;
                self.settle(&[&self.image])?;
                let sample = match contender {
                    Contender::Raw => raw::run(self.link, self.bytes)?,
                    Contender::RawFiles => {
                        raw::run_files(self.link, self.bytes, &self.image, &dir.join("copy"))?
                    }
                    Contender::Peer(peer) => peer.run(&self.job(&dir))?,
                    Contender::Ours => {
                        let dir = fresh(&self.dir, "pair")?;
                        let mut pair = Pair::start(self.link, &self.zumastor, &dir, &self.image)?;
                        self.ours(&mut pair, &mut table)?
                    }
                };
                table.add(contender.name(), sample);
            }
        }
        Ok(table)
    }

    fn incremental(&mut self, rounds: u32) -> Result<Table, Failure> {
        let title = format!("One in a hundred chunks of 64 KiB changed, {}", self.path);
        let mut table = Table::new(title);
        say(format_args!("a first full copy for everyone"));
        let dir = fresh(&self.dir, "pair")?;
        let mut pair = Pair::start(self.link, &self.zumastor, &dir, &self.image)?;
        pair.snapshot()?;
        pair.replicate()?;
        let all = [peers::DELTA, peers::RSYNC];
        let peers = self.peers(&all);
        let copies = fresh(&self.dir, "copy")?;
        let place = |peer: &Peer| copies.join(if peer.name == peers::DELTA.name { "delta" } else { "whole" });
        for peer in &peers {
            let dir = place(peer);
            fs::create_dir(&dir).map_err(Failure::doing(dir.display()))?;
            peers::RSYNC.run(&self.job(&dir))?;
        }
        for round in 0..rounds {
            let changed = content::change(&self.image, self.size, u64::from(round) + 1);
            table.bytes = changed.map_err(Failure::doing(self.image.display()))?;
            for contender in rotated(&[Contender::Ours, Contender::Raw], &peers, round) {
                say(format_args!("incremental, round {}: {}", round + 1, contender.name()));
                self.settle(&[&self.image, &copies])?;
                let sample = match contender {
                    Contender::Raw => raw::run(self.link, table.bytes)?,
                    Contender::RawFiles => unreachable!("it has no part in this"),
                    Contender::Peer(peer) => peer.run(&self.job(&place(peer)))?,
                    Contender::Ours => self.ours(&mut pair, &mut table)?,
                };
                table.add(contender.name(), sample);
            }
        }
        Ok(table)
    }

    /// Takes a snapshot and replicates it.
    fn ours(&mut self, pair: &mut Pair<'_>, table: &mut Table) -> Result<Sample, Failure> {
        let (whole, command) = pair.snapshot()?;
        table.add(SNAPSHOT, command);
        table.add(DIGEST, whole);
        self.store = pair.store()?;
        self.settle(&pair.sources().each_ref().map(PathBuf::as_path))?;
        let sample = pair.replicate()?;
        pair.check()?;
        Ok(sample)
    }

    /// Those that are wanted and can run here.
    fn peers<'p>(&self, all: &'p [Peer]) -> Vec<&'p Peer> {
        all.iter().filter(|peer| !self.no_peers && peer.missing().is_none()).collect()
    }

    fn job<'j>(&'j self, dir: &'j Path) -> Job<'j> {
        Job { link: self.link, image: &self.image, dir }
    }

    /// Writes out what others have left to be written, and brings what will be read into memory.
    fn settle(&self, sources: &[&Path]) -> Result<(), Failure> {
        rustix::fs::sync();
        sources.iter().try_for_each(|path| warm(path)).map_err(Failure::doing("reading"))
    }
}

/// Who copies.
#[derive(Clone, Copy)]
enum Contender<'a> {
    Ours,
    Raw,
    RawFiles,
    Peer(&'a Peer),
}

impl Contender<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Ours => OURS,
            Self::Raw => RAW,
            Self::RawFiles => RAW_FILES,
            Self::Peer(peer) => peer.name,
        }
    }
}

/// Ours, the yardsticks, and these; each round begins with another one.
fn rotated<'a>(first: &[Contender<'a>], peers: &[&'a Peer], round: u32) -> Vec<Contender<'a>> {
    let mut all = first.to_vec();
    all.extend(peers.iter().map(|peer| Contender::Peer(peer)));
    let by = round as usize % all.len();
    all.rotate_left(by);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::RSYNC_WHOLE;

    #[test]
    fn what_is_too_slow_is_refused_with_both_ratios() {
        let mut table = Table::new("Full copy");
        for (name, seconds) in [(RAW, 1.0), (OURS, 4.0)] {
            table.add(name, Sample { seconds, ..Sample::default() });
        }
        let tables = [table];
        assert!(fast_enough(&tables, 0.25).is_ok());
        let said = fast_enough(&tables, 0.26).unwrap_err().error;
        assert!(said.contains("0.250") && said.contains("0.26"), "{said}");
        assert!(fast_enough(&[], 0.1).is_err());
    }

    #[test]
    fn everyone_begins_once() {
        let names = |round| {
            let all = rotated(&[Contender::Ours, Contender::Raw], &[&peers::RSYNC], round);
            all.iter().map(|contender| contender.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(1), [RAW, RSYNC_WHOLE, OURS]);
        assert_eq!(names(3), [OURS, RAW, RSYNC_WHOLE]);
    }
}
