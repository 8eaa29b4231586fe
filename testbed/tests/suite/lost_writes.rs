//! Power cuts that take what was written and not flushed, in the life of a volume on block devices with a file system that is in use. Its
//! devices take down what is written to them; what is on them after a cut is opened as after a restart.

mod life;

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use zumastor::exit::Failure;
use zumastor_backends::{Faults, Making, VolumeSpec, open_devices, thin_metadata::is_half_held};
use zumastor_testbed::{
    lab::{self, Lab, Machine},
    output,
};

use self::life::{Found, Head, Life, State, new};
use crate::write_log::{Entry, Recorder, Replay};

const TOOLS: &[&str] = &["thin_check", "blkid", "dmsetup", "mkfs.ext4", "e2fsck"];

const SIZE: usize = 4 << 20;
/// What a disk is split into: name, begin, size. The last is for the volume's notes, with a file system of their own.
const AREAS: [(&str, u64, u64); 4] = [
    ("origin", 0, SIZE as u64),
    ("snap", 4 << 20, 16 << 20),
    ("meta", 20 << 20, 4 << 20),
    ("notes", 24 << 20, 8 << 20),
];
/// Where the metadata begin on the disk, if they are on the snapshot store, and where a superblock has the place of what is held.
const METADATA: u64 = AREAS[1].1 + (4 << 20);
const HELD_ROOT: u64 = 56;
const DISK: u64 = 32 << 20;
const LOG_SIZE: u64 = 512 << 20;
const SECTOR: u64 = 512;

/// The disks of a guest.
const WRITTEN: &str = "/dev/ubda";
const LOGS: &str = "/dev/ubdb";
const AGAIN: &str = "/dev/ubdc";
const ABOVE: &str = "/dev/ubdd";

/// Moments of a log at which the power goes.
const MOMENTS: usize = 30;

fn machine(lab: &Lab) -> Result<Machine, Failure> {
    let machine = Machine::new("solo").memory(768).modules(&["dm-thin-pool", "dm-log-writes", "dm-snapshot"]);
    let machine = machine.disk(&lab.disk("written", DISK)?).disk(&lab.disk("logs", LOG_SIZE)?);
    Ok(machine.disk(&lab.disk("again", DISK)?).disk(&lab.disk("above", DISK)?))
}

/// All devices on one disk, which is flushed as a whole. The power goes at moments all over the log, also in the middle of what is done;
/// of what is not flushed, nothing arrives, or some.
#[test]
fn lab_what_is_acknowledged_outlives_writes_that_are_lost() -> Result<(), Failure> {
    lab::inside(TOOLS, machine, || {
        let recorder = Recorder::new("recorded", WRITTEN, DISK / SECTOR, LOGS)?;
        create(&areas("", "/dev/mapper/recorded"))?;
        let life = Life::live(&spec(false), vec![recorder])?;
        remove(&AREAS.map(|(name, ..)| name))?;
        let (states, logs) = life.end()?;
        let log = &logs[0];
        let mut replay = Replay::new(log, AGAIN, 0);
        let mut random = SmallRng::seed_from_u64(20);
        let mut half_held = 0;
        for (nth, (after, mark, holds)) in moments(log).into_iter().enumerate() {
            replay.up_to(after + 1)?;
            let pending: Vec<_> = log[after + 1..].iter().take_while(|entry| entry.is_pending()).collect();
            let lose_all = holds || nth % 3 == 0;
            let some: Vec<_> = pending.iter().filter(|_| !lose_all && random.random_bool(0.5)).collect();
            let returned = log[after].is_return() && some.is_empty();
            let next = if returned { mark } else { (mark + 1).min(states.len() - 1) };
            let last = log[..=after].iter().rev().find(|entry| matches!(entry, Entry::Mark(_)));
            let last = last.expect("it has begun");
            let what = format!("entry {after}, after {last:?}, and {} of {} more", some.len(), pending.len());
            lay_above(false)?;
            let above = OpenOptions::new().write(true).open("/dev/mapper/above");
            let above = above.map_err(Failure::doing("opening"))?;
            some.iter().try_for_each(|entry| entry.apply(&above, 0))?;
            above.sync_all().map_err(Failure::doing("syncing"))?;
            drop(above);
            half_held += u32::from(look(&what, &spec(false), &states[mark], &states[next])?);
        }
        assert!(half_held > 0, "no cut came while the kernel was about to hold a moment of the metadata");
        Ok(())
    })
}

/// Each device on a disk of its own, of which each is flushed by itself. The power goes after each step, and when something has returned;
/// nothing arrives that is not flushed.
#[test]
fn lab_what_is_acknowledged_is_flushed_on_each_device() -> Result<(), Failure> {
    lab::inside(TOOLS, machine, || {
        create(&areas("below-", WRITTEN))?;
        let mut recorders = Vec::new();
        for (at, (name, _, size)) in AREAS.into_iter().enumerate() {
            let (log, each) = (format!("log-{name}"), LOG_SIZE / AREAS.len() as u64);
            create(&linear(&log, LOGS, each * at as u64, each))?;
            let below = format!("/dev/mapper/below-{name}");
            recorders.push(Recorder::new(name, &below, size / SECTOR, &format!("/dev/mapper/{log}"))?);
        }
        let (states, logs) = Life::live(&spec(true), recorders)?.end()?;
        let mut replays: Vec<_> = logs
            .iter()
            .zip(AREAS)
            .map(|(log, (_, begin, _))| (log, Replay::new(log, AGAIN, begin)))
            .collect();
        let (mut mark, mut seen) = (0, BTreeSet::new());
        for (nth, at) in marks(&logs[0]).enumerate() {
            let Entry::Mark(what) = &logs[0][at] else { continue };
            let returned = logs[0][at].is_return();
            mark += usize::from(returned && nth > 0);
            if !seen.insert(what) {
                continue;
            }
            for (log, replay) in &mut replays {
                replay.up_to(marks(log).nth(nth).expect("all have all marks") + 1)?;
            }
            lay_above(true)?;
            look(what, &spec(true), &states[mark], &states[mark + usize::from(!returned)])?;
        }
        assert!(seen.contains(&"at_make:_after_the_header".to_owned()), "{seen:?}");
        Ok(())
    })
}

fn spec(apart: bool) -> VolumeSpec {
    VolumeSpec {
        name: "v".parse().expect("a name"),
        origin: "/dev/mapper/origin".into(),
        snapstore: "/dev/mapper/snap".into(),
        metadev: apart.then(|| PathBuf::from("/dev/mapper/meta")),
        chunk: None,
        notes: "/run/lab/notes".into(),
    }
}

/// Makes devices, of which each is `NAME,,MINOR,rw,TABLE`.
fn create(devices: &str) -> Result<(), Failure> {
    output("dmsetup", |command| command.args(["create", "--concise", devices])).map(drop)
}

fn remove(names: &[&str]) -> Result<(), Failure> {
    output("dmsetup", |command| command.arg("remove").args(names)).map(drop)
}

/// A device that is a part of a disk, in bytes.
fn linear(name: &str, disk: &str, begin: u64, size: u64) -> String {
    format!("{name},,,rw,0 {} linear {disk} {}", size / SECTOR, begin / SECTOR)
}

/// Devices of the areas of a disk.
fn areas(prefix: &str, disk: &str) -> String {
    AREAS.map(|(name, begin, size)| linear(&format!("{prefix}{name}"), disk, begin, size)).join(";")
}

/// What [`lay_above`] makes; what others are made of comes last.
const DEVICES: [&str; 6] = ["check", "notes", "meta", "snap", "origin", "above"];

/// Makes the devices of the replayed disk, which take no write to that. One shows where the metadata of the pool are.
fn lay_above(apart: bool) -> Result<(), Failure> {
    let above = format!("above,,200,rw,0 {} snapshot {AGAIN} {ABOVE} N 8", DISK / SECTOR);
    let begin = if apart { AREAS[2].1 } else { METADATA };
    let check = linear("check", "/dev/dm-200", begin, 4 << 20);
    create(&[above, areas("", "/dev/dm-200"), check].join(";"))
}

/// Where marks are in a log, from the one on that says that the life has begun.
fn marks(log: &[Entry]) -> impl Iterator<Item = usize> {
    log.iter().enumerate().filter(|(_, entry)| matches!(entry, Entry::Mark(_))).map(|(at, _)| at)
}

/// After which entries of a log the power goes, and how many times something had returned then since it began: at regular distances, and
/// twice when the kernel has named what it holds of the metadata of a volume that was defined, which is told as well.
fn moments(log: &[Entry]) -> Vec<(usize, usize, bool)> {
    let begin = marks(log).next().expect("it has begun");
    let durable: Vec<_> = (begin..log.len()).filter(|at| !log[*at].is_pending()).collect();
    let names = |entry: &Entry| {
        let held = entry.written(METADATA + HELD_ROOT)?;
        Some(u64::from_le_bytes(held.try_into().expect("8 bytes")) != 0)
    };
    let mut named = false;
    let mut begins_to_hold = |after: usize| {
        let before = named;
        let since = log[..=after].iter().rev().skip(1).take_while(|entry| entry.is_pending());
        named = [&log[after]].into_iter().chain(since).find_map(names).unwrap_or(before);
        named && !before
    };
    let (mut returned, mut held) = (0, 0);
    let mut moments = Vec::new();
    for (nth, after) in durable.iter().copied().enumerate() {
        returned += usize::from(log[after].is_return() && after > begin);
        let regular = nth * MOMENTS / durable.len() != (nth + 1) * MOMENTS / durable.len();
        let holds = begins_to_hold(after) && returned > 0 && held < 2;
        held += u32::from(holds);
        if regular || holds {
            moments.push((after, returned, holds));
        }
    }
    moments
}

/// Opens what is on the devices above the replayed disk: it is what it was before an operation, or after.
/// Gives whether the kernel was about to hold a moment of the metadata.
fn look(what: &str, spec: &VolumeSpec, before: &State, after: &State) -> Result<bool, Failure> {
    let said = |error: Failure| Failure::failed(format!("{what}: {error}"));
    // The only metadata here that may be damaged, until the store is opened.
    let half_held =
        before.defined && is_half_held(Path::new("/dev/mapper/check")).map_err(Failure::doing(what))?;
    if before.defined && !half_held {
        check().map_err(said)?;
    }
    // The power takes what is in memory too.
    let _ = fs::remove_dir_all("/run/lock/zumastor");
    mount_at("/dev/mapper/notes", "/run/lab/notes")?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let looked = runtime.block_on(async {
        // Until it is said that there is a volume, it is defined again.
        let making = (!before.defined).then(Making::default);
        let store = open_devices(spec, making, Faults::none())?;
        let found = Found::look(&*store).await?;
        let state = found.which(before, after);
        let state =
            state.unwrap_or_else(|| panic!("{what}: {found:?}\nis neither {before:?}\nnor {after:?}"));
        if let Head::Has(files) = &state.head {
            look_into(what, files)?;
        }
        if let Some((incoming, _)) = &state.incoming {
            incoming.go_on(&*store).await?;
        }
        store.create_snapshot(new(50)).await?;
        store.close().await?;
        Ok::<_, Failure>(())
    });
    looked.map_err(said)?;
    unmount_at("/run/lab/notes")?;
    check()?;
    remove(&DEVICES)?;
    Ok(half_held)
}

/// The metadata are well. When the kernel lets go of a moment, the superblock may say so a flush before it is counted: then a few blocks of
/// metadata stay counted that nobody uses, which does no harm and is no error here.
fn check() -> Result<(), Failure> {
    output("thin_check", |check| check.args(["--ignore-non-fatal-errors", "/dev/mapper/check"])).map(drop)
}

/// The file system of the head has these files, and is whole.
fn look_into(what: &str, files: &[(&str, Vec<u8>)]) -> Result<(), Failure> {
    mount_at("/dev/mapper/v", "/run/lab/head")?;
    for (name, content) in files {
        let found = fs::read(format!("/run/lab/head/{name}")).unwrap_or_default();
        assert!(found == *content, "{what}: file {name} is not what was synced");
    }
    unmount_at("/run/lab/head")?;
    output("e2fsck", |fsck| fsck.args(["-fn", "/dev/mapper/v"])).map(drop)
}

fn mount_at(device: &str, place: &str) -> Result<(), Failure> {
    mount(device, place, "ext4", MountFlags::empty(), c"")
        .map_err(Failure::doing(format!("mounting {device}")))
}

fn unmount_at(place: &str) -> Result<(), Failure> {
    unmount(place, UnmountFlags::empty()).map_err(Failure::doing(format!("unmounting {place}")))
}
