//! Who uses a file system: the programs that have files of it open, run from it, or stand in it.

use std::{collections::BTreeSet, fs, path::Path};

use rustix::{
    fs::{AtFlags, CWD, StatxFlags, statx},
    io::Errno,
};

/// The programs that use the file system of `devices`, as `name (pid)`, as far as this process may look.
pub fn users(devices: &[(u32, u32)]) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut users = BTreeSet::new();
    for process in processes.flatten() {
        let path = process.path();
        let pid = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid.filter(|_| uses(&path, devices)) else { continue };
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        users.insert((pid, format!("{} ({pid})", name.trim())));
    }
    users.into_iter().map(|(_, name)| name).collect()
}

/// Programs, in a few words.
pub fn names(users: &[String]) -> String {
    match users {
        [] => "something that cannot be told: a program that has it open, another mount, or the NFS server"
            .to_owned(),
        users if users.len() <= 5 => users.join(", "),
        users => format!("{} and {} more", users[..5].join(", "), users.len() - 5),
    }
}

/// The device of the file system that a path lies on.
pub fn device(path: &Path) -> Option<(u32, u32)> {
    // A file system that hangs is not waited for.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let known = || statx(CWD, path, flags, StatxFlags::empty());
    let status = known().or_else(|error| if error == Errno::INTR { known() } else { Err(error) }).ok()?;
    Some((status.stx_dev_major, status.stx_dev_minor))
}

fn uses(process: &Path, devices: &[(u32, u32)]) -> bool {
    let on = |path: &Path| device(path).is_some_and(|device| devices.contains(&device));
    if ["cwd", "root", "exe"].iter().any(|link| on(&process.join(link))) {
        return true;
    }
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if files.into_iter().any(|file| on(&file.path())) {
        return true;
    }
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let mapped = |line: &str| {
        let (major, minor) = line.split_whitespace().nth(3)?.split_once(':')?;
        let read = |text| u32::from_str_radix(text, 16).ok();
        Some((read(major)?, read(minor)?))
    };
    maps.lines().filter_map(mapped).any(|device| devices.contains(&device))
}
