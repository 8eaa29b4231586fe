//! A program on the receiving side that others send to, and what that costs both of them.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{WaitId, WaitIdOptions, waitid};
use zumastor::exit::Failure;
use zumastor_testbed::{Cpu, cpu, descendants, peak_memory};

use super::{
    link::Link,
    measure::{GLANCE, Sample, Spent},
};

/// A program that serves the far side until it is dropped.
pub struct Server<'a> {
    link: &'a Link,
    child: Child,
    at: SocketAddr,
    log: PathBuf,
}

impl<'a> Server<'a> {
    /// Starts what `command` makes for an address, and waits until that answers. What it complains of goes to `log`.
    pub fn start(
        link: &'a Link,
        log: &Path,
        command: impl FnOnce(SocketAddr) -> Result<Command, Failure>,
    ) -> Result<Self, Failure> {
        // The far side has a network of its own, or is this one.
        let free = TcpListener::bind((link.near(), 0)).and_then(|listener| listener.local_addr());
        let port = free.map_err(Failure::doing("finding a free port"))?.port();
        let at = SocketAddr::new(link.far(), port);
        let mut command = command(at)?;
        let errors = File::create(log).map_err(Failure::doing(log.display()))?;
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn();
        let child = spawned.map_err(Failure::doing("starting a server"))?;
        let mut server = Self { link, child, at, log: log.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(at).is_err() {
            let ended = server.child.try_wait().map_err(Failure::doing("waiting for a server"))?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(server.failed(format!("a server does not answer at {at}")));
            }
            std::thread::sleep(GLANCE);
        }
        // What it started for that connection is gone before anything is measured.
        while !descendants(server.child.id()).is_empty() && Instant::now() < deadline {
            std::thread::sleep(GLANCE);
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// Runs a client that sends to it to its end; with what both sides spent, their children included.
    pub fn serve(&self, mut client: Command) -> Result<Sample, Failure> {
        let doing = || Failure::doing::<std::io::Error>("measuring a server and its client");
        let server = self.child.id();
        let before = sum(cpu(server).map_err(doing())?);
        let wire = self.link.bytes().map_err(doing())?;
        let start = Instant::now();
        let mut client = client.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(doing())?;
        let (mut sender, mut receiver) = (Peaks::default(), Peaks::default());
        let mut ended = None;
        let (seconds, spent) = loop {
            let children = descendants(server);
            sender.note(descendants(client.id()).into_iter().chain([client.id()]));
            receiver.note(children.iter().copied());
            if ended.is_none() && gone(&client)? {
                // It can be asked for what it spent until it is waited for, as what it started has been.
                ended = Some((start.elapsed().as_secs_f64(), sum(cpu(client.id()).map_err(doing())?)));
            }
            // What the server started for this client ends after it.
            if let Some(ended) = ended.filter(|_| children.is_empty()) {
                break ended;
            }
            std::thread::sleep(GLANCE);
        };
        let status = client.wait().map_err(doing())?;
        if !status.success() {
            return Err(self.failed(format!("the client ended with {status}")));
        }
        let wire = self.link.bytes().map_err(doing())? - wire;
        // Its children have been waited for: their times are among its own.
        let cpu = sum(cpu(server).map_err(doing())?) - before;
        let peak = match receiver.sum() {
            0 => peak_memory(server).map_err(doing())?,
            children => children,
        };
        let sender = Spent { cpu: spent, peak: sender.sum() };
        Ok(Sample { seconds, sender, receiver: Spent { cpu, peak }, wire })
    }

    /// A failure, with what the server had to say.
    fn failed(&self, what: String) -> Failure {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        Failure::failed(format!("{what}: {}", said.trim()))
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // It has nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs what prepares a transfer and is not measured.
pub fn prepare(command: &mut Command) -> Result<(), Failure> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(Failure::doing(format!("starting {:?}", command.get_program())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::failed(format!("{:?} ended with {}: {}", command.get_program(), output.status, said.trim())))
}

fn gone(client: &Child) -> Result<bool, Failure> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(rustix::process::Pid::from_child(client)), options);
    status.map(|status| status.is_some()).map_err(Failure::doing("waiting for a client"))
}

fn sum(cpu: Cpu) -> f64 {
    cpu.own + cpu.children
}

/// The most memory of each of several processes.
#[derive(Default)]
struct Peaks(HashMap<u32, u64>);

impl Peaks {
    fn note(&mut self, pids: impl IntoIterator<Item = u32>) {
        for pid in pids {
            let peak = self.0.entry(pid).or_default();
            // One that has ended has no memory any more.
            *peak = (*peak).max(peak_memory(pid).unwrap_or(0));
        }
    }

    fn sum(&self) -> u64 {
        self.0.values().sum()
    }
}

/// Longer than any server takes to begin.
const PATIENCE: Duration = Duration::from_secs(10);
