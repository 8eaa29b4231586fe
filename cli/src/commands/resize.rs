//! `zumastor resize`

use zumastor_core::{VolumeName, parse_size};

use super::{confirm::confirmed, volume_name};
use crate::{api::Resize, client::Client, exit::Failure, ui};

/// Change the size of a master's volume
///
/// Snapshots keep the size they had, and replicas follow with the next snapshot. The file system inside is not touched:
/// make it smaller before the volume, and larger after it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// New size in bytes; K, M, G and T stand for powers of 1024
    #[arg(short, long, value_name = "SIZE", value_parser = size, required_unless_present_any = ["snapshot", "metadata"])]
    origin: Option<u64>,
    /// Use so much of the snapshot store, where that is a block device, which must be as large already
    #[arg(short, long, value_name = "SIZE", value_parser = size)]
    snapshot: Option<u64>,
    /// Use so much for metadata, where the volume is on block devices
    #[arg(short, long, value_name = "SIZE", value_parser = size)]
    metadata: Option<u64>,
    /// Do not ask before data beyond the new end are cut off
    #[arg(short, long)]
    yes: bool,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let Args { volume, origin, snapshot, metadata, yes } = args;
    let resize = Resize { origin, snapshot, metadata, yes };
    let outcome =
        confirmed(yes, async |yes| client.resize(&volume, &Resize { yes, ..resize.clone() }).await).await?;
    ui::outcome(&outcome)
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}
