//! Keeps mounted what is to be mounted of a volume: looks after each change, and again while something is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::tz::TimeZone;
use tokio::{task::JoinHandle, time::sleep};
use zumastor_backends::logical_name;
use zumastor_core::{HeadState, SnapshotNumber, SnapshotRecord, SnapshotStore, config::VolumeConfig, steps};

use super::{Daemon, define::resolved, offer::Offer, status::snapshot_name, volume::Volume};
use crate::{
    api::{MountStatus, Outcome, Part, Role},
    exit::{Failure, chain},
    exports::{self, Share},
    mounts::{self, Busy, Frozen, Options, Plan, Report, Shown, Snapshot},
};

/// Pause before what could not be mounted is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// Most snapshots of a volume that are mounted, the newest: each takes a device and memory of the kernel.
const MOST: usize = 256;

/// What is mounted of a volume, as the rest of the daemon sees it. Dropping it stops the task, and leaves the mounts.
#[derive(Debug, Default)]
pub struct Mounting {
    view: Mutex<View>,
    /// The plan that was carried out last. Held while one is.
    last: Arc<Mutex<Option<Plan>>>,
    /// Snapshots of which it was told already that they stay because something uses them.
    kept: Mutex<BTreeSet<SnapshotNumber>>,
    /// What other machines were offered last.
    offered: Arc<Mutex<Offer>>,
    /// Whether something failed last that no trouble tells of: what is to be mounted was not known, or Samba not told.
    failed: AtomicBool,
    /// Nothing is mounted any more: the daemon ends, or the volume is forgotten.
    closed: Arc<AtomicBool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What is mounted, and where.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What came of the last plan.
    pub report: Report,
    mountpoint: PathBuf,
    snappath: PathBuf,
    notes: Vec<String>,
    share: Option<Share>,
    exported: usize,
}

impl View {
    /// For `status`.
    pub fn status(&self) -> Option<MountStatus> {
        let report = &self.report;
        let status = MountStatus {
            mountpoint: report.shown.map(|_| self.mountpoint.clone()),
            shows: report.shown.flatten(),
            snappath: (!report.mounted.is_empty()).then(|| self.snappath.clone()),
            troubles: report.troubles.clone(),
            exported: self.exported,
            shared: self.share.is_some(),
            notes: self.notes.clone(),
        };
        (status != MountStatus::default()).then_some(status)
    }
}

impl Mounting {
    /// What is mounted.
    pub fn view(&self) -> View {
        self.view.lock().expect("no panic while locked").clone()
    }

    /// Whether the head is mounted, to be written to.
    pub fn shows_head(&self) -> bool {
        self.view().report.shown == Some(None)
    }

    /// The image file that is mounted as the head.
    pub fn image_of(&self, volume: &Volume) -> Option<PathBuf> {
        let origin = volume.config().origin;
        (self.shows_head() && !mounts::is_block_device(&origin)).then_some(origin)
    }

    /// Notes that a snapshot stays because something uses it; false if that was known.
    pub fn note_kept(&self, number: SnapshotNumber) -> bool {
        self.kept.lock().expect("no panic while locked").insert(number)
    }

    /// From now on nothing is mounted, whoever asks.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Ends the task that tries again, and waits for its end.
    pub async fn stop(&self) {
        let task = self.task.lock().expect("no panic while locked").take();
        if let Some(task) = task {
            task.abort();
            // Cancelled, which is what is wanted.
            let _ = task.await;
        }
    }
}

impl Drop for Mounting {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().expect("no panic while locked") {
            task.abort();
        }
    }
}

/// Starts what tries again while something of a volume is not mounted as it should be, unless it runs.
pub fn start(daemon: &Arc<Daemon>, volume: &Arc<Volume>) {
    let mut task = volume.mounting.task.lock().expect("no panic while locked");
    if task.is_none() {
        let (daemon, volume) = (daemon.clone(), volume.clone());
        *task = Some(tokio::spawn(async move {
            loop {
                sleep(RETRY).await;
                let mounting = &volume.mounting;
                if mounting.failed.load(Ordering::Relaxed) || !mounting.view().report.troubles.is_empty() {
                    daemon.mount(&volume).await;
                }
            }
        }));
    }
}

/// Makes the file system on an image hold still if it is mounted here, until what this gives is dropped. Device-mapper does
/// that by itself.
pub async fn hold_still(volume: &Volume) -> Result<Option<Frozen>, Failure> {
    let Some(image) = volume.mounting.image_of(volume) else { return Ok(None) };
    let at = volume.mounting.view().mountpoint;
    let doing = Failure::doing(format!("making {} hold still", at.display()));
    let frozen = tokio::task::spawn_blocking(move || mounts::freeze(&at, &image)).await;
    frozen.expect("holding a file system does not panic").map_err(doing)
}

impl Daemon {
    /// Mounts what is to be mounted of a volume, and takes away what is not. What goes wrong is told by `status`, and tried
    /// again.
    pub async fn mount(&self, volume: &Volume) {
        let planned = self.plan_mounts(volume).await;
        let failed = volume.mounting.failed.swap(planned.is_err(), Ordering::Relaxed);
        let planned = match planned {
            Ok(planned) => planned,
            Err(failure) => {
                // That its store cannot be opened, `status` says already. It is tried again.
                tracing::debug!(volume = %volume.name, error = %failure, "nothing is mounted");
                return;
            }
        };
        let Some(Planned { plan, refused, notes, offer }) = planned else { return };
        let (last, closed) = (volume.mounting.last.clone(), volume.mounting.closed.clone());
        let offered = volume.mounting.offered.clone();
        let carry_out = move || {
            let mut last = last.lock().expect("no panic while locked");
            let first = last.is_none();
            if closed.load(Ordering::Relaxed) {
                return (View::default(), first);
            }
            if first {
                mounts::take_over(&plan);
            }
            let offered_before = offered.lock().expect("no panic while locked").clone();
            if let Some(before) = last.as_ref().filter(|_| offered_before.clients != offer.clients) {
                offered_before.take_back(before);
            }
            if let Some(before) = last.as_ref().filter(|before| !before.same_places(&plan)) {
                offered_before.take_back(before);
                for busy in mounts::unmount_all(before) {
                    tracing::warn!("{busy}, so it stays mounted there");
                }
            }
            offer.prune(&plan);
            let mut troubles = Vec::new();
            let mut report =
                mounts::apply(&plan, &mut |device| troubles.extend(exports::moved(&[device]).err()));
            report.troubles.append(&mut troubles);
            steps::pass("mount: before exporting");
            let exported = offer.exports(&plan, &report);
            let done = if offered_before.clients == offer.clients { offered_before.done } else { Vec::new() };
            report.troubles.extend(exports::sync(&exported, &offer.clients, &done));
            steps::pass("mount: exported");
            if first {
                // A daemon before this one may have been killed in the middle of a flip.
                let left = mounts::left_behind(&plan, &exports::devices_in_use());
                if !left.is_empty() {
                    report.troubles.extend(exports::moved(&left).err());
                }
            }
            if offer.replica && report.shown.is_some() && exports::is_exported(&plan.mountpoint) {
                report.notes.extend(exports::leases_note());
            }
            let view = View {
                share: offer.share(&plan, &report),
                notes: std::mem::take(&mut report.notes),
                exported: exported.len(),
                report,
                mountpoint: plan.mountpoint.clone(),
                snappath: plan.snappath.clone(),
            };
            *last = Some(plan);
            *offered.lock().expect("no panic while locked") = Offer { done: exported, ..offer };
            (view, first)
        };
        let (mut view, first) =
            tokio::task::spawn_blocking(carry_out).await.expect("mounting does not panic");
        view.notes.extend(notes);
        view.report.troubles.extend(refused);
        let before = std::mem::replace(
            &mut *volume.mounting.view.lock().expect("no panic while locked"),
            view.clone(),
        );
        if first || failed || view.share != before.share {
            let written = self.write_shares().await;
            volume.mounting.failed.store(!written, Ordering::Relaxed);
        }
        for trouble in &view.report.troubles {
            // Told once, not with each try.
            if !before.report.troubles.contains(trouble) {
                tracing::warn!(volume = %volume.name, "{trouble}");
            }
        }
    }

    /// As [`mount`](Self::mount), and says what is good to know about it.
    pub async fn mounted(&self, outcome: Outcome, volume: &Volume) -> Outcome {
        self.mount(volume).await;
        let view = volume.mounting.view();
        let outcome = match view.report.shown {
            Some(Some(number)) => outcome.note(format!(
                "it is mounted at {}, where snapshot {number} is seen",
                view.mountpoint.display()
            )),
            Some(None) => outcome.note(format!("it is mounted at {}", view.mountpoint.display())),
            None => outcome,
        };
        view.report
            .troubles
            .iter()
            .fold(outcome, |outcome, trouble| outcome.note(format!("trouble: {trouble}")))
    }

    /// Takes away everything that is mounted of a volume, and tells what could not be.
    pub async fn unmount(&self, volume: &Volume) -> Vec<Busy> {
        if !mounts::can_mount() {
            return Vec::new();
        }
        let Ok(nothing) = self.nothing(volume, &volume.config()).await else { return Vec::new() };
        let (last, offered) = (volume.mounting.last.clone(), volume.mounting.offered.clone());
        let carry_out = move || {
            let mut last = last.lock().expect("no panic while locked");
            let before = last.take().unwrap_or(nothing);
            offered.lock().expect("no panic while locked").take_back(&before);
            mounts::unmount_all(&before)
        };
        let busy = tokio::task::spawn_blocking(carry_out).await.expect("unmounting does not panic");
        *volume.mounting.view.lock().expect("no panic while locked") = View::default();
        self.write_shares().await;
        busy
    }

    /// Tells Samba of the volumes that are shared now; false if that failed.
    async fn write_shares(&self) -> bool {
        static TURN: Mutex<()> = Mutex::new(());
        let (volumes, file) = (self.all_volumes(), self.files.paths().samba_conf());
        let write = move || {
            // So that the last who writes has seen all.
            let _turn = TURN.lock().expect("no panic while locked");
            let shares: Vec<Share> =
                volumes.iter().filter_map(|volume| volume.mounting.view().share).collect();
            exports::write_shares(&file, &shares)
        };
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.expect("writing a file does not panic");
        if let Err(error) = &written {
            tracing::warn!(%error, "Samba could not be told of what is shared");
        }
        written.is_ok()
    }

    /// Takes the head away if it is mounted, so that nobody writes to it and all that was written is in the store.
    pub async fn unmount_head(&self, volume: &Volume) -> Result<(), Failure> {
        if !volume.mounting.shows_head() {
            return Ok(());
        }
        let last = volume.mounting.last.clone();
        let carry_out = move || {
            let last = last.lock().expect("no panic while locked");
            // An NFS server holds on to what it has served.
            if let Err(error) = exports::flush() {
                tracing::warn!("{error}");
            }
            last.as_ref().map_or(Ok(()), mounts::unmount_shown)
        };
        let done = tokio::task::spawn_blocking(carry_out).await.expect("unmounting does not panic");
        let name = &volume.name;
        done.map_err(|busy| {
            Failure::refused(format!("volume {name} is mounted, and {busy}"))
                .remedy("let the programs end, or leave that directory, then repeat the command")
        })
    }

    /// Takes a snapshot's mounts away, so that it can be deleted.
    pub async fn release_mounts(&self, volume: &Volume, record: &SnapshotRecord) -> Result<(), Busy> {
        let Some(device) = self.device_of(volume, record.number()).await else { return Ok(()) };
        let Ok(nothing) = self.nothing(volume, &volume.config()).await else { return Ok(()) };
        let (last, guid) = (volume.mounting.last.clone(), record.guid());
        let carry_out = move || {
            let last = last.lock().expect("no panic while locked");
            mounts::release(last.as_ref().unwrap_or(&nothing), guid, &device, |at| {
                if let Err(error) = exports::retract(at) {
                    tracing::warn!("{error}");
                }
            })
        };
        tokio::task::spawn_blocking(carry_out).await.expect("unmounting does not panic")
    }

    async fn device_of(&self, volume: &Volume, number: SnapshotNumber) -> Option<PathBuf> {
        if !mounts::can_mount() {
            return None;
        }
        volume.store().await.ok()?.device(Some(number))
    }

    /// Takes away what is mounted for volumes that are not defined any more.
    pub async fn sweep_mounts(&self) {
        if !mounts::can_mount() {
            return;
        }
        let known: BTreeSet<String> =
            self.all_volumes().iter().map(|volume| volume.name.to_string()).collect();
        let volumes = self.files.paths().mounts();
        let sweep = move || mounts::sweep(&resolved(&volumes), |name| known.contains(name));
        tokio::task::spawn_blocking(sweep).await.expect("unmounting does not panic");
    }

    async fn nothing(&self, volume: &Volume, config: &VolumeConfig) -> Result<Plan, Failure> {
        let (name, paths) = (&volume.name, self.files.paths());
        let places = [
            config.mountpoint.clone().unwrap_or_else(|| paths.mountpoint(name)),
            config.snappath.clone().unwrap_or_else(|| paths.snappath(name)),
        ];
        // What is mounted is found by where it really is.
        let origin = config.origin.clone();
        let look = move || (places.map(|place| resolved(&place)), logical_name(&origin));
        let looked = tokio::task::spawn_blocking(look).await;
        let ([mountpoint, snappath], logical) = looked.expect("looking at paths does not panic");
        let options = config.mountopts.as_deref().map(Options::parse).transpose();
        Ok(Plan {
            volume: name.clone(),
            logical,
            mountpoint,
            own_mountpoint: config.mountpoint.is_none(),
            snappath,
            options: options.map_err(|error| Failure::usage(error.to_string()))?.unwrap_or_default(),
            shown: None,
            snapshots: Vec::new(),
            links: BTreeMap::new(),
            dotsnapshot: false,
            views: BTreeMap::new(),
            aliases: paths.mount_links(name),
        })
    }

    /// What is to be mounted; nothing at all where this process may not mount and nobody asked for it.
    async fn plan_mounts(&self, volume: &Volume) -> Result<Option<Planned>, Failure> {
        let config = volume.config();
        let asked = asked(&config);
        let nothing = self.nothing(volume, &config).await?;
        if !mounts::can_mount() {
            let why = "nothing is mounted: that takes root (CAP_SYS_ADMIN)".to_owned();
            let mut view = volume.mounting.view.lock().expect("no panic while locked");
            view.notes = if asked { vec![why] } else { Vec::new() };
            return Ok(None);
        }
        if volume.is_stopped(&Part::Volume) || volume.role() == Role::Undecided {
            let offer = Offer::default();
            return Ok(Some(Planned { plan: nothing, refused: Vec::new(), notes: Vec::new(), offer }));
        }
        let store = volume.store().await?;
        let records = store.snapshots().await.map_err(|error| Failure::failed(chain(&error)))?;
        plan(nothing, &config, &*store, &records).await.map(Some)
    }
}

/// What is to be mounted, what cannot be, and what is good to know.
#[derive(Debug)]
struct Planned {
    plan: Plan,
    refused: Vec<String>,
    notes: Vec<String>,
    offer: Offer,
}

/// Whether somebody asked for mounts, and is to be told why there are none.
fn asked(config: &VolumeConfig) -> bool {
    config.mountpoint.is_some()
        || config.snappath.is_some()
        || config.source.as_ref().is_some_and(|source| source.mount_snap || !source.export.is_empty())
        || config.master.as_ref().is_some_and(|m| m.dotsnapshot || m.samba || !m.export.is_empty())
}

async fn plan(
    nothing: Plan,
    config: &VolumeConfig,
    store: &dyn SnapshotStore,
    records: &[SnapshotRecord],
) -> Result<Planned, Failure> {
    let (mut refused, mut notes) = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    let mut all = Vec::new();
    let mut without_device = false;
    for record in records {
        let mut name = snapshot_name(record.new.created, &TimeZone::system());
        if !names.insert(name.clone()) {
            // Two of one second.
            name = format!("{name}.{}", record.number());
        }
        match store.device(Some(record.number())) {
            Some(device) => all.push(Snapshot { number: record.number(), guid: record.guid(), name, device }),
            None => without_device = true,
        }
    }
    let layers = || "snapshots of a store in layers are no files that could be mounted: XFS, btrfs and bcachefs keep them as files";
    let wanted = match (&config.master, &config.source) {
        (Some(master), _) => !master.no_snapmount,
        (None, Some(source)) => source.mount_snap,
        (None, None) => false,
    };
    // A block device is there to be mounted. An image file belongs to whoever writes it, so that is asked for.
    let head = store.device(None);
    let block = head.as_deref().is_some_and(mounts::is_block_device);
    let mounted = block || config.mountpoint.is_some();
    let shown = if !mounted {
        None
    } else if config.master.is_some() {
        head.map(Shown::Head)
    } else {
        let newest = records.iter().rev().map(SnapshotRecord::number).find(|number| !number.is_local());
        let number = match store.head().await? {
            HeadState::Shows(number) => Some(number),
            HeadState::Empty | HeadState::Written => newest,
        };
        let snapshot = number.and_then(|number| all.iter().find(|snapshot| snapshot.number == number));
        if number.is_some() && snapshot.is_none() {
            refused.push(format!("the volume is not mounted: {}", layers()));
        }
        snapshot.cloned().map(Shown::Snapshot)
    };
    if wanted && without_device && asked(config) {
        notes.push(layers().to_owned());
    }
    if wanted && all.len() > MOST {
        notes.push(format!("the newest {MOST} snapshots are mounted, and no more"));
    }
    let snapshots = if wanted { all.split_off(all.len().saturating_sub(MOST)) } else { Vec::new() };
    let links = links(records, &snapshots);
    let master = config.master.as_ref().filter(|master| !master.no_snapmount);
    let samba = master.is_some_and(|master| master.samba);
    let views = if samba { views(records, &snapshots) } else { BTreeMap::new() };
    let dotsnapshot = master.is_some_and(|master| master.dotsnapshot);
    let clients = match (&config.source, master) {
        (Some(source), _) => &source.export[..],
        (None, Some(master)) => &master.export[..],
        (None, None) => &[],
    };
    let lineage = records.last().map(|record| record.new.lineage);
    let offer = Offer {
        clients: clients.iter().filter_map(|client| client.parse().ok()).collect(),
        fsid: lineage.map(|lineage| exports::volume_fsid(lineage.0, nothing.volume.as_str())),
        samba,
        replica: config.source.is_some(),
        done: Vec::new(),
    };
    let plan = Plan { shown, snapshots, links, dotsnapshot, views, ..nothing };
    Ok(Planned { plan, refused, notes, offer })
}

/// `@GMT-…` for each snapshot that is mounted; of two of one second, the first.
fn views(records: &[SnapshotRecord], snapshots: &[Snapshot]) -> BTreeMap<String, String> {
    let records: BTreeMap<_, _> = records.iter().map(|record| (record.number(), record)).collect();
    let mut views = BTreeMap::new();
    for snapshot in snapshots {
        let Some(record) = records.get(&snapshot.number) else { continue };
        let time = snapshot_name(record.new.created, &TimeZone::UTC);
        views.entry(format!("@GMT-{time}")).or_insert_with(|| snapshot.name.clone());
    }
    views
}

/// `hourly.0` leads to the newest hourly snapshot, `hourly.1` to the one before.
fn links(records: &[SnapshotRecord], snapshots: &[Snapshot]) -> BTreeMap<String, String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut newest: Vec<_> = records.iter().collect();
    newest.sort_by_key(|record| std::cmp::Reverse((record.new.created, record.number())));
    let names: BTreeMap<_, _> = snapshots.iter().map(|snapshot| (snapshot.number, &snapshot.name)).collect();
    for record in newest {
        let name = names.get(&record.number());
        for rotation in &record.new.rotations {
            let count = counts.entry(rotation).or_default();
            if let Some(name) = name {
                links.insert(format!("{rotation}.{count}"), (*name).clone());
            }
            *count += 1;
        }
    }
    links
}
