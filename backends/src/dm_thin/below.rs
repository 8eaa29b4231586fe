//! The devices that a pool is made of, and the pool: making them, and taking them away.

use std::path::{Path, PathBuf};

use zumastor_core::StoreError;

use super::{
    devices::BlockDevice,
    header::{On, Piece},
    pool::DmPool,
};
use crate::{
    thin::{
        Access, Gone, Room, data_fill,
        kernel::{PREFIX, SECTOR, is_named_after},
        mapper::{Line, Mapper, link, node},
    },
    thin_metadata::drop_half_held,
};

/// Devices that a pool is made of; the pool comes first.
pub(super) const BELOW: [&str; 3] = ["pool", "data", "metadata"];

/// The devices below.
#[derive(Debug, Clone)]
pub(super) struct Devices {
    pub origin: PathBuf,
    pub snapstore: PathBuf,
    pub metadev: Option<PathBuf>,
}

impl Devices {
    pub(super) fn path(&self, on: On) -> &Path {
        match on {
            On::Origin => &self.origin,
            On::SnapshotStore => &self.snapstore,
            On::MetadataDevice => self.metadev.as_ref().unwrap_or(&self.snapstore),
        }
    }

    /// The table of a device that is made of pieces of these.
    pub(super) fn table(&self, pieces: &[Piece]) -> Result<Vec<Line>, StoreError> {
        let line = |piece: &Piece| {
            let device = BlockDevice::look(self.path(piece.on))?;
            if device.size < piece.begin + piece.length {
                let path = self.path(piece.on).to_owned();
                let what = format!(
                    "it has {} bytes, and the volume uses {}: is it the right device?",
                    device.size,
                    piece.begin + piece.length
                );
                return Err(StoreError::Damaged { path, what });
            }
            let parameters = format!("{} {}", device.number, piece.begin / SECTOR);
            Ok(Line { sectors: piece.length / SECTOR, target: "linear", parameters })
        };
        pieces.iter().map(line).collect()
    }
}

impl DmPool {
    /// Makes the devices that the pool consists of, and the pool.
    pub(super) fn assemble(&self) -> Result<(), StoreError> {
        let layout = self.header().1.layout.clone();
        let metadata = self.assemble_metadata()?;
        self.assemble_of("data", &layout.data)?;
        // New metadata are nothing yet, and what else is wrong with them the kernel says.
        if self.mapper.find(&self.name("pool"))?.is_none() && drop_half_held(&metadata).unwrap_or(false) {
            tracing::warn!(
                volume = self.volume,
                "the power went while a moment of the metadata was about to be held"
            );
        }
        let made =
            self.mapper.ensure(&self.name("pool"), &self.prefix, &[self.pool_line()?], Access::Writable)?;
        link(&self.name("pool"), made.minor)
    }

    /// Makes the device that the metadata are on, and gives its path.
    pub(super) fn assemble_metadata(&self) -> Result<PathBuf, StoreError> {
        let pieces = self.header().1.layout.metadata.clone();
        self.assemble_of("metadata", &pieces)?;
        Ok(node(&self.name("metadata")))
    }

    fn assemble_of(&self, what: &str, pieces: &[Piece]) -> Result<(), StoreError> {
        let (name, table) = (self.name(what), self.devices.table(pieces)?);
        let made = self.mapper.ensure(&name, &self.prefix, &table, Access::Writable)?;
        link(&name, made.minor)
    }

    fn pool_line(&self) -> Result<Line, StoreError> {
        let layout = self.header().1.layout.clone();
        let number = |what: &str| -> Result<String, StoreError> {
            let name = self.name(what);
            let there = self.mapper.find(&name)?;
            there.map(|there| there.number).ok_or_else(|| {
                StoreError::Unsupported(format!("the device {name} was removed by somebody else"))
            })
        };
        let chunk = layout.chunk / SECTOR;
        // The kernel tells when less is left: early enough for somebody to look often from then on.
        let fill = data_fill(Room { used: 0, total: layout.pool() }, layout.chunk);
        let low = fill.low * 2 / layout.chunk;
        // To wait for room is to hang: an error is seen.
        let parameters =
            format!("{} {} {chunk} {low} 1 error_if_no_space", number("metadata")?, number("data")?);
        Ok(Line { sectors: layout.pool() / SECTOR, target: "thin-pool", parameters })
    }

    /// Removes the pool, and what it is made of. Of one that wants its metadata checked, the device with these stays, so that they
    /// can be.
    pub(super) fn dismantle(&self) -> Result<(), StoreError> {
        let ill = self.mapper.find(&self.name("pool"))?.is_some() && self.trouble().is_some();
        for what in BELOW.into_iter().filter(|what| !(ill && *what == "metadata")) {
            self.mapper.remove(&self.name(what), true, false)?;
        }
        Ok(())
    }
}

/// The names of the devices that are named after a volume.
pub(super) fn named_after(mapper: &Mapper, volume: &str) -> Result<Vec<String>, StoreError> {
    let mut names = mapper.names()?;
    names.retain(|name| is_named_after(name, volume));
    Ok(names)
}

/// Removes devices that a store left that had this name, and is another one than that whose uuids begin with `prefix`.
pub(super) fn clear_others(mapper: &Mapper, volume: &str, prefix: &str) -> Result<(), StoreError> {
    let below = BELOW.map(|what| format!("{volume}:{what}"));
    let names = named_after(mapper, volume)?;
    let above = names.iter().filter(|name| !below.contains(name));
    for name in above.chain(&below) {
        let Some(there) = mapper.find(name)? else { continue };
        if there.uuid.starts_with(PREFIX)
            && !there.uuid.starts_with(prefix)
            && mapper.remove(name, true, false)? == Gone::Later
        {
            return Err(StoreError::Unsupported(format!(
                "{} is in use, and it is of a volume that had this name before",
                node(name).display()
            )));
        }
    }
    Ok(())
}
