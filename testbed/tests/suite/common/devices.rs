//! Nodes whose volumes are on the disks of a guest.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;
use zumastor::{
    api::{EventKind, Health, VolumeStatus},
    exit::Failure,
};
use zumastor_core::PageBuf;
use zumastor_testbed::{
    Node,
    lab::{Lab, Machine},
};

use super::PROGRAM;

pub const MIB: u64 = 1 << 20;

/// The head of a volume, past the page cache: an error is of the write that it comes from.
pub struct Head(pub File);

impl Head {
    pub fn open(volume: &str) -> Self {
        let path = format!("/dev/mapper/{volume}");
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path);
        Self(file.expect("the head can be opened"))
    }

    /// Fills a range with something of its own, MiB by MiB.
    pub fn write(&self, range: Range<u64>, seed: u64) -> io::Result<()> {
        let mut buffer = PageBuf::new(MIB as usize);
        for mib in range {
            for (at, word) in buffer.chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&pattern(seed, mib, at as u64));
            }
            self.0.write_all_at(&buffer, mib * MIB)?;
        }
        Ok(())
    }
}

/// What [`Head::write`] writes at a place, in words of 8 bytes.
pub fn pattern(seed: u64, mib: u64, word: u64) -> [u8; 8] {
    // Nothing that compresses well, and each piece another one.
    (seed << 40 | mib << 20 | word).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()
}

/// A node of a guest.
pub fn start(name: &str) -> Result<Node, Failure> {
    let dir = Path::new("/run/lab").join(name);
    fs::create_dir_all(&dir).map_err(Failure::doing("a directory"))?;
    Node::start(Path::new(PROGRAM), &dir, name)
}

/// A guest with these disks, of so many MiB.
pub fn machine(lab: &Lab, disks: &[(&str, u64)]) -> Result<Machine, Failure> {
    let mut machine = Machine::new("solo").memory(768).modules(&["dm-thin-pool", "dm-flakey"]);
    for (name, mib) in disks {
        machine = machine.disk(&lab.disk(name, mib * MIB)?);
    }
    Ok(machine)
}

/// Whether nothing is wrong but that what is written here is no file system that could be mounted.
pub fn is_well(volume: &VolumeStatus) -> Option<()> {
    let mounts = volume.trouble.as_ref().is_none_or(|text| text.contains("is not mounted at"));
    (matches!(volume.health, Health::Ok | Health::Retrying) && mounts).then_some(())
}

/// The numbers of its snapshots.
pub fn numbers(volume: &VolumeStatus) -> Vec<u64> {
    volume.snapshots.iter().map(|snapshot| snapshot.number.0).collect()
}

/// The snapshots that were dropped, in order.
pub fn dropped(volume: &VolumeStatus) -> Vec<u64> {
    let dropped = volume.events.iter().rev().filter(|event| event.what == EventKind::Dropped);
    dropped.filter_map(|event| event.number).map(|number| number.0).collect()
}
