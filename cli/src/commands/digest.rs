//! `zumastor digest`

use std::path::PathBuf;

use zumastor_backends::plain_source;
use zumastor_core::digest::digest_of;

use crate::{exit::Failure, ui};

/// Compute the digest of a file or device from its content alone; needs no daemon
///
/// It equals the digest that `status` shows for a snapshot exactly if content and size are equal. Nobody should write
/// to it meanwhile.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files or devices
    #[arg(required = true, value_name = "FILE|DEVICE")]
    paths: Vec<PathBuf>,
}

pub fn run(args: Args) -> Result<(), Failure> {
    for path in &args.paths {
        let digest = digest_of(&plain_source(path)?, None)?;
        ui::answer(format_args!("{digest}  {}", path.display()))?;
    }
    Ok(())
}
