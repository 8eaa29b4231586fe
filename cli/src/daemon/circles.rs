//! Volumes that go round in a circle: from a node to others, and from them back to it. Each node knows only its own source and
//! targets, so whoever sends on what it receives asks its source, and that its own, until somebody receives from nobody. It is
//! asked when a source or target is defined, before each pull, and now and then, since the circle may be closed, and opened,
//! anywhere. Nothing of it is written down.

use std::{
    sync::{Arc, Mutex, Weak, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use zumastor_core::{NodeName, VolumeName, config::SourceConfig};
use zumastor_net::{
    PublicKey, trace, trace_patience,
    wire::{Hop, MAX_HOPS, Refusal, RefusalCode, TraceReply},
};

use super::{Daemon, volume::Volume, worker::Wish};
use crate::exit::{Failure, chain};

/// How often it is looked whether a volume is to be asked about.
const TICK: Duration = Duration::from_secs(1);
/// Pause while a volume does not go round in a circle, as far as is known.
const WELL: Duration = Duration::from_secs(20);
/// Pause while a volume goes round in a circle: it goes on soon after that is over.
const IN_A_CIRCLE: Duration = Duration::from_secs(5);
/// First pause after somebody could not be asked; it doubles.
const UNASKED: Duration = Duration::from_secs(2);
/// Longest pause of these.
const LONGEST: Duration = Duration::from_secs(60);

/// What is known of whether a volume goes round in a circle.
#[derive(Debug, Default)]
pub struct Circling {
    busy: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The circle, as it is told.
    circle: Option<String>,
    /// When it is asked again; nothing if it never was.
    next: Option<Instant>,
    pause: Duration,
    /// Whether somebody could not be asked the last time.
    unasked: bool,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// It does not go round.
    Clear,
    /// It goes round like this: `alpha → beta → alpha`.
    Circle(String),
    /// Somebody could not be asked, and why.
    Unknown(String),
}

impl Circling {
    /// The circle that it was found to go round in.
    pub fn circle(&self) -> Option<String> {
        self.known.lock().expect("no panic while locked").circle.clone()
    }

    /// Has it asked about soon: there is a reason to.
    pub fn ask_soon(&self) {
        self.known.lock().expect("no panic while locked").next = None;
    }

    fn is_due(&self) -> bool {
        let known = self.known.lock().expect("no panic while locked");
        known.next.is_none_or(|next| next <= Instant::now())
    }

    /// Whether a pull is to ask first: not while somebody who is silent would only keep it waiting.
    fn is_worth_asking(&self) -> bool {
        !self.known.lock().expect("no panic while locked").unasked || self.is_due()
    }

    /// Notes what came of asking. What is not known now is as it was.
    fn note(&self, asked: &Asked) {
        let mut known = self.known.lock().expect("no panic while locked");
        known.pause = match asked {
            Asked::Clear => WELL,
            Asked::Circle(_) => IN_A_CIRCLE,
            Asked::Unknown(_) => (known.pause * 2).clamp(UNASKED, LONGEST),
        };
        known.next = Some(Instant::now() + known.pause);
        known.unasked = matches!(asked, Asked::Unknown(_));
        match asked {
            Asked::Clear => known.circle = None,
            Asked::Circle(circle) => known.circle = Some(circle.clone()),
            Asked::Unknown(_) => {}
        }
    }
}

/// Asks about the volumes that are received and sent on, for as long as the daemon lives.
pub async fn watch(daemon: Weak<Daemon>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(daemon) = daemon.upgrade() else { return };
        for volume in daemon.all_volumes() {
            if !volume.circling.is_due() || volume.circling.busy.swap(true, Ordering::Relaxed) {
                continue;
            }
            let daemon = daemon.clone();
            tokio::spawn(async move {
                let before = volume.circling.circle();
                daemon.look_round(&volume).await;
                if before.is_some() != volume.circling.circle().is_some() {
                    // It stops, or goes on, and says so.
                    volume.with_puller(|puller| puller.map(|puller| puller.ask(Wish::default())));
                }
                volume.circling.busy.store(false, Ordering::Relaxed);
            });
        }
    }
}

impl Daemon {
    /// Finds out whether a volume that is received here and sent on comes back to this node, and gives the circle if it does, or
    /// did when it could be asked last.
    async fn look_round(&self, volume: &Volume) -> Option<String> {
        let config = volume.config();
        let asked = match (&config.master, &config.source) {
            (None, Some(source)) if !config.target.is_empty() => {
                self.ask_about_source(&volume.name, source).await
            }
            // It ends or begins here.
            _ => Asked::Clear,
        };
        if let Asked::Unknown(why) = &asked {
            tracing::debug!(volume = %volume.name, why, "whether it goes round in a circle is not known");
        }
        volume.circling.note(&asked);
        volume.circling.circle()
    }

    /// The circle that a volume is not to be pulled in, if there is one.
    pub async fn circle_before_pull(&self, volume: &Volume) -> Option<String> {
        match volume.circling.is_worth_asking() {
            true => self.look_round(volume).await,
            false => volume.circling.circle(),
        }
    }

    /// Asks whether a volume would come back to this node if it came from that source.
    pub async fn ask_about_source(&self, volume: &VolumeName, source: &SourceConfig) -> Asked {
        let own = self.hop(volume);
        let reply = self.ask_upstream(volume, source, vec![own.clone()]).await;
        told(reply, &own, volume)
    }

    /// Asks whether a volume that comes from that source would come to a node that it came through, if it was sent there.
    pub async fn ask_about_target(
        &self,
        volume: &VolumeName,
        source: &SourceConfig,
        host: &NodeName,
        remote: &str,
    ) -> Asked {
        let key = self.peers().peer.get(host).and_then(|peer| peer.key.parse().ok());
        let (Some(PublicKey(key)), Ok(name)) = (key, remote.parse()) else { return Asked::Clear };
        let target = Hop { key, node: host.clone(), volume: name };
        let path = vec![target.clone(), self.hop(volume)];
        told(self.ask_upstream(volume, source, path).await, &target, volume)
    }

    /// Answers a downstream whose question has come this far.
    pub async fn follow_up(&self, volume: &Arc<Volume>, mut path: Vec<Hop>) -> TraceReply {
        let own = self.hop(&volume.name);
        if let Some(at) = path.iter().position(|hop| hop.is(&own)) {
            return TraceReply::Circle(path.split_off(at));
        }
        let config = volume.config();
        let (None, Some(source)) = (&config.master, &config.source) else { return TraceReply::Clear };
        if path.len() >= MAX_HOPS {
            let text = format!("at {}: the volume has come over more than {MAX_HOPS} nodes", self.name);
            return TraceReply::Refused(Refusal::new(RefusalCode::Failed, text));
        }
        path.push(own.clone());
        let reply = self.ask_upstream(&volume.name, source, path).await;
        if let TraceReply::Circle(hops) = &reply
            && hops.iter().any(|hop| hop.is(&own))
            && volume.circling.circle().is_none()
        {
            // So it says; this node asks for itself.
            volume.circling.ask_soon();
        }
        reply
    }

    /// Asks a source. That it does not send the volume here is an answer: nothing comes from there.
    async fn ask_upstream(&self, volume: &VolumeName, source: &SourceConfig, path: Vec<Hop>) -> TraceReply {
        let remote = source.name.as_deref().unwrap_or(volume.as_str());
        let failed = |why: &str| {
            let text = format!("{} could not be asked by {}: {why}", source.host, self.name);
            TraceReply::Refused(Refusal::new(RefusalCode::Failed, text))
        };
        let patience = trace_patience(path.len());
        let exchange = async {
            let link = self.node().link(&source.host).await.map_err(|error| chain(&error))?;
            trace(&*link, remote, path).await.map_err(|error| chain(&error))
        };
        match timeout(patience, exchange).await {
            Ok(Ok(TraceReply::Refused(refusal))) if refusal.code == RefusalCode::NotAllowed => {
                TraceReply::Clear
            }
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => failed(&error),
            Err(_) => failed("no answer in time"),
        }
    }

    /// A volume of this node.
    fn hop(&self, volume: &VolumeName) -> Hop {
        Hop { key: self.key.0, node: self.name.clone(), volume: volume.clone() }
    }
}

/// What an answer says about a circle through that node; another circle further up is the matter of those who are in it.
fn told(reply: TraceReply, through: &Hop, volume: &VolumeName) -> Asked {
    match reply {
        TraceReply::Circle(hops) if hops.first().is_some_and(|first| first.is(through)) => {
            Asked::Circle(drawn(&hops, volume))
        }
        TraceReply::Clear | TraceReply::Circle(_) => Asked::Clear,
        TraceReply::Refused(refusal) => Asked::Unknown(refusal.text),
    }
}

/// A circle as the data go: `alpha → beta → gamma:w → alpha`. Each hop receives from the one that follows.
fn drawn(hops: &[Hop], volume: &VolumeName) -> String {
    let name = |hop: &Hop| match hop.volume == *volume {
        true => hop.node.to_string(),
        false => format!("{}:{}", hop.node, hop.volume),
    };
    let first = hops.first().into_iter();
    let round = first.clone().chain(hops.iter().skip(1).rev()).chain(first);
    round.map(name).collect::<Vec<_>>().join(" → ")
}

/// Why a volume that would go round in a circle is not defined so.
pub fn would_circle(volume: &VolumeName, circle: &str) -> Failure {
    Failure::refused(format!("volume {volume} would go round in a circle: {circle}")).remedy(
        "leave this out, or first take another part of the circle away: `zumastor forget source VOLUME` on the node that \
         shall not receive it any more",
    )
}

/// What to say of a volume that goes round in a circle.
pub fn circle_text(volume: &VolumeName, circle: &str) -> String {
    format!(
        "volume {volume} goes round in a circle: {circle}, so nothing is received here: `zumastor forget source {volume}` \
         here, or for its volume on one of the other nodes, ends that"
    )
}

/// What to add to a definition if nobody could say whether it makes a circle.
pub fn unknown_note(why: &str) -> String {
    format!(
        "whether it goes round in a circle is not known yet ({why}); if it does, it is stopped as soon as that is known"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_drawn_as_the_data_go() {
        let hop = |number: u8, node: &str, volume: &str| Hop {
            key: [number; 32],
            node: node.parse().unwrap(),
            volume: volume.parse().unwrap(),
        };
        let (alpha, gamma, beta) = (hop(1, "alpha", "v"), hop(3, "gamma", "w"), hop(2, "beta", "v"));
        let name = "v".parse().unwrap();
        let reply = TraceReply::Circle(vec![alpha.clone(), gamma.clone(), beta.clone()]);
        let drawn = "alpha → beta → gamma:w → alpha".to_owned();
        assert_eq!(told(reply, &alpha, &name), Asked::Circle(drawn));
        // Not through the one that asks.
        assert_eq!(told(TraceReply::Circle(vec![gamma, beta]), &alpha, &name), Asked::Clear);
        assert_eq!(told(TraceReply::Circle(vec![]), &alpha, &name), Asked::Clear);
    }

    #[test]
    fn what_is_not_known_now_is_as_it_was() {
        let circling = Circling::default();
        assert!(circling.is_due());
        circling.note(&Asked::Unknown("silent".into()));
        assert_eq!(circling.circle(), None);
        circling.note(&Asked::Circle("a → a".into()));
        circling.note(&Asked::Unknown("silent".into()));
        assert_eq!(circling.circle().as_deref(), Some("a → a"));
        assert!(!circling.is_due());
        circling.note(&Asked::Clear);
        assert_eq!(circling.circle(), None);
    }
}
