//! `zumastor plan`

use jiff::Timestamp;
use zumastor_core::{Every, RotationName, VolumeName};

use super::volume_name;
use crate::{
    api::{PlannedSend, RotationStatus, VolumePlan},
    client::Client,
    exit::Failure,
    ui::{self, moment},
};

/// Show what would be taken, deleted and sent, and why; nothing is
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// As JSON; its field `schema` says which version
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let plan = client.plan(&args.volume).await?;
    if args.json {
        return ui::answer(serde_json::to_string_pretty(&plan).map_err(Failure::doing("writing JSON"))?);
    }
    ui::answer(human(&plan).join("\n"))
}

fn human(plan: &VolumePlan) -> Vec<String> {
    let mut lines = vec![format!("volume {}, with the calendar of {}", plan.volume, plan.zone)];
    match (&plan.idle, plan.take.as_slice()) {
        (Some(idle), _) => lines.push(format!("  take    nothing: {idle}")),
        (None, []) => lines.push("  take    nothing now".to_owned()),
        (None, due) => {
            let due: Vec<_> = due.iter().map(ToString::to_string).collect();
            lines.push(format!("  take    a snapshot now: {}", due.join(" ")));
        }
    }
    lines.extend(
        plan.rotations.iter().map(|rotation| format!("          {}", rotation_line(rotation, plan.at))),
    );
    let going = plan.snapshots.iter().filter(|snapshot| !snapshot.stays).count();
    lines.push(match going {
        0 => "  delete  nothing".to_owned(),
        1 => "  delete  1 snapshot, when the next one comes".to_owned(),
        count => format!("  delete  {count} snapshots, when the next one comes"),
    });
    for snapshot in &plan.snapshots {
        let fate = if snapshot.stays { "stays" } else { "goes " };
        let reasons = snapshot.reasons.join("; ");
        lines.push(format!("    {:>6}  {}  {fate}  {reasons}", snapshot.number, snapshot.name));
    }
    lines.extend(plan.targets.iter().map(|target| send_line(target, plan.at)));
    lines
}

/// A rotation in a line.
pub fn rotation_line(rotation: &RotationStatus, now: Timestamp) -> String {
    let RotationStatus { name, keep, every, next } = rotation;
    let every = match every {
        Some(_) if !matches!(name, RotationName::Custom(_)) => "by the calendar".to_owned(),
        Some(Every::Interval(interval)) => format!("every {interval}"),
        Some(Every::Calendar(expression)) => format!("at {expression}"),
        None => "taken by hand".to_owned(),
    };
    let next = next.map(|next| format!(", next {}", moment(next, now))).unwrap_or_default();
    format!("{name}: keeps {keep}, {every}{next}")
}

fn send_line(target: &PlannedSend, now: Timestamp) -> String {
    let PlannedSend { host, has, sends, next, stopped } = target;
    let has = has.map_or_else(|| "it has none".to_owned(), |has| format!("it has {has}"));
    let when = match (stopped, next) {
        (true, _) => ", once that is started again".to_owned(),
        (false, Some(next)) => format!(", {}", moment(*next, now)),
        (false, None) => ", when it asks or `zumastor replicate` says so".to_owned(),
    };
    match sends {
        Some(number) => format!("  send    snapshot {number} to {host} ({has}){when}"),
        None => format!("  send    nothing to {host} ({has})"),
    }
}
