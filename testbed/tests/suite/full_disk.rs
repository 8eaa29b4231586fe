//! A replica whose disk is full says so, keeps what it shows, and goes on when there is space.

use std::{fs::File, path::Path, time::Duration};

use crate::common::{PROGRAM, digest, equal, last_error, replicated, root_with, shows};
use rustix::{fs::FallocateFlags, io::Errno};
use zumastor::exit::Failure;
use zumastor_testbed::{FileSystem, Node, Scratch, image, introduce, ran, write_at};

const MIB: u64 = 1 << 20;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes space until at most `left` bytes are free on the file system of `dir`.
fn fill(dir: &Path, left: u64) -> Result<(), Failure> {
    let fill = || -> std::io::Result<()> {
        let file = File::create(dir.join("filler"))?;
        let (mut at, mut step) = (0, MIB);
        loop {
            let space = rustix::fs::statvfs(dir)?;
            if space.f_bavail * space.f_frsize <= left || step < 4096 {
                return file.sync_all();
            }
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), at, step) {
                Ok(()) => at += step,
                // The rest is in small pieces, or kept back by the file system.
                Err(Errno::NOSPC) => step /= 2,
                Err(error) => return Err(error.into()),
            }
        }
    };
    fill().map_err(Failure::doing("filling the disk"))
}

fn empty(dir: &Path) -> Result<(), Failure> {
    std::fs::remove_file(dir.join("filler")).map_err(Failure::doing("emptying the disk"))
}

/// Changes most of the volume and takes a snapshot.
fn change(upstream: &Node, seed: u64) -> Result<(), Failure> {
    let other = upstream.path("other");
    image(&other, 40 * MIB, seed)?;
    let bytes = std::fs::read(&other).map_err(Failure::doing("reading"))?;
    write_at(&upstream.path("v.img"), 4 * MIB, &bytes)?;
    upstream.ok(&["snapshot", "v"]).map(drop)
}

fn names_the_space(error: &str) -> bool {
    ["space", "full"].iter().any(|word| error.to_lowercase().contains(word))
}

fn scenario(kind: FileSystem, size: u64) -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mount"]) {
        return Ok(());
    }
    let plenty = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let small = Scratch::mount(kind, size, &std::env::temp_dir())?;
    let dir = small.path();
    let upstream = Node::start(Path::new(PROGRAM), plenty.path(), "upstream")?;
    let mut downstream = Node::start(Path::new(PROGRAM), plenty.path(), "downstream")?;
    introduce(&upstream, &downstream)?;
    image(&upstream.path("v.img"), 48 * MIB, 1)?;
    replicated(&upstream, (&downstream, dir), &["--ratelimit", "30M"], &[])?;
    downstream.ok(&["replicate", "v", "upstream", "--wait"])?;
    let shown = digest(&downstream)?;
    let unharmed = |downstream: &Node| {
        assert!(shows(&downstream.volume("v")?, 0));
        assert_eq!(digest(downstream)?, shown);
        Ok::<_, Failure>(())
    };

    // Too little space from the beginning.
    change(&upstream, 2)?;
    fill(dir, 12 * MIB)?;
    let refused = downstream.run(&["replicate", "v", "upstream", "--wait"])?;
    println!("before: {}", refused.err.trim());
    assert!(refused.code == 1 && names_the_space(&refused.err), "{refused:?}");
    let told = last_error(&downstream);
    assert!(told.as_ref().is_some_and(|error| names_the_space(error)), "{told:?}");
    // The upstream is told the same.
    let refused = upstream.run(&["replicate", "v", "downstream", "--wait"])?;
    assert!(refused.code == 1 && names_the_space(&refused.err), "{refused:?}");
    unharmed(&downstream)?;

    // Enough in the beginning, and somebody else takes it.
    empty(dir)?;
    let running = downstream.spawn(&["replicate", "v", "upstream", "--wait"])?;
    downstream.wait_for("v", "some data", PATIENCE, |volume| {
        let progress = volume.source.as_ref()?.work.progress?;
        (progress.data > 2 * MIB).then_some(())
    })?;
    fill(dir, 0)?;
    let failed = ran(running)?;
    println!("during: {}", failed.err.trim());
    assert!(failed.code == 1 && names_the_space(&failed.err), "{failed:?}");
    unharmed(&downstream)?;

    // A daemon that is started while the disk is full.
    let code = downstream.down()?;
    assert_eq!(code, 0, "{}", downstream.last_words());
    downstream.up()?;
    let volume = downstream.volume("v")?;
    println!("started on a full disk: {:?}, {:?}", volume.health, volume.trouble);
    assert!(volume.trouble.is_none_or(|trouble| names_the_space(&trouble)));
    assert_eq!(digest(&downstream)?, shown);

    empty(dir)?;
    downstream.ok(&["replicate", "v", "upstream", "--wait"])?;
    assert!(shows(&downstream.volume("v")?, 1));
    equal(&upstream, &downstream)
}

#[test]
fn root_full_xfs() -> Result<(), Failure> {
    scenario(FileSystem::Xfs, 400 * MIB)
}

#[test]
fn root_full_tmpfs() -> Result<(), Failure> {
    scenario(FileSystem::Tmpfs, 260 * MIB)
}
