//! How fast a digest is computed and a snapshot scrubbed, beside what BLAKE3 and the disk can do.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rustix::fs::{Advice, OFlags, fadvise};
use zumastor::exit::Failure;
use zumastor_core::{HumanBytes, PageBuf};
use zumastor_testbed::{Node, image};

use super::{
    report::{Machine, align},
    say, warm,
};

const BLAKE3: &str = "BLAKE3 over memory, all cores";
const READ: &str = "reading the file, all cores";
const DIRECT: &str = "reading the file with O_DIRECT, all cores";
const DIGEST: &str = "`zumastor digest FILE`";
const SCRUB: &str = "`zumastor scrub v` of a snapshot";
const CONTENDERS: [&str; 5] = [BLAKE3, READ, DIRECT, DIGEST, SCRUB];

/// Measures below `parent`, and gives the table.
pub fn run(program: &Path, parent: &Path, size: u64, rounds: u32) -> Result<String, Failure> {
    let dir = tempfile::Builder::new()
        .prefix("zb-")
        .tempdir_in(parent)
        .map_err(Failure::doing(parent.display()))?;
    let mut node = Node::start(program, dir.path(), "alpha")?;
    let path = node.path("v.img");
    say(format_args!("making a volume of {} and a snapshot of it", HumanBytes(size)));
    image(&path, size, 1)?;
    node.define("v", node.root())?;
    node.ok(&["define", "master", "v"])?;
    node.ok(&["snapshot", "v"])?;
    let digest = node.wait_for("v", "the digest", LONG, |volume| volume.snapshots.last()?.digest)?;
    let mut memory = vec![0; size.min(MEMORY) as usize];
    SmallRng::seed_from_u64(1).fill_bytes(&mut memory);

    let mut samples = Vec::new();
    for round in 0..rounds {
        let mut order = CONTENDERS;
        order.rotate_left(round as usize % CONTENDERS.len());
        for name in order {
            for cache in [Cache::Warm, Cache::Cold] {
                if (name == BLAKE3 && cache == Cache::Cold) || (name == DIRECT && cache == Cache::Warm) {
                    continue;
                }
                say(format_args!("round {}: {name}, {}", round + 1, cache.words()));
                cache.prepare(&[&path, &node.path("v.snaps")])?;
                let start = Instant::now();
                let bytes = match name {
                    BLAKE3 => hash(&memory),
                    READ => read(&path, OFlags::empty())?,
                    DIRECT => read(&path, OFlags::DIRECT)?,
                    DIGEST => {
                        let said = command(program, &path)?;
                        if said.split_whitespace().next() != Some(&digest.to_string()) {
                            return Err(Failure::failed(format!("the digest is {digest} and not {said}")));
                        }
                        size
                    }
                    _ => node.ok(&["scrub", "v"]).map(|_| size)?,
                };
                samples.push((name, cache, bytes as f64 / start.elapsed().as_secs_f64()));
            }
        }
    }
    let kind = node.volume("v")?.store.map_or_else(|| "unknown".to_owned(), |store| store.kind);
    let machine = Machine::here(dir.path()).line();
    let said = format!(
        "{machine} Volume of {} without holes, medians of {rounds}. Snapshots of the volume: {kind}.",
        HumanBytes(size)
    );
    Ok(format!("**Digests and scrubs, GiB/s**\n\n{said}\n\n{}", table(&samples)))
}

/// Whether what is read is in memory already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    Warm,
    Cold,
}

impl Cache {
    fn words(self) -> &'static str {
        match self {
            Self::Warm => "page cache warm",
            Self::Cold => "page cache cold",
        }
    }

    /// Sees to it, for files and for all files below directories.
    fn prepare(self, paths: &[&Path]) -> Result<(), Failure> {
        rustix::fs::sync();
        paths.iter().try_for_each(|path| {
            let done = match self {
                Self::Warm => warm(path),
                Self::Cold => forget(path),
            };
            done.map_err(Failure::doing(path.display()))
        })
    }
}

/// Has the page cache drop what it has of a file, or of the files below a directory.
fn forget(path: &Path) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    if metadata.is_dir() {
        return std::fs::read_dir(path)?.try_for_each(|entry| forget(&entry?.path()));
    }
    if metadata.is_file() {
        fadvise(File::open(path)?, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// A row for each contender: what it reads in a second, and what part that is of BLAKE3's speed.
fn table(samples: &[(&str, Cache, f64)]) -> String {
    let median = |name: &str, cache: Cache| {
        let of = samples.iter().filter(|(n, c, _)| *n == name && *c == cache);
        let mut values: Vec<f64> = of.map(|(_, _, speed)| *speed).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let hash = median(BLAKE3, Cache::Warm);
    let mut rows = vec![["", "warm", "of BLAKE3", "cold", "of BLAKE3"].map(str::to_owned).to_vec()];
    for name in CONTENDERS {
        let cells = [Cache::Warm, Cache::Cold].into_iter().flat_map(|cache| {
            let found = median(name, cache);
            let dash = || "–".to_owned();
            let speed = found.map_or_else(dash, |speed| format!("{:.2}", speed / (1u64 << 30) as f64));
            let part =
                found.zip(hash).map_or_else(dash, |(speed, hash)| format!("{:.0} %", speed / hash * 100.0));
            [speed, part]
        });
        rows.push([name.to_owned()].into_iter().chain(cells).collect());
    }
    align(&rows)
}

/// Does `work` on pieces of so many bytes, on all cores, and gives the bytes.
fn all_cores(
    size: u64,
    work: impl Fn(u64, &mut PageBuf) -> Result<(), Failure> + Sync,
) -> Result<u64, Failure> {
    let next = AtomicU64::new(0);
    let one = || -> Result<(), Failure> {
        let mut buffer = PageBuf::new(PIECE as usize);
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed) * PIECE;
            if at >= size {
                return Ok(());
            }
            work(at, &mut buffer)?;
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })?;
    Ok(size)
}

/// What BLAKE3 does where nothing has to be read and nothing is kept: each core hashes large pieces as a whole.
fn hash(memory: &[u8]) -> u64 {
    let size = memory.len() as u64;
    let work = |at: u64, _: &mut PageBuf| {
        let piece = &memory[at as usize..(at + PIECE).min(size) as usize];
        std::hint::black_box(blake3::hash(piece));
        Ok(())
    };
    (0..PASSES).map(|_| all_cores(size, work).expect("memory can be read")).sum()
}

fn read(path: &Path, flags: OFlags) -> Result<u64, Failure> {
    let doing = || Failure::doing::<io::Error>(path.display());
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path).map_err(doing())?;
    let size = file.metadata().map_err(doing())?.len();
    all_cores(size, |at, buffer| {
        // Past the end too, so that the length is one that O_DIRECT takes.
        let (wanted, read) = ((size - at).min(PIECE), file.read_at(buffer, at).map_err(doing())?);
        let short = || Failure::failed(format!("{}: read {read} of {wanted} bytes", path.display()));
        (read as u64 == wanted).then_some(()).ok_or_else(short)
    })
}

fn command(program: &Path, file: &Path) -> Result<String, Failure> {
    let output = Command::new(program).arg("digest").arg(file).stdin(Stdio::null()).output();
    let output = output.map_err(Failure::doing("starting zumastor"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    output
        .status
        .success()
        .then_some(said)
        .ok_or_else(|| Failure::failed(format!("`zumastor digest` ended with {}", output.status)))
}

/// Bytes that a core takes at a time.
const PIECE: u64 = 1 << 20;

/// Most bytes of memory that are hashed, several times.
const MEMORY: u64 = 1 << 30;
const PASSES: u32 = 4;

/// Longer than anything takes that works.
const LONG: Duration = Duration::from_secs(1800);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_stand_beside_that_of_blake3() {
        let gib = (1u64 << 30) as f64;
        let text = table(&[
            (BLAKE3, Cache::Warm, 10.0 * gib),
            (DIGEST, Cache::Warm, 7.0 * gib),
            (DIGEST, Cache::Warm, 9.0 * gib),
            (DIGEST, Cache::Warm, 8.0 * gib),
            (DIGEST, Cache::Cold, 2.5 * gib),
        ]);
        let line = text.lines().find(|line| line.contains("digest")).unwrap();
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        assert_eq!(cells[2..6], ["8.00", "80 %", "2.50", "25 %"]);
        let line = text.lines().find(|line| line.contains("scrub")).unwrap();
        assert!(line.matches('–').count() == 4, "{line}");
    }

    #[test]
    fn every_byte_is_read_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let size = PIECE * 3 + 4096;
        file.as_file().set_len(size).unwrap();
        assert_eq!(read(file.path(), OFlags::empty()).unwrap(), size);
        let counted = AtomicU64::new(0);
        all_cores(size, |at, _| {
            counted.fetch_add((size - at).min(PIECE), Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        assert_eq!(counted.into_inner(), size);
    }
}
