//! `zumastor-testbed bench`: Zumastor beside raw QUIC and rsync in one run, and beside other tools what it knows of device-mapper.

mod content;
mod isolate;
mod many_snapshots;
mod measure;
mod ours;
pub mod raw;
mod report;
mod rsync;
mod thin_metadata;
mod thin_snapshots;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use zumastor::exit::Failure;
use zumastor_core::{HumanBytes, parse_size};
use zumastor_testbed::{FileSystem, Scratch, lab};

use self::{
    measure::Sample,
    ours::Pair,
    report::{Machine, RAW, RSYNC_WHOLE, Report, Table},
};

/// Measure Zumastor beside raw QUIC and rsync
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure [default: full and incremental]
    #[arg(value_enum)]
    what: Vec<What>,
    /// Size of the volume
    #[arg(long, default_value = "4G", value_parser = |text: &str| parse_size(text).map_err(|error| error.to_string()))]
    size: u64,
    /// Where to put everything: four to five times the size is written there [default: the system's temporary
    /// directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How often each contender runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Run on a fresh file system of this kind in a file below the directory; needs root
    #[arg(long, value_enum)]
    fs: Option<Fs>,
    /// Also write the result to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// The program to measure [default: built now, with optimisation]
    #[arg(long)]
    zumastor: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// A full copy to a new replica
    Full,
    /// One in a hundred chunks of 64 KiB has changed
    Incremental,
    /// Commands on a volume with few snapshots and with thousands, on XFS in a file; needs root
    ManySnapshots,
    /// What differs between snapshots of a thin volume, beside thin_delta; in the kernel lab
    ThinMetadata,
    /// Random writes to volumes with snapshots, dm-thin beside dm-snapshot; in the kernel lab
    ThinSnapshots,
}

/// One process of a benchmark of device-mapper; started by it, never by a person.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Kernel {
    /// In a guest: makes snapshots of a large thin volume.
    Metadata,
    /// In a guest: writes.
    Writes {
        /// How often.
        rounds: u32,
    },
    /// Tells what two devices differ in.
    Walk {
        /// The metadata.
        metadata: PathBuf,
        /// One device.
        left: u32,
        /// Another.
        right: u32,
    },
}

/// Does what such a process does.
pub fn play(role: Kernel) -> Result<(), Failure> {
    match role {
        Kernel::Metadata => thin_metadata::in_guest(),
        Kernel::Writes { rounds } => thin_snapshots::in_guest(rounds),
        Kernel::Walk { metadata, left, right } => thin_metadata::walk_here(&metadata, left, right),
    }
}

/// Those that take a kernel of their own.
fn in_the_lab(args: &Args) -> Result<(), Failure> {
    let wanted = |what| args.what.contains(&what);
    let bench = |tools: &[&str], run: fn(u32) -> Result<String, Failure>| {
        if !lab::ready(tools) {
            return Err(Failure::failed("the kernel lab is not complete here"));
        }
        println!("{}", run(args.rounds)?);
        Ok(())
    };
    if wanted(What::ThinMetadata) {
        bench(&thin_metadata::TOOLS, thin_metadata::run)?;
    }
    if wanted(What::ThinSnapshots) {
        bench(&thin_snapshots::TOOLS, thin_snapshots::run)?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Fs {
    /// Shares blocks between files: snapshots are reflinks
    Xfs,
}

/// Runs the benchmark.
pub fn run(args: Args) -> Result<(), Failure> {
    in_the_lab(&args)?;
    let transfers =
        args.what.is_empty() || args.what.iter().any(|what| matches!(what, What::Full | What::Incremental));
    let many = args.what.contains(&What::ManySnapshots);
    if !transfers && !many {
        return Ok(());
    }
    let zumastor = match &args.zumastor {
        Some(path) => std::path::absolute(path).map_err(Failure::doing(path.display()))?,
        None => isolate::build()?,
    };
    let mut notes = match isolate::enter(&zumastor)? {
        isolate::Entered::Done(code) => std::process::exit(code),
        isolate::Entered::Here(note) => note.into_iter().collect::<Vec<_>>(),
    };
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&parent).map_err(Failure::doing(parent.display()))?;
    if many {
        println!("{}", many_snapshots::run(&zumastor, &parent, args.rounds)?);
    }
    if !transfers {
        return Ok(());
    }
    let scratch = match args.fs {
        // It takes only what is written.
        Some(Fs::Xfs) => Some(Scratch::mount(FileSystem::Xfs, args.size * 8 + (2 << 30), &parent)?),
        None => None,
    };
    let parent = scratch.as_ref().map_or(parent.as_path(), Scratch::path);
    let dir = tempfile::Builder::new()
        .prefix("zb-")
        .tempdir_in(parent)
        .map_err(Failure::doing(parent.display()))?;
    match rsync::version() {
        Some(version) => notes.push(format!("Beside it: {version}.")),
        None => notes.push("rsync is not installed, so it is not compared.".to_owned()),
    }
    let image = dir.path().join("master.img");
    say(format_args!("making a volume of {}", HumanBytes(args.size)));
    let bytes = content::create(&image, args.size).map_err(Failure::doing(image.display()))?;
    let mut lab =
        Lab { dir: dir.path().to_owned(), zumastor, image, size: args.size, bytes, store: String::new() };
    let wanted = |what| args.what.is_empty() || args.what.contains(&what);
    let mut tables = Vec::new();
    if wanted(What::Full) {
        tables.push(lab.full(args.rounds)?);
    }
    if wanted(What::Incremental) {
        tables.push(lab.incremental(args.rounds)?);
    }
    notes.push(format!("Snapshots of the volume: {}.", lab.store));
    let machine = Machine::here(dir.path());
    let report = Report { machine, size: args.size, rounds: args.rounds, notes, tables };
    println!("{}", report.markdown());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).map_err(Failure::doing("writing JSON"))?;
        fs::write(path, json).map_err(Failure::doing(path.display()))?;
    }
    Ok(())
}

/// What all contenders use.
struct Lab {
    dir: PathBuf,
    zumastor: PathBuf,
    image: PathBuf,
    size: u64,
    /// Bytes of the image that are not holes.
    bytes: u64,
    store: String,
}

const OURS: &str = "zumastor";
const SNAPSHOT: &str = "(zumastor snapshot)";
const DIGEST: &str = "(the same, and its digest)";

impl Lab {
    fn full(&mut self, rounds: u32) -> Result<Table, Failure> {
        let mut table = Table::new("Full copy to a new replica");
        table.bytes = self.bytes;
        let contenders = self.contenders(&[OURS, RAW, RSYNC_WHOLE, FSYNC]);
        for round in 0..rounds {
            for name in rotated(&contenders, round) {
                say(format_args!("full, round {}: {name}", round + 1));
                let to = self.fresh("rsync")?;
                self.settle(&[&self.image])?;
                let sample = match name {
                    RAW => raw::run(self.bytes)?,
                    RSYNC_WHOLE => rsync::run(&["-W", "--inplace"], &self.image, &to, "copy.img")?,
                    FSYNC => rsync::run(&["-W", "--inplace", "--fsync"], &self.image, &to, "copy.img")?,
                    _ => {
                        let mut pair = Pair::start(&self.zumastor, &self.fresh("pair")?, &self.image)?;
                        self.ours(&mut pair, &mut table)?
                    }
                };
                table.add(name, sample);
            }
        }
        Ok(table)
    }

    fn incremental(&mut self, rounds: u32) -> Result<Table, Failure> {
        let mut table = Table::new("One in a hundred chunks of 64 KiB changed");
        say(format_args!("a first full copy for everyone"));
        let to = self.fresh("rsync")?;
        let mut pair = Pair::start(&self.zumastor, &self.fresh("pair")?, &self.image)?;
        pair.snapshot()?;
        pair.replicate()?;
        let contenders = self.contenders(&[OURS, RAW, DELTA, RSYNC_WHOLE]);
        for name in [DELTA, RSYNC_WHOLE].iter().filter(|name| contenders.contains(name)) {
            rsync::run(&["-W", "--inplace"], &self.image, &to, copy_of(name))?;
        }
        for round in 0..rounds {
            let changed = content::change(&self.image, self.size, u64::from(round) + 1);
            table.bytes = changed.map_err(Failure::doing(self.image.display()))?;
            for name in rotated(&contenders, round) {
                say(format_args!("incremental, round {}: {name}", round + 1));
                self.settle(&[&self.image, &to])?;
                let sample = match name {
                    RAW => raw::run(table.bytes)?,
                    RSYNC_WHOLE => rsync::run(&["-W", "--inplace"], &self.image, &to, copy_of(name))?,
                    DELTA => rsync::run(&["--inplace", "--no-whole-file"], &self.image, &to, copy_of(name))?,
                    _ => self.ours(&mut pair, &mut table)?,
                };
                table.add(name, sample);
            }
        }
        Ok(table)
    }

    /// Takes a snapshot and replicates it.
    fn ours(&mut self, pair: &mut Pair, table: &mut Table) -> Result<Sample, Failure> {
        let (whole, command) = pair.snapshot()?;
        table.add(SNAPSHOT, command);
        table.add(DIGEST, whole);
        self.store = pair.store()?;
        self.settle(&pair.sources().each_ref().map(PathBuf::as_path))?;
        let sample = pair.replicate()?;
        pair.check()?;
        Ok(sample)
    }

    /// Those that can run here.
    fn contenders<'a>(&self, all: &[&'a str]) -> Vec<&'a str> {
        let here = |name: &&str| match *name {
            FSYNC => rsync::can_sync(),
            RSYNC_WHOLE | DELTA => rsync::version().is_some(),
            _ => true,
        };
        all.iter().copied().filter(here).collect()
    }

    /// An empty directory.
    fn fresh(&self, name: &str) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(Failure::doing(dir.display()))?;
        }
        fs::create_dir(&dir).map_err(Failure::doing(dir.display()))?;
        Ok(dir)
    }

    /// Writes out what others have left to be written, and brings what will be read into memory.
    fn settle(&self, sources: &[&Path]) -> Result<(), Failure> {
        rustix::fs::sync();
        sources.iter().try_for_each(|path| warm(path)).map_err(Failure::doing("reading"))
    }
}

const FSYNC: &str = "rsync -W --inplace --fsync";
const DELTA: &str = "rsync --inplace --no-whole-file (delta)";

fn copy_of(name: &str) -> &'static str {
    if name == DELTA { "delta.img" } else { "whole.img" }
}

/// Each round begins with another one.
fn rotated<'a>(names: &[&'a str], round: u32) -> Vec<&'a str> {
    let mut names = names.to_vec();
    let by = round as usize % names.len().max(1);
    names.rotate_left(by);
    names
}

fn warm(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return fs::read_dir(path)?.try_for_each(|entry| warm(&entry?.path()));
    }
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn say(text: std::fmt::Arguments<'_>) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_begins_once() {
        assert_eq!(rotated(&["a", "b", "c"], 1), ["b", "c", "a"]);
        assert_eq!(rotated(&["a", "b", "c"], 3), ["a", "b", "c"]);
    }
}
