//! How fast a volume with snapshots takes random writes: a thin volume beside a plain one and one with classic snapshots, each of which keeps
//! a copy of its own of what is overwritten.

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use zumastor::exit::Failure;
use zumastor_core::PageBuf;
use zumastor_testbed::{
    lab::{Job, Lab, Machine},
    output,
};

use super::{report::align, say};

/// Programs that it takes, beside the lab's.
pub const TOOLS: [&str; 1] = ["dmsetup"];

/// Sectors of the volume, 1 GiB.
const SIZE: u64 = 1 << 21;

/// Sectors of a chunk.
const CHUNK: u64 = 128;

/// Most chunks that are overwritten in one go, each once.
const WRITES: usize = 1536;

/// Writes that are on their way at once.
const DEPTH: usize = 8;

/// What is slower than this is not waited for.
const LONGEST: Duration = Duration::from_secs(20);

/// Numbers of snapshots.
const SNAPSHOTS: [u64; 4] = [0, 1, 8, 64];

const PLAIN: &str = "dm-linear, no snapshots";
const THIN: &str = "dm-thin";
const CLASSIC: &str = "dm-snapshot (classic LVM)";

/// Measures, and gives the table.
pub fn run(rounds: u32) -> Result<String, Failure> {
    let lab = Lab::new()?;
    let this = std::env::current_exe().map_err(Failure::doing("finding this program"))?;
    let machine = Machine::new("writes")
        .modules(&["dm-thin-pool", "dm-snapshot"])
        .memory(1024)
        .disk(&lab.disk("metadata", 64 << 20)?)
        .disk(&lab.disk("thin", 4 << 30)?)
        .disk(&lab.disk("origin", SIZE * 512)?)
        .disk(&lab.disk("copies", 10 << 30)?)
        .patience(Duration::from_secs(3600));
    say(format_args!("writing at random in a guest"));
    let job = Job::program(&this).args(["kernel".to_owned(), "writes".to_owned(), rounds.to_string()]);
    let log = lab.run(&machine, &job)?.passed()?;

    let value = |name: &str, snapshots: u64| {
        let mut values: Vec<f64> = log
            .lines()
            .filter_map(|line| line.strip_prefix("result: ")?.split_once(&format!("{name}, {snapshots}: ")))
            .filter_map(|(_, value)| value.parse().ok())
            .collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let mut rows =
        vec![["".to_owned()].into_iter().chain(SNAPSHOTS.map(|n| format!("{n} snapshots"))).collect()];
    for name in [PLAIN, THIN, CLASSIC] {
        let cell = |snapshots| value(name, snapshots).map_or("–".to_owned(), |found| format!("{found:.0}"));
        rows.push([name.to_owned()].into_iter().chain(SNAPSHOTS.map(cell)).collect::<Vec<_>>());
    }
    let title = "Random writes of 4 KiB into chunks of 64 KiB that the snapshots share, per second";
    let said =
        format!("A volume of 1 GiB in a guest of the kernel lab, {DEPTH} at a time, medians of {rounds}.");
    Ok(format!("**{title}**\n\n{said}\n\n{}", align(&rows)))
}

fn dmsetup(arguments: &[&str]) -> Result<(), Failure> {
    output("dmsetup", |dmsetup| dmsetup.args(arguments)).map(drop)
}

/// In the guest: all of it, each round beginning anew.
pub fn in_guest(rounds: u32) -> Result<(), Failure> {
    let features = "2 skip_block_zeroing error_if_no_space";
    let pool = format!("0 {} thin-pool /dev/ubda /dev/ubdb {CHUNK} 0 {features}", 4 * SIZE);
    dmsetup(&["create", "pool", "--table", &pool])?;
    dmsetup(&["message", "pool", "0", "create_thin 0"])?;
    dmsetup(&["create", "thin", "--table", &format!("0 {SIZE} thin /dev/mapper/pool 0")])?;
    dmsetup(&["create", "linear", "--table", &format!("0 {SIZE} linear /dev/ubdc 0")])?;
    for device in ["thin", "linear"] {
        fill(&Path::new("/dev/mapper").join(device))?;
    }
    for round in 0..rounds {
        report(PLAIN, 0, write("linear", u64::from(round))?);
        for snapshots in SNAPSHOTS {
            report(THIN, snapshots, thin(snapshots, u64::from(round))?);
            if snapshots > 0 {
                report(CLASSIC, snapshots, classic(snapshots, u64::from(round))?);
            }
        }
    }
    Ok(())
}

fn report(name: &str, snapshots: u64, value: f64) {
    println!("result: {name}, {snapshots}: {value:.1}");
}

fn thin(snapshots: u64, seed: u64) -> Result<f64, Failure> {
    let each = |message: &dyn Fn(u64) -> String| {
        dmsetup(&["suspend", "thin"])?;
        (1..=snapshots).try_for_each(|id| dmsetup(&["message", "pool", "0", &message(id)]))?;
        dmsetup(&["resume", "thin"])
    };
    each(&|id| format!("create_snap {id} 0"))?;
    let found = write("thin", seed)?;
    each(&|id| format!("delete {id}"))?;
    Ok(found)
}

/// The layout that LVM makes: the origin, and for each snapshot a store for copies.
fn classic(snapshots: u64, seed: u64) -> Result<f64, Failure> {
    let room = (10 << 21) / snapshots.max(8);
    for id in 0..snapshots {
        let (copies, snapshot) = (format!("copies{id}"), format!("snapshot{id}"));
        dmsetup(&["create", &copies, "--table", &format!("0 {room} linear /dev/ubdd {}", id * room)])?;
        // One that begins with zeros is new.
        let path = format!("/dev/mapper/{copies}");
        let file = File::options().write(true).open(&path).map_err(Failure::doing(&path))?;
        file.write_all_at(&[0; 64 << 10], 0).and_then(|()| file.sync_all()).map_err(Failure::doing(&path))?;
        drop(file);
        let table = format!("0 {SIZE} snapshot /dev/mapper/linear {path} P {CHUNK}");
        dmsetup(&["create", &snapshot, "--table", &table])?;
    }
    dmsetup(&["create", "origin", "--table", &format!("0 {SIZE} snapshot-origin /dev/mapper/linear")])?;
    let found = write("origin", seed)?;
    dmsetup(&["remove", "origin"])?;
    for id in 0..snapshots {
        dmsetup(&["remove", &format!("snapshot{id}")])?;
        dmsetup(&["remove", &format!("copies{id}")])?;
    }
    Ok(found)
}

fn open(path: &Path) -> Result<File, Failure> {
    let mut options = File::options();
    let options = options.write(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
    options.open(path).map_err(Failure::doing(path.display()))
}

fn fill(path: &Path) -> Result<(), Failure> {
    let (file, mut piece) = (open(path)?, PageBuf::new(1 << 20));
    piece.fill(7);
    for at in 0..SIZE * 512 / piece.len() as u64 {
        file.write_all_at(&piece, at * piece.len() as u64).map_err(Failure::doing(path.display()))?;
    }
    file.sync_all().map_err(Failure::doing(path.display()))
}

/// Writes a page into chunks at random, none twice, and gives how many were written in a second, durable at the end.
fn write(device: &str, seed: u64) -> Result<f64, Failure> {
    rustix::fs::sync();
    let path = Path::new("/dev/mapper").join(device);
    let file = open(&path)?;
    let mut random = SmallRng::seed_from_u64(seed);
    let chunks = rand::seq::index::sample(&mut random, (SIZE / CHUNK) as usize, WRITES).into_vec();
    let offsets: Vec<_> =
        chunks.iter().map(|chunk| *chunk as u64 * CHUNK * 512 + random.random_range(0..16) * 4096).collect();
    let start = Instant::now();
    let one = |part: &[u64]| -> std::io::Result<usize> {
        let mut page = PageBuf::new(4096);
        page.fill(9);
        let mut done = 0;
        for offset in part.iter().take_while(|_| start.elapsed() < LONGEST) {
            file.write_all_at(&page, *offset)?;
            done += 1;
        }
        Ok(done)
    };
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> =
            offsets.chunks(WRITES.div_ceil(DEPTH)).map(|part| scope.spawn(move || one(part))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("it does not panic"))
            .sum::<std::io::Result<usize>>()
    });
    let done =
        done.and_then(|done| file.sync_all().map(|()| done)).map_err(Failure::doing(path.display()))?;
    Ok(done as f64 / start.elapsed().as_secs_f64())
}
