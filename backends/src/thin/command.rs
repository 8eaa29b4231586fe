//! Commands after which the kernel tells udev of a device.
//!
//! What udev is to do about it goes with the command, and it is not waited for: nothing that it does is needed. The `devicemapper` crate
//! has no such word for a rename, and waits with a semaphore: it stays when a program is killed then, and the wait is for ever where udev
//! has other semaphores, as outside of a container.

use std::{ffi::c_char, fs::File, io, os::fd::AsRawFd};

use devicemapper::{DmFlags, DmName, DmUdevFlags};
use devicemapper_sys::{
    DM_DEV_REMOVE_CMD, DM_DEV_RENAME_CMD, DM_DEV_SUSPEND_CMD, DM_IOCTL, DM_UDEV_FLAGS_SHIFT, dm_ioctl,
};

/// What a device is to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command<'a> {
    Resume,
    /// With `later`, when it is closed.
    Remove {
        later: bool,
    },
    Rename(&'a DmName),
}

/// How the kernel takes it: the new name stands behind the rest.
#[repr(C)]
struct Message {
    header: dm_ioctl,
    name: [c_char; NAME],
}

/// Bytes of a name with the zero behind it (`DM_NAME_LEN`, include/uapi/linux/dm-ioctl.h). A [`DmName`] is shorter.
const NAME: usize = 128;

/// Gives a command to the device of a name. Without flags, udev goes on with the device as it did before.
pub(super) fn give(
    control: &File,
    device: &DmName,
    command: Command<'_>,
    udev: DmUdevFlags,
) -> io::Result<()> {
    let (number, flags, name) = match command {
        // It is the same command as to suspend, without the flag for that.
        Command::Resume => (DM_DEV_SUSPEND_CMD, DmFlags::empty(), None),
        Command::Remove { later: false } => (DM_DEV_REMOVE_CMD, DmFlags::empty(), None),
        Command::Remove { later: true } => (DM_DEV_REMOVE_CMD, DmFlags::DM_DEFERRED_REMOVE, None),
        Command::Rename(name) => (DM_DEV_RENAME_CMD, DmFlags::empty(), Some(name)),
    };
    let header = dm_ioctl {
        version: [4, 0, 0],
        data_size: size_of::<Message>() as u32,
        data_start: size_of::<dm_ioctl>() as u32,
        flags: flags.bits(),
        event_nr: udev.bits() << DM_UDEV_FLAGS_SHIFT,
        name: spelled(device),
        ..dm_ioctl::default()
    };
    let mut message = Message { header, name: name.map_or([0; NAME], spelled) };
    let request = libc::_IOWR::<dm_ioctl>(DM_IOCTL, number);
    // SAFETY: the kernel reads and writes as many bytes behind the pointer as the header says, which is the whole message.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(control.as_raw_fd(), request as _, &raw mut message) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn spelled(name: &DmName) -> [c_char; NAME] {
    let mut spelled = [0; NAME];
    for (to, byte) in spelled.iter_mut().zip(name.as_bytes()) {
        *to = *byte as c_char;
    }
    spelled
}
