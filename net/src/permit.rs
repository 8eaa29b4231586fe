//! Leave to send something to a peer. Whoever sends asks for it again with every batch, so that it ends soon after it is
//! withdrawn; whoever withdraws it can wait until nothing is sent any more.

use std::sync::Arc;

use tokio::sync::watch;

/// Leave to send one volume to one peer, over all streams; clones share it. Once withdrawn, it stays so.
#[derive(Debug, Clone)]
pub struct Permit(Arc<watch::Sender<State>>);

#[derive(Debug, Default)]
struct State {
    withdrawn: bool,
    /// Streams that send.
    streams: usize,
}

impl Permit {
    /// From now on no stream may begin to send, and those that do end with the batch that they are at.
    pub fn withdraw(&self) {
        self.0.send_modify(|state| state.withdrawn = true);
    }

    /// Waits until no stream sends.
    pub async fn ended(&self) {
        let mut state = self.0.subscribe();
        state.wait_for(|state| state.streams == 0).await.expect("the sender is here");
    }

    /// A stream begins to send, until what this gives is dropped. None if it may not.
    pub(crate) fn enter(&self) -> Option<Permitted> {
        let entered = self.0.send_if_modified(|state| {
            state.streams += usize::from(!state.withdrawn);
            !state.withdrawn
        });
        entered.then(|| Permitted(self.clone()))
    }

    /// Waits until it is withdrawn.
    pub(crate) async fn withdrawn(&self) {
        let mut state = self.0.subscribe();
        state.wait_for(|state| state.withdrawn).await.expect("the sender is here");
    }
}

impl Default for Permit {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }
}

/// A stream that sends, or reads what it is going to send.
pub(crate) struct Permitted(Permit);

impl Drop for Permitted {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.streams -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    #[tokio::test]
    async fn who_withdraws_it_waits_for_those_who_send() {
        let mut now = Context::from_waker(Waker::noop());
        let permit = Permit::default();
        permit.ended().await;
        let (first, second) = (permit.enter().unwrap(), permit.clone().enter().unwrap());
        let (mut withdrawn, mut ended) = (pin!(permit.withdrawn()), pin!(permit.ended()));
        assert!(withdrawn.as_mut().poll(&mut now).is_pending());
        permit.withdraw();
        withdrawn.await;
        assert!(permit.enter().is_none());
        drop(first);
        assert!(ended.as_mut().poll(&mut now).is_pending());
        drop(second);
        ended.await;
    }
}
