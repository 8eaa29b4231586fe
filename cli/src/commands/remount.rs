//! `zumastor remount`

use zumastor_core::VolumeName;

use super::{define::MountOptions, volume_name};
use crate::{client::Client, exit::Failure, ui};

/// Mount a volume and its snapshots anew, or elsewhere, or with other options
///
/// Refused while a program uses what would be taken away from below it. Without options, everything is mounted again as it
/// is defined.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    #[command(flatten)]
    mounts: MountOptions,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    ui::outcome(&client.remount(&args.volume, &args.mounts.define()?).await?)
}
