//! `zumastor forget volume|schedule|source|target`

use zumastor_core::VolumeName;

use super::volume_name;
use crate::{client::Client, exit::Failure, ui};

/// Stop what runs and remove it from the configuration; data stays
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Forget a volume; its data and its snapshots stay where they are
    Volume {
        /// Name of the volume
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
    },
    /// Take and drop no more snapshots by schedule; those there are stay
    Schedule {
        /// Name of the volume
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
    },
    /// Receive the volume no more
    Source {
        /// Name of the volume
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
    },
    /// Send the volume to this node no more
    Target {
        /// Name of the volume
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
        /// The node it is sent to
        host: String,
    },
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let outcome = match args.what {
        What::Volume { volume } => client.forget_volume(&volume).await?,
        What::Schedule { volume } => client.forget_schedule(&volume).await?,
        What::Source { volume } => client.forget_source(&volume).await?,
        What::Target { volume, host } => client.forget_target(&volume, &host).await?,
    };
    ui::outcome(&outcome)
}
