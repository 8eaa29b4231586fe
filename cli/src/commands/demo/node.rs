//! A daemon in a process of its own.

use std::{
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::{Child, Command};

use super::report::Report;
use crate::{api::Status, client::Client, exit::Failure, paths::Paths};

/// One node of the demo. Its daemon dies with this.
pub(super) struct DemoNode {
    pub name: &'static str,
    pub dir: PathBuf,
    pub client: Client,
    pub listen: String,
    child: Child,
}

impl DemoNode {
    /// Starts a new node below `dir`.
    pub async fn start(dir: &Path, name: &'static str) -> Result<Self, Failure> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).map_err(Failure::doing(dir.display()))?;
        // Any free port, but the same one again after a restart.
        let free = UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr());
        let listen = free.map_err(Failure::doing("finding a free UDP port on loopback"))?.to_string();
        let child = spawn(&dir, name, &listen)?;
        let mut node = Self { name, client: Client::new(&Paths::below(&dir)), dir, listen, child };
        node.ready().await?;
        Ok(node)
    }

    /// Kills the daemon as a power cut would: without a word.
    pub async fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill().await.map_err(Failure::doing("killing a daemon"))
    }

    /// Starts the daemon again after [`kill`](Self::kill).
    pub async fn restart(&mut self) -> Result<(), Failure> {
        self.child = spawn(&self.dir, self.name, &self.listen)?;
        self.ready().await
    }

    /// Asks the daemon to end, and waits until it has.
    pub async fn stop(&mut self) -> Result<(), Failure> {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32));
        let asked = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        if asked.is_none_or(|asked| asked.is_err()) {
            return Err(Failure::failed(format!(
                "{} is not running any more: see {}",
                self.name,
                self.log().display()
            )));
        }
        let ended = tokio::time::timeout(WAIT, self.child.wait()).await;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => {
                Err(Failure::failed(format!("{} ended with {status}: {}", self.name, self.last_words())))
            }
            Ok(Err(error)) => Err(Failure::failed(format!("{}: {error}", self.name))),
            Err(_) => Err(Failure::failed(format!("{} did not stop when asked to", self.name))),
        }
    }

    /// Runs a command of this program against this node, as a person would type it, and returns what it printed.
    pub async fn zumastor(&self, args: &[&str], report: &Report) -> Result<String, Failure> {
        report.command(self.name, args);
        let output = Command::new(program()?)
            .args(args)
            .env("ZUMASTOR_ROOT", &self.dir)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(Failure::doing("starting zumastor"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Failure::failed(format!("{}: `zumastor {}` failed: {}", self.name, args.join(" "), said.trim())))
    }

    pub async fn status(&self) -> Result<Status, Failure> {
        self.client.status(None).await
    }

    /// Asks for the status until `find` finds what it looks for.
    pub async fn until<T>(&self, what: &str, find: impl Fn(&Status) -> Option<T>) -> Result<T, Failure> {
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            if let Some(found) = find(&self.status().await?) {
                return Ok(found);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Failure::failed(format!(
                    "waited in vain: {what}; {} says: {}",
                    self.name,
                    self.last_words()
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A path below this node's directory, as an argument.
    pub fn path_str(&self, name: &str) -> Result<&'static str, Failure> {
        let path = self.dir.join(name);
        let text =
            path.to_str().ok_or_else(|| Failure::failed(format!("{} is not UTF-8", path.display())))?;
        // A handful of short strings, for the short life of a demo.
        Ok(Box::leak(text.to_owned().into_boxed_str()))
    }

    async fn ready(&mut self) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            if self.status().await.is_ok() {
                return Ok(());
            }
            let ended = self.child.try_wait().map_err(Failure::doing("waiting for a daemon"))?;
            if ended.is_some() || tokio::time::Instant::now() > deadline {
                return Err(Failure::failed(format!("{} did not start: {}", self.name, self.last_words())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }
}

fn spawn(dir: &Path, name: &str, listen: &str) -> Result<Child, Failure> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("daemon.log"));
    let log = log.map_err(Failure::doing("the daemon's log"))?;
    Command::new(program()?)
        .args(["daemon", "--name", name, "--listen", listen])
        .env("ZUMASTOR_ROOT", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::doing("starting a daemon"))
}

fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(Failure::doing("finding this program"))
}

/// How long anything in the demo may take.
const WAIT: Duration = Duration::from_secs(60);
