//! `zumastor revert`

use zumastor_core::{SnapshotNumber, VolumeName};

use super::{snapshot_number, volume_name};
use crate::{client::Client, exit::Failure, ui};

/// Make a master's volume hold again what it held at a snapshot
///
/// What it holds now is kept as a snapshot first, unless a snapshot has it already. Later snapshots stay. No program may
/// have the volume open for writing. The next replication carries only what differs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// Number of the snapshot
    #[arg(value_parser = snapshot_number)]
    snapshot: SnapshotNumber,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    ui::outcome(&client.revert(&args.volume, args.snapshot).await?)
}
