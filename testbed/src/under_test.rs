//! The `zumastor` program, built beside the scenario tests that run it.

use std::process::ExitCode;

fn main() -> ExitCode {
    zumastor::run()
}
