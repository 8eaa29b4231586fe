//! The stores on real file systems. One program of all tests: built once, and its tests run beside each other.

mod common;
mod conformance;
mod crashes;
mod destroy;
mod drafts;
mod file_store;
mod file_systems;
mod flips;
mod held;
mod repair;
mod set_aside;
mod stored;
mod thin_metadata;
mod usage;
