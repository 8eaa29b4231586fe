//! `zumastor delete`

use zumastor_core::{SnapshotNumber, VolumeName};

use super::{confirm::confirmed, snapshot_number, volume_name};
use crate::{api::DeleteSnapshots, client::Client, exit::Failure, ui};

/// Delete snapshots for good, whatever rotation they belong to
///
/// Of those that are named, all are deleted, or none if one of them is held. The newest snapshot that a peer has as well is
/// always held: the next transfer builds upon it. `destroy` deletes everything that a volume's snapshot store has.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// Numbers of the snapshots
    #[arg(required_unless_present = "all", value_name = "SNAPSHOT", value_parser = snapshot_number)]
    snapshots: Vec<SnapshotNumber>,
    /// All snapshots that nobody holds; asks first
    #[arg(long, conflicts_with = "snapshots")]
    all: bool,
    /// Only tell what would be deleted
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Do not ask before all are deleted
    #[arg(short, long)]
    yes: bool,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let Args { volume, snapshots, all, dry_run, yes } = args;
    let what = DeleteSnapshots { numbers: snapshots, all, yes, dry_run };
    let attempt = async |yes| client.delete(&volume, &DeleteSnapshots { yes, ..what.clone() }).await;
    ui::outcome(&confirmed(yes, attempt).await?)
}
