//! What tests of mounts and exports share: a place whose files share blocks, and volumes with real file systems in them.

use std::{
    fs::{self, File},
    io::Read,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags, openat};
use zumastor::{api::VolumeStatus, exit::Failure};
use zumastor_testbed::{FileSystem, Node, Scratch, introduce, output, own_mounts};

use super::PROGRAM;

/// A place whose files can share blocks, and a volume's image with a file system in it.
pub struct Place {
    scratch: Scratch,
    _dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Result<Self, Failure> {
        own_mounts()?;
        let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
        let scratch = Scratch::mount(FileSystem::Xfs, 8 << 30, dir.path())?;
        Ok(Self { scratch, _dir: dir })
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// The loop devices of files here, but for the one that this place itself is on.
    pub fn loops(&self) -> Vec<String> {
        let files =
            output("losetup", |losetup| losetup.args(["--list", "--noheadings", "--output", "BACK-FILE"]));
        let here = self.path().to_str().expect("a plain path").to_owned();
        files.unwrap_or_default().lines().filter(|file| file.contains(&here)).map(str::to_owned).collect()
    }

    /// What is mounted below here.
    pub fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("there are mounts");
        let here = format!("{}/", self.path().display());
        let at = table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with(&here));
        at.map(str::to_owned).collect()
    }

    #[track_caller]
    pub fn nothing_is_left(&self) {
        assert_eq!(self.mounts(), Vec::<String>::new());
        wait_for("loop devices to go", || self.loops().is_empty().then_some(()));
    }
}

/// Makes a file system in an image.
pub fn make(kind: &str, image: &Path) -> Result<(), Failure> {
    let size = if kind == "ext4" { 64 << 20 } else { 320 << 20 };
    File::create(image).and_then(|file| file.set_len(size)).map_err(Failure::doing(image.display()))?;
    let force: &[&str] = if kind == "ext4" { &["-F"] } else { &[] };
    output(&format!("mkfs.{kind}"), |mkfs| mkfs.arg("-q").args(force).arg(image)).map(drop)
}

/// A node with volume `v`, mounted at `at`, of which it is the master.
pub fn master(place: &Place, kind: &str, options: &[&str]) -> Result<(Node, PathBuf), Failure> {
    let node = Node::start(Path::new(PROGRAM), place.path(), "alpha")?;
    let (image, snapshots, at) = (node.path("v.img"), node.path("v.snaps"), node.path("at"));
    make(kind, &image)?;
    fs::create_dir(&at).map_err(Failure::doing(at.display()))?;
    let paths = [&image, &snapshots, &at].map(|path| path.to_str().expect("a plain path").to_owned());
    node.ok(&["define", "volume", "v", &paths[0], &paths[1], "--mountpoint", &paths[2]])?;
    node.ok(&[&["define", "master", "v"], options].concat())?;
    Ok((node, at))
}

/// Writes generation `number` of everything: two files, each of which names it.
pub fn write(at: &Path, number: u64) {
    for name in FILES {
        let content = format!("{number}\n").repeat(20_000);
        fs::write(at.join(name), content).unwrap();
    }
}

const FILES: [&str; 2] = ["first", "second"];

/// The generation that a directory holds: all of it is of one.
#[track_caller]
pub fn generation(at: &Path) -> u64 {
    read(at).unwrap()
}

pub fn read(at: &Path) -> std::io::Result<u64> {
    // One look at the directory, then only what was seen there.
    let directory = rustix::fs::open(at, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mut numbers = Vec::new();
    for name in FILES {
        let mut text = String::new();
        let file = openat(directory.as_fd(), name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(file).read_to_string(&mut text)?;
        let (number, length) = (text.lines().next().unwrap_or_default().to_owned(), text.lines().count());
        assert!(length == 20_000 && text.lines().all(|line| line == number), "a mix in {name}");
        numbers.push(number.parse::<u64>().unwrap());
    }
    assert!(numbers.iter().all(|number| *number == numbers[0]), "a mix of generations: {numbers:?}");
    Ok(numbers[0])
}

pub fn snapshots(node: &Node) -> Result<PathBuf, Failure> {
    Ok(node.volume("v")?.mounts.and_then(|mounts| mounts.snappath).expect("snapshots are mounted"))
}

#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "waited too long for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
pub fn wait_until(node: &Node, what: &str, as_wanted: impl Fn(&VolumeStatus) -> bool) -> VolumeStatus {
    wait_for(what, || node.volume("v").ok().filter(&as_wanted))
}

/// A program that stands in a directory until it is dropped.
pub struct Standing(pub Child);

impl Standing {
    pub fn in_directory(at: &Path) -> Self {
        let child = Command::new("sleep").arg("1000").current_dir(at).stdin(Stdio::null()).spawn().unwrap();
        Self(child)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
pub fn refused(node: &Node, args: &[&str]) -> String {
    let ran = node.run(args).unwrap();
    assert_eq!(ran.code, 3, "{ran:?}");
    ran.err
}

/// Reads a directory again and again, and gives what it saw, one after the other.
pub fn reader(at: PathBuf, stop: Arc<AtomicBool>) -> thread::JoinHandle<Vec<u64>> {
    thread::spawn(move || {
        let mut seen = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let number = read(&at).expect("there is always one generation to be read");
            if seen.last() != Some(&number) {
                seen.push(number);
            }
        }
        seen
    })
}

/// A master at `alpha` and its replica at `beta`, which shows what it has at the directory that is given back last.
pub fn mounted_pair(
    place: &Place,
    kind: &str,
    source: &[&str],
) -> Result<(Node, Node, PathBuf, PathBuf), Failure> {
    let (alpha, at) = master(place, kind, &["--no-snapmount"])?;
    let beta = Node::start(Path::new(PROGRAM), place.path(), "beta")?;
    introduce(&alpha, &beta)?;
    let shown = beta.path("shown");
    fs::create_dir(&shown).unwrap();
    let paths = [beta.path("v.img"), beta.path("v.snaps"), shown.clone()];
    let paths = paths.map(|path| path.to_str().expect("a plain path").to_owned());
    beta.ok(&["define", "volume", "v", &paths[0], &paths[1], "--mountpoint", &paths[2]])?;
    alpha.ok(&["define", "target", "v", "beta"])?;
    beta.ok(&[&["define", "source", "v", "alpha"], source].concat())?;
    Ok((alpha, beta, at, shown))
}

/// Writes generation `number` at the master, and has the replica show it.
pub fn replicated(alpha: &Node, beta: &Node, at: &Path, number: u64) -> Result<(), Failure> {
    write(at, number);
    alpha.ok(&["snapshot", "v"])?;
    beta.ok(&["replicate", "v", "alpha", "--wait"]).map(drop)
}
