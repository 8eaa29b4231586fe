//! A device that takes down in which order it is written and flushed (dm-log-writes), and what is on it when the power goes at a moment
//! of that.
//!
//! Writes are in the log when a flush came after they were done: what stands behind the last flush is what a power cut may take, all of it
//! or any part. A write with FUA is there at once, and so is a mark, which somebody sets. The format is that of drivers/md/dm-log-writes.c:
//! sectors of 512 bytes, of which the first has
//!
//! | offset | bytes | field              |
//! |-------:|------:|--------------------|
//! |      0 |     8 | `0x6a736677736872` |
//! |      8 |     8 | version, 1         |
//! |     16 |     8 | number of entries  |
//! |     24 |     4 | size of a sector   |
//!
//! and after it the entries, each of a sector and of as many as were written:
//!
//! | offset | bytes | field                                   |
//! |-------:|------:|-----------------------------------------|
//! |      0 |     8 | where was written, in sectors           |
//! |      8 |     8 | how many sectors                        |
//! |     16 |     8 | what it is, see below                   |
//! |     24 |     8 | bytes of the mark, which begins at 32   |

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
};

use zumastor::exit::Failure;
use zumastor_testbed::output;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const SECTOR: u64 = 512;

/// Begins the marks of steps.
const AT: &str = "at_";
/// Begins the mark that the kernel sets in the end.
const KERNELS: &str = "dm-log-writes";

/// A device `/dev/mapper/NAME` that shows another, and takes down what is written to it.
pub struct Recorder {
    name: &'static str,
    log: String,
}

impl Recorder {
    pub fn new(name: &'static str, device: &str, sectors: u64, log: &str) -> Result<Self, Failure> {
        let table = format!("0 {sectors} log-writes {device} {log}");
        output("dmsetup", |command| command.args(["create", name, "--table", &table]))?;
        Ok(Self { name, log: log.to_owned() })
    }

    /// Notes that something has returned.
    pub fn mark(&self, what: &str) -> Result<(), Failure> {
        output("dmsetup", |command| command.args(["message", self.name, "0", "mark", what])).map(drop)
    }

    /// Notes that a step was passed.
    pub fn mark_step(&self, step: &str) {
        let text = format!("{AT}{}", step.replace(' ', "_"));
        self.mark(&text).expect("it can be marked");
    }

    /// Ends it, and gives the log.
    pub fn finish(self) -> Result<Vec<Entry>, Failure> {
        output("dmsetup", |command| command.args(["remove", self.name]))?;
        let log = File::open(&self.log).map_err(Failure::doing("opening the log"))?;
        read(&log).map_err(Failure::doing("reading the log"))
    }
}

/// Something that was done to the device.
#[derive(Debug)]
pub enum Entry {
    Write { at: u64, data: Vec<u8>, fua: bool },
    Discard { at: u64, length: u64 },
    Flush,
    Mark(String),
}

impl Entry {
    /// Whether it is a mark that says that something has returned.
    pub fn is_return(&self) -> bool {
        matches!(self, Self::Mark(what) if !what.starts_with(AT))
    }

    /// Whether it may be lost until a flush comes.
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::Write { fua: false, .. } | Self::Discard { .. })
    }

    /// The eight bytes that it writes at a place, if it writes there.
    pub fn written(&self, place: u64) -> Option<&[u8]> {
        let Self::Write { at, data, .. } = self else { return None };
        let begin = place.checked_sub(*at)? as usize;
        data.get(begin..begin + 8)
    }

    /// Does it to another device, from a place on.
    pub fn apply(&self, device: &File, begin: u64) -> Result<(), Failure> {
        let done = match self {
            Self::Write { at, data, .. } => device.write_all_at(data, begin + at),
            Self::Discard { at, length } => device.write_all_at(&vec![0; *length as usize], begin + at),
            Self::Flush | Self::Mark(_) => Ok(()),
        };
        done.map_err(Failure::doing("writing again what was written"))
    }
}

fn read(log: &File) -> std::io::Result<Vec<Entry>> {
    let field =
        |sector: &[u8], at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().expect("8 bytes"));
    let mut sector = [0; SECTOR as usize];
    log.read_exact_at(&mut sector, 0)?;
    let size = u32::from_le_bytes(sector[24..28].try_into().expect("4 bytes"));
    assert_eq!((field(&sector, 0), field(&sector, 8), u64::from(size)), (MAGIC, 1, SECTOR), "no log");
    let mut entries = Vec::new();
    let mut place = SECTOR;
    for _ in 0..field(&sector, 16) {
        log.read_exact_at(&mut sector, place)?;
        place += SECTOR;
        let [at, length, flags, mark] = [0, 8, 16, 24].map(|at| field(&sector, at));
        let (at, length) = (at * SECTOR, length * SECTOR);
        if flags & MARK != 0 {
            let text = &sector[32..32 + mark as usize];
            let text = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
            entries.extend((!text.starts_with(KERNELS)).then_some(Entry::Mark(text)));
        } else if flags & DISCARD != 0 {
            entries.push(Entry::Discard { at, length });
        } else {
            if flags & FLUSH != 0 {
                entries.push(Entry::Flush);
            }
            if length > 0 {
                let mut data = vec![0; length as usize];
                log.read_exact_at(&mut data, place)?;
                place += length;
                entries.push(Entry::Write { at, data, fua: flags & FUA != 0 });
            }
        }
    }
    Ok(entries)
}

/// A disk to which a log is done again, step by step, and never back.
pub struct Replay<'a> {
    log: &'a [Entry],
    disk: &'static str,
    /// Where on the disk the device begins that the log is of.
    begin: u64,
    done: usize,
}

impl<'a> Replay<'a> {
    pub fn new(log: &'a [Entry], disk: &'static str, begin: u64) -> Self {
        Self { log, disk, begin, done: 0 }
    }

    /// Does everything before an entry.
    pub fn up_to(&mut self, end: usize) -> Result<(), Failure> {
        assert!(self.done <= end, "it only goes forward");
        let disk = OpenOptions::new().write(true).open(self.disk).map_err(Failure::doing(self.disk))?;
        self.log[self.done..end].iter().try_for_each(|entry| entry.apply(&disk, self.begin))?;
        self.done = end;
        disk.sync_all().map_err(Failure::doing("syncing"))
    }
}
