//! What the pool says of itself, and whose the moment of its metadata is that it holds.

use std::{fs::File, path::PathBuf};

use rustix::fs::{FlockOperation, flock};
use zumastor_core::StoreError;

use super::{
    lvm::{self, joined},
    pool::LvmPool,
};
use crate::{
    described::failed,
    thin::{
        PoolStatus,
        kernel::{Said, status, tell, trouble},
        moment::HALF_HELD,
    },
    thin_metadata::is_half_held,
};

impl LvmPool {
    /// The pool's device.
    pub(super) fn tpool(&self) -> String {
        format!("{}-tpool", joined(&self.lvm.vg, &self.pool))
    }

    pub(super) fn said(&self) -> Result<Option<Said>, StoreError> {
        Said::ask(&self.mapper, &self.tpool(), false)
    }

    pub(super) fn look(&self, glance: bool) -> Result<PoolStatus, StoreError> {
        let said = Said::ask(&self.mapper, &self.tpool(), glance);
        let trouble = trouble(&said, &self.repair());
        Ok(status(said?.as_ref(), self.chunk, trouble))
    }

    /// Where the pool's metadata are.
    pub(super) fn metadata(&self) -> Result<PathBuf, StoreError> {
        let name = joined(&self.lvm.vg, &self.metadata);
        let there = self.mapper.find(&name)?;
        there.map(|there| format!("/dev/dm-{}", there.minor).into()).ok_or_else(|| {
            StoreError::Unsupported(format!("the device {name} is gone: was the pool deactivated?"))
        })
    }

    /// What helps where nothing can be changed.
    pub(super) fn repair(&self) -> String {
        let pool = self.lvm.of(&self.pool);
        format!(
            "unmount what is in the pool, stop the daemon, then `lvchange -an {pool}`, `lvconvert --repair {pool}`, \
             `lvchange -ay {pool}`, start the daemon and make room: delete snapshots, or `lvextend --poolmetadatasize +SIZE {pool}`"
        )
    }

    /// Lets go of a moment that one of ours held when it ended: this volume, or another in the pool.
    pub(super) fn release_stale(&self, was_open: bool) -> Result<(), StoreError> {
        let _one = self.lock_metadata()?;
        let Some(said) = self.said()? else { return Ok(()) };
        let Some(held) = said.held else { return self.moment.begin() };
        if !self.moment.is_ours(was_open) {
            tracing::warn!(volume = self.volume, held, "{}", self.strange_hold());
            return self.moment.begin();
        }
        let (pool, metadata) = (self.tpool(), self.metadata()?);
        let tell = |message: &str| tell(&self.mapper, &pool, message);
        if let Err(error) = self.moment.let_go(&tell, (&pool, &metadata)) {
            // Whoever looks at the metadata next tries it again.
            tracing::warn!(volume = self.volume, held, %error, "a moment that was left is still held");
        }
        Ok(())
    }

    pub(super) fn strange_hold(&self) -> String {
        // It is not known whose it is, and it must not be let go.
        if self.metadata().is_ok_and(|metadata| is_half_held(&metadata).unwrap_or(false)) {
            return format!("pool {}: {HALF_HELD}", self.place.display());
        }
        format!(
            "somebody else holds a moment of the metadata of the pool {}: it keeps space, and changes cannot be found until it is let \
             go, `dmsetup message {} 0 release_metadata_snap` if it is not in use",
            self.place.display(),
            self.tpool()
        )
    }

    /// The right to hold a moment of the pool's metadata, against all other volumes in it.
    pub(super) fn lock_metadata(&self) -> Result<File, StoreError> {
        let path = self.metadata()?;
        let file = File::open(&path).map_err(failed("opening", &path))?;
        let how = if lvm::is_hurried() {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::LockExclusive
        };
        flock(&file, how).map_err(|error| failed("locking", &path)(error.into()))?;
        Ok(file)
    }
}
