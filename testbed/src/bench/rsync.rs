//! rsync as a contender, through its own daemon: no ssh, no encryption.

use std::{
    collections::HashMap,
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{WaitId, WaitIdOptions, waitid};
use zumastor::exit::Failure;
use zumastor_testbed::{cpu, find, is_root, lo_bytes, output, peak_memory};

use super::measure::{GLANCE, Sample, Spent};

/// Which rsync is installed.
pub fn version() -> Option<String> {
    let said = output("rsync", |rsync| rsync.arg("--version")).ok()?;
    said.lines().next().map(|line| line.split("  ").take(2).collect::<Vec<_>>().join(" "))
}

/// Whether it can make durable what it wrote (3.2.4 and later).
pub fn can_sync() -> bool {
    output("rsync", |rsync| rsync.arg("--help")).is_ok_and(|help| help.contains("--fsync"))
}

/// Sends a file to `name` in `dir` through a fresh rsync daemon.
pub fn run(options: &[&str], from: &Path, dir: &Path, name: &str) -> Result<Sample, Failure> {
    let doing = || Failure::doing::<std::io::Error>("running rsync");
    let daemon = Daemon::start(dir)?;
    let wire = lo_bytes().map_err(doing())?;
    let start = Instant::now();
    let client = Command::new(daemon.program.as_path())
        // Same size and time do not mean same content here.
        .arg("--ignore-times")
        .args(options)
        .arg(from)
        .arg(format!("rsync://127.0.0.1:{}/data/{name}", daemon.port))
        .stdin(Stdio::null())
        .spawn()
        .map_err(doing())?;
    let (sender, receiver_peak, seconds) = watch(client, daemon.child.id(), start)?;
    let wire = lo_bytes().map_err(doing())? - wire;
    // What ended was waited for by the daemon, so that its times are among those of the daemon's children.
    let spent = cpu(daemon.child.id()).map_err(doing())?;
    let receiver = Spent { cpu: spent.own + spent.children, peak: receiver_peak };
    Ok(Sample { seconds, sender, receiver, wire })
}

/// Follows a client and the daemon's children to their end.
fn watch(mut client: Child, daemon: u32, start: Instant) -> Result<(Spent, u64, f64), Failure> {
    let doing = || Failure::doing::<std::io::Error>("watching rsync");
    let pid = rustix::process::Pid::from_child(&client);
    let mut sender = Spent::default();
    let mut peaks = HashMap::new();
    let mut ended = None;
    loop {
        // Still there to be asked what it spent, until it is waited for.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let gone = waitid(WaitId::Pid(pid), options).map_err(|error| doing()(error.into()))?.is_some();
        if gone && ended.is_none() {
            ended = Some(start.elapsed().as_secs_f64());
            sender.cpu = cpu(client.id()).map_err(doing())?.own;
        }
        sender.peak = sender.peak.max(peak_memory(client.id()).unwrap_or(0));
        let children = descendants(daemon);
        for child in &children {
            let peak: &mut u64 = peaks.entry(*child).or_default();
            *peak = (*peak).max(peak_memory(*child).unwrap_or(0));
        }
        if let Some(seconds) = ended.filter(|_| children.is_empty()) {
            let status = client.wait().map_err(doing())?;
            if !status.success() {
                return Err(Failure::failed(format!("rsync ended with {status}")));
            }
            return Ok((sender, peaks.values().sum(), seconds));
        }
        std::thread::sleep(GLANCE);
    }
}

/// The processes that a process started, and theirs.
fn descendants(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<u32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    let theirs: Vec<u32> = children.iter().flat_map(|child| descendants(*child)).collect();
    [children, theirs].concat()
}

/// An rsync daemon that serves one directory, until it is dropped.
struct Daemon {
    program: PathBuf,
    child: Child,
    port: u16,
}

impl Daemon {
    fn start(dir: &Path) -> Result<Self, Failure> {
        let doing = || Failure::doing::<std::io::Error>("starting the rsync daemon");
        let program = find("rsync").ok_or_else(|| Failure::failed("rsync is not installed"))?;
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let port = free.map_err(doing())?.port();
        // Otherwise the daemon becomes nobody.
        let user = if is_root() { "uid = 0\ngid = 0\n" } else { "" };
        let config = format!(
            "use chroot = no\n{user}log file = {}\n[data]\npath = {}\nread only = no\n",
            dir.join("rsyncd.log").display(),
            dir.display()
        );
        let file = dir.join("rsyncd.conf");
        fs::write(&file, config).map_err(doing())?;
        let child = Command::new(&program)
            .args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={port}")])
            .arg(format!("--config={}", file.display()))
            .stdin(Stdio::null())
            .spawn()
            .map_err(doing())?;
        let daemon = Self { program, child, port };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                return Err(Failure::failed("the rsync daemon does not answer"));
            }
            std::thread::sleep(GLANCE);
        }
        while !descendants(daemon.child.id()).is_empty() && Instant::now() < deadline {
            std::thread::sleep(GLANCE);
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
