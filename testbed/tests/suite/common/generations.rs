//! A replica that is mounted and exported by NFS, and files that tell which snapshot they are of.

use std::{
    fs,
    path::{Path, PathBuf},
};

use zumastor::exit::Failure;
use zumastor_testbed::{Node, introduce, output};

use super::{
    PROGRAM,
    mounted::{Place, make},
    nfs,
};

/// Unit of what is written: each page names its generation.
pub const PAGE: usize = 4096;

/// What is written.
pub const FILES: [&str; 3] = ["small", "middle", "large"];

/// Pages of a file in a generation: it becomes longer and shorter.
fn pages(name: &str, generation: u64) -> usize {
    let third = generation as usize % 3 + 1;
    match name {
        "small" => third,
        "middle" => 7 * third,
        _ => 150 * third,
    }
}

/// Writes generation `number` of all files, in place: they keep their identity.
pub fn write(at: &Path, number: u64) {
    for name in FILES {
        let content = number.to_le_bytes().repeat(pages(name, number) * PAGE / 8);
        fs::write(at.join(name), content).unwrap();
    }
}

/// The generation that a file is of; nothing if it is a mix.
pub fn generation(name: &str, content: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(content.get(..8)?.try_into().ok()?);
    let all = content.chunks(8).all(|word| word == number.to_le_bytes());
    (all && content.len() == pages(name, number) * PAGE).then_some(number)
}

/// A master and its replica, which is mounted and exported.
pub struct Pair {
    /// The master.
    pub alpha: Node,
    /// The replica.
    pub beta: Node,
    /// What the volume is called on the replica.
    pub copy: &'static str,
    /// Where the master's volume is mounted, and the replica's.
    pub at: PathBuf,
    pub shown: PathBuf,
}

impl Pair {
    /// Starts two nodes that know each other.
    pub fn nodes(dir: &Path) -> Result<(Node, Node), Failure> {
        let [alpha, beta] = ["alpha", "beta"].map(|name| Node::start(Path::new(PROGRAM), dir, name));
        let (alpha, beta) = (alpha?, beta?);
        introduce(&alpha, &beta)?;
        Ok((alpha, beta))
    }

    /// Defines the volume on both: each with its origin and its snapshot store.
    pub fn define(
        (alpha, beta): (Node, Node),
        copy: &'static str,
        stores: [[&Path; 2]; 2],
        source: &[&str],
    ) -> Result<Self, Failure> {
        let (at, shown) = (alpha.path("at"), Path::new(nfs::ROOT).join("v"));
        for (node, volume, [origin, store], at) in
            [(&alpha, "v", stores[0], &at), (&beta, copy, stores[1], &shown)]
        {
            fs::create_dir(at).map_err(Failure::doing(at.display()))?;
            let [origin, store, at] = [origin, store, at].map(|path| path.to_str().expect("a plain path"));
            node.ok(&["define", "volume", volume, origin, store, "--mountpoint", at, "--yes"])?;
        }
        alpha.ok(&["define", "master", "v", "--no-snapmount"])?;
        alpha.ok(&["define", "target", "v", "beta", "--name", copy])?;
        let define = ["define", "source", copy, "alpha", "--name", "v", "--export=127.0.0.1"];
        beta.ok(&[&define, source].concat())?;
        Ok(Self { alpha, beta, copy, at, shown })
    }

    /// Makes generation `number` a snapshot of the master, and brings it to the replica.
    pub fn replicate(&self, number: u64) -> Result<(), Failure> {
        write(&self.at, number);
        self.alpha.ok(&["snapshot", "v"])?;
        self.beta.ok(&["replicate", self.copy, "alpha", "--wait"]).map(drop)
    }

    /// Ends both daemons, well.
    pub fn end(mut self) -> Result<(), Failure> {
        assert_eq!(self.beta.down()?, 0);
        assert_eq!(self.alpha.down()?, 0);
        Ok(())
    }
}

/// Image files below a place.
pub fn of_images(place: &Place, source: &[&str]) -> Result<Pair, Failure> {
    let (alpha, beta) = Pair::nodes(place.path())?;
    let [a, s, b, t] = [alpha.path("v.img"), alpha.path("v.snaps"), beta.path("v.img"), beta.path("v.snaps")];
    make("ext4", &a)?;
    Pair::define((alpha, beta), "copy", [[&a, &s], [&b, &t]], source)
}

/// Unmounts what is mounted there.
pub fn unmount(at: &Path) -> Result<(), Failure> {
    output("umount", |umount| umount.arg(at)).map(drop)
}
