//! `history`: what was replicated, and what became of snapshots, as long as it is remembered.

use std::sync::Arc;

use zumastor_core::VolumeName;

use super::{Daemon, holds::blocking};
use crate::{
    api::{HISTORY_SCHEMA, History},
    exit::Failure,
};

impl Daemon {
    /// What is remembered of a volume, at most so many entries of each kind, the newest first.
    pub async fn history(self: &Arc<Self>, name: &VolumeName, most: usize) -> Result<History, Failure> {
        let volume = self.volume(name)?;
        let (state, name) = (self.state.clone(), volume.name.clone());
        let read = move || {
            let (transfers, events) = (state.history(&name, most)?, state.events(&name, most)?);
            Ok(History { schema: HISTORY_SCHEMA, volume: name, transfers, events })
        };
        Ok(blocking(read).await?)
    }
}
