//! One snapshot, for people.

use jiff::Timestamp;
use zumastor_core::HumanBytes;

use super::{Lines, role, seconds};
use crate::{
    api::{HoldStatus, SnapshotReport},
    ui::Span,
};

/// Everything about a snapshot.
pub fn text(report: &SnapshotReport, now: Timestamp) -> String {
    let mut out = Lines::default();
    let snapshot = &report.snapshot;
    let role = role(report.role);
    out.line(0, format!("{}  snapshot {}  at {}, {role}", report.volume, snapshot.number, report.node));
    let ago = Span(seconds(snapshot.created, now));
    out.line(1, format!("name       {}", snapshot.name));
    out.line(1, format!("taken      {} ({ago} ago)", snapshot.created));
    out.line(1, format!("guid       {}", snapshot.guid));
    let rotations = match snapshot.rotations.is_empty() {
        true => "none: manual".to_owned(),
        false => snapshot.rotations.join(", "),
    };
    out.line(1, format!("rotations  {rotations}"));
    out.line(1, format!("size       {}", HumanBytes(snapshot.size)));
    if let Some(usage) = &snapshot.usage {
        let (all, own, shared) =
            (HumanBytes(usage.referenced), HumanBytes(usage.exclusive), HumanBytes(usage.shared));
        out.line(
            1,
            format!("takes      {all}: {own} of its own, which deleting it would free, {shared} shared"),
        );
    }
    let digest = snapshot.digest.map_or_else(|| "not computed yet".to_owned(), |digest| digest.to_string());
    out.line(1, format!("digest     {digest}"));
    let device = snapshot.device.as_ref().map(|device| device.display().to_string());
    out.line(1, format!("device     {}", device.as_deref().unwrap_or("none: its content lies in layers")));
    if let Some(scrub) = &snapshot.scrub {
        let ago = Span(seconds(scrub.at, now));
        out.line(1, format!("scrubbed   {} ago: {}", ago, crate::commands::scrub::line(scrub)));
        scrub.troubles.iter().chain(&scrub.head).for_each(|trouble| out.line(3, trouble));
    }
    match snapshot.holds.is_empty() {
        true => out.line(1, "held by    nobody"),
        false => snapshot.holds.iter().for_each(|hold| out.line(1, hold_text(hold, now))),
    }
    out.0
}

/// Who holds it, since when and why.
fn hold_text(hold: &HoldStatus, now: Timestamp) -> String {
    let ago = Span(seconds(hold.since, now));
    let HoldStatus { owner, name, since, why } = hold;
    let why = if why == name { why.clone() } else { format!("{name}: {why}") };
    format!("held by    {owner} since {since} ({ago} ago): {why}")
}
