//! Mounts of a test's own: whatever it mounts is gone with it, also when it is killed.

use rustix::{
    mount::{MountPropagationFlags, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};
use zumastor::exit::Failure;

/// Gives the calling thread, and the programs and threads it starts from now on, mounts of their own, which are shared among
/// each other as a service manager sets it up. Needs root.
pub fn own_mounts() -> Result<(), Failure> {
    // SAFETY: the thread's mounts and its directory are its own from now on, and nothing depends on their being others' too.
    #[allow(unsafe_code)]
    let unshared = unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) };
    unshared.map_err(Failure::doing("mounts of its own"))?;
    for propagation in [MountPropagationFlags::PRIVATE, MountPropagationFlags::SHARED] {
        mount_change("/", propagation | MountPropagationFlags::REC)
            .map_err(Failure::doing("mounts of its own"))?;
    }
    Ok(())
}
