//! Daemons as a user runs them: the real program, each node with a directory of its own.

pub mod damage;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use zumastor::api::{Status, VolumeStatus};

/// Nothing in these tests takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A node; dropping it kills its daemon.
pub struct Node {
    pub name: &'static str,
    pub root: PathBuf,
    /// `TZ` of its daemon and its commands.
    pub zone: &'static str,
    listen: String,
    daemon: Option<Child>,
}

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Node {
    /// Starts a new node below `dir`.
    pub fn start(dir: &Path, name: &'static str) -> Self {
        let root = dir.join(name);
        fs::create_dir_all(&root).unwrap();
        let mut node = Self { name, root, zone: "UTC", listen: "127.0.0.1:0".to_owned(), daemon: None };
        node.up();
        // Comes back at the same address.
        node.listen = node.status().node.listen.to_string();
        node
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.listen
    }

    /// Starts the daemon and waits until it answers.
    pub fn up(&mut self) {
        if !self.comes_up() {
            panic!("the daemon was killed: {}", fs::read_to_string(self.root.join("log")).unwrap());
        }
    }

    /// Starts the daemon and waits until it answers, or is ended at a step: whether it answers.
    pub fn comes_up(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.root.join("log")).unwrap();
        let mut command = self.command(&["daemon", "--listen", &self.listen, "--name", self.name]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        let answers = wait_for("the daemon to answer", || match self.ended() {
            true => Some(false),
            false => (self.run(&["status"]).code == 0).then_some(true),
        });
        if !answers {
            self.daemon = None;
        }
        answers
    }

    /// Whether the daemon was ended at a step. It does not end by itself.
    fn ended(&mut self) -> bool {
        let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
        assert!(
            ended.is_none_or(|status| status.code().is_none()),
            "the daemon ended by itself: {}",
            fs::read_to_string(self.root.join("log")).unwrap()
        );
        ended.is_some()
    }

    /// Ends the daemon as a service manager does.
    pub fn down(&mut self) -> i32 {
        let child = self.daemon.as_mut().unwrap();
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = wait_for("the daemon to end", || child.try_wait().unwrap());
        self.daemon = None;
        status.code().expect("not killed")
    }

    /// Asks the daemon to read its configuration again, as a service manager does.
    pub fn hang_up(&self) {
        let pid = rustix::process::Pid::from_child(self.daemon.as_ref().unwrap());
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    /// Has the daemon end at so many steps from now, as by a power cut.
    pub fn kill_at(&self, steps: u32) {
        fs::write(self.root.join("kill"), steps.to_string()).unwrap();
    }

    /// Has the daemon end at no step any more. Emptied while it is locked: the daemon is not about to write or to end then.
    fn no_kill(&self) {
        let path = self.root.join("kill");
        let file = File::options().write(true).open(&path).unwrap();
        file.lock().unwrap();
        file.set_len(0).unwrap();
        fs::remove_file(&path).unwrap();
    }

    /// Whether the daemon was ended at a step while a command ran that came to this; if it was not, it will not be any
    /// more. One that was can be started.
    pub fn was_killed(&mut self, code: i32) -> bool {
        let mut answers = code == 0;
        self.no_kill();
        if answers {
            // Who was about to be ended has been by then.
            answers = self.run(&["status"]).code == 0;
        }
        let daemon = self.daemon.as_mut().unwrap();
        let ended = match answers {
            true => daemon.try_wait().unwrap(),
            false => Some(wait_for("the daemon's end", || daemon.try_wait().unwrap())),
        };
        assert!(ended.is_none_or(|status| status.code().is_none()), "it ended by itself: {ended:?}");
        if ended.is_some() {
            self.daemon = None;
        }
        ended.is_some()
    }

    /// Whether the daemon was ended at a step before something came about; if it was not, it will not be any more. One that was
    /// can be started.
    pub fn was_killed_before(&mut self, mut came: impl FnMut(&Self) -> bool) -> bool {
        let killed = wait_for("the daemon's end, or what it works on", || match self.ended() {
            true => Some(true),
            false => came(self).then_some(false),
        });
        if !killed {
            return self.was_killed(0);
        }
        self.no_kill();
        self.daemon = None;
        true
    }

    /// Sets the daemon's clock, which goes on from there.
    pub fn set_clock(&self, to: Timestamp) {
        let ahead = to.duration_since(Timestamp::now()).as_millis();
        // No moment at which it shows something else.
        fs::write(self.root.join("clock.new"), ahead.to_string()).unwrap();
        fs::rename(self.root.join("clock.new"), self.root.join("clock")).unwrap();
    }

    /// Ends the daemon as a power cut does.
    pub fn kill(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts a command and does not wait for it.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a command.
    pub fn run(&self, args: &[&str]) -> Ran {
        ran(&self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    /// Runs a command that must succeed, and gives its answer.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{} at {}: {ran:?}", args.join(" "), self.name);
        ran.out
    }

    /// Runs a command that must fail with this exit code, and gives what it complains of.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, code, "{} at {}: {ran:?}", args.join(" "), self.name);
        assert!(ran.out.is_empty(), "{ran:?}");
        ran.err
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    #[track_caller]
    pub fn volume(&self, name: &str) -> VolumeStatus {
        let status: Status = serde_json::from_str(&self.ok(&["status", name, "--json"])).unwrap();
        status.volumes.into_iter().next().unwrap()
    }

    /// Polls a volume's status until it is as wanted.
    #[track_caller]
    pub fn wait_until(
        &self,
        name: &str,
        what: &str,
        as_wanted: impl Fn(&VolumeStatus) -> bool,
    ) -> VolumeStatus {
        wait_for(what, || Some(self.volume(name)).filter(&as_wanted))
    }

    /// Path of a file of this node.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Defines volume `v` with its image and its snapshots below the node's directory.
    #[track_caller]
    pub fn define(&self, volume: &str) {
        let (image, snapshots) = (self.path(&format!("{volume}.img")), self.path(&format!("{volume}.snaps")));
        self.ok(&["define", "volume", volume, &text(&image), &text(&snapshots)]);
    }

    /// The digest of a volume's image, computed from scratch.
    #[track_caller]
    pub fn digest(&self, volume: &str) -> String {
        let out = self.ok(&["digest", &text(&self.path(&format!("{volume}.img")))]);
        out.split_whitespace().next().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zumastor"));
        command.args(args).env("ZUMASTOR_ROOT", &self.root).env("TZ", self.zone).env_remove("RUST_LOG");
        command.env("ZUMASTOR_TEST_KILL", self.root.join("kill"));
        command.env("ZUMASTOR_TEST_CLOCK", self.root.join("clock"));
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, fs::read_to_string(self.root.join("log")).unwrap_or_default());
        }
    }
}

/// Makes two nodes known to each other.
pub fn introduce(a: &Node, b: &Node) {
    for (here, there) in [(a, b), (b, a)] {
        let ticket = there.ok(&["peer", "ticket"]);
        here.ok(&["peer", "add", there.name, ticket.trim()]);
    }
}

/// Two nodes that know each other, alpha the master of `v` with a snapshot, beta its replica; nothing replicated yet.
pub fn master_and_replica(dir: &Path, size: u64, target: &[&str], source: &[&str]) -> (Node, Node) {
    let (alpha, beta) = (Node::start(dir, "alpha"), Node::start(dir, "beta"));
    introduce(&alpha, &beta);
    image(&alpha.path("v.img"), size, 1);
    alpha.define("v");
    alpha.ok(&["define", "master", "v"]);
    assert!(alpha.ok(&["snapshot", "v"]).starts_with("0  20"));
    beta.define("v");
    alpha.ok(&[&["define", "target", "v", "beta"], target].concat());
    beta.ok(&[&["define", "source", "v", "alpha"], source].concat());
    (alpha, beta)
}

/// An image of `size` bytes that does not compress, different for each seed.
pub fn image(path: &Path, size: u64, seed: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut chunk = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < size {
        for word in chunk.chunks_exact_mut(8) {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let length = (size - offset).min(1 << 20);
        file.write_all_at(&chunk[..length as usize], offset).unwrap();
        offset += length;
    }
}

/// Writes into an image, as its user would.
pub fn write(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Polls until there is an answer.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn ran(output: &Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
