//! Who reads a replica while it goes from snapshot to snapshot, from other machines and on this one: a guest's kernel has the NFS
//! server and the clients.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::common::{
    generations::{FILES, PAGE, Pair, generation, of_images, unmount, write},
    mounted::{Place, refused, wait_for},
    nfs,
    samba::Samba,
};
use zumastor::exit::Failure;
use zumastor_testbed::{
    lab::{self, Machine},
    output,
};

/// Flips that everybody lives through.
const FLIPS: u64 = 20;

/// What a reader may find in a file that it reads from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sees {
    /// Always one snapshot's content.
    One,
    /// The rest may be of the next snapshot when the flip comes in the middle.
    Next,
}

/// Reads all files again and again, and looks at what it finds.
struct Reader {
    /// The generation that all files have had.
    seen: Arc<AtomicU64>,
    /// How often all files were read.
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<u64>,
}

impl Reader {
    fn start(
        who: &'static str,
        sees: Sees,
        stop: &Arc<AtomicBool>,
        mut read: impl FnMut(&str) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let [seen, rounds] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let (said, counted, stop) = (seen.clone(), rounds.clone(), stop.clone());
        let run = move || {
            let mut last = BTreeMap::from(FILES.map(|name| (name, 0)));
            let (mut mixes, mut reads) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                for name in FILES {
                    let mut found = generation(name, &read(name));
                    if found.is_none() && sees == Sees::Next {
                        // A flip came in the middle: then what is read now is newer than what was read before.
                        mixes += 1;
                        found = generation(name, &read(name)).filter(|number| *number > last[name]);
                    }
                    let number = found.unwrap_or_else(|| panic!("{who}: a mix in {name} after {last:?}"));
                    assert!(number >= last[name], "{who}: {name} went back to {number} after {last:?}");
                    last.insert(name, number);
                    reads += 1;
                }
                said.store(last.values().copied().min().unwrap_or_default(), Ordering::Relaxed);
                counted.fetch_add(1, Ordering::Relaxed);
            }
            println!("{who}: {reads} reads, {mixes} of them with a flip in the middle");
            reads
        };
        Self { seen, rounds, thread: thread::spawn(run) }
    }

    fn wait_for(&self, number: u64) {
        self.wait_until("a reader to see the new snapshot", || self.seen.load(Ordering::Relaxed) >= number);
    }

    /// Waits until all files were read once more, from the first to the last.
    fn wait_for_more(&self) {
        let rounds = self.rounds.load(Ordering::Relaxed);
        self.wait_until("a reader to go on", || self.rounds.load(Ordering::Relaxed) >= rounds + 2);
    }

    fn wait_until(&self, what: &str, so: impl Fn() -> bool) {
        wait_for(what, || (self.thread.is_finished() || so()).then_some(()));
        assert!(!self.thread.is_finished(), "a reader failed");
    }
}

/// Reads a file, given its name.
type Read = Box<dyn FnMut(&str) -> Vec<u8> + Send>;

/// Files, by their names, in a directory.
fn files_below(at: &Path) -> impl FnMut(&str) -> Vec<u8> + Send + 'static {
    let at = at.to_owned();
    move |name| fs::read(at.join(name)).unwrap_or_else(|error| panic!("{}: {error}", at.join(name).display()))
}

/// Everybody reads while flips go by: no error, no mix, and the new contents at once.
fn flips_below_readers(pair: &Pair, raw: Option<Read>) -> Result<(), Failure> {
    let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let share = format!("[v]\npath = {}\nread only = yes", pair.shown.display());
    pair.replicate(1)?;
    let [four, three] = [nfs::client("4.2", &pair.shown)?, nfs::client("3", &pair.shown)?];
    let samba = Arc::new(Samba::start(dir.path(), &share));
    let stop = Arc::new(AtomicBool::new(false));
    let by_samba = {
        let (samba, to) = (samba.clone(), dir.path().to_owned());
        move |name: &str| {
            if name == FILES[0] {
                // All of a round in one session.
                let get = FILES.map(|name| format!("get {name} {}", to.join(name).display()));
                let get = get.join("; ");
                // A session over a flip finds nothing any more; the next one does.
                samba.client(&get).or_else(|_| samba.client(&get)).unwrap();
            }
            fs::read(to.join(name)).unwrap()
        }
    };
    let mut readers = vec![
        Reader::start("on this machine", Sees::One, &stop, files_below(&pair.shown)),
        Reader::start("by Samba", Sees::One, &stop, by_samba),
        Reader::start("by NFS 4.2", Sees::Next, &stop, files_below(&four)),
        Reader::start("by NFS 3", Sees::Next, &stop, files_below(&three)),
    ];
    readers.extend(raw.map(|read| Reader::start("on the device", Sees::One, &stop, read)));
    // Open all the time.
    let held = [&four, &three].map(|at| File::open(at.join("large")).unwrap());
    for number in 2..=FLIPS + 1 {
        println!("flip {}", number - 1);
        let local = File::open(pair.shown.join("large")).unwrap();
        pair.replicate(number)?;
        for reader in &readers {
            reader.wait_for(number);
        }
        let content = |file: &File| {
            let mut content = vec![0; 1000 * PAGE];
            let mut length = 0;
            while let more @ 1.. = file.read_at(&mut content[length..], length as u64).unwrap() {
                length += more;
            }
            content.truncate(length);
            generation("large", &content)
        };
        // On this machine it is what was opened; by NFS it goes on with what is there now.
        assert_eq!(content(&local), Some(number - 1));
        drop(local);
        for file in &held {
            rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)
                .map_err(Failure::doing("advice"))?;
            wait_for("an open file to go on", || (content(file) == Some(number)).then_some(()));
        }
        // Nothing holds on to the old one, so it can be deleted.
        let old = (number - 2).to_string();
        wait_for("the old snapshot to be let go", || {
            (pair.beta.run(&["delete", pair.copy, &old]).unwrap().code == 0).then_some(())
        });
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.thread.join().unwrap() > 0);
    }
    drop((held, samba));
    unmount(&four)?;
    unmount(&three)
}

#[test]
fn lab_twenty_flips_of_images_below_nfs_and_samba() -> Result<(), Failure> {
    lab::inside(
        &[nfs::TOOLS, &["mkfs.xfs", "mkfs.ext4", "losetup", "smbd", "smbclient"]].concat(),
        |_| Ok(Machine::new("solo").memory(1024).modules(nfs::MODULES)),
        || {
            let place = Place::new()?;
            nfs::serve(false)?;
            let pair = of_images(&place, &[])?;
            flips_below_readers(&pair, None)?;
            pair.end()?;
            place.nothing_is_left();
            Ok(())
        },
    )
}

/// The daemon is killed at every third step of a flip: whoever reads goes on, without it and after it has come back, and never sees an older
/// snapshot again.
fn kills_below_readers(pair: &mut Pair) -> Result<(), Failure> {
    pair.replicate(1)?;
    let [four, three] = [nfs::client("4.2", &pair.shown)?, nfs::client("3", &pair.shown)?];
    let stop = Arc::new(AtomicBool::new(false));
    let readers = [
        Reader::start("on this machine", Sees::One, &stop, files_below(&pair.shown)),
        Reader::start("by NFS 4.2", Sees::Next, &stop, files_below(&four)),
        Reader::start("by NFS 3", Sees::Next, &stop, files_below(&three)),
    ];
    let held = [&four, &three].map(|at| File::open(at.join("small")).unwrap());
    let (mut step, mut number, mut near) = (STRIDE, 1, false);
    loop {
        number += 1;
        write(&pair.at, number);
        pair.alpha.ok(&["snapshot", "v"])?;
        pair.beta.kill_at(step)?;
        let replicate = ["replicate", pair.copy, "alpha", "--wait"];
        pair.beta.run(&replicate)?;
        let killed = pair.beta.was_killed()?;
        if killed {
            for reader in &readers {
                reader.wait_for_more();
            }
            pair.beta.up()?;
            let received =
                pair.beta.volume(pair.copy)?.snapshots.iter().any(|one| one.number.0 == number - 1);
            pair.beta.ok(&replicate)?;
            // The flip comes when the snapshot is there; before, it need not be gone through step by step.
            if received && !near {
                (near, step) = (true, step - STRIDE);
            }
        }
        for reader in &readers {
            reader.wait_for(number);
        }
        for file in &held {
            rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)
                .map_err(Failure::doing("advice"))?;
            let mut page = [0; PAGE];
            wait_for("an open file to go on", || {
                file.read_exact_at(&mut page, 0).unwrap();
                (page[..8] == number.to_le_bytes()).then_some(())
            });
        }
        if !killed {
            break;
        }
        step += if near { NEAR } else { STRIDE };
    }
    assert!(near, "no kill came in the middle of a flip");
    println!("{step} steps");
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.thread.join().unwrap() > 0);
    }
    drop(held);
    unmount(&four)?;
    unmount(&three)
}

/// Steps from one kill to the next, until they come near a flip.
const STRIDE: u32 = 16;

/// Steps from one kill to the next, from there on: each takes seconds.
const NEAR: u32 = 3;

#[test]
fn lab_kills_in_the_middle_of_flips_below_nfs() -> Result<(), Failure> {
    lab::inside(
        &[nfs::TOOLS, &["mkfs.xfs", "mkfs.ext4", "losetup"]].concat(),
        |_| Ok(Machine::new("solo").memory(1024).modules(nfs::MODULES)),
        || {
            let place = Place::new()?;
            nfs::serve(false)?;
            let mut pair = of_images(&place, &[])?;
            kills_below_readers(&mut pair)?;
            pair.end()?;
            place.nothing_is_left();
            Ok(())
        },
    )
}

#[cfg(feature = "device-mapper")]
#[test]
fn lab_kills_in_the_middle_of_flips_of_devices_below_nfs() -> Result<(), Failure> {
    lab::inside(&[nfs::TOOLS, DEVICE_TOOLS].concat(), disks, || {
        let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
        let mut pair = of_devices(dir.path())?;
        kills_below_readers(&mut pair)?;
        pair.end()?;
        assert_eq!(fs::read_dir("/dev/mapper").unwrap().count(), 1, "devices are left");
        Ok(())
    })
}

#[cfg(feature = "device-mapper")]
pub const DEVICE_TOOLS: &[&str] = &["mkfs.ext4", "dmsetup", "thin_check", "blkid"];

/// A guest with the disks of a pair.
#[cfg(feature = "device-mapper")]
pub fn disks(lab: &lab::Lab) -> Result<Machine, Failure> {
    const SIZE: u64 = 16 << 20;
    let mut machine = Machine::new("solo").memory(1024).modules(nfs::MODULES).modules(&["dm-thin-pool"]);
    for (name, size) in [("a", SIZE), ("b", 64 << 20), ("c", SIZE), ("d", 64 << 20)] {
        machine = machine.disk(&lab.disk(name, size)?);
    }
    Ok(machine)
}

/// A pair on those, exported.
#[cfg(feature = "device-mapper")]
pub fn of_devices(dir: &Path) -> Result<Pair, Failure> {
    nfs::serve(false)?;
    output("mkfs.ext4", |mkfs| mkfs.args(["-q", "/dev/ubda"]))?;
    let stores = [["/dev/ubda", "/dev/ubdb"], ["/dev/ubdc", "/dev/ubdd"]].map(|of| of.map(Path::new));
    Pair::define(Pair::nodes(dir)?, "copy", stores, &[])
}

/// The same on block devices; who reads the device itself goes over, too.
#[cfg(feature = "device-mapper")]
#[test]
fn lab_twenty_flips_of_devices_below_nfs_and_samba() -> Result<(), Failure> {
    lab::inside(&[nfs::TOOLS, DEVICE_TOOLS, &["smbd", "smbclient", "debugfs"]].concat(), disks, || {
        let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
        let pair = of_devices(dir.path())?;
        let copy = dir.path().join("copy");
        let raw = move |name: &str| {
            if name == FILES[0] {
                let mut device = File::open("/dev/mapper/copy").unwrap();
                std::io::copy(&mut device, &mut File::create(&copy).unwrap()).unwrap();
            }
            content_of(name, &copy)
        };
        flips_below_readers(&pair, Some(Box::new(raw)))?;
        pair.end()?;
        assert_eq!(fs::read_dir("/dev/mapper").unwrap().count(), 1, "devices are left");
        Ok(())
    })
}

/// A file of the ext4 that an image holds.
#[cfg(feature = "device-mapper")]
fn content_of(name: &str, image: &Path) -> Vec<u8> {
    let to = tempfile::NamedTempFile::new().unwrap();
    let dump = format!("dump /{name} {}", to.path().display());
    output("debugfs", |debugfs| debugfs.args(["-R", &dump]).arg(image)).unwrap();
    fs::read(to.path()).unwrap()
}

/// A delegation lets a client go on with what it has without asking. The flip ends it.
#[test]
fn lab_a_flip_ends_delegations() -> Result<(), Failure> {
    lab::inside(
        &[nfs::TOOLS, &["mkfs.xfs", "mkfs.ext4", "losetup"]].concat(),
        |_| Ok(Machine::new("solo").memory(768).modules(nfs::MODULES)),
        || {
            let place = Place::new()?;
            nfs::serve(true)?;
            let pair = of_images(&place, &[])?;
            pair.replicate(1)?;
            let at = nfs::client("4.2", &pair.shown)?;
            for number in 2..=3 {
                let found = |name: &str| generation(name, &fs::read(at.join(name)).unwrap());
                let delegated = || nfs::states().iter().any(|(kind, _)| kind == "deleg");
                wait_for("a delegation", || (found("small").is_some() && delegated()).then_some(()));
                pair.replicate(number)?;
                assert!(!delegated(), "{:?}", nfs::states());
                wait_for("the new snapshot", || (found("small") == Some(number)).then_some(()));
                pair.beta.ok(&["delete", "copy", &(number - 2).to_string()])?;
            }
            let notes = pair.beta.volume("copy")?.mounts.expect("it is mounted").notes;
            assert!(
                notes.iter().any(|note| note.contains("delegations") && note.contains("6 seconds")),
                "{notes:?}"
            );
            unmount(&at)?;
            pair.end()?;
            place.nothing_is_left();
            Ok(())
        },
    )
}

/// A snapshot is not deleted while a client has a file of it open; what is not exported any more is let go.
#[test]
fn lab_nfs_clients_are_users_until_nothing_is_exported() -> Result<(), Failure> {
    lab::inside(
        &[nfs::TOOLS, &["mkfs.xfs", "mkfs.ext4", "losetup"]].concat(),
        |_| Ok(Machine::new("solo").memory(768).modules(nfs::MODULES)),
        || {
            let place = Place::new()?;
            nfs::serve(false)?;
            let snapshots = Path::new(nfs::ROOT).join("snapshots");
            fs::create_dir(&snapshots).map_err(Failure::doing(snapshots.display()))?;
            let pair = of_images(&place, &["--mount-snap"])?;
            pair.beta.ok(&["remount", "copy", "-s", snapshots.to_str().expect("a plain path")])?;
            pair.replicate(1)?;
            pair.replicate(2)?;
            let mounted = |number: usize| pair.beta.volume("copy").unwrap().snapshots[number].mounted.clone();
            let at = nfs::client("4.2", &mounted(0).expect("it is mounted"))?;
            let open = File::open(at.join("large")).unwrap();
            let err = refused(&pair.beta, &["delete", "copy", "0"]);
            assert!(err.contains("the NFS client 127.0.0.1"), "{err}");
            assert_eq!(generation("small", &fs::read(at.join("small")).unwrap()), Some(1));
            drop(open);
            wait_for("a file to be closed", || nfs::states().is_empty().then_some(()));
            pair.beta.ok(&["delete", "copy", "0"])?;
            assert_eq!(fs::read(at.join("small")).unwrap_err().raw_os_error(), Some(STALE));
            output("umount", |umount| umount.arg("-l").arg(&at))?;

            // Of the volume itself, by everybody who ends it.
            let at = nfs::client("4.2", &pair.shown)?;
            for (end, begin) in [("stop", "start"), ("forget", "")] {
                let open = File::open(at.join("large")).unwrap();
                assert!(!nfs::states().is_empty());
                pair.beta.ok(&[end, "volume", "copy"])?;
                assert_eq!(nfs::states(), [].into());
                let of_beta = || place.loops().iter().filter(|file| file.contains("/beta/")).count();
                wait_for("the loop devices to go", || (of_beta() == 0).then_some(()));
                if !begin.is_empty() {
                    pair.beta.ok(&[begin, "volume", "copy"])?;
                    let found = generation("large", &fs::read(at.join("large")).unwrap());
                    assert_eq!(found, Some(2));
                }
                drop(open);
            }
            output("umount", |umount| umount.arg("-l").arg(&at))?;
            pair.end()?;
            place.nothing_is_left();
            Ok(())
        },
    )
}

/// What a client is told of a file whose export is gone.
const STALE: i32 = rustix::io::Errno::STALE.raw_os_error();
