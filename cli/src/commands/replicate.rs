//! `zumastor replicate`

use zumastor_core::VolumeName;

use super::volume_name;
use crate::{
    api::ReplicateEvent,
    client::Client,
    exit::Failure,
    ui::{self, TransferBar},
};

/// Replicate the newest snapshot now: to a target, or from the source
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// A target of the volume, or its source
    host: String,
    /// Wait for the end and show the progress; the replication goes on if this is interrupted
    #[arg(short, long)]
    wait: bool,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let Args { volume, host, wait } = args;
    if !wait {
        return ui::outcome(&client.replicate(&volume, &host).await?);
    }
    let mut events = client.replicate_and_follow(&volume, &host).await?;
    let mut bar = TransferBar::new();
    let result = loop {
        match events.next().await {
            Ok(ReplicateEvent::Progress(progress)) => bar.update(&progress),
            Ok(ReplicateEvent::Done(summary)) => break Ok(summary),
            Ok(ReplicateEvent::Failed(failure)) | Err(failure) => break Err(failure),
        }
    };
    bar.finish();
    ui::answer(ui::summary(&result?))
}
