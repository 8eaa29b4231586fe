//! Network namespaces, and what goes over loopback.

use std::{fs, io};

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
        let id = std::process::id();
        let this = Self { names: [format!("zt-{tag}{id}-a"), format!("zt-{tag}{id}-b")] };
        for name in &this.names {
            output("ip", |ip| ip.args(["netns", "add", name]))?;
        }
        let [a, b] = &this.names;
        output("ip", |ip| {
            ip.args(["-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b])
        })?;
        for (side, name) in this.names.iter().enumerate() {
            let address = format!("{}/24", Self::address(side));
            output("ip", |ip| ip.args(["-n", name, "address", "add", &address, "dev", "cable"]))?;
            for device in ["lo", "cable"] {
                output("ip", |ip| ip.args(["-n", name, "link", "set", device, "up"]))?;
            }
        }
        Ok(this)
    }

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
        output("ip", |ip| ip.args(["-n", &self.names[0], "link", "set", "cable", state])).map(drop)
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

/// Bytes that this network namespace has sent over loopback so far. What the kernel segments later (GSO) counts with
/// one set of headers.
pub fn lo_bytes() -> io::Result<u64> {
    let table = fs::read_to_string("/proc/net/dev")?;
    parse_lo(&table).ok_or_else(|| io::Error::other("/proc/net/dev has no loopback device"))
}

fn parse_lo(table: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("lo:"))?;
    line.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_among_devices() {
        let table =
            "Inter-|   Receive\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9\n    lo: 10 2 3 4 5 6 7 8 11 2 0 0\n";
        assert_eq!(parse_lo(table), Some(11));
        assert_eq!(parse_lo("  eth0: 1"), None);
    }
}
