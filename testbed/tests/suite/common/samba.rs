//! A Samba of a test's own.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use zumastor::exit::Failure;
use zumastor_testbed::output;

use super::mounted::wait_for;

/// A server on loopback, ended when this is dropped.
pub struct Samba {
    smbd: Child,
    conf: PathBuf,
    port: String,
}

impl Samba {
    /// With what it keeps in `dir`, and one more line or section in its configuration.
    pub fn start(dir: &Path, shares: &str) -> Self {
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let own = |name: &str| {
            let path = dir.join(name);
            fs::create_dir_all(&path).unwrap();
            path.display().to_string()
        };
        let (state, conf) = (own("samba"), dir.join("smb.conf"));
        let text = format!(
            "[global]\nserver role = standalone server\nmap to guest = Bad User\nguest ok = yes\nguest account = root\n\
             lock directory = {state}\nstate directory = {state}\ncache directory = {state}\npid directory = {state}\n\
             private dir = {state}\nncalrpc dir = {state}/rpc\nlog file = {state}/log\nsmb ports = {port}\n\
             interfaces = lo\nbind interfaces only = yes\ndisable netbios = yes\nload printers = no\nprinting = bsd\n\
             printcap name = /dev/null\n{shares}\n"
        );
        fs::write(&conf, text).unwrap();
        let log = fs::File::create(dir.join("smbd.log")).unwrap();
        let mut command = Command::new("/usr/sbin/smbd");
        command
            .args(["--foreground", "--no-process-group", "--debug-stdout", "-s"])
            .arg(&conf)
            .env("TZ", "UTC");
        // At its end it ends its whole group.
        command.process_group(0);
        let smbd = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let samba = Self { smbd, conf, port };
        wait_for("Samba to answer", || samba.client("dir").ok());
        samba
    }

    /// What `smbclient` says to a command on the share `v`.
    pub fn client(&self, command: &str) -> Result<String, Failure> {
        output("smbclient", |client| {
            client
                .arg("-s")
                .arg(&self.conf)
                .args(["-p", &self.port, "//127.0.0.1/v", "-U%", "-c", command])
                .env("TZ", "UTC")
        })
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.smbd);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.smbd.wait();
    }
}
