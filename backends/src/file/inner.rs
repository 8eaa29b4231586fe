//! What both modes have in common: opening, the list of snapshots, deletion, the head.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::{fs::SeekFrom, io::Errno};
use serde::{Deserialize, Serialize};
use zumastor_core::{
    Geometry, HeadState, LEAF, NewSnapshot, PAGE, SnapshotNumber, SnapshotReader, SnapshotRecord, StoreError,
    StoreInfo, Usage, digest::LeafTree,
};

use super::{
    FileStoreOptions, Mode,
    draft::Draft,
    head::{HeadMarker, Shown, Stamp, boot_id},
    header::{self, Header},
    held::Held,
    known::KnownChanges,
    layered::{Descriptor, Layers},
    layout::{Described, Layout, failed, numbered, sync_dir, sync_together},
    ready::Ready,
    staging::Staged,
};
use crate::Faults;

/// An open store.
#[derive(Debug)]
pub(crate) struct Inner {
    pub origin: PathBuf,
    pub layout: Layout,
    pub header: Header,
    pub info: StoreInfo,
    pub faults: Faults,
    /// Which start of the machine this is.
    pub boot: String,
    /// A file that was compared with the snapshot that it should show, and whether it does.
    pub vouched: Mutex<Option<(Shown, bool)>>,
    /// From which size on the alternate is made ahead, and whether that is going on.
    pub prepares: Option<u64>,
    pub preparing: AtomicBool,
    /// Held by whoever changes what is on the store, from beginning to end.
    control: Mutex<()>,
    /// Held while leaf trees are computed, so that two who ask do not both compute.
    pub computing: Mutex<()>,
    /// Bytes that a snapshot holds and the next does not share: counted once, for `usage`.
    held: Mutex<Held>,
    /// A clone for what is received next; from which time on it is worth making one, and whether it is.
    ready: Mutex<Option<Ready>>,
    pub clones_ahead: Option<Duration>,
    pub cloning_is_slow: AtomicBool,
    /// What clones were found to differ in.
    pub known: KnownChanges,
    /// The head of the snapshot that was committed last, if it was made on the way.
    draft: Mutex<Option<Draft>>,
    /// Counts whoever took up the staging: only the last one may go on.
    pub staging_generation: AtomicU64,
    /// What is on the store. Held for moments only, and never while taking `control`.
    state: Mutex<State>,
    /// Set when it is unknown what a failed operation left on the disk: opening the store anew finds out.
    broken: AtomicBool,
    _lock: File,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub snapshots: BTreeMap<SnapshotNumber, Kept>,
    /// Snapshots that cannot be read, each with the file and what is wrong with it. Nothing is given back while there are
    /// any, because it is unknown what they need.
    pub damaged: BTreeMap<SnapshotNumber, (PathBuf, String)>,
    pub layers: Layers,
    pub staged: Option<Staged>,
}

impl State {
    /// Whether a number is taken.
    pub(crate) fn has(&self, number: SnapshotNumber) -> bool {
        self.snapshots.contains_key(&number) || self.damaged.contains_key(&number)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub record: SnapshotRecord,
    /// The layer that the snapshot is made of, in layered mode.
    pub layer: Option<u64>,
}

/// The file `snapshots/N/record`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RecordFile {
    pub record: SnapshotRecord,
    pub layer: Option<u64>,
}

impl Described for RecordFile {
    const MAGIC: &'static [u8; 8] = b"ZUMASNP\x01";
}

impl Inner {
    pub(crate) fn open(
        origin: &Path,
        snapstore: PathBuf,
        create: bool,
        options: FileStoreOptions,
    ) -> Result<Self, StoreError> {
        let origin = resolve(origin)?;
        check_apart(&origin, &snapstore)?;
        let layout = Layout::new(snapstore);
        let (header, lock) = header::open(&layout, &origin, create, options.mode)?;
        layout.prepare()?;
        let root = header::file_system(layout.root());
        let info = match header.mode {
            Mode::Reflink => StoreInfo { kind: format!("reflink on {root}"), caution: None },
            Mode::Layered => {
                StoreInfo { kind: format!("layers on {root}"), caution: header::caution(&layout, &origin) }
            }
        };
        let inner = Self {
            origin,
            layout,
            header,
            info,
            faults: options.faults,
            boot: options.boot.unwrap_or_else(boot_id),
            vouched: Mutex::default(),
            prepares: options.prepare,
            preparing: AtomicBool::new(false),
            control: Mutex::new(()),
            computing: Mutex::new(()),
            held: Mutex::default(),
            ready: Mutex::default(),
            clones_ahead: options.clone_ahead,
            cloning_is_slow: AtomicBool::new(false),
            known: KnownChanges::default(),
            draft: Mutex::default(),
            staging_generation: AtomicU64::new(0),
            state: Mutex::default(),
            broken: AtomicBool::new(false),
            _lock: lock,
        };
        inner.load()?;
        Ok(inner)
    }

    fn load(&self) -> Result<(), StoreError> {
        let staged = Staged::load(self)?;
        let layers = Layers::load(&self.layout, staged.as_ref().and_then(|staged| staged.plan.layer))?;
        let (mut snapshots, mut damaged) = (BTreeMap::new(), BTreeMap::new());
        for number in numbered(&self.layout.snapshots())?.into_iter().map(SnapshotNumber) {
            match self.load_snapshot(number, &layers) {
                Ok(kept) => drop(snapshots.insert(number, kept)),
                // The others must not be lost for the sake of one.
                Err(StoreError::Damaged { path, what }) => {
                    tracing::error!(snapshot = %number, path = %path.display(), what, "a snapshot is damaged");
                    damaged.insert(number, (path, what));
                }
                Err(error) => return Err(error),
            }
        }
        *self.state() = State { snapshots, damaged, layers, staged };
        self.clear_flip()?;
        if let Err(error) = self.settle_repairs() {
            // The next scrub takes it up.
            self.unless_stopped(error)?;
        }
        if self.header.mode == Mode::Layered {
            self.collect_data()?;
            if let Err(error) = self.collect_layers() {
                // What could not be given back now is given back later; no snapshot depends on it.
                self.unless_stopped(error)?;
            }
        }
        Ok(())
    }

    fn load_snapshot(&self, number: SnapshotNumber, layers: &Layers) -> Result<Kept, StoreError> {
        let path = self.layout.snapshot(number).join("record");
        let damaged = |what: String| StoreError::Damaged { path: path.clone(), what };
        let file = RecordFile::load(&path)?;
        let RecordFile { mut record, layer } =
            file.ok_or_else(|| damaged(format!("the record of snapshot {number} is missing")))?;
        if number.is_local() && !record.number().is_local() {
            // It was set aside.
            record.new.number = number;
        }
        if record.number() != number {
            return Err(damaged(format!("is the record of snapshot {}", record.number())));
        }
        match (layer, self.header.mode) {
            (Some(layer), Mode::Layered) => layers.check(&self.layout, layer)?,
            (None, Mode::Layered) => return Err(damaged("names no layer".into())),
            (_, Mode::Reflink) => {}
        }
        if record.digest.is_none() {
            let leaves = LeafTree::open(&self.layout.snapshot(number).join("leaves")).ok();
            record.digest = leaves.and_then(|leaves| leaves.digest());
        }
        Ok(Kept { record, layer })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while locked")
    }

    pub(super) fn ready(&self) -> MutexGuard<'_, Option<Ready>> {
        self.ready.lock().expect("no panic while locked")
    }

    pub(super) fn draft(&self) -> MutexGuard<'_, Option<Draft>> {
        self.draft.lock().expect("no panic while locked")
    }

    /// To be held by whoever changes what is on the store.
    pub(crate) fn control(&self) -> Result<MutexGuard<'_, ()>, StoreError> {
        let guard = self.control.lock().expect("no panic while locked");
        if self.is_broken() {
            return Err(StoreError::Unsupported(format!(
                "the snapshot store {} failed while it was being changed: restart to open it anew",
                self.layout.root().display()
            )));
        }
        Ok(guard)
    }

    /// Marks the store as unusable until it is opened anew, when a step failed of which it is unknown how far it got.
    pub(crate) fn or_broken<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if done.is_err() {
            self.broken.store(true, Ordering::Relaxed);
        }
        done
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// For what may fail without harm: reported in the log. A crash of a test is still a crash.
    pub(crate) fn unless_stopped(&self, error: StoreError) -> Result<(), StoreError> {
        if self.faults.stopped() {
            return Err(error);
        }
        tracing::warn!(%error, store = %self.layout.root().display(), "could not tidy up");
        Ok(())
    }

    /// As [`control`](Self::control), without waiting.
    pub(crate) fn try_control(&self) -> Option<MutexGuard<'_, ()>> {
        self.control.try_lock().ok().filter(|_| !self.is_broken())
    }

    pub(crate) fn kept(&self, number: SnapshotNumber) -> Result<Kept, StoreError> {
        let state = self.state();
        if let Some((path, what)) = state.damaged.get(&number) {
            return Err(StoreError::Damaged { path: path.clone(), what: what.clone() });
        }
        state.snapshots.get(&number).cloned().ok_or(StoreError::NotFound { number })
    }

    pub(crate) fn reader(&self, number: SnapshotNumber) -> Result<Arc<dyn SnapshotReader>, StoreError> {
        match self.header.mode {
            Mode::Reflink => Ok(Arc::new(self.image(number)?)),
            Mode::Layered => Ok(Arc::new(self.chain(number)?)),
        }
    }

    pub(crate) fn create(&self, new: NewSnapshot) -> Result<SnapshotRecord, StoreError> {
        let _control = self.control()?;
        let number = new.number;
        if self.state().has(number) {
            return Err(StoreError::Exists { number });
        }
        let origin = File::open(&self.origin).map_err(failed("opening the origin", &self.origin))?;
        let (record, unwritten) = match self.header.mode {
            Mode::Reflink => self.create_reflink(new, &origin)?,
            Mode::Layered => self.create_layered(new, &origin)?,
        };
        if let Some(stamp) = unwritten {
            let marker = HeadMarker(vec![self.showing(&record, stamp)]);
            if let Err(error) = marker.replace(&self.layout.head()) {
                self.unless_stopped(error)?;
            }
        }
        Ok(record)
    }

    /// Makes a finished directory the snapshot, in one durable step.
    pub(crate) fn publish(
        &self,
        dir: &Path,
        record: SnapshotRecord,
        layer: Option<(u64, Descriptor)>,
    ) -> Result<(), StoreError> {
        let place = self.layout.snapshot(record.number());
        self.faults.at("publish: before rename")?;
        fs::rename(dir, &place).map_err(failed("making", &place))?;
        // From here on the snapshot may be there after a crash, whatever is answered.
        self.or_broken((|| {
            self.faults.at("publish: after rename")?;
            let parent = dir.parent().expect("lies in the store");
            let from = File::open(parent).map_err(failed("opening", parent))?;
            sync_together(&self.layout.snapshots(), &[(&from, parent)])
        })())?;
        let mut state = self.state();
        let id = layer.as_ref().map(|(id, _)| *id);
        state.layers.map.extend(layer.map(|(id, descriptor)| (id, Arc::new(descriptor))));
        state.snapshots.insert(record.number(), Kept { record, layer: id });
        Ok(())
    }

    pub(crate) fn delete(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        let _control = self.control()?;
        let kept = self.kept(number)?;
        self.forward_alternate(&kept.record).or_else(|error| self.unless_stopped(error))?;
        let grave = format!("{}-{}", number.0, kept.record.guid());
        self.faults.at("delete: before rename")?;
        self.or_broken(self.layout.bury(&self.layout.snapshot(number), &grave))?;
        self.state().snapshots.remove(&number);
        drop(self.ready().take());
        drop(self.draft().take_if(|draft| draft.is_of(&kept.record)));
        self.faults.at("delete: after rename")?;
        self.layout.empty_grave(&grave);
        self.faults.at("delete: before collecting")?;
        self.tidy_layers()
    }

    /// Gives back what no snapshot needs. That it failed is no reason to say that the deletion failed.
    pub(crate) fn tidy_layers(&self) -> Result<(), StoreError> {
        if self.header.mode == Mode::Reflink {
            return Ok(());
        }
        self.collect_layers().or_else(|error| self.unless_stopped(error))
    }

    pub(crate) fn geometry(&self) -> Result<Geometry, StoreError> {
        let size = Stamp::at(&self.origin)?.map_or(0, |stamp| stamp.size);
        let chunk = if self.header.mode == Mode::Reflink { PAGE } else { LEAF };
        Ok(Geometry { size, chunk })
    }

    pub(crate) fn head(&self) -> Result<HeadState, StoreError> {
        if let Some(shown) = self.shown()? {
            return Ok(HeadState::Shows(shown.number));
        }
        let file = match File::open(&self.origin) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(HeadState::Empty),
            file => file.map_err(failed("opening the origin", &self.origin))?,
        };
        let size = file.metadata().map_err(failed("opening the origin", &self.origin))?.len();
        // Only whether there are data, not where.
        match rustix::fs::seek(&file, SeekFrom::Data(0)) {
            Err(Errno::NXIO) => Ok(HeadState::Empty),
            Err(Errno::INVAL) | Ok(_) => Ok(if size == 0 { HeadState::Empty } else { HeadState::Written }),
            Err(error) => Err(failed("reading", &self.origin)(error.into())),
        }
    }

    pub(crate) fn resize(&self, size: u64) -> Result<(), StoreError> {
        let _control = self.control()?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&self.origin);
        let file = file.map_err(failed("opening the origin", &self.origin))?;
        file.set_len(size).and_then(|()| file.sync_all()).map_err(failed("resizing", &self.origin))?;
        sync_dir(&header::directory(&self.origin))
    }

    pub(crate) fn usage(&self) -> Result<Usage, StoreError> {
        let root = self.layout.root();
        let used = match self.header.mode {
            Mode::Reflink => self.held_by_images()? + blocks(&self.layout.staging()),
            Mode::Layered => {
                let beside = fs::metadata(self.alternate_path()).map_or(0, |file| file.blocks() * 512);
                blocks(root) + beside
            }
        };
        Ok(Usage { used, free: self.free()? })
    }

    pub(crate) fn free(&self) -> Result<u64, StoreError> {
        free_at(self.layout.root())
    }
}

/// Bytes free on the file system of a directory.
pub(super) fn free_at(dir: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| failed("looking at", dir)(e.into()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// The path of the origin without links on the way, so that renaming beside it replaces it and not a link.
fn resolve(origin: &Path) -> Result<PathBuf, StoreError> {
    match fs::canonicalize(origin) {
        Ok(path) if path.is_file() => return Ok(path),
        Ok(path) => {
            return Err(StoreError::Unsupported(format!("the origin {} is no regular file", path.display())));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("looking at the origin", origin)(e)),
    }
    // A flip would replace the link, and what it should have led to would be looked for in vain.
    if fs::symlink_metadata(origin).is_ok() {
        return Err(StoreError::Unsupported(format!(
            "the origin {} is a link to something that does not exist",
            origin.display()
        )));
    }
    let name = origin.file_name();
    let name = name.ok_or_else(|| StoreError::Unsupported(format!("{} names no file", origin.display())))?;
    let dir = header::directory(origin);
    Ok(fs::canonicalize(&dir).map_err(failed("looking at the directory of the origin,", &dir))?.join(name))
}

/// Refuses an origin among what the store keeps, where it would be taken for something of the store's or swept away.
fn check_apart(origin: &Path, snapstore: &Path) -> Result<(), StoreError> {
    let root = fs::canonicalize(snapstore).or_else(|_| std::path::absolute(snapstore));
    if root.is_ok_and(|root| origin.starts_with(root)) {
        return Err(StoreError::Unsupported(format!(
            "the origin {} lies in the snapshot store {}: give another directory",
            origin.display(),
            snapstore.display()
        )));
    }
    Ok(())
}

/// Bytes of the blocks that files below `dir` take; what is deleted meanwhile takes nothing.
fn blocks(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let entries = entries.filter_map(|entry| entry.ok().and_then(|e| Some((e.path(), e.metadata().ok()?))));
    entries.map(|(path, file)| file.blocks() * 512 + if file.is_dir() { blocks(&path) } else { 0 }).sum()
}
