//! `zumastor replicate`

use zumastor_core::{SnapshotNumber, VolumeName};

use super::{seconds, snapshot_number, volume_name};
use crate::{
    api::{Replicate, ReplicateEvent},
    client::Client,
    exit::Failure,
    ui::{self, TransferBar},
};

/// Replicate now: to a target, or from the source
///
/// Without --snapnum, the newest snapshot that goes to that target. Returns at once unless --wait is given; `status` shows
/// how far it is and what came of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// A target of the volume, or its source
    host: String,
    /// That snapshot, unless a more recent one has been replicated already
    #[arg(short, long, value_name = "NUMBER", value_parser = snapshot_number, allow_negative_numbers = true)]
    snapnum: Option<SnapshotNumber>,
    /// Let the daemon wait so many seconds before it begins; 15m or 6h will do as well
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    delay: Option<u64>,
    /// Wait for the end and show the progress; the replication goes on if this is interrupted
    #[arg(short, long)]
    wait: bool,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let Args { volume, host, snapnum, delay, wait } = args;
    let asked = Replicate { host, snapshot: snapnum, delay: delay.filter(|delay| *delay > 0), wait };
    if !wait {
        return ui::outcome(&client.replicate(&volume, &asked).await?);
    }
    let mut events = client.replicate_and_follow(&volume, &asked).await?;
    let mut bar = TransferBar::new();
    let result = loop {
        match events.next().await {
            Ok(ReplicateEvent::Progress(progress)) => bar.update(&progress),
            Ok(ReplicateEvent::Done(summary)) => break Ok(ui::summary(&summary, snapnum)),
            Ok(ReplicateEvent::Already(outcome)) => break Ok(outcome.done),
            Ok(ReplicateEvent::Failed(failure)) | Err(failure) => break Err(failure),
        }
    };
    bar.finish();
    ui::answer(result?)
}
