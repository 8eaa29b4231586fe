//! A node: a daemon in a process of its own, and commands against it as a person types them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;
use zumastor::{
    api::{Replicate, ReplicateEvent, Status, VolumeStatus},
    client::Client,
    exit::Failure,
    paths::Paths,
};
use zumastor_core::VolumeName;

use crate::{process::peak_memory, tools::find};

/// What a node needs to start.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The `zumastor` program.
    pub program: PathBuf,
    /// The directory that holds everything of the node; made if it is not there.
    pub root: PathBuf,
    /// What it is called.
    pub name: String,
    /// Where it listens; port 0 is any free one, and the same one again after a restart.
    pub listen: String,
    /// The network namespace it runs in.
    pub namespace: Option<String>,
}

/// A node; dropping it kills its daemon.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    client: Client,
    runtime: tokio::runtime::Runtime,
    daemon: Option<Child>,
}

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; −1 if it was killed.
    pub code: i32,
    /// What it answered.
    pub out: String,
    /// What it complained of.
    pub err: String,
}

impl Node {
    /// Starts a node on loopback below `dir`.
    pub fn start(program: &Path, dir: &Path, name: &str) -> Result<Self, Failure> {
        Self::start_with(NodeOptions {
            program: program.to_owned(),
            root: dir.join(name),
            name: name.to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            namespace: None,
        })
    }

    /// Starts a node.
    pub fn start_with(options: NodeOptions) -> Result<Self, Failure> {
        fs::create_dir_all(&options.root).map_err(Failure::doing(options.root.display()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Failure::doing("starting a runtime"))?;
        let client = Client::new(&Paths::below(&options.root));
        let mut node = Self { options, client, runtime, daemon: None };
        node.up()?;
        node.options.listen = node.status()?.node.listen.to_string();
        Ok(node)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// The directory that holds everything of this node.
    pub fn root(&self) -> &Path {
        &self.options.root
    }

    /// Path of a file of this node.
    pub fn path(&self, name: &str) -> PathBuf {
        self.options.root.join(name)
    }

    /// Process id of the daemon; 0 if it does not run.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().map_or(0, Child::id)
    }

    /// Starts the daemon and waits until it answers.
    pub fn up(&mut self) -> Result<(), Failure> {
        let log = File::options().create(true).append(true).open(self.path("log"));
        let log = log.map_err(Failure::doing("the daemon's log"))?;
        let mut command = match &self.options.namespace {
            None => Command::new(&self.options.program),
            Some(namespace) => {
                // It puts the program in its own place: the process is the daemon's.
                let mut ip = Command::new(find("ip").unwrap_or_else(|| "ip".into()));
                ip.args(["netns", "exec", namespace]).arg(&self.options.program);
                ip
            }
        };
        command.args(["daemon", "--listen", &self.options.listen, "--name", &self.options.name]);
        // While this file has a number, the daemon ends itself after so many steps.
        command.env("ZUMASTOR_TEST_KILL", self.path("kill"));
        self.environment(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().map_err(Failure::doing("starting a daemon"))?);
        self.until("the daemon to answer", Duration::from_secs(30), |node| {
            let ended = node.daemon.as_mut().and_then(|child| child.try_wait().ok().flatten());
            match ended {
                Some(status) => Err(Failure::failed(format!("the daemon ended with {status}"))),
                None => Ok(node.status().ok().map(drop)),
            }
        })
    }

    /// Ends the daemon as a power cut does.
    pub fn kill(&mut self) -> Result<(), Failure> {
        if let Some(mut child) = self.daemon.take() {
            child.kill().and_then(|()| child.wait()).map_err(Failure::doing("killing a daemon"))?;
        }
        Ok(())
    }

    /// Has the daemon end at so many steps from now, as by a power cut. Only programs that are built for debugging do.
    pub fn kill_at(&self, steps: u32) -> Result<(), Failure> {
        fs::write(self.path("kill"), steps.to_string()).map_err(Failure::doing("asking for a kill"))
    }

    /// Has the daemon end at no step any more. Emptied while it is locked: the daemon is not about to write or to end then.
    fn no_kill(&self) -> Result<(), Failure> {
        let path = self.path("kill");
        let emptied = || {
            let file = File::options().write(true).open(&path)?;
            file.lock()?;
            file.set_len(0)?;
            fs::remove_file(&path)
        };
        emptied().map_err(Failure::doing("taking back a kill"))
    }

    /// Whether the daemon was ended at a step; if it was not, it will not be any more. One that was can be started.
    pub fn was_killed(&mut self) -> Result<bool, Failure> {
        self.no_kill()?;
        let killed = self.until("the daemon to answer or to end", Duration::from_secs(30), |node| {
            let ended =
                node.daemon.as_mut().is_none_or(|daemon| daemon.try_wait().is_ok_and(|s| s.is_some()));
            Ok(ended.then_some(true).or(node.status().is_ok().then_some(false)))
        })?;
        if killed {
            self.daemon = None;
        }
        Ok(killed)
    }

    /// Ends the daemon as a service manager does, and gives its exit code.
    pub fn down(&mut self) -> Result<i32, Failure> {
        let Some(child) = self.daemon.take() else { return Ok(0) };
        let asked = kill_process(Pid::from_child(&child), Signal::TERM);
        asked.map_err(Failure::doing("asking a daemon to end"))?;
        let mut child = child;
        let status = self.until("the daemon to end", Duration::from_secs(30), |_| {
            child.try_wait().map_err(Failure::doing("waiting for a daemon"))
        })?;
        Ok(status.code().unwrap_or(-1))
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Result<Ran, Failure> {
        ran(self.spawn(args)?)
    }

    /// Starts a command.
    pub fn spawn(&self, args: &[&str]) -> Result<Child, Failure> {
        let mut command = Command::new(&self.options.program);
        self.environment(command.args(args)).stdin(Stdio::null());
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        spawned.map_err(Failure::doing("starting zumastor"))
    }

    /// Runs a command that must succeed, and gives its answer.
    pub fn ok(&self, args: &[&str]) -> Result<String, Failure> {
        let Ran { code, out, err } = self.run(args)?;
        if code == 0 {
            return Ok(out);
        }
        let (what, name) = (args.join(" "), self.name());
        Err(Failure::failed(format!("{name}: `zumastor {what}` ended with {code}: {}", err.trim())))
    }

    /// Defines a volume in `NAME.img` and `NAME.snaps` of a directory.
    pub fn define(&self, volume: &str, dir: &Path) -> Result<(), Failure> {
        let (image, snapshots) = (dir.join(format!("{volume}.img")), dir.join(format!("{volume}.snaps")));
        let define = ["define", "volume", volume, &image.to_string_lossy(), &snapshots.to_string_lossy()];
        self.ok(&define).map(drop)
    }

    /// The digest of a file, computed from scratch.
    pub fn digest(&self, file: &Path) -> Result<String, Failure> {
        let out = self.ok(&["digest", &file.to_string_lossy()])?;
        Ok(out.split_whitespace().next().unwrap_or_default().to_owned())
    }

    /// Everything that `status` tells. Asks the daemon directly: fast enough to be asked often.
    pub fn status(&self) -> Result<Status, Failure> {
        // The timer belongs to the runtime, so it is made inside.
        let answer = async { tokio::time::timeout(Duration::from_secs(20), self.client.status(None)).await };
        let silent = || Failure::failed(format!("{} does not answer", self.name()));
        self.runtime.block_on(answer).unwrap_or_else(|_| Err(silent()))
    }

    /// Status of one volume.
    pub fn volume(&self, volume: &str) -> Result<VolumeStatus, Failure> {
        let found = self.status()?.volumes.into_iter().find(|found| found.name.as_str() == volume);
        found.ok_or_else(|| Failure::failed(format!("{} has no volume {volume}", self.name())))
    }

    /// Takes a snapshot of each of these volumes, all at the same time, as their schedules would.
    pub fn snapshot_all(&self, volumes: &[VolumeName]) -> Result<(), Failure> {
        self.at_once(volumes, |client, volume| async move { client.snapshot(&volume, None).await.map(drop) })
    }

    /// Replicates each of these volumes with a host, all at the same time, and waits for the end.
    pub fn replicate_all(&self, volumes: &[VolumeName], host: &str) -> Result<(), Failure> {
        self.at_once(volumes, |client, volume| {
            let asked = Replicate { host: host.to_owned(), snapshot: None, delay: None, wait: true };
            async move {
                let mut events = client.replicate_and_follow(&volume, &asked).await?;
                loop {
                    match events.next().await? {
                        ReplicateEvent::Progress(_) => {}
                        ReplicateEvent::Done(_) | ReplicateEvent::Already(_) => return Ok(()),
                        ReplicateEvent::Failed(failure) => return Err(failure),
                    }
                }
            }
        })
    }

    /// Asks the daemon for something of each volume, all at the same time.
    fn at_once<F>(&self, volumes: &[VolumeName], ask: impl Fn(Client, VolumeName) -> F) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.runtime.block_on(async {
            let mut asked = JoinSet::new();
            for volume in volumes {
                asked.spawn(ask(self.client.clone(), volume.clone()));
            }
            while let Some(answered) = asked.join_next().await {
                answered.expect("asking does not panic")?;
            }
            Ok(())
        })
    }

    /// Most memory that the daemon has had resident.
    pub fn peak_memory(&self) -> Result<u64, Failure> {
        peak_memory(self.pid()).map_err(Failure::doing("the daemon's memory"))
    }

    /// Polls a volume's status until `find` finds what it looks for.
    pub fn wait_for<T>(
        &mut self,
        volume: &str,
        what: &str,
        patience: Duration,
        find: impl Fn(&VolumeStatus) -> Option<T>,
    ) -> Result<T, Failure> {
        self.until(what, patience, |node| Ok(find(&node.volume(volume)?)))
    }

    fn until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        loop {
            match look(self) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(10)),
                Ok(None) => {
                    let (name, words) = (self.name(), self.last_words());
                    return Err(Failure::failed(format!("{name}: waited too long for {what}: {words}")));
                }
                Err(error) => {
                    let (name, words) = (self.name(), self.last_words());
                    return Err(Failure::failed(format!("{name}: {what}: {error}: {words}")));
                }
            }
        }
    }

    /// The end of the daemon's log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let kill = self.path("kill");
        command.env("ZUMASTOR_ROOT", &self.options.root).env("ZUMASTOR_TEST_KILL", kill);
        command.env("TZ", "UTC").env_remove("RUST_LOG")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.kill();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name(), self.last_words());
        }
    }
}

/// Makes two nodes known to each other.
pub fn introduce(a: &Node, b: &Node) -> Result<(), Failure> {
    for (here, there) in [(a, b), (b, a)] {
        let ticket = there.ok(&["peer", "ticket"])?;
        here.ok(&["peer", "add", there.name(), ticket.trim()])?;
    }
    Ok(())
}

/// Waits for a command that was started with [`Node::spawn`].
pub fn ran(child: Child) -> Result<Ran, Failure> {
    let output = child.wait_with_output().map_err(Failure::doing("waiting for zumastor"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) })
}
