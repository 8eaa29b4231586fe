//! A terabyte with hardly anything in it costs what is in it.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use crate::common::{equal, pair_in, root_with, shows};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use zumastor::exit::Failure;
use zumastor_core::HumanBytes;
use zumastor_testbed::{FileSystem, Scratch, disk_use};

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

/// A terabyte with a hundred pieces of data, a megabyte each.
fn sparse(path: &Path) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        let file = File::create(path)?;
        file.set_len(TIB)?;
        let mut random = SmallRng::seed_from_u64(7);
        let mut piece = vec![0; MIB as usize];
        for at in 0..100 {
            random.fill_bytes(&mut piece);
            // Each in a hundredth of its own, at a page.
            let place = TIB / 100 * at + random.random_range(0..TIB / 100 - MIB);
            file.write_all_at(&piece, place / 4096 * 4096)?;
        }
        file.sync_all()
    };
    write().map_err(Failure::doing(path.display()))
}

/// Gives the bytes of disk that the downstream's files take, as `used` counts them.
fn scenario(dirs: [&Path; 2], used: impl Fn(&Path) -> Result<u64, Failure>) -> Result<u64, Failure> {
    let before = used(dirs[1])?;
    let start = Instant::now();
    let (upstream, downstream) = pair_in(dirs, sparse, &[], &[])?;
    let defined = start.elapsed();
    let start = Instant::now();
    downstream.ok(&["replicate", "v", "upstream", "--wait"])?;
    let copied = start.elapsed();
    assert!(shows(&downstream.volume("v")?, 0));
    let start = Instant::now();
    equal(&upstream, &downstream)?;
    let digested = start.elapsed();
    let size = std::fs::metadata(downstream.path("v.img")).map_err(Failure::doing("the replica"))?.len();
    assert_eq!(size, TIB);
    rustix::fs::sync();
    let (image, snapshots) = (disk_use(&downstream.path("v.img"))?, disk_use(&downstream.path("v.snaps"))?);
    let used = used(dirs[1])? - before;
    println!(
        "1 TiB with 100 MiB in it: defined, with a snapshot, in {defined:.1?}, copied in {copied:.1?}, both digests in \
         {digested:.1?}; the replica takes {}, its snapshots {}, what is shared counted once {}",
        HumanBytes(image),
        HumanBytes(snapshots),
        HumanBytes(used)
    );
    assert!(defined + copied + digested < Duration::from_secs(60), "that took too long");
    Ok(used)
}

/// Without shared blocks the replica's data is there twice: in its snapshot and in the file that shows it.
#[test]
fn a_sparse_terabyte_in_layers() -> Result<(), Failure> {
    let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let used = scenario([dir.path(), dir.path()], |dir| {
        let replica = dir.join("downstream");
        let parts = ["v.img", "v.snaps"].map(|part| replica.join(part));
        parts.iter().filter(|part| part.exists()).map(|part| disk_use(part)).sum()
    })?;
    assert!(used <= 210 * MIB, "{}", HumanBytes(used));
    Ok(())
}

#[test]
fn root_a_sparse_terabyte_on_xfs() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mount"]) {
        return Ok(());
    }
    let mount = || Scratch::mount(FileSystem::Xfs, 1 << 30, &std::env::temp_dir());
    let (upstream, downstream) = (mount()?, mount()?);
    // What the file system has given away, by which shared blocks count once; the daemon's own state included.
    let used = scenario([upstream.path(), downstream.path()], |dir| {
        let all = rustix::fs::statvfs(dir).map_err(Failure::doing("statvfs"))?;
        Ok((all.f_blocks - all.f_bfree) * all.f_frsize)
    })?;
    assert!(used <= 110 * MIB, "{}", HumanBytes(used));
    Ok(())
}
