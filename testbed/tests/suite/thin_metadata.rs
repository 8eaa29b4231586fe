//! The walker of thin metadata on a real pool, whose snapshots share subtrees: every pair of devices beside `thin_delta`, with the pool in
//! use.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use zumastor::exit::Failure;
use zumastor_backends::thin_metadata::{DiffRun, Difference, NewPool, ThinMetadata, ThinMetadataError};
use zumastor_testbed::{
    lab::{self, Machine},
    output,
};

const CHUNK: u64 = 64 << 10;
const CHUNKS: u64 = 8192;
const METADATA: &str = "/dev/ubda";

#[test]
fn lab_a_pool_in_use_is_read_as_thin_delta_reads_it() -> Result<(), Failure> {
    lab::inside(
        &["dmsetup", "thin_delta", "thin_dump", "thin_check"],
        |lab| {
            let machine =
                Machine::new("solo").modules(&["dm-thin-pool"]).disk(&lab.disk("metadata", 32 << 20)?);
            Ok(machine.patience(std::time::Duration::from_secs(1200)))
        },
        history,
    )
}

/// A pool whose metadata we wrote, with part of it mapped: all of it can be written, and all of what it grows by.
#[test]
fn lab_a_new_pool_is_full_when_all_of_it_is_and_after_it_grew_too() -> Result<(), Failure> {
    lab::inside(
        &["dmsetup", "thin_check"],
        |lab| Ok(Machine::new("solo").modules(&["dm-thin-pool"]).disk(&lab.disk("metadata", 8 << 20)?)),
        || {
            const MAPPED: u64 = 100;
            let length = |chunks: u64| chunks * CHUNK / 512;
            dmsetup(&["create", "data", "--table", &format!("0 {} zero", length(1000))])?;
            let new = NewPool {
                device: 0,
                mapped: MAPPED,
                data_blocks: 400,
                data_block_size: 128,
                metadata_blocks: 1024,
            };
            new.write(Path::new(METADATA)).map_err(Failure::doing("writing metadata"))?;
            let pool = |chunks| {
                let features = "2 skip_block_zeroing error_if_no_space";
                format!("0 {} thin-pool {METADATA} /dev/mapper/data 128 0 {features}", length(chunks))
            };
            dmsetup(&["create", "pool", "--table", &pool(400)])?;
            dmsetup(&["create", "thin", "--table", &format!("0 {} thin /dev/mapper/pool 0", length(2000))])?;
            let thin =
                OpenOptions::new().write(true).open("/dev/mapper/thin").map_err(Failure::doing("opening"))?;
            // How many chunks can be written behind those that are mapped.
            let fill = |from: u64| -> u64 {
                let write = |chunk: &u64| {
                    let written =
                        thin.write_all_at(&[1; 4096], chunk * CHUNK).and_then(|()| thin.sync_data());
                    written.is_ok()
                };
                (from..2000).take_while(write).count() as u64
            };
            assert_eq!(fill(MAPPED), 400 - MAPPED);
            for command in
                [&["reload", "pool", "--table", &pool(900)][..], &["suspend", "pool"], &["resume", "pool"]]
            {
                dmsetup(command)?;
            }
            assert_eq!(fill(400), 500);
            drop(thin);
            dmsetup(&["remove", "thin"])?;
            dmsetup(&["remove", "pool"])?;
            output("thin_check", |check| check.arg(METADATA)).map(drop)
        },
    )
}

fn dmsetup(arguments: &[&str]) -> Result<String, Failure> {
    output("dmsetup", |command| command.args(arguments))
}

fn message(text: &str) -> Result<(), Failure> {
    dmsetup(&["message", "pool", "0", text]).map(drop)
}

/// A few hundred random writes, discards, snapshots and deletions, looked at again and again.
fn history() -> Result<(), Failure> {
    // What the data is does not matter here: it need not be kept.
    dmsetup(&["create", "data", "--table", &format!("0 {} zero", CHUNKS * 16 * 128)])?;
    let features = "2 skip_block_zeroing error_if_no_space";
    let table = format!("0 {} thin-pool {METADATA} /dev/mapper/data 128 0 {features}", CHUNKS * 16 * 128);
    dmsetup(&["create", "pool", "--table", &table])?;
    let seed = 20260101;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut devices = vec![0];
    message("create_thin 0")?;
    let mut next = 1;
    for round in 0..40 {
        let device = devices[random.random_range(0..devices.len())];
        match random.random_range(0..10) {
            0 if devices.len() > 3 => {
                message(&format!("delete {device}"))?;
                devices.retain(|other| *other != device);
            }
            1..=3 => write(device, &mut random, 2)?,
            4..=5 => write(device, &mut random, 300)?,
            _ => {
                message(&format!("create_snap {next} {device}"))?;
                devices.push(next);
                write(device, &mut random, 40)?;
                next += 3;
            }
        }
        if round % 10 == 9 {
            compare(round)?;
        }
    }
    let error = ThinMetadata::open_held(Path::new(METADATA)).expect_err("nothing is held any more");
    assert!(matches!(error, ThinMetadataError::NoHeldRoot { .. }), "{error}");
    dmsetup(&["remove", "pool"])?;
    output("thin_check", |check| check.arg(METADATA))?;
    let read = sound(ThinMetadata::open_current(Path::new(METADATA)))?;
    assert_eq!(sound(read.devices())?.len(), devices.len());
    Ok(())
}

/// Writes into chunks at random, one alone or a few in a row; discards some.
fn write(device: u32, random: &mut SmallRng, times: u32) -> Result<(), Failure> {
    dmsetup(&["create", "thin", "--table", &format!("0 {} thin /dev/mapper/pool {device}", CHUNKS * 128)])?;
    let thin =
        File::options().write(true).open("/dev/mapper/thin").map_err(Failure::doing("the thin device"))?;
    for _ in 0..times {
        let (first, run) = (random.random_range(0..CHUNKS - 64), 1 << random.random_range(0..6));
        for chunk in first..first + run {
            thin.write_all_at(&[1; 512], chunk * CHUNK).map_err(Failure::doing("writing"))?;
        }
    }
    thin.sync_all().map_err(Failure::doing("writing"))?;
    drop(thin);
    let (offset, length) = (random.random_range(0..CHUNKS / 2) * CHUNK, random.random_range(1..200) * CHUNK);
    output("blkdiscard", |discard| {
        discard.args(["-o", &offset.to_string(), "-l", &length.to_string(), "/dev/mapper/thin"])
    })?;
    dmsetup(&["remove", "thin"]).map(drop)
}

/// Compares all pairs of devices below a held root.
fn compare(round: u32) -> Result<(), Failure> {
    message("reserve_metadata_snap")?;
    let read = sound(ThinMetadata::open_held(Path::new(METADATA)))?;
    let dump = output("thin_dump", |dump| dump.args(["-m", METADATA]))?;
    let dumped = parse_dump(&dump);
    let devices = sound(read.devices())?;
    assert_eq!(
        devices.iter().map(|device| device.device).collect::<Vec<_>>(),
        dumped.keys().copied().collect::<Vec<_>>()
    );
    let mut references: HashMap<u64, u64> = HashMap::new();
    for mappings in dumped.values() {
        for data in mappings.values() {
            *references.entry(*data).or_default() += 1;
        }
    }
    let mut runs = 0;
    for left in dumped.keys() {
        let ours =
            sound(read.mappings(*left, 0..u64::MAX).and_then(|runs| runs.collect::<Result<Vec<_>, _>>()))?;
        let blocks = ours.iter().flat_map(|run| (0..run.length).map(|at| (run.begin + at, run.data + at)));
        assert!(blocks.eq(dumped[left].iter().map(|(block, data)| (*block, *data))), "device {left}");
        for right in dumped.keys().filter(|right| *right >= left) {
            let (a, b) = (left.to_string(), right.to_string());
            let delta =
                output("thin_delta", |delta| delta.args(["-m", "--thin1", &a, "--thin2", &b, METADATA]))?;
            let ours = sound(
                read.diff(*left, *right, 0..u64::MAX).and_then(|runs| runs.collect::<Result<Vec<_>, _>>()),
            )?;
            runs += ours.len();
            assert_eq!(ours, parse_delta(&delta), "devices {left} and {right} in round {round}");
        }
    }
    for usage in sound(read.usage())? {
        let mappings = &dumped[&usage.device];
        let exclusive = mappings.values().filter(|data| references[data] == 1).count() as u64;
        assert_eq!(
            (usage.exclusive, usage.shared),
            (exclusive, mappings.len() as u64 - exclusive),
            "{usage:?}"
        );
    }
    println!("round {round}: {} devices, {runs} runs", dumped.len());
    drop(read);
    message("release_metadata_snap")
}

fn sound<T>(read: Result<T, ThinMetadataError>) -> Result<T, Failure> {
    read.map_err(Failure::doing("the metadata"))
}

fn attribute(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    rest.split('"').next()?.parse().ok()
}

fn parse_delta(text: &str) -> Vec<DiffRun> {
    let run = |line: &str| {
        let kind = match line.trim_start().split(' ').next()? {
            "<different" => Difference::Different,
            "<left_only" => Difference::LeftOnly,
            "<right_only" => Difference::RightOnly,
            _ => return None,
        };
        Some(DiffRun { begin: attribute(line, "begin")?, length: attribute(line, "length")?, kind })
    };
    text.lines().filter_map(run).collect()
}

/// Mappings of each device.
fn parse_dump(text: &str) -> BTreeMap<u32, BTreeMap<u64, u64>> {
    let mut devices: BTreeMap<u32, BTreeMap<u64, u64>> = BTreeMap::new();
    let mut device = 0;
    for line in text.lines() {
        if let Some(id) = attribute(line, "dev_id") {
            device = id as u32;
            devices.entry(device).or_default();
        } else if let (Some(block), Some(data)) =
            (attribute(line, "origin_block"), attribute(line, "data_block"))
        {
            devices.entry(device).or_default().insert(block, data);
        } else if let (Some(block), Some(data), Some(length)) =
            (attribute(line, "origin_begin"), attribute(line, "data_begin"), attribute(line, "length"))
        {
            devices.entry(device).or_default().extend((0..length).map(|at| (block + at, data + at)));
        }
    }
    devices
}
