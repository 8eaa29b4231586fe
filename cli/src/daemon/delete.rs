//! `delete`: snapshots by number, or all that need not stay.

use std::sync::Arc;

use zumastor_core::{HeadState, Hold, HoldOwner, SnapshotNumber, SnapshotRecord, VolumeName};

use super::Daemon;
use crate::{
    api::{DeleteSnapshots, EventKind, Outcome, Role, UNSENT},
    exit::Failure,
};

impl Daemon {
    /// `delete`.
    pub async fn delete(
        self: &Arc<Self>,
        name: &VolumeName,
        what: DeleteSnapshots,
    ) -> Result<Outcome, Failure> {
        match (what.all, what.numbers.is_empty()) {
            (true, true) => self.delete_all(name, what.yes, what.dry_run).await,
            (true, false) => Err(Failure::usage("give either numbers of snapshots or all of them")),
            (false, _) => self.delete_snapshots(name, &what.numbers, what.dry_run).await,
        }
    }

    /// Deletes every snapshot that nobody holds. What stays is told, and why.
    async fn delete_all(&self, name: &VolumeName, yes: bool, dry_run: bool) -> Result<Outcome, Failure> {
        let volume = self.volume(name)?;
        let _snapshotting = volume.snapshotting.lock().await;
        let store = volume.store().await?;
        let snapshots = store.snapshots().await?;
        let holds = self.holds_and_unsent(&volume, &snapshots).await?;
        let shown = match (volume.role(), store.head().await?) {
            (Role::Replica, HeadState::Shows(number)) => Some(number),
            _ => None,
        };
        let why = |record: &SnapshotRecord| stays(record.number(), &holds, shown);
        let (going, staying): (Vec<_>, Vec<_>) = snapshots.iter().partition(|record| why(record).is_none());
        let told = |outcome: Outcome| {
            staying.iter().fold(outcome, |outcome, record| {
                outcome.note(format!(
                    "snapshot {} stays: {}",
                    record.number(),
                    why(record).unwrap_or_default()
                ))
            })
        };
        if going.is_empty() {
            let none = match staying.is_empty() {
                true => format!("volume {name} has no snapshots"),
                false => format!("no snapshot of volume {name} may be deleted"),
            };
            return Ok(told(Outcome::already(none)));
        }
        let count = going.len();
        if dry_run {
            return Ok(told(Outcome::already(format!(
                "would delete {count} snapshots of volume {name}: {}; nothing is deleted",
                listed(&going)
            ))));
        }
        if !yes {
            let stay = match staying.len() {
                0 => String::new(),
                count => format!("; {count} stay because they are needed"),
            };
            return Err(Failure::refused(format!(
                "this would delete {count} snapshots of volume {name} for good{stay}"
            ))
            .asks("Delete them?"));
        }
        self.settle(&volume).await?;
        let (mut deleted, mut busy) = (0, Vec::new());
        for record in &going {
            if let Err(used) = self.release_mounts(&volume, record).await {
                busy.push(format!("snapshot {} stays: {used}", record.number()));
                continue;
            }
            let gone =
                self.drop_one(&volume, &*store, record, EventKind::Deleted, &"by hand, with all others");
            deleted += usize::from(gone.await?);
        }
        self.mount(&volume).await;
        let outcome = told(Outcome::changed(format!("{deleted} snapshots of volume {name} are deleted")));
        let used = busy.len();
        let outcome = busy.into_iter().fold(outcome, Outcome::note);
        Ok(match count - deleted - used {
            0 => outcome,
            more => outcome.note(format!("{more} more stay: they were held meanwhile")),
        })
    }
}

/// The numbers, or the first and the last where they are many.
fn listed(records: &[&SnapshotRecord]) -> String {
    let numbers: Vec<_> = records.iter().map(|record| record.number().to_string()).collect();
    match numbers.as_slice() {
        [first, .., last] if numbers.len() > 20 => format!("{first} … {last}"),
        numbers => numbers.join(", "),
    }
}

/// Why a snapshot has to stay, if it has.
fn stays(number: SnapshotNumber, holds: &[Hold], shown: Option<SnapshotNumber>) -> Option<String> {
    if let Some(hold) = holds.iter().find(|hold| hold.number == number) {
        return Some(match &hold.owner {
            HoldOwner::User => format!("it is held as {:?}", hold.name),
            HoldOwner::Peer(peer) if hold.name == UNSENT => {
                format!("{peer} is to have it, and has not got it yet")
            }
            HoldOwner::Peer(peer) => format!("replication with {peer} builds upon it"),
        });
    }
    (shown == Some(number)).then(|| "the replica shows it now".to_owned())
}
