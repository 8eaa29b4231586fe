//! What a pool says of itself, and what is to be done about it.

use zumastor_core::StoreError;

use super::pool::DmPool;
use crate::thin::{
    Pool, PoolStatus,
    kernel::{Said, status},
    mapper::node,
};

impl DmPool {
    pub(super) fn said(&self) -> Result<Option<Said>, StoreError> {
        self.asked(false)
    }

    pub(super) fn asked(&self, glance: bool) -> Result<Option<Said>, StoreError> {
        Said::ask(&self.mapper, &self.name("pool"), glance)
    }

    /// How the pool is.
    pub(super) fn look(&self, glance: bool) -> Result<PoolStatus, StoreError> {
        let said = self.asked(glance)?;
        let trouble = self.explained(said.as_ref()).or_else(|| self.apart());
        Ok(status(said.as_ref(), self.chunk(), trouble))
    }

    /// Why nothing can be changed, and what helps.
    pub(super) fn trouble(&self) -> Option<String> {
        match self.said() {
            Ok(said) => self.explained(said.as_ref()),
            Err(error) => Some(error.to_string()),
        }
    }

    pub(super) fn explained(&self, said: Option<&Said>) -> Option<String> {
        let (volume, pool, data) = (&self.volume, self.name("pool"), self.name("data"));
        let metadata = node(&self.name("metadata"));
        let metadata = metadata.display();
        // With the daemon stopped, the metadata stay on a device of their own for this.
        let check = format!(
            "unmount what is mounted of it, stop the daemon, `dmsetup remove {pool} {data}` if they are still there, then \
             `thin_check --clear-needs-check-flag {metadata}`; where that finds damage, thin_repair(8) to another device and back; \
             then start the daemon"
        );
        let grow = format!("`zumastor resize {volume} --metadata SIZE` makes it go on at once");
        match said {
            None => Some(format!(
                "the pool has failed, because its metadata could not be written: nothing of the volume can be read or written \
                 until it is made anew: {check}"
            )),
            Some(said) if said.needs_check => Some(format!(
                "the pool wants its metadata checked (needs_check), and changes nothing until then: {check}, and make room if \
                 there was too little: `zumastor resize {volume} --metadata SIZE`, or delete snapshots"
            )),
            Some(said) if said.mode == "ro" && said.metadata_is_full() => Some(format!(
                "the pool can only be read (ro), because its metadata are full: {grow}, and then deleting snapshots makes room"
            )),
            Some(said) if said.mode == "ro" => {
                Some(format!("the pool can only be read (ro), because of an error in its metadata: {check}"))
            }
            Some(_) => None,
        }
    }
}
