//! `define schedule` and `forget schedule`: the rotations of a volume.

use std::sync::Arc;

use jiff::Timestamp;
use zumastor_core::{
    NewSnapshot, RotationName, RotationSpec, SnapshotRecord, VolumeName,
    config::{ScheduleConfig, VolumeConfig},
    schedule::{Served, due},
};

use super::{Daemon, snapshotter::takes, volume::Volume};
use crate::{
    api::{DefineRotations, Outcome, Part, Role, Rotation, RotationStatus},
    exit::Failure,
};

impl Daemon {
    /// `define schedule`.
    pub async fn define_schedule(
        self: &Arc<Self>,
        name: &VolumeName,
        define: DefineRotations,
    ) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        if volume.role() == Role::Undecided {
            return Err(Failure::refused(format!("volume {name} is neither master nor replica yet")).remedy(
                format!("`zumastor define master {name}` or `zumastor define source {name} HOST` first"),
            ));
        }
        if define.rotations.is_empty() {
            return Err(Failure::usage("no rotation was named")
                .remedy(format!("for example: `zumastor define schedule {name} --hourly 24 --daily 7`")));
        }
        let mut config = volume.config();
        let schedule = with_rotations(&config.schedule, define.rotations)?;
        if schedule == config.schedule {
            return Ok(Outcome::already(format!("volume {name} has these rotations already")));
        }
        config.schedule = schedule;
        self.set_schedule(&volume, config).await?;
        Ok(self.told(Outcome::changed(format!("volume {name} has a schedule: {}", words(&volume))), &volume))
    }

    /// `forget schedule`.
    pub async fn forget_schedule(&self, name: &VolumeName) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        let mut config = volume.config();
        if config.schedule.is_empty() {
            return Err(Failure::failed(format!("volume {name} has no schedule"))
                .remedy(format!("`zumastor status {name}` shows what it has")));
        }
        config.schedule = ScheduleConfig::default();
        self.set_schedule(&volume, config).await?;
        let outcome = Outcome::changed(format!("volume {name} has no schedule any more"));
        Ok(outcome.note(format!("its snapshots stay, until `zumastor delete {name} SNAPSHOT`")))
    }

    /// Puts a configuration into force whose schedule may have changed. What the new one would have taken before is not
    /// made up for.
    pub async fn set_schedule(&self, volume: &Volume, config: VolumeConfig) -> Result<(), Failure> {
        self.write_volume(&volume.name, &config).await?;
        self.settle(volume).await?;
        volume.set_config(config);
        Ok(())
    }

    /// Adds what is good to know about a schedule that was changed.
    pub fn told(&self, outcome: Outcome, volume: &Volume) -> Outcome {
        let (name, config) = (&volume.name, volume.config());
        let limits =
            format!("limits apply when the next snapshot comes; `zumastor plan {name}` shows to which");
        let outcome = outcome.note(limits);
        if config.master.is_none() {
            return outcome.note("this is a replica: what it receives counts, and it takes none itself");
        }
        if volume.is_stopped(&Part::Master) {
            return outcome.note(format!("no snapshots are taken until `zumastor start master {name}`"));
        }
        outcome
    }

    /// The rotations and their next snapshots.
    pub fn rotation_statuses(
        &self,
        volume: &Volume,
        snapshots: &[SnapshotRecord],
        since: Timestamp,
    ) -> Vec<RotationStatus> {
        let config = volume.config();
        let taking = config.master.is_some() && !volume.is_stopped(&Part::Master);
        let (now, zone) = (self.now(), self.clock.zone());
        let next = |spec: &RotationSpec| {
            let every = spec.every.as_ref().filter(|_| taking && spec.keep > 0)?;
            let of = |snapshot: &&SnapshotRecord| {
                snapshot.new.rotations.iter().any(|rotation| rotation == spec.name.as_str())
            };
            let taken = snapshots.iter().filter(of).map(|snapshot| snapshot.new.created).collect();
            due(every, &zone, &Served::new(since, taken), now).or_else(|| every.after(&zone, now))
        };
        let status = |spec: RotationSpec| RotationStatus {
            next: next(&spec),
            name: spec.name,
            keep: spec.keep,
            every: spec.every,
        };
        config.schedule.specs().into_iter().map(status).collect()
    }
}

/// A schedule with rotations added or changed.
pub fn with_rotations(before: &ScheduleConfig, changes: Vec<Rotation>) -> Result<ScheduleConfig, Failure> {
    let mut schedule = before.clone();
    for Rotation { name, keep, every } in changes {
        let every = match &name {
            RotationName::Custom(custom) => {
                every.or_else(|| before.custom.get(custom).and_then(|there| there.every.clone()))
            }
            builtin if every.is_some() => {
                return Err(Failure::usage(format!("rotation {builtin} has times of its own"))
                    .remedy("give a rotation with other times another name"));
            }
            builtin => builtin.every(),
        };
        schedule.set(RotationSpec { name, keep, every });
    }
    schedule.validate().map_err(|error| {
        let most = NewSnapshot::MAX_ROTATIONS;
        Failure::usage(error.to_string()).remedy(format!("a volume has at most {most} rotations"))
    })?;
    Ok(schedule)
}

/// The limits, in a line.
fn words(volume: &Volume) -> String {
    let schedule = volume.config().schedule;
    let spec = |spec: &RotationSpec| format!("{} {}", spec.keep, spec.name);
    let words = schedule.specs().iter().map(spec).collect::<Vec<_>>().join(", ");
    if takes(&schedule) { words } else { format!("{words}, taken only by hand") }
}
