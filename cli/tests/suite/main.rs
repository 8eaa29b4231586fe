//! The program as its users run it. One program of all tests: built once, and its tests run beside each other.

mod circles;
mod commands;
mod common;
mod configuration;
mod demo;
mod destroy;
mod groups;
mod hooks;
mod kills;
mod kills_of_replication;
mod manual;
mod promote;
mod refusals;
mod replicate;
mod replication;
mod roles;
mod schedules;
mod scrub;
mod status;
mod stopping;
mod unsent;
mod year;
