//! Data that went bad beneath a thin pool: a scrub names exactly what, and repairs it from the peer.

use std::{fs, fs::File, os::unix::fs::FileExt, path::Path};

use crate::common::{
    devices::{Head, machine, start},
    mounted::wait_for,
};
use zumastor::{api::Health, exit::Failure};
use zumastor_backends::thin_metadata::ThinMetadata;
use zumastor_testbed::{introduce, lab, output};

const TOOLS: &[&str] = &["blkid", "dmsetup"];

const CHUNK: u64 = 64 << 10;

/// Makes bytes of a volume's snapshot others than they were, on the device that its pool has for data.
fn damage(volume: &str, number: u64, offset: u64) -> Result<(), Failure> {
    let table = output("dmsetup", |c| c.args(["table", &format!("{volume}({number})")]))?;
    let thin = table.split_whitespace().last().and_then(|id| id.parse().ok()).expect("a thin device");
    let pool = format!("{volume}:pool");
    let tell = |message| output("dmsetup", |c| c.args(["message", &pool, "0", message]));
    // The daemon may hold a moment at times, to count what its snapshots use.
    wait_for("the moment", || match tell("reserve_metadata_snap") {
        Err(failure) if failure.error.contains("busy") => None,
        told => Some(told),
    })?;
    let block = offset / CHUNK;
    let found =
        ThinMetadata::open_held(Path::new(&format!("/dev/mapper/{volume}:metadata"))).and_then(|metadata| {
            let mut runs = metadata.mappings(thin, block..block + 1)?;
            runs.next().expect("it is mapped").map(|run| run.data)
        });
    tell("release_metadata_snap")?;
    let data = found.map_err(Failure::doing("the mappings"))?;
    let device = format!("/dev/mapper/{volume}:data");
    let spoil = || {
        let file = File::options().read(true).write(true).open(&device)?;
        let (mut bytes, at) = ([0; 3], data * CHUNK + offset % CHUNK);
        file.read_exact_at(&mut bytes, at)?;
        file.write_all_at(&bytes.map(|byte| byte ^ 0xFF), at)?;
        file.sync_all()?;
        // What memory has of the snapshot is not what the disk has.
        fs::write("/proc/sys/vm/drop_caches", "3")
    };
    spoil().map_err(Failure::doing(device))
}

#[test]
fn lab_what_went_bad_beneath_a_pool_is_named_and_repaired() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, &[("a", 16), ("b", 64), ("c", 16), ("d", 64)]),
        || {
            let (alpha, beta) = (start("alpha")?, start("beta")?);
            introduce(&alpha, &beta)?;
            alpha.ok(&["define", "volume", "v", "/dev/ubda", "/dev/ubdb"])?;
            alpha.ok(&["define", "master", "v", "--no-snapmount"])?;
            alpha.ok(&["define", "target", "v", "beta", "--name", "copy"])?;
            beta.ok(&["define", "volume", "copy", "/dev/ubdc", "/dev/ubdd", "--initialize"])?;
            beta.ok(&["define", "source", "copy", "alpha", "--name", "v"])?;
            let head = Head::open("v");
            for seed in 0..2 {
                head.write(seed..8, seed).map_err(Failure::doing("writing"))?;
                alpha.ok(&["snapshot", "v"])?;
                beta.ok(&["replicate", "copy", "alpha", "--wait"])?;
            }
            assert!(
                beta.ok(&["scrub", "copy", "--all"])?.lines().all(|line| line.ends_with("all as it was"))
            );

            // The newest, which the volume shows, in two places; and one that only the older snapshot has.
            damage("copy", 1, 5 * CHUNK + 7)?;
            damage("copy", 1, 40 * CHUNK + CHUNK - 3)?;
            damage("copy", 0, 100 * CHUNK)?;
            let named = "bytes 327680-393215, 2621440-2686975";
            let found = beta.run(&["scrub", "copy", "1", "--no-repair"])?;
            assert!(found.code == 1 && found.out.contains(named), "{found:?}");
            assert_eq!(beta.volume("copy")?.health, Health::Damaged);
            let older = "bytes 327680-393215, 6553600-6619135";
            let out = beta.ok(&["scrub", "copy", "--all"])?;
            assert!(out.contains(named) && out.contains("repaired from alpha"), "{out}");
            // The first chunk belongs to both: each is repaired for itself.
            assert!(out.contains(older), "{out}");
            assert!(
                beta.ok(&["scrub", "copy", "--all"])?.lines().all(|line| line.ends_with("all as it was"))
            );
            for number in 0..2 {
                let of = |volume: &str| format!("/dev/mapper/{volume}({number})");
                assert_eq!(alpha.digest(Path::new(&of("v")))?, beta.digest(Path::new(&of("copy")))?);
            }
            let (there, here) = ("/dev/mapper/v(1)", "/dev/mapper/copy");
            assert_eq!(alpha.digest(Path::new(there))?, beta.digest(Path::new(here))?);

            // And what comes next is built upon what is right.
            head.write(3..4, 9).map_err(Failure::doing("writing"))?;
            alpha.ok(&["snapshot", "v"])?;
            beta.ok(&["replicate", "copy", "alpha", "--wait"])?;
            assert_eq!(alpha.digest(Path::new("/dev/mapper/v(2)"))?, beta.digest(Path::new(here))?);
            Ok(())
        },
    )
}
