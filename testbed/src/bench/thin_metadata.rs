//! What two snapshots of a large thin volume differ in: the walker beside `thin_delta`.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use zumastor::exit::Failure;
use zumastor_backends::thin_metadata::{Difference, ThinMetadata};
use zumastor_core::PageBuf;
use zumastor_testbed::{
    find,
    lab::{Job, Lab, Machine},
    output, peak_memory,
};

use super::{measure::GLANCE, report::align, say};

/// Mappings of the volume: 256 GiB in chunks of 64 KiB.
const MAPPED: u64 = 1 << 22;

/// Chunks that are written at random between one snapshot and the next.
const WRITES: [u64; 3] = [1000, 40_000, 400_000];

/// Programs that it takes, beside the lab's.
pub const TOOLS: [&str; 3] = ["dmsetup", "thin_restore", "thin_delta"];

/// What one run came to.
#[derive(Debug, Clone, Copy)]
struct Sample {
    seconds: f64,
    peak: u64,
}

/// Measures, and gives the table.
pub fn run(rounds: u32) -> Result<String, Failure> {
    let lab = Lab::new()?;
    let metadata = lab.disk("metadata", 1 << 30)?;
    say(format_args!("making metadata of {MAPPED} mappings"));
    restore(&lab, &metadata)?;
    say(format_args!("taking snapshots between random writes, in a guest"));
    let this = std::env::current_exe().map_err(Failure::doing("finding this program"))?;
    let machine =
        Machine::new("thin").modules(&["dm-thin-pool"]).disk(&metadata).patience(Duration::from_secs(3600));
    lab.run(&machine, &Job::program(&this).args(["kernel", "metadata"]))?.passed()?;

    let mut rows = vec![
        ["chunks written", "runs", "thin_delta s", "peak MiB", "ours s", "peak MiB", "times as fast"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (at, writes) in WRITES.iter().enumerate() {
        let (left, right) = (at as u32 + 2, at as u32 + 3);
        let runs = same(&metadata, left, right)?;
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            say(format_args!("{writes} chunks written, round {}", round + 1));
            theirs.push(thin_delta(&metadata, left, right)?);
            ours.push(walk(&this, &metadata, left, right)?);
        }
        let (theirs, ours) = (median(theirs), median(ours));
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        rows.push(vec![
            writes.to_string(),
            runs.to_string(),
            format!("{:.3}", theirs.seconds),
            mib(theirs.peak),
            format!("{:.3}", ours.seconds),
            mib(ours.peak),
            format!("{:.0}", theirs.seconds / ours.seconds),
        ]);
    }
    let version = output("thin_delta", |delta| delta.arg("--version"))?;
    let title = "Where two snapshots of 4,194,304 mapped chunks (256 GiB) differ";
    let said = format!("thin_delta {}, medians of {rounds}, read past the page cache.", version.trim());
    Ok(format!("**{title}**\n\n{said}\n\n{}", align(&rows)))
}

/// Metadata of a pool with one device, all of it mapped.
fn restore(lab: &Lab, metadata: &Path) -> Result<(), Failure> {
    let source = lab.shared().join("pool.xml");
    let text = format!(
        "<superblock uuid=\"\" time=\"0\" transaction=\"0\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"{}\">\n\
         <device dev_id=\"1\" mapped_blocks=\"{MAPPED}\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\">\n\
         <range_mapping origin_begin=\"0\" data_begin=\"0\" length=\"{MAPPED}\" time=\"0\"/>\n</device>\n</superblock>\n",
        MAPPED * 2
    );
    fs::write(&source, text).map_err(Failure::doing(source.display()))?;
    output("thin_restore", |restore| restore.arg("-i").arg(&source).arg("-o").arg(metadata)).map(drop)
}

/// In the guest: snapshots 2, 3, … of device 1, with random writes between.
pub fn in_guest() -> Result<(), Failure> {
    let dmsetup = |arguments: &[&str]| output("dmsetup", |dmsetup| dmsetup.args(arguments)).map(drop);
    // What the data is does not matter here: it need not be kept.
    dmsetup(&["create", "data", "--table", &format!("0 {} zero", MAPPED * 2 * 128)])?;
    let features = "2 skip_block_zeroing error_if_no_space";
    let pool = format!("0 {} thin-pool /dev/ubda /dev/mapper/data 128 0 {features}", MAPPED * 2 * 128);
    dmsetup(&["create", "pool", "--table", &pool])?;
    dmsetup(&["create", "head", "--table", &format!("0 {} thin /dev/mapper/pool 1", MAPPED * 128)])?;
    let snapshot = |id: usize| {
        dmsetup(&["suspend", "head"])?;
        dmsetup(&["message", "pool", "0", &format!("create_snap {id} 1")])?;
        dmsetup(&["resume", "head"])
    };
    snapshot(2)?;
    let mut random = SmallRng::seed_from_u64(4);
    let chunk = PageBuf::new(64 << 10);
    for (at, writes) in WRITES.iter().enumerate() {
        let mut options = File::options();
        let head = options.write(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
        let head = head.open("/dev/mapper/head").map_err(Failure::doing("the head"))?;
        for _ in 0..*writes {
            let offset = random.random_range(0..MAPPED) * chunk.len() as u64;
            head.write_all_at(&chunk, offset).map_err(Failure::doing("writing"))?;
        }
        drop(head);
        snapshot(at + 3)?;
        println!("{writes} chunks written");
    }
    dmsetup(&["remove", "head"])?;
    dmsetup(&["remove", "pool"])
}

fn thin_delta(metadata: &Path, left: u32, right: u32) -> Result<Sample, Failure> {
    let path = find("thin_delta").ok_or_else(|| Failure::failed("thin_delta is not installed"))?;
    let mut command = Command::new(path);
    command.args(["--thin1", &left.to_string(), "--thin2", &right.to_string()]).arg(metadata);
    let start = Instant::now();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut child = spawned.map_err(Failure::doing("starting thin_delta"))?;
    let mut peak = 0;
    loop {
        // One that has ended has no memory any more.
        peak = peak.max(peak_memory(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait().map_err(Failure::doing("waiting for thin_delta"))? {
            let seconds = start.elapsed().as_secs_f64();
            let failed = || Failure::failed(format!("thin_delta ended with {status}"));
            return status.success().then_some(Sample { seconds, peak }).ok_or_else(failed);
        }
        std::thread::sleep(GLANCE);
    }
}

fn walk(this: &Path, metadata: &Path, left: u32, right: u32) -> Result<Sample, Failure> {
    let mut command = Command::new(this);
    command.args(["kernel", "walk"]).arg(metadata).args([left.to_string(), right.to_string()]);
    let start = Instant::now();
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(Failure::doing("starting the walker"))?;
    let mut said = String::new();
    let words = child.stderr.take().expect("it was asked for");
    BufReader::new(words).read_line(&mut said).map_err(Failure::doing("the walker"))?;
    let seconds = start.elapsed().as_secs_f64();
    let peak = peak_memory(child.id()).map_err(Failure::doing("the walker's memory"))?;
    drop(child.stdin.take());
    let status = child.wait().map_err(Failure::doing("waiting for the walker"))?;
    let failed = || Failure::failed(format!("the walker ended with {status}: {said}"));
    (status.success() && said.trim() == DONE).then_some(Sample { seconds, peak }).ok_or_else(failed)
}

const DONE: &str = "done";

/// The walker as a process of its own: writes what `thin_delta` writes but for what is equal, and stays until it is let go.
pub fn walk_here(metadata: &Path, left: u32, right: u32) -> Result<(), Failure> {
    let doing = || Failure::doing("the metadata");
    let read = ThinMetadata::open_current(metadata).map_err(doing())?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for run in read.diff(left, right, 0..u64::MAX).map_err(doing())? {
        let run = run.map_err(doing())?;
        let written =
            writeln!(out, "<{} begin=\"{}\" length=\"{}\"/>", word(run.kind), run.begin, run.length);
        written.map_err(Failure::doing("writing"))?;
    }
    out.flush().map_err(Failure::doing("writing"))?;
    eprintln!("{DONE}");
    std::io::stdin().read_line(&mut String::new()).map_err(Failure::doing("waiting"))?;
    Ok(())
}

fn word(kind: Difference) -> &'static str {
    match kind {
        Difference::Different => "different",
        Difference::LeftOnly => "left_only",
        Difference::RightOnly => "right_only",
    }
}

/// Checks that both say the same, and gives how many runs they find.
fn same(metadata: &PathBuf, left: u32, right: u32) -> Result<usize, Failure> {
    let (a, b) = (left.to_string(), right.to_string());
    let text = output("thin_delta", |delta| delta.args(["--thin1", &a, "--thin2", &b]).arg(metadata))?;
    let doing = || Failure::doing("the metadata");
    let read = ThinMetadata::open_current(metadata).map_err(doing())?;
    let runs: Result<Vec<_>, _> = read.diff(left, right, 0..u64::MAX).map_err(doing())?.collect();
    let lines = runs
        .map_err(doing())?
        .into_iter()
        .map(|run| format!("<{} begin=\"{}\" length=\"{}\"/>", word(run.kind), run.begin, run.length));
    let lines: Vec<_> = lines.collect();
    let theirs =
        text.lines().map(str::trim).filter(|line| line.contains(" length=") && !line.starts_with("<same"));
    if !theirs.eq(lines.iter()) {
        return Err(Failure::failed(format!("the walker and thin_delta differ about {left} and {right}")));
    }
    Ok(lines.len())
}

fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    samples[samples.len() / 2]
}
