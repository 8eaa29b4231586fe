//! Putting one mount in the place of another, so that whoever looks sees the old or the new, and never the bare directory.

use std::{fs, io, path::Path};

use rustix::mount::{MountPropagationFlags, mount_change};

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
    let aside = tempfile::Builder::new().prefix("zumastor-").tempdir()?.keep();
    if !holding.shared {
        mount_change(&holding.at, MountPropagationFlags::SHARED)?;
    }
    let tucked = (|| {
        Aside::bind(around, false)?.put(&aside)?;
        let put = new.put(&aside.join(name));
        // From here on, what is taken away here stays there.
        let alone = mount_change(&aside, MountPropagationFlags::PRIVATE);
        kernel::detach(&aside)?;
        put.and(alone.map_err(io::Error::from))
    })();
    let _ = fs::remove_dir(&aside);
    if !holding.shared {
        let before =
            if holding.slave { MountPropagationFlags::DOWNSTREAM } else { MountPropagationFlags::PRIVATE };
        mount_change(&holding.at, before)?;
    }
    tucked
}
