//! A network between guests: a bridge in a network namespace of its own.

use std::process::{Child, Command, Stdio};

use zumastor::exit::Failure;

use crate::tools::{find, output};

/// The bridge, and a cable for each guest.
#[derive(Debug)]
pub(super) struct Network {
    names: Vec<String>,
    /// Lives in the namespace, which is gone with it.
    keeper: Child,
}

impl Network {
    pub(super) fn new(names: &[&str]) -> Result<Self, Failure> {
        let unshare = find("unshare").ok_or_else(|| Failure::failed("unshare is not installed"))?;
        // It ends when its input does: with this process, whatever becomes of it.
        let keeper = Command::new(unshare)
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Failure::doing("a network namespace"))?;
        let mut this = Self { names: names.iter().map(|&name| name.to_owned()).collect(), keeper };
        this.until_ready()?;
        this.run(&["ip", "link", "set", "lo", "up"])?;
        this.run(&["ip", "link", "add", "br0", "type", "bridge"])?;
        this.run(&["ip", "link", "set", "br0", "up"])?;
        for name in names {
            let tap = this.place(name)?.tap();
            this.run(&["ip", "tuntap", "add", "dev", &tap, "mode", "tap"])?;
            this.run(&["ip", "link", "set", &tap, "master", "br0", "up"])?;
        }
        Ok(this)
    }

    fn until_ready(&mut self) -> Result<(), Failure> {
        let mut said = [0; 6];
        let out = self.keeper.stdout.as_mut().ok_or_else(|| Failure::failed("the keeper has no output"))?;
        std::io::Read::read_exact(out, &mut said).map_err(Failure::doing("a network namespace"))
    }

    /// Runs a command in the namespace.
    pub(super) fn run(&self, command: &[&str]) -> Result<String, Failure> {
        output("nsenter", |nsenter| nsenter.args(self.enter()).args(command))
    }

    /// Arguments of `nsenter`.
    pub(super) fn enter(&self) -> [String; 4] {
        ["-t".to_owned(), self.keeper.id().to_string(), "-n".to_owned(), "--".to_owned()]
    }

    /// Where a guest's cable is.
    pub(super) fn place(&self, guest: &str) -> Result<Place, Failure> {
        let position = self.names.iter().position(|name| name == guest);
        position.map(Place).ok_or_else(|| Failure::failed(format!("the lab's network has no guest {guest}")))
    }

    /// Names and addresses of all, as in `/etc/hosts`.
    pub(super) fn hosts(&self) -> String {
        let lines =
            self.names.iter().enumerate().map(|(at, name)| format!("{} {name}\n", Place(at).address()));
        lines.collect()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // One that has ended already needs no more.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A guest's place on the bridge.
pub(super) struct Place(usize);

impl Place {
    pub(super) fn tap(&self) -> String {
        format!("tap{}", self.0 + 1)
    }

    pub(super) fn address(&self) -> String {
        format!("10.78.0.{}", self.0 + 1)
    }
}
