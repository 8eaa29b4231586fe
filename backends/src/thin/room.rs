//! How full the pool may become: the volume itself lies in it, and can no longer be written where it fills.

use zumastor_core::{Fill, HumanBytes, PoolRoom, StoreError};

use super::{
    inner::Inner,
    pool::{PoolStatus, Room},
};

impl Inner {
    /// What may still be filled. The rest is kept for the head.
    pub(crate) fn free(&self) -> Result<u64, StoreError> {
        let data = self.data(self.pool.status()?.data);
        Ok(data.free().saturating_sub(data.least))
    }

    /// How full the pool is, as far as can be told without disturbing it.
    pub(crate) fn room(&self) -> Result<PoolRoom, StoreError> {
        let PoolStatus { data, metadata, held, trouble } = self.pool.glance()?;
        let (more_data, more_metadata) = self.pool.remedies();
        Ok(PoolRoom {
            data: self.data(data),
            metadata: metadata_fill(metadata),
            chunk: self.pool.chunk(),
            shared: self.pool.is_shared(),
            trouble,
            held: self.pool.foreign_hold(held),
            more_data,
            more_metadata,
        })
    }

    fn data(&self, room: Room) -> Fill {
        data_fill(room, self.pool.chunk())
    }

    /// Refuses what would take room that the head needs.
    pub(crate) fn admit(&self, what: &str) -> Result<(), StoreError> {
        self.admit_unless(what, |fill| fill.free() <= fill.least, |fill| fill.least)
    }

    /// Refuses a snapshot after which the volume might no longer be written: from then on, each chunk that is written over
    /// takes a new one.
    pub(crate) fn admit_snapshot(&self) -> Result<(), StoreError> {
        if self.pool.is_shared() {
            // What else fills it, nobody here can tell.
            return self.admit("a snapshot");
        }
        self.admit_unless("a snapshot", Fill::is_pressing, |fill| fill.least.midpoint(fill.low))
    }

    fn admit_unless(
        &self,
        what: &str,
        short: impl Fn(&Fill) -> bool,
        kept: impl Fn(&Fill) -> u64,
    ) -> Result<(), StoreError> {
        let status = self.pool.status()?;
        self.sound(status.trouble.as_ref())?;
        let place = self.pool.place().display();
        let (more_data, more_metadata) = self.pool.remedies();
        let (data, metadata) = (self.data(status.data), metadata_fill(status.metadata));
        if short(&data) {
            return Err(StoreError::NoSpace {
                what: format!(
                    "{what} makes the volume's next writes take new blocks, and of {} on {place} only {} are free ({} are \
                     kept for the volume itself): delete snapshots, or {more_data}",
                    HumanBytes(data.total),
                    HumanBytes(data.free()),
                    HumanBytes(kept(&data))
                ),
            });
        }
        if short(&metadata) {
            return Err(StoreError::NoSpace {
                what: format!(
                    "{what} takes metadata, and of {} only {} are free: delete snapshots, or {more_metadata}",
                    HumanBytes(metadata.total),
                    HumanBytes(metadata.free())
                ),
            });
        }
        Ok(())
    }
}

/// Data are low when less than a sixteenth is free: at least 256 MiB, which a fast disk fills in about a second, unless that is
/// more than a quarter of the pool; at most 16 GiB. A fiftieth is kept for the head, at least four chunks, at most 4 GiB.
pub(crate) fn data_fill(Room { used, total }: Room, chunk: u64) -> Fill {
    let least = (total / 50).clamp(4 * chunk, (4 << 30).max(4 * chunk));
    let low = (total / 16).max((256 << 20).min(total / 4)).min(16 << 30);
    Fill { used, total, low: low.max(2 * least), least }
}

/// Metadata are low when less than a quarter, and 128 MiB, is free. The kernel keeps a tenth, and 16 MiB, for itself, and
/// changes nothing any more when it has come to that (`__set_metadata_reserve`, drivers/md/dm-thin-metadata.c).
pub(crate) fn metadata_fill(Room { used, total }: Room) -> Fill {
    Fill { used, total, low: (total / 4).min(128 << 20), least: (total / 8).min(64 << 20) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_fits_the_pool() {
        const MIB: u64 = 1 << 20;
        let fill = |total, used| data_fill(Room { used, total }, 64 << 10);
        for (total, low, least) in [
            (MIB << 4, 4 * MIB, MIB * 16 / 50),
            (MIB << 7, 32 * MIB, MIB * 128 / 50),
            (MIB << 11, 256 * MIB, MIB * 2048 / 50),
            (MIB << 20, 16384 * MIB, 4096 * MIB),
        ] {
            let found = fill(total, 0);
            assert_eq!((found.low, found.least), (low, least), "of {total}");
        }
        // Chunks that are large in a small pool.
        let large = data_fill(Room { used: 0, total: 64 * MIB }, 4 * MIB);
        assert_eq!((large.low, large.least), (32 * MIB, 16 * MIB));
        let half = |free| fill(128 * MIB, 128 * MIB - free);
        assert!(!half(32 * MIB).is_low() && half(32 * MIB).is_nearly_low());
        assert!(half(31 * MIB).is_low() && !half(31 * MIB).is_pressing());
        assert!(half(17 * MIB).is_pressing());
        // Above what the kernel keeps for itself, in all sizes.
        for mib in [4, 100, 1000, 16 << 10] {
            let found = metadata_fill(Room { used: 0, total: mib * MIB });
            assert!((mib * MIB / 10).min(16 * MIB) < found.least && found.least < found.low, "{mib} MiB");
        }
    }
}
