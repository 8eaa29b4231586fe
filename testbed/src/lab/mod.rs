//! The kernel lab: User Mode Linux guests with a kernel of their own, for what the machine's kernel may not have or must not be
//! asked to do: device-mapper, netem, NFS, power cuts.
//!
//! A guest boots in two or three seconds as an ordinary process, without root (a network between guests needs it). The host's
//! root file system is the guest's, below a layer in memory: programs, Debian's tools and test binaries are at the same paths, and whatever
//! the guest writes (`/etc`, `/var/lib`, …) stays in its memory and is gone with it. `/run` and `/dev/shm` begin empty; what a scenario
//! writes goes to `/run/lab`, because elsewhere something of the host may be in its way. What shall survive lies on disks: sparse files
//! that are `/dev/ubda`, `/dev/ubdb`, … in the guest. There is no udev unless [`Machine::udev`] asks for it.
//!
//! Tests of the lab are named `lab_…` and live in `testbed/tests`. One that runs a shell script of `testbed/sessions`:
//!
//! ```no_run
//! # use zumastor_testbed::lab::{self, Job, Lab, Machine};
//! # fn main() -> Result<(), zumastor::exit::Failure> {
//! if !lab::ready(&["dmsetup", "thin_check"]) {
//!     return Ok(()); // said loudly, and a failure where nothing may be left out
//! }
//! let lab = Lab::new()?;
//! let disk = lab.disk("data", 1 << 30)?;
//! let machine = Machine::new("solo").modules(&["dm-thin-pool"]).disk(&disk);
//! let outcome = lab.run(&machine, &Job::session("thin_snapshot.sh").args(["64"]).env("ZUMASTOR", "/path/of/zumastor"))?;
//! println!("{}", outcome.passed()?);
//! # Ok(())
//! # }
//! ```
//!
//! One whose own Rust code runs on the guest's kernel (the test binary starts itself again in there):
//!
//! ```no_run
//! # use zumastor_testbed::lab::{self, Lab, Machine};
//! # use zumastor::exit::Failure;
//! // #[test]
//! fn lab_something_with_devices() -> Result<(), Failure> {
//!     lab::inside(
//!         &["dmsetup"],
//!         |lab| Ok(Machine::new("solo").modules(&["dm-thin-pool"]).disk(&lab.disk("data", 1 << 30)?)),
//!         || {
//!             // This is root of a guest, with /dev/ubda.
//!             Ok(())
//!         },
//!     )
//! }
//! ```
//!
//! A power cut: [`Lab::boot`], [`Running::wait_for`] a line that the guest prints, [`Running::kill`], and boot again with the same disks.
//! Several guests: [`Lab::with_network`], [`Lab::boot`] each; they reach each other by name, and `tell` and `await` of
//! `sessions/lib.sh` let them meet. Results that are more than text go to the directory [`Lab::shared`], `$LAB_SHARED` in the guest, the
//! one place of the host that a guest can write to.

mod machine;
mod network;
mod running;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use tempfile::TempDir;
use zumastor::exit::Failure;

use self::network::Network;
pub use self::{
    machine::{Job, Machine},
    running::{Outcome, Running},
};
use crate::tools::{find, is_root, skip};

/// What a lab stands on: programs, beside those of each scenario.
const NEEDED: [&str; 4] = ["linux.uml", "insmod", "setpriv", "nsenter"];

/// Where the package has its kernel's modules.
const MODULES: &str = "/usr/lib/uml/modules";

/// Set in a guest, to its name.
const GUEST: &str = "LAB_GUEST";

/// Whether there can be guests here, with these programs for what they do. If not, the test is left out, loudly.
pub fn ready(tools: &[&str]) -> bool {
    let missing: Vec<_> = NEEDED.iter().chain(tools).filter(|tool| find(tool).is_none()).collect();
    let there = missing.is_empty() && Path::new(MODULES).is_dir();
    if !there {
        skip(&format!("the kernel lab needs {missing:?} and {MODULES}"));
    }
    there
}

/// The same, for several guests with a network between them, which needs root.
pub fn ready_for_network(tools: &[&str]) -> bool {
    if !is_root() {
        skip("a network between guests needs root");
        return false;
    }
    ready(&[tools, &["ip"]].concat())
}

/// Whether this process runs in a guest.
pub fn is_guest() -> bool {
    std::env::var_os(GUEST).is_some()
}

/// Runs `body` of the calling test in a guest as `machine` describes it. It is called in there and not here.
pub fn inside(
    tools: &[&str],
    machine: impl FnOnce(&Lab) -> Result<Machine, Failure>,
    body: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    if is_guest() {
        return body();
    }
    if !ready(tools) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let machine = machine(&lab)?;
    println!("{}", lab.run(&machine, &Job::this_test()?)?.passed()?);
    Ok(())
}

/// A place for guests, with their disks. All is gone when it is dropped.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: first what uses the directory.
    network: Option<Network>,
    booted: AtomicU32,
    dir: TempDir,
}

impl Lab {
    /// A lab for guests on their own.
    pub fn new() -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("zl-").tempdir().map_err(Failure::doing("a directory"))?;
        let lab = Self { network: None, booted: AtomicU32::new(0), dir };
        fs::create_dir(lab.shared()).map_err(Failure::doing(lab.shared().display()))?;
        Ok(lab)
    }

    /// A lab whose guests have a network: as many as there are names, at `10.78.0.1`, `10.78.0.2`, … in their order. Needs root.
    pub fn with_network(names: &[&str]) -> Result<Self, Failure> {
        Ok(Self { network: Some(Network::new(names)?), ..Self::new()? })
    }

    /// A disk of `size` bytes that takes only what is written to it. One of this name that is there already stays as it is.
    pub fn disk(&self, name: &str, size: u64) -> Result<PathBuf, Failure> {
        let path = self.dir.path().join(format!("{name}.img"));
        let file = File::options().create(true).append(true).open(&path);
        let made =
            file.and_then(|file| if file.metadata()?.len() == 0 { file.set_len(size) } else { Ok(()) });
        made.map_err(Failure::doing(path.display()))?;
        Ok(path)
    }

    /// The directory that host and guests share.
    pub fn shared(&self) -> PathBuf {
        self.dir.path().join("shared")
    }

    /// Enters a network namespace where the guests' cables end, in front of a command: for `tc` and `ip link` on `tap1`, `tap2`, ….
    pub fn in_network(&self, command: &[&str]) -> Result<String, Failure> {
        self.network.as_ref().ok_or_else(|| Failure::failed("this lab has no network"))?.run(command)
    }

    /// Boots a guest that does this job.
    pub fn boot(&self, machine: &Machine, job: &Job) -> Result<Running, Failure> {
        let boot = self.booted.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.path().join(format!("boot{boot}-{}", machine.name()));
        fs::create_dir(&dir).map_err(Failure::doing(dir.display()))?;
        let command = machine::command(machine, job, &dir, &self.shared(), self.network.as_ref())?;
        Running::start(machine, job, command)
    }

    /// Boots a guest and waits for the end of its job.
    pub fn run(&self, machine: &Machine, job: &Job) -> Result<Outcome, Failure> {
        self.boot(machine, job)?.wait()
    }
}
