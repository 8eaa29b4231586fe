//! Snapshots go: those that no rotation keeps any more, and those that a person deletes. Never one that is held.
//!
//! A snapshot that goes is claimed first, at a moment when nobody holds it and nobody can begin to; from then on no
//! hold is given on it. Retention asks nobody else: it runs whether or not any peer can be reached.

use std::sync::Arc;

use zumastor_core::{
    HeadState, Hold, HoldOwner, SnapshotNumber, SnapshotRecord, SnapshotStore, VolumeName,
    retention::{self, DropReason, Fate},
};

use super::{Daemon, holds::blocking, snapshots::no_snapshot, volume::Volume};
use crate::{
    api::{EventKind, HeadStatus, Outcome, Role, UNSENT, VolumeEvent},
    exit::Failure,
};

impl Daemon {
    /// Drops what the volume's rotations no longer keep, and mounts what is left. What goes wrong is told, and tried again with the next
    /// snapshot. To be called with the volume's `snapshotting` locked.
    pub async fn retain(&self, volume: &Volume) {
        if let Err(failure) = self.apply_limits(volume).await {
            tracing::warn!(volume = %volume.name, error = %failure, "old snapshots could not be dropped");
        }
        self.mount(volume).await;
    }

    /// As [`retain`](Self::retain), and locks the volume itself. Goes on if nobody waits for it any more: a claim lasts as
    /// long as the deletion.
    pub async fn retain_to_the_end(self: &Arc<Self>, volume: &Arc<Volume>) {
        let (daemon, volume) = (self.clone(), volume.clone());
        let retained = tokio::spawn(async move {
            let _snapshotting = volume.snapshotting.lock().await;
            daemon.retain(&volume).await;
        });
        // It ends with the daemon at the latest.
        let _ = retained.await;
    }

    async fn apply_limits(&self, volume: &Volume) -> Result<(), Failure> {
        let limits = volume.config().schedule.limits();
        if limits.is_empty() || volume.role() == Role::Undecided {
            return Ok(());
        }
        // Of two histories, a person decides which is kept.
        if self.superseded(volume).await?.is_some() {
            return Ok(());
        }
        let store = volume.store().await?;
        let snapshots = store.snapshots().await?;
        let holds = self.holds_and_unsent(volume, &snapshots).await?;
        let shown = match volume.role() {
            Role::Replica => Some(store.head().await?),
            _ => None,
        };
        let verdicts = retention::plan(&snapshots, &limits, &holds);
        // The oldest first.
        for verdict in verdicts.iter().rev() {
            let Fate::Drop(reason) = &verdict.fate else { continue };
            let Some(record) = snapshots.iter().find(|record| record.number() == verdict.number) else {
                continue;
            };
            // What a replica shows stays until it shows another.
            if shown == Some(HeadState::Shows(record.number())) {
                continue;
            }
            if let Err(busy) = self.release_mounts(volume, record).await {
                // Told once, not with each snapshot that is taken.
                if volume.mounting.note_kept(record.number()) {
                    let text = format!("stays past its limits: {busy}");
                    tracing::warn!(volume = %volume.name, number = %record.number(), "{text}");
                    let (at, what, number) = (self.now(), EventKind::Kept, Some(record.number()));
                    self.note(volume, VolumeEvent { at, what, number, text }).await;
                }
                continue;
            }
            self.drop_one(volume, &*store, record, EventKind::Dropped, reason).await?;
        }
        self.drop_unsent(volume, &*store, &snapshots, &verdicts, shown).await
    }

    /// Deletes one snapshot. False if somebody holds it.
    pub async fn drop_one(
        &self,
        volume: &Volume,
        store: &dyn SnapshotStore,
        record: &SnapshotRecord,
        what: EventKind,
        reason: &(dyn std::fmt::Display + Sync),
    ) -> Result<bool, Failure> {
        let number = record.number();
        let Some(_claim) = self.claim(volume, record).await? else { return Ok(false) };
        // It may have been set aside meanwhile, and another one have its number.
        let there = store.snapshots().await?;
        if !there.iter().any(|there| there.number() == number && there.guid() == record.guid()) {
            return Ok(false);
        }
        // Before it goes: what is missed must not be forgotten by a crash.
        let missed = match what {
            EventKind::Dropped => self.note_missed(volume, record).await?,
            _ => None,
        };
        store.delete_snapshot(number).await?;
        let text = missed.map_or_else(|| reason.to_string(), |missed| format!("{reason}; {missed}"));
        tracing::info!(volume = %volume.name, %number, reason = text, "snapshot deleted");
        self.note(volume, VolumeEvent { at: self.now(), what, number: Some(number), text }).await;
        Ok(true)
    }

    /// Claims a snapshot for deletion, unless somebody holds it.
    async fn claim<'a>(
        &self,
        volume: &'a Volume,
        record: &SnapshotRecord,
    ) -> Result<Option<Claim<'a>>, Failure> {
        let (number, lineage) = (record.number(), record.new.lineage);
        let claim = Claim { volume, number };
        let (state, name, doomed) = (self.state.clone(), volume.name.clone(), volume.doomed.clone());
        let free = blocking(move || {
            // Its number is never given again, though no snapshot will tell that it was.
            state.note_number(lineage, number)?;
            state.unless_held(&name, number, || {
                doomed.lock().expect("no panic while locked").insert(number);
            })
        });
        Ok(free.await?.then_some(claim))
    }

    /// `delete`.
    pub async fn delete_snapshots(
        &self,
        name: &VolumeName,
        numbers: &[SnapshotNumber],
        dry_run: bool,
    ) -> Result<Outcome, Failure> {
        if numbers.is_empty() {
            return Err(Failure::usage("no snapshot was named"));
        }
        let volume = self.volume(name)?;
        let _snapshotting = volume.snapshotting.lock().await;
        let store = volume.store().await?;
        let snapshots = store.snapshots().await?;
        let holds = self.holds_and_unsent(&volume, &snapshots).await?;
        let shown = match (volume.role(), store.head().await?) {
            (Role::Replica, head) => Some(HeadStatus::from(head)),
            _ => None,
        };
        let mut going = Vec::new();
        for number in numbers {
            let record = snapshots.iter().find(|record| record.number() == *number);
            let record = record.ok_or_else(|| no_snapshot(name, *number))?;
            check_unheld(name, *number, &holds)?;
            if shown == Some(HeadStatus::Snapshot(*number)) {
                return Err(Failure::refused(format!("snapshot {number} is what replica {name} shows now"))
                    .remedy("it can be deleted when a newer one has been received"));
            }
            if !going.iter().any(|there: &&SnapshotRecord| there.number() == *number) {
                going.push(record);
            }
        }
        if dry_run {
            let numbers: Vec<_> = going.iter().map(|record| record.number().to_string()).collect();
            return Ok(Outcome::already(format!(
                "would delete of volume {name}: {}; nothing is deleted",
                numbers.join(", ")
            )));
        }
        self.settle(&volume).await?;
        for record in &going {
            let number = record.number();
            if let Err(busy) = self.release_mounts(&volume, record).await {
                self.mount(&volume).await;
                return Err(Failure::refused(format!(
                    "snapshot {number} of volume {name} is mounted: {busy}"
                ))
                .remedy("let the programs end, or leave that directory, then repeat the command"));
            }
            if !self.drop_one(&volume, &*store, record, EventKind::Deleted, &"by hand").await? {
                check_unheld(name, number, &self.holds_of(name).await?)?;
                return Err(Failure::failed(format!(
                    "snapshot {number} of volume {name} was held meanwhile"
                ))
                .remedy("try again"));
            }
        }
        self.mount(&volume).await;
        let numbers: Vec<_> = going.iter().map(|record| record.number().to_string()).collect();
        Ok(Outcome::changed(match numbers.as_slice() {
            [number] => format!("snapshot {number} of volume {name} is deleted"),
            numbers => format!("snapshots {} of volume {name} are deleted", numbers.join(", ")),
        }))
    }

    /// The holds on a volume's snapshots.
    pub async fn holds_of(&self, name: &VolumeName) -> Result<Vec<Hold>, Failure> {
        let (state, name) = (self.state.clone(), name.clone());
        Ok(blocking(move || state.holds(&name)).await?)
    }

    /// What retention makes of a volume's snapshots now, from the newest to the oldest.
    pub async fn fates(
        &self,
        volume: &Volume,
        snapshots: &[SnapshotRecord],
    ) -> Result<Vec<(SnapshotNumber, bool, Vec<String>)>, Failure> {
        let holds = self.holds_and_unsent(volume, snapshots).await?;
        let limits = volume.config().schedule.limits();
        let fate = |verdict: retention::Verdict| match verdict.fate {
            Fate::Keep(reasons) => (verdict.number, true, reasons.iter().map(ToString::to_string).collect()),
            Fate::Drop(reason) => (verdict.number, false, parts(&reason)),
        };
        Ok(retention::plan(snapshots, &limits, &holds).into_iter().map(fate).collect())
    }
}

fn parts(reason: &DropReason) -> Vec<String> {
    match reason {
        DropReason::PastLimits(past) => past.iter().map(ToString::to_string).collect(),
        DropReason::Space { .. } => vec![reason.to_string()],
    }
}

/// A snapshot that is being deleted: nobody can hold it. Lasts until the deletion has ended.
struct Claim<'a> {
    volume: &'a Volume,
    number: SnapshotNumber,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.volume.doomed.lock().expect("no panic while locked").remove(&self.number);
    }
}

fn check_unheld(name: &VolumeName, number: SnapshotNumber, holds: &[Hold]) -> Result<(), Failure> {
    let Some(hold) = holds.iter().find(|hold| hold.number == number) else { return Ok(()) };
    Err(match &hold.owner {
        HoldOwner::User => {
            let held = format!("snapshot {number} of volume {name} is held as {:?}", hold.name);
            Failure::refused(held).remedy(format!("`zumastor release {name} {number} '{}'` first", hold.name))
        }
        HoldOwner::Peer(peer) if hold.name == UNSENT => {
            Failure::refused(format!("{peer} is to have each snapshot of volume {name}, and not {number} yet"))
                .remedy(format!(
                    "`zumastor replicate {name} {peer}` sends it; or `zumastor define target {name} {peer}` without `--all`, and \
                     only the newest is sent"
                ))
        }
        HoldOwner::Peer(peer) => Failure::refused(format!(
            "replication with {peer} holds snapshot {number} of volume {name}: the next transfer builds upon it"
        ))
        .remedy(format!(
            "replicate a newer snapshot first, or forget {peer} for this volume, and the next transfer will have to \
             find out what differs"
        )),
    })
}
