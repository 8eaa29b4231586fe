//! Whether a volume goes round in a circle: asked from downstream to upstream, until somebody receives it from nobody.

use std::time::Duration;

use tokio::time;

use super::{Patience, downstream::PullError, fetch::ask};
use crate::{
    frame,
    host::Link,
    wire::{FEATURE_TRACE, Hop, MAX_TRACE_REPLY, Request, Trace, TraceReply},
};

/// How long whoever is behind that many hops waits for the next one to answer: each a little less than who asked it, so that it
/// can still say that somebody was silent.
pub fn trace_patience(hops: usize) -> Duration {
    FIRST.saturating_sub(LESS * u32::try_from(hops).unwrap_or(u32::MAX))
}

/// Asks an upstream whether the volume that it sends goes round in a circle; `path` ends with who asks. An upstream that is too
/// old to be asked has nothing to say: [`TraceReply::Clear`].
pub async fn trace(link: &dyn Link, volume: &str, path: Vec<Hop>) -> Result<TraceReply, PullError> {
    if link.features() & FEATURE_TRACE == 0 {
        return Ok(TraceReply::Clear);
    }
    let patience = trace_patience(path.len());
    let request = Request::Trace(Trace { volume: volume.to_owned(), path });
    let exchange = async {
        let mut channel = ask(link, &request, &Patience::default()).await?;
        Ok(frame::read(&mut channel.recv, MAX_TRACE_REPLY, patience).await?)
    };
    time::timeout(patience, exchange).await.map_err(|_| PullError::Deadline("the answer"))?
}

/// What the first who asks waits at most, and a little more.
const FIRST: Duration = Duration::from_millis(4100);
/// By how much less each of the others waits: the 32nd still has most of a second.
const LESS: Duration = Duration::from_millis(100);
