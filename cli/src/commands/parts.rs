//! `zumastor start` and `zumastor stop`

use zumastor_core::{NodeName, VolumeName};

use super::{node_name, volume_name};
use crate::{api::Part, client::Client, exit::Failure, ui};

/// Go on with what was stopped
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    #[command(subcommand)]
    what: What,
}

/// Stop a part of a volume's work until it is started again, also over restarts of the daemon
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Everything: schedule, receiving and sending
    Volume {
        /// Name of the volume
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
    },
    /// Scheduled snapshots; when they are started again, what was missed is made up for by one
    Master {
        /// Name of the volume
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
    },
    /// Receiving the volume
    Source {
        /// Name of the volume
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
    },
    /// Sending the volume to a node
    Target {
        /// Name of the volume
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
        /// The node, as `status` names it
        #[arg(value_parser = node_name)]
        host: NodeName,
    },
}

impl What {
    fn part(self) -> (VolumeName, Part) {
        match self {
            Self::Volume { volume } => (volume, Part::Volume),
            Self::Master { volume } => (volume, Part::Master),
            Self::Source { volume } => (volume, Part::Source),
            Self::Target { volume, host } => (volume, Part::Target(host)),
        }
    }
}

pub async fn start(args: StartArgs, client: Client) -> Result<(), Failure> {
    let (volume, part) = args.what.part();
    ui::outcome(&client.start(&volume, &part).await?)
}

pub async fn stop(args: StopArgs, client: Client) -> Result<(), Failure> {
    let (volume, part) = args.what.part();
    ui::outcome(&client.stop(&volume, &part).await?)
}
