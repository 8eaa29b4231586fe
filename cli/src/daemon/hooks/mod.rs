//! Programs that a volume has run around its snapshots and its replication: `docs/hooks.md` describes them.
//!
//! Around snapshots they belong to a [`window`](super::window), which makes sure that what was begun is ended. After a
//! replication they run beside everything else, one at a time.

mod check;
mod run;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use jiff::{Timestamp, tz::TimeZone};
use zumastor_core::{
    NodeName, SnapshotNumber,
    config::{HookKind, HooksConfig},
};

use super::{
    state::{Process, Window},
    status::snapshot_name,
    volume::Volume,
};
use crate::{
    api::{Direction, HookRun},
    exit::Failure,
};

/// What a volume's hooks did last.
#[derive(Debug, Default)]
pub struct Hooks {
    last: Mutex<BTreeMap<HookKind, HookRun>>,
    /// One at a time after replication, in the order of what happened.
    turn: tokio::sync::Mutex<()>,
}

impl Hooks {
    /// What they did last, or do now.
    pub fn runs(&self) -> Vec<HookRun> {
        self.last.lock().expect("no panic while locked").values().cloned().collect()
    }

    fn note(&self, run: HookRun) {
        self.last.lock().expect("no panic while locked").insert(run.hook, run);
    }
}

/// A hook that is to be run.
pub struct Call<'a> {
    pub hook: HookKind,
    pub program: &'a Path,
    pub config: &'a HooksConfig,
    pub snapshot: Option<SnapshotNumber>,
    pub variables: Vec<(&'static str, String)>,
}

/// All variables that hooks are told something by; those that have nothing to say are empty.
const VARIABLES: [&str; 13] = [
    "ZUMASTOR_HOOK",
    "ZUMASTOR_VOLUME",
    "ZUMASTOR_ORIGIN",
    "ZUMASTOR_SNAPSHOT",
    "ZUMASTOR_NAME",
    "ZUMASTOR_GUID",
    "ZUMASTOR_ROTATIONS",
    "ZUMASTOR_GROUP",
    "ZUMASTOR_GROUP_ID",
    "ZUMASTOR_RESULT",
    "ZUMASTOR_ERROR",
    "ZUMASTOR_PEER",
    "ZUMASTOR_DIRECTION",
];

/// Refuses hooks around snapshots that may not be run: before anything is begun.
pub async fn check_snapshot_hooks(volume: &Volume) -> Result<(), Failure> {
    let config = volume.config().hooks;
    for hook in [HookKind::PreSnapshot, HookKind::PostSnapshot] {
        if let Some(program) = config.program(hook) {
            trusted(hook, program.clone()).await.map_err(|(text, remedy)| {
                let name = &volume.name;
                Failure::refused(format!("volume {name}: {text}, so no snapshot was taken")).remedy(remedy)
            })?;
        }
    }
    Ok(())
}

/// What could be said of a volume's hooks now, if one could not be run.
pub async fn untrusted(config: &HooksConfig) -> Option<String> {
    for hook in HookKind::ALL {
        if let Some(program) = config.program(hook)
            && let Err((text, remedy)) = trusted(hook, program.clone()).await
        {
            return Some(format!("{text}: {remedy}"));
        }
    }
    None
}

async fn trusted(hook: HookKind, program: PathBuf) -> Result<(), (String, String)> {
    let checked = tokio::task::spawn_blocking(move || {
        check::check(&program)
            .map_err(|(text, remedy)| (format!("the {hook} hook {} {text}", program.display()), remedy))
    });
    checked.await.expect("looking at files does not panic")
}

/// Runs a hook to its end. `began` is told its process.
///
/// # Errors
/// What went wrong, in words.
pub async fn run(
    volume: &Volume,
    call: Call<'_>,
    began: impl AsyncFnOnce(Option<Process>),
) -> Result<(), String> {
    let Call { hook, program, config, snapshot, variables } = call;
    let at = Timestamp::now();
    let mut all: Vec<_> = VARIABLES.map(|name| (name, String::new())).into();
    let own = [
        ("ZUMASTOR_HOOK", hook.to_string()),
        ("ZUMASTOR_VOLUME", volume.name.to_string()),
        ("ZUMASTOR_ORIGIN", volume.config().origin.display().to_string()),
        ("ZUMASTOR_SNAPSHOT", snapshot.map(|number| number.to_string()).unwrap_or_default()),
    ];
    all.extend(own.into_iter().chain(variables));
    let started = HookRun {
        hook,
        program: program.to_owned(),
        snapshot,
        at,
        millis: None,
        error: None,
        output: Vec::new(),
    };
    tracing::info!(volume = %volume.name, %hook, program = %program.display(), "running a hook");
    // Said to run when it is recorded as well: a daemon that comes after this one would end it.
    let began = async |process| {
        began(process).await;
        volume.hooks.note(started.clone());
    };
    let ended = match trusted(hook, program.to_owned()).await {
        Ok(()) => {
            let name = volume.name.clone();
            let log = move |line: &str| tracing::info!(volume = %name, %hook, "{line}");
            run::run(program, config.timeout(), &all, began, log).await
        }
        Err((text, remedy)) => {
            run::Ended { error: Some(format!("was not run: {text}: {remedy}")), output: vec![] }
        }
    };
    let millis = Timestamp::now().duration_since(at).as_millis();
    let millis = Some(u64::try_from(millis).unwrap_or(0));
    let result = match &ended.error {
        None => Ok(()),
        Some(error) => {
            tracing::warn!(volume = %volume.name, %hook, error, "a hook failed");
            let said = ended.output.iter().rev().find(|line| !line.is_empty());
            let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
            Err(format!("the {hook} hook {} {error}{said}", program.display()))
        }
    };
    volume.hooks.note(HookRun { millis, error: ended.error, output: ended.output, ..started });
    result
}

/// What a hook is told of a snapshot.
pub fn told(window: &Window) -> Vec<(&'static str, String)> {
    vec![
        ("ZUMASTOR_GUID", window.guid.to_string()),
        ("ZUMASTOR_NAME", snapshot_name(window.created, &TimeZone::system())),
        ("ZUMASTOR_ROTATIONS", window.rotations.join(" ")),
        ("ZUMASTOR_GROUP", window.group.as_ref().map(|(name, _)| name.to_string()).unwrap_or_default()),
        ("ZUMASTOR_GROUP_ID", window.group.as_ref().map(|(_, id)| id.to_string()).unwrap_or_default()),
    ]
}

/// Runs a volume's hook after a replication, unless it has none. Nothing waits for that.
pub fn replicated(
    volume: &Arc<Volume>,
    peer: &NodeName,
    direction: Direction,
    result: Result<SnapshotNumber, String>,
) {
    let config = volume.config().hooks;
    let Some(program) = config.post_replicate.clone() else { return };
    let (volume, peer) = (volume.clone(), peer.clone());
    tokio::spawn(async move {
        let _turn = volume.hooks.turn.lock().await;
        let number = result.as_ref().ok().copied();
        let direction = match direction {
            Direction::Sent => "sent",
            Direction::Received => "received",
        };
        let mut variables = vec![
            ("ZUMASTOR_PEER", peer.to_string()),
            ("ZUMASTOR_DIRECTION", direction.to_owned()),
            ("ZUMASTOR_RESULT", if result.is_ok() { "done" } else { "failed" }.to_owned()),
            ("ZUMASTOR_ERROR", result.err().unwrap_or_default()),
        ];
        if let Some(number) = number
            && let Ok(store) = volume.store().await
            && let Ok(snapshots) = store.snapshots().await
            && let Some(record) = snapshots.iter().find(|record| record.number() == number)
        {
            variables.extend([
                ("ZUMASTOR_GUID", record.guid().to_string()),
                ("ZUMASTOR_NAME", snapshot_name(record.new.created, &TimeZone::system())),
                ("ZUMASTOR_ROTATIONS", record.new.rotations.join(" ")),
                ("ZUMASTOR_GROUP_ID", record.new.group.map(|id| id.to_string()).unwrap_or_default()),
            ]);
        }
        let hook = HookKind::PostReplicate;
        let call = Call { hook, program: &program, config: &config, snapshot: number, variables };
        // What went wrong is in the log and in the status.
        let _ = run(&volume, call, async |_| {}).await;
    });
}
