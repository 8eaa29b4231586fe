//! Transfers over pipes: what is moved, what survives an interruption, and what a bad peer can do.

mod bad_peers;
mod epochs;
mod faults;
mod harness;
mod histories;
mod mends;
mod transfers;
