//! The header and the pool beside each other: one moment of both, and whose the moment of the metadata is that the pool holds.

use zumastor_core::StoreError;

use super::pool::DmPool;
use crate::thin::mapper::node;

/// How the two were found to stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// The pool could not be written yet, so it may be one step behind.
    Unknown,
    /// They are of one moment.
    Together,
    /// One of them is an older copy: what it does not know of is not to be taken for what nobody needs.
    Apart { header: u64, pool: u64 },
}

impl DmPool {
    /// Puts the pool's transaction beside that of the header, as soon as the pool can be written: a crash may have come between the
    /// two. What an earlier run held of the metadata when it ended is let go then as well. That one of the two is an older copy is seen
    /// before that.
    pub(super) fn settle(&self) -> Result<Beside, StoreError> {
        // It stays what it is for as long as the two are not known to be together.
        let header = self.header().1.transaction;
        let mut beside = self.beside.lock().expect("no panic while locked");
        if *beside != Beside::Unknown {
            return Ok(*beside);
        }
        let Some(said) = self.said()? else { return Ok(Beside::Unknown) };
        let pool = said.transaction;
        let apart = !(pool..=pool + 1).contains(&header);
        if self.explained(Some(&said)).is_some() {
            if apart {
                *beside = Beside::Apart { header, pool };
                // What cannot be let go now stays noted, and is by the next who can.
                let _ = self.release_stale(said.held);
            }
            return Ok(*beside);
        }
        if pool + 1 == header {
            self.catch_up(pool, header)?;
        }
        self.release_stale(said.held)?;
        *beside = if apart { Beside::Apart { header, pool } } else { Beside::Together };
        Ok(*beside)
    }

    /// Why nothing may be changed, if the two are not of one moment.
    pub(super) fn apart(&self) -> Option<String> {
        let Beside::Apart { header, pool } = *self.beside.lock().expect("no panic while locked") else {
            return None;
        };
        Some(format!(
            "the header on {} is of transaction {header} and the metadata of the pool are of {pool}: one of them is an older \
             copy. All can be read, and nothing is changed or deleted, until the newer copy is put back; or replicate the volume \
             to a new one",
            self.place.display()
        ))
    }

    /// Lets go of a moment that an earlier run held when it ended, and notes that nothing of ours is held.
    fn release_stale(&self, held: Option<u64>) -> Result<(), StoreError> {
        if let Some(held) = held {
            if self.moment.is_ours(self.was_open) {
                let metadata = node(&self.name("metadata"));
                return self.moment.let_go(&|message| self.tell(message), (&self.name("pool"), &metadata));
            }
            tracing::warn!(volume = self.volume, held, "{}", self.strange_hold());
        }
        self.moment.begin()
    }

    /// What is in the way where a moment is held that is not ours.
    pub(super) fn strange_hold(&self) -> String {
        format!(
            "somebody else holds a moment of the metadata of volume {}: it keeps space, and changes cannot be found until it is let \
             go, `dmsetup message {} 0 release_metadata_snap` if it is not in use",
            self.volume,
            self.name("pool")
        )
    }

    /// Writes the header with the store marked as open or not.
    pub(super) fn mark(&self, open: bool) -> Result<(), StoreError> {
        let mut header = self.header();
        let (file, content) = &mut *header;
        content.open = open;
        file.write(content)
    }

    /// Puts the pool's transaction beside that of the header.
    pub(super) fn catch_up(&self, from: u64, to: u64) -> Result<(), StoreError> {
        self.told(&format!("set_transaction_id {from} {to}"))
    }
}
