//! The `zumastor` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    zumastor::run()
}
