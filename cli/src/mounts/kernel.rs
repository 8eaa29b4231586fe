//! What the kernel is asked for: file systems that are mounted aside, put in place, and taken away.

use std::{
    ffi::CStr,
    fs,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::Path,
};

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
        unmount,
    },
    thread::{CapabilitySet, capabilities},
};
use zumastor_core::steps;

/// Whether this process may mount file systems on devices: root, and not only of a user namespace.
pub fn can_mount() -> bool {
    let of_all = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    if !fs::read_to_string("/proc/self/uid_map").is_ok_and(of_all) {
        return false;
    }
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
        && Path::new("/proc/thread-self/mountinfo").exists()
}

/// Whether a path names a block device.
pub fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// A mount that is in no place yet; gone when it is dropped.
#[derive(Debug)]
pub struct Aside(OwnedFd);

/// Options of a file system, each a flag or a key with its value.
pub type Parameters<'a> = &'a [(&'a str, Option<&'a str>)];

impl Aside {
    /// Mounts the file system on `source` aside.
    pub fn mount(
        kind: &str,
        source: &Path,
        read_only: bool,
        attributes: MountAttrFlags,
        parameters: Parameters<'_>,
    ) -> io::Result<Self> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| match error {
            Errno::NODEV => io::Error::other(format!("this kernel knows no {kind}")),
            error => error.into(),
        })?;
        let configure = || -> rustix::io::Result<()> {
            fsconfig_set_string(&context, "source", source)?;
            if read_only {
                fsconfig_set_flag(&context, "ro")?;
            }
            for (key, value) in parameters {
                match value {
                    Some(value) => fsconfig_set_string(&context, *key, *value)?,
                    None => fsconfig_set_flag(&context, *key)?,
                }
            }
            fsconfig_create(&context)
        };
        configure().map_err(|error| explained(&context, error))?;
        let attributes = if read_only { attributes | MountAttrFlags::MOUNT_ATTR_RDONLY } else { attributes };
        Ok(Self(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
    }

    /// A second view of a directory, with what is mounted below it if that is wanted.
    pub fn bind(directory: &Path, recursive: bool) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let flags = if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags };
        Ok(Self(open_tree(CWD, directory, flags)?))
    }

    /// Puts it on a directory, above whatever is mounted there.
    pub fn put(&self, directory: &Path) -> io::Result<()> {
        self.move_to(directory, MoveMountFlags::empty())
    }

    /// Puts it beneath what is mounted on a directory. Linux 6.5 and later can.
    pub fn put_beneath(&self, directory: &Path) -> io::Result<()> {
        self.move_to(directory, MoveMountFlags::MOVE_MOUNT_BENEATH)
    }

    fn move_to(&self, directory: &Path, how: MoveMountFlags) -> io::Result<()> {
        const HERE: &CStr = c"";
        let how = how | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        steps::pass("mount: before");
        move_mount(self.0.as_fd(), HERE, CWD, directory, how)?;
        steps::pass("mount: after");
        Ok(())
    }
}

/// Takes away what is on top at a directory, if nothing uses it.
pub fn take(directory: &Path) -> io::Result<()> {
    steps::pass("unmount: before");
    unmount(directory, UnmountFlags::NOFOLLOW)?;
    steps::pass("unmount: after");
    Ok(())
}

/// Takes away what is on top at a directory, with what is mounted below it. Whoever uses it goes on with it until the end.
pub fn detach(directory: &Path) -> io::Result<()> {
    Ok(unmount(directory, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?)
}

/// An error with what the file system says of it, if it says anything.
fn explained(context: &OwnedFd, error: Errno) -> io::Error {
    let Ok(mut messages) = context.try_clone().map(fs::File::from) else { return error.into() };
    let (mut said, mut buffer) = (Vec::new(), [0; 1024]);
    // One message for each read: `e`, `w` or `i`, a blank, the text.
    while let Ok(length) = messages.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]).trim().to_owned();
        match text.strip_prefix("e ") {
            Some(text) => said.push(text.to_owned()),
            None if length == 0 => break,
            None => {}
        }
    }
    let error = io::Error::from(error);
    if said.is_empty() {
        error
    } else {
        io::Error::new(error.kind(), format!("{} ({error})", said.join("; ")))
    }
}
