//! An NFS server on a guest's kernel, and clients of it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use zumastor::exit::Failure;
use zumastor_testbed::output;

use super::mounted::wait_for;

/// What the guest needs for it.
pub const TOOLS: &[&str] = &["rpcbind", "rpc.statd", "rpc.mountd", "rpc.nfsd", "exportfs", "mount.nfs"];

/// The modules of the guest's kernel.
pub const MODULES: &[&str] = &["loop", "nfsd", "nfsv3", "nfsv4"];

/// What clients of version 4 see as the root of all exports.
pub const ROOT: &str = "/run/exports";

/// Seconds of a lease, and of the time after its start in which the server gives out no delegations: the least it takes.
const LEASE: &str = "10";

/// Starts a server, with or without delegations.
pub fn serve(delegations: bool) -> Result<(), Failure> {
    let write = |path: &str, text: &str| fs::write(path, text).map_err(Failure::doing(path));
    let tmpfs = |at: &str| {
        fs::create_dir_all(at).map_err(Failure::doing(at))?;
        output("mount", |mount| mount.args(["-t", "tmpfs", "tmpfs", at]))
    };
    tmpfs("/var/lib/nfs")?;
    for name in ["v4recovery", "rpc_pipefs", "sm", "sm.bak"] {
        fs::create_dir(Path::new("/var/lib/nfs").join(name)).map_err(Failure::doing(name))?;
    }
    for name in ["etab", "rmtab", "state"] {
        write(&format!("/var/lib/nfs/{name}"), "")?;
    }
    tmpfs(ROOT)?;
    output("mount", |mount| mount.args(["-t", "nfsd", "nfsd", "/proc/fs/nfsd"]))?;
    write("/proc/sys/fs/leases-enable", if delegations { "1" } else { "0" })?;
    for time in ["nfsv4leasetime", "nfsv4gracetime"] {
        write(&format!("/proc/fs/nfsd/{time}"), LEASE)?;
    }
    output("rpcbind", |rpcbind| rpcbind.arg("-w"))?;
    output("rpc.statd", |statd| statd.arg("--no-notify"))?;
    output("rpc.mountd", |mountd| mountd)?;
    output("rpc.nfsd", |nfsd| nfsd.arg("4"))?;
    output("exportfs", |exportfs| {
        exportfs.args(["-o", "ro,fsid=0,no_subtree_check", &format!("127.0.0.1:{ROOT}")])
    })?;
    // Before, no delegation is given out.
    wait_for("the time for old clients to end", || {
        fs::read_to_string("/proc/fs/nfsd/v4_end_grace").is_ok_and(|over| over.starts_with('Y')).then_some(())
    });
    Ok(())
}

/// Mounts an export of this machine, by a version of NFS; gives where.
pub fn client(version: &str, exported: &Path) -> Result<PathBuf, Failure> {
    let below = exported.strip_prefix(ROOT).expect("it is below the root of exports");
    let seen = if version == "3" { exported.to_owned() } else { Path::new("/").join(below) };
    let at = Path::new("/run/clients").join(version).join(below);
    fs::create_dir_all(&at).map_err(Failure::doing(at.display()))?;
    let options = format!("ro,vers={version}");
    output("mount", |mount| {
        mount.args(["-t", "nfs", "-o", &options]).arg(format!("127.0.0.1:{}", seen.display())).arg(&at)
    })?;
    Ok(at)
}

/// What the server keeps for its clients of version 4, each a kind and the device it is on.
pub fn states() -> BTreeSet<(String, String)> {
    let clients = fs::read_dir("/proc/fs/nfsd/clients").expect("the server runs").flatten();
    let texts = clients.filter_map(|client| fs::read_to_string(client.path().join("states")).ok());
    let mut states = BTreeSet::new();
    for text in texts {
        for line in text.lines() {
            let word = |after: &str| Some(line.split_once(after)?.1.split([',', '"']).next()?.to_owned());
            let device = word("superblock: \"").unwrap_or_default();
            let device = device.rsplit_once(':').map(|(device, _)| device.to_owned()).unwrap_or_default();
            states.insert((word("type: ").unwrap_or_default(), device));
        }
    }
    states
}
