//! What the tests of stores share: a volume in a directory, and file systems on loop devices.
#![allow(dead_code, reason = "shared by several test programs, none of which uses all of it")]

use std::{
    fs::{self, File, OpenOptions},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use zumastor_backends::{Faults, FileStore, FileStoreOptions, Mode, conformance::Subject};
use zumastor_core::{SnapshotStore, StoreError, files};

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

    /// Makes and mounts `kind` of `megabytes`; nothing, said loudly, where that cannot be done.
    pub fn make(kind: &str, megabytes: u64) -> Option<Self> {
        let tool = format!("mkfs.{kind}");
        let runs = |tool: &str| kind == "tmpfs" || Command::new(tool).arg("-V").output().is_ok();
        if !rustix::process::geteuid().is_root() || !runs(&tool) {
            return skip(&format!("needs root and {tool}"));
        }
        let dir = tempfile::tempdir().unwrap();
        let (image, mnt) = (dir.path().join("disk"), dir.path().join("mnt"));
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
        Some(Self { dir })
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
