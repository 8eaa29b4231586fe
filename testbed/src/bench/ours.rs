//! Zumastor as a contender: two daemons, and the commands that a person types.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use zumastor::exit::Failure;
use zumastor_testbed::{Node, introduce};

use super::{
    link::Link,
    measure::{Sample, daemons},
};

/// A master and a replica of the image.
pub struct Pair<'a> {
    link: &'a Link,
    upstream: Node,
    downstream: Node,
    image: PathBuf,
}

impl<'a> Pair<'a> {
    /// Starts both below `dir`; nothing is replicated yet, and no snapshot taken.
    pub fn start(link: &'a Link, program: &Path, dir: &Path, image: &Path) -> Result<Self, Failure> {
        let upstream = link.node(program, dir, "upstream", false)?;
        let downstream = link.node(program, dir, "downstream", true)?;
        introduce(&upstream, &downstream)?;
        let snapshots = upstream.path("v.snaps");
        upstream.ok(&["define", "volume", "v", &image.to_string_lossy(), &snapshots.to_string_lossy()])?;
        upstream.ok(&["define", "master", "v"])?;
        upstream.ok(&["define", "target", "v", "downstream"])?;
        downstream.define("v", downstream.root())?;
        downstream.ok(&["define", "source", "v", "upstream"])?;
        Ok(Self { link, upstream, downstream, image: image.to_owned() })
    }

    /// Takes a snapshot and waits for its digest, which is what replication needs. The second sample is the command
    /// alone.
    pub fn snapshot(&mut self) -> Result<(Sample, Sample), Failure> {
        let pid = self.upstream.pid();
        let mut command = Sample::default();
        let whole = daemons(self.link, pid, pid, || {
            let start = Instant::now();
            self.upstream.ok(&["snapshot", "v"])?;
            command.seconds = start.elapsed().as_secs_f64();
            self.upstream.wait_for("v", "the digest", LONG, |volume| {
                volume.snapshots.last().and_then(|snapshot| snapshot.digest)
            })?;
            Ok(())
        })?;
        // What goes over the link meanwhile has nothing to do with it.
        Ok((Sample { receiver: Default::default(), wire: 0, ..whole }, command))
    }

    /// Replicates the newest snapshot.
    pub fn replicate(&self) -> Result<Sample, Failure> {
        daemons(self.link, self.upstream.pid(), self.downstream.pid(), || {
            self.downstream.ok(&["replicate", "v", "upstream", "--wait"]).map(drop)
        })
    }

    /// Checks that the replica's file is the master's, byte for byte.
    pub fn check(&self) -> Result<(), Failure> {
        let replica = self.downstream.path("v.img");
        let (here, there) = (self.upstream.digest(&self.image)?, self.downstream.digest(&replica)?);
        if here == there {
            return Ok(());
        }
        Err(Failure::failed(format!("the replica differs from the master: {there} and {here}")))
    }

    /// What is read to replicate.
    pub fn sources(&self) -> [PathBuf; 2] {
        [self.image.clone(), self.upstream.path("v.snaps")]
    }

    /// How snapshots are kept here, in a sentence.
    pub fn store(&self) -> Result<String, Failure> {
        let volume = self.upstream.volume("v")?;
        Ok(volume.store.map_or_else(|| "unknown".to_owned(), |store| store.kind))
    }
}

/// Longer than anything takes that works.
const LONG: Duration = Duration::from_secs(1800);
