//! Deleting a snapshot store for good.
//!
//! First the file that says what the store is gets another name, in one durable step: from then on nobody takes for a store what
//! is left of it, and it can only be deleted further. That file goes last.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use zumastor_core::StoreError;

use super::{
    header::{directory, lock},
    layout::{Layout, failed, sync_dir},
};
use crate::Faults;

/// Takes a snapshot store out of use, for ever. That it was done before is no error.
pub(crate) fn condemn(snapstore: &Path, faults: &Faults) -> Result<(), StoreError> {
    let layout = Layout::new(snapstore.to_owned());
    let (store, condemned) = (layout.store(), layout.condemned());
    if !exists(&store)? {
        if exists(&condemned)? {
            return Ok(());
        }
        return Err(StoreError::Unsupported(format!("{} is no snapshot store", snapstore.display())));
    }
    faults.at("destroy: before condemning")?;
    fs::rename(&store, &condemned).map_err(failed("renaming", &store))?;
    faults.at("destroy: after condemning")?;
    sync_dir(snapstore)
}

/// Whether what is in a directory was a snapshot store, and is only to be deleted.
pub(crate) fn is_condemned(snapstore: &Path) -> bool {
    let layout = Layout::new(snapstore.to_owned());
    exists(&layout.condemned()).unwrap_or(false) && !exists(&layout.store()).unwrap_or(true)
}

/// What to say of such a directory.
pub(crate) fn condemned_text(snapstore: &Path) -> String {
    format!(
        "the snapshot store {} is being deleted for good, and only `zumastor destroy` can go on with that",
        snapstore.display()
    )
}

/// Deletes what is left of a condemned store, and what it had beside the origin; the origin stays. What others put into
/// the directory stays as well, and so does the directory then.
pub(crate) fn remove(origin: &Path, snapstore: &Path, faults: &Faults) -> Result<(), StoreError> {
    let layout = Layout::new(snapstore.to_owned());
    let held = lock(&layout)?;
    if !is_condemned(snapstore) {
        return Err(StoreError::Unsupported(format!("{} is still a snapshot store", snapstore.display())));
    }
    for path in beside(origin)? {
        faults.at("destroy: beside the origin")?;
        gone(fs::remove_file(&path)).map_err(failed("removing", &path))?;
    }
    for dir in [
        layout.snapshots(),
        layout.layers(),
        layout.data_dir(),
        layout.staging(),
        layout.tmp(),
        layout.trash(),
    ] {
        faults.at("destroy: a directory")?;
        gone(fs::remove_dir_all(&dir)).map_err(failed("removing", &dir))?;
    }
    let files = [layout.held(), layout.head(), layout.alternate(), layout.lock(), layout.condemned()];
    // All but the last leave something that is condemned.
    for file in files {
        faults.at("destroy: a file")?;
        sync_dir(snapstore)?;
        gone(fs::remove_file(&file)).map_err(failed("removing", &file))?;
    }
    drop(held);
    // It may be where a file system is mounted, or hold something else.
    let _ = fs::remove_dir(snapstore);
    Ok(())
}

/// The files that a store keeps beside its origin. What somebody wrote to after a flip was given another name, and stays.
fn beside(origin: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let Some(name) = origin.file_name() else { return Ok(Vec::new()) };
    let (dir, prefix) = (directory(origin), format!(".{}.zumastor-", name.to_string_lossy()));
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("listing", &dir))?,
    };
    let ours = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let what = name.strip_prefix(&prefix);
        what.is_some_and(|what| ["alt", "flip"].contains(&what) || what.starts_with("draft-"))
    };
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(ours).collect())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(failed("looking at", path))
}
