//! `zumastor delete`

use zumastor_core::{SnapshotNumber, VolumeName};

use super::{snapshot_number, volume_name};
use crate::{client::Client, exit::Failure, ui};

/// Delete snapshots for good, whatever rotation they belong to
///
/// All of them are deleted, or none if one of them is held. The newest snapshot that a peer has as well is always held:
/// the next transfer builds upon it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// Numbers of the snapshots
    #[arg(required = true, value_name = "SNAPSHOT", value_parser = snapshot_number)]
    snapshots: Vec<SnapshotNumber>,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    ui::outcome(&client.delete(&args.volume, &args.snapshots).await?)
}
