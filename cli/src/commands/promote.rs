//! `zumastor promote`

use zumastor_core::VolumeName;

use super::volume_name;
use crate::{client::Client, exit::Failure, ui};

/// Make this node the master of a volume in place of another
///
/// A replica holds its newest complete snapshot, may be written to, and receives nothing more. The former master takes and
/// sends no snapshots as soon as it hears of this; `define source` there makes it a replica, and keeps what was written
/// there in the meantime as a snapshot.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    ui::outcome(&client.promote(&args.volume).await?)
}
