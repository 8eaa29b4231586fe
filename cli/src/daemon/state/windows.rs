//! Snapshots that are being taken, where a crash must not leave it at that: hooks were begun, or other volumes of a group
//! have theirs.

use std::{fs, path::PathBuf};

use jiff::Timestamp;
use redb::{ReadableTable, TableDefinition};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use zumastor_core::{GroupId, GroupName, SnapshotGuid, SnapshotNumber, VolumeName, config::HooksConfig};

use super::{State, StateError, from_json};

/// Volume → [`Window`].
pub(super) const WINDOWS: TableDefinition<&str, &str> = TableDefinition::new("windows");

/// A snapshot of a volume from before the first thing that is done for it until after the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Its number.
    pub number: SnapshotNumber,
    /// Its identity.
    pub guid: SnapshotGuid,
    /// Its rotations.
    pub rotations: Vec<String>,
    /// Its time.
    pub created: Timestamp,
    /// The volume's file or device, as hooks are told.
    pub origin: PathBuf,
    /// The hooks that were configured when it began. Those that have run, or must not, are not here any more.
    pub hooks: HooksConfig,
    /// The group it is taken with, and the identity of that.
    pub group: Option<(GroupName, GroupId)>,
    /// Of a group: all of its volumes have theirs, so it stays. Until then it is undone.
    pub complete: bool,
    /// The hook that was run last.
    pub running: Option<Process>,
}

/// A process, told apart from any that has its number later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    boot: String,
    pid: i32,
    /// When it was started, in ticks since the start of the machine.
    started: u64,
}

impl Process {
    /// A process that runs now.
    pub fn of(pid: u32) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, the program's name in brackets, may hold anything; this is the 22nd (proc(5)).
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { boot, pid: pid.cast_signed(), started })
    }

    /// Ends it and its process group, if it runs still. Blocking, but not long.
    pub fn end(&self) {
        let there = Self::of(self.pid.cast_unsigned());
        if let (true, Some(pid)) = (there.as_ref() == Some(self), Pid::from_raw(self.pid)) {
            tracing::warn!(pid = self.pid, "ending a hook that was left running");
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl State {
    /// Notes that a snapshot of a volume is being taken, or how far that is.
    pub fn note_window(&self, volume: &VolumeName, window: &Window) -> Result<(), StateError> {
        self.write(|txn| {
            let json = serde_json::to_string(window)?;
            txn.open_table(WINDOWS)?.insert(volume.as_str(), json.as_str())?;
            Ok(())
        })
    }

    /// The snapshots of these volumes, which are one group's, stay from now on: all of them, in one step.
    pub fn complete_windows(&self, volumes: &[VolumeName]) -> Result<(), StateError> {
        self.write(|txn| {
            let mut table = txn.open_table(WINDOWS)?;
            for volume in volumes {
                let window = table.get(volume.as_str())?.map(|json| from_json::<Window>(json.value()));
                if let Some(window) = window.transpose()? {
                    let json = serde_json::to_string(&Window { complete: true, ..window })?;
                    table.insert(volume.as_str(), json.as_str())?;
                }
            }
            Ok(())
        })
    }

    /// All that was to be done for a volume's snapshot has been.
    pub fn end_window(&self, volume: &VolumeName) -> Result<(), StateError> {
        self.write(|txn| {
            txn.open_table(WINDOWS)?.remove(volume.as_str())?;
            Ok(())
        })
    }

    /// What was left when the daemon ended.
    pub fn windows(&self) -> Result<Vec<(VolumeName, Window)>, StateError> {
        self.read(|txn| {
            let mut all = Vec::new();
            for entry in txn.open_table(WINDOWS)?.iter()? {
                let (volume, json) = entry?;
                if let Ok(volume) = volume.value().parse() {
                    all.push((volume, from_json(json.value())?));
                }
            }
            Ok(all)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_remembered_until_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let (v, w): (VolumeName, VolumeName) = ("v".parse().unwrap(), "w".parse().unwrap());
        let window = Window {
            number: SnapshotNumber(3),
            guid: SnapshotGuid::generate(),
            rotations: vec!["daily".to_owned()],
            created: "2026-06-01T20:40:00Z".parse().unwrap(),
            origin: "/v".into(),
            hooks: HooksConfig { pre_snapshot: Some("/a".into()), ..HooksConfig::default() },
            group: Some(("db".parse().unwrap(), GroupId::generate())),
            complete: false,
            running: Process::of(std::process::id()),
        };
        let state = State::open(&path).unwrap();
        state.note_window(&v, &window).unwrap();
        state.note_window(&w, &window).unwrap();
        state.complete_windows(std::slice::from_ref(&v)).unwrap();
        state.forget_volume(&v).unwrap();
        drop(state);
        let state = State::open(&path).unwrap();
        let complete = Window { complete: true, ..window.clone() };
        assert_eq!(state.windows().unwrap(), [(v.clone(), complete), (w, window)]);
        state.end_window(&v).unwrap();
        assert_eq!(state.windows().unwrap().len(), 1);
    }

    #[test]
    fn only_the_same_process_is_ended() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        Process { started: process.started + 1, ..process.clone() }.end();
        Process { boot: "another".to_owned(), ..process }.end();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
