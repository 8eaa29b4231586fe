//! rsync through its own daemon: no ssh, no encryption.

use std::{fs, path::PathBuf, process::Command};

use zumastor::exit::Failure;
use zumastor_testbed::{find, is_root, output};

use super::Job;
use crate::bench::{measure::Sample, server::Server};

/// Whether it can make durable what it wrote (3.2.4 and later).
pub fn can_sync() -> bool {
    output("rsync", |rsync| rsync.arg("--help")).is_ok_and(|help| help.contains("--fsync"))
}

/// The program.
pub fn program() -> Result<PathBuf, Failure> {
    find("rsync").ok_or_else(|| Failure::failed("rsync is not installed"))
}

/// Sends the image through a fresh rsync daemon.
pub fn run(options: &[&str], job: &Job<'_>) -> Result<Sample, Failure> {
    let program = program()?;
    let dir = job.dir.display();
    let server = Server::start(job.link, &job.dir.join("rsyncd.errors"), |at| {
        // Otherwise the daemon becomes nobody.
        let user = if is_root() { "uid = 0\ngid = 0\n" } else { "" };
        let config = format!(
            "use chroot = no\n{user}log file = {dir}/rsyncd.log\n[data]\npath = {dir}\nread only = no\n"
        );
        let file = job.dir.join("rsyncd.conf");
        fs::write(&file, config).map_err(Failure::doing(file.display()))?;
        let mut daemon = job.link.at_far(&program);
        daemon.args(["--daemon", "--no-detach"]);
        daemon.args([format!("--address={}", at.ip()), format!("--port={}", at.port())]);
        daemon.arg(format!("--config={}", file.display()));
        Ok(daemon)
    })?;
    let mut client = Command::new(&program);
    // Same size and time do not mean same content here.
    client.arg("--ignore-times").args(options).arg(job.image);
    client.arg(format!("rsync://{}/data/{}", server.at(), Job::COPY));
    server.serve(client)
}
