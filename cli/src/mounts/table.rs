//! What is mounted, as /proc/thread-self/mountinfo tells it.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u64,
    /// The number of the mount that it lies in.
    pub parent: u64,
    /// The number of the file system's device: major, minor.
    pub device: (u32, u32),
    /// The directory of its file system that is its root.
    pub root: PathBuf,
    /// Where it is.
    pub at: PathBuf,
    /// Whether it is read only, as a mount or as a file system.
    pub read_only: bool,
    /// Whether mounts below it appear in other places too.
    pub shared: bool,
    /// Whether mounts of another place appear below it.
    pub slave: bool,
    /// What the file system is on.
    pub source: PathBuf,
}

/// Everything that is mounted in this process's view.
#[derive(Debug, Clone, Default)]
pub struct Table(pub Vec<Mount>);

impl Table {
    /// Reads it.
    pub fn read() -> io::Result<Self> {
        let text = fs::read("/proc/thread-self/mountinfo")?;
        Ok(Self(text.split(|byte| *byte == b'\n').filter_map(parse).collect()))
    }

    /// What is mounted on a directory, the one that is seen first.
    pub fn stack(&self, at: &Path) -> Vec<&Mount> {
        let mut here: Vec<&Mount> = self.0.iter().filter(|mount| mount.at == at).collect();
        let mut stack = Vec::new();
        // The one on top is no other's parent.
        while let Some(top) =
            here.iter().position(|m| !here.iter().any(|other| other.parent == m.id && other.id != m.id))
        {
            stack.push(here.remove(top));
        }
        stack
    }

    /// What is seen on a directory, if anything is mounted there.
    pub fn top(&self, at: &Path) -> Option<&Mount> {
        self.stack(at).first().copied()
    }

    /// The mounts below a directory, the deepest first.
    pub fn below(&self, directory: &Path) -> Vec<&Mount> {
        let mut below: Vec<&Mount> =
            self.0.iter().filter(|mount| mount.at != directory && mount.at.starts_with(directory)).collect();
        below.reverse();
        below.sort_by_key(|mount| std::cmp::Reverse(mount.at.components().count()));
        below
    }

    /// The mount that a mount lies in.
    pub fn around(&self, mount: &Mount) -> Option<&Mount> {
        self.0.iter().find(|around| around.id == mount.parent)
    }

    /// The directory that a mount lies on, wherever that is seen: its file system's device, and its path there.
    pub fn under(&self, mount: &Mount) -> Option<((u32, u32), PathBuf)> {
        let around = self.around(mount)?;
        let rest = mount.at.strip_prefix(&around.at).ok()?;
        Some((around.device, around.root.join(rest)))
    }

    /// The mount that holds a directory on which something may be mounted.
    pub fn holding(&self, directory: &Path) -> Option<&Mount> {
        let around = directory.parent()?;
        let mounts = self.0.iter().filter(|mount| around.starts_with(&mount.at));
        let at = mounts.max_by_key(|mount| mount.at.components().count()).map(|mount| mount.at.clone())?;
        self.top(&at)
    }
}

/// What is mounted on a directory: its source, to be named.
pub fn mounted_at(directory: &Path) -> io::Result<Option<PathBuf>> {
    Ok(Table::read()?.top(directory).map(|mount| mount.source.clone()))
}

/// The devices of the file systems that are seen at these directories.
pub fn devices_at(directories: &[PathBuf]) -> Vec<(u32, u32)> {
    let Ok(table) = Table::read() else { return Vec::new() };
    directories.iter().filter_map(|at| table.top(at)).map(|mount| mount.device).collect()
}

/// One line: proc_pid_mountinfo(5).
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let (root, at, flags) = (unescape(fields.next()?), unescape(fields.next()?), fields.next()?);
    let (mut shared, mut slave) = (false, false);
    for field in fields.by_ref() {
        match field {
            b"-" => break,
            field => {
                shared |= field.starts_with(b"shared:");
                slave |= field.starts_with(b"master:");
            }
        }
    }
    let (_kind, source, of_all) = (fields.next()?, unescape(fields.next()?), fields.next()?);
    let read_only = |flags: &[u8]| flags.split(|byte| *byte == b',').any(|flag| flag == b"ro");
    let read_only = read_only(flags) || read_only(of_all);
    Some(Mount { id, parent, device, root, at, read_only, shared, slave, source })
}

/// Blanks and the like are written as `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match (first, digits) {
            (b'\\', Some(digits)) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(u8::try_from(value).unwrap_or(b'?'));
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line = b"64 43 0:39 / /mnt/a\\040b ro,relatime shared:1 master:2 - btrfs /dev/loop0 rw,subvol=/";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.parent, mount.at.as_path()), (64, 43, Path::new("/mnt/a b")));
        assert_eq!(mount.device, (0, 39));
        assert!(mount.read_only && mount.shared && mount.source == Path::new("/dev/loop0"));
        let plain = parse(b"1 1 8:1 /sub / rw - ext4 /dev/sda1 rw,x").unwrap();
        assert!(!plain.read_only && !plain.shared && plain.root == Path::new("/sub"));
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_one_on_top_is_seen() {
        let mount = |id, parent, at: &str| Mount {
            id,
            parent,
            device: (0, 0),
            root: "/".into(),
            at: at.into(),
            read_only: false,
            shared: false,
            slave: false,
            source: format!("s{id}").into(),
        };
        // The third was put beneath the second.
        let table =
            Table(vec![mount(1, 0, "/"), mount(2, 3, "/m"), mount(3, 1, "/m"), mount(4, 2, "/m/x/y")]);
        let stack: Vec<_> = table.stack(Path::new("/m")).iter().map(|mount| mount.id).collect();
        assert_eq!(stack, [2, 3]);
        assert_eq!(table.below(Path::new("/m")).len(), 1);
        assert_eq!(table.holding(Path::new("/m")).unwrap().id, 1);
        let under = |at: usize| table.under(&table.0[at]).unwrap();
        assert_eq!((under(2), under(3)), (((0, 0), "/m".into()), ((0, 0), "/x/y".into())));
    }
}
