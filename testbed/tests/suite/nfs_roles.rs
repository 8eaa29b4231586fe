//! Who reads a replica by NFS while it becomes the master, and while that goes back.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::common::{
    generations::{FILES, Pair, generation, of_images, unmount, write},
    mounted::{Place, refused, wait_for},
    nfs,
};
use zumastor::exit::Failure;
use zumastor_testbed::lab::{self, Machine};

/// The generation that all files at `at` are of, if it is one.
fn shown(at: &Path) -> io::Result<Option<u64>> {
    let mut found = Vec::new();
    for name in FILES {
        found.push(generation(name, &fs::read(at.join(name))?));
    }
    Ok(found[0].filter(|_| found.iter().all(|one| *one == found[0])))
}

/// Reads all the time, and fails as soon as anything cannot be read.
fn keep_reading(at: PathBuf, stop: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            for name in FILES {
                fs::read(at.join(name)).unwrap_or_else(|error| panic!("{name} in {}: {error}", at.display()));
            }
        }
    })
}

/// The replica is promoted and written to, and clients read on; it goes back to its first snapshot, and they see it.
fn roles_below_readers(pair: &Pair) -> Result<(), Failure> {
    for number in 1..=3 {
        pair.replicate(number)?;
    }
    let clients = [nfs::client("4.2", &pair.shown)?, nfs::client("3", &pair.shown)?];
    let stop = Arc::new(AtomicBool::new(false));
    let readers = clients.clone().map(|at| keep_reading(at, stop.clone()));
    let all_see = |number| {
        for at in &clients {
            wait_for("a client to see it", || (shown(at).unwrap() == Some(number)).then_some(()));
        }
        assert_eq!(shown(&pair.shown).unwrap(), Some(number));
    };
    all_see(3);
    pair.beta.ok(&["promote", pair.copy])?;
    all_see(3);
    write(&pair.shown, 4);
    all_see(4);
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    // The volume is not there for a moment, so that nobody reads it now.
    let went_back = pair.beta.run(&["revert", pair.copy, "0"])?;
    assert_eq!(went_back.code, 0, "{went_back:?}");
    all_see(1);
    // What was there before is not lost, and can be gone back to as well.
    assert!(went_back.err.contains("kept as snapshot 3"), "{went_back:?}");
    pair.beta.ok(&["revert", pair.copy, "3"])?;
    all_see(4);
    // Nobody takes it from under a client that has something open.
    let open = File::open(clients[0].join("large")).map_err(Failure::doing("a file"))?;
    let err = refused(&pair.beta, &["revert", pair.copy, "0"]);
    assert!(err.contains("the NFS client 127.0.0.1"), "{err}");
    all_see(4);
    drop(open);
    clients.iter().try_for_each(|at| unmount(at))
}

#[test]
fn lab_roles_change_below_nfs_on_images() -> Result<(), Failure> {
    lab::inside(
        &[nfs::TOOLS, &["mkfs.xfs", "mkfs.ext4", "losetup"]].concat(),
        |_| Ok(Machine::new("solo").memory(1024).modules(nfs::MODULES)),
        || {
            let place = Place::new()?;
            nfs::serve(false)?;
            let pair = of_images(&place, &[])?;
            roles_below_readers(&pair)?;
            pair.end()?;
            place.nothing_is_left();
            Ok(())
        },
    )
}

#[cfg(feature = "device-mapper")]
#[test]
fn lab_roles_change_below_nfs_on_devices() -> Result<(), Failure> {
    use crate::nfs::{DEVICE_TOOLS, disks, of_devices};
    lab::inside(&[nfs::TOOLS, DEVICE_TOOLS].concat(), disks, || {
        let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
        let pair = of_devices(dir.path())?;
        roles_below_readers(&pair)?;
        pair.end()?;
        assert_eq!(fs::read_dir("/dev/mapper").unwrap().count(), 1, "devices are left");
        Ok(())
    })
}
