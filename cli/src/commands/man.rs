//! `zumastor man`

use std::{fs, path::PathBuf};

use crate::{exit::Failure, ui};

/// Write manual pages: one for the program and one for each command
///
/// `zumastor man /usr/local/share/man/man1`; without a directory, the program's page is printed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory for the pages; made if it is not there
    directory: Option<PathBuf>,
}

pub fn run(args: Args, command: clap::Command) -> Result<(), Failure> {
    let Some(directory) = args.directory else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command).render(&mut page);
        rendered.map_err(Failure::doing("making the page"))?;
        return ui::answer(String::from_utf8_lossy(&page).trim_end());
    };
    fs::create_dir_all(&directory).map_err(Failure::doing(directory.display()))?;
    clap_mangen::generate_to(command, &directory).map_err(Failure::doing(directory.display()))?;
    ui::answer(format_args!("the pages are in {}", directory.display()))
}
