//! restic: a backup into a fresh repository on the other side, over sftp. Debian has no package of its REST server.

use std::process::Command;

use zumastor::exit::Failure;

use super::{Job, ssh::Sshd};
use crate::bench::{measure::Sample, server::prepare};

/// Backs the image up.
pub fn backup(job: &Job<'_>) -> Result<Sample, Failure> {
    let sshd = Sshd::start(job)?;
    let restic = || {
        let mut command = Command::new("restic");
        let sftp = format!("sftp.command={} {} -s sftp", sshd.command(), Sshd::FAR);
        command.args(["-q", "--no-cache", "-o", &sftp, "-r"]);
        command.arg(format!("sftp:{}:{}", Sshd::FAR, job.dir.join("repository").display()));
        // A repository is encrypted with a key that a password gives access to; this one is gone with the directory.
        command.env("RESTIC_PASSWORD", "bench");
        command
    };
    prepare(restic().arg("init"))?;
    let mut backup = restic();
    backup.arg("backup").arg(job.image);
    sshd.server.serve(backup)
}
