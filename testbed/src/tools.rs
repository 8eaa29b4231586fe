//! Programs of the system that tests and benchmarks use.

use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use zumastor::exit::Failure;

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// The program.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
}

/// What the tests use, beyond what every Debian has.
pub const TOOLS: [Tool; 22] = [
    Tool { name: "mkfs.xfs", package: "xfsprogs" },
    Tool { name: "mkfs.btrfs", package: "btrfs-progs" },
    Tool { name: "mkfs.ext4", package: "e2fsprogs" },
    Tool { name: "debugfs", package: "e2fsprogs" },
    Tool { name: "rsync", package: "rsync" },
    Tool { name: "ip", package: "iproute2" },
    Tool { name: "tc", package: "iproute2" },
    Tool { name: "losetup", package: "mount" },
    Tool { name: "mount", package: "mount" },
    Tool { name: "unshare", package: "util-linux" },
    Tool { name: "nsenter", package: "util-linux" },
    Tool { name: "setpriv", package: "util-linux" },
    Tool { name: "linux.uml", package: "user-mode-linux" },
    Tool { name: "insmod", package: "kmod" },
    Tool { name: "dmsetup", package: "dmsetup" },
    Tool { name: "thin_check", package: "thin-provisioning-tools" },
    Tool { name: "lvm", package: "lvm2" },
    Tool { name: "udevadm", package: "udev" },
    Tool { name: "ping", package: "iputils-ping" },
    Tool { name: "exportfs", package: "nfs-kernel-server" },
    Tool { name: "smbd", package: "samba" },
    Tool { name: "smbclient", package: "smbclient" },
];

/// Where a program is. Ordinary users often have no sbin in their `PATH`.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    places.map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a program to its end and gives what it printed; what it complained of is the error.
pub fn output(name: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<String, Failure> {
    let path = find(name).ok_or_else(|| Failure::failed(format!("{name} is not installed")))?;
    let mut command = Command::new(path);
    let output = arguments(command.stdin(Stdio::null()))
        .output()
        .map_err(Failure::doing(format!("starting {name}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::failed(format!("{name} failed ({}): {}", output.status, said.trim())))
}

/// Leaves a test out, saying why: on stderr, and in the file that `ZUMASTOR_SKIPPED` names.
///
/// # Panics
/// If `ZUMASTOR_REQUIRE_ROOT_TESTS=1`: then nothing may be left out.
pub fn skip(why: &str) {
    let required = std::env::var_os("ZUMASTOR_REQUIRE_ROOT_TESTS").is_some_and(|value| value == "1");
    assert!(!required, "not run: {why}");
    eprintln!("skipped: {why}");
    if let Some(list) = std::env::var_os("ZUMASTOR_SKIPPED") {
        let thread = std::thread::current();
        let line = format!("{}: {why}\n", thread.name().unwrap_or("a test"));
        let file = File::options().create(true).append(true).open(list);
        // The list is for convenience; the test says so itself.
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}
