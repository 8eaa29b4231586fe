//! `define volume --initialize`: an origin that is all zeros, unless it holds something that somebody may want.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use zumastor_backends::{signature, store_id};
use zumastor_core::{
    HumanBytes, SnapshotRecord, VolumeName,
    config::VolumeConfig,
    files::{data_ranges, punch_hole},
    is_zero, steps,
};

use crate::exit::Failure;

/// Refuses, unless the origin is there and holds nothing, or a person said yes to losing what it holds.
pub async fn check(name: &VolumeName, origin: PathBuf, yes: bool) -> Result<(), Failure> {
    let path = origin.clone();
    let found = blocking(&origin, move || look(&path)).await?;
    match found.filter(|_| !yes) {
        None => Ok(()),
        Some(found) => Err(Failure::refused(format!(
            "{} holds {found}, which would be lost if volume {name} were initialized",
            origin.display()
        ))
        .asks("Overwrite it with zeros?")),
    }
}

/// Refuses a block device that something stands on, unless it is a store of ours.
pub async fn check_device(path: PathBuf) -> Result<(), Failure> {
    let device = path.clone();
    let look = move || match store_id(&device, &device) {
        Ok(None) => signature(&device),
        Ok(Some(_)) => Ok(None),
        Err(error) => Err(error),
    };
    let found = tokio::task::spawn_blocking(look).await.expect("looking does not panic")?;
    match found {
        None => Ok(()),
        Some(found) => {
            Err(Failure::refused(format!("{} holds {found}, which would be lost", path.display()))
                .asks("Overwrite it?"))
        }
    }
}

/// Refuses where there are snapshots of the origin.
pub fn check_new(origin: &Path, snapshots: &[SnapshotRecord]) -> Result<(), Failure> {
    if snapshots.is_empty() {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "the snapshot store holds {} snapshots of {}, so it is no new volume and was not overwritten",
        snapshots.len(),
        origin.display()
    ))
    .remedy("leave out `--initialize` to take up the volume, or give an empty snapshot store"))
}

/// Makes the origin zero. That this is being done must have been written down before, for a crash in the middle.
pub async fn zero(origin: PathBuf) -> Result<(), Failure> {
    let path = origin.clone();
    blocking(&origin, move || {
        let file = File::options().read(true).write(true).open(&path)?;
        steps::pass("initialize: before");
        punch_hole(&file, 0..file.metadata()?.len())?;
        steps::pass("initialize: zero, in memory");
        file.sync_all()?;
        steps::pass("initialize: zero");
        Ok(())
    })
    .await
}

/// Why a volume is not used whose initialization was broken off. It is not gone on with by itself: somebody may have written to
/// the origin since.
pub fn broken_off(name: &VolumeName, config: &VolumeConfig) -> Option<String> {
    let (origin, store) = (config.origin.display(), config.snapstore.display());
    config.initializing.then(|| {
        format!(
            "{origin} was being made zero, and it is not known that this was done: it may be zero in part. `zumastor define \
             volume {name} {origin} {store} --initialize` does it again; to take the origin as it is, remove the line \
             `initializing` from the volume's file, then `zumastor reload`"
        )
    })
}

async fn blocking<T: Send + 'static>(
    origin: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await.expect("reading and writing do not panic");
    done.map_err(Failure::doing(origin.display()))
}

/// What a file holds, if anything.
fn look(path: &Path) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    if let Some(name) = recognise(&file)? {
        return Ok(Some(name.to_owned()));
    }
    let mut buffer = vec![0; 1 << 20];
    for range in data_ranges(&file, 0..file.metadata()?.len())? {
        let mut start = range.start;
        while start < range.end {
            let part = &mut buffer[..(range.end - start).min(1 << 20) as usize];
            file.read_exact_at(part, start)?;
            if !is_zero(part) {
                return Ok(Some(format!("data (from {} on)", HumanBytes(start))));
            }
            start += part.len() as u64;
        }
    }
    Ok(None)
}

/// What the signature of a file says that it is.
fn recognise(file: &File) -> io::Result<Option<&'static str>> {
    for (offset, magic, name) in SIGNATURES {
        let mut found = [0; 16];
        let found = &mut found[..magic.len()];
        match file.read_exact_at(found, *offset) {
            Ok(()) if found == *magic => return Ok(Some(name)),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
    }
    Ok(None)
}

/// Offset, what stands there, and what that means. As in libblkid; what others contain comes last.
const SIGNATURES: &[(u64, &[u8], &str)] = &[
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (
        0x1018,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        "a bcache device or a bcachefs file system",
    ),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (0x52, b"FAT32", "a FAT file system"),
    (0x36, b"FAT", "a FAT file system"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0x200, b"LABELONE", "an LVM physical volume"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0x200, b"EFI PART", "a partition table (GPT)"),
    (0x1fe, b"\x55\xaa", "a partition table or a boot sector (MBR)"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_may_want_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("origin");
        let make = |size| {
            let file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            file
        };
        for (offset, magic, name) in SIGNATURES {
            make(1 << 20).write_all_at(magic, *offset).unwrap();
            assert_eq!(look(&path).unwrap().as_deref(), Some(*name));
        }
        make(10);
        assert_eq!(look(&path).unwrap(), None);
        let file = make(8 << 20);
        // Zeros that were written are no data.
        file.write_all_at(&[0; 9000], 4 << 20).unwrap();
        assert_eq!(look(&path).unwrap(), None);
        file.write_all_at(&[1], (5 << 20) + 4097).unwrap();
        assert!(look(&path).unwrap().unwrap().starts_with("data (from 5.00 MiB on)"));
    }
}
