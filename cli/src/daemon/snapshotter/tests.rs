//! Schedules on a clock that the test sets, with the daemon's real database.

mod groups;

use std::{fs, sync::OnceLock, sync::RwLock};

use jiff::tz::TimeZone;
use tokio::sync::Semaphore;
use zumastor_core::{
    HoldOwner, MemoryStore, RotationName, RotationSpec, SnapshotNumber, SnapshotStore, VolumeName,
    config::{MasterConfig, NodeConfig, PeersConfig, VolumeConfig},
};
use zumastor_net::NodeKey;

use super::*;
use crate::{
    api::Part,
    daemon::{clock::Clock, config_files::ConfigFiles, state::State, volume::Stores},
    exit::Exit,
    paths::Paths,
};

/// Goes with tokio's clock, and can be set.
#[derive(Debug)]
struct FakeClock(Mutex<(Instant, Timestamp)>);

impl FakeClock {
    fn set(&self, to: &str) {
        *self.0.lock().unwrap() = (Instant::now(), at(to));
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        let (since, was) = *self.0.lock().unwrap();
        was + SignedDuration::try_from(Instant::now() - since).unwrap()
    }

    fn zone(&self) -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

struct Fixture {
    dir: tempfile::TempDir,
    clock: Arc<FakeClock>,
    store: MemoryStore,
    daemon: Arc<Daemon>,
    volume: Arc<Volume>,
}

impl Fixture {
    /// A master with these rotations at this time.
    async fn new(rotations: &[&str], now: &str) -> Self {
        let clock = Arc::new(FakeClock(Mutex::new((Instant::now(), at(now)))));
        let dir = tempfile::tempdir().unwrap();
        let (store, config) = (MemoryStore::new(1 << 20), config(rotations));
        let (daemon, volume) = up(dir.path(), &clock, &store, config).await;
        Self { dir, clock, store, daemon, volume }
    }

    /// The daemon ends, time passes, and it is started again.
    async fn restart(self, now: &str) -> Self {
        let Self { dir, clock, store, daemon, volume } = self;
        let config = volume.config();
        volume.stop().await;
        drop((daemon, volume));
        clock.set(now);
        let (daemon, volume) = up(dir.path(), &clock, &store, config).await;
        Self { dir, clock, store, daemon, volume }
    }

    /// Lets time pass.
    async fn pass(&self, seconds: u64) {
        sleep(Duration::from_secs(seconds)).await;
    }

    /// The snapshots: number, time, rotations.
    async fn snapshots(&self) -> Vec<String> {
        let all = self.store.snapshots().await.unwrap();
        let shown = all.iter().map(|record| {
            let time = record.new.created.strftime("%d %H:%M:%S");
            format!("{} {time} {}", record.number(), record.new.rotations.join(" "))
        });
        shown.collect()
    }

    async fn numbers(&self) -> Vec<u64> {
        self.store.snapshots().await.unwrap().iter().map(|record| record.number().0).collect()
    }

    fn view(&self) -> View {
        self.volume.snapshotter.view()
    }
}

fn config(rotations: &[&str]) -> VolumeConfig {
    let mut schedule = ScheduleConfig::default();
    for text in rotations {
        let (name, keep) = text.split_once(',').unwrap();
        let builtin = || RotationSpec::new(name.parse().unwrap(), keep.parse().unwrap());
        schedule.set(RotationSpec::parse_custom(text).unwrap_or_else(|_| builtin()));
    }
    VolumeConfig {
        master: Some(MasterConfig::default()),
        schedule,
        ..VolumeConfig::new("/nowhere/v.img", "/nowhere/v.snaps")
    }
}

async fn up(
    dir: &std::path::Path,
    clock: &Arc<FakeClock>,
    store: &MemoryStore,
    config: VolumeConfig,
) -> (Arc<Daemon>, Arc<Volume>) {
    let paths = Paths::below(dir);
    fs::create_dir_all(paths.volumes()).unwrap();
    fs::create_dir_all(paths.state()).unwrap();
    let (files, _) = ConfigFiles::load(&paths).unwrap();
    let daemon = Arc::new(Daemon {
        files: Arc::new(files),
        configured: NodeConfig::default(),
        name: "alpha".parse().unwrap(),
        key: NodeKey::load_or_create(&paths.node_key()).unwrap().public(),
        started: clock.now(),
        clock: clock.clone(),
        state: Arc::new(State::open(&paths.database()).unwrap()),
        stores: Arc::new(Stores::default()),
        node: OnceLock::new(),
        peers: RwLock::new(PeersConfig::default()),
        volumes: RwLock::default(),
        turns: Semaphore::new(1),
        making_room: tokio::sync::Mutex::default(),
        editing: tokio::sync::Mutex::default(),
    });
    let name: VolumeName = "v".parse().unwrap();
    let volume = Arc::new(Volume::new(name.clone(), config, daemon.stores.clone()));
    volume.set_store(Arc::new(store.clone())).await;
    daemon.recall_stopped(&volume).await.unwrap();
    daemon.volumes.write().unwrap().insert(name, volume.clone());
    daemon.start_volume(&volume).await;
    (daemon, volume)
}

#[tokio::test(start_paused = true)]
async fn ticks_share_snapshots_and_limits_apply() {
    let f = Fixture::new(&["hourly,3", "daily,2", "half,1,30m"], "2026-06-01T20:40:00Z").await;
    f.pass(60).await;
    assert_eq!((f.numbers().await.len(), f.view().next), (0, Some(at("2026-06-01T21:00:00Z"))));
    f.pass(2 * 3600).await;
    assert_eq!(
        f.snapshots().await,
        [
            "0 01 21:00:00 hourly half",
            // Midnight in Berlin.
            "2 01 22:00:00 hourly daily half",
            "3 01 22:30:00 half"
        ]
    );
    f.pass(24 * 3600).await;
    assert_eq!(
        f.snapshots().await,
        [
            "2 01 22:00:00 hourly daily half",
            "46 02 20:00:00 hourly half",
            "48 02 21:00:00 hourly half",
            "50 02 22:00:00 hourly daily half",
            "51 02 22:30:00 half"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_is_made_up_for_once() {
    let f = Fixture::new(&["hourly,5"], "2026-06-01T08:30:00Z").await;
    f.pass(3600).await;
    // The machine was off for days.
    let f = f.restart("2026-06-05T10:20:00Z").await;
    f.pass(120).await;
    assert_eq!(f.snapshots().await, ["0 01 09:00:00 hourly", "1 05 10:20:00 hourly"]);
    // The clock is set forward: noticed within a minute.
    f.clock.set("2026-06-07T10:20:00Z");
    f.pass(61).await;
    assert_eq!(f.numbers().await, [0, 1, 2]);
    // And back by half an hour.
    f.clock.set("2026-06-07T10:05:00Z");
    f.pass(50 * 60).await;
    assert_eq!(f.numbers().await, [0, 1, 2]);
    f.pass(6 * 60).await;
    assert_eq!(f.snapshots().await.last().unwrap(), "3 07 11:00:00 hourly");
    // And by days: nobody waits for the tick that was the next.
    f.clock.set("2026-06-05T12:30:00Z");
    f.pass(61).await;
    let taken = f.snapshots().await;
    assert!(taken.last().unwrap().starts_with("4 05 12:30:"), "{taken:?}");
    f.pass(30 * 60).await;
    assert_eq!(f.snapshots().await.last().unwrap(), "5 05 13:00:00 hourly");
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again_and_told_once() {
    let f = Fixture::new(&["hourly,5"], "2026-06-01T08:30:00Z").await;
    let broken = Volume::new("w".parse().unwrap(), config(&["hourly,5"]), f.daemon.stores.clone());
    let broken = Arc::new(broken);
    start(&f.daemon, &broken);
    f.pass(3600).await;
    let error = broken.snapshotter.view().error.unwrap();
    assert!(error.text.contains("/nowhere/v.img does not exist"), "{error:?}");
    assert!(error.next > error.at && error.next < f.daemon.now() + SignedDuration::from_mins(7));
    let events = f.daemon.state.events(&broken.name, 9).unwrap();
    assert_eq!(events.iter().map(|event| event.what).collect::<Vec<_>>(), [EventKind::Failed]);
    let store = MemoryStore::new(1 << 20);
    broken.set_store(Arc::new(store.clone())).await;
    f.pass(7 * 60 + 10).await;
    assert!(broken.snapshotter.view().error.is_none());
    let taken = store.snapshots().await.unwrap();
    assert_eq!(taken.len(), 1, "missed ticks are made up for once");
    broken.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_was_deleted_is_not_taken_again() {
    let f = Fixture::new(&["hourly,5"], "2026-06-01T08:30:00Z").await;
    f.pass(3600).await;
    f.daemon.delete_snapshots(&f.volume.name, &[SnapshotNumber(0)], false).await.unwrap();
    f.volume.snapshotter.wake();
    f.pass(60).await;
    assert_eq!(f.numbers().await, [0; 0]);
    let f = f.restart("2026-06-01T09:59:00Z").await;
    f.pass(30).await;
    assert_eq!(f.numbers().await, [0; 0]);
    f.pass(60).await;
    // Nor is its number given again.
    assert_eq!(f.snapshots().await, ["1 01 10:00:00 hourly"]);
    // Nor is one that was taken by hand in place of a scheduled one.
    f.daemon.stop_part(&f.volume.name, Part::Master).await.unwrap();
    f.pass(3700).await;
    f.daemon.snapshot(&f.volume.name, Some("hourly")).await.unwrap();
    f.daemon.delete_snapshots(&f.volume.name, &[SnapshotNumber(2)], false).await.unwrap();
    f.daemon.start_part(&f.volume.name, Part::Master).await.unwrap();
    f.pass(60).await;
    assert_eq!(f.numbers().await, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_new_rotation_begins_with_its_next_tick() {
    let f = Fixture::new(&["hourly,5"], "2026-06-01T08:30:00Z").await;
    f.pass(3600).await;
    let mut config = f.volume.config();
    config.schedule.set(RotationSpec::new(RotationName::Daily, 3));
    f.daemon.set_schedule(&f.volume, config).await.unwrap();
    f.pass(1200).await;
    assert_eq!(f.snapshots().await, ["0 01 09:00:00 hourly"]);
    // A schedule that goes takes nothing, and one that comes back makes up for nothing.
    let scheduled = f.volume.config();
    let bare = VolumeConfig { schedule: ScheduleConfig::default(), ..scheduled.clone() };
    f.daemon.set_schedule(&f.volume, bare).await.unwrap();
    f.pass(3 * 3600).await;
    assert_eq!((f.numbers().await.len(), f.view().next), (1, None));
    f.daemon.set_schedule(&f.volume, scheduled).await.unwrap();
    f.pass(300).await;
    assert_eq!(f.numbers().await, [0]);
    f.pass(3600).await;
    assert_eq!(f.numbers().await, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_master_takes_nothing_until_it_is_started() {
    let f = Fixture::new(&["hourly,5"], "2026-06-01T08:30:00Z").await;
    f.daemon.stop_part(&f.volume.name, Part::Master).await.unwrap();
    f.pass(3 * 3600).await;
    let f = f.restart("2026-06-01T12:30:00Z").await;
    f.pass(3600).await;
    assert_eq!((f.numbers().await.len(), f.view().next), (0, None));
    f.daemon.snapshot(&f.volume.name, None).await.unwrap();
    f.daemon.start_part(&f.volume.name, Part::Master).await.unwrap();
    f.pass(1).await;
    assert_eq!(f.snapshots().await, ["0 01 13:30:00 ", "1 01 13:30:00 hourly"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_stays_and_what_goes_cannot_be_held() {
    let f = Fixture::new(&["hourly,1"], "2026-06-01T08:30:00Z").await;
    f.pass(3600).await;
    let (name, beta) = (&f.volume.name, HoldOwner::Peer("beta".parse().unwrap()));
    f.daemon.state.hold(name, SnapshotNumber(0), &beta, "base").unwrap();
    f.pass(2 * 3600).await;
    assert_eq!(f.numbers().await, [0, 2]);
    let refused =
        f.daemon.delete_snapshots(name, &[SnapshotNumber(2), SnapshotNumber(0)], false).await.unwrap_err();
    assert!(refused.exit == Exit::Refused && refused.error.contains("replication with beta"), "{refused}");
    assert_eq!(f.numbers().await, [0, 2], "all or none");
    f.volume.doomed.lock().unwrap().insert(SnapshotNumber(2));
    assert!(f.daemon.hold(name, SnapshotNumber(2), "x").await.is_err());
    f.volume.doomed.lock().unwrap().clear();
    f.daemon.hold(name, SnapshotNumber(2), "x").await.unwrap();
    f.daemon.state.release(name, SnapshotNumber(0), &beta, "base").unwrap();
    f.pass(3600).await;
    assert_eq!(f.numbers().await, [2, 3]);
    let dropped = f.daemon.state.events(name, 9).unwrap();
    let dropped: Vec<_> = dropped.iter().map(|event| event.number.unwrap().0).collect();
    assert_eq!(dropped, [0, 1]);
}
