//! `revert`: a master's volume goes back to what it was at a snapshot, and nothing that was written since is lost.

use std::{sync::Arc, time::Duration};

use zumastor_core::{HeadState, SnapshotNumber, SnapshotRecord, SnapshotStore, StoreError, VolumeName};

use super::{Daemon, snapshots::no_snapshot, volume::Volume};
use crate::{api::Outcome, exit::Failure};

/// After a write, files keep one time of modification for so long; only then can the store vouch for what it copies.
pub const SETTLING: Duration = Duration::from_millis(60);

impl Daemon {
    /// `revert`.
    pub async fn revert(
        self: &Arc<Self>,
        name: &VolumeName,
        number: SnapshotNumber,
    ) -> Result<Outcome, Failure> {
        let volume = self.volume(name)?;
        let _snapshotting = volume.snapshotting.lock().await;
        self.check_master(&volume, "go back to a snapshot").await?;
        let store = volume.store().await?;
        if !store.snapshots().await?.iter().any(|record| record.number() == number) {
            return Err(no_snapshot(name, number));
        }
        // What it holds is all in the store then, and nobody goes on writing to what it was.
        self.unmount_head(&volume).await?;
        let reverted = self.revert_unmounted(&volume, &*store, number).await;
        self.mount(&volume).await;
        reverted
    }

    async fn revert_unmounted(
        &self,
        volume: &Arc<Volume>,
        store: &dyn SnapshotStore,
        number: SnapshotNumber,
    ) -> Result<Outcome, Failure> {
        let name = &volume.name;
        let kept = match store.head().await? {
            HeadState::Shows(shown) if shown == number => {
                return Ok(Outcome::already(format!("volume {name} holds snapshot {number} already")));
            }
            HeadState::Shows(_) | HeadState::Empty => None,
            HeadState::Written => Some(self.keep_head(volume, store).await?),
        };
        // Whatever is written from now on is not in any snapshot, so the store refuses to replace it.
        store.show(number).await.map_err(|error| still_written(name, &kept, error))?;
        tracing::info!(volume = %name, %number, "reverted");
        let outcome = Outcome::changed(format!("volume {name} holds snapshot {number} again"));
        Ok(match kept {
            Some(kept) => outcome.note(format!("what it held before is kept as snapshot {}", kept.number())),
            None => outcome,
        })
    }

    /// Takes a snapshot of a head that holds what no snapshot has, so that it can be replaced. To be called with
    /// `snapshotting` held.
    pub async fn keep_head(
        &self,
        volume: &Arc<Volume>,
        store: &dyn SnapshotStore,
    ) -> Result<SnapshotRecord, Failure> {
        tokio::time::sleep(SETTLING).await;
        let record = self.take_snapshot(volume, Vec::new(), self.now()).await?;
        if store.head().await? == HeadState::Shows(record.number()) {
            return Ok(record);
        }
        let name = &volume.name;
        Err(Failure::refused(format!(
            "a program is writing to volume {name}, so nothing was replaced; what it held a moment ago is snapshot {}",
            record.number()
        ))
        .remedy("stop the program that uses the volume, then repeat the command"))
    }
}

fn still_written(name: &VolumeName, kept: &Option<SnapshotRecord>, error: StoreError) -> Failure {
    let path = match &error {
        StoreError::HeadWritten { path } | StoreError::HeadBusy { path } => path.display().to_string(),
        _ => return error.into(),
    };
    let kept = kept.as_ref().map_or_else(String::new, |kept| {
        format!("; what it held a moment ago is snapshot {}", kept.number())
    });
    Failure::refused(format!(
        "a program has {path} open for writing: it would go on with what volume {name} was, and what it writes would be \
         lost{kept}"
    ))
    .remedy("stop the program (shut the machine down, unmount the file system), then repeat the command")
}
