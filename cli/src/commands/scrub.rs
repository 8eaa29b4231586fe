//! `zumastor scrub`

use zumastor_core::{HumanBytes, SnapshotNumber, VolumeName};

use super::{snapshot_number, volume_name};
use crate::{
    api::{Scrub, ScrubEvent, ScrubReport, ScrubResult},
    client::Client,
    exit::Failure,
    ui::{self, TransferBar},
};

/// Read a snapshot against its digest, and repair what is bad of it
///
/// What is bad is fetched from the volume's source, or from a target that has the same snapshot, and checked before it is
/// written. Shows the progress and waits for the end; the scrub goes on if this is interrupted, and `status` shows what came
/// of it. Ends with 1 if something is bad still.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// Number of the snapshot [default: the newest]
    #[arg(value_parser = snapshot_number, conflicts_with = "all")]
    snapshot: Option<SnapshotNumber>,
    /// All snapshots, the newest first
    #[arg(short, long)]
    all: bool,
    /// Only look: repair nothing
    #[arg(short = 'n', long)]
    no_repair: bool,
    /// Do not wait for the end
    #[arg(short, long)]
    background: bool,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let Args { volume, snapshot, all, no_repair, background } = args;
    let asked = Scrub { snapshot, all, keep: no_repair, wait: !background };
    if background {
        return ui::outcome(&client.scrub(&volume, &asked).await?);
    }
    let mut events = client.scrub_and_follow(&volume, &asked).await?;
    let mut bar = Some(TransferBar::new());
    loop {
        let event = events.next().await;
        match event {
            Ok(ScrubEvent::Progress(progress)) => bar.get_or_insert_with(TransferBar::new).update(&progress),
            Ok(ScrubEvent::Snapshot(report)) => {
                if let Some(bar) = bar.take() {
                    bar.finish();
                }
                ui::answer(line(&report))?;
                if let Some(head) = &report.head {
                    ui::comment(format_args!("  {head}"));
                }
            }
            Ok(ScrubEvent::Done(_)) => return Ok(()),
            Ok(ScrubEvent::Failed(failure)) | Err(failure) => return Err(failure),
        }
    }
}

/// What a scrub of a snapshot came to, in a line.
pub fn line(report: &ScrubReport) -> String {
    let ScrubReport { number, size, .. } = report;
    let read = HumanBytes(*size);
    let tree = if report.tree { " and its leaf tree" } else { "" };
    let bad = match (report.bad, report.tree) {
        (0, true) => "its leaf tree was damaged".to_owned(),
        (bad, _) => format!("{}{tree} bad, at {}", HumanBytes(bad), crate::api::ranges(&report.ranges)),
    };
    match report.result {
        ScrubResult::Clean => format!("snapshot {number}: {read} read, all as it was"),
        ScrubResult::Repaired => {
            let from: Vec<_> = report.from.iter().map(ToString::to_string).collect();
            let from = if from.is_empty() { String::new() } else { format!(" from {}", from.join(" and ")) };
            format!("snapshot {number}: {read} read, {bad}; repaired{from}")
        }
        ScrubResult::Damaged if report.left < report.bad => {
            format!("snapshot {number}: {read} read, {bad}; {} of it not repaired", HumanBytes(report.left))
        }
        ScrubResult::Damaged => format!("snapshot {number}: {read} read, {bad}; NOT repaired"),
    }
}
