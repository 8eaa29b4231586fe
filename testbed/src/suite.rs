//! `zumastor-testbed test`: the workspace's tests, with what they need.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use zumastor::exit::Failure;
use zumastor_testbed::{TOOLS, Tool, find, is_root};

/// Run all tests of the workspace
///
/// As root, what they need is installed first (with apt-get), and no test may be left out. Otherwise, what was left
/// out is listed in the end.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Arguments for `cargo test`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CARGO TEST ARGS")]
    arguments: Vec<OsString>,
}

/// Runs the tests and gives the exit code of `cargo test`.
pub fn run(args: Args) -> Result<u8, Failure> {
    let lacking = provide();
    let devices = can_build_devices();
    if !devices {
        eprintln!(
            "without the headers of libdevmapper and libclang (packages {}), what concerns block devices is left out",
            BUILD.map(|(_, package)| package).join(" ")
        );
    }
    let list = tempfile::NamedTempFile::new().map_err(Failure::doing("a temporary file"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(cargo_arguments(arguments(args), devices)).env("ZUMASTOR_SKIPPED", list.path());
    if is_root() {
        command.env("ZUMASTOR_REQUIRE_ROOT_TESTS", "1");
    } else {
        command.env_remove("ZUMASTOR_REQUIRE_ROOT_TESTS");
    }
    if std::env::var_os(THREADS).is_none() {
        command.env(THREADS, at_a_time().to_string());
    }
    let status = command.status().map_err(Failure::doing("starting cargo"))?;
    let skipped = fs::read_to_string(list.path()).unwrap_or_default();
    eprint!("{}", summary(&skipped, &lacking));
    Ok(code(status))
}

/// What tells a test program how many of its tests run beside each other.
const THREADS: &str = "RUST_TEST_THREADS";

/// Tests at a time: twice as many as there are processors, for they wait half of the time, for disks, daemons and guests.
fn at_a_time() -> usize {
    2 * std::thread::available_parallelism().map_or(1, usize::from)
}

/// The arguments as they were typed: a `--` that comes first is cargo's too, and the parser would swallow it.
fn arguments(args: Args) -> Vec<OsString> {
    let mut typed = std::env::args_os().skip(1);
    if typed.next().is_some_and(|command| command == "test") { typed.collect() } else { args.arguments }
}

/// All packages, unless some are named.
fn cargo_arguments(given: Vec<OsString>, devices: bool) -> Vec<OsString> {
    let mut own =
        given.iter().map(|argument| argument.to_string_lossy()).take_while(|argument| argument != "--");
    let named = own.any(|argument| argument.starts_with("-p") || argument.starts_with("--package"));
    let all: &[&str] = match (named, devices) {
        (true, _) => &["test"],
        (false, false) => &["test", "--workspace"],
        (false, true) => &["test", "--workspace", "--features", "zumastor-testbed/device-mapper"],
    };
    all.iter().map(OsString::from).chain(given).collect()
}

/// What the feature `device-mapper` takes to build: a file that shows that it is there, and the package that has it.
const BUILD: [(&str, &str); 3] = [
    ("/usr/include/libdevmapper.h", "libdevmapper-dev"),
    ("/usr/bin/pkg-config", "pkg-config"),
    ("/usr/lib/llvm-", "libclang-dev"),
];

/// Whether what stands there is there, or something that begins so.
fn is_there(path: &str) -> bool {
    let path = Path::new(path);
    let Some((dir, name)) = path.parent().zip(path.file_name()) else { return false };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&*name.to_string_lossy()));
    if path.to_string_lossy().ends_with('-') {
        // A version of LLVM may be there without its library.
        return found.any(|entry| {
            let lib = fs::read_dir(entry.path().join("lib")).into_iter().flatten().flatten();
            lib.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("libclang"))
        });
    }
    path.exists()
}

fn can_build_devices() -> bool {
    BUILD.iter().all(|(path, _)| is_there(path))
}

/// Installs what is missing, if this is root and there is apt-get; gives what is still missing.
fn provide() -> Vec<Tool> {
    let missing = || TOOLS.into_iter().filter(|tool| find(tool.name).is_none()).collect::<Vec<_>>();
    let lacking = missing();
    let build = BUILD.iter().filter(|(path, _)| !is_there(path)).map(|(_, package)| *package);
    let packages = lacking.iter().map(|tool| tool.package).chain(build).collect::<BTreeSet<_>>();
    if packages.is_empty() {
        add_samba_modules();
        return lacking;
    }
    let names = join(lacking.iter().map(|tool| tool.name));
    if !is_root() {
        eprintln!("not installed: {names} (packages {}); tests that use them are left out", join(packages));
        return lacking;
    }
    if find("apt-get").is_none() {
        eprintln!("not installed, and there is no apt-get to install them: {names}");
        return lacking;
    }
    eprintln!("installing {}", join(packages.clone()));
    if !(apt(&["update", "-q"], &[]) && apt(&INSTALL, &packages.into_iter().collect::<Vec<_>>())) {
        eprintln!("apt-get failed; going on without");
    }
    add_samba_modules();
    missing()
}

/// What Samba shows snapshots with is a package of its own in some releases, and in others a part of Samba, and no package.
fn add_samba_modules() {
    let dirs = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let there = dirs.map(|dir| dir.path().join("samba/vfs/shadow_copy2.so")).any(|module| module.exists());
    if !there && is_root() && find("smbd").is_some() && find("apt-get").is_some() {
        eprintln!("installing samba-vfs-modules");
        if !(apt(&["update", "-q"], &[]) && apt(&INSTALL, &["samba-vfs-modules"])) {
            eprintln!("apt-get failed; Samba may lack its module shadow_copy2");
        }
    }
}

const INSTALL: [&str; 4] = ["install", "-q", "-y", "--no-install-recommends"];

fn apt(arguments: &[&str], names: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    command.args(arguments).args(names).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What was left out, and why.
fn summary(skipped: &str, lacking: &[Tool]) -> String {
    let left_out: BTreeSet<&str> = skipped.lines().filter(|line| !line.is_empty()).collect();
    if left_out.is_empty() {
        return "No test says that it was left out.\n".to_owned();
    }
    let mut text = format!("\nLeft out: {} tests\n", left_out.len());
    for line in left_out {
        text.push_str(&format!("  {line}\n"));
    }
    if !lacking.is_empty() {
        text.push_str(&format!("Not installed: {}\n", join(lacking.iter().map(|tool| tool.name))));
    }
    text.push_str("As root, this command installs what is missing and runs them all.\n");
    text
}

fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn join<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_may_be_named() {
        let with = |given: &[&str]| cargo_arguments(given.iter().map(OsString::from).collect(), false);
        assert_eq!(with(&["--", "-p"]), ["test", "--workspace", "--", "-p"]);
        assert_eq!(with(&["-p", "x", "--", "y"]), ["test", "-p", "x", "--", "y"]);
        let all = ["test", "--workspace", "--features", "zumastor-testbed/device-mapper"];
        assert_eq!(cargo_arguments(Vec::new(), true), all);
    }

    #[test]
    fn what_was_left_out_is_named_once() {
        let text = summary("root_b: needs root\nroot_a: needs root\nroot_b: needs root\n", &[TOOLS[0]]);
        assert!(text.contains("Left out: 2 tests\n  root_a: needs root\n  root_b: needs root\n"), "{text}");
        assert!(text.contains("Not installed: mkfs.xfs"), "{text}");
        assert!(summary("", &[]).starts_with("No test"));
    }
}
