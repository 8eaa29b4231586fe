//! Telling whether the origin still holds what it was last known to hold.
//!
//! The origin belongs to others: they write it without asking. What can be told is that nobody wrote since a certain
//! moment, by size and time of modification; and a write always changes the time if the time is old enough.

use std::{
    fs::{self, File, FileTimes, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use zumastor_core::{SnapshotGuid, SnapshotNumber, SnapshotRecord, StoreError};

use super::layout::{Described, failed};

/// Two writes this close together may leave the same time behind: the kernel's clock for files ticks every 1 to 10 ms.
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// Which file, and when it was last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    ino: u64,
    pub size: u64,
    seconds: i64,
    nanos: i64,
}

impl Stamp {
    pub(crate) fn of(file: &File, path: &Path) -> Result<Self, StoreError> {
        Ok(Self::from(&file.metadata().map_err(failed("looking at", path))?))
    }

    /// The stamp of the file at `path`, if there is one.
    pub(crate) fn at(path: &Path) -> Result<Option<Self>, StoreError> {
        match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            metadata => Ok(Some(Self::from(&metadata.map_err(failed("looking at", path))?))),
        }
    }

    /// Whether it is the same file, whatever was written.
    pub(crate) fn same_file(&self, other: &Self) -> bool {
        self.ino == other.ino
    }

    /// How long until any later write must leave another time behind; nothing when that is so already.
    pub(crate) fn unsettled(&self) -> Option<Duration> {
        let written = SystemTime::UNIX_EPOCH
            .checked_add(Duration::new(u64::try_from(self.seconds).ok()?, u32::try_from(self.nanos).ok()?))?;
        // A file system without fractions of a second ticks once a second.
        let tick = if self.nanos == 0 { Duration::from_secs(1) + TICK } else { TICK };
        match SystemTime::now().duration_since(written) {
            Ok(age) => tick.checked_sub(age),
            // A time that is far in the future was set by hand: the next write changes it.
            Err(ahead) => (ahead.duration() < tick).then_some(tick * 2),
        }
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            ino: metadata.ino(),
            size: metadata.len(),
            seconds: metadata.mtime(),
            nanos: metadata.mtime_nsec(),
        }
    }
}

/// A file that holds exactly the content of a snapshot, as long as its stamp is this and the machine keeps running.
///
/// A power cut may take the new time of a file and leave what was written to it: whoever overwrites in place and calls
/// `fdatasync` asks only for the data. So after a restart the stamp alone is no proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub number: SnapshotNumber,
    pub guid: SnapshotGuid,
    pub stamp: Stamp,
    /// Which start of the machine the stamp was taken in.
    pub boot: String,
}

/// A name of the time since the machine was started; empty where the kernel does not tell.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or(String::new(), |id| id.trim().to_owned())
}

/// The file `head`: what the origin may be. Around a flip there are two possibilities, which the stamp tells apart.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct HeadMarker(pub Vec<Shown>);

impl Described for HeadMarker {
    const MAGIC: &'static [u8; 8] = b"ZUMAHED\x02";
}

impl HeadMarker {
    /// What the file at `origin` holds: the candidates that fit, which are one snapshot under two numbers if there are two.
    pub(crate) fn shown(&self, origin: &Path) -> Result<impl Iterator<Item = &Shown>, StoreError> {
        let stamp = Stamp::at(origin)?;
        Ok(self.0.iter().filter(move |shown| Some(shown.stamp) == stamp))
    }
}

/// Gives a file that was just filled a time in the past, so that whoever writes to it changes the time.
pub(crate) fn set_past(file: &File, path: &Path, record: &SnapshotRecord) -> Result<Stamp, StoreError> {
    let created = Duration::from_millis(u64::try_from(record.new.created.as_millisecond()).unwrap_or(0));
    let past = (SystemTime::UNIX_EPOCH + created).min(SystemTime::now()) - Duration::from_secs(1);
    file.set_times(FileTimes::new().set_modified(past)).map_err(failed("setting the time of", path))?;
    Stamp::of(file, path)
}
