//! What the scenarios share: a master and a replica of one volume.

#[cfg(feature = "device-mapper")]
pub mod devices;
pub mod generations;
pub mod mounted;
pub mod nfs;
pub mod samba;

use std::path::Path;

use zumastor::{
    api::{HeadStatus, VolumeStatus},
    exit::Failure,
};
use zumastor_core::SnapshotNumber;
use zumastor_testbed::{Node, introduce, is_root, skip};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_zumastor-under-test");

/// Two nodes below `dir` that know each other: `upstream`, the master of `v` with snapshot 0 of what `make` makes, and
/// `downstream`, its replica; nothing is replicated yet.
pub fn pair(
    dir: &Path,
    make: impl FnOnce(&Path) -> Result<(), Failure>,
    target: &[&str],
    source: &[&str],
) -> Result<(Node, Node), Failure> {
    pair_in([dir, dir], make, target, source)
}

/// The same, each below a directory of its own.
pub fn pair_in(
    dirs: [&Path; 2],
    make: impl FnOnce(&Path) -> Result<(), Failure>,
    target: &[&str],
    source: &[&str],
) -> Result<(Node, Node), Failure> {
    let upstream = Node::start(Path::new(PROGRAM), dirs[0], "upstream")?;
    let downstream = Node::start(Path::new(PROGRAM), dirs[1], "downstream")?;
    introduce(&upstream, &downstream)?;
    make(&upstream.path("v.img"))?;
    replicated(&upstream, (&downstream, downstream.root()), target, source)?;
    Ok((upstream, downstream))
}

/// Makes one node the master of its `v.img`, and the other its replica in a directory.
pub fn replicated(
    upstream: &Node,
    (downstream, dir): (&Node, &Path),
    target: &[&str],
    source: &[&str],
) -> Result<(), Failure> {
    upstream.define("v", upstream.root())?;
    upstream.ok(&["define", "master", "v"])?;
    upstream.ok(&["snapshot", "v"])?;
    downstream.define("v", dir)?;
    upstream.ok(&[&["define", "target", "v", downstream.name()], target].concat())?;
    downstream.ok(&[&["define", "source", "v", upstream.name()], source].concat())?;
    Ok(())
}

/// Whether the replica's file shows exactly this snapshot.
pub fn shows(volume: &VolumeStatus, number: u64) -> bool {
    volume.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)))
}

/// What went wrong last with the replica, if anything.
pub fn last_error(node: &Node) -> Option<String> {
    node.volume("v").ok()?.source?.work.error.map(|error| error.text)
}

/// Checks that master and replica hold the same, computed from scratch.
pub fn equal(upstream: &Node, downstream: &Node) -> Result<(), Failure> {
    assert_eq!(digest(upstream)?, digest(downstream)?, "the replica differs from the master");
    Ok(())
}

/// Digest of the file that holds a node's volume, computed from scratch.
pub fn digest(node: &Node) -> Result<String, Failure> {
    node.digest(&node.volume("v")?.origin)
}

/// Whether this is root with these programs; otherwise the test is left out, loudly.
pub fn root_with(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools.iter().filter(|tool| zumastor_testbed::find(tool).is_none()).collect();
    if !is_root() {
        skip("needs root");
    } else if !missing.is_empty() {
        skip(&format!("needs {missing:?}"));
    }
    is_root() && missing.is_empty()
}
