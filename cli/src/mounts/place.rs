//! Putting one mount in the place of another, so that whoever looks sees the old or the new, and never the bare directory.

use std::{fs, io, path::Path};

use rustix::mount::{MountPropagationFlags, mount_change};
use zumastor_core::steps;

use super::{
    kernel::{self, Aside},
    table::Table,
};

/// Puts a mount beneath the one that is seen at a directory: taking that away shows it.
pub fn put_beneath(new: &Aside, directory: &Path) -> io::Result<()> {
    match new.put_beneath(directory) {
        // Kernels before Linux 6.5 do not know how.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => tuck(new, directory),
        done => done,
    }
}

/// The same on older kernels, by way of what they do with a mount that appears, from a place that shares its mounts, where
/// something is mounted already: it goes beneath.
pub(super) fn tuck(new: &Aside, directory: &Path) -> io::Result<()> {
    let table = Table::read()?;
    let nowhere = || io::Error::other(format!("{} lies in no mount", directory.display()));
    let holding = table.holding(directory).ok_or_else(nowhere)?;
    let (around, name) = directory.parent().zip(directory.file_name()).ok_or_else(nowhere)?;
    // Never removed with what is in it: that may be the directory of others.
    let aside = tempfile::Builder::new().prefix(ASIDE).tempdir()?.keep();
    if !holding.shared {
        mount_change(&holding.at, MountPropagationFlags::SHARED)?;
    }
    steps::pass("mount: the place around is shared");
    let tucked = (|| {
        Aside::bind(around, false)?.put(&aside)?;
        steps::pass("mount: the place around is aside");
        let put = new.put(&aside.join(name));
        // From here on, what is taken away here stays there.
        let alone = mount_change(&aside, MountPropagationFlags::PRIVATE);
        kernel::detach(&aside)?;
        put.and(alone.map_err(io::Error::from))
    })();
    steps::pass("mount: nothing is aside");
    let _ = fs::remove_dir(&aside);
    if !holding.shared {
        let before =
            if holding.slave { MountPropagationFlags::DOWNSTREAM } else { MountPropagationFlags::PRIVATE };
        mount_change(&holding.at, before)?;
    }
    tucked
}

/// Takes away what a daemon that was killed meanwhile left aside.
pub fn tidy() {
    let Ok(table) = Table::read() else { return };
    let here = std::env::temp_dir();
    for mount in table.0.iter().filter(|mount| mount.at.parent() == Some(&here)) {
        let named = |name: &str| name.starts_with(ASIDE);
        if !mount.at.file_name().and_then(|name| name.to_str()).is_some_and(named) {
            continue;
        }
        // Otherwise what is mounted there would be taken away from its own place, too.
        let taken = mount_change(&mount.at, MountPropagationFlags::PRIVATE).map_err(io::Error::from);
        match taken.and_then(|()| kernel::detach(&mount.at)) {
            Ok(()) => drop(fs::remove_dir(&mount.at)),
            Err(error) => {
                tracing::warn!(at = %mount.at.display(), %error, "a mount of a daemon that was killed is left")
            }
        }
    }
}

/// Begins the names of directories that are used for a moment.
const ASIDE: &str = "zumastor-aside-";
