//! What a daemon takes of memory for its volumes is bounded by their caches, however large they are.

use std::path::Path;

use crate::common::{PROGRAM, shows};
use zumastor::exit::Failure;
use zumastor_testbed::{Node, image, introduce, peak_memory, ran, reset_peak_memory};

const MIB: u64 = 1 << 20;
/// Many times the smallest cache.
const SIZE: u64 = 160 * MIB;
/// The smallest cache.
const CACHE: u64 = 16 * MIB;
/// What a connection has under way: what may be sent before the other end has said that it came.
const CONNECTION: u64 = 16 * MIB;
/// Everything else: what the allocator keeps, stacks of threads, and pages of the database and of the program that are touched
/// for the first time.
const REST: u64 = 8 * MIB;

/// The most that each of two nodes took beyond what it had before, while volumes were sent from one to the other, each with
/// options of its own for the volumes.
fn peaks(dir: &Path, volumes: &[&str], options: [&[&str]; 2]) -> Result<[u64; 2], Failure> {
    let nodes =
        [Node::start(Path::new(PROGRAM), dir, "alpha")?, Node::start(Path::new(PROGRAM), dir, "beta")?];
    let [alpha, beta] = &nodes;
    introduce(alpha, beta)?;
    for (seed, volume) in (1..).zip(volumes) {
        for (node, options) in nodes.iter().zip(options) {
            let paths = ["img", "snaps"].map(|kind| node.path(&format!("{volume}.{kind}")));
            if node.name() == "alpha" {
                image(&paths[0], SIZE, seed)?;
            }
            let paths = paths.each_ref().map(|path| path.to_str().expect("a plain path"));
            node.ok(&[&["define", "volume", volume, paths[0], paths[1]], options].concat())?;
        }
        alpha.ok(&["define", "master", volume])?;
        alpha.ok(&["snapshot", volume])?;
        alpha.ok(&["define", "target", volume, "beta"])?;
    }
    let mut before = [0; 2];
    for (before, node) in before.iter_mut().zip(&nodes) {
        reset_peak_memory(node.pid()).map_err(Failure::doing("counting anew"))?;
        *before = node.peak_memory()?;
    }
    for volume in volumes {
        beta.ok(&["define", "source", volume, "alpha"])?;
    }
    let all: Vec<_> = volumes
        .iter()
        .map(|volume| beta.spawn(&["replicate", volume, "alpha", "--wait"]))
        .collect::<Result<_, _>>()?;
    for one in all {
        let ran = ran(one)?;
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let mut most = [0; 2];
    for ((most, before), node) in most.iter_mut().zip(before).zip(&nodes) {
        *most = peak_memory(node.pid()).map_err(Failure::doing("the peak"))?.saturating_sub(before);
    }
    for volume in volumes {
        assert!(shows(&beta.volume(volume)?, 0));
    }
    println!(
        "{volumes:?} {options:?}: {:.1} and {:.1} MiB",
        most[0] as f64 / MIB as f64,
        most[1] as f64 / MIB as f64
    );
    Ok(most)
}

const SMALL: &[&str] = &["--cachesize", "16M"];

#[test]
fn a_cache_bounds_both_ends() -> Result<(), Failure> {
    let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    // Over as many streams as are of use: it is the sender that makes do with less.
    let [sender, _] = peaks(dir.path(), &["v"], [SMALL, &[]])?;
    assert!(sender <= CACHE + CONNECTION + REST, "{sender} bytes");
    let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let [_, receiver] = peaks(dir.path(), &["v"], [&[], SMALL])?;
    assert!(receiver <= CACHE + REST, "{receiver} bytes");
    Ok(())
}

#[test]
fn two_volumes_take_what_two_may() -> Result<(), Failure> {
    let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let [sender, receiver] = peaks(dir.path(), &["v", "w"], [SMALL, SMALL])?;
    assert!(sender <= 2 * CACHE + CONNECTION + REST, "{sender} bytes");
    assert!(receiver <= 2 * CACHE + REST, "{receiver} bytes");
    Ok(())
}
