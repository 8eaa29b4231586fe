//! The program to measure, freshly built, and a network that nobody else uses.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use zumastor::exit::Failure;
use zumastor_testbed::{find, is_root, output};

/// Builds `zumastor` with optimisation and gives its path.
pub fn build() -> Result<PathBuf, Failure> {
    eprintln!("building zumastor with optimisation");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "-p", "zumastor", "--message-format=json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(Failure::doing("starting cargo"))?;
    if !built.status.success() {
        return Err(Failure::failed("zumastor could not be built"));
    }
    let said = String::from_utf8_lossy(&built.stdout).into_owned();
    said.lines().rev().find_map(executable).ok_or_else(|| {
        Failure::failed("cargo does not say where it put zumastor").remedy("name it with --zumastor PATH")
    })
}

/// The program, if this line of cargo's messages speaks of it.
fn executable(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let program = message["target"]["name"] == "zumastor" && message["reason"] == "compiler-artifact";
    message["executable"].as_str().filter(|_| program).map(PathBuf::from)
}

/// What came of the attempt to have a network of one's own.
pub enum Entered {
    /// The benchmark ran there, in a process that ended with this code.
    Done(i32),
    /// This is the process that measures; with what has to be said about it.
    Here(Option<String>),
}

/// Starts this program again in a network namespace where nothing else goes over loopback, if that is possible.
pub fn enter(zumastor: &Path) -> Result<Entered, Failure> {
    if std::env::var_os(INSIDE).is_some() {
        output("ip", |ip| ip.args(["link", "set", "lo", "up"]))?;
        return Ok(Entered::Here(None));
    }
    // With root also a mount namespace, so that file systems are unmounted whatever happens. Others keep their user
    // and get the right to set up the network.
    let ways: &[&str] = if is_root() { &["-n", "-m"] } else { &["-c", "--keep-caps", "-n"] };
    let works = |ways: &[&str]| {
        output("unshare", |unshare| unshare.args(ways).args(["ip", "link", "set", "lo", "up"])).is_ok()
    };
    if find("ip").is_none() || !works(ways) {
        return Ok(Entered::Here(Some(
            "No network namespace could be made here: bytes on the wire count everything that went over loopback."
                .to_owned(),
        )));
    }
    let this = std::env::current_exe().map_err(Failure::doing("finding this program"))?;
    let unshare = find("unshare").unwrap_or_else(|| "unshare".into());
    let mut command = Command::new(unshare);
    command.args(ways).arg(this).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    if std::env::args_os().all(|argument| argument != "--zumastor") {
        command.arg("--zumastor").arg(zumastor);
    }
    let status = command.status().map_err(Failure::doing("starting unshare"))?;
    Ok(Entered::Done(status.code().unwrap_or(1)))
}

/// Set in the process that is inside.
const INSIDE: &str = "ZUMASTOR_TESTBED_INSIDE";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_what_cargo_says() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"zumastor"},"executable":"/t/zumastor"}"#;
        assert_eq!(executable(line), Some("/t/zumastor".into()));
        for other in [
            r#"{"reason":"compiler-artifact","target":{"name":"zumastor"},"executable":null}"#,
            r#"{"reason":"build-finished"}"#,
            "text",
        ] {
            assert_eq!(executable(other), None);
        }
    }
}
