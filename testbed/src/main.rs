//! `zumastor-testbed test` runs the tests with what they need; `zumastor-testbed bench` measures.

mod bench;
mod suite;

use std::process::ExitCode;

use clap::Parser;

/// Tests and measures Zumastor
#[derive(Debug, clap::Parser)]
#[command(name = "zumastor-testbed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Test(suite::Args),
    Bench(bench::Args),
    /// One process of the raw QUIC contender
    #[command(subcommand, hide = true)]
    Raw(bench::raw::Role),
    /// One process of a benchmark of device-mapper
    #[command(subcommand, hide = true)]
    Kernel(bench::Kernel),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => suite::run(args).map(ExitCode::from),
        Command::Bench(args) => bench::run(args).map(|()| ExitCode::SUCCESS),
        Command::Raw(role) => bench::raw::play(role).map(|()| ExitCode::SUCCESS),
        Command::Kernel(role) => bench::play(role).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("error: {}", failure.error);
        if let Some(remedy) = &failure.remedy {
            eprintln!("  {remedy}");
        }
        failure.exit.into()
    })
}
