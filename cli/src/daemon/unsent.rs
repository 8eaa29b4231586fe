//! Snapshots that a target is to have, each of them (`define target --all`), and has not got yet. They are kept as if the target
//! held them, past the limits of their rotations, so that it misses none; but not at the price of a full disk. Then the oldest go,
//! and what the target misses is told until it has got a newer one.

use zumastor_core::{
    HeadState, Hold, HoldOwner, HumanBytes, NodeName, SnapshotNumber, SnapshotRecord, SnapshotStore,
    config::VolumeConfig,
    retention::{Fate, KeepReason, Verdict},
};

use super::{Daemon, holds::blocking, volume::Volume};
use crate::{
    api::{EventKind, UNSENT},
    exit::Failure,
};

/// Where a volume's file asks for no space to be kept free, a tenth of what the snapshots and what is free take together is not
/// filled with what waits to be sent.
const SHARE: u64 = 10;

/// The holds of targets that are to have all, on what they have not got; `has` tells the newest that one has.
pub fn unsent(
    config: &VolumeConfig,
    snapshots: &[SnapshotRecord],
    has: impl Fn(&NodeName) -> Option<SnapshotNumber>,
) -> Vec<Hold> {
    let mut holds = Vec::new();
    for (host, target) in config.target.iter().filter(|(_, target)| target.all) {
        let has = has(host);
        let lacks = |record: &&SnapshotRecord| target.rotations.takes(record) && Some(record.number()) > has;
        holds.extend(snapshots.iter().filter(lacks).map(|record| Hold {
            number: record.number(),
            owner: HoldOwner::Peer(host.clone()),
            name: UNSENT.to_owned(),
            since: record.new.created,
        }));
    }
    holds
}

impl Daemon {
    /// The holds on a volume's snapshots, with those of targets that are to have them yet.
    pub async fn holds_and_unsent(
        &self,
        volume: &Volume,
        snapshots: &[SnapshotRecord],
    ) -> Result<Vec<Hold>, Failure> {
        let mut holds = self.holds_of(&volume.name).await?;
        holds.extend(self.unsent_of(volume, snapshots).await?);
        Ok(holds)
    }

    async fn unsent_of(&self, volume: &Volume, snapshots: &[SnapshotRecord]) -> Result<Vec<Hold>, Failure> {
        let (state, name, config) = (self.state.clone(), volume.name.clone(), volume.config());
        let hosts: Vec<_> = config.target.keys().cloned().collect();
        let cursors = blocking(move || {
            let of = |host: NodeName| Ok((state.cursor(&name, &host)?, host));
            hosts.into_iter().map(of).collect::<Result<Vec<_>, _>>()
        });
        let cursors = cursors.await?;
        let has = |host: &NodeName| {
            let (cursor, _) = cursors.iter().find(|(_, of)| of == host)?;
            cursor.as_ref().map(|cursor| cursor.common)
        };
        Ok(unsent(&config, snapshots, has))
    }

    /// Drops, the oldest first, what is kept only until it is sent, while there is too little space. Where the volume's file asks
    /// for space, that is seen to elsewhere. `shown` is what a replica shows. To be called with the volume's `snapshotting` locked.
    pub async fn drop_unsent(
        &self,
        volume: &Volume,
        store: &dyn SnapshotStore,
        snapshots: &[SnapshotRecord],
        verdicts: &[Verdict],
        shown: Option<HeadState>,
    ) -> Result<(), Failure> {
        if volume.config().space.minimum_free.is_some() {
            return Ok(());
        }
        let waits = |reason: &KeepReason| matches!(reason, KeepReason::Held { name, .. } if name == UNSENT);
        let only_waits = |verdict: &&Verdict| match &verdict.fate {
            Fate::Keep(reasons) => reasons.iter().all(waits),
            Fate::Drop(_) => false,
        };
        for verdict in verdicts.iter().rev().filter(only_waits) {
            let usage = store.usage().await?;
            let least = usage.used.saturating_add(usage.free) / SHARE;
            if usage.free >= least {
                return Ok(());
            }
            let Some(record) = snapshots.iter().find(|record| record.number() == verdict.number) else {
                continue;
            };
            // What a replica shows stays, and what somebody uses.
            if shown == Some(HeadState::Shows(record.number()))
                || self.release_mounts(volume, record).await.is_err()
            {
                continue;
            }
            let shares = store.usage_by_snapshot().await?.map(|usage| usage.snapshots).unwrap_or_default();
            let own = shares.iter().find(|share| share.number == record.number());
            let reason = format!(
                "past its limits, and {} are free, of which {} are not for what waits to be sent",
                HumanBytes(usage.free),
                HumanBytes(least)
            );
            if self.drop_one(volume, store, record, EventKind::Dropped, &reason).await? {
                self.await_freed(store, usage.free, own.map_or(0, |own| own.exclusive)).await?;
            }
        }
        Ok(())
    }

    /// Remembers the targets that were to have a snapshot that is about to go, and gives what is to be said of that.
    pub async fn note_missed(
        &self,
        volume: &Volume,
        record: &SnapshotRecord,
    ) -> Result<Option<String>, Failure> {
        let mut missing = Vec::new();
        for hold in self.unsent_of(volume, std::slice::from_ref(record)).await? {
            let HoldOwner::Peer(peer) = hold.owner else { continue };
            let (state, name, number, at) =
                (self.state.clone(), volume.name.clone(), record.number(), self.now());
            let to = peer.clone();
            blocking(move || state.note_missed(&name, &to, number, at)).await?;
            tracing::warn!(volume = %volume.name, %number, %peer, "it is dropped before it was sent");
            missing.push(peer.to_string());
        }
        Ok((!missing.is_empty()).then(|| format!("{} was to have it, and misses it", missing.join(", "))))
    }
}
