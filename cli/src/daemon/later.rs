//! `replicate --delay`: what was asked for is noted until it has come to an end, so that neither a restart nor another definition of
//! the target or the source loses it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::watch;
use zumastor_core::NodeName;
use zumastor_net::PullState;

use super::{
    Daemon,
    holds::blocking,
    state::{Later, State, StateError},
    volume::Volume,
    worker::Wish,
};
use crate::exit::chain;

/// Asks for a run that begins later; nothing if there is nobody to ask just now.
pub async fn ask(
    state: &Arc<State>,
    volume: &Arc<Volume>,
    host: &NodeName,
    later: Later,
    wish: Wish,
) -> Result<Option<watch::Receiver<PullState>>, StateError> {
    let (noted, name, peer) = (state.clone(), volume.name.clone(), host.clone());
    blocking(move || noted.ask_later(&name, &peer, Timestamp::now(), later)).await?;
    let follow = volume.ask(host, wish);
    if let Some(follow) = &follow {
        tokio::spawn(note_the_end(state.clone(), volume.clone(), host.clone(), later, follow.clone()));
    }
    Ok(follow)
}

/// Notes since when a volume is replicated with a peer, and asks whoever has just begun to do that for what is still to be done.
pub async fn ask_again(daemon: &Daemon, volume: &Arc<Volume>, host: &NodeName) {
    let (state, name, peer) = (daemon.state.clone(), volume.name.clone(), host.clone());
    let now = daemon.now();
    let later = match blocking(move || state.met(&name, &peer, now)).await {
        Ok(link) => link.later,
        Err(error) => {
            tracing::warn!(volume = %volume.name, %host, error = %chain(&error), "what was asked for is not known");
            None
        }
    };
    let Some(later) = later else { return };
    // What has come while nobody worked on it is done at once.
    let delay = Duration::try_from(later.at.duration_since(Timestamp::now())).unwrap_or_default();
    let wish = Wish { wanted: later.exactly, exactly: later.exactly.is_some(), delay: Some(delay) };
    if let Some(follow) = volume.ask(host, wish) {
        tokio::spawn(note_the_end(daemon.state.clone(), volume.clone(), host.clone(), later, follow));
    }
}

/// Waits for the end of a run, good or bad, which `status` and `history` tell. If nobody works on it any more, it is still to be done.
async fn note_the_end(
    state: Arc<State>,
    volume: Arc<Volume>,
    host: NodeName,
    later: Later,
    mut follow: watch::Receiver<PullState>,
) {
    let ended = |state: &PullState| !matches!(state, PullState::Running(_));
    if follow.wait_for(ended).await.is_err() {
        return;
    }
    let (name, peer) = (volume.name.clone(), host.clone());
    if let Err(error) = blocking(move || state.asked_is_done(&name, &peer, later)).await {
        tracing::warn!(volume = %volume.name, %host, error = %chain(&error), "it is not noted that what was asked for is done");
    }
}
