//! `zumastor completions`

use clap_complete::Shell;

use crate::{exit::Failure, ui};

/// Print what makes a shell complete commands and options
///
/// For bash: `zumastor completions bash > /etc/bash_completion.d/zumastor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: Args, mut command: clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "zumastor", &mut script);
    ui::answer(String::from_utf8_lossy(&script).trim_end())
}
