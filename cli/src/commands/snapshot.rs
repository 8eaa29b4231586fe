//! `zumastor snapshot`

use zumastor_core::VolumeName;

use super::volume_name;
use crate::{client::Client, exit::Failure, ui};

/// Take a snapshot; when this returns, it exists
///
/// Prints its number and its name, which is the time it was taken.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// Rotation it belongs to: hourly, daily, weekly, monthly, or one with a name of your own [default: none, and only
    /// `delete` deletes it]
    rotation: Option<String>,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let snapshot = client.snapshot(&args.volume, args.rotation.as_deref()).await?;
    ui::answer(format_args!("{}  {}", snapshot.number, snapshot.name))
}
