//! What goes through ssh, to an sshd of the benchmark's own: its keys and its configuration are made for it, and nothing of the
//! machine's is read or changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use zumastor::exit::Failure;
use zumastor_testbed::{find, is_root};

use super::{Job, rsync::program};
use crate::bench::{
    measure::Sample,
    server::{Server, prepare},
};

/// An sshd that lets in one key.
pub struct Sshd<'a> {
    /// The program.
    pub server: Server<'a>,
    /// Configuration of clients, who call it [`FAR`](Self::FAR).
    config: PathBuf,
}

impl<'a> Sshd<'a> {
    /// What the other side is called.
    pub const FAR: &'static str = "far";

    /// Starts it, with everything that belongs to it in the job's directory.
    pub fn start(job: &Job<'a>) -> Result<Self, Failure> {
        let program = find("sshd").ok_or_else(|| Failure::failed("sshd is not installed"))?;
        let at_dir = |name: &str| job.dir.join(name);
        let (host, user, config) = (at_dir("host-key"), at_dir("user-key"), at_dir("ssh.conf"));
        for key in [&host, &user] {
            prepare(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key))?;
        }
        let write = |path: &Path, text: String| fs::write(path, text).map_err(Failure::doing(path.display()));
        let server = Server::start(job.link, &at_dir("sshd.errors"), |at| {
            let (dir, file) = (job.dir.display(), at_dir("sshd.conf"));
            let (ip, port) = (at.ip(), at.port());
            write(
                &file,
                format!(
                    "ListenAddress {ip}\nPort {port}\nHostKey {dir}/host-key\nPidFile none\n\
                     AuthorizedKeysFile {dir}/user-key.pub\nStrictModes no\nUsePAM no\nUseDNS no\n\
                     PasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
                ),
            )?;
            let public =
                fs::read_to_string(at_dir("host-key.pub")).map_err(Failure::doing("the host key"))?;
            write(&at_dir("known"), format!("[{ip}]:{port} {public}"))?;
            let far = Self::FAR;
            // Without the cipher it would be the slower ChaCha20.
            write(
                &config,
                format!(
                    "Host {far}\nHostName {ip}\nPort {port}\nIdentityFile {dir}/user-key\nIdentitiesOnly yes\n\
                     UserKnownHostsFile {dir}/known\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n\
                     BatchMode yes\nCiphers aes128-gcm@openssh.com\nCompression no\nLogLevel ERROR\n"
                ),
            )?;
            Ok(daemon(job, &program, &file))
        })?;
        Ok(Self { server, config })
    }

    /// The ssh that reaches it, as a shell reads it.
    pub fn command(&self) -> String {
        format!("ssh -F {}", quoted(&self.config))
    }
}

/// The daemon that reads `config`.
fn daemon(job: &Job<'_>, program: &Path, config: &Path) -> Command {
    let options = ["-D", "-e", "-f"];
    if !is_root() {
        let mut daemon = job.link.at_far(program);
        daemon.args(options).arg(config);
        return daemon;
    }
    // Started by root it insists on /run/sshd, which only a running service has: so it gets a /run of its own.
    let own_run = "mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec \"$@\"";
    let mut daemon = job.link.at_far(&find("unshare").unwrap_or_else(|| "unshare".into()));
    daemon.args(["-m", "sh", "-c", own_run, "sh"]).arg(program).args(options).arg(config);
    daemon
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Runs a line of a shell, where `$1` is the image, `$2` the configuration of ssh, and `$3` the copy as the other side's shell
/// reads it.
fn shell(line: &str, job: &Job<'_>) -> Result<Sample, Failure> {
    let sshd = Sshd::start(job)?;
    let mut client = Command::new("sh");
    client.args(["-c", line, "sh"]).arg(job.image).arg(&sshd.config).arg(quoted(&job.copy()));
    sshd.server.serve(client)
}

/// `dd | ssh | dd`
pub fn pipe(job: &Job<'_>) -> Result<Sample, Failure> {
    let line =
        "dd if=\"$1\" bs=1M status=none | ssh -F \"$2\" far \"dd of=$3 bs=1M iflag=fullblock status=none\"";
    shell(line, job)
}

/// `zstd -1 | ssh | zstd -d`
pub fn compressed(job: &Job<'_>) -> Result<Sample, Failure> {
    shell("zstd -1 -q -c \"$1\" | ssh -F \"$2\" far \"zstd -d -q -f -o $3\"", job)
}

/// rsync with ssh as its way to the other side.
pub fn rsync(job: &Job<'_>) -> Result<Sample, Failure> {
    let sshd = Sshd::start(job)?;
    let mut client = Command::new(program()?);
    client.args(["-W", "--inplace", "-e", &sshd.command()]).arg(job.image);
    client.arg(format!("{}:{}", Sshd::FAR, job.copy().display()));
    sshd.server.serve(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_a_path_as_it_is() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
