//! Places for data: directories and file systems that are gone afterwards.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tempfile::TempDir;
use zumastor::exit::Failure;

use crate::tools::output;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// XFS, which shares blocks between files. At least 300 MiB.
    Xfs,
    /// In memory.
    Tmpfs,
}

/// A directory with a file system of its own, unmounted and removed in the end. Needs root.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
    place: PathBuf,
}

impl Scratch {
    /// Makes and mounts a file system of `size` bytes below `parent`. It takes as much disk as is written into it.
    pub fn mount(kind: FileSystem, size: u64, parent: &Path) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new()
            .prefix("zt-")
            .tempdir_in(parent)
            .map_err(Failure::doing(parent.display()))?;
        let (disk, place) = (dir.path().join("disk"), dir.path().join("mnt"));
        fs::create_dir(&place).map_err(Failure::doing(place.display()))?;
        match kind {
            FileSystem::Tmpfs => {
                let size = format!("size={size}");
                output("mount", |mount| mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&place))?;
            }
            FileSystem::Xfs => {
                let made = File::create(&disk).and_then(|file| file.set_len(size));
                made.map_err(Failure::doing(disk.display()))?;
                output("mkfs.xfs", |mkfs| mkfs.args(["-q", "-m", "reflink=1"]).arg(&disk))?;
                loop_mount(&disk, &place)?;
            }
        }
        Ok(Self { dir, place })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.place
    }
}

/// Mounts a file, past the page cache of the file system that it lies on where that can be: it would keep everything a second
/// time.
fn loop_mount(disk: &Path, place: &Path) -> Result<(), Failure> {
    let set_up = ["-f", "--show", "--direct-io=on"];
    let Ok(device) = output("losetup", |losetup| losetup.args(set_up).arg(disk)) else {
        return output("mount", |mount| mount.args(["-o", "loop"]).arg(disk).arg(place)).map(drop);
    };
    let mounted = output("mount", |mount| mount.arg(device.trim()).arg(place));
    // It is detached by itself as soon as nobody uses it any more.
    output("losetup", |losetup| losetup.args(["-d", device.trim()]))?;
    mounted.map(drop)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let unmount = |lazy: &[&str]| output("umount", |umount| umount.args(lazy).arg(&self.place));
        if unmount(&[]).or_else(|_| unmount(&["-l"])).is_err() {
            eprintln!("{} could not be unmounted", self.dir.path().display());
        }
    }
}

/// An image of `size` bytes that does not compress, different for each seed.
pub fn image(path: &Path, size: u64, seed: u64) -> Result<(), Failure> {
    let file = File::create(path).map_err(Failure::doing(path.display()))?;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut chunk = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(chunk.len() as u64) as usize;
        random.fill_bytes(&mut chunk[..length]);
        file.write_all_at(&chunk[..length], offset).map_err(Failure::doing(path.display()))?;
        offset += length as u64;
    }
    Ok(())
}

/// Writes into an image, as its user would.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
    let file = File::options().write(true).open(path).map_err(Failure::doing(path.display()))?;
    file.write_all_at(bytes, offset).map_err(Failure::doing(path.display()))
}

/// Bytes of disk that a file takes, or everything below a directory; what several files share counts for each.
pub fn disk_use(path: &Path) -> Result<u64, Failure> {
    let metadata = fs::symlink_metadata(path).map_err(Failure::doing(path.display()))?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).map_err(Failure::doing(path.display()))? {
            bytes += disk_use(&entry.map_err(Failure::doing(path.display()))?.path())?;
        }
    }
    Ok(bytes)
}
