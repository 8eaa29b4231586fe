//! What a guest is and what it shall do, and the command that boots it.

use std::{
    fmt::Write,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use zumastor::exit::Failure;

use super::{GUEST, MODULES, Network};
use crate::tools::find;

/// A guest: its name, memory, disks and modules, and whether it has udev.
#[derive(Debug, Clone)]
pub struct Machine {
    name: String,
    memory: u32,
    disks: Vec<PathBuf>,
    modules: Vec<String>,
    udev: bool,
    pub(super) patience: Duration,
}

impl Machine {
    /// A guest without disks, with 512 MiB of memory. In a lab with a network, one of the names that it was made for.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory: 512,
            disks: Vec::new(),
            modules: Vec::new(),
            udev: false,
            patience: Duration::from_secs(600),
        }
    }

    /// Memory in MiB. What the guest writes outside its disks takes at most half of it.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// One more disk: `/dev/ubda` is the first, then `/dev/ubdb`, …, up to 16.
    pub fn disk(mut self, path: &Path) -> Self {
        self.disks.push(path.to_owned());
        self
    }

    /// Modules to load, by name, beside those from before. XFS, btrfs and ext4 are built in.
    pub fn modules(mut self, names: &[&str]) -> Self {
        self.modules.extend(names.iter().map(|&name| name.to_owned()));
        self
    }

    /// With udev, and the rules that Debian's packages have, running before the job begins.
    pub fn udev(mut self) -> Self {
        self.udev = true;
        self
    }

    /// How long the job may take before it counts as failed; ten minutes unless said otherwise.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What a guest does: a program with arguments and environment. It runs as root of the guest; its exit code is the verdict.
#[derive(Debug, Clone)]
pub struct Job {
    words: Vec<String>,
    environment: Vec<(String, String)>,
    /// What the log must have beside the exit code.
    pub(super) proof: Option<&'static str>,
}

impl Job {
    /// A shell script of `testbed/sessions`.
    pub fn session(name: &str) -> Self {
        let script = Path::new(SESSIONS).join(name);
        Self::program(Path::new("/bin/sh")).args([script.to_string_lossy()])
    }

    /// The test that calls this, in the guest: there, [`is_guest`](super::is_guest) holds. Nothing may be left out there.
    pub fn this_test() -> Result<Self, Failure> {
        let thread = std::thread::current();
        let name = thread.name().ok_or_else(|| Failure::failed("this is no test: its thread has no name"))?;
        Self::test(name)
    }

    /// A test of the calling test binary, by its full name.
    pub fn test(name: &str) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(Failure::doing("this program's path"))?;
        let mut job = Self::program(&program)
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env("ZUMASTOR_REQUIRE_ROOT_TESTS", "1");
        for name in INHERITED {
            if let Ok(value) = std::env::var(name) {
                job = job.env(name, &value);
            }
        }
        // One that does not exist would do nothing with success.
        Ok(Self { proof: Some("test result: ok. 1 passed"), ..job })
    }

    /// Any program.
    pub fn program(path: &Path) -> Self {
        let words = vec![path.to_string_lossy().into_owned()];
        Self { words, environment: Vec::new(), proof: None }
    }

    /// More arguments.
    pub fn args(mut self, words: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.words.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn script(&self) -> String {
        let mut script = String::new();
        for (name, value) in &self.environment {
            writeln!(script, "export {name}={}", quoted(value)).expect("strings take everything");
        }
        let words: Vec<_> = self.words.iter().map(|word| quoted(word)).collect();
        writeln!(script, "exec {}", words.join(" ")).expect("strings take everything");
        script
    }
}

/// What a test in a guest has from the one outside: how much it says, and which histories it tries.
const INHERITED: [&str; 2] = ["RUST_BACKTRACE", "PROPTEST_RNG_SEED"];

/// Where the sessions are.
const SESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sessions");

/// Begins the last line of a guest.
pub(super) const VERDICT: &str = "lab verdict:";

/// The command that boots `machine`, with what it needs in `dir`.
pub(super) fn command(
    machine: &Machine,
    job: &Job,
    dir: &Path,
    shared: &Path,
    network: Option<&Network>,
) -> Result<Command, Failure> {
    let program = |name| find(name).ok_or_else(|| Failure::failed(format!("{name} is not installed")));
    let (init, script) = (dir.join("init"), dir.join("job"));
    fs::write(&script, job.script()).map_err(Failure::doing(script.display()))?;
    let place = network.map(|network| network.place(&machine.name)).transpose()?;

    let mut head = "#!/bin/sh\n".to_owned();
    let mut set = |name: &str, value: &str| {
        writeln!(head, "export {name}={}", quoted(value)).expect("strings take everything");
    };
    set(GUEST, &machine.name);
    set("LAB_MODULES", MODULES);
    set("LAB_SESSIONS", SESSIONS);
    set("LAB_SHARED", &shared.to_string_lossy());
    set("LAB_JOB", &script.to_string_lossy());
    set("LAB_LOAD", &machine.modules.join(" "));
    set("LAB_UDEV", if machine.udev { "1" } else { "" });
    set("LAB_VERDICT", VERDICT);
    set("LAB_HOSTS", &network.map(Network::hosts).unwrap_or_default());
    set("LAB_ADDRESS", &place.as_ref().map(|place| format!("{}/24", place.address())).unwrap_or_default());
    let written = fs::write(&init, head + include_str!("init.sh"))
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)));
    written.map_err(Failure::doing(init.display()))?;

    // The guest ends with the test, whatever becomes of that.
    let mut command = Command::new(program("setpriv")?);
    command.args(["--pdeathsig", "KILL", "--"]);
    if let Some(network) = network {
        command.arg(program("nsenter")?).args(network.enter());
    }
    command.arg(program("linux.uml")?);
    command.arg(format!("mem={}M", machine.memory));
    command.args([
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "rw",
        "con=null",
        "con0=fd:0,fd:1",
        "quiet",
    ]);
    command
        .arg(format!("init={}", init.display()))
        .arg(format!("uml_dir={}/", dir.display()))
        .arg("umid=uml");
    for (disk, letter) in machine.disks.iter().zip('a'..='p') {
        command.arg(format!("ubd{letter}={}", disk.display()));
    }
    if let Some(place) = place {
        command.arg(format!("vec0:transport=tap,ifname={},depth=128,gro=1", place.tap()));
    }
    if !roomy(Path::new("/dev/shm"), machine.memory) {
        command.env("TMPDIR", dir);
    }
    command.stdin(Stdio::null());
    Ok(command)
}

/// Whether a guest's memory has room in a file system.
fn roomy(place: &Path, mib: u32) -> bool {
    rustix::fs::statvfs(place).is_ok_and(|stat| stat.f_bavail * stat.f_frsize > u64::from(mib) << 20)
}

/// One word for the shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_reads_what_was_meant() {
        let job = Job::program(Path::new("/bin/echo")).args(["it's", "$HOME", "a b"]).env("X", "\"y\" 'z'");
        let out = Command::new("sh").arg("-c").arg(job.script()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "it's $HOME a b\n");
        assert!(job.script().starts_with("export X='\"y\" '\\''z'\\'''\n"), "{}", job.script());
    }
}
