//! Where a node keeps its configuration, its state and its socket.

use std::{
    env,
    path::{Path, PathBuf},
};

use zumastor_core::VolumeName;

use crate::exit::Failure;

/// The directories of one node.
///
/// | | with `ZUMASTOR_ROOT=DIR` | root | anyone else |
/// |---|---|---|---|
/// | configuration | `DIR/etc` | `/etc/zumastor` | `$XDG_CONFIG_HOME/zumastor` (`~/.config/zumastor`) |
/// | state | `DIR/lib` | `/var/lib/zumastor` | `$XDG_STATE_HOME/zumastor` (`~/.local/state/zumastor`) |
/// | runtime | `DIR/run` | `/run/zumastor` | `$XDG_RUNTIME_DIR/zumastor`, or the state directory |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    config: PathBuf,
    state: PathBuf,
    runtime: PathBuf,
}

impl Paths {
    /// The directories that the environment of this process asks for.
    pub fn from_env() -> Result<Self, Failure> {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(root) = variable("ZUMASTOR_ROOT") {
            let root = std::path::absolute(&root).map_err(Failure::doing("ZUMASTOR_ROOT"))?;
            return Ok(Self::below(&root));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self {
                config: "/etc/zumastor".into(),
                state: "/var/lib/zumastor".into(),
                runtime: "/run/zumastor".into(),
            });
        }
        let home = || {
            variable("HOME").ok_or_else(|| {
                Failure::failed(
                    "neither ZUMASTOR_ROOT nor HOME is set, so there is no place for configuration and state",
                )
                .remedy("set ZUMASTOR_ROOT to a directory")
            })
        };
        let place = |name: &str, fallback: &str| match variable(name) {
            Some(dir) => Ok(dir.join("zumastor")),
            None => home().map(|home| home.join(fallback).join("zumastor")),
        };
        let state = place("XDG_STATE_HOME", ".local/state")?;
        let runtime = variable("XDG_RUNTIME_DIR").map_or_else(|| state.clone(), |dir| dir.join("zumastor"));
        Ok(Self { config: place("XDG_CONFIG_HOME", ".config")?, state, runtime })
    }

    /// All three below one directory, as `ZUMASTOR_ROOT` does.
    pub fn below(root: &Path) -> Self {
        Self { config: root.join("etc"), state: root.join("lib"), runtime: root.join("run") }
    }

    /// Directory of the configuration.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Directory of the state.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Directory of what lives as long as the daemon.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// `zumastor.toml`: this node.
    pub fn node_toml(&self) -> PathBuf {
        self.config.join("zumastor.toml")
    }

    /// `peers.toml`: the nodes this one trusts.
    pub fn peers_toml(&self) -> PathBuf {
        self.config.join("peers.toml")
    }

    /// Directory of the volumes' configuration.
    pub fn volumes(&self) -> PathBuf {
        self.config.join("volumes")
    }

    /// Configuration of one volume.
    pub fn volume_toml(&self, volume: &VolumeName) -> PathBuf {
        self.volumes().join(format!("{volume}.toml"))
    }

    /// The node's private key.
    pub fn node_key(&self) -> PathBuf {
        self.state.join("node.key")
    }

    /// The database of what must survive a restart and is nowhere else.
    pub fn database(&self) -> PathBuf {
        self.state.join("state.redb")
    }

    /// The directory of leaf trees and of what else can be made again, where a snapshot store has no place for them.
    pub fn digests(&self) -> PathBuf {
        self.state.join("digests")
    }

    /// The file whose lock says that a daemon runs.
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// Where volumes are mounted unless told otherwise.
    pub fn mounts(&self) -> PathBuf {
        self.runtime.join("volumes")
    }

    /// Where a volume is mounted unless told otherwise.
    pub fn mountpoint(&self, volume: &VolumeName) -> PathBuf {
        self.mounts().join(volume.as_str())
    }

    /// Where a volume's snapshots are mounted unless told otherwise.
    pub fn snappath(&self, volume: &VolumeName) -> PathBuf {
        self.mounts().join(format!("{volume}-snapshots"))
    }

    /// Links that lead to both.
    pub fn mount_links(&self, volume: &VolumeName) -> [PathBuf; 2] {
        ["mount", "snapshot"].map(|kind| self.runtime.join(kind).join(volume.as_str()))
    }

    /// What Samba is told of volumes that are shared.
    pub fn samba_conf(&self) -> PathBuf {
        self.runtime.join("samba.conf")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }
}

/// Checks that a path fits into the address of a Unix socket.
pub fn check_socket_path(path: &Path) -> Result<(), Failure> {
    let length = path.as_os_str().len();
    if length <= SOCKET_PATH {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "the control socket's path has {length} bytes and a Unix socket's may have {SOCKET_PATH}: {}",
        path.display()
    ))
    .remedy("set ZUMASTOR_ROOT to a directory with a shorter path"))
}

/// `sun_path` holds 108 bytes and ends with a zero; a temporary name beside the socket needs four more (unix(7)).
const SOCKET_PATH: usize = 103;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_moves_below_the_root() {
        let paths = Paths::below(Path::new("/r"));
        let volume = "v".parse().unwrap();
        assert_eq!(paths.volume_toml(&volume), Path::new("/r/etc/volumes/v.toml"));
        assert_eq!(paths.node_key(), Path::new("/r/lib/node.key"));
        assert_eq!(paths.socket(), Path::new("/r/run/control.sock"));
    }

    #[test]
    fn long_socket_paths_are_refused_by_name() {
        assert!(check_socket_path(Path::new(&"x".repeat(103))).is_ok());
        let failure = check_socket_path(Path::new(&"x".repeat(104))).unwrap_err();
        assert!(failure.error.contains("104 bytes"), "{failure}");
    }
}
