//! `zumastor hold` and `zumastor release`

use zumastor_core::{SnapshotNumber, VolumeName};

use super::{hold_name, snapshot_number, volume_name};
use crate::{client::Client, exit::Failure, ui};

/// Keep a snapshot from being deleted
#[derive(Debug, clap::Args)]
pub struct HoldArgs {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// Number of the snapshot
    #[arg(value_parser = snapshot_number)]
    snapshot: SnapshotNumber,
    /// Why: what the hold is called
    #[arg(value_parser = hold_name)]
    name: String,
}

/// Lift a hold that was made with `hold`
#[derive(Debug, clap::Args)]
pub struct ReleaseArgs {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// Number of the snapshot
    #[arg(value_parser = snapshot_number)]
    snapshot: SnapshotNumber,
    /// What the hold is called
    #[arg(value_parser = hold_name)]
    name: String,
}

pub async fn hold(args: HoldArgs, client: Client) -> Result<(), Failure> {
    ui::outcome(&client.hold(&args.volume, args.snapshot, &args.name).await?)
}

pub async fn release(args: ReleaseArgs, client: Client) -> Result<(), Failure> {
    ui::outcome(&client.release(&args.volume, args.snapshot, &args.name).await?)
}
