//! Making the origin show a snapshot: everything is prepared in a second file, then one rename puts it in place.
//!
//! The second file would be a full copy, or a clone, whose cost grows with the volume too. So the file that the origin was
//! before is kept as the *alternate*, and the next flip brings it up to date by what changed since: by copying, or by
//! sharing the blocks of what changed. Nobody may have that file open then: a reader of the content before the last flip would see it change. Where that is not certain, it
//! is left to whoever has it, and a full copy, or clone, is made.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    ops::Range,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::SystemTime,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use zumastor_core::{
    Changes, ExtentKind, HeadState, PageBuf, SegmentIndex, SnapshotGuid, SnapshotNumber, SnapshotReader,
    SnapshotRecord, StoreError, files,
};

use super::{
    Mode,
    head::{HeadMarker, Shown, Stamp, set_past},
    header::directory,
    inner::{Inner, free_at},
    layout::{Described, failed, sync_dir},
    lease::{Lease, Writers, nobody_else_has, writers},
    reflink::clone,
};
use crate::bulk::BulkFile;

/// The file `alternate`: what the second file may be. Around a flip there are two possibilities, told apart by the
/// file's identity.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct AlternateMarker(Vec<Alternate>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Alternate {
    shown: Shown,
    /// Set while it is being brought from what it showed to this one: it may be a mix of the two.
    applying: Option<(SnapshotNumber, SnapshotGuid)>,
}

impl Described for AlternateMarker {
    const MAGIC: &'static [u8; 8] = b"ZUMAALT\x02";
}

impl Inner {
    /// Makes the origin show a snapshot. With `keep`, not if that would lose what somebody wrote there.
    pub(crate) fn revert(&self, number: SnapshotNumber, keep: bool) -> Result<(), StoreError> {
        let _control = self.control()?;
        let record = self.kept(number)?.record;
        self.flip(&record, keep)
    }

    /// As [`revert`](Self::revert), for who has the control lock.
    pub(super) fn flip(&self, record: &SnapshotRecord, keep: bool) -> Result<(), StoreError> {
        if keep {
            // Before the work, so that it is not done in vain, and once more at its end.
            drop(self.replaceable()?);
        }
        let flipped = self.flip_to(record, keep);
        if flipped.is_err() && !self.faults.stopped() {
            let _ = fs::remove_file(self.flip_path());
        }
        flipped
    }

    /// Makes sure that nothing is lost when the origin is replaced. While the lease lives, nobody begins to write.
    fn replaceable(&self) -> Result<Option<Lease>, StoreError> {
        // First the lease, so that what is seen afterwards stays so.
        let lease = match File::open(&self.origin) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            file => match writers(file.map_err(failed("opening the origin", &self.origin))?) {
                Writers::None(lease) => Some(lease),
                Writers::Some => return Err(StoreError::HeadBusy { path: self.origin.clone() }),
                Writers::Unknown => None,
            },
        };
        match self.head()? {
            HeadState::Written => Err(StoreError::HeadWritten { path: self.origin.clone() }),
            HeadState::Empty | HeadState::Shows(_) => Ok(lease),
        }
    }

    /// Removes what a broken flip, or a broken preparation for one, left beside the origin.
    pub(super) fn clear_flip(&self) -> Result<(), StoreError> {
        let head = HeadMarker::recall(&self.layout.head());
        let alternate = AlternateMarker::recall(&self.layout.alternate());
        let known: Vec<Stamp> = head.0.into_iter().map(|shown| shown.stamp).collect();
        let known: Vec<Stamp> =
            known.into_iter().chain(alternate.0.into_iter().map(|alternate| alternate.shown.stamp)).collect();
        self.clear_drafts()?;
        for path in [self.flip_path(), self.next_path()] {
            let Some(stamp) = Stamp::at(&path)? else { continue };
            // What was the origin until a flip stopped may have been written to since.
            let ours = known.iter().filter(|known| known.same_file(&stamp)).collect::<Vec<_>>();
            if !ours.is_empty() && !ours.contains(&&stamp) {
                self.keep_aside(&path)?;
                continue;
            }
            fs::remove_file(&path).map_err(failed("removing", &path))?;
        }
        Ok(())
    }

    /// Renames a file that somebody wrote to: it is not ours to remove.
    fn keep_aside(&self, path: &Path) -> Result<(), StoreError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let mut names = (now..).map(|time| self.beside(&format!("kept-{time}")));
        let kept =
            names.find(|name| fs::symlink_metadata(name).is_err()).expect("there is always a later second");
        fs::rename(path, &kept).map_err(failed("renaming", path))?;
        tracing::warn!(
            path = %kept.display(),
            "somebody wrote to what the volume was before a flip; it is kept under this name: remove it if it is not \
             needed"
        );
        Ok(())
    }

    /// Makes a file that shows a snapshot the alternate; there is none.
    pub(super) fn adopt_alternate(&self, path: &Path, shown: Shown) -> Result<(), StoreError> {
        AlternateMarker(vec![Alternate { shown, applying: None }]).replace(&self.layout.alternate())?;
        fs::rename(path, self.alternate_path()).map_err(failed("renaming", path))?;
        sync_dir(&directory(&self.origin))
    }

    /// The file that the next flip uses, in layered mode.
    pub(super) fn alternate_path(&self) -> PathBuf {
        self.beside("alt")
    }

    fn flip_path(&self) -> PathBuf {
        self.beside("flip")
    }

    pub(super) fn beside(&self, what: &str) -> PathBuf {
        let name = self.origin.file_name().expect("checked when opened").to_string_lossy();
        directory(&self.origin).join(format!(".{name}.zumastor-{what}"))
    }

    fn flip_to(&self, record: &SnapshotRecord, keep: bool) -> Result<(), StoreError> {
        let shown = self.shown()?;
        let draft = self.draft().take().filter(|draft| draft.is_of(record));
        let alternate = self.usable_alternate(record)?;
        let (path, file) = match alternate {
            Some((file, alternate)) => {
                self.apply(&file, alternate, record)?;
                (self.alternate_path(), file)
            }
            None => {
                let path = self.flip_path();
                let drafted = draft.and_then(|draft| {
                    let renamed = draft.rename(&path);
                    renamed.inspect_err(|error| tracing::warn!(%error, "the draft of the head is lost")).ok()
                });
                let file = match (drafted, self.header.mode) {
                    (Some(file), _) => file,
                    (None, Mode::Reflink) => {
                        let file = new_head(&path)?;
                        clone(self.image(record.number())?.file(), &file, &path)?;
                        file
                    }
                    (None, Mode::Layered) => {
                        self.check_room(record)?;
                        let file = new_head(&path)?;
                        self.fill(&file, &path, None, record)?;
                        file
                    }
                };
                self.faults.at("flip: after cloning")?;
                (path, file)
            }
        };
        self.faults.at("flip: after copying")?;
        let stamp = self.finish_head(&file, &path, record)?;
        // What the origin is now becomes the alternate, if it is certain what that is.
        let Some(shown) = shown else {
            self.mark_head(record, stamp)?;
            return self.rename_over(&path, keep);
        };
        let mut marker = AlternateMarker::recall(&self.layout.alternate());
        marker.0.retain(|alternate| alternate.shown.stamp.same_file(&stamp));
        marker.0.push(Alternate { shown, applying: None });
        marker.replace(&self.layout.alternate())?;
        self.mark_head(record, stamp)?;
        self.faults.at("flip: before exchange")?;
        // Preparing may have taken long.
        let lease = if keep { self.replaceable()? } else { None };
        if renameat_with(CWD, &path, CWD, &self.origin, RenameFlags::EXCHANGE).is_err() {
            drop(lease);
            return self.rename_over(&path, keep);
        }
        drop(lease);
        self.faults.at("flip: after exchange")?;
        if path != self.alternate_path() {
            fs::rename(&path, self.alternate_path()).map_err(failed("renaming", &path))?;
        }
        self.faults.at("flip: after rename")?;
        sync_dir(&directory(&self.origin))
    }

    /// Refuses to copy a snapshot beside the origin where it cannot fit: to find out by filling the disk would harm others.
    fn check_room(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        let needed = self.changes(None, record.number(), 0..record.size)?.bytes();
        let free = free_at(&directory(&self.origin))?;
        if needed <= free {
            return Ok(());
        }
        let what = format!(
            "showing snapshot {} takes {needed} bytes beside {}, and {free} are free",
            record.number(),
            self.origin.display()
        );
        Err(StoreError::NoSpace { what })
    }

    fn rename_over(&self, path: &Path, keep: bool) -> Result<(), StoreError> {
        self.faults.at("flip: before rename")?;
        let lease = if keep { self.replaceable()? } else { None };
        fs::rename(path, &self.origin).map_err(failed("renaming", path))?;
        drop(lease);
        self.faults.at("flip: after rename")?;
        sync_dir(&directory(&self.origin))
    }

    /// Makes the new head durable, under the ownership of the old one, with a time that any write changes.
    fn finish_head(&self, file: &File, path: &Path, record: &SnapshotRecord) -> Result<Stamp, StoreError> {
        if let Ok(old) = fs::metadata(&self.origin) {
            // Who may not give files away keeps them.
            let _ = chown(path, Some(old.uid()), Some(old.gid()));
            let mode = Permissions::from_mode(old.permissions().mode() & 0o7777);
            file.set_permissions(mode).map_err(failed("setting the permissions of", path))?;
        }
        file.sync_data().map_err(failed("syncing", path))?;
        let stamp = set_past(file, path, record)?;
        file.sync_all().map_err(failed("syncing", path))?;
        Ok(stamp)
    }

    /// Records what the origin is now and what it is about to become, so that a crash between leaves no doubt.
    fn mark_head(&self, record: &SnapshotRecord, stamp: Stamp) -> Result<(), StoreError> {
        let mut candidates: Vec<Shown> = self.shown()?.into_iter().collect();
        candidates.push(self.showing(record, stamp));
        HeadMarker(candidates).replace(&self.layout.head())?;
        self.faults.at("flip: after marking")
    }

    /// Opens the alternate if it can be brought to `record` by what changed. Otherwise its name is made free.
    fn usable_alternate(&self, record: &SnapshotRecord) -> Result<Option<(File, Alternate)>, StoreError> {
        let path = self.alternate_path();
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed("opening", &path))?,
        };
        let stamp = Stamp::of(&file, &path)?;
        let links = file.metadata().map_err(failed("looking at", &path))?.nlink();
        let marker = AlternateMarker::recall(&self.layout.alternate());
        let known = marker.0.into_iter().find(|alternate| alternate.shown.stamp.same_file(&stamp));
        let ours = known.filter(|known| known.applying.is_some() || known.shown.stamp == stamp);
        let untouched = ours.is_some();
        let usable = ours.filter(|alternate| {
            let from = self.kept(alternate.shown.number);
            let there = from.is_ok_and(|kept| kept.record.guid() == alternate.shown.guid);
            let right =
                alternate.applying.is_none_or(|applying| applying == (record.number(), record.guid()));
            // Under a second name it is somebody's copy of what the volume was.
            there && right && self.of_this_boot(&alternate.shown) && links == 1 && nobody_else_has(&file)
        });
        if let Some(alternate) = usable {
            return Ok(Some((file, alternate)));
        }
        drop(file);
        let written_soon = || File::open(&path).is_ok_and(|file| matches!(writers(file), Writers::Some));
        if links == 1 && (!untouched || written_soon()) {
            self.keep_aside(&path)?;
        } else {
            fs::remove_file(&path).map_err(failed("removing", &path))?;
        }
        Ok(None)
    }

    /// Gives up the alternate: what it was made from was damaged.
    pub(super) fn drop_alternate(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        if let Some((file, _)) = self.usable_alternate(record)? {
            drop(file);
            let path = self.alternate_path();
            fs::remove_file(&path).map_err(failed("removing", &path))?;
        }
        Ok(())
    }

    /// Brings the alternate to what the origin shows, if it holds a snapshot that is about to be deleted: without that
    /// snapshot it could not be told what to change, and the next flip would copy the whole volume.
    pub(super) fn forward_alternate(&self, leaving: &SnapshotRecord) -> Result<(), StoreError> {
        let marker = AlternateMarker::recall(&self.layout.alternate());
        if !marker.0.iter().any(|alternate| alternate.shown.guid == leaving.guid()) {
            return Ok(());
        }
        let Some(shown) = self.shown()?.filter(|shown| shown.guid != leaving.guid()) else {
            // It cannot be brought to anything, and would only keep the space of what is deleted.
            if self.usable_alternate(leaving)?.is_some() {
                let path = self.alternate_path();
                fs::remove_file(&path).map_err(failed("removing", &path))?;
            }
            return Ok(());
        };
        let record = self.kept(shown.number)?.record;
        let Some((file, alternate)) = self.usable_alternate(&record)? else { return Ok(()) };
        self.apply(&file, alternate, &record)?;
        let path = self.alternate_path();
        file.sync_data().map_err(failed("syncing", &path))?;
        let stamp = set_past(&file, &path, &record)?;
        file.sync_all().map_err(failed("syncing", &path))?;
        self.faults.at("delete: before the alternate is marked")?;
        let alternate = Alternate { shown: self.showing(&record, stamp), applying: None };
        AlternateMarker(vec![alternate]).replace(&self.layout.alternate())
    }

    /// Brings the alternate to `record`. Doing it again after a crash gives the same.
    fn apply(
        &self,
        file: &File,
        mut alternate: Alternate,
        record: &SnapshotRecord,
    ) -> Result<(), StoreError> {
        let from = alternate.shown.number;
        alternate.applying = Some((record.number(), record.guid()));
        AlternateMarker(vec![alternate]).replace(&self.layout.alternate())?;
        self.faults.at("flip: before applying")?;
        let path = self.alternate_path();
        match self.header.mode {
            Mode::Reflink => self.share(file, &path, from, record),
            Mode::Layered => self.fill(file, &path, Some(from), record),
        }
    }

    /// Makes a file that shares the blocks of `from` share those of `record`.
    fn share(
        &self,
        file: &File,
        path: &Path,
        from: SnapshotNumber,
        record: &SnapshotRecord,
    ) -> Result<(), StoreError> {
        file.set_len(record.size).map_err(failed("resizing", path))?;
        let image = self.image(record.number())?;
        for extent in &self.cheap_changes(from, record.number())? {
            let range = extent.range.clone();
            let done = match extent.kind {
                ExtentKind::Zero => files::punch_hole(file, range),
                ExtentKind::Data => files::share_range(image.file(), file, range),
            };
            done.map_err(failed("writing", path))?;
        }
        Ok(())
    }

    /// Writes what `record` has and `from` has not.
    fn fill(
        &self,
        file: &File,
        path: &Path,
        from: Option<SnapshotNumber>,
        record: &SnapshotRecord,
    ) -> Result<(), StoreError> {
        file.set_len(record.size).map_err(failed("resizing", path))?;
        let reader = self.reader(record.number())?;
        let file = BulkFile::new(file.try_clone().map_err(failed("opening", path))?, path);
        let next = AtomicU64::new(0);
        let work = || -> Result<(), StoreError> {
            loop {
                let window = SegmentIndex(next.fetch_add(1, Ordering::Relaxed)).range(record.size);
                if window.is_empty() {
                    return Ok(());
                }
                write_changes(&self.changes(from, record.number(), window)?, &*reader, &file, path)?;
            }
        };
        // Reading and writing wait for the disk in turns.
        thread::scope(|scope| {
            let workers: Vec<_> = (0..COPYING).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("copying does not panic"))
        })
    }
}

/// Threads that copy.
const COPYING: usize = 4;

pub(super) fn write_changes(
    changes: &Changes,
    reader: &dyn SnapshotReader,
    file: &BulkFile,
    path: &Path,
) -> Result<(), StoreError> {
    let mut buffer = PageBuf::new(1 << 20);
    for extent in changes {
        let Range { mut start, end } = extent.range.clone();
        if extent.kind == ExtentKind::Zero {
            files::punch_hole(file.file(), start..end).map_err(failed("writing", path))?;
            continue;
        }
        while start < end {
            let bytes = &mut buffer[..(end - start).min(1 << 20) as usize];
            reader.read_at(start, bytes)?;
            file.write_all_at(bytes, start).map_err(failed("writing", path))?;
            start += bytes.len() as u64;
        }
    }
    Ok(())
}

/// A new file beside the origin.
pub(super) fn new_head(path: &Path) -> Result<File, StoreError> {
    let _ = fs::remove_file(path);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(failed("making", path))
}
