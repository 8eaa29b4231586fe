//! Volumes and snapshots as mounted file systems.
//!
//! A [`Plan`] says what is to be mounted of one volume; [`apply`] looks at what the kernel has mounted and changes only what
//! differs. So whatever a daemon that was killed left behind is taken over or taken away, and doing it again changes nothing.
//! Every file system is mounted aside first and put in place in one step. Everything here blocks.

mod apply;
mod file_system;
mod freeze;
mod kernel;
mod left;
mod loops;
mod options;
mod place;
mod plan;
mod probe;
mod table;
mod take;
mod users;
mod whose;

#[cfg(test)]
mod tests;

pub use apply::{apply, release, sweep, take_over, unmount_all, unmount_shown};
pub use freeze::{Frozen, freeze};
pub use kernel::{can_mount, is_block_device};
pub use left::left_behind;
pub use loops::grown;
pub use options::Options;
pub use plan::{Plan, Report, Shown, Snapshot};
pub use table::{devices_at, mounted_at};
pub use take::Busy;
