//! What lies between the two sides: loopback, or a cable between two network namespaces.

use std::{io, net::IpAddr, path::Path, process::Command};

use serde::Serialize;
use zumastor::exit::Failure;
use zumastor_testbed::{LongCable, LongPath, Namespaces, Node, NodeOptions, carried, find, is_root};

/// The way that all bytes take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Loopback, with its MTU of 65,536
    Loopback,
    /// Two network namespaces joined by a veth pair with an MTU of 1,500; needs root
    #[value(name = "veth-1500")]
    Veth1500,
    /// The same with an MTU of 9,000; needs root
    #[value(name = "veth-9000")]
    Veth9000,
}

impl Kind {
    fn mtu(self) -> Option<u32> {
        match self {
            Self::Loopback => None,
            Self::Veth1500 => Some(1500),
            Self::Veth9000 => Some(9000),
        }
    }

    /// Checks that it can be had here.
    ///
    /// # Errors
    /// Without root there are no namespaces to join.
    pub fn check(self) -> Result<(), Failure> {
        if self.mtu().is_none() || is_root() {
            return Ok(());
        }
        Err(Failure::failed("network namespaces joined by a veth pair need root")
            .remedy("leave out --path to measure over loopback"))
    }

    /// What it is, in a few words.
    pub fn words(self) -> String {
        match self.mtu() {
            None => "over loopback".to_owned(),
            Some(mtu) => format!("over a veth pair, MTU {mtu}"),
        }
    }
}

/// The two sides and what joins them. This process is on the near one, which sends.
#[derive(Debug)]
pub struct Link {
    namespaces: Option<Namespaces>,
    long: Option<LongCable>,
}

impl Link {
    /// Makes it. Has to be called before this process has threads: they would stay where they are.
    pub fn new(kind: Kind) -> Result<Self, Failure> {
        let Some(mtu) = kind.mtu() else { return Ok(Self { namespaces: None, long: None }) };
        kind.check()?;
        let namespaces = Namespaces::new("bench")?;
        namespaces.mtu(mtu)?;
        namespaces.enter(NEAR)?;
        Ok(Self { namespaces: Some(namespaces), long: None })
    }

    /// A long cable with packets of 1,500 bytes. Needs root, and to be called as early as [`new`](Self::new).
    pub fn long(path: LongPath) -> Result<Self, Failure> {
        Kind::Veth1500.check()?;
        let namespaces = Namespaces::apart("bench")?;
        let long = Some(LongCable::join(&namespaces, path)?);
        namespaces.enter(NEAR)?;
        Ok(Self { namespaces: Some(namespaces), long })
    }

    /// Makes a long cable another one.
    pub fn become_like(&self, path: LongPath) {
        self.long.as_ref().expect("it is a long one").become_like(path);
    }

    /// Address of the side that sends.
    pub fn near(&self) -> IpAddr {
        self.address(NEAR)
    }

    /// Address of the side that receives.
    pub fn far(&self) -> IpAddr {
        self.address(FAR)
    }

    /// A program on the far side; the process is the program's own.
    pub fn at_far(&self, program: &Path) -> Command {
        let Some(namespaces) = &self.namespaces else { return Command::new(program) };
        let mut command = Command::new(find("ip").unwrap_or_else(|| "ip".into()));
        command.args(["netns", "exec", namespaces.name(FAR)]).arg(program);
        command
    }

    /// Starts a node below `dir`, at the far side or the near one.
    pub fn node(&self, program: &Path, dir: &Path, name: &str, far: bool) -> Result<Node, Failure> {
        let address = if far { self.far() } else { self.near() };
        Node::start_with(NodeOptions {
            program: program.to_owned(),
            root: dir.join(name),
            name: name.to_owned(),
            listen: format!("{address}:0"),
            // The near one is where this process is.
            namespace: self
                .namespaces
                .as_ref()
                .filter(|_| far)
                .map(|namespaces| namespaces.name(FAR).to_owned()),
        })
    }

    /// Bytes that have gone over it so far, in both directions.
    pub fn bytes(&self) -> io::Result<u64> {
        match &self.namespaces {
            // What is sent there is received there.
            None => Ok(carried("lo")?.sent),
            Some(_) => carried(Namespaces::CABLE).map(|carried| carried.sent + carried.received),
        }
    }

    fn address(&self, side: usize) -> IpAddr {
        let address = self.namespaces.as_ref().map(|_| Namespaces::address(side));
        address.as_deref().unwrap_or("127.0.0.1").parse().expect("an address")
    }
}

const NEAR: usize = 0;
const FAR: usize = 1;
