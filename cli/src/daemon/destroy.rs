//! `destroy`: a volume's snapshot store goes for good, and the volume is forgotten. The origin stays: it is its owner's file.
//!
//! The store is condemned first, in one durable step. A crash after that leaves a volume that cannot be opened and says why,
//! or a directory that is no store any more; the same command goes on from there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use zumastor_backends::{condemn_store, remove_store};
use zumastor_core::{StoreError, VolumeName, config::VolumeConfig};

use super::{
    Daemon,
    volume::{Volume, identity},
};
use crate::{
    api::{Destroy, Outcome},
    exit::Failure,
};

/// So long is waited for those who still use a store.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks meanwhile.
const GLANCE: Duration = Duration::from_millis(20);

impl Daemon {
    /// `destroy`.
    pub async fn destroy(self: &Arc<Self>, what: Destroy) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        match what {
            Destroy { volume: Some(name), origin: None, snapstore: None, yes } => {
                self.destroy_volume(&name, yes).await
            }
            Destroy { volume: None, origin: Some(origin), snapstore: Some(snapstore), yes } => {
                self.destroy_forgotten(origin, snapstore, yes).await
            }
            _ => Err(Failure::usage("give either a volume, or an origin and a snapshot store")),
        }
    }

    async fn destroy_volume(self: &Arc<Self>, name: &VolumeName, yes: bool) -> Result<Outcome, Failure> {
        let volume = self.volume(name)?;
        let config = volume.config();
        let held = self.held(&volume).await?;
        if !held.is_empty() {
            return Err(Failure::refused(format!("of volume {name}, snapshots are held: {}", held.join(", ")))
                .remedy(format!(
                    "`zumastor release {name} SNAPSHOT NAME` for what a person holds, `zumastor forget target {name} HOST` \
                     or `zumastor forget source {name}` for what a peer needs"
                )));
        }
        if !yes {
            // A store that cannot be opened may be one that is half deleted.
            let count = match volume.store().await {
                Ok(store) => format!("{} snapshots", store.snapshots().await?.len()),
                Err(_) => "all snapshots".to_owned(),
            };
            return Err(question(&format!("volume {name} with {count}"), &config.snapstore));
        }
        // It is refused while somebody writes to what is mounted, and then nothing has happened.
        self.unmount_head(&volume).await?;
        let open = volume.store().await.ok().map(|store| Arc::downgrade(&store));
        let snapstore = config.snapstore.clone();
        if let Err(failure) = blocking(move || condemn_store(&snapstore)).await {
            self.mount(&volume).await;
            return Err(failure);
        }
        let (config, busy) = self.forget_defined(name).await?;
        drop(volume);
        // Whoever still works with it comes to an end: nothing begins any more.
        let end = Instant::now() + PATIENCE;
        while open.as_ref().is_some_and(|open| open.strong_count() > 0) && Instant::now() < end {
            sleep(GLANCE).await;
        }
        remove(&config.origin, &config.snapstore).await?;
        let outcome = Outcome::changed(format!("volume {name} is forgotten, and its snapshots are deleted"));
        let outcome = outcome.note(format!("{} stays: it is a plain file", config.origin.display()));
        Ok(busy.into_iter().fold(outcome, Outcome::note))
    }

    async fn destroy_forgotten(
        self: &Arc<Self>,
        origin: PathBuf,
        snapstore: PathBuf,
        yes: bool,
    ) -> Result<Outcome, Failure> {
        if !origin.is_absolute() || !snapstore.is_absolute() {
            return Err(Failure::usage("the paths of a volume must be absolute"));
        }
        self.check_paths(&origin, &snapstore).await?;
        if !yes {
            // Nobody is asked about what is none. What cannot be read may be one that is half deleted.
            if let Ok(None) = identity(&VolumeConfig::new(origin.clone(), snapstore.clone())).await {
                return Err(Failure::refused(format!("{} is no snapshot store", snapstore.display()))
                    .remedy("give the two paths that `define volume` was given"));
            }
            return Err(question("all snapshots", &snapstore));
        }
        let condemned = snapstore.clone();
        blocking(move || condemn_store(&condemned)).await?;
        remove(&origin, &snapstore).await?;
        Ok(Outcome::changed(format!("the snapshots in {} are deleted", snapstore.display())))
    }

    /// The holds of a volume, for people.
    async fn held(&self, volume: &Volume) -> Result<Vec<String>, Failure> {
        let holds = self.holds_of(&volume.name).await?;
        Ok(holds.iter().map(|hold| format!("{} by {} ({})", hold.number, hold.owner, hold.name)).collect())
    }
}

fn question(what: &str, snapstore: &Path) -> Failure {
    Failure::refused(format!("this would delete {what} in {} for good", snapstore.display()))
        .asks("The volume's own file stays. Delete the snapshots?")
}

async fn remove(origin: &Path, snapstore: &Path) -> Result<(), Failure> {
    let (from, store) = (origin.to_owned(), snapstore.to_owned());
    blocking(move || remove_store(&from, &store)).await.map_err(|failure| {
        failure.remedy(format!(
            "`zumastor destroy {} {}` goes on with it",
            origin.display(),
            snapstore.display()
        ))
    })
}

/// Takes back a store that was just made, and that nobody can want.
pub async fn undo(origin: &Path, snapstore: &Path) {
    let (from, store) = (origin.to_owned(), snapstore.to_owned());
    let undone = blocking(move || {
        condemn_store(&store)?;
        remove_store(&from, &store)
    });
    if let Err(failure) = undone.await {
        tracing::warn!(error = %failure, "a snapshot store that is not wanted is left");
    }
}

async fn blocking(work: impl FnOnce() -> Result<(), StoreError> + Send + 'static) -> Result<(), Failure> {
    Ok(tokio::task::spawn_blocking(work).await.expect("deleting does not panic")?)
}
