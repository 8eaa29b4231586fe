//! Two ends of a transfer joined by pipes, with faults where a test wants them.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use async_trait::async_trait;
use tokio::io::{AsyncRead, ReadBuf};
use zumastor_core::{
    Lineage, MemoryStore, NewSnapshot, NodeName, SnapshotNumber, SnapshotRecord, SnapshotStore, StoreError,
};
use zumastor_net::{
    Channel, Compression, Holds, Host, Link, Meter, Offer, Patience, Permit, PullError, PullState,
    PullSummary, Replica, Reporter, SendRoom, Served, Unheard, pull, serve,
    wire::{Announce, Refusal, RefusalCode, Trace, TraceReply},
};

/// What was held, call by call.
#[derive(Debug, Default)]
pub struct HoldLog(Mutex<Vec<(Option<u64>, Option<u64>)>>);

impl HoldLog {
    /// The newest state: base or common snapshot, and what is being transferred.
    pub fn last(&self) -> Option<(Option<u64>, Option<u64>)> {
        self.0.lock().unwrap().last().copied()
    }
}

#[async_trait]
impl Holds for HoldLog {
    async fn transferring(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
    ) -> Result<(), StoreError> {
        self.0.lock().unwrap().push((base.map(|base| base.0), Some(target.0)));
        Ok(())
    }

    async fn common(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.0.lock().unwrap().push((Some(number.0), None));
        Ok(())
    }
}

/// A node that serves one volume, `vol`, to the peer `beta`.
#[derive(Debug)]
pub struct Upstream {
    pub store: MemoryStore,
    pub serving: Arc<dyn SnapshotStore>,
    pub lineage: Lineage,
    pub holds: Arc<HoldLog>,
    pub meter: Arc<Meter>,
    pub compression: Option<i32>,
    pub offer: Mutex<Offer>,
    pub permit: Permit,
    pub epoch: AtomicU64,
    /// What was heard of a later epoch.
    pub heard: AtomicU64,
}

impl Upstream {
    pub fn new(size: u64) -> Self {
        let store = MemoryStore::new(size);
        Self {
            serving: Arc::new(store.clone()),
            store,
            lineage: Lineage::generate(),
            holds: Arc::default(),
            meter: Arc::default(),
            compression: Some(1),
            offer: Mutex::default(),
            permit: Permit::default(),
            epoch: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        }
    }

    pub async fn snapshot(&self, number: u64) -> SnapshotRecord {
        let new = NewSnapshot::manual(SnapshotNumber(number), self.lineage);
        self.store.create_snapshot(new).await.unwrap()
    }
}

#[async_trait]
impl Host for Upstream {
    async fn serve(&self, peer: &NodeName, volume: &str) -> Result<Served, Refusal> {
        if peer.as_str() != "beta" || volume != "vol" {
            return Err(Refusal::new(RefusalCode::NotAllowed, format!("{volume} is not for {peer}")));
        }
        Ok(Served {
            period: None,
            store: Arc::clone(&self.serving),
            holds: Arc::clone(&self.holds) as _,
            epoch: self.epoch.load(Ordering::SeqCst),
            offer: self.offer.lock().unwrap().clone(),
            compression: self.compression.map(|level| Arc::new(Compression::new(level))),
            limiter: None,
            meter: Arc::clone(&self.meter),
            outgoing: None,
            permit: self.permit.clone(),
            room: Arc::new(SendRoom::new(64 << 20, 1)),
        })
    }

    async fn announced(
        &self,
        _peer: &NodeName,
        announce: &Announce,
    ) -> Result<tokio::sync::watch::Receiver<PullState>, Unheard> {
        if announce.lineage == self.lineage && announce.epoch < self.epoch.load(Ordering::SeqCst) {
            return Err(Unheard::Superseded(self.epoch.load(Ordering::SeqCst)));
        }
        let refused = format!("{} is not received here", announce.volume);
        Err(Refusal::new(RefusalCode::NotAllowed, refused).into())
    }

    async fn trace(&self, peer: &NodeName, trace: &Trace) -> TraceReply {
        match self.serve(peer, &trace.volume).await {
            Ok(_) => TraceReply::Circle(trace.path.clone()),
            Err(refusal) => TraceReply::Refused(refusal),
        }
    }

    async fn superseded(&self, _: &NodeName, _: &str, lineage: Lineage, epoch: u64) {
        assert_eq!(lineage, self.lineage);
        self.heard.store(epoch, Ordering::SeqCst);
    }
}

/// A downstream with its volume.
pub struct Downstream {
    pub store: MemoryStore,
    pub holds: Arc<HoldLog>,
    pub replica: Replica,
}

impl Downstream {
    pub fn new() -> Self {
        Self::with(MemoryStore::new(0))
    }

    pub fn with(store: MemoryStore) -> Self {
        let holds = Arc::<HoldLog>::default();
        let replica = Replica::new(Arc::new(store.clone()), Arc::clone(&holds) as _, "vol");
        Self { store, holds, replica }
    }

    pub async fn pull(&self, link: &dyn Link) -> Result<PullSummary, PullError> {
        pull(link, &self.replica, &Patience::default(), &Reporter::new()).await
    }

    /// Asserts that the replica is exactly one complete snapshot, with the right digest.
    pub async fn assert_shows(&self, upstream: &Upstream, number: u64) {
        let number = SnapshotNumber(number);
        assert_eq!(self.store.head().await.unwrap(), zumastor_core::HeadState::Shows(number));
        let theirs = upstream.store.leaves(number).await.unwrap().digest();
        assert_eq!(self.store.leaves(number).await.unwrap().digest(), theirs);
        let reader = upstream.store.open_snapshot(number).await.unwrap();
        let mut content = vec![0; reader.size() as usize];
        reader.read_at(0, &mut content).unwrap();
        assert!(self.store.head_content() == content, "the head is not the content of snapshot {number}");
    }
}

/// Pipes to an upstream that run in the same process.
pub struct Pipes {
    pub host: Arc<dyn Host>,
    pub peer: NodeName,
    /// Bytes that may still come from the upstream before every pipe breaks; negative when broken.
    pub budget: Arc<AtomicI64>,
}

impl Pipes {
    pub fn to(host: &Arc<Upstream>) -> Self {
        Self {
            host: Arc::clone(host) as _,
            peer: "beta".parse().unwrap(),
            budget: Arc::new(AtomicI64::new(i64::MAX)),
        }
    }

    pub fn breaking_after(host: &Arc<Upstream>, bytes: i64) -> Self {
        Self { budget: Arc::new(AtomicI64::new(bytes)), ..Self::to(host) }
    }
}

#[async_trait]
impl Link for Pipes {
    async fn open(&self) -> io::Result<Channel> {
        if self.budget.load(Ordering::SeqCst) < 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        let (host, peer) = (Arc::clone(&self.host), self.peer.clone());
        tokio::spawn(async move {
            let (recv, send) = tokio::io::split(theirs);
            let mut channel = Channel::over(send, recv);
            let reading = tokio::sync::Semaphore::new(1);
            let _ = serve(&mut channel, &peer, &*host, &Patience::default(), &reading).await;
        });
        let (recv, send) = tokio::io::split(ours);
        let recv = Breaking { inner: recv, budget: Arc::clone(&self.budget) };
        Ok(Channel::over(send, recv))
    }
}

struct Breaking<R> {
    inner: R,
    budget: Arc<AtomicI64>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Breaking<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(context, buf);
        let read = (buf.filled().len() - before) as i64;
        if this.budget.fetch_sub(read, Ordering::SeqCst) < read {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        polled
    }
}

/// An upstream that answers every request with these bytes, whatever it is asked.
pub struct Rogue {
    pub answers: Mutex<HashMap<usize, Vec<u8>>>,
    pub asked: Mutex<usize>,
}

impl Rogue {
    pub fn answering(answers: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { answers: Mutex::new(answers.into_iter().enumerate().collect()), asked: Mutex::new(0) }
    }
}

#[async_trait]
impl Link for Rogue {
    async fn open(&self) -> io::Result<Channel> {
        let mut asked = self.asked.lock().unwrap();
        let answer = self.answers.lock().unwrap().get(&*asked).cloned().unwrap_or_default();
        *asked += 1;
        Ok(Channel::over(tokio::io::sink(), io::Cursor::new(answer)))
    }
}

/// Bytes that do not compress and never repeat: `seed` tells streams apart.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
