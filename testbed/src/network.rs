//! Network namespaces, and what goes over their devices.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::Path,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use zumastor::exit::Failure;

use crate::tools::output;

/// Two network namespaces joined by a cable: a pair of `veth` devices with the addresses `10.99.0.1` and `10.99.0.2`.
/// Needs root. Gone when dropped.
#[derive(Debug)]
pub struct Namespaces {
    names: [String; 2],
}

impl Namespaces {
    /// Makes them. `tag` keeps those of one process apart.
    pub fn new(tag: &str) -> Result<Self, Failure> {
        let this = Self::apart(tag)?;
        let [a, b] = &this.names;
        output("ip", |ip| {
            let cable = Self::CABLE;
            ip.args(["-n", a, "link", "add", cable, "type", "veth", "peer", "name", cable, "netns", b])
        })?;
        this.plug()?;
        Ok(this)
    }

    /// Makes them, with nothing that joins them.
    pub fn apart(tag: &str) -> Result<Self, Failure> {
        let id = std::process::id();
        let this = Self { names: [format!("zt-{tag}{id}-a"), format!("zt-{tag}{id}-b")] };
        for name in &this.names {
            output("ip", |ip| ip.args(["netns", "add", name]))?;
        }
        Ok(this)
    }

    /// Gives the devices at the ends of the cable their addresses.
    pub(crate) fn plug(&self) -> Result<(), Failure> {
        for (side, name) in self.names.iter().enumerate() {
            let address = format!("{}/24", Self::address(side));
            output("ip", |ip| ip.args(["-n", name, "address", "add", &address, "dev", Self::CABLE]))?;
            for device in ["lo", Self::CABLE] {
                output("ip", |ip| ip.args(["-n", name, "link", "set", device, "up"]))?;
            }
        }
        Ok(())
    }

    /// Has the cable take packets of so many bytes.
    pub fn mtu(&self, bytes: u32) -> Result<(), Failure> {
        let bytes = bytes.to_string();
        self.names.iter().try_for_each(|name| {
            output("ip", |ip| ip.args(["-n", name, "link", "set", Self::CABLE, "mtu", &bytes])).map(drop)
        })
    }

    /// Has the kernel keep so many packets that the cable has not taken yet.
    pub(crate) fn queue(&self, packets: u32) -> Result<(), Failure> {
        let packets = packets.to_string();
        self.names.iter().try_for_each(|name| {
            let set = ["-n", name, "link", "set", Self::CABLE, "txqueuelen", &packets];
            output("ip", |ip| ip.args(set)).map(drop)
        })
    }

    /// Has TCP go by CUBIC between them, as it does on machines that are not set up otherwise.
    pub(crate) fn usual_tcp(&self) -> Result<(), Failure> {
        let route =
            ["route", "replace", "10.99.0.0/24", "dev", Self::CABLE, "proto", "kernel", "scope", "link"];
        self.names.iter().enumerate().try_for_each(|(side, name)| {
            let source = Self::address(side);
            let more = ["src", &source, "congctl", "cubic"];
            output("ip", |ip| ip.args(["-n", name]).args(route).args(more)).map(drop)
        })
    }

    /// Moves the calling thread to one side, and what it starts from now on.
    pub fn enter(&self, side: usize) -> Result<(), Failure> {
        let place = Path::new("/run/netns").join(self.name(side));
        let namespace = File::open(&place).map_err(Failure::doing(place.display()))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(Failure::doing(place.display()))
    }

    /// The device at either end.
    pub const CABLE: &str = "cable";

    /// Name of one side, 0 or 1.
    pub fn name(&self, side: usize) -> &str {
        &self.names[side]
    }

    /// Address of one side.
    pub fn address(side: usize) -> String {
        format!("10.99.0.{}", side + 1)
    }

    /// Pulls out the cable, or puts it back.
    pub fn cable(&self, plugged: bool) -> Result<(), Failure> {
        let state = if plugged { "up" } else { "down" };
        output("ip", |ip| ip.args(["-n", &self.names[0], "link", "set", Self::CABLE, state])).map(drop)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            // One that was never made is gone already.
            let _ = output("ip", |ip| ip.args(["netns", "delete", name]));
        }
    }
}

/// What a device has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// What a device of this process's network namespace has carried so far. What the kernel segments later (GSO) counts with
/// one set of headers.
pub fn carried(device: &str) -> io::Result<Carried> {
    let table = fs::read_to_string("/proc/net/dev")?;
    parse(&table, device).ok_or_else(|| io::Error::other(format!("/proc/net/dev has no device {device}")))
}

fn parse(table: &str, device: &str) -> Option<Carried> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    let mut fields = line.split_whitespace().map(str::parse);
    let (received, sent) = (fields.next()?.ok()?, fields.nth(7)?.ok()?);
    Some(Carried { received, sent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_among_others() {
        let table =
            "Inter-|   Receive\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9\n    lo: 10 2 3 4 5 6 7 8 11 2 0 0\n";
        assert_eq!(parse(table, "lo"), Some(Carried { received: 10, sent: 11 }));
        assert_eq!(parse("  eth0: 1", "lo"), None);
        assert_eq!(parse("  eth0: 1 2 3 4 5 6 7 8 9", "eth"), None);
    }
}
