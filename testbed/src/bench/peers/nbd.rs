//! Clients of NBD, which write to nbdkit's `file` plugin.

use std::{fs::File, os::unix::fs::OpenOptionsExt, path::PathBuf, process::Command};

use rand::random;
use zumastor::exit::Failure;
use zumastor_testbed::find;

use super::Job;
use crate::bench::{measure::Sample, server::Server};

/// nbdcopy, in clear text.
pub fn copy(job: &Job<'_>) -> Result<Sample, Failure> {
    let server = nbdkit(job, &[])?;
    let mut client = Command::new("nbdcopy");
    client.arg(job.image).arg(format!("nbd://{}", server.at()));
    server.serve(client)
}

/// qemu-img convert, in clear text.
pub fn convert(job: &Job<'_>) -> Result<Sample, Failure> {
    let server = nbdkit(job, &[])?;
    let mut client = Command::new("qemu-img");
    client.args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(job.image);
    client.arg(format!("nbd://{}", server.at()));
    server.serve(client)
}

/// nbdcopy, with TLS and a key that both sides have.
pub fn copy_encrypted(job: &Job<'_>) -> Result<Sample, Failure> {
    let keys = secret(job)?;
    let psk = format!("--tls-psk={}", keys.display());
    let server = nbdkit(job, &["--tls=require", &psk])?;
    let mut client = Command::new("nbdcopy");
    client.arg(job.image);
    client.arg(format!("nbds://{USER}@{}?tls-psk-file={}", server.at(), keys.display()));
    server.serve(client)
}

/// Serves a new file of the image's size.
fn nbdkit<'a>(job: &Job<'a>, options: &[&str]) -> Result<Server<'a>, Failure> {
    let program = find("nbdkit").ok_or_else(|| Failure::failed("nbdkit is not installed"))?;
    let copy = job.copy();
    let size = job.image.metadata().map_err(Failure::doing(job.image.display()))?.len();
    let made = File::create(&copy).and_then(|file| file.set_len(size));
    made.map_err(Failure::doing(copy.display()))?;
    Server::start(job.link, &job.dir.join("nbdkit.errors"), |at| {
        let mut daemon = job.link.at_far(&program);
        daemon.args(["-f", "-i", &at.ip().to_string(), "-p", &at.port().to_string()]).args(options);
        daemon.arg("file").arg(&copy);
        Ok(daemon)
    })
}

/// The file with the user's key, for both sides.
fn secret(job: &Job<'_>) -> Result<PathBuf, Failure> {
    use std::io::Write as _;
    let path = job.dir.join("keys.psk");
    let key: String = random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
    let file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| writeln!(file, "{USER}:{key}"));
    written.map_err(Failure::doing(path.display()))?;
    Ok(path)
}

const USER: &str = "bench";
