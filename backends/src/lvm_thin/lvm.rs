//! LVM's own programs: each call with fixed arguments and no shell, and what they report, as JSON.

use std::{cell::Cell, io, path::Path};

use serde::{Deserialize, de::DeserializeOwned};
use zumastor_core::StoreError;

use crate::thin::{ThinId, programs};

/// A volume group, by its name.
#[derive(Debug, Clone)]
pub(super) struct Lvm {
    pub vg: String,
}

/// What LVM knows of a volume group.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// 32 characters.
    pub uuid: String,
    /// Bytes that the size of each logical volume is a multiple of.
    pub extent: u64,
    pub tags: Vec<String>,
}

/// What LVM knows of a logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lv {
    pub name: String,
    /// 32 characters.
    pub uuid: String,
    /// What LVM calls its segment type: `thin`, `thin-pool`, `linear`, ….
    pub kind: String,
    /// In bytes.
    pub size: u64,
    /// The pool of a thin volume; otherwise empty.
    pub pool: String,
    pub thin: Option<ThinId>,
    pub tags: Vec<String>,
    /// The volume with the metadata of a pool; otherwise empty.
    pub metadata: String,
    /// Unit of allocation of a pool, in bytes.
    pub chunk: u64,
}

impl Lvm {
    /// The volume group, if there is one.
    pub(super) fn group(&self) -> Result<Option<Group>, StoreError> {
        let fields = "vg_uuid,vg_extent_size,vg_tags";
        let rows: Vec<Rows<GroupRow>> = report("vgs", &["-S", &self.selection(), "-o", fields])?;
        let row = rows.into_iter().flat_map(|rows| rows.rows).next();
        let group = row.map(|row| Group {
            uuid: plain(&row.vg_uuid),
            extent: row.vg_extent_size.parse().unwrap_or(0),
            tags: list(&row.vg_tags),
        });
        Ok(group.filter(|group| group.extent > 0))
    }

    /// All logical volumes of the group; none if there is no such group.
    pub(super) fn volumes(&self) -> Result<Vec<Lv>, StoreError> {
        let fields = "lv_name,lv_uuid,lv_size,lv_tags,segtype,pool_lv,thin_id,metadata_lv,chunk_size";
        let rows: Vec<Rows<LvRow>> = report("lvs", &["-a", "-S", &self.selection(), "-o", fields])?;
        let rows = rows.into_iter().flat_map(|rows| rows.rows);
        Ok(rows.map(LvRow::read).collect())
    }

    fn selection(&self) -> String {
        format!("vg_name={}", self.vg)
    }

    /// `VG/LV`, as LVM takes it.
    pub(super) fn of(&self, lv: &str) -> String {
        format!("{}/{lv}", self.vg)
    }
}

thread_local! {
    static HURRIED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is not to wait for anybody's lock, because a volume stands still.
pub(super) fn is_hurried() -> bool {
    HURRIED.get()
}

/// Lets `work` wait for nobody's lock: what would have to fails, and has changed nothing ([`would_wait`](crate::thin::would_wait)).
pub(super) fn hurried<T>(work: impl FnOnce() -> T) -> T {
    HURRIED.set(true);
    let done = work();
    HURRIED.set(false);
    done
}

/// Runs one of LVM's programs, and gives what it printed.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String, StoreError> {
    let output = programs::run(program, |command| {
        if is_hurried() {
            command.args(["--config", "global/wait_for_locks=0"]);
        }
        // Messages that can be looked up, and none about files of the caller.
        command.args(arguments).env("LC_ALL", "C").env("LVM_SUPPRESS_FD_WARNINGS", "1")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let complaint = lines.filter(|line| !line.starts_with("WARNING")).collect::<Vec<_>>().join("; ");
    let what = format!("`{program} {}`", arguments.join(" "));
    Err(StoreError::io(what)(io::Error::new(kind(&complaint), format!("LVM says: {complaint}"))))
}

/// Whether a command failed only because somebody else has a lock and it was not to wait. Whatever a command says next, that comes from
/// the lock's file, before anything is changed (lib/misc/lvm-flock.c of lvm2). `Failed to lock logical volume` is no lock: a device could
/// not be suspended, resumed or activated, and what came before that may have been done.
fn kind(complaint: &str) -> io::ErrorKind {
    if complaint.contains("flock failed: Resource temporarily unavailable") {
        io::ErrorKind::WouldBlock
    } else {
        io::ErrorKind::Other
    }
}

/// Volume group and logical volume of a path that names one: `/dev/VG/LV`, or that of a device of LVM's.
pub(super) fn named(path: &Path) -> Option<(String, String)> {
    if let Some((name, uuid)) = kernels(path) {
        return uuid.starts_with("LVM-").then(|| split(&name)).flatten();
    }
    let text = path.to_str()?.strip_prefix("/dev/")?;
    if let Some(name) = text.strip_prefix("mapper/") {
        return split(name);
    }
    let (vg, lv) = text.split_once('/')?;
    (is_name(vg) && is_name(lv) && !NO_GROUPS.contains(&vg)).then(|| (vg.to_owned(), lv.to_owned()))
}

/// Directories below `/dev` that are no volume groups.
const NO_GROUPS: [&str; 12] =
    ["block", "bus", "char", "cpu", "disk", "dri", "fd", "input", "mapper", "pts", "shm", "snd"];

/// What the kernel calls a device-mapper device, and its uuid.
pub(super) fn kernels(path: &Path) -> Option<(String, String)> {
    use std::os::{linux::fs::MetadataExt, unix::fs::FileTypeExt};
    let found = std::fs::metadata(path).ok().filter(|found| found.file_type().is_block_device())?;
    let number = format!("{}:{}", libc::major(found.st_rdev()), libc::minor(found.st_rdev()));
    let read = |what: &str| std::fs::read_to_string(format!("/sys/dev/block/{number}/dm/{what}")).ok();
    let (name, uuid) = (read("name")?, read("uuid")?);
    Some((name.trim().to_owned(), uuid.trim().to_owned()))
}

/// What LVM takes for a name.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    !name.is_empty() && !name.starts_with('-') && name.bytes().all(fits) && name != "." && name != ".."
}

/// The name that the kernel has for a logical volume's device.
pub(super) fn joined(vg: &str, lv: &str) -> String {
    format!("{}-{}", vg.replace('-', "--"), lv.replace('-', "--"))
}

/// The names of which [`joined`] made one.
pub(super) fn split(name: &str) -> Option<(String, String)> {
    let plain = name.replace("--", "\0");
    let (vg, lv) = plain.split_once('-').filter(|(_, lv)| !lv.contains('-'))?;
    let (vg, lv) = (vg.replace('\0', "-"), lv.replace('\0', "-"));
    (is_name(&vg) && is_name(&lv)).then_some((vg, lv))
}

fn report<T: DeserializeOwned>(program: &str, arguments: &[&str]) -> Result<Vec<T>, StoreError> {
    let how = ["--reportformat", "json", "--units", "b", "--nosuffix"];
    let text = run(program, &[&how, arguments].concat())?;
    let report: Report<T> = serde_json::from_str(&text).map_err(|error| {
        StoreError::io(format!("`{program}`"))(io::Error::other(format!(
            "its report is not understood: {error}"
        )))
    })?;
    Ok(report.report)
}

#[derive(Deserialize)]
struct Report<T> {
    report: Vec<T>,
}

#[derive(Deserialize)]
struct Rows<T> {
    #[serde(alias = "lv", alias = "vg")]
    rows: Vec<T>,
}

#[derive(Deserialize)]
struct GroupRow {
    vg_uuid: String,
    vg_extent_size: String,
    vg_tags: String,
}

#[derive(Deserialize)]
struct LvRow {
    lv_name: String,
    lv_uuid: String,
    lv_size: String,
    lv_tags: String,
    segtype: String,
    pool_lv: String,
    thin_id: String,
    metadata_lv: String,
    chunk_size: String,
}

impl LvRow {
    fn read(self) -> Lv {
        Lv {
            name: bare(&self.lv_name),
            uuid: plain(&self.lv_uuid),
            kind: self.segtype,
            size: self.lv_size.parse().unwrap_or(0),
            pool: bare(&self.pool_lv),
            thin: self.thin_id.parse().ok().map(ThinId),
            tags: list(&self.lv_tags),
            metadata: bare(&self.metadata_lv),
            chunk: self.chunk_size.parse().unwrap_or(0),
        }
    }
}

/// A name without the brackets that mark what LVM keeps to itself.
fn bare(name: &str) -> String {
    name.trim_matches(['[', ']']).to_owned()
}

/// A uuid as it is in those of devices.
fn plain(uuid: &str) -> String {
    uuid.replace('-', "")
}

/// A uuid as LVM's programs take it: 6-4-4-4-4-4-6.
pub(super) fn dashed(uuid: &str) -> String {
    let mut text = String::with_capacity(38);
    for (at, letter) in uuid.chars().enumerate() {
        if matches!(at, 6 | 10 | 14 | 18 | 22 | 26) {
            text.push('-');
        }
        text.push(letter);
    }
    text
}

fn list(tags: &str) -> Vec<String> {
    tags.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_those_of_volumes() {
        for (vg, lv, name) in
            [("vg", "lv", "vg-lv"), ("my-vg", "a--b", "my--vg-a----b"), ("v", "x_y.z+1", "v-x_y.z+1")]
        {
            assert_eq!(joined(vg, lv), name);
            assert_eq!(split(name), Some((vg.to_owned(), lv.to_owned())));
        }
        for name in ["control", "vg-pool-tpool", "a-", "-b", ""] {
            assert_eq!(split(name), None, "{name}");
        }
    }

    #[test]
    fn paths_name_volumes() {
        let named = |path: &str| named(Path::new(path));
        let of = |vg: &str, lv: &str| Some((vg.to_owned(), lv.to_owned()));
        assert_eq!(named("/dev/no-such-vg/lv"), of("no-such-vg", "lv"));
        assert_eq!(named("/dev/mapper/no--such--vg-lv"), of("no-such-vg", "lv"));
        for path in
            ["/dev/null", "/dev/shm/x", "/dev/disk/by-id/x", "/tmp/vg/lv", "/dev/a/b/c", "/dev/a/..", "vg/lv"]
        {
            assert_eq!(named(path), None, "{path}");
        }
    }

    #[test]
    fn only_a_lock_is_waited_for() {
        for (complaint, kind) in [
            (
                "/run/lock/lvm/V_vg: flock failed: Resource temporarily unavailable; Can't get lock for vg.; Cannot process volume \
                 group vg",
                io::ErrorKind::WouldBlock,
            ),
            (
                "/run/lock/lvm/P_global: flock failed: Resource temporarily unavailable",
                io::ErrorKind::WouldBlock,
            ),
            ("Failed to lock logical volume vg/vol.; Aborting. Failed to activate", io::ErrorKind::Other),
            ("Volume group \"vg\" not found; Cannot process volume group vg", io::ErrorKind::Other),
            (
                "/run/lock/lvm/V_vg: open failed: Permission denied; Can't get lock for vg.",
                io::ErrorKind::Other,
            ),
        ] {
            assert_eq!(super::kind(complaint), kind, "{complaint}");
        }
    }

    #[test]
    fn reports_are_read() {
        let text = r#"{"report":[{"lv":[
            {"lv_name":"[p_tmeta]","lv_uuid":"36aHZT-vvKa-ykeJ-d4tA-Hxx9-Nl0H-aRwvVG","lv_size":"4194304","lv_tags":"","segtype":"linear",
             "pool_lv":"","thin_id":"","metadata_lv":"","chunk_size":"0"},
            {"lv_name":"v","lv_uuid":"UrnqRP-EEb1-BeMk-9DEv-B3NN-3UNY-xeQsBJ","lv_size":"1048576","lv_tags":"a,b.c","segtype":"thin",
             "pool_lv":"p","thin_id":"7","metadata_lv":"","chunk_size":"0"}]}]}"#;
        let report: Report<Rows<LvRow>> = serde_json::from_str(text).unwrap();
        let found: Vec<_> = report.report.into_iter().flat_map(|rows| rows.rows).map(LvRow::read).collect();
        assert_eq!((found[0].name.as_str(), found[0].thin), ("p_tmeta", None));
        let Lv { uuid, size, pool, thin, tags, .. } = &found[1];
        assert_eq!((uuid.as_str(), *size, pool.as_str()), ("UrnqRPEEb1BeMk9DEvB3NN3UNYxeQsBJ", 1 << 20, "p"));
        assert_eq!((*thin, tags.len()), (Some(ThinId(7)), 2));
        assert_eq!(dashed(uuid), "UrnqRP-EEb1-BeMk-9DEv-B3NN-3UNY-xeQsBJ");
    }
}
