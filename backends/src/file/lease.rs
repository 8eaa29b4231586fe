//! Asking the kernel who else has a file open: it grants a lease only when nobody is in its way.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// What can be told about programs that have a file open for writing.
#[derive(Debug)]
pub(crate) enum Writers {
    /// There are none. Whoever wants to become one waits until this is dropped.
    None(Lease),
    /// Some program has the file open for writing, or mapped, or as a loop device.
    Some,
    /// The file system knows no leases, or the file belongs to somebody else.
    Unknown,
}

/// A lease on a file, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease(File);

impl Drop for Lease {
    fn drop(&mut self) {
        // Not left to the closing of the file: a process that is being started may have a copy of it for a moment.
        let _ = set(&self.0, libc::F_UNLCK);
    }
}

/// Looks for writers of a file that is open for reading only.
pub(crate) fn writers(file: File) -> Writers {
    let begun = Instant::now();
    loop {
        match set(&file, libc::F_RDLCK) {
            Ok(()) => return Writers::None(Lease(file)),
            Err(libc::EAGAIN) if begun.elapsed() < PATIENCE => thread::sleep(PATIENCE / 20),
            Err(libc::EAGAIN) => return Writers::Some,
            Err(_) => return Writers::Unknown,
        }
    }
}

/// Whether some program has a file open for writing, as far as its file system can tell. Blocking.
pub fn open_for_writing(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(writers(file), Writers::Some))
}

/// Whether no other open file, mapping or device refers to the file. False also where leases are not known.
pub(crate) fn nobody_else_has(file: &File) -> bool {
    set(file, libc::F_WRLCK).is_ok() && set(file, libc::F_UNLCK).is_ok()
}

/// A process that is being started has a copy of all our files for a moment, also of those that we write.
const PATIENCE: Duration = Duration::from_millis(200);

fn set(file: &File, lease: libc::c_int) -> Result<(), i32> {
    // From include/uapi/linux/fcntl.h; the same on all architectures.
    const F_SETSIG: libc::c_int = 10;
    let fd = file.as_raw_fd();
    // SAFETY: these commands take integers and touch no memory of ours. Should somebody open the file while the lease is
    // held, the kernel sends the signal chosen here, whose default is to be ignored, and not SIGIO, which would end us.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::fcntl(fd, F_SETSIG, libc::SIGURG) == 0 && libc::fcntl(fd, libc::F_SETLEASE, lease) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}
