//! NFS exports by `exportfs`. Nothing is written to `/etc/exports`: what is exported here lasts until it is taken back, or the
//! machine is started again.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

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

/// Takes back what is exported of a volume and not wanted, or to more than so many clients; true if there was something.
pub fn take_back(wanted: &[Export], clients: usize, own: &Own<'_>) -> bool {
    let there = exported();
    let mut any = false;
    for one in there.iter().filter(|there| own.has(there)) {
        let count = there.iter().filter(|there| there.path == one.path).count();
        if count > clients || !wanted.iter().any(|export| one.is(export)) {
            any = true;
            if let Err(error) = exportfs(&["-u", &at(&one.client, &one.path)]) {
                tracing::warn!("{error}");
            }
        }
    }
    any
}

/// Takes back one directory, so that it can be unmounted.
pub fn retract(path: &Path) -> Result<(), String> {
    let there: Vec<Exported> = exported().into_iter().filter(|there| there.path == path).collect();
    for there in &there {
        exportfs(&["-u", &at(&there.client, &there.path)])?;
    }
    if there.is_empty() { Ok(()) } else { flush() }
}

/// Whether a directory is exported, by whomever.
pub fn is_exported(path: &Path) -> bool {
    exported().iter().any(|there| there.path == path)
}

/// Makes the kernel look again at what is exported: it holds on to what was mounted before.
pub fn flush() -> Result<(), String> {
    if Path::new("/proc/fs/nfsd/threads").exists() { exportfs(&["-f"]) } else { Ok(()) }
}

/// What is to be said where clients of NFS version 4 may go on with what they have of a file after a flip.
pub fn leases_trouble() -> Option<&'static str> {
    let threads = fs::read_to_string("/proc/fs/nfsd/threads").unwrap_or_default();
    let serving = threads.trim().parse::<u32>().is_ok_and(|threads| threads > 0);
    let leases = fs::read_to_string("/proc/sys/fs/leases-enable").is_ok_and(|leases| leases.trim() != "0");
    (serving && leases).then_some(
        "the NFS server gives out delegations, and clients of version 4 may not see a new snapshot until they give them back: \
         `sysctl fs.leases-enable=0`, then restart the NFS server",
    )
}

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
