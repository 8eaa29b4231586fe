//! What an upstream does by itself for a downstream, told when it is asked.

use tokio::time;

use super::{Patience, downstream::PullError, fetch::ask};
use crate::{
    frame,
    host::Link,
    wire::{FEATURE_TERMS, MAX_SHORT, Request, Terms, TermsReply},
};

/// Asks an upstream how often it replicates a volume to this node by itself, in seconds; nothing if it does not, or if it
/// is too old to be asked.
pub async fn push_period(
    link: &dyn Link,
    volume: &str,
    patience: &Patience,
) -> Result<Option<u64>, PullError> {
    if link.features() & FEATURE_TERMS == 0 {
        return Ok(None);
    }
    let request = Request::Terms(Terms { volume: volume.to_owned() });
    let mut channel = ask(link, &request, patience).await?;
    let read = frame::read(&mut channel.recv, MAX_SHORT, patience.answer);
    let reply =
        time::timeout(patience.answer, read).await.map_err(|_| PullError::Deadline("the answer"))??;
    match reply {
        TermsReply::Terms { period } => Ok(period),
        TermsReply::Refused(refusal) => Err(PullError::Refused(refusal)),
    }
}
