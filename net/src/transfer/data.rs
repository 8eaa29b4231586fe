//! Answers a request for data, for as long as it is allowed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc},
    time,
};
use zumastor_core::{NodeName, SegmentIndex, StoreError};

use super::{
    Patience,
    batch::{BatchBuilder, Encoded},
    send::{Sender, Sink, Stop},
    upstream::{describe, failed, find},
};
use crate::{
    channel::{Capacity, Channel},
    frame::{self, FrameError},
    host::{Broken, Host, Served},
    wire::{Fetch, FetchReply, FetchWhat, Refusal, RefusalCode},
};

/// Sends what is asked for, and last of all whether that was all of it.
pub(super) async fn answer_fetch(
    channel: &mut Channel,
    peer: &NodeName,
    host: &dyn Host,
    fetch: Fetch,
    patience: &Patience,
) -> Result<(), FrameError> {
    let (volume, changes) = (fetch.volume.clone(), matches!(fetch.what, FetchWhat::Changes { .. }));
    let ask = async || match changes {
        true => host.serve(peer, &volume).await,
        false => host.lend(peer, &volume).await,
    };
    let sent = match ask().await {
        Ok(served) => send_data(channel, &served, fetch, patience).await?,
        Err(refusal) => Sent::Refused(refusal),
    };
    let last = match sent {
        Sent::All => FetchReply::End,
        Sent::Refused(refusal) => FetchReply::Refused(refusal),
        // Why, whoever asks next is told as well.
        Sent::Withdrawn => FetchReply::Refused(ask().await.err().unwrap_or_else(|| {
            let ended = "on the other node: sending was stopped meanwhile, and is allowed again by now";
            Refusal::new(RefusalCode::Failed, ended)
        })),
    };
    frame::write(&mut channel.send, &frame::encode(&last, &[]), patience.stall).await
}

/// What came of a request for data.
enum Sent {
    /// All of it was sent.
    All,
    /// It cannot be sent, or no more of it.
    Refused(Refusal),
    /// It may not be sent any more.
    Withdrawn,
}

/// Sends what is asked for. When this returns, nothing of it is read or sent any more, and whoever follows it knows what came
/// of it.
async fn send_data(
    channel: &mut Channel,
    served: &Served,
    fetch: Fetch,
    patience: &Patience,
) -> Result<Sent, FrameError> {
    let Some(_permitted) = served.permit.enter() else { return Ok(Sent::Withdrawn) };
    let Some(outgoing) = &served.outgoing else {
        return send_permitted(channel, served, fetch, patience).await;
    };
    let target = fetch.target;
    outgoing.begun(target);
    let sent = send_permitted(channel, served, fetch, patience).await;
    let broken = match &sent {
        Ok(Sent::All) => None,
        Ok(Sent::Refused(refusal)) => Some(Broken::Refused(refusal.text.clone())),
        Ok(Sent::Withdrawn) => Some(Broken::Withdrawn),
        Err(error) => Some(Broken::Lost(describe(error))),
    };
    outgoing.ended(target, broken).await;
    sent
}

async fn send_permitted(
    channel: &mut Channel,
    served: &Served,
    fetch: Fetch,
    patience: &Patience,
) -> Result<Sent, FrameError> {
    let _sending = Arc::clone(&served.room).enter();
    // With a limit, it is the limit that decides how fast data are sent.
    let capacity = channel.capacity.clone().filter(|_| served.limiter.is_none());
    let prepare = async {
        fetch.validate()?;
        let sender = sender(served, &fetch, capacity).await?;
        Ok((sender, PRODUCERS.acquire().await.expect("the semaphore is never closed")))
    };
    let prepared = tokio::select! {
        prepared = prepare => prepared,
        () = served.permit.withdrawn() => return Ok(Sent::Withdrawn),
    };
    let target = fetch.target;
    let (mut sender, _producing) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => return Ok(Sent::Refused(refusal)),
    };
    let (queue, mut batches) = mpsc::channel(QUEUE);
    let producer = tokio::task::spawn_blocking(move || {
        let mut sink = |encoded: Encoded| queue.blocking_send(encoded).map_err(|_| Stop::Gone);
        produce(&mut sender, &fetch, &mut sink, &|| queue.is_closed())
    });
    let ended = loop {
        let batch = tokio::select! {
            biased;
            () = served.permit.withdrawn() => break Ok(Sent::Withdrawn),
            batch = batches.recv() => match batch {
                Some(batch) => batch,
                None => break Ok(Sent::All),
            },
        };
        let (data, length) = (batch.data, batch.length());
        if let Err(error) = send_batch(channel, served, batch.frame, patience).await {
            break Err(error);
        }
        served.meter.add(data, length);
        if let Some(outgoing) = &served.outgoing {
            outgoing.sent(target, data, length);
        }
    };
    drop(batches);
    let produced = producer.await.expect("reading does not panic");
    match (ended?, produced) {
        (Sent::All, Err(Stop::Store(error))) => Ok(Sent::Refused(failed(&error))),
        (ended, _) => Ok(ended),
    }
}

/// Sends a batch to its end, because what follows can only be understood then; but not for long once it may not be sent
/// any more.
async fn send_batch(
    channel: &mut Channel,
    served: &Served,
    frame: [Bytes; 2],
    patience: &Patience,
) -> Result<(), FrameError> {
    let too_long = async {
        served.permit.withdrawn().await;
        time::sleep(GRACE).await;
    };
    tokio::select! {
        biased;
        sent = send_limited(channel, served, frame, patience) => sent,
        () = too_long => Err(FrameError::Stalled(GRACE)),
    }
}

/// Reads what is asked for until `gone` says that nobody listens any more: where nothing differs, only a sign of life goes to `sink`
/// now and then.
fn produce(
    sender: &mut Sender,
    fetch: &Fetch,
    sink: &mut Sink<'_>,
    gone: &dyn Fn() -> bool,
) -> Result<(), Stop> {
    let mut said = Instant::now();
    let mut listening = |sink: &mut Sink<'_>| {
        if gone() {
            return Err(Stop::Gone);
        }
        if said.elapsed() < SIGN {
            return Ok(());
        }
        said = Instant::now();
        sink(Encoded::working())
    };
    match &fetch.what {
        FetchWhat::Changes { segments, .. } => {
            for segment in segments {
                listening(sink)?;
                sender.changes(*segment, sink)?;
            }
        }
        FetchWhat::Leaves(sets) => {
            for set in sets {
                listening(sink)?;
                sender.leaves(set, sink)?;
            }
        }
    }
    sender.flush(sink)
}

async fn send_limited(
    channel: &mut Channel,
    served: &Served,
    mut frame: [Bytes; 2],
    patience: &Patience,
) -> Result<(), FrameError> {
    // The downstream takes nothing while its disk is busy. That it is alive, QUIC finds out.
    let stall = patience.stall * 5;
    let Some(limiter) = &served.limiter else {
        return frame::write_pieces(&mut *channel.send, &mut frame, stall).await;
    };
    for piece in &mut frame {
        while !piece.is_empty() {
            let part = piece.split_to(limiter.quantum().min(piece.len()));
            limiter.acquire(part.len()).await;
            frame::write_pieces(&mut *channel.send, &mut [part], stall).await?;
        }
    }
    Ok(())
}

/// Opens what a request for data needs.
async fn sender(served: &Served, fetch: &Fetch, capacity: Option<Capacity>) -> Result<Sender, Refusal> {
    let store = &served.store;
    let snapshots = store.snapshots().await.map_err(|error| failed(&error))?;
    let target = find(&snapshots, fetch.target)?;
    let base = match &fetch.what {
        FetchWhat::Changes { base: Some(base), .. } if !served.offer.whole => Some(find(&snapshots, *base)?),
        _ => None,
    };
    let last = match &fetch.what {
        FetchWhat::Changes { segments, .. } => segments.last().copied(),
        FetchWhat::Leaves(sets) => sets.last().map(|set| set.segment),
    };
    if last.is_some_and(|last| last.0 >= SegmentIndex::count(target.size)) {
        return Err(Refusal::new(
            RefusalCode::Malformed,
            "a segment beyond the end of the volume was asked for",
        ));
    }
    let open = async {
        let base = match base {
            Some(base) => Some((base.number(), store.open_snapshot(base.number()).await?)),
            None => None,
        };
        let builder = BatchBuilder::new(served.compression.clone(), capacity, Arc::clone(&served.room));
        let builder = builder.map_err(StoreError::io("zstd"))?;
        Ok::<_, StoreError>(Sender {
            store: Arc::clone(store),
            number: target.number(),
            whole: served.offer.whole,
            target: store.open_snapshot(target.number()).await?,
            base,
            leaves: store.leaves(target.number()).await?,
            builder,
            runtime: tokio::runtime::Handle::current(),
        })
    };
    open.await.map_err(|error| failed(&error))
}

/// Threads that read for peers, in the whole process. Each of them waits for another from the same pool of 512 when it
/// asks its store what changed, so there must be far fewer.
static PRODUCERS: Semaphore = Semaphore::const_new(64);

/// So long a batch may take that is under way when it may not be sent any more. After that the stream is cut, and the
/// downstream learns why when it asks again.
const GRACE: Duration = Duration::from_secs(5);
/// Between two signs of life, which are sent between segments: far less than any downstream waits.
const SIGN: Duration = Duration::from_secs(5);
/// Batches that wait for the connection, beside the one being sent and the one being made.
const QUEUE: usize = 2;
