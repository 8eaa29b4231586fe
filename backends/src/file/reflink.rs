//! Snapshots that share the origin's blocks (`FICLONE`).

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    ops::Range,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use zumastor_core::{Changes, Extent, NewSnapshot, SnapshotNumber, SnapshotRecord, StoreError, files};

use super::{
    fiemap,
    head::Stamp,
    inner::{Inner, RecordFile},
    layout::{Described, failed, sync_together},
    reader::ImageReader,
};

impl Inner {
    /// Clones the origin, as it is at one moment whoever writes to it. Also returns the origin's stamp if it is certain
    /// that the snapshot has what the stamp stands for.
    pub(super) fn create_reflink(
        &self,
        new: NewSnapshot,
        origin: &File,
    ) -> Result<(SnapshotRecord, Option<Stamp>), StoreError> {
        let dir = self.layout.fresh("snapshot")?;
        let created = self.create_reflink_in(&dir, new, origin);
        if created.is_err() && !self.faults.stopped() {
            let _ = fs::remove_dir_all(&dir);
        }
        created
    }

    fn create_reflink_in(
        &self,
        dir: &Path,
        new: NewSnapshot,
        origin: &File,
    ) -> Result<(SnapshotRecord, Option<Stamp>), StoreError> {
        let path = dir.join("image");
        let image = new_file(&path)?;
        let before = Stamp::of(origin, &self.origin)?;
        let settled = before.unsettled().is_none();
        self.faults.at("create: before clone")?;
        clone(origin, &image, &path)?;
        let after = Stamp::of(origin, &self.origin)?;
        self.faults.at("create: after clone")?;
        let size = image.metadata().map_err(failed("looking at", &path))?.len();
        protect_image(&image, &path)?;
        let record = SnapshotRecord { new, size, digest: None };
        let place = dir.join("record");
        let described = RecordFile { record: record.clone(), layer: None }.write_new(&place)?;
        sync_together(dir, &[(&image, &path), (&described, &place)])?;
        self.publish(dir, record.clone(), None)?;
        Ok((record, (settled && before == after && before.size == size).then_some(before)))
    }

    /// Opens the image of a snapshot.
    pub(super) fn image(&self, number: SnapshotNumber) -> Result<ImageReader, StoreError> {
        let kept = self.kept(number)?;
        let opened = ImageReader::open(self.layout.image(number), kept.record.size);
        // Between looking and opening it may have been deleted, which is no damage.
        if opened.is_err() {
            self.kept(number)?;
        }
        opened
    }

    pub(super) fn changes_reflink(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
        window: Range<u64>,
    ) -> Result<Changes, StoreError> {
        let path = self.layout.image(target);
        let Some(base) = base else { return image_changes(None, &self.image(target)?, &path, window) };
        let record = self.kept(target)?.record;
        let window = window.start.min(record.size)..window.end.min(record.size);
        let (base_guid, guid) = (self.kept(base)?.record.guid(), record.guid());
        if let Some(changes) = self.known.find(base_guid, guid, &window) {
            return Ok(changes);
        }
        let changes = image_changes(Some(&self.image(base)?), &self.image(target)?, &path, window.clone())?;
        // The numbers may be other snapshots' by now.
        if self.kept(base)?.record.guid() == base_guid && self.kept(target)?.record.guid() == guid {
            self.known.add(base_guid, guid, window, &changes);
        }
        Ok(changes)
    }
}

/// Where `target` differs from `base`, by the blocks that hold them.
pub(super) fn image_changes(
    base: Option<&ImageReader>,
    target: &ImageReader,
    path: &Path,
    window: Range<u64>,
) -> Result<Changes, StoreError> {
    use zumastor_core::SnapshotReader as _;
    let window = window.start.min(target.size())..window.end.min(target.size());
    if window.is_empty() {
        return Ok(Changes::new());
    }
    match base {
        Some(base) => {
            let end = Some(base.size()).filter(|end| *end < target.size());
            fiemap::changes(base.file(), end, target.file(), window).map_err(failed("mapping", path))
        }
        None => {
            let data = files::data_ranges(target.file(), window).map_err(failed("mapping", path))?;
            Ok(data.into_iter().map(Extent::data).collect())
        }
    }
}

/// A new file in the store.
pub(super) fn new_file(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(failed("making", path))
}

/// Makes `to`, a new and empty file, share all blocks of `from`.
pub(super) fn clone(from: &File, to: &File, path: &Path) -> Result<(), StoreError> {
    if try_clone(from, to).map_err(failed("cloning to", path))? {
        return Ok(());
    }
    Err(StoreError::Unsupported(format!(
        "{} cannot share blocks with its origin: are both still on one file system?",
        path.display()
    )))
}

/// As [`clone`]; false where the file system cannot.
pub(super) fn try_clone(from: &File, to: &File) -> io::Result<bool> {
    // On btrfs, files with and without copy-on-write (`chattr +C`, usual for images) share nothing with each other.
    if let (Ok(wanted), Ok(flags)) = (ioctl_getflags(from), ioctl_getflags(to)) {
        let differs = (wanted ^ flags) & IFlags::NOCOW;
        if !differs.is_empty() {
            let _ = ioctl_setflags(to, flags ^ differs);
        }
    }
    files::reflink(from, to)
}

/// Guards a snapshot's image against writes by mistake.
pub(super) fn protect_image(image: &File, path: &Path) -> Result<(), StoreError> {
    image.set_permissions(Permissions::from_mode(0o400)).map_err(failed("protecting", path))
}
