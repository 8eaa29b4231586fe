//! Taking mounts away, and never others' with them.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    kernel,
    table::{Mount, Table},
    users::{self, names, users},
};
use crate::exports::clients_on;

/// A mount that could not be taken away, because something uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// Where it is.
    pub(super) at: PathBuf,
    /// The programs, as far as they can be told.
    pub(super) users: Vec<String>,
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is in use by {}", self.at.display(), names(&self.users))
    }
}

/// What to do with a mount that something uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfBusy {
    /// It stays.
    Keep,
    /// If it is read only, whoever uses it keeps it until the end, and nobody else sees it.
    Detach,
    /// The same, for a view of something that stays mounted in its own place.
    DetachView,
}

/// That a mount is in use by another one.
pub fn used_by_mount(at: &Path, mount: &Mount) -> Busy {
    let (source, by) = (mount.source.display(), mount.at.display());
    Busy { at: at.to_owned(), users: vec![format!("another mount ({source} at {by}): unmount that first")] }
}

/// Takes one mount away; false if it was not there any more. With a mount over it or in it, it stays: that would go in its place, or
/// with it. What is seen in a view is the caller's to look at.
pub fn take(mount: &Mount, busy: IfBusy) -> Result<bool, Busy> {
    let failed = |error: &io::Error| Busy { at: mount.at.clone(), users: vec![format!("an error: {error}")] };
    let table = Table::read().map_err(|error| failed(&error))?;
    if let Some(over) = table.top(&mount.at).filter(|top| top.id != mount.id) {
        return Err(used_by_mount(&mount.at, over));
    }
    let device = users::device(&mount.at);
    let error = match kernel::take(&mount.at) {
        Ok(()) => return Ok(true),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::EBUSY) => {}
        Some(libc::EINVAL | libc::ENOENT) => return Ok(false),
        _ => return Err(failed(&error)),
    }
    if busy != IfBusy::DetachView
        && let Some(inner) = table.below(&mount.at).first()
    {
        return Err(used_by_mount(&mount.at, inner));
    }
    let mut users = users(device.as_slice());
    users.extend(clients_on(&[mount.device]));
    let may_go = busy == IfBusy::DetachView || busy == IfBusy::Detach && mount.read_only;
    if may_go && kernel::detach(&mount.at).is_ok() {
        tracing::info!(at = %mount.at.display(), users = names(&users), "taken away; whoever uses it keeps it");
        return Ok(true);
    }
    Err(Busy { at: mount.at.clone(), users })
}
