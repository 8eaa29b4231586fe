//! `status`: everything there is to know about this node, at one moment.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use tokio::time::timeout;
use zumastor_core::{
    HeadState, Hold, NodeName, PoolRoom, SnapshotGuid, SnapshotNumber, SnapshotRecord, SnapshotStore,
    StoreError, VolumeName, config::VolumeConfig,
};

use super::{
    Daemon, cache,
    epochs::superseded_text,
    holds::blocking,
    lag::{self, Link},
    state::Cursor,
    unsent::unsent,
    volume::Volume,
};
use crate::{
    api::{
        HeadStatus, Health, HoldStatus, Missed, NodeStatus, Part, PoolStatus, STATUS_SCHEMA, ScheduleStatus,
        ScrubReport, ScrubResult, SnapshotStatus, SourceStatus, Status, TargetStatus, TransferRecord,
        VolumeEvent, VolumeStatus, WorkState, WorkStatus, left,
    },
    exit::{Failure, chain},
};

/// How long a store may take to answer before the status is told without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Transfers that are shown for each volume.
const HISTORY_SHOWN: usize = 10;

impl Daemon {
    /// Everything, or one volume; with `usage`, also what each snapshot takes.
    pub async fn status(
        self: &Arc<Self>,
        volume: Option<&VolumeName>,
        usage: bool,
    ) -> Result<Status, Failure> {
        let volumes = match volume {
            Some(name) => vec![self.volume(name)?],
            None => self.all_volumes(),
        };
        // Side by side: one that does not answer costs the patience with it once.
        let tasks: Vec<_> = volumes
            .into_iter()
            .map(|volume| {
                let daemon = self.clone();
                tokio::spawn(async move {
                    let mut status = daemon.volume_status(&volume).await?;
                    if usage && status.health != Health::Unavailable {
                        daemon.add_usage(&volume, &mut status).await?;
                    }
                    Ok::<_, Failure>(status)
                })
            })
            .collect();
        let mut all = Vec::with_capacity(tasks.len());
        for task in tasks {
            all.push(task.await.map_err(Failure::doing("looking at a volume"))??);
        }
        let node = NodeStatus {
            name: self.name.clone(),
            key: self.key.to_string(),
            listen: self.address(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
        };
        Ok(Status { schema: STATUS_SCHEMA, node, volumes: all })
    }

    async fn volume_status(&self, volume: &Arc<Volume>) -> Result<VolumeStatus, Failure> {
        let (config, now) = (volume.config(), self.now());
        // Before the events: an alarm that is told is among them, and so is what is counted.
        let (full, dropped) = (volume.space.full(), volume.space.dropped());
        let remembered = self.remembered(volume).await?;
        let (seen, unavailable) = match timeout(PATIENCE, Seen::look(volume)).await {
            Ok(Ok(seen)) => (seen, None),
            Ok(Err(error)) => (Seen::default(), Some(chain(&error))),
            Err(_) => {
                let store = config.snapstore.display();
                let silent =
                    format!("{store} does not answer: it is still being opened, or its file system hangs");
                (Seen::default(), Some(silent))
            }
        };
        let records = &seen.records;
        let source = config.source.clone().map(|source| {
            let (mut work, wanted) = volume.with_puller(|puller| match puller {
                Some(puller) => (puller.status(), puller.wanted()),
                None => (idle(), None),
            });
            let cursor = remembered.cursor(&source.host);
            let connected = self.node().connected(&source.host);
            let since = remembered.met(&source.host).unwrap_or(self.started);
            let link = Link { now, since, stopped: volume.is_stopped(&Part::Source) };
            let mut lag = lag::from_source(&link, cursor, records, &source, connected.is_some());
            let newest = records.iter().rev().map(SnapshotRecord::number).find(|number| !number.is_local());
            // What is known of the upstream is what it announced, and what comes from it or came in part.
            let coming = work.progress.and_then(|progress| progress.number);
            let wanted = [wanted, coming, seen.staged].into_iter().flatten().max();
            lag.behind = match (wanted, newest) {
                (Some(wanted), Some(newest)) => wanted.0.saturating_sub(newest.0),
                (Some(wanted), None) => wanted.0.saturating_add(1),
                (None, _) => 0,
            };
            add_remedy(&mut work, &volume.name, &source.host);
            let caution = volume.source_caution.lock().expect("no panic while locked").clone();
            SourceStatus { connected, config: source, caution, lag, work }
        });
        let targets: Vec<_> = config
            .target
            .iter()
            .map(|(host, target)| {
                let (mut work, data, wire) = volume.with_target(host, |target| match target {
                    Some(target) => (target.work(host), target.meter.data(), target.meter.wire()),
                    None => (idle(), 0, 0),
                });
                add_remedy(&mut work, &volume.name, host);
                let stopped = volume.is_stopped(&Part::Target(host.clone()));
                let link = Link { now, since: remembered.met(host).unwrap_or(self.started), stopped };
                TargetStatus {
                    host: host.clone(),
                    config: target.clone(),
                    connected: self.node().connected(host),
                    lag: lag::to_target(&link, remembered.cursor(host), records, target),
                    missed: remembered.missed.iter().find(|(of, _)| of == host).map(|(_, missed)| *missed),
                    work,
                    sent_data: data,
                    sent_wire: wire,
                }
            })
            .collect();
        let works =
            || source.iter().map(|source| &source.work).chain(targets.iter().map(|target| &target.work));
        let (mut health, mut trouble) = health(unavailable, works());
        if matches!(health, Health::Ok | Health::Retrying)
            && seen.head == Some(HeadStatus::Written)
            && let Some(written) =
                source.as_ref().and_then(|source| written(&volume.name, &config, source, records))
        {
            (health, trouble) = (Health::Stopped, Some(written));
        }
        let view = volume.snapshotter.view();
        let space = volume.space.status(&config.space, seen.room.as_ref(), dropped);
        let cached = cache::status(&config, seen.opened.as_ref().map_or(0, |store| store.cached()));
        let late = lag::late(source.as_ref(), &targets);
        if let (Health::Ok | Health::Retrying, Some(late)) = (health, late) {
            trouble = Some(trouble.map_or_else(|| late.clone(), |error| format!("{late}; {error}")));
            health = Health::Late;
        }
        if let (Health::Ok | Health::Retrying | Health::Late | Health::Unavailable, Some(full)) =
            (health, full)
        {
            trouble = Some(trouble.map_or_else(|| full.clone(), |other| format!("{full}; {other}")));
            if health != Health::Unavailable {
                health = Health::Full;
            }
        }
        if let (Health::Ok | Health::Retrying | Health::Late | Health::Full, Some(ill)) =
            (health, seen.room.as_ref().and_then(|room| room.trouble.as_ref()))
        {
            (health, trouble) = (Health::Stopped, Some(ill.clone()));
        }
        if let (Health::Ok, Some(error)) = (health, &view.error) {
            (health, trouble) = (Health::Retrying, Some(error.text.clone()));
        }
        let mounts = volume.mounting.view();
        if let (Health::Ok, Some(first)) = (health, mounts.report.troubles.first()) {
            (health, trouble) = (Health::Retrying, Some(first.clone()));
        }
        let superseded = match health {
            Health::Unavailable => None,
            _ => self.superseded(volume).await?,
        };
        let has = |host: &NodeName| remembered.cursor(host).map(|cursor| cursor.common);
        let mut holds = unsent(&config, records, has);
        holds.extend_from_slice(&remembered.holds);
        let mut snapshots = seen.snapshots(&holds);
        for snapshot in &mut snapshots {
            snapshot.scrub = remembered.scrub(snapshot);
            snapshot.mounted = mounts.report.mounted.get(&snapshot.number).cloned();
        }
        if matches!(health, Health::Ok | Health::Retrying | Health::Late)
            && let Some(damaged) = damaged(&volume.name, &snapshots)
        {
            (health, trouble) = (Health::Damaged, Some(damaged));
        }
        if let Some(superseded) = &superseded {
            (health, trouble) = (Health::Stopped, Some(superseded_text(&volume.name, superseded)));
        }
        Ok(VolumeStatus {
            name: volume.name.clone(),
            role: volume.role(),
            superseded,
            health,
            trouble,
            origin: config.origin,
            snapstore: config.snapstore,
            snapshots,
            scrub: volume.scrubber.progress(),
            store: seen.store,
            size: seen.size,
            used: seen.used,
            free: seen.free,
            pool: seen.room.as_ref().map(|room| PoolStatus {
                data: room.data,
                metadata: room.metadata,
                plan: None,
            }),
            all_snapshots: None,
            cache: cached,
            space,
            head: seen.head,
            staged: seen.staged,
            source,
            targets,
            history: remembered.history,
            schedule: (!config.schedule.is_empty()).then(|| ScheduleStatus {
                rotations: self.rotation_statuses(volume, records, remembered.since),
                next: view.next,
                error: view.error,
            }),
            stopped: volume.stopped().into_iter().collect(),
            events: remembered.events,
            mounts: mounts.status(),
            group: config.group,
            hooks: volume.hooks.runs(),
        })
    }

    async fn remembered(&self, volume: &Arc<Volume>) -> Result<Remembered, Failure> {
        let (state, name, config) = (self.state.clone(), volume.name.clone(), volume.config());
        let now = self.now();
        let read = move || {
            let hosts = config.target.into_keys().chain(config.source.map(|source| source.host));
            let (mut cursors, mut missed, mut met) = (Vec::new(), Vec::new(), Vec::new());
            for host in hosts {
                if let Some(link) = state.link(&name, &host)? {
                    met.push((host.clone(), link.since));
                }
                if let Some(misses) = state.missed(&name, &host)? {
                    missed.push((host.clone(), misses));
                }
                if let Some(cursor) = state.cursor(&name, &host)? {
                    cursors.push((host, cursor));
                }
            }
            let (holds, history) = (state.holds(&name)?, state.history(&name, HISTORY_SHOWN)?);
            let events = state.events(&name, HISTORY_SHOWN)?;
            // Where there is no schedule, nothing is to be remembered of it.
            let since = if config.schedule.is_empty() { now } else { state.since(&name, now)? };
            let scrubs = state.scrubs(&name)?.into_iter().collect();
            Ok(Remembered { holds, cursors, missed, met, history, events, since, scrubs })
        };
        Ok(blocking(read).await?)
    }
}

/// What the database says of a volume.
struct Remembered {
    holds: Vec<Hold>,
    cursors: Vec<(NodeName, Cursor)>,
    /// Since when there is something to do with a peer.
    met: Vec<(NodeName, Timestamp)>,
    missed: Vec<(NodeName, Missed)>,
    history: Vec<TransferRecord>,
    events: Vec<VolumeEvent>,
    since: Timestamp,
    scrubs: HashMap<SnapshotGuid, ScrubReport>,
}

impl Remembered {
    fn cursor(&self, host: &NodeName) -> Option<Cursor> {
        self.cursors.iter().find(|(of, _)| of == host).map(|(_, cursor)| *cursor)
    }

    fn met(&self, host: &NodeName) -> Option<Timestamp> {
        self.met.iter().find(|(of, _)| of == host).map(|(_, since)| *since)
    }

    fn scrub(&self, snapshot: &SnapshotStatus) -> Option<ScrubReport> {
        let report = self.scrubs.get(&snapshot.guid)?;
        // It may have another number since.
        Some(ScrubReport { number: snapshot.number, ..report.clone() })
    }
}

/// What the store says of a volume.
#[derive(Default)]
struct Seen {
    opened: Option<Arc<dyn SnapshotStore>>,
    records: Vec<SnapshotRecord>,
    store: Option<zumastor_core::StoreInfo>,
    size: Option<u64>,
    used: Option<u64>,
    free: Option<u64>,
    room: Option<PoolRoom>,
    head: Option<HeadStatus>,
    staged: Option<SnapshotNumber>,
}

impl Seen {
    async fn look(volume: &Volume) -> Result<Self, StoreError> {
        let store = volume.store().await?;
        let usage = store.usage().await?;
        let head = HeadStatus::from(store.head().await?);
        // A replica that has received nothing yet has no size.
        let size = store.geometry().ok().map(|geometry| geometry.size).filter(|size| *size > 0);
        Ok(Self {
            opened: Some(store.clone()),
            records: store.snapshots().await?,
            store: Some(store.info()),
            size,
            used: Some(usage.used),
            free: Some(usage.free),
            room: store.pool().await?,
            head: Some(head),
            staged: store.staged().await?.map(|plan| plan.record.number()),
        })
    }

    fn snapshots(&self, holds: &[Hold]) -> Vec<SnapshotStatus> {
        let device = |number| self.opened.as_ref().and_then(|store| store.device(Some(number)));
        let mut held: BTreeMap<SnapshotNumber, Vec<Hold>> = BTreeMap::new();
        for hold in holds {
            held.entry(hold.number).or_default().push(hold.clone());
        }
        let told = |record: &SnapshotRecord| SnapshotStatus {
            device: device(record.number()),
            ..snapshot_status(record, held.get(&record.number()).map_or(&[], Vec::as_slice))
        };
        self.records.iter().map(told).collect()
    }
}

impl From<HeadState> for HeadStatus {
    fn from(head: HeadState) -> Self {
        match head {
            HeadState::Empty => Self::Empty,
            HeadState::Shows(number) => Self::Snapshot(number),
            HeadState::Written => Self::Written,
        }
    }
}

/// What a snapshot is called: the time it was taken.
pub fn snapshot_name(created: Timestamp, zone: &TimeZone) -> String {
    created.to_zoned_datetime(zone.clone()).strftime("%Y.%m.%d-%H.%M.%S").to_string()
}

/// A snapshot, with those of `holds` that are on it.
pub fn snapshot_status(record: &SnapshotRecord, holds: &[Hold]) -> SnapshotStatus {
    SnapshotStatus {
        number: record.number(),
        name: snapshot_name(record.new.created, &TimeZone::system()),
        guid: record.guid(),
        created: record.new.created,
        rotations: record.new.rotations.clone(),
        group: record.new.group,
        size: record.size,
        digest: record.digest,
        holds: holds.iter().filter(|hold| hold.number == record.number()).map(HoldStatus::from).collect(),
        scrub: None,
        mounted: None,
        device: None,
        usage: None,
    }
}

/// What to say of snapshots that were found to be bad.
fn damaged(name: &VolumeName, snapshots: &[SnapshotStatus]) -> Option<String> {
    let reports = snapshots.iter().filter_map(|snapshot| snapshot.scrub.as_ref());
    let damaged: Vec<_> = reports.filter(|report| report.result == ScrubResult::Damaged).collect();
    let first = damaged.first()?;
    let more = if damaged.len() > 1 { format!(", and {} others", damaged.len() - 1) } else { String::new() };
    let number = first.number;
    Some(format!(
        "snapshot {number} is damaged{more}: {}; `zumastor scrub {name} {number}` repairs it from a node that has it too",
        left(first)
    ))
}

/// Says what to do about an error.
fn add_remedy(work: &mut WorkStatus, volume: &VolumeName, host: &NodeName) {
    if let Some(error) = &mut work.error {
        let remedy = match error.permanent {
            true => format!("put that right, then `zumastor replicate {volume} {host}`"),
            false => {
                format!("it is tried again by itself; `zumastor replicate {volume} {host}` does so at once")
            }
        };
        error.remedy.get_or_insert(remedy);
    }
}

fn idle() -> WorkStatus {
    WorkStatus {
        state: WorkState::Idle,
        progress: None,
        remark: None,
        rate: 0,
        next: None,
        asked: None,
        error: None,
        last: None,
    }
}

/// What to say of a replica whose head is not the snapshot that it should show.
fn written(
    name: &VolumeName,
    config: &VolumeConfig,
    source: &SourceStatus,
    records: &[SnapshotRecord],
) -> Option<String> {
    // What a volume held before it became a replica is kept when the first snapshot comes, and a flip is no change by
    // somebody else.
    let received = records.iter().any(|record| !record.number().is_local());
    let flips =
        matches!(source.work.state, WorkState::Connecting | WorkState::Verifying | WorkState::Flipping);
    (received && !flips).then(|| {
        let (origin, host) = (config.origin.display(), &source.config.host);
        format!(
            "{origin} was written to since it showed a snapshot, and a replica never overwrites what is not its own: \
             move the file away to keep what was written, then `zumastor replicate {name} {host}`"
        )
    })
}

/// The worst that can be said, and why.
fn health<'a>(
    unavailable: Option<String>,
    works: impl Iterator<Item = &'a WorkStatus> + Clone,
) -> (Health, Option<String>) {
    if unavailable.is_some() {
        return (Health::Unavailable, unavailable);
    }
    let error = |permanent| {
        let mut errors = works.clone().filter_map(|work| work.error.as_ref());
        errors.find(|error| error.permanent == permanent).map(|error| error.text.clone())
    };
    match (error(true), error(false)) {
        (Some(text), _) => (Health::Stopped, Some(text)),
        (None, Some(text)) => (Health::Retrying, Some(text)),
        (None, None) => (Health::Ok, None),
    }
}
