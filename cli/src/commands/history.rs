//! `zumastor history`

use jiff::{Timestamp, tz::TimeZone};
use zumastor_core::VolumeName;

use super::{status::event_name, volume_name};
use crate::{
    api::{Direction, History, TransferRecord},
    client::Client,
    exit::Failure,
    ui,
};

/// Show what was replicated, and what became of snapshots, the newest last
///
/// The newest 1,000 transfers and the newest 1,000 other events of each volume are remembered. A transfer that found
/// nothing to do is not among them, and an error that repeats is there once.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// Only the newest so many
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    number: Option<u32>,
    /// As JSON; its field `schema` says which version. Transfers and other events stand apart, the newest first
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let number = args.number.map(|number| number as usize);
    let history = client.history(&args.volume, number).await?;
    if args.json {
        return ui::answer(serde_json::to_string_pretty(&history).map_err(Failure::doing("writing JSON"))?);
    }
    let lines = lines(&history, &TimeZone::system());
    let skip = number.map_or(0, |most| lines.len().saturating_sub(most));
    if lines.is_empty() {
        ui::comment(format_args!("nothing has happened to volume {} yet", args.volume));
        return Ok(());
    }
    ui::answer(lines[skip..].join("\n"))
}

/// A line for each, in the order of time.
fn lines(history: &History, zone: &TimeZone) -> Vec<String> {
    let transfers = history.transfers.iter().map(|transfer| (transfer.at, transfer_text(transfer)));
    let events =
        history.events.iter().map(|event| (event.at, format!("{}: {}", event_name(event), event.text)));
    // The newest first, as they come; where the time is the same, that order is kept.
    let mut all: Vec<(Timestamp, String)> = transfers.chain(events).collect();
    all.reverse();
    all.sort_by_key(|(at, _)| *at);
    let time = |at: Timestamp| at.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
    all.into_iter().map(|(at, text)| format!("{}  {text}", time(at))).collect()
}

fn transfer_text(transfer: &TransferRecord) -> String {
    let way = match transfer.direction {
        Direction::Sent => "to",
        Direction::Received => "from",
    };
    let what = match (&transfer.summary, &transfer.error) {
        (Some(summary), _) => ui::summary(summary, None),
        (None, Some(error)) => format!("failed: {error}"),
        (None, None) => "ended".to_owned(),
    };
    format!("{way} {}: {what}", transfer.peer)
}
