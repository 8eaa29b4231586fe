//! `zumastor-testbed bench`: Zumastor beside raw QUIC and other programs that copy, in one run, and beside other tools what it
//! knows of device-mapper.

mod changes;
mod content;
mod day;
mod digest;
mod isolate;
mod link;
mod many;
mod many_snapshots;
mod measure;
mod ours;
mod peers;
pub mod raw;
mod report;
mod server;
mod snapshots;
mod thin_metadata;
mod thin_snapshots;
mod transfers;
mod wan;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use zumastor::exit::Failure;
use zumastor_core::parse_size;
use zumastor_testbed::{FileSystem, Scratch, lab};

/// Measure Zumastor beside raw QUIC and other programs that copy
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure [default: full and incremental]
    #[arg(value_enum)]
    what: Vec<What>,
    /// Size of the volume; of `wan`, four times what is moved over the fastest paths
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
    /// What lies between the two sides
    #[arg(long, value_enum, default_value_t = link::Kind::Loopback)]
    path: link::Kind,
    /// Of `wan`, only the paths whose name has this in it, as "1000 Mbit/s, 150 ms, 0 %"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Compare with raw QUIC only
    #[arg(long)]
    no_peers: bool,
    /// Fail if a full copy is less than so many times as fast as raw QUIC
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    at_least: Option<f64>,
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
    /// Small changes of volumes of 1, 4, 16 and 64 GiB, mostly holes, up to --size, beside rsync and hashing both sides
    Changes,
    /// Whether the daemons grow in a day's cycles at one a minute, on XFS in a file; needs root
    Day,
    /// How fast a digest is computed and a snapshot scrubbed, beside BLAKE3 and the disk
    Digest,
    /// 200 volumes of 256 MiB: a cycle in which each has a small change, and what they cost while nothing changes
    Many,
    /// Commands on a volume with few snapshots and with thousands, on XFS in a file; needs root
    ManySnapshots,
    /// How long a snapshot takes while others write, and how fast they write with many, on XFS in a file; needs root
    Snapshot,
    /// Full copies over long paths that lose packets, beside what goes over TCP; needs root
    Wan,
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
    /// In memory, so that no disk is measured
    Tmpfs,
}

impl Fs {
    /// Mounts one that has room for everything of a volume of `size` bytes. It takes only what is written.
    fn mount(self, size: u64, parent: &Path) -> Result<Scratch, Failure> {
        let kind = match self {
            Self::Xfs => FileSystem::Xfs,
            Self::Tmpfs => FileSystem::Tmpfs,
        };
        Scratch::mount(kind, size * 8 + (2 << 30), parent)
    }
}

/// A number above zero.
fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().map_err(|_| "a number is needed, as 0.1".to_owned())?;
    if ratio > 0.0 && f64::is_finite(ratio) { Ok(ratio) } else { Err("it has to be above 0".to_owned()) }
}

/// Runs the benchmark.
pub fn run(args: Args) -> Result<(), Failure> {
    args.path.check()?;
    if args.at_least.is_some() && !(args.what.is_empty() || args.what.contains(&What::Full)) {
        return Err(Failure::usage("--at-least is about a full copy: `bench full --at-least RATIO`"));
    }
    // They move this process into a network namespace.
    let alone = [(What::Many, "many"), (What::Wan, "wan")];
    if let Some((_, name)) = alone.iter().find(|(what, _)| args.what.len() > 1 && args.what.contains(what)) {
        return Err(Failure::usage(format!("`{name}` is measured by itself: run the others apart from it")));
    }
    if args.what.contains(&What::Wan) && (args.path != link::Kind::Loopback || args.fs.is_some()) {
        return Err(Failure::usage(
            "`wan` has paths of its own, and copies below --dir: leave out --path and --fs",
        ));
    }
    if args.only.is_some() && !args.what.contains(&What::Wan) {
        return Err(Failure::usage("--only is about the paths of `wan`: `bench wan --only TEXT`"));
    }
    in_the_lab(&args)?;
    let transfers =
        args.what.is_empty() || args.what.iter().any(|what| matches!(what, What::Full | What::Incremental));
    let others =
        [What::Changes, What::Day, What::Digest, What::Many, What::ManySnapshots, What::Snapshot, What::Wan];
    if !transfers && !others.iter().any(|what| args.what.contains(what)) {
        return Ok(());
    }
    let zumastor = match &args.zumastor {
        Some(path) => std::path::absolute(path).map_err(Failure::doing(path.display()))?,
        None => isolate::build()?,
    };
    let note = match isolate::enter(&zumastor)? {
        isolate::Entered::Done(code) => std::process::exit(code),
        isolate::Entered::Here(note) => note,
    };
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&parent).map_err(Failure::doing(parent.display()))?;
    if args.what.contains(&What::Day) {
        println!("{}", day::run(&zumastor, &parent)?);
    }
    if args.what.contains(&What::ManySnapshots) {
        println!("{}", many_snapshots::run(&zumastor, &parent, args.rounds)?);
    }
    if args.what.contains(&What::Snapshot) {
        snapshots::run(&zumastor, &parent, args.rounds)?;
    }
    if args.what.contains(&What::Many) {
        let scratch = args.fs.map(|fs| fs.mount(many::ROOM, &parent)).transpose()?;
        let parent = scratch.as_ref().map_or(parent.as_path(), Scratch::path);
        many::run(&args, &zumastor, parent, note.clone())?;
    }
    if args.what.contains(&What::Wan) {
        return wan::run(&args, &zumastor, &parent);
    }
    if args.what.contains(&What::Changes) {
        let scratch = args.fs.map(|fs| fs.mount(changes::ROOM, &parent)).transpose()?;
        let parent = scratch.as_ref().map_or(parent.as_path(), Scratch::path);
        println!("{}", changes::run(&args, &zumastor, parent, note.clone())?);
    }
    if !transfers && !args.what.contains(&What::Digest) {
        return Ok(());
    }
    let scratch = args.fs.map(|fs| fs.mount(args.size, &parent)).transpose()?;
    let parent = scratch.as_ref().map_or(parent.as_path(), Scratch::path);
    if args.what.contains(&What::Digest) {
        println!("{}", digest::run(&zumastor, parent, args.size, args.rounds)?);
    }
    if !transfers {
        return Ok(());
    }
    transfers::run(&args, &zumastor, parent, note)
}

/// An empty directory; what was there before is gone.
fn fresh(parent: &Path, name: &str) -> Result<PathBuf, Failure> {
    let dir = parent.join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).map_err(Failure::doing(dir.display()))?;
    }
    fs::create_dir(&dir).map_err(Failure::doing(dir.display()))?;
    Ok(dir)
}

/// Brings into memory what will be read: a file, or all files below a directory.
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
