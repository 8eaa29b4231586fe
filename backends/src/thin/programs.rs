//! The administrator's programs that volumes on block devices need.

use std::{
    io,
    path::Path,
    process::{Command, Output, Stdio},
};

use zumastor_core::StoreError;

/// Runs a program that must end well.
pub(crate) fn run_well(
    program: &str,
    path: &Path,
    arguments: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<(), StoreError> {
    let output = run(program, arguments)?;
    if output.status.success() { Ok(()) } else { Err(said(program, path, &output.stderr)) }
}

/// Runs a program to its end.
pub(crate) fn run(
    program: &str,
    arguments: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<Output, StoreError> {
    // A daemon may be started without the directories of the administrator's programs.
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|dir| Path::new(dir).join(program));
    let path = places.into_iter().find(|path| path.is_file()).unwrap_or_else(|| program.into());
    let mut command = Command::new(path);
    arguments(command.stdin(Stdio::null())).output().map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            let package = match program {
                _ if program.starts_with("thin") => "thin-provisioning-tools",
                _ if program.starts_with("lv") || program.starts_with("vg") => "lvm2",
                _ => "util-linux",
            };
            return StoreError::Unsupported(format!(
                "{program} is not installed, which volumes on block devices need: it is in the package {package}"
            ));
        }
        StoreError::io(format!("starting {program}"))(error)
    })
}

/// What a program complained of.
pub(crate) fn said(program: &str, path: &Path, complaint: &[u8]) -> StoreError {
    let complaint = String::from_utf8_lossy(complaint);
    StoreError::Unsupported(format!("{program} failed on {}: {}", path.display(), complaint.trim()))
}
