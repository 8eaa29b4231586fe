//! Device-mapper: devices by name, their tables, and their nodes in `/dev/mapper`.
//!
//! The nodes are links of ours, with or without udev: they can be put in place in one step, and bear the names that the
//! volume's users know (`VOLUME(7)`), which udev would mangle. It must not come to think that one is its own: it removes those that it made,
//! wherever they lead meanwhile.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use devicemapper::{
    DM, DevId, DeviceInfo, DmError, DmFlags, DmNameBuf, DmOptions, DmUdevFlags, DmUuid, errors,
};
use uuid::Uuid;
use zumastor_core::StoreError;

use super::{
    Access, Gone,
    command::{self, Command},
    kernel::PREFIX,
};

/// Where the nodes are.
const NODES: &str = "/dev/mapper";

/// How often a device that somebody has open is tried to be removed.
const TRIES: u32 = 5;
/// Pause between two of these.
const PAUSE: Duration = Duration::from_millis(200);

/// A line of a table: length in sectors, target, parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub sectors: u64,
    pub target: &'static str,
    pub parameters: String,
}

/// A device as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// `major:minor`.
    pub number: String,
    pub minor: u32,
    pub users: u32,
    pub read_only: bool,
    /// Whether it stands still.
    pub suspended: bool,
    /// Whether a table is loaded that is used from the next resume on.
    pub loaded: bool,
    pub uuid: String,
}

impl Mapped {
    pub(crate) fn major(&self) -> u32 {
        self.number.split(':').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }
}

/// The control device.
pub(crate) struct Mapper(DM);

impl fmt::Debug for Mapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mapper")
    }
}

impl Mapper {
    pub(crate) fn open() -> Result<Self, StoreError> {
        DM::new().map(Self).map_err(|error| {
            StoreError::Unsupported(format!(
                "this machine has no device-mapper, which volumes on block devices need ({error}): `modprobe dm-mod`"
            ))
        })
    }

    /// The names of all devices.
    pub(crate) fn names(&self) -> Result<Vec<String>, StoreError> {
        let devices = self.0.list_devices().map_err(failed("listing", "devices"))?;
        Ok(devices.into_iter().map(|(name, _, _)| demangled(&name.to_string())).collect())
    }

    /// The device of a name, if there is one.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Mapped>, StoreError> {
        match self.0.device_info(&DevId::Name(&dm_name(name)?)) {
            Ok(info) => Ok(Some(mapped(&info))),
            Err(error) if errno(&error) == Some(libc::ENXIO) => Ok(None),
            Err(error) => Err(failed("looking at", name)(error)),
        }
    }

    /// The device of a uuid, and its name, if there is one.
    pub(crate) fn find_uuid(&self, uuid: &str) -> Result<Option<(String, Mapped)>, StoreError> {
        let id = DmUuid::new(uuid).map_err(failed("looking at", uuid))?;
        match self.0.device_info(&DevId::Uuid(id)) {
            Ok(info) => {
                let name = info.name().map(|name| demangled(&name.to_string())).unwrap_or_default();
                Ok(Some((name, mapped(&info))))
            }
            Err(error) if errno(&error) == Some(libc::ENXIO) => Ok(None),
            Err(error) => Err(failed("looking at", uuid)(error)),
        }
    }

    /// Makes a device have this table and this access, whether it is there already or not.
    pub(crate) fn ensure(
        &self,
        name: &str,
        prefix: &str,
        table: &[Line],
        access: Access,
    ) -> Result<Mapped, StoreError> {
        let targets = targets(table);
        if let Some(there) = self.find(name)? {
            if !there.uuid.starts_with(prefix) {
                return Err(StoreError::Unsupported(format!(
                    "there is a device {NODES}/{name} already, and it is not of this volume: choose another name for the \
                     volume, or remove the device"
                )));
            }
            let has = self.table(name)?;
            if has != targets || there.read_only != (access == Access::ReadOnly) {
                self.load(name, table, access)?;
                self.suspend(name, false)?;
            } else if there.loaded {
                // A crash left it there: it is not to be what the device goes on with.
                self.unload(name)?;
            }
            // Also one that a crash left suspended.
            self.resume(name)?;
        } else {
            let uuid = format!("{prefix}{}", Uuid::now_v7().simple());
            let uuid = DmUuid::new(&uuid).map_err(failed("naming", name))?;
            let options = match access {
                Access::ReadOnly => DmOptions::default().set_flags(DmFlags::DM_READONLY),
                Access::Writable => DmOptions::default(),
            };
            self.0.device_create(&dm_name(name)?, Some(uuid), options).map_err(failed("making", name))?;
            let loaded = self.load(name, table, access).and_then(|()| self.resume(name));
            if let Err(error) = loaded {
                let _ = self.give(name, Command::Remove { later: false });
                return Err(error);
            }
        }
        self.find(name)?.ok_or_else(|| gone(name))
    }

    /// Loads a table, which is used from the next resume on.
    pub(crate) fn load(&self, name: &str, table: &[Line], access: Access) -> Result<(), StoreError> {
        let options = match access {
            Access::ReadOnly => DmOptions::default().set_flags(DmFlags::DM_READONLY),
            Access::Writable => DmOptions::default(),
        };
        let loaded = self.0.table_load(&DevId::Name(&dm_name(name)?), &targets(table), options);
        loaded.map(drop).map_err(failed("giving a table to", name))
    }

    /// Forgets a table that was loaded and not used.
    pub(crate) fn unload(&self, name: &str) -> Result<(), StoreError> {
        self.0.table_clear(&DevId::Name(&dm_name(name)?)).map(drop).map_err(failed("clearing", name))
    }

    /// Its targets: begin and length in sectors, kind, parameters.
    pub(crate) fn table(&self, name: &str) -> Result<Vec<(u64, u64, String, String)>, StoreError> {
        let options = DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE);
        let (_, table) = self
            .0
            .table_status(&DevId::Name(&dm_name(name)?), options)
            .map_err(failed("reading the table of", name))?;
        Ok(table)
    }

    /// What the first target of a device says of itself; a pool commits before that, unless it is only glanced at.
    pub(crate) fn status(&self, name: &str, glance: bool) -> Result<String, StoreError> {
        let flags = if glance { DmFlags::DM_NOFLUSH } else { DmFlags::empty() };
        let options = DmOptions::default().set_flags(flags);
        let (_, status) = self
            .0
            .table_status(&DevId::Name(&dm_name(name)?), options)
            .map_err(failed("reading the status of", name))?;
        status.into_iter().next().map(|(.., status)| status).ok_or_else(|| gone(name))
    }

    /// Holds back what is written to and read from a device. With `freeze`, a file system on it is brought to rest first.
    pub(crate) fn suspend(&self, name: &str, freeze: bool) -> Result<(), StoreError> {
        let skip = if freeze { DmFlags::empty() } else { DmFlags::DM_SKIP_LOCKFS };
        let options = DmOptions::default().set_flags(DmFlags::DM_SUSPEND | skip);
        let suspended = self.0.device_suspend(&DevId::Name(&dm_name(name)?), options);
        suspended.map(drop).map_err(failed("suspending", name))
    }

    pub(crate) fn resume(&self, name: &str) -> Result<(), StoreError> {
        self.give(name, Command::Resume).map_err(refused("resuming", name))
    }

    /// Sends a message to a target; the error is what the kernel answered.
    pub(crate) fn message(&self, name: &str, message: &str) -> Result<(), io::Error> {
        let name = dm_name(name).map_err(io::Error::other)?;
        match self.0.target_msg(&DevId::Name(&name), None, message) {
            Ok(_) => Ok(()),
            Err(error) => Err(io_error(error)),
        }
    }

    /// Removes a device and its node. With `patience`, whoever has it open for a moment, as udev does, is waited for; with
    /// `later`, the device goes when it is closed.
    pub(crate) fn remove(&self, name: &str, patience: bool, later: bool) -> Result<Gone, StoreError> {
        let Some(there) = self.find(name)? else {
            unlink(name, None);
            return Ok(Gone::Yes);
        };
        if there.users > 0 && !patience && !later {
            return Ok(Gone::Later);
        }
        let linked = unlink(name, Some(there.minor));
        let is_busy = |error: &io::Error| error.raw_os_error() == Some(libc::EBUSY);
        let mut tries = 1..TRIES;
        let removed = loop {
            match self.give(name, Command::Remove { later }) {
                Err(error) if is_busy(&error) && tries.next().is_some() => thread::sleep(PAUSE),
                removed => break removed,
            }
        };
        match removed {
            Ok(()) if later && self.find(name)?.is_some() => Ok(Gone::Later),
            Ok(()) => Ok(Gone::Yes),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(Gone::Yes),
            Err(error) if is_busy(&error) => {
                // It stays what it is, under its name.
                if linked {
                    link(name, there.minor)?;
                }
                Ok(Gone::Later)
            }
            Err(error) => Err(refused("removing", name)(error)),
        }
    }

    /// Gives a device another name; the node stays as it is.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        self.give(from, Command::Rename(&dm_name(to)?)).map_err(refused("renaming", from))
    }

    /// Gives a command of which udev hears: to leave the device alone, if it is ours. LVM's have nodes that are udev's, and it has been
    /// told what they need.
    fn give(&self, name: &str, command: Command<'_>) -> io::Result<()> {
        let there = self.find(name).map_err(io::Error::other)?;
        let ours = there.is_some_and(|there| there.uuid.starts_with(PREFIX));
        let udev = if ours { leave_alone() } else { DmUdevFlags::empty() };
        command::give(self.0.file(), &dm_name(name).map_err(io::Error::other)?, command, udev)
    }
}

/// The node of a device.
pub(crate) fn node(name: &str) -> PathBuf {
    Path::new(NODES).join(name)
}

/// Puts a node in place, in one step.
pub(crate) fn link(name: &str, minor: u32) -> Result<(), StoreError> {
    let (path, target) = (node(name), format!("../dm-{minor}"));
    if fs::read_link(&path).is_ok_and(|there| there == Path::new(&target)) {
        return Ok(());
    }
    let new = node(&format!(".{name}.new"));
    let _ = fs::remove_file(&new);
    let linked = symlink(&target, &new).and_then(|()| fs::rename(&new, &path));
    linked.map_err(StoreError::io(format!("making {}", path.display())))
}

/// Removes a node, if it leads to this device. Whether it did.
pub(crate) fn unlink(name: &str, minor: Option<u32>) -> bool {
    let path = node(name);
    let ours = fs::read_link(&path)
        .is_ok_and(|there| minor.is_none_or(|minor| there == Path::new(&format!("../dm-{minor}"))));
    if ours
        && let Err(error) = fs::remove_file(&path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "could not remove the node of a device");
    }
    ours
}

/// The names of nodes that are links to devices of device-mapper, whether these are there or not.
pub(crate) fn links() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NODES) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let leads =
        |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("../dm-"));
    paths.filter(leads).filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
}

/// The names of nodes that lead nowhere.
pub(crate) fn dangling() -> Vec<String> {
    links().into_iter().filter(|name| !node(name).exists()).collect()
}

/// That udev makes no nodes for our devices, and looks for nothing on them.
fn leave_alone() -> DmUdevFlags {
    // It heeds the others from then on only with the first.
    DmUdevFlags::DM_UDEV_PRIMARY_SOURCE_FLAG
        | DmUdevFlags::DM_UDEV_DISABLE_DM_RULES_FLAG
        | DmUdevFlags::DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
        | DmUdevFlags::DM_UDEV_DISABLE_DISK_RULES_FLAG
        | DmUdevFlags::DM_UDEV_DISABLE_OTHER_RULES_FLAG
}

fn targets(table: &[Line]) -> Vec<(u64, u64, String, String)> {
    let mut start = 0;
    let mut targets = Vec::with_capacity(table.len());
    for Line { sectors, target, parameters } in table {
        targets.push((start, *sectors, (*target).to_owned(), parameters.clone()));
        start += sectors;
    }
    targets
}

/// The kernel's name of a device: as libdevmapper has it, so that dmsetup(8) can work with it.
fn dm_name(name: &str) -> Result<DmNameBuf, StoreError> {
    DmNameBuf::new(mangled(name)).map_err(failed("naming", name))
}

fn mangled(name: &str) -> String {
    let mut mangled = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => mangled.push(byte.into()),
            b'#' | b'+' | b'-' | b'.' | b':' | b'=' | b'@' | b'_' => mangled.push(byte.into()),
            _ => mangled.push_str(&format!("\\x{byte:02x}")),
        }
    }
    mangled
}

fn demangled(name: &str) -> String {
    let mut parts = name.split("\\x");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                plain.push(byte.into());
                plain.push_str(&part[2..]);
            }
            None => {
                plain.push_str("\\x");
                plain.push_str(part);
            }
        }
    }
    plain
}

fn mapped(info: &DeviceInfo) -> Mapped {
    let device = info.device();
    Mapped {
        number: device.to_string(),
        minor: device.minor,
        users: u32::try_from(info.open_count()).unwrap_or(0),
        read_only: info.flags().contains(DmFlags::DM_READONLY),
        suspended: info.flags().contains(DmFlags::DM_SUSPEND),
        loaded: info.flags().contains(DmFlags::DM_INACTIVE_PRESENT),
        uuid: info.uuid().map(ToString::to_string).unwrap_or_default(),
    }
}

fn gone(name: &str) -> StoreError {
    StoreError::Unsupported(format!("the device {name} was removed by somebody else"))
}

fn errno(error: &DmError) -> Option<i32> {
    match error {
        DmError::Core(errors::Error::Ioctl(.., errno)) => io::Error::from(**errno).raw_os_error(),
        _ => None,
    }
}

fn io_error(error: DmError) -> io::Error {
    errno(&error).map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

fn failed<'a>(doing: &'a str, name: &'a str) -> impl FnOnce(DmError) -> StoreError + use<'a> {
    move |error| refused(doing, name)(io_error(error))
}

fn refused<'a>(doing: &'a str, name: &'a str) -> impl FnOnce(io::Error) -> StoreError + use<'a> {
    StoreError::io(format!("{doing} device-mapper device {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_mangled_as_libdevmapper_does_it() {
        for (plain, kernels) in
            [("vol", "vol"), ("vol(12)", "vol\\x2812\\x29"), ("a-b_c.d:pool", "a-b_c.d:pool")]
        {
            assert_eq!(mangled(plain), kernels);
            assert_eq!(demangled(kernels), plain);
        }
        assert_eq!(demangled("odd\\xzz"), "odd\\xzz");
    }
}
