//! NFS exports by `exportfs`. Nothing is written to `/etc/exports`: what is exported here lasts until it is taken back, or the
//! machine is started again.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zumastor_core::steps;

use super::clients::{Device, expire_on};
use crate::mounts::devices_at;

/// A directory that is exported, read only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Where a file system is mounted.
    pub path: PathBuf,
    /// What clients know the file system by: the same after a restart and after a flip, so that they go on.
    pub fsid: Uuid,
}

/// Who may mount an export: `*`, a host, a network such as `10.0.0.0/8`, or `@netgroup`, as in exports(5).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Client(String);

/// Not the name of clients.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} names no clients of an export: write *, a host, a network such as 10.0.0.0/8, or @netgroup")]
pub struct InvalidClient(String);

/// What is exported now: the path, the client, and the options.
#[derive(Debug, PartialEq, Eq)]
struct Exported {
    path: PathBuf,
    client: String,
    options: String,
}

impl Exported {
    fn is(&self, export: &Export) -> bool {
        let fsid = format!("fsid={}", export.fsid);
        self.path == export.path && self.options.split(',').any(|option| option == fsid)
    }
}

impl FromStr for Client {
    type Err = InvalidClient;

    fn from_str(text: &str) -> Result<Self, InvalidClient> {
        let good = |c: char| c.is_ascii_alphanumeric() || "*?.-_:/@[]".contains(c);
        let fits = (1..=255).contains(&text.len()) && !text.starts_with('-') && text.chars().all(good);
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidClient(text.to_owned())) }
    }
}

impl TryFrom<String> for Client {
    type Error = InvalidClient;
    fn try_from(text: String) -> Result<Self, InvalidClient> {
        text.parse()
    }
}

impl From<Client> for String {
    fn from(client: Client) -> String {
        client.0
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What is a volume's own among all that is exported: everything below a directory, and one more with this identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own<'a> {
    /// Where the snapshots are mounted.
    pub snappath: &'a Path,
    /// The volume itself.
    pub fsid: Option<Uuid>,
}

impl Own<'_> {
    fn has(&self, there: &Exported) -> bool {
        let own = |fsid: Uuid| there.options.split(',').any(|option| option == format!("fsid={fsid}"));
        there.path.starts_with(self.snappath) || self.fsid.is_some_and(own)
    }
}

/// Exports what is wanted to these clients, but for what of `done` is still exported: the table has other names for some
/// clients. Gives what could not be done.
pub fn sync(wanted: &[Export], clients: &[Client], done: &[Export]) -> Vec<String> {
    let mut troubles = Vec::new();
    let there = exported();
    for export in wanted {
        if done.contains(export) && there.iter().any(|there| there.is(export)) {
            continue;
        }
        for client in clients {
            let options = format!("ro,root_squash,no_subtree_check,fsid={}", export.fsid);
            troubles.extend(exportfs(&["-o", &options, &at(&client.0, &export.path)]).err());
        }
    }
    troubles
}

/// Takes back what is exported of a volume and not wanted, or to more than so many clients. The server lets go of it, so that
/// it can be unmounted.
pub fn take_back(wanted: &[Export], clients: usize, own: &Own<'_>) -> Result<(), String> {
    let there = exported();
    let too_many =
        |at: &Path| there.iter().filter(|there| own.has(there) && there.path == at).count() > clients;
    let unwanted = |one: &Exported| too_many(&one.path) || !wanted.iter().any(|export| one.is(export));
    withdraw(there.iter().filter(|there| own.has(there) && unwanted(there)))
}

/// Takes back one directory, so that it can be unmounted.
pub fn retract(path: &Path) -> Result<(), String> {
    withdraw(exported().iter().filter(|there| there.path == path))
}

fn withdraw<'a>(exports: impl Iterator<Item = &'a Exported>) -> Result<(), String> {
    let (mut names, mut paths) = (Vec::new(), Vec::new());
    for one in exports {
        names.push(at(&one.client, &one.path));
        paths.push(one.path.clone());
    }
    if names.is_empty() {
        return Ok(());
    }
    // In one go: see `settle`.
    let arguments: Vec<_> = ["-u"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let settled = flushing(&arguments)?;
    expire_on(&devices_at(&paths))?;
    settle(settled)
}

/// The server goes on with what is seen now at a directory that is exported, and lets go of what was seen there before, which is
/// on this device. Clients of version 4 open their files again, there.
pub fn moved(devices: &[Device]) -> Result<(), String> {
    if !is_serving() {
        return Ok(());
    }
    let settled = flushing(&["-f"])?;
    steps::pass("exports: moved");
    // At once: what they have open is on the old one, and what they ask about it is answered from the new one.
    expire_on(devices)?;
    settle(settled)
}

/// Whether a directory is exported, by whomever.
pub fn is_exported(path: &Path) -> bool {
    exported().iter().any(|there| there.path == path)
}

/// Has the kernel ask again what is exported, and let go of what it had mounted of that.
pub fn flush() -> Result<(), String> {
    moved(&[])
}

fn is_serving() -> bool {
    Path::new("/proc/fs/nfsd/threads").exists()
}

/// Runs `exportfs`, which at its end empties the kernel's tables; true if the kernel has let go of everything that was in them.
fn flushing(arguments: &[&str]) -> Result<bool, String> {
    let settled = is_past(flushed());
    exportfs(arguments).map(|()| settled)
}

/// The kernel counts in seconds. When its tables are emptied twice in one, it does not go by what is in them any more, and yet
/// holds on to it for up to half a minute. So they are emptied again in the next one.
fn settle(settled: bool) -> Result<(), String> {
    if settled || !is_serving() {
        return Ok(());
    }
    let end = Instant::now() + PATIENCE;
    while !is_past(flushed()) && Instant::now() < end {
        thread::sleep(GLANCE);
    }
    exportfs(&["-f"])
}

/// The second, since 1970, as of which the kernel's tables were emptied last; several times in one, and it is in the future.
fn flushed() -> u64 {
    let tables = ["nfsd.export", "nfsd.fh"].map(|table| format!("/proc/net/rpc/{table}/flush"));
    let times = tables.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    times.max().unwrap_or_default()
}

fn is_past(second: u64) -> bool {
    SystemTime::now().duration_since(UNIX_EPOCH).is_ok_and(|now| now.as_secs() > second)
}

/// So long is waited at most for a second to be over.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks meanwhile.
const GLANCE: Duration = Duration::from_millis(20);

/// What is to be said where clients of NFS version 4 may go on with what they have of a file after a flip.
pub fn leases_note() -> Option<String> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
    let serving = number("/proc/fs/nfsd/threads").is_some_and(|threads| threads > 0);
    let leases = number("/proc/sys/fs/leases-enable").is_some_and(|leases| leases != 0);
    // A client renews its lease when two thirds of it are over.
    let renewed = number("/proc/fs/nfsd/nfsv4leasetime").unwrap_or(LEASE) * 2 / 3;
    (serving && leases).then(|| {
        format!(
            "the NFS server gives out delegations: a client of version 4 that asks it for nothing sees a new snapshot only after up \
             to {renewed} seconds; `sysctl fs.leases-enable=0`, then restart the NFS server"
        )
    })
}

/// Seconds that a lease lasts unless an administrator says otherwise: NFSD_LEASE_TIME of fs/nfsd/nfsd.h.
const LEASE: u32 = 90;

/// What NFS knows a volume by on this node: the same after a restart and a flip, and another than other volumes have.
pub fn volume_fsid(lineage: Uuid, volume: &str) -> Uuid {
    // FNV-1a, 128 bits.
    let hash = volume.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    Uuid::from_u128(lineage.as_u128() ^ hash)
}

fn at(client: &str, path: &Path) -> String {
    // An address with colons stands in brackets.
    match client.contains(':') && !client.starts_with('[') {
        true => format!("[{client}]:{}", path.display()),
        false => format!("{client}:{}", path.display()),
    }
}

fn exportfs(arguments: &[&str]) -> Result<(), String> {
    let failed = |error: String| format!("exportfs {}: {error}", arguments.join(" "));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let program = places.map(|dir| dir.join("exportfs")).find(|program| program.is_file());
    let program =
        program.ok_or_else(|| failed("not installed; Debian has it in nfs-kernel-server".into()))?;
    let ran = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = ran.map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() && !said.contains("rror") { Ok(()) } else { Err(failed(said)) }
}

fn exported() -> Vec<Exported> {
    let text = fs::read_to_string("/var/lib/nfs/etab").or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(String::new()),
        _ => Err(error),
    });
    text.unwrap_or_default().lines().filter_map(parse).collect()
}

/// A line of the table of exports: the path, a tab, the client, and the options in parentheses.
fn parse(line: &str) -> Option<Exported> {
    let (path, rest) = line.split_once('\t')?;
    let (client, options) = rest.split_once('(')?;
    let (client, options) = (client.to_owned(), options.strip_suffix(')')?.to_owned());
    Some(Exported { path: path.replace("\\040", " ").into(), client, options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_checked() {
        for good in ["*", "host.example", "10.0.0.0/8", "@admins", "fe80::1", "*.example"] {
            assert_eq!(good.parse::<Client>().unwrap().to_string(), good);
        }
        for bad in ["", "-o", "a b", "a(rw)", "a,b", "a;b"] {
            assert!(bad.parse::<Client>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_table_is_read() {
        let line = "/srv/a\\040b\t*(ro,sync,fsid=6ba7b810-9dad-11d1-80b4-00c04fd430c8,sec=sys)";
        let there = parse(line).unwrap();
        assert_eq!((there.path.as_path(), there.client.as_str()), (Path::new("/srv/a b"), "*"));
        assert!(there.options.split(',').any(|option| option.starts_with("fsid=6ba7")));
        assert_eq!(parse(""), None);
    }
}
