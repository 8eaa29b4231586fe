//! Answers for this node when a peer asks.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use zumastor_core::{Lineage, NodeName};
use zumastor_net::{
    Host, Offer, Outgoing, PublicKey, PullState, Served, Unheard,
    wire::{Announce, Refusal, RefusalCode, Trace, TraceReply},
};

use super::{
    Daemon,
    epochs::superseded_text,
    holds::{PairHolds, Side},
    outgoing::Fetched,
    parts::refuse_stopped,
    volume::{Target, Volume},
    worker::Wish,
};
use crate::{
    api::{Part, Role},
    exit::{Failure, chain},
};

/// A handle for the network side; [`Daemon`] itself is behind an `Arc`.
pub struct Answers(pub Arc<Daemon>);

#[async_trait]
impl Host for Answers {
    async fn serve(&self, peer: &NodeName, volume: &str) -> Result<Served, Refusal> {
        let refused = || self.not_sent(peer, volume);
        let volume = self.volume(volume).ok_or_else(refused)?;
        let config = volume.config();
        let period = config.target.get(peer).ok_or_else(refused)?.period;
        self.not_stopped(&volume, &Part::Target(peer.clone()))?;
        let (compression, limiter, meter, permit, fetching, offer) = volume
            .with_target(peer, |target| {
                let target = target?;
                let Target { compression, limiter, meter, permit, fetching, .. } = target;
                let offer = Offer { before: volume.unsettled(), ..target.offer() };
                let (limiter, meter, permit) = (limiter.clone(), meter.clone(), permit.clone());
                Some((compression.clone(), limiter, meter, permit, fetching.clone(), offer))
            })
            .ok_or_else(refused)?;
        let store = volume.store().await.map_err(|error| {
            Refusal::new(RefusalCode::Failed, format!("at {}: {}", self.0.name, chain(&error)))
        })?;
        let failed = |failure: Failure| {
            Refusal::new(RefusalCode::Failed, format!("at {}: {}", self.0.name, failure.error))
        };
        if let Some(superseded) = self.0.superseded(&volume).await.map_err(failed)? {
            let text = format!("at {}: {}", self.0.name, superseded_text(&volume.name, &superseded));
            return Err(Refusal::new(RefusalCode::Stopped, text));
        }
        let epoch = self.0.epoch(&volume).await.map_err(failed)?.map_or(0, |(_, epoch)| epoch);
        let holds = PairHolds::new(self.0.state.clone(), volume.clone(), peer.clone(), Side::Upstream);
        let room = volume.room.clone();
        let (holds, daemon, peer) = (Arc::new(holds), self.0.clone(), peer.clone());
        let outgoing: Arc<dyn Outgoing> = Arc::new(Fetched { daemon, volume, peer, fetching });
        let outgoing = Some(outgoing);
        Ok(Served { store, holds, epoch, offer, period, compression, limiter, meter, outgoing, permit, room })
    }

    async fn lend(&self, peer: &NodeName, volume: &str) -> Result<Served, Refusal> {
        let refused = match self.serve(peer, volume).await {
            Err(refusal) if refusal.code == RefusalCode::NotAllowed => refusal,
            served => return served,
        };
        let Some(volume) = self.volume(volume) else { return Err(refused) };
        let permit = volume.lending();
        if volume.config().source.is_none_or(|source| source.host != *peer) {
            return Err(refused);
        }
        self.not_stopped(&volume, &Part::Source)?;
        let store = volume.store().await.map_err(|error| {
            Refusal::new(RefusalCode::Failed, format!("at {}: {}", self.0.name, chain(&error)))
        })?;
        let room = volume.room.clone();
        let holds = PairHolds::new(self.0.state.clone(), volume, peer.clone(), Side::Downstream);
        Ok(Served {
            store,
            holds: Arc::new(holds),
            epoch: 0,
            offer: Offer::default(),
            period: None,
            compression: None,
            limiter: None,
            meter: Arc::default(),
            outgoing: None,
            permit,
            room,
        })
    }

    async fn announced(
        &self,
        peer: &NodeName,
        announce: &Announce,
    ) -> Result<watch::Receiver<PullState>, Unheard> {
        let Announce { volume, upstream_volume, number, exactly, lineage, epoch } = announce;
        let refused = || {
            let node = &self.0.name;
            let option =
                if upstream_volume == volume { String::new() } else { format!(" --name {upstream_volume}") };
            Refusal::new(
                RefusalCode::NotAllowed,
                format!(
                    "{node} does not receive its volume {volume} from volume {upstream_volume} of yours: there, \
                     `zumastor define source {volume} {peer}{option}`"
                ),
            )
        };
        let volume = self.volume(volume).ok_or_else(refused)?;
        let failed = |failure: Failure| Unheard::Refused(Refusal::new(RefusalCode::Failed, failure.error));
        let here = self.0.epoch(&volume).await.map_err(failed)?;
        if let Some((_, here)) = here.filter(|(of, _)| of == lineage) {
            if *epoch < here {
                return Err(Unheard::Superseded(here));
            }
            if *epoch > here && volume.role() == Role::Master {
                self.0.hear(&volume.name, *lineage, *epoch, peer).await;
                let node = &self.0.name;
                let text = format!(
                    "{node} was the master of volume {volume} until now: there, `zumastor define source {volume} {peer}` \
                     makes it a replica",
                    volume = volume.name
                );
                return Err(Refusal::new(RefusalCode::Stopped, text).into());
            }
        }
        let source = volume.config().source.ok_or_else(refused)?;
        let expected = source.name.as_deref().unwrap_or(volume.name.as_str());
        if source.host != *peer || expected != upstream_volume {
            return Err(refused().into());
        }
        self.not_stopped(&volume, &Part::Source)?;
        let wish = Wish { wanted: Some(*number), exactly: *exactly, delay: None };
        volume.with_puller(|puller| puller.map(|puller| puller.ask(wish))).ok_or_else(|| refused().into())
    }

    async fn trace(&self, peer: &NodeName, trace: &Trace) -> TraceReply {
        let found = self.volume(&trace.volume).filter(|volume| volume.config().target.contains_key(peer));
        let Some(volume) = found else { return TraceReply::Refused(self.not_sent(peer, &trace.volume)) };
        let key = self.0.peers().peer.get(peer).and_then(|peer| peer.key.parse().ok());
        if trace.path.last().map(|hop| PublicKey(hop.key)) != key {
            let text = "the path of a question ends with who asks it";
            return TraceReply::Refused(Refusal::new(RefusalCode::Malformed, text));
        }
        self.0.follow_up(&volume, trace.path.clone()).await
    }

    async fn superseded(&self, peer: &NodeName, volume: &str, lineage: Lineage, epoch: u64) {
        if let Some(volume) = self.volume(volume) {
            self.0.hear(&volume.name, lineage, epoch, peer).await;
        }
    }
}

impl Answers {
    /// The refusal to those who are no target of a volume. Whether there is such a volume is not for them to know.
    fn not_sent(&self, peer: &NodeName, volume: &str) -> Refusal {
        let node = &self.0.name;
        let text = format!(
            "{node} does not send volume {volume} to you: there, `zumastor define target {volume} {peer}`"
        );
        Refusal::new(RefusalCode::NotAllowed, text)
    }

    fn not_stopped(&self, volume: &Volume, part: &Part) -> Result<(), Refusal> {
        refuse_stopped(volume, part).map_err(|failure| {
            let remedy = failure.remedy.unwrap_or_default();
            Refusal::new(RefusalCode::Failed, format!("at {}, {}: {remedy}", self.0.name, failure.error))
        })
    }

    fn volume(&self, name: &str) -> Option<Arc<Volume>> {
        self.0.find_volume(&name.parse().ok()?)
    }
}
