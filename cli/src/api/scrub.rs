//! Reading snapshots against their digests.

use std::ops::Range;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zumastor_core::{HumanBytes, NodeName, SnapshotNumber};
use zumastor_net::Progress;

use super::Outcome;
use crate::exit::Failure;

/// `scrub`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scrub {
    /// Which snapshot; without one, the newest.
    #[serde(default)]
    pub snapshot: Option<SnapshotNumber>,
    /// All of them, the newest first.
    #[serde(default)]
    pub all: bool,
    /// Only look.
    #[serde(default)]
    pub keep: bool,
    /// Follow it to its end.
    #[serde(default)]
    pub wait: bool,
}

/// A line of the answer to [`Scrub`] with `wait`. The last is `Done` or `Failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubEvent {
    /// It runs.
    Progress(Progress),
    /// It is done with a snapshot.
    Snapshot(ScrubReport),
    /// All is right now.
    Done(Outcome),
    /// It failed, or something is bad still.
    Failed(Failure),
}

/// What came of the last scrub of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// The snapshot.
    pub number: SnapshotNumber,
    /// When it ended.
    pub at: Timestamp,
    /// In a word.
    pub result: ScrubResult,
    /// Bytes that were looked at.
    pub size: u64,
    /// Bytes that were found to be bad, in units of leaves (64 KiB).
    pub bad: u64,
    /// Where they were: the first of them, if there are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Range<u64>>,
    /// Bytes that are bad still.
    pub left: u64,
    /// Where those are: the first of them, if there are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_ranges: Vec<Range<u64>>,
    /// Whether the leaf tree was found to be damaged.
    #[serde(default)]
    pub tree: bool,
    /// The peers that what was bad was fetched from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<NodeName>,
    /// What is to be said of the volume itself, which may hold the same bad bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Why what is bad still could not be put right, each with the peer it concerns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
}

/// What came of a scrub, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubResult {
    /// All is right.
    Clean,
    /// Something was bad, and is right now.
    Repaired,
    /// Something is bad.
    Damaged,
}

/// How many ranges a report tells.
pub const RANGES_TOLD: usize = 64;

/// What is bad still of a snapshot.
pub fn left(report: &ScrubReport) -> String {
    if report.left == 0 {
        return "its leaf tree".to_owned();
    }
    format!("{} at {}", HumanBytes(report.left), ranges(&report.left_ranges))
}

/// Ranges of bytes as people write them: the last byte belongs to them.
pub fn ranges(ranges: &[Range<u64>]) -> String {
    let each: Vec<_> = ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
    let more = if ranges.len() < RANGES_TOLD { "" } else { " …" };
    format!("bytes {}{more}", each.join(", "))
}
