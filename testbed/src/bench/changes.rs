//! Small changes of large volumes, which are mostly a hole: what a transfer costs follows the change, and what reads both sides to
//! find it follows the size.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::Instant,
};

use zumastor::exit::Failure;
use zumastor_core::{HumanBytes, files};

use super::{
    Args, content, fresh,
    link::Link,
    measure::Sample,
    ours::Pair,
    peers::{self, Job},
    report::{Machine, align},
    say,
};

/// The volumes, as far as `--size` allows.
const SIZES: [u64; 4] = [1 << 30, 4 << 30, 16 << 30, 64 << 30];

/// What changes between two snapshots: units of so many bytes, one in so many of the volume.
struct Change {
    name: &'static str,
    unit: u64,
    one_in: u64,
}

const CHANGES: [Change; 3] = [
    Change { name: "1 % of 64 KiB", unit: content::CHUNK, one_in: 100 },
    Change { name: "0.01 % of 64 KiB", unit: content::CHUNK, one_in: 10_000 },
    Change { name: "0.01 % of 4 KiB", unit: 4096, one_in: 10_000 },
];

/// What was measured of one change of one volume.
struct Row {
    size: u64,
    change: &'static str,
    changed: content::Changed,
    /// The snapshot until its digest is known, the transfer, rsync, and reading both sides.
    samples: [Vec<Sample>; 4],
}

/// Measures below `parent`, and gives the table.
pub fn run(args: &Args, program: &Path, parent: &Path, note: Option<String>) -> Result<String, Failure> {
    if args.size < SIZES[0] {
        return Err(Failure::usage("`changes` has volumes of 1, 4, 16 and 64 GiB: --size 1G or more"));
    }
    let link = Link::new(args.path)?;
    let missing = peers::DELTA.missing().filter(|_| !args.no_peers);
    let delta = Some(&peers::DELTA).filter(|peer| !args.no_peers && peer.missing().is_none());
    let (mut rows, mut store) = (Vec::new(), String::new());
    let scratch = tempfile::Builder::new().prefix("zb-").tempdir_in(parent);
    let scratch = scratch.map_err(Failure::doing(parent.display()))?;
    for size in SIZES.into_iter().filter(|size| *size <= args.size) {
        let dir = fresh(scratch.path(), "changes")?;
        let image = dir.join("master.img");
        say(format_args!("making a volume of {}", HumanBytes(size)));
        content::create_sparse(&image, size, 1).map_err(Failure::doing(image.display()))?;
        let mut pair = Pair::start(&link, program, &fresh(&dir, "pair")?, &image)?;
        pair.snapshot()?;
        pair.replicate()?;
        store = pair.store()?;
        let copies = fresh(&dir, "copy")?;
        let job = Job { link: &link, image: &image, dir: &copies };
        copy(&image, &job.copy(), size).map_err(Failure::doing(copies.display()))?;
        let mut generation = 0;
        for change in &CHANGES {
            let mut row = Row {
                size,
                change: change.name,
                changed: content::Changed::default(),
                samples: Default::default(),
            };
            for round in 0..args.rounds {
                say(format_args!("{}, {}, round {}", HumanBytes(size), change.name, round + 1));
                generation += 1;
                let changed = content::change_units(&image, size, change.unit, change.one_in, generation);
                row.changed = changed.map_err(Failure::doing(image.display()))?;
                let (digest, _) = pair.snapshot()?;
                rustix::fs::sync();
                row.samples[0].push(digest);
                row.samples[1].push(pair.replicate()?);
                rustix::fs::sync();
                let (differing, seconds) =
                    compare([&image, &job.copy()]).map_err(Failure::doing(image.display()))?;
                if differing != row.changed.chunks {
                    let expected = row.changed.chunks;
                    return Err(Failure::failed(format!("{differing} chunks differ, not {expected}")));
                }
                row.samples[3].push(Sample { seconds, ..Sample::default() });
                match delta {
                    Some(delta) => row.samples[2].push(delta.run(&job)?),
                    // For the next round, what rsync would have done.
                    None => copy(&image, &job.copy(), size).map_err(Failure::doing(copies.display()))?,
                }
            }
            rows.push(row);
        }
        pair.check()?;
        drop(pair);
        fs::remove_dir_all(&dir).map_err(Failure::doing(dir.display()))?;
    }
    let machine = Machine::here(parent).line();
    let notes = peers::versions().filter(|_| delta.is_some()).into_iter().chain(missing).chain(note);
    let notes = notes.collect::<Vec<_>>().join(" ");
    Ok(format!(
        "{machine} Medians of {}; at first one chunk of 64 KiB in {} is full. Snapshots of the volume: {store}. {notes}\n\n\
         **Small changes of large volumes, {}**\n\n{}",
        args.rounds,
        content::SPARSE,
        args.path.words(),
        align(&table(&rows))
    ))
}

/// The rows of the table, with its head.
fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let head = [
        "volume",
        "changed",
        "MB",
        "(snapshot, digest) s",
        "zumastor s",
        "wire MB",
        "× zstd -1",
        "rsync delta s",
        "× as fast",
        "hashing both s",
        "× as fast",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let [digest, ours, rsync, hashing] = &row.samples;
        let (digest, ours) = (Sample::median(digest), Sample::median(ours));
        let beside = |samples: &[Sample]| match samples {
            [] => ["–".to_owned(), "–".to_owned()],
            samples => {
                let seconds = Sample::median(samples).seconds;
                [format!("{seconds:.2}"), format!("{:.0}", seconds / ours.seconds)]
            }
        };
        let mut line = vec![
            HumanBytes(row.size).to_string(),
            row.change.to_owned(),
            format!("{:.1}", row.changed.bytes as f64 / 1e6),
            format!("{:.2}", digest.seconds),
            format!("{:.3}", ours.seconds),
            format!("{:.2}", ours.wire as f64 / 1e6),
            format!("{:.2}", ours.wire as f64 / row.changed.compressed as f64),
        ];
        line.extend(beside(rsync).into_iter().chain(beside(hashing)));
        lines.push(line);
    }
    lines
}

/// Copies what is not a hole.
fn copy(from: &Path, to: &Path, size: u64) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    to.set_len(size)?;
    files::copy_sparse(&from, &to, 0..size)?;
    to.sync_all()
}

/// Reads two files at the same time and hashes each chunk of them, as programs do that compare block devices (bdsync), with
/// a hash that is faster than theirs. Gives how many differ, and the seconds it took.
fn compare(files: [&Path; 2]) -> io::Result<(u64, f64)> {
    let start = Instant::now();
    let [ours, theirs] = std::thread::scope(|scope| {
        files
            .map(|path| scope.spawn(|| hashes(path)))
            .map(|thread| thread.join().expect("hashing does not panic"))
    });
    let differing = ours?.iter().zip(&theirs?).filter(|(ours, theirs)| ours != theirs).count();
    Ok((differing as u64, start.elapsed().as_secs_f64()))
}

fn hashes(path: &Path) -> io::Result<Vec<blake3::Hash>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut buffer = vec![0; 1 << 20];
    let mut hashes = Vec::with_capacity((size / content::CHUNK) as usize);
    for offset in (0..size).step_by(buffer.len()) {
        let piece = &mut buffer[..(size - offset).min(1 << 20) as usize];
        file.read_exact_at(piece, offset)?;
        hashes.extend(piece.chunks(content::CHUNK as usize).map(blake3::hash));
    }
    Ok(hashes)
}

/// Bytes of file system that this takes.
pub const ROOM: u64 = 256 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["1", "2"].map(|name| dir.path().join(name));
        let size = 64 << 20;
        content::create_sparse(&one, size, 1).unwrap();
        copy(&one, &other, size).unwrap();
        assert_eq!(compare([&one, &other]).unwrap().0, 0);
        let changed = content::change_units(&one, size, 4096, 1000, 1).unwrap();
        assert_eq!((changed.bytes, changed.chunks), (16 * 4096, compare([&one, &other]).unwrap().0));
        assert!(changed.compressed > changed.bytes / 4 && changed.compressed < changed.bytes);
    }

    #[test]
    fn rows_say_how_many_times_as_fast() {
        let sample = |seconds, wire| vec![Sample { seconds, wire, ..Sample::default() }];
        let row = Row {
            size: 1 << 30,
            change: "all",
            changed: content::Changed { bytes: 2_000_000, chunks: 1, compressed: 1_000_000 },
            samples: [sample(0.1, 0), sample(0.5, 1_050_000), sample(5.0, 0), Vec::new()],
        };
        let line = table(&[row]).pop().unwrap();
        assert_eq!(line[2..], ["2.0", "0.10", "0.500", "1.05", "1.05", "5.00", "10", "–", "–"]);
    }
}
