//! Who has a block device open, and whether for writing.

use std::{fs, os::linux::fs::MetadataExt, path::Path};

use super::pool::Users;

/// Looks at what has the block device `253:minor` open, of which the kernel counts `count` uses. What cannot be accounted
/// for may write.
pub(crate) fn users(major: u32, minor: u32, count: u32) -> Users {
    if count == 0 {
        return Users::None;
    }
    // A device on top of it: device-mapper, RAID, a loop device.
    let holders = fs::read_dir(format!("/sys/dev/block/{major}:{minor}/holders"));
    if holders.is_ok_and(|mut holders| holders.next().is_some()) {
        return Users::Writers;
    }
    let mut found = 0;
    match mounted(major, minor) {
        Some(true) => return Users::Writers,
        // One use, however often it is mounted.
        Some(false) => found += 1,
        None => {}
    }
    let Ok(processes) = fs::read_dir("/proc") else { return Users::Writers };
    for process in processes.flatten() {
        let numeric = process.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        match if numeric { opened(&process.path(), (major, minor)) } else { Some(0) } {
            Some(opened) => found += opened,
            None => return Users::Writers,
        }
    }
    if found < count { Users::Writers } else { Users::Readers }
}

/// Whether the device is mounted, and if so, whether for writing.
fn mounted(major: u32, minor: u32) -> Option<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let number = format!("{major}:{minor}");
    let ours = mounts.lines().filter(|line| line.split(' ').nth(2) == Some(&number));
    // Behind the dash: type, source, and the options of the file system as a whole.
    let options = ours.filter_map(|line| line.split_once(" - ")?.1.split(' ').nth(2));
    let writable: Vec<_> = options.map(|options| options.split(',').any(|option| option == "rw")).collect();
    if writable.is_empty() { None } else { Some(writable.contains(&true)) }
}

/// How often a process has the device open; nothing if one of them is for writing.
fn opened(process: &Path, (major, minor): (u32, u32)) -> Option<u32> {
    let mut found = 0;
    let Ok(files) = fs::read_dir(process.join("fd")) else { return Some(0) };
    for file in files.flatten() {
        let Ok(there) = fs::metadata(file.path()) else { continue };
        let number = there.st_rdev();
        let block = there.st_mode() & libc::S_IFMT == libc::S_IFBLK;
        if !block || (libc::major(number), libc::minor(number)) != (major, minor) {
            continue;
        }
        let info = fs::read_to_string(process.join("fdinfo").join(file.file_name())).unwrap_or_default();
        let flags =
            info.lines().find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
        // Gone meanwhile, it is no use any more.
        let Some(flags) = flags else { continue };
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            return None;
        }
        found += 1;
    }
    Some(found)
}
