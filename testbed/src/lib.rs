//! The testbed: nodes in processes and network namespaces of their own, file systems to fill, and what a process costs.
//!
//! The scenario tests in `tests/` and the benchmark stand on this.

pub mod lab;
mod long_cable;
mod mounts;
mod network;
mod node;
mod process;
mod scratch;
mod tools;

pub use long_cable::{LongCable, LongPath};
pub use mounts::own_mounts;
pub use network::{Carried, Namespaces, carried};
pub use node::{Node, NodeOptions, Ran, introduce, ran};
pub use process::{Cpu, bytes_read, cpu, descendants, peak_memory, reset_peak_memory};
pub use scratch::{FileSystem, Scratch, disk_use, image, write_at};
pub use tools::{TOOLS, Tool, find, is_root, output, skip};
