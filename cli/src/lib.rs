//! Zumastor: scheduled snapshots of block volumes, replicated as only the changed blocks.
//!
//! One program is both the daemon and its client. What another program needs to talk to a daemon is public here:
//! where its socket is ([`paths`]), the requests and answers ([`api`]), and the [`client`].

pub mod api;
pub mod client;
mod commands;
mod daemon;
pub mod exit;
mod exports;
mod mounts;
pub mod paths;
mod ui;

pub use commands::run;
