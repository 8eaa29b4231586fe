//! What the tests of stores share: a volume in a directory, and file systems on loop devices.
#![allow(dead_code, reason = "shared by several test programs, none of which uses all of it")]

use std::{
    fs::{self, File, OpenOptions},
    ops::Range,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use zumastor_backends::{
    Faults, FileStore, FileStoreOptions, Mode,
    conformance::{Bytes, Subject},
};
use zumastor_core::{Lineage, NewSnapshot, SnapshotNumber, SnapshotStore, StoreError, files};

/// A volume in a directory of its own, removed in the end.
#[derive(Debug)]
pub struct Volume {
    pub dir: TempDir,
    pub mode: Option<Mode>,
}

impl Volume {
    pub fn new(place: &Path, mode: Option<Mode>) -> Self {
        Self { dir: tempfile::tempdir_in(place).unwrap(), mode }
    }

    pub fn origin(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    pub fn snapstore(&self) -> PathBuf {
        self.dir.path().join("snapshots")
    }

    pub fn store_with(&self, faults: Faults) -> Result<FileStore, StoreError> {
        let (mode, clone_ahead) = (self.mode, Some(Duration::ZERO));
        let options = FileStoreOptions { mode, clone_ahead, faults, ..FileStoreOptions::default() };
        FileStore::open_or_create(self.origin(), self.snapstore(), options)
    }

    pub fn store(&self) -> FileStore {
        self.store_with(Faults::none()).unwrap()
    }

    pub fn image(&self) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.origin()).unwrap()
    }
}

impl Subject for Volume {
    fn open(&mut self, faults: Faults) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        Ok(Arc::new(self.store_with(faults)?))
    }

    fn write_head(&mut self, offset: u64, data: &[u8]) {
        self.image().write_all_at(data, offset).unwrap();
    }

    fn punch_head(&mut self, range: Range<u64>) {
        files::punch_hole(&self.image(), range).unwrap();
    }

    fn read_head(&mut self) -> Vec<u8> {
        fs::read(self.origin()).unwrap_or_default()
    }

    fn damage(&mut self, number: SnapshotNumber, offset: u64, good: &[u8], bad: &[u8], head: bool) -> bool {
        let mut hit = false;
        for path in self.content_files(number) {
            let file = File::open(&path).unwrap();
            let mut found = vec![0; good.len()];
            // A hole is zero whatever happens to the disk.
            let holds =
                !files::data_ranges(&file, offset..offset + good.len() as u64).unwrap_or_default().is_empty();
            if holds && file.read_exact_at(&mut found, offset).is_ok() && found == good {
                overwrite(&path, offset, bad);
                hit = true;
            }
        }
        if hit && head {
            overwrite(&self.origin(), offset, bad);
        }
        hit
    }

    fn damage_tree(&mut self, number: SnapshotNumber, at: u64) {
        let path = self.snapshot_dir(number).join("leaves");
        let Ok(bytes) = fs::read(&path) else { return };
        let at = at % bytes.len() as u64;
        overwrite(&path, at, &[bytes[at as usize] ^ 0x55]);
    }
}

impl Volume {
    pub fn snapshot_dir(&self, number: SnapshotNumber) -> PathBuf {
        self.snapstore().join("snapshots").join(format!("{:010}", number.0))
    }

    /// The files that the content of a snapshot may lie in, without what is being received: that is not a snapshot's yet, and nobody
    /// puts it right.
    pub fn content_files(&self, number: SnapshotNumber) -> Vec<PathBuf> {
        let image = self.snapshot_dir(number).join("image");
        if image.exists() {
            return vec![image];
        }
        let data = fs::read_dir(self.snapstore().join("data")).unwrap();
        let mut files: Vec<PathBuf> = data.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        if self.snapstore().join("staging").exists() {
            files.pop();
        }
        files
    }
}

/// Writes to a file, and nobody can tell by its time.
pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let metadata = fs::metadata(path).unwrap();
    let mode = metadata.permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(metadata.modified().unwrap())).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

/// A file system of its own on a loop device or in memory; unmounted in the end.
#[derive(Debug)]
pub struct Mounted {
    dir: TempDir,
}

impl Mounted {
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The file that is the disk below it.
    pub fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Makes and mounts `kind` of `megabytes`; nothing, said loudly, where that cannot be done.
    pub fn make(kind: &str, megabytes: u64) -> Option<Self> {
        Self::make_in(&std::env::temp_dir(), kind, megabytes)
    }

    /// The same, in a file below `place`.
    pub fn make_in(place: &Path, kind: &str, megabytes: u64) -> Option<Self> {
        let tool = format!("mkfs.{kind}");
        let runs = |tool: &str| kind == "tmpfs" || Command::new(tool).arg("-V").output().is_ok();
        if !rustix::process::geteuid().is_root() || !runs(&tool) {
            return skip(&format!("needs root and {tool}"));
        }
        let dir = tempfile::tempdir_in(place).unwrap();
        let this = Self { dir };
        let (image, mnt) = (this.disk(), this.path());
        fs::create_dir(&mnt).unwrap();
        let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let mounted = if kind == "tmpfs" {
            let size = format!("size={megabytes}m");
            ran(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&mnt))
        } else {
            File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
            ran(Command::new(&tool).arg("-q").arg(&image))
                && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mnt))
        };
        if !mounted {
            return skip(&format!("cannot mount {kind} here"));
        }
        Some(this)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
    }
}

/// Leaves a test out, saying so on stderr and in the list that `ZUMASTOR_SKIPPED` names.
pub fn skip<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("ZUMASTOR_REQUIRE_ROOT_TESTS").is_none_or(|v| v != "1"), "not run: {why}");
    eprintln!("skipped: {why}");
    if let Some(list) = std::env::var_os("ZUMASTOR_SKIPPED") {
        let thread = std::thread::current();
        let line = format!("{}: {why}\n", thread.name().unwrap_or("a test"));
        let list = OpenOptions::new().create(true).append(true).open(list);
        std::io::Write::write_all(&mut list.unwrap(), line.as_bytes()).unwrap();
    }
    None
}

/// Waits for a store's answer.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Set when it is dropped, also by a test that fails: others wait for it in vain otherwise.
pub struct Done<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

pub fn layered() -> Volume {
    Volume::new(&std::env::temp_dir(), Some(Mode::Layered))
}

pub fn fill(volume: &Volume, size: u64, writes: &[(u64, u64, u8)]) {
    let image = volume.image();
    image.set_len(size).unwrap();
    for (at, length, value) in writes {
        image.write_all_at(&vec![*value; *length as usize], *at).unwrap();
    }
}

pub fn take(store: &FileStore, number: u64) {
    wait(store.create_snapshot(NewSnapshot::manual(SnapshotNumber(number), Lineage::generate()))).unwrap();
}

pub fn content(store: &dyn SnapshotStore, number: u64) -> Vec<u8> {
    let reader = wait(store.open_snapshot(SnapshotNumber(number))).unwrap();
    let mut bytes = vec![0; reader.size() as usize];
    reader.read_at(0, &mut bytes).unwrap();
    bytes
}

pub fn numbers(store: &dyn SnapshotStore) -> Vec<u64> {
    wait(store.snapshots()).unwrap().iter().map(|record| record.number().0).collect()
}

pub const SIZE: u64 = 500_000;

/// Snapshots 0, 1 and 2, each another fifth of the volume; the head shows 2.
pub fn three(place: &Path, mode: Mode) -> Volume {
    let volume = Volume::new(place, Some(mode));
    let store = volume.store();
    for number in 0..3 {
        fill(&volume, SIZE, &[(number * 100_000, 100_000, number as u8 + 1), (70_000 * number, 10, 9)]);
        take(&store, number);
        wait(store.leaves(SnapshotNumber(number))).unwrap();
    }
    volume
}

pub fn expected(number: u64) -> Bytes {
    let mut bytes = Bytes(vec![0; SIZE as usize]);
    for n in 0..=number {
        bytes.write(&(n * 100_000, 100_000, n as u8 + 1));
        bytes.write(&(70_000 * n, 10, 9));
    }
    bytes
}

pub fn check_contents(store: &FileStore, step: &str) {
    for record in wait(store.snapshots()).unwrap() {
        let number = record.number();
        if number.0 < 3 {
            let good = expected(number.0);
            assert!(content(store, number.0) == good.0, "snapshot {number} after a stop at {step}");
            assert_eq!(
                wait(store.leaves(number)).unwrap().digest(),
                Some(good.digest()),
                "{number} at {step}"
            );
        }
    }
}
