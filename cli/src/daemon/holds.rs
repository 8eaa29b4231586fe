//! The holds of one pair of volume and peer.

use std::{io, sync::Arc};

use async_trait::async_trait;
use zumastor_core::{NodeName, SnapshotNumber, StoreError};
use zumastor_net::Holds;

use super::{
    hooks,
    state::{State, StateError},
    volume::Volume,
};
use crate::api::Direction;

/// The hold on the newest common snapshot: the base of the next transfer.
const BASE: &str = "base";
/// The hold on a snapshot that is being sent.
const TRANSFER: &str = "transfer";

/// Which end of the pair this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It sends.
    Upstream,
    /// It receives.
    Downstream,
}

/// Keeps what a pair of nodes needs of a volume from being deleted here.
#[derive(Debug)]
pub struct PairHolds {
    state: Arc<State>,
    volume: Arc<Volume>,
    peer: NodeName,
    side: Side,
}

impl PairHolds {
    /// The holds of `peer` on `volume`.
    pub fn new(state: Arc<State>, volume: Arc<Volume>, peer: NodeName, side: Side) -> Self {
        Self { state, volume, peer, side }
    }

    async fn replace(
        &self,
        holds: Vec<(SnapshotNumber, &'static str)>,
        common: Option<SnapshotNumber>,
    ) -> Result<(), StoreError> {
        let (state, volume, peer, side) =
            (self.state.clone(), self.volume.clone(), self.peer.clone(), self.side);
        let noted = blocking(move || {
            let defined = || is_defined(&volume, &peer, side, &holds);
            state.replace_holds(&volume.name, &peer, &holds, common, defined)
        });
        let noted = noted.await.map_err(|error| StoreError::io("noting holds")(io::Error::other(error)))?;
        self.or_undefined(noted)
    }

    fn or_undefined(&self, noted: bool) -> Result<(), StoreError> {
        if !noted {
            let (volume, peer) = (&self.volume.name, &self.peer);
            return Err(StoreError::Unsupported(format!(
                "{peer} has been forgotten for volume {volume}, or a snapshot that it needs was just deleted"
            )));
        }
        Ok(())
    }
}

/// Whether the pair still is one, and nothing that it is to hold is being deleted. Asked when nobody else writes: nobody would
/// ever lift a hold that comes after the forgetting.
fn is_defined(volume: &Volume, peer: &NodeName, side: Side, holds: &[(SnapshotNumber, &str)]) -> bool {
    let doomed = volume.doomed.lock().expect("no panic while locked");
    if holds.iter().any(|(number, _)| doomed.contains(number)) {
        return false;
    }
    let config = volume.config();
    match side {
        Side::Upstream => config.target.contains_key(peer),
        Side::Downstream => config.source.is_some_and(|source| source.host == *peer),
    }
}

#[async_trait]
impl Holds for PairHolds {
    async fn transferring(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
    ) -> Result<(), StoreError> {
        let base = base.map(|number| (number, BASE));
        // At the downstream there is no target to be held yet: what is staged is nobody's to delete.
        let target = (self.side == Side::Upstream).then_some((target, TRANSFER));
        self.replace(base.into_iter().chain(target).collect(), None).await
    }

    async fn common(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        let holds = [(number, BASE)];
        let defined = || is_defined(&self.volume, &self.peer, self.side, &holds);
        let known = self.state.confirm(&self.volume.name, &self.peer, &holds, number, defined);
        let news = match known {
            Some(noted) => {
                self.or_undefined(noted)?;
                false
            }
            None => {
                let (state, name, peer) = (self.state.clone(), self.volume.name.clone(), self.peer.clone());
                let before = blocking(move || state.cursor(&name, &peer)).await.ok().flatten();
                self.replace(holds.into(), Some(number)).await?;
                before.is_none_or(|before| before.common < number)
            }
        };
        if self.side == Side::Upstream {
            if news {
                hooks::replicated(&self.volume, &self.peer, Direction::Sent, Ok(number));
            }
            // It is well: what stopped the announcing may be over.
            self.volume.with_target(&self.peer, |target| {
                if let Some(target) = target {
                    target.worker.rearm();
                }
            });
        }
        Ok(())
    }
}

/// Runs something that waits for a disk where it keeps nobody from working.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, StateError> {
    tokio::task::spawn_blocking(work).await.expect("the state database does not panic")
}

#[cfg(test)]
mod tests {
    use zumastor_core::{
        VolumeName,
        config::{SourceConfig, TargetConfig, VolumeConfig},
    };

    use super::*;

    #[tokio::test]
    async fn holds_move_with_the_transfer() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(State::open(&dir.path().join("state.redb")).unwrap());
        let name: VolumeName = "v".parse().unwrap();
        let config = VolumeConfig {
            source: Some(SourceConfig {
                host: "alpha".parse().unwrap(),
                period: None,
                name: None,
                mount_snap: false,
                export: Vec::new(),
                margin: None,
            }),
            target: [("beta".parse().unwrap(), TargetConfig::default())].into(),
            ..VolumeConfig::new("/v", "/s")
        };
        let volume = Arc::new(Volume::new(name.clone(), config.clone(), Arc::default()));
        let held = || {
            let holds = state.holds(&name).unwrap();
            holds.iter().map(|hold| format!("{}:{}", hold.number, hold.name)).collect::<Vec<_>>()
        };
        let up = PairHolds::new(state.clone(), volume.clone(), "beta".parse().unwrap(), Side::Upstream);
        up.transferring(None, SnapshotNumber(0)).await.unwrap();
        assert_eq!(held(), ["0:transfer"]);
        up.common(SnapshotNumber(0)).await.unwrap();
        up.transferring(Some(SnapshotNumber(0)), SnapshotNumber(3)).await.unwrap();
        assert_eq!(held(), ["0:base", "3:transfer"]);
        up.common(SnapshotNumber(3)).await.unwrap();
        assert_eq!(held(), ["3:base"]);
        let down = PairHolds::new(state.clone(), volume.clone(), "alpha".parse().unwrap(), Side::Downstream);
        down.transferring(Some(SnapshotNumber(2)), SnapshotNumber(4)).await.unwrap();
        assert_eq!(held(), ["2:base", "3:base"]);
        volume.set_config(VolumeConfig { target: [].into(), ..config });
        assert!(up.common(SnapshotNumber(4)).await.is_err());
        assert_eq!(held(), ["2:base", "3:base"]);
    }
}
