//! Which snapshots stay and which go, and why.
//!
//! Snapshots are ordered by number, not by time: clocks are set, numbers are not. Local snapshots, which keep what a
//! volume held before it became a replica, count as older than all others.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use crate::{Hold, HoldOwner, HumanBytes, RotationName, SnapshotNumber, SnapshotRecord};

/// What becomes of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The snapshot.
    pub number: SnapshotNumber,
    /// Whether it stays, and why.
    pub fate: Fate,
}

/// Whether a snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It stays, for each of these reasons; at least one.
    Keep(Vec<KeepReason>),
    /// It goes.
    Drop(DropReason),
}

/// Why a snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepReason {
    /// Someone holds it.
    Held {
        /// Who.
        owner: HoldOwner,
        /// What the owner calls the hold.
        name: String,
    },
    /// It is one of as many as its rotation keeps.
    Rotation {
        /// The rotation.
        name: RotationName,
        /// How many it keeps.
        limit: u32,
    },
    /// It belongs to no rotation: only a person deletes it.
    Manual,
    /// A number of this node's own: what was set aside, or kept before something replaced it.
    Own,
    /// It belongs only to rotations that have no limit here, the first of which is this.
    NoLimit(String),
    /// It is the newest of the volume, which always stays.
    Newest,
}

/// Why a snapshot goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DropReason {
    /// Each of its rotations that has a limit keeps enough newer ones; at least one.
    PastLimits(Vec<PastLimit>),
    /// Space is needed, and it was the oldest that may go.
    Space {
        /// About how many bytes that frees.
        frees: u64,
    },
}

/// A rotation that no longer keeps a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastLimit {
    /// The rotation.
    pub name: RotationName,
    /// The snapshot's place in it; the newest is 1.
    pub place: u32,
    /// How many it keeps.
    pub limit: u32,
}

/// Applies the limits of rotations: one verdict for each snapshot, from the newest to the oldest.
///
/// A snapshot stays while it is among the newest of any of its rotations, held or not, and goes when no rotation with a
/// limit keeps it. What has no rotation, or only such that have no limit here, stays; so do all that are held and the
/// newest of the volume.
pub fn plan(
    snapshots: &[SnapshotRecord],
    limits: &BTreeMap<RotationName, u32>,
    holds: &[Hold],
) -> Vec<Verdict> {
    let mut rotations: HashMap<&str, Rotation<'_>> =
        limits.iter().map(|(name, limit)| (name.as_str(), Rotation::new(name, *limit))).collect();
    let mut held: HashMap<SnapshotNumber, Vec<KeepReason>> = HashMap::new();
    for hold in holds {
        let reason = KeepReason::Held { owner: hold.owner.clone(), name: hold.name.clone() };
        held.entry(hold.number).or_default().push(reason);
    }
    let mut verdicts = Vec::with_capacity(snapshots.len());
    for snapshot in newest_first(snapshots) {
        let mut keep = held.remove(&snapshot.number()).unwrap_or_default();
        if verdicts.is_empty() {
            keep.push(KeepReason::Newest);
        }
        // What is this node's own came to be so that nothing is lost: only a person deletes it.
        let past = match snapshot.number().is_local() {
            true => {
                keep.push(KeepReason::Own);
                Vec::new()
            }
            false => count(snapshot, &mut rotations, &mut keep),
        };
        let fate = match keep.is_empty() {
            true => Fate::Drop(DropReason::PastLimits(past)),
            false => Fate::Keep(keep),
        };
        verdicts.push(Verdict { number: snapshot.number(), fate });
    }
    verdicts
}

/// Which snapshots to drop when `needed` bytes must become free, in this order: the oldest first, those of rotations
/// before manual ones, and these only with `manual_too`. What is held and the newest of the volume stay, so it may be
/// that all of these free too little.
///
/// `exclusive` estimates the bytes that a snapshot shares with no other. Dropping neighbours frees more than that, so who
/// can measure does so after each, and stops early.
pub fn space(
    snapshots: &[SnapshotRecord],
    holds: &[Hold],
    needed: u64,
    exclusive: impl Fn(SnapshotNumber) -> u64,
    manual_too: bool,
) -> Vec<Verdict> {
    let held: HashSet<_> = holds.iter().map(|hold| hold.number).collect();
    let mut order = newest_first(snapshots);
    order.reverse();
    order.pop();
    order.retain(|snapshot| {
        let number = snapshot.number();
        !number.is_local() && !held.contains(&number) && (manual_too || !is_manual(snapshot))
    });
    order.sort_by_key(|snapshot| is_manual(snapshot));
    let mut freed = 0u64;
    let mut verdicts = Vec::new();
    for snapshot in order {
        if freed >= needed {
            break;
        }
        let frees = exclusive(snapshot.number());
        freed = freed.saturating_add(frees);
        verdicts.push(Verdict { number: snapshot.number(), fate: Fate::Drop(DropReason::Space { frees }) });
    }
    verdicts
}

/// A rotation with a limit, and how many of its snapshots were seen.
struct Rotation<'a> {
    name: &'a RotationName,
    limit: u32,
    seen: u32,
    last: Option<SnapshotNumber>,
}

impl<'a> Rotation<'a> {
    fn new(name: &'a RotationName, limit: u32) -> Self {
        Self { name, limit, seen: 0, last: None }
    }
}

/// Counts a snapshot in its rotations: adds why they keep it, and returns those that do not.
fn count(
    snapshot: &SnapshotRecord,
    rotations: &mut HashMap<&str, Rotation<'_>>,
    keep: &mut Vec<KeepReason>,
) -> Vec<PastLimit> {
    let mut past = Vec::new();
    let mut limited = false;
    for name in &snapshot.new.rotations {
        let Some(rotation) = rotations.get_mut(name.as_str()) else { continue };
        limited = true;
        // A name that a record repeats counts once.
        if rotation.last.replace(snapshot.number()) == Some(snapshot.number()) {
            continue;
        }
        rotation.seen += 1;
        let (name, place, limit) = (rotation.name.clone(), rotation.seen, rotation.limit);
        match place <= limit {
            true => keep.push(KeepReason::Rotation { name, limit }),
            false => past.push(PastLimit { name, place, limit }),
        }
    }
    match snapshot.new.rotations.first() {
        None => keep.push(KeepReason::Manual),
        Some(first) if !limited => keep.push(KeepReason::NoLimit(first.clone())),
        Some(_) => {}
    }
    past
}

fn newest_first(snapshots: &[SnapshotRecord]) -> Vec<&SnapshotRecord> {
    let mut order: Vec<_> = snapshots.iter().collect();
    order.sort_by_key(|snapshot| (snapshot.number().is_local(), std::cmp::Reverse(snapshot.number())));
    order
}

fn is_manual(snapshot: &SnapshotRecord) -> bool {
    snapshot.new.rotations.is_empty()
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { owner, name } => write!(f, "held by {owner} as {name}"),
            Self::Rotation { name, limit: 1 } => write!(f, "the newest {name}"),
            Self::Rotation { name, limit } => write!(f, "one of the newest {limit} {name}"),
            Self::Manual => f.write_str("manual"),
            Self::Own => f.write_str("this node's own: no other node has it"),
            Self::NoLimit(name) => write!(f, "{name} has no limit here"),
            Self::Newest => f.write_str("the newest of the volume"),
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PastLimits(past) => {
                for (index, past) in past.iter().enumerate() {
                    write!(f, "{}{past}", if index == 0 { "" } else { ", and " })?;
                }
                Ok(())
            }
            Self::Space { frees } => {
                write!(f, "the oldest that may go for space; frees {}", HumanBytes(*frees))
            }
        }
    }
}

impl fmt::Display for PastLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, place, limit } = self;
        let ending = match (place % 10, place % 100) {
            (_, 11..=13) => "th",
            (1, _) => "st",
            (2, _) => "nd",
            (3, _) => "rd",
            _ => "th",
        };
        write!(f, "the {place}{ending} {name} snapshot; ")?;
        match limit {
            0 => f.write_str("none is kept"),
            1 => f.write_str("1 is kept"),
            _ => write!(f, "{limit} are kept"),
        }
    }
}

#[cfg(test)]
mod tests;
