//! What a person types: one file for each verb.

mod completions;
mod confirm;
mod daemon;
mod define;
mod delete;
mod demo;
mod destroy;
mod digest;
mod equals;
mod forget;
mod history;
mod hold;
mod hook_lines;
mod man;
mod parts;
mod peer;
mod plan;
mod promote;
mod reload;
mod remount;
mod replicate;
mod resize;
mod revert;
mod rotations;
mod scrub;
mod snapshot;
mod status;

use std::{future::Future, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use zumastor_core::{NodeName, SnapshotNumber, VolumeName, parse_seconds};

use crate::{api::check_hold_name, client::Client, exit::Failure, paths::Paths, ui};

/// Scheduled snapshots of block volumes, replicated as only the changed blocks.
#[derive(Debug, Parser)]
#[command(name = "zumastor", version, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by a safety rule.
ZUMASTOR_ROOT=DIR keeps configuration, state and socket below DIR.";

#[derive(Debug, Subcommand)]
enum Command {
    Daemon(daemon::Args),
    Define(define::Args),
    Forget(forget::Args),
    Snapshot(snapshot::Args),
    Delete(delete::Args),
    Destroy(destroy::Args),
    Plan(plan::Args),
    Start(parts::StartArgs),
    Stop(parts::StopArgs),
    Reload(reload::Args),
    Replicate(replicate::Args),
    Promote(promote::Args),
    Revert(revert::Args),
    Remount(remount::Args),
    Resize(resize::Args),
    Scrub(scrub::Args),
    Status(status::Args),
    History(history::Args),
    Peer(peer::Args),
    Hold(hold::HoldArgs),
    Release(hold::ReleaseArgs),
    Digest(digest::Args),
    Demo(demo::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// The program: reads the command line, does it, and gives the exit code.
pub fn run() -> ExitCode {
    // Wrong usage is told, and ends with 2, in here.
    let cli = equals::checked(Cli::command(), std::env::args_os());
    let cli = cli.and_then(|matches| Cli::from_arg_matches(&matches)).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Command::Daemon(args) => daemon::run(args),
        Command::Define(args) => with_client(async |client| define::run(args, client).await),
        Command::Forget(args) => with_client(async |client| forget::run(args, client).await),
        Command::Snapshot(args) => with_client(async |client| snapshot::run(args, client).await),
        Command::Delete(args) => with_client(async |client| delete::run(args, client).await),
        Command::Destroy(args) => with_client(async |client| destroy::run(args, client).await),
        Command::Plan(args) => with_client(async |client| plan::run(args, client).await),
        Command::Start(args) => with_client(async |client| parts::start(args, client).await),
        Command::Stop(args) => with_client(async |client| parts::stop(args, client).await),
        Command::Reload(args) => with_client(async |client| reload::run(args, client).await),
        Command::Replicate(args) => with_client(async |client| replicate::run(args, client).await),
        Command::Promote(args) => with_client(async |client| promote::run(args, client).await),
        Command::Revert(args) => with_client(async |client| revert::run(args, client).await),
        Command::Remount(args) => with_client(async |client| remount::run(args, client).await),
        Command::Resize(args) => with_client(async |client| resize::run(args, client).await),
        Command::Scrub(args) => with_client(async |client| scrub::run(args, client).await),
        Command::Status(args) => with_client(async |client| status::run(args, client).await),
        Command::History(args) => with_client(async |client| history::run(args, client).await),
        Command::Peer(args) => with_client(async |client| peer::run(args, client).await),
        Command::Hold(args) => with_client(async |client| hold::hold(args, client).await),
        Command::Release(args) => with_client(async |client| hold::release(args, client).await),
        Command::Digest(args) => digest::run(args),
        Command::Completions(args) => completions::run(args, Cli::command()),
        Command::Man(args) => man::run(args, Cli::command()),
        Command::Demo(args) => block_on(demo::run(args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            ui::failure(&failure);
            failure.exit.into()
        }
    }
}

/// Runs a command that asks the daemon.
fn with_client(command: impl AsyncFnOnce(Client) -> Result<(), Failure>) -> Result<(), Failure> {
    let client = Client::new(&Paths::from_env()?);
    block_on(command(client))
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::doing("starting"))?.block_on(work)
}

/// Names and numbers are checked as the command line is read.
fn volume_name(text: &str) -> Result<VolumeName, String> {
    text.parse().map_err(|error: zumastor_core::InvalidName| error.to_string())
}

fn node_name(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|error: zumastor_core::InvalidName| error.to_string())
}

fn hold_name(text: &str) -> Result<String, String> {
    check_hold_name(text).map(|()| text.to_owned())
}

/// A length of time.
fn seconds(text: &str) -> Result<u64, String> {
    parse_seconds(text).map_err(|error| error.to_string())
}

fn snapshot_number(text: &str) -> Result<SnapshotNumber, String> {
    text.parse().map_err(|_| "not the number of a snapshot".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_after_the_names() {
        for line in [
            "zumastor define target -p 60 -r 1M v beta:9 -u",
            "zumastor define target v beta:9 --period 60 --ratelimit 1048576 --uncompressed",
            "zumastor define target v --period=60 beta:9 -ur1M",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Define(define::Args { what: define::What::Target(target) }) = cli.command else {
                panic!()
            };
            assert_eq!((target.volume.as_str(), target.host.as_str()), ("v", "beta:9"));
            assert_eq!(
                (target.period, target.ratelimit, target.uncompressed),
                (Some(60), Some(1 << 20), true)
            );
        }
        for line in [
            "zumastor define source v beta -p 0",
            "zumastor define source v/w beta",
            "zumastor define target v beta -r 12Q",
            "zumastor hold v one x",
            "zumastor replicate v",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
