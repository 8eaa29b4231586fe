//! Thin pools as the kernel has them, whoever made them.

use std::{fs, io};

use uuid::Uuid;
use zumastor_core::StoreError;

use super::{
    mapper::{Line, Mapper, node, unlink},
    pool::{Gone, PoolStatus, Room, ThinId},
};

/// Bytes of a sector.
pub(crate) const SECTOR: u64 = 512;
/// Bytes of a block of metadata.
const METADATA_BLOCK: u64 = 4096;

/// Begins the uuid of all devices that are ours.
pub(crate) const PREFIX: &str = "ZUMASTOR-";

/// Begins the uuid of the devices of a store.
pub(crate) fn prefix(store: Uuid) -> String {
    format!("{PREFIX}{}-", store.simple())
}

/// What a pool says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub transaction: u64,
    pub metadata: (u64, u64),
    pub data: (u64, u64),
    pub held: Option<u64>,
    pub mode: String,
    pub needs_check: bool,
    /// Whether it lets those wait who write when it is full.
    pub queues: bool,
}

impl Said {
    /// Asks the pool of this name; nothing where it has failed. It commits before that, unless it is only glanced at.
    pub(crate) fn ask(mapper: &Mapper, pool: &str, glance: bool) -> Result<Option<Self>, StoreError> {
        Ok(Self::parse(&mapper.status(pool, glance)?))
    }

    /// Reads the status line; nothing where the pool has failed.
    fn parse(status: &str) -> Option<Self> {
        let words: Vec<_> = status.split_whitespace().collect();
        let pair = |at: usize| -> Option<(u64, u64)> {
            let (used, total) = words.get(at)?.split_once('/')?;
            Some((used.parse().ok()?, total.parse().ok()?))
        };
        Some(Self {
            transaction: words.first()?.parse().ok()?,
            metadata: pair(1)?,
            data: pair(2)?,
            held: words.get(3)?.parse().ok(),
            mode: (*words.get(4)?).to_owned(),
            needs_check: words.contains(&"needs_check"),
            queues: words.contains(&"queue_if_no_space"),
        })
    }

    /// Whether no more is left of the metadata than the kernel keeps for itself: a tenth, at most 16 MiB
    /// (`__set_metadata_reserve`, drivers/md/dm-thin-metadata.c).
    pub(crate) fn metadata_is_full(&self) -> bool {
        let (used, total) = self.metadata;
        total.saturating_sub(used) <= (total / 10).min((16 << 20) / METADATA_BLOCK)
    }
}

/// Gives a pool a message. It answers that all went well also where it could not commit that, and then takes it back (`pool_message`,
/// drivers/md/dm-thin.c): that is an error of no number.
pub(crate) fn tell(mapper: &Mapper, pool: &str, message: &str) -> io::Result<()> {
    mapper.message(pool, message)?;
    match Said::ask(mapper, pool, true) {
        Ok(Some(said)) if said.mode != "ro" => Ok(()),
        Ok(_) => Err(io::Error::other("the pool could not write its metadata")),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Why a pool changes nothing, if so, and what helps.
pub(crate) fn trouble(said: &Result<Option<Said>, StoreError>, repair: &str) -> Option<String> {
    match said {
        Ok(Some(said)) if said.needs_check => {
            Some(format!("the pool wants its metadata checked, and changes nothing until then: {repair}"))
        }
        Ok(Some(said)) if said.mode == "ro" => {
            Some(format!("the pool can only be read, because its metadata are full or damaged: {repair}"))
        }
        Ok(Some(_)) => None,
        Ok(None) => Some(format!("the pool has failed, because its metadata could not be written: {repair}")),
        Err(error) => Some(error.to_string()),
    }
}

/// How a pool with chunks of that size is.
pub(crate) fn status(said: Option<&Said>, chunk: u64, trouble: Option<String>) -> PoolStatus {
    let room = |(used, total): (u64, u64), unit: u64| Room { used: used * unit, total: total * unit };
    let (data, metadata) = said.map_or(((0, 0), (0, 0)), |said| (said.data, said.metadata));
    let held = said.is_some_and(|said| said.held.is_some());
    PoolStatus { data: room(data, chunk), metadata: room(metadata, METADATA_BLOCK), held, trouble }
}

/// The table of a thin device in the pool of this name.
pub(crate) fn thin_line(mapper: &Mapper, pool: &str, id: ThinId, size: u64) -> Result<Line, StoreError> {
    let pool = mapper
        .find(pool)?
        .ok_or_else(|| StoreError::Unsupported(format!("the device {pool} was removed by somebody else")))?;
    let sectors = size.div_ceil(SECTOR).max(1);
    Ok(Line { sectors, target: "thin", parameters: format!("{} {id}", pool.number) })
}

/// Whether a device or a node has the name of a volume, or one that is made of it.
pub(crate) fn is_named_after(name: &str, volume: &str) -> bool {
    let rest = name.strip_prefix(volume);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '(']))
}

/// Refuses a name that somebody else's device has.
pub(crate) fn check_name(mapper: &Mapper, name: &str) -> Result<(), StoreError> {
    let taken = match mapper.find(name)? {
        Some(there) => !there.uuid.starts_with(PREFIX),
        None => fs::symlink_metadata(node(name)).is_ok_and(|there| !there.is_symlink()),
    };
    if taken || name == "control" {
        return Err(StoreError::Unsupported(format!(
            "there is a {} already: choose another name for the volume",
            node(name).display()
        )));
    }
    Ok(())
}

/// Removes a device of a volume; one that is open gets another name, and goes when it is closed.
pub(crate) fn retire(mapper: &Mapper, volume: &str, name: &str) -> Result<Gone, StoreError> {
    match mapper.remove(name, false, false)? {
        Gone::Yes => Ok(Gone::Yes),
        Gone::Later => {
            let old = old_name(mapper, volume)?;
            unlink(name, None);
            mapper.rename(name, &old)?;
            mapper.remove(&old, false, true)
        }
    }
}

/// A name for a device of a volume that has no place any more.
pub(crate) fn old_name(mapper: &Mapper, volume: &str) -> Result<String, StoreError> {
    let names = mapper.names()?;
    let mut free = (1u32..).map(|n| format!("{volume}:old-{n}"));
    Ok(free.find(|name| !names.contains(name)).expect("there is always another number"))
}

/// Lets a device go on, whatever happens.
pub(crate) struct Suspended<'a> {
    mapper: &'a Mapper,
    name: String,
}

impl<'a> Suspended<'a> {
    pub(crate) fn new(mapper: &'a Mapper, name: String) -> Result<Self, StoreError> {
        let suspended = Self { mapper, name };
        mapper.suspend(&suspended.name, true)?;
        Ok(suspended)
    }

    pub(crate) fn resume(self) -> Result<(), StoreError> {
        let resumed = self.mapper.resume(&self.name);
        if resumed.is_ok() {
            std::mem::forget(self);
        }
        resumed
    }
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.mapper.resume(&self.name) {
            tracing::error!(%error, "the volume stands still: `dmsetup resume {}`", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pool_says_is_understood() {
        let line = "7 13/1024 100/2496 - rw discard_passdown error_if_no_space - 1024";
        let said = Said::parse(line).unwrap();
        assert_eq!(
            (said.transaction, said.metadata, said.data, said.held),
            (7, (13, 1024), (100, 2496), None)
        );
        assert!(said.mode == "rw" && !said.needs_check && !said.queues);
        let line = "7 13/1024 100/2496 42 ro no_discard_passdown queue_if_no_space needs_check 1024";
        let said = Said::parse(line).unwrap();
        assert!(said.held == Some(42) && said.mode == "ro" && said.needs_check && said.queues);
        assert_eq!(Said::parse("Fail"), None);
        assert_eq!(Said::parse("Error"), None);
    }
}
