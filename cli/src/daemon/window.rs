//! Taking snapshots with what belongs to them: hooks before and after, and several volumes at one moment.
//!
//! What must not be left half done is on disk before it begins: a [`Window`] for each volume, until the end of the last
//! thing that was to be done for it. A daemon that is killed in between makes up for it when it is started again: the hook
//! that ends what another began is run, and of a group that is not complete, nothing remains.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use zumastor_core::{
    GroupId, GroupName, NewSnapshot, SnapshotRecord, SnapshotStore, StoreError, VolumeName,
    config::{HookKind, HooksConfig, VolumeConfig},
};

use super::{
    Daemon,
    holds::blocking,
    hooks::{self, Call},
    mounting::hold_still,
    state::{Process, Window},
    volume::Volume,
};
use crate::{
    api::{EventKind, VolumeEvent},
    exit::{Failure, chain},
};

/// A volume whose snapshot is to be taken.
pub struct Member {
    /// The volume.
    pub volume: Arc<Volume>,
    /// The rotations that the snapshot is to belong to.
    pub rotations: Vec<String>,
}

/// What was taken.
pub struct Taken {
    /// The snapshots, in the order of the members.
    pub records: Vec<SnapshotRecord>,
    /// The identity of the group.
    pub group: Option<GroupId>,
    /// What went wrong afterwards.
    pub notes: Vec<String>,
}

/// A member whose turn has come.
struct Begun {
    volume: Arc<Volume>,
    store: Arc<dyn SnapshotStore>,
    new: NewSnapshot,
    window: Option<Window>,
    record: Option<SnapshotRecord>,
    /// Whether the store was asked for the snapshot and did not say that it has it.
    unsure: bool,
}

impl Daemon {
    /// Takes a snapshot of each member, all or none of them, with the hooks of each. To be called with `snapshotting` of
    /// all of them locked, and not to be dropped before it ends.
    pub async fn take_together(
        &self,
        members: &[Member],
        group: Option<&GroupName>,
        created: Timestamp,
    ) -> Result<Taken, Failure> {
        for member in members {
            self.make_up(&member.volume).await?;
            // Once there is a snapshot, writing to the volume takes room.
            self.make_room_in_pool(&member.volume, 0).await?;
            hooks::check_snapshot_hooks(&member.volume).await?;
        }
        let group = group.map(|name| (name.clone(), GroupId::generate()));
        let mut begun = Vec::with_capacity(members.len());
        let mut taken = self.begin(members, group.as_ref(), created, &mut begun).await;
        if taken.is_ok() {
            taken = take(&mut begun, group.is_some()).await;
        }
        if taken.is_ok() && group.is_some() {
            // From here on they stay, whatever happens.
            let (state, names) =
                (self.state.clone(), begun.iter().map(|one| one.volume.name.clone()).collect::<Vec<_>>());
            taken = blocking(move || state.complete_windows(&names)).await.map_err(Failure::from);
        }
        if let (Err(failure), Some((name, _))) = (&mut taken, &group) {
            failure.error = format!("{}; no snapshot of group {name} was taken", failure.error);
        }
        let mut notes = Vec::new();
        for one in begun.iter_mut().rev() {
            if taken.is_err() {
                self.undo(one).await;
            } else if group.is_some() {
                one.volume.settle();
            }
            notes.extend(self.end(one, taken.as_ref().err()).await);
        }
        taken?;
        let record = |one: Begun| {
            let record = one.record.expect("all were taken");
            self.taken(&one.volume, one.store, &record);
            record
        };
        Ok(Taken { records: begun.into_iter().map(record).collect(), group: group.map(|(_, id)| id), notes })
    }

    /// Numbers the snapshots, notes that they are begun, and runs the hooks before them, until one fails.
    async fn begin(
        &self,
        members: &[Member],
        group: Option<&(GroupName, GroupId)>,
        created: Timestamp,
        begun: &mut Vec<Begun>,
    ) -> Result<(), Failure> {
        for Member { volume, rotations } in members {
            let (name, config) = (&volume.name, volume.config());
            let store = volume.store().await.map_err(of(volume, group.is_some()))?;
            let new = NewSnapshot {
                rotations: rotations.clone(),
                created,
                group: group.map(|(_, id)| *id),
                ..self.number(volume).await?
            };
            let number = new.number;
            let window = Window {
                number,
                guid: new.guid,
                rotations: rotations.clone(),
                created,
                origin: config.origin,
                hooks: HooksConfig { post_replicate: None, ..config.hooks },
                group: group.cloned(),
                complete: false,
                running: None,
            };
            begun.push(Begun {
                volume: volume.clone(),
                store,
                new,
                window: None,
                record: None,
                unsure: false,
            });
            let one = begun.last_mut().expect("just pushed");
            if group.is_some() {
                volume.unsettle(number);
            }
            if group.is_some() || window.hooks.around_snapshots() {
                self.note_window(volume, &window).await?;
                one.window = Some(window);
            }
            let Some(window) = &mut one.window else { continue };
            if let Err(error) = self.hook(volume, HookKind::PreSnapshot, window, Vec::new()).await {
                return Err(Failure::failed(format!("volume {name}: {error}, so no snapshot was taken"))
                    .remedy(format!(
                        "`zumastor status {name}` shows what it said last, the daemon's log all of it"
                    )));
            }
        }
        Ok(())
    }

    /// Takes back what there is of a snapshot that must not be.
    async fn undo(&self, one: &mut Begun) {
        let (name, number) = (&one.volume.name, one.new.number);
        if one.record.is_some()
            && let Err(error) = one.store.delete_snapshot(number).await
        {
            tracing::warn!(volume = %name, %number, error = %chain(&error), "a snapshot could not be taken back yet");
            one.unsure = true;
        }
        if one.unsure && one.window.as_ref().is_some_and(|window| window.group.is_some()) {
            return;
        }
        one.volume.settle();
        let (state, lineage) = (self.state.clone(), one.new.lineage);
        if let Err(error) = blocking(move || state.return_number(lineage, number)).await {
            tracing::warn!(volume = %name, %number, error = %chain(&error), "a number is left out");
        }
    }

    /// Runs the hook that ends what the one before the snapshot began, and forgets the window. The answer is what went
    /// wrong.
    async fn end(&self, one: &mut Begun, failure: Option<&Failure>) -> Vec<String> {
        let (volume, Some(window)) = (&one.volume, &mut one.window) else { return Vec::new() };
        let result = if failure.is_none() { "taken" } else { "failed" };
        let error = failure.map(|failure| failure.error.clone()).unwrap_or_default();
        let variables = vec![("ZUMASTOR_RESULT", result.to_owned()), ("ZUMASTOR_ERROR", error)];
        let mut notes: Vec<_> =
            self.hook(volume, HookKind::PostSnapshot, window, variables).await.err().into_iter().collect();
        let left = failure.is_some() && window.group.is_some() && one.unsure;
        let ended = match left {
            true => {
                window.hooks = HooksConfig::default();
                volume.leave(Some(window.clone()));
                self.note_window(volume, window).await
            }
            false => self.end_window(volume).await,
        };
        if let Err(failure) = ended {
            // The hook is run once more after a restart.
            notes.push(failure.error);
        }
        notes
    }

    /// Makes up for what a daemon that was killed left of a volume's snapshot. To be called with `snapshotting` locked.
    pub async fn make_up(&self, volume: &Volume) -> Result<(), Failure> {
        let Some(mut window) = volume.left() else { return Ok(()) };
        let (name, number) = (&volume.name, window.number);
        if let Some(process) = window.running.take() {
            tokio::task::spawn_blocking(move || process.end())
                .await
                .expect("ending a process does not panic");
        }
        let undo = window.group.is_some() && !window.complete;
        let found = match tokio::time::timeout(PATIENCE, find(volume, &window)).await {
            Ok(found) => found,
            Err(_) => Err(StoreError::Unsupported("the snapshot store does not answer".to_owned())),
        };
        if window.hooks.post_snapshot.is_some() {
            let result = match &found {
                _ if undo => "failed",
                Ok(true) => "taken",
                Ok(false) => "failed",
                Err(_) => "unknown",
            };
            let error = "the daemon was ended before this hook could be run";
            let variables =
                vec![("ZUMASTOR_RESULT", result.to_owned()), ("ZUMASTOR_ERROR", error.to_owned())];
            // What went wrong is told, and it is not run again.
            let _ = self.hook(volume, HookKind::PostSnapshot, &mut window, variables).await;
        }
        window.hooks = HooksConfig::default();
        volume.leave(Some(window.clone()));
        if undo {
            self.note_window(volume, &window).await?;
            if found? {
                volume.store().await?.delete_snapshot(number).await?;
                tracing::info!(volume = %name, %number, "taken back: its group was not complete");
            }
        }
        self.end_window(volume).await?;
        volume.leave(None);
        volume.settle();
        Ok(())
    }

    /// What was left to be done for snapshots when the daemon ended, by volume.
    pub async fn left_windows(&self) -> Result<BTreeMap<VolumeName, Window>, Failure> {
        let state = self.state.clone();
        Ok(blocking(move || state.windows()).await?.into_iter().collect())
    }

    /// Makes up for what was left of volumes that are not defined any more: their hooks are run all the same.
    pub fn make_up_for_others(self: Arc<Self>, left: BTreeMap<VolumeName, Window>) {
        for (name, mut window) in left {
            let daemon = self.clone();
            tokio::spawn(async move {
                let config = VolumeConfig::new(window.origin.clone(), "/");
                let volume = Volume::new(name, config, daemon.stores.clone());
                if let Some(process) = window.running.take() {
                    process.end();
                }
                let error = "the daemon was ended before this hook could be run, and the volume is not defined any more";
                let variables =
                    vec![("ZUMASTOR_RESULT", "unknown".to_owned()), ("ZUMASTOR_ERROR", error.to_owned())];
                // What goes wrong is in the log.
                let _ = daemon.hook(&volume, HookKind::PostSnapshot, &mut window, variables).await;
                if let Err(failure) = daemon.end_window(&volume).await {
                    tracing::warn!(volume = %volume.name, error = %failure, "what was left of a snapshot");
                }
            });
        }
    }

    /// Runs a hook around a snapshot, if the volume has it.
    async fn hook(
        &self,
        volume: &Volume,
        hook: HookKind,
        window: &mut Window,
        mut variables: Vec<(&'static str, String)>,
    ) -> Result<(), String> {
        let config = window.hooks.clone();
        let Some(program) = config.program(hook) else { return Ok(()) };
        let number = window.number;
        variables.extend(hooks::told(window));
        let call = Call { hook, program, config: &config, snapshot: Some(number), variables };
        let ran = hooks::run(volume, call, async |process: Option<Process>| {
            window.running = process;
            if let Err(failure) = self.note_window(volume, window).await {
                tracing::warn!(volume = %volume.name, error = %failure, "the process of a hook could not be noted");
            }
        });
        let ran = ran.await;
        if let Err(error) = &ran {
            let (at, text) = (self.now(), error.clone());
            self.note(volume, VolumeEvent { at, what: EventKind::Hook, number: Some(number), text }).await;
        }
        ran
    }

    async fn note_window(&self, volume: &Volume, window: &Window) -> Result<(), Failure> {
        let (state, name, window) = (self.state.clone(), volume.name.clone(), window.clone());
        Ok(blocking(move || state.note_window(&name, &window)).await?)
    }

    async fn end_window(&self, volume: &Volume) -> Result<(), Failure> {
        let (state, name) = (self.state.clone(), volume.name.clone());
        Ok(blocking(move || state.end_window(&name)).await?)
    }
}

/// Freezes all, takes all, and lets go of all.
async fn take(begun: &mut [Begun], grouped: bool) -> Result<(), Failure> {
    let mut frozen = Vec::with_capacity(begun.len());
    // One alone needs nothing but its own snapshot to be of one moment.
    let several = begun.len() > 1;
    for one in begun.iter() {
        // First what is mounted: its last writes go through the store.
        let still = hold_still(&one.volume).await?;
        let held = match several {
            true => one.store.freeze().await.map_err(of(&one.volume, grouped))?,
            false => None,
        };
        frozen.push((held, still));
    }
    for one in begun {
        one.unsure = true;
        one.record =
            Some(one.store.create_snapshot(one.new.clone()).await.map_err(of(&one.volume, grouped))?);
        one.unsure = false;
    }
    Ok(())
}

/// Whether the snapshot of a window is on the store.
async fn find(volume: &Volume, window: &Window) -> Result<bool, StoreError> {
    let snapshots = volume.store().await?.snapshots().await?;
    Ok(snapshots.iter().any(|record| record.guid() == window.guid))
}

/// In a group, an error names the volume.
fn of(volume: &Volume, grouped: bool) -> impl FnOnce(StoreError) -> Failure {
    move |error| {
        let failure = Failure::from(error);
        match grouped {
            true => Failure { error: format!("volume {}: {}", volume.name, failure.error), ..failure },
            false => failure,
        }
    }
}

/// How long a store may take to be opened before a hook is run without knowing what is on it.
const PATIENCE: Duration = Duration::from_secs(10);
