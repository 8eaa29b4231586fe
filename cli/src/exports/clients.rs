//! NFS clients of version 4, and what they have open on a file system: the server keeps that for them, and the file system
//! busy with it. Clients of older versions leave nothing with the server.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// The number of a file system's device: major, minor.
pub type Device = (u32, u32);

/// Where the kernel shows a directory for each client. Linux 5.3 and later.
const CLIENTS: &str = "/proc/fs/nfsd/clients";

/// How often is looked for those who opened something meanwhile.
const ROUNDS: usize = 20;

/// A client, and the devices that it has something open on: files, locks, delegations.
#[derive(Debug)]
struct Client {
    directory: PathBuf,
    /// For people.
    name: String,
    /// It has not been heard of for longer than its lease; what it has is kept for it while nobody else wants it.
    lapsed: bool,
    holds: BTreeSet<Device>,
}

impl Client {
    fn has(&self, devices: &[Device]) -> bool {
        devices.iter().any(|device| self.holds.contains(device))
    }

    /// Has the server forget it, with everything that it holds. One that is there yet introduces itself again with its next
    /// request, and opens its files again.
    fn expire(&self) -> io::Result<()> {
        match fs::write(self.directory.join("ctl"), "expire\n") {
            // It is gone by itself.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO)) => Ok(()),
            done => done,
        }
    }
}

/// The clients that have something open on one of these, for people. Those whose lease has lapsed do not count: they are
/// forgotten.
pub fn clients_on(devices: &[Device]) -> Vec<String> {
    let (lapsed, alive): (Vec<_>, Vec<_>) =
        clients().into_iter().filter(|client| client.has(devices)).partition(|client| client.lapsed);
    for client in lapsed {
        if let Err(error) = client.expire() {
            tracing::warn!(client = client.name, %error, "a client of the NFS server that is gone holds files");
        }
    }
    alive.into_iter().map(|client| client.name).collect()
}

/// The devices that any client has something open on.
pub fn devices_in_use() -> BTreeSet<Device> {
    clients().into_iter().flat_map(|client| client.holds).collect()
}

/// Has the server forget the clients that have something open on one of these, of which nothing is exported any more. What they
/// have open, they open again where the same export leads now.
pub fn expire_on(devices: &[Device]) -> Result<(), String> {
    for _ in 0..ROUNDS {
        let holding: Vec<_> = clients().into_iter().filter(|client| client.has(devices)).collect();
        if holding.is_empty() {
            return Ok(());
        }
        for client in holding {
            tracing::info!(client = client.name, "opens its files again: they are in another snapshot now");
            let failed =
                |error| format!("the NFS server does not let {} open its files again: {error}", client.name);
            client.expire().map_err(failed)?;
        }
    }
    let names: Vec<_> = clients().into_iter().filter(|client| client.has(devices)).map(|c| c.name).collect();
    Err(format!("the NFS server goes on showing an old snapshot to {}", names.join(", ")))
}

fn clients() -> Vec<Client> {
    let Ok(directories) = fs::read_dir(CLIENTS) else { return Vec::new() };
    // One that is gone meanwhile cannot be read.
    directories.flatten().filter_map(|directory| read(&directory.path()).ok()).collect()
}

fn read(directory: &Path) -> io::Result<Client> {
    let states = fs::read_to_string(directory.join("states"))?;
    let info = fs::read_to_string(directory.join("info"))?;
    let (name, lapsed) = described(&info);
    let holds = states.lines().filter_map(device).collect();
    Ok(Client { directory: directory.to_owned(), name, lapsed, holds })
}

/// The device in a line of `states`, which has it in hexadecimal digits: `… superblock: "fd:0a:12", …`.
fn device(line: &str) -> Option<Device> {
    let mut numbers = line.split_once("superblock: \"")?.1.split(':');
    let mut number = || u32::from_str_radix(numbers.next()?, 16).ok();
    Some((number()?, number()?))
}

/// The name of a client and whether its lease has lapsed, by `info`.
fn described(info: &str) -> (String, bool) {
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        Some(line.trim_matches('"').to_owned())
    };
    let address = field("address").unwrap_or_default();
    let lapsed = field("status").is_some_and(|status| status == "courtesy" || status == "expirable");
    // Behind the last colon stands the port.
    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
    (format!("the NFS client {host}"), lapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_of_clients_is_read() {
        let line = r#"- 0x00000001: { type: open, access: r-, deny: --, superblock: "fd:1a:12", filename: "/a", owner: "x" }"#;
        assert_eq!(device(line), Some((0xfd, 0x1a)));
        assert_eq!(device(r#"- 0x0002: { type: layout, closed }"#), None);
        let info =
            "clientid: 0x2b71\naddress: \"10.0.0.7:686\"\nstatus: confirmed\nname: \"Linux NFSv4.2 x\"\n";
        assert_eq!(described(info), ("the NFS client 10.0.0.7".to_owned(), false));
        assert_eq!(
            described("address: \"[fe80::1]:7\"\nstatus: courtesy\n"),
            ("the NFS client [fe80::1]".to_owned(), true)
        );
    }
}
