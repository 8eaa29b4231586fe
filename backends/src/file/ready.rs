//! A clone of the newest snapshot, made while nobody waits: what is received next begins with one, and on a volume of many
//! extents cloning takes longer than a small change does.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use zumastor_core::{SnapshotGuid, SnapshotNumber, StoreError};

use super::{
    Mode,
    inner::Inner,
    layout::failed,
    reflink::{clone, new_file},
};

/// How long after a flip the clone is made.
const LATER: Duration = Duration::from_millis(200);

/// A clone of a snapshot. It goes when it is dropped, unless it was taken.
#[derive(Debug)]
pub(super) struct Ready {
    guid: SnapshotGuid,
    path: PathBuf,
}

impl Drop for Ready {
    fn drop(&mut self) {
        // What was taken is not there any more.
        let _ = fs::remove_file(&self.path);
    }
}

impl Inner {
    /// Makes a new file at `path` that shares all blocks of a snapshot.
    pub(super) fn clone_snapshot(&self, number: SnapshotNumber, path: &Path) -> Result<fs::File, StoreError> {
        let guid = self.kept(number)?.record.guid();
        let ready = self.ready().take().filter(|ready| ready.guid == guid);
        if let Some(ready) = ready
            && fs::rename(&ready.path, path).is_ok()
        {
            let file = fs::OpenOptions::new().read(true).write(true).open(path);
            return file.map_err(failed("opening", path));
        }
        let file = new_file(path)?;
        let begun = Instant::now();
        clone(self.image(number)?.file(), &file, path)?;
        let slow = self.clones_ahead.is_some_and(|least| begun.elapsed() >= least);
        self.cloning_is_slow.store(slow, Ordering::Relaxed);
        Ok(file)
    }

    /// Clones a snapshot for what is received next, in the background, if that took long the last time.
    pub(super) fn prepare_clone(self: &Arc<Self>, number: SnapshotNumber) {
        if self.header.mode == Mode::Layered || !self.cloning_is_slow.load(Ordering::Relaxed) {
            return;
        }
        let inner = Arc::downgrade(self);
        thread::spawn(move || {
            // Whoever waits for what is shown has it by then: cloning keeps file system and processors busy.
            thread::sleep(LATER);
            let Some(inner) = inner.upgrade() else { return };
            // Another one may be shown by then, or be on its way.
            let shown = inner.shown().is_ok_and(|shown| shown.is_some_and(|shown| shown.number == number));
            if !shown || inner.state().staged.is_some() {
                return;
            }
            if let Err(error) = inner.make_ready(number) {
                tracing::debug!(%error, "the next transfer has to clone its base");
            }
        });
    }

    fn make_ready(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        let guid = self.kept(number)?.record.guid();
        // A name that nobody else has: two may be at it, and an empty file must never be taken for a clone.
        static MADE: AtomicU64 = AtomicU64::new(0);
        let making = self.layout.tmp().join(format!("making-{}", MADE.fetch_add(1, Ordering::Relaxed)));
        let mut made = Ready { guid, path: making };
        let file = new_file(&made.path)?;
        clone(self.image(number)?.file(), &file, &made.path)?;
        let path = self.layout.tmp().join(format!("ready-{guid}"));
        let mut ready = self.ready();
        // Deleted meanwhile, it must not keep the space; and the number may be another snapshot's by now.
        if self.kept(number)?.record.guid() != guid {
            return Ok(());
        }
        // Before the new one, which may have the same name.
        drop(ready.take());
        fs::rename(&made.path, &path).map_err(failed("renaming", &made.path))?;
        made.path = path;
        *ready = Some(made);
        Ok(())
    }
}
