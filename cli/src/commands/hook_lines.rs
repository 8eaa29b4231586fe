//! What `status` says of a volume's group and of its hooks.

use jiff::Timestamp;

use crate::{api::VolumeStatus, ui::Span};

/// The lines, each with its indentation. Hooks that went well are named when there is only `one` volume to be told of.
pub fn lines(volume: &VolumeStatus, one: bool, now: Timestamp) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    if let Some(group) = &volume.group {
        lines.push((
            1,
            format!("group      {group}: its snapshots are taken together with those of the others"),
        ));
    }
    for run in &volume.hooks {
        let ago = Span(u64::try_from(now.duration_since(run.at).as_secs()).unwrap_or(0));
        let number = run.snapshot.map(|number| format!(" for snapshot {number}")).unwrap_or_default();
        let what = match (&run.error, run.millis) {
            (Some(error), _) => format!("FAILED {ago} ago{number}: it {error}"),
            (None, None) => format!("has been running for {ago}{number}"),
            (None, Some(_)) if !one => continue,
            (None, Some(millis)) => {
                format!("went well {ago} ago{number}, in {:.1} s", millis as f64 / 1000.0)
            }
        };
        lines.push((1, format!("hook       {} {}: {what}", run.hook, run.program.display())));
        if run.error.is_some() || one {
            lines.extend(run.output.iter().map(|line| (3, format!("| {line}"))));
        }
    }
    lines
}
