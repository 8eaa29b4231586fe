//! `zumastor snapshot`

use zumastor_core::GroupName;

use super::volume_name;
use crate::{api::TakenSnapshot, client::Client, exit::Failure, ui};

/// Take a snapshot; when this returns, it exists
///
/// Prints its number and its name, which is the time it was taken. With --group, one of each volume of the group is taken at
/// one moment, or none; then each line begins with the volume.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "zumastor snapshot VOLUME [ROTATION]\n       zumastor snapshot --group GROUP [ROTATION]"
)]
pub struct Args {
    /// Name of the volume
    #[arg(value_name = "VOLUME", required_unless_present = "group")]
    volume: Option<String>,
    /// Rotation it belongs to: hourly, daily, weekly, monthly, or one with a name of your own [default: none, and only
    /// `delete` deletes it]
    rotation: Option<String>,
    /// Take one of each volume of this group instead
    #[arg(short, long)]
    group: Option<GroupName>,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let Args { volume, rotation, group } = args;
    let Some(group) = group else {
        let volume = volume_name(&volume.unwrap_or_default()).map_err(Failure::usage)?;
        let TakenSnapshot { snapshot, notes } = client.snapshot(&volume, rotation.as_deref()).await?;
        ui::answer(format_args!("{}  {}", snapshot.number, snapshot.name))?;
        notes.iter().for_each(|note| ui::comment(format_args!("  {note}")));
        return Ok(());
    };
    // There is no volume to be named, so what stands first is the rotation.
    if let (Some(first), Some(_)) = (&volume, &rotation) {
        return Err(Failure::usage(format!(
            "with --group, no volume is named: {first:?} is one name too many"
        ))
        .remedy("`zumastor snapshot --group GROUP [ROTATION]`"));
    }
    let taken = client.snapshot_group(&group, volume.as_deref()).await?;
    for (volume, TakenSnapshot { snapshot, .. }) in &taken.snapshots {
        ui::answer(format_args!("{volume}  {}  {}", snapshot.number, snapshot.name))?;
    }
    taken.notes.iter().for_each(|note| ui::comment(format_args!("  {note}")));
    Ok(())
}
