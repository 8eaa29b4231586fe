//! A node on the network: it accepts its peers, connects to them, and answers on every connection alike.

mod congestion;
mod hello;
mod socket;

pub use socket::{endpoint, transport_config};

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use quinn::{Connection, ConnectionError, Endpoint, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::{sync::Semaphore, time::timeout};
use zumastor_core::{NodeName, config::DEFAULT_PORT};

use self::hello::Hello;
use crate::{
    channel::Channel,
    frame::FrameError,
    host::{Host, Link},
    security::{NodeKey, PublicKey, Trust, client_config, peer_key, server_config},
    transfer::{Patience, serve},
    wire::{FEATURE_TERMS, FEATURE_TRACE, PROTOCOL},
};

/// A trusted node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it is called here.
    pub name: NodeName,
    /// What it is.
    pub key: PublicKey,
    /// Where it can be reached, as `HOST` or `HOST:PORT`.
    pub addresses: Vec<String>,
}

/// What a node needs to start.
#[derive(Debug)]
pub struct NodeOptions {
    /// Address and UDP port to listen on.
    pub listen: SocketAddr,
    /// What this node calls itself.
    pub name: NodeName,
    /// What it is.
    pub key: NodeKey,
}

/// This node on the network.
pub struct Node {
    endpoint: Endpoint,
    key: NodeKey,
    hello: Hello,
    host: Arc<dyn Host>,
    trust: Arc<Trust>,
    patience: Patience,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peers: HashMap<NodeName, Peer>,
    /// Live connections, the newest last.
    connections: HashMap<NodeName, Vec<QuicLink>>,
    /// Held while a peer is dialled, so that it is dialled once.
    dialling: HashMap<NodeName, Arc<tokio::sync::Mutex<()>>>,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The address cannot be listened on.
    #[error("cannot listen on UDP {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why there is no connection to a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No such peer.
    #[error(
        "there is no peer {0}: on that node run `zumastor peer ticket`, here `zumastor peer add {0} TICKET`"
    )]
    Unknown(NodeName),
    /// It has no address, and is not connected.
    #[error("{0} is not connected, and no address is known at which to reach it")]
    NoAddress(NodeName),
    /// Its name cannot be looked up.
    #[error("{address} cannot be looked up: {source}")]
    Lookup {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answers.
    #[error("no answer from {0}: is the daemon running there, and may UDP pass?")]
    Silent(SocketAddr),
    /// It does not trust this node.
    #[error(
        "the node at {address} refuses this node's key: on it, run `zumastor peer add` with the ticket of this node"
    )]
    Refused {
        /// Where.
        address: SocketAddr,
    },
    /// It is somebody else.
    #[error(
        "the node at {address} has another key than the one pinned for {name}: it is not {name}, or was set up anew"
    )]
    WrongKey {
        /// The peer.
        name: NodeName,
        /// Where.
        address: SocketAddr,
    },
    /// It speaks other revisions of the protocol.
    #[error("{name} speaks revisions {}–{} of the protocol, this node {}–{}: update the older one", theirs.0, theirs.1, ours.0, ours.1)]
    Version {
        /// The peer.
        name: NodeName,
        /// What it speaks.
        theirs: (u16, u16),
        /// What we speak.
        ours: (u16, u16),
    },
    /// The connection broke at the beginning.
    #[error("the connection to {address} failed: {source}")]
    Failed {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Node {
    /// Starts to listen. Nobody is trusted until [`set_peers`](Self::set_peers).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(options: NodeOptions, host: Arc<dyn Host>) -> Result<Arc<Self>, NodeError> {
        Self::start_speaking(options, host, PROTOCOL)
    }

    fn start_speaking(
        options: NodeOptions,
        host: Arc<dyn Host>,
        protocol: (u16, u16),
    ) -> Result<Arc<Self>, NodeError> {
        let NodeOptions { listen, name, key } = options;
        let trust = Arc::new(Trust::default());
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server_config(&key, Arc::clone(&trust))?));
        server.transport_config(transport_config());
        let endpoint = endpoint(listen, socket::endpoint_config(&key), Some(server))
            .map_err(|source| NodeError::Listen { address: listen, source })?;
        let state = Mutex::default();
        let hello = Hello { protocol, features: FEATURE_TERMS | FEATURE_TRACE, name };
        let node = Arc::new(Self { endpoint, key, hello, host, trust, patience: Patience::default(), state });
        tokio::spawn(Arc::clone(&node).accept());
        Ok(node)
    }

    /// Where this node listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Replaces the trusted nodes. Connections of those who are not among them any more are closed.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        self.trust.set(peers.iter().map(|peer| (peer.key, peer.name.clone())));
        let mut guard = self.lock();
        let state = &mut *guard;
        let peers: HashMap<_, _> = peers.into_iter().map(|peer| (peer.name.clone(), peer)).collect();
        state.connections.retain(|name, connections| {
            let key = peers.get(name).map(|peer| peer.key);
            let same = key.is_some() && state.peers.get(name).map(|peer| peer.key) == key;
            if !same {
                connections
                    .iter()
                    .for_each(|link| link.connection.close(code::NOT_TRUSTED, b"not trusted any more"));
            }
            same
        });
        state.peers = peers;
    }

    /// A connection to a peer: one that exists, whoever opened it, or a new one.
    pub async fn link(&self, name: &NodeName) -> Result<Arc<dyn Link>, ConnectError> {
        let dialling = Arc::clone(self.lock().dialling.entry(name.clone()).or_default());
        let _turn = dialling.lock().await;
        if let Some(link) = self.live(name) {
            return Ok(Arc::new(link));
        }
        let peer = self.lock().peers.get(name).cloned().ok_or_else(|| ConnectError::Unknown(name.clone()))?;
        let mut last = ConnectError::NoAddress(name.clone());
        for address in &peer.addresses {
            let found = match lookup(address).await {
                Ok(found) => found,
                Err(source) => {
                    last = ConnectError::Lookup { address: address.clone(), source };
                    continue;
                }
            };
            for address in found {
                match self.dial(&peer, address).await {
                    Ok(link) => return Ok(Arc::new(link)),
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }

    /// Where a peer is connected from, if it is.
    pub fn connected(&self, name: &NodeName) -> Option<SocketAddr> {
        self.live(name).map(|link| link.connection.remote_address())
    }

    /// Closes all connections and stops listening.
    pub async fn close(&self) {
        self.endpoint.close(code::SHUTDOWN, b"the node is shutting down");
        let _ = timeout(Duration::from_secs(2), self.endpoint.wait_idle()).await;
    }

    async fn dial(&self, peer: &Peer, address: SocketAddr) -> Result<QuicLink, ConnectError> {
        let failed = |source| ConnectError::Failed { address, source };
        let crypto = client_config(&self.key, peer.key).map_err(|error| failed(error.into()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport_config());
        let connecting = self.endpoint.connect_with(config, address, crate::security::TLS_NAME);
        let connecting = connecting.map_err(|error| failed(error.into()))?;
        let connection = timeout(CONNECT, connecting).await.map_err(|_| ConnectError::Silent(address))?;
        let connection = connection.map_err(|error| explain(error, peer, address))?;
        let exchange = async {
            let (mut send, mut recv) =
                connection.open_bi().await.map_err(|error| FrameError::Io(error.into()))?;
            self.hello.write(&mut send, CONNECT).await?;
            Hello::read(&mut recv, CONNECT).await
        };
        let exchange = timeout(CONNECT, exchange).await.unwrap_or(Err(FrameError::Stalled(CONNECT)));
        match exchange {
            Ok(theirs) => {
                if self.hello.agree(&theirs).is_none() {
                    connection.close(code::VERSION, version_reason(&self.hello, &theirs).as_bytes());
                    let (name, ours) = (peer.name.clone(), self.hello.protocol);
                    return Err(ConnectError::Version { name, theirs: theirs.protocol, ours });
                }
                tracing::debug!(peer = %peer.name, %address, "connected");
                let link = QuicLink { connection, features: theirs.features };
                match self.keep(peer.name.clone(), link.clone()) {
                    true => Ok(link),
                    false => Err(ConnectError::Unknown(peer.name.clone())),
                }
            }
            // The peer checks our key after we have checked its own: a refusal arrives here.
            Err(error) => match connection.close_reason() {
                Some(reason) => Err(explain(reason, peer, address)),
                None => {
                    connection.close(code::PROTOCOL, error.to_string().as_bytes());
                    Err(failed(error.into()))
                }
            },
        }
    }

    async fn accept(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            let node = Arc::clone(&self);
            tokio::spawn(async move {
                let address = incoming.remote_address();
                if let Err(error) = node.welcome(incoming).await {
                    tracing::info!(%address, %error, "a connection was not accepted");
                }
            });
        }
    }

    async fn welcome(
        self: &Arc<Self>,
        incoming: quinn::Incoming,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let connection = timeout(CONNECT, incoming.accept()?).await.map_err(|_| "no handshake in time")??;
        let name = self.identify(&connection).ok_or_else(|| {
            connection.close(code::NOT_TRUSTED, b"this key is not trusted here");
            "its key is not trusted"
        })?;
        let exchange = async {
            let (mut send, mut recv) =
                connection.accept_bi().await.map_err(|error| FrameError::Io(error.into()))?;
            let theirs = Hello::read(&mut recv, CONNECT).await?;
            self.hello.write(&mut send, CONNECT).await?;
            // Closing the connection would overtake our answer, and they should be able to say what is wrong.
            if self.hello.agree(&theirs).is_none() {
                let _ = timeout(CONNECT, connection.closed()).await;
            }
            Ok::<_, FrameError>(theirs)
        };
        let theirs = match timeout(CONNECT * 2, exchange).await.map_err(|_| "no greeting in time") {
            Ok(Ok(theirs)) => theirs,
            Ok(Err(error)) => {
                connection.close(code::PROTOCOL, error.to_string().as_bytes());
                return Err(error.into());
            }
            Err(error) => {
                connection.close(code::PROTOCOL, error.as_bytes());
                return Err(error.into());
            }
        };
        if self.hello.agree(&theirs).is_none() {
            let reason = version_reason(&self.hello, &theirs);
            connection.close(code::VERSION, reason.as_bytes());
            return Err(reason.into());
        }
        tracing::debug!(peer = %name, address = %connection.remote_address(), "accepted");
        let link = QuicLink { connection, features: theirs.features };
        if self.keep(name, link) { Ok(()) } else { Err("its key is not trusted any more".into()) }
    }

    /// Who is at the other end, if it is still trusted.
    fn identify(&self, connection: &Connection) -> Option<NodeName> {
        self.trust.name(&key_of(connection)?)
    }

    /// Answers on a connection from now on, and uses it; unless its key has lost the trust it had at the beginning.
    fn keep(&self, name: NodeName, link: QuicLink) -> bool {
        let mut state = self.lock();
        let connection = &link.connection;
        let key = key_of(connection);
        if key.is_none() || state.peers.get(&name).map(|peer| peer.key) != key {
            connection.close(code::NOT_TRUSTED, b"not trusted any more");
            return false;
        }
        tokio::spawn(answer(connection.clone(), name.clone(), Arc::clone(&self.host), self.patience));
        let connections = state.connections.entry(name).or_default();
        connections.retain(|link| link.connection.close_reason().is_none());
        connections.push(link);
        true
    }

    fn live(&self, name: &NodeName) -> Option<QuicLink> {
        let mut state = self.lock();
        let connections = state.connections.get_mut(name)?;
        connections.retain(|link| link.connection.close_reason().is_none());
        connections.last().cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("name", &self.hello.name).field("key", &self.key).finish()
    }
}

/// The key at the other end.
fn key_of(connection: &Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    peer_key(identity.first()?)
}

fn channel(connection: &Connection, send: quinn::SendStream, recv: quinn::RecvStream) -> Channel {
    let connection = connection.clone();
    let capacity = move || {
        let path = connection.stats().path;
        (path.cwnd as f64 / path.rtt.as_secs_f64().max(1e-6)) as u64
    };
    Channel { send: Box::new(send), recv: Box::new(recv), capacity: Some(Arc::new(capacity)) }
}

/// A connection to a peer, with what the peer said it can do.
#[derive(Clone)]
struct QuicLink {
    connection: Connection,
    features: u64,
}

#[async_trait]
impl Link for QuicLink {
    async fn open(&self) -> io::Result<Channel> {
        let (send, recv) = self.connection.open_bi().await?;
        Ok(channel(&self.connection, send, recv))
    }

    fn is_forgotten(&self) -> bool {
        self.connection.close_reason() == Some(ConnectionError::Reset)
    }

    fn features(&self) -> u64 {
        self.features
    }
}

/// Answers what the peer asks on a connection, until it ends.
async fn answer(connection: Connection, peer: NodeName, host: Arc<dyn Host>, patience: Patience) {
    // So many requests are read at the same time; the others wait where flow control holds them.
    let reading = Arc::new(Semaphore::new(MAX_READING));
    loop {
        let (send, recv) = match connection.accept_bi().await {
            Ok(stream) => stream,
            Err(reason) => {
                tracing::debug!(%peer, %reason, "connection closed");
                return;
            }
        };
        let mut channel = channel(&connection, send, recv);
        let (connection, peer, host) = (connection.clone(), peer.clone(), Arc::clone(&host));
        let reading = Arc::clone(&reading);
        tokio::spawn(async move {
            match serve(&mut channel, &peer, &*host, &patience, &reading).await {
                Ok(()) => {}
                Err(error @ (FrameError::Malformed { .. } | FrameError::TooLarge { .. })) => {
                    tracing::warn!(%peer, %error, "closing the connection");
                    // Before the channel goes: the end of its stream would have to be sent first, and pacing may hold
                    // it back until the reason for closing is forgotten, and the peer only sees a reset.
                    connection.close(code::PROTOCOL, error.to_string().as_bytes());
                }
                Err(error) => tracing::debug!(%peer, %error, "a request ended early"),
            }
        });
    }
}

fn explain(error: ConnectionError, peer: &Peer, address: SocketAddr) -> ConnectError {
    let denied = quinn::TransportErrorCode::crypto(rustls::AlertDescription::AccessDenied.into());
    match error {
        ConnectionError::TransportError(error) if error.code == denied => {
            ConnectError::WrongKey { name: peer.name.clone(), address }
        }
        ConnectionError::ConnectionClosed(close) if close.error_code == denied => {
            ConnectError::Refused { address }
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == code::NOT_TRUSTED => {
            ConnectError::Refused { address }
        }
        ConnectionError::TimedOut => ConnectError::Silent(address),
        other => ConnectError::Failed { address, source: other.into() },
    }
}

fn version_reason(ours: &Hello, theirs: &Hello) -> String {
    format!(
        "no common revision of the protocol: {} speaks {}-{}, {} speaks {}-{}",
        ours.name, ours.protocol.0, ours.protocol.1, theirs.name, theirs.protocol.0, theirs.protocol.1
    )
}

async fn lookup(address: &str) -> io::Result<Vec<SocketAddr>> {
    if has_port(address) {
        return Ok(tokio::net::lookup_host(address).await?.collect());
    }
    let host = address.trim_start_matches('[').trim_end_matches(']');
    Ok(tokio::net::lookup_host((host, DEFAULT_PORT)).await?.collect())
}

/// Whether an address names a port: `[::1]:5`, `host:5`, but not `::1`.
fn has_port(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok() || (!address.starts_with('[') && address.matches(':').count() == 1)
}

/// Why a connection is closed.
mod code {
    use super::VarInt;

    /// The node is shutting down.
    pub const SHUTDOWN: VarInt = VarInt::from_u32(0);
    /// The peer is not trusted (any more).
    pub const NOT_TRUSTED: VarInt = VarInt::from_u32(1);
    /// No common revision of the protocol.
    pub const VERSION: VarInt = VarInt::from_u32(2);
    /// The peer sent something that is no message.
    pub const PROTOCOL: VarInt = VarInt::from_u32(3);
}

/// Requests of one connection that are read at the same time: each may take megabytes.
const MAX_READING: usize = 16;

/// To connect, and to greet.
const CONNECT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::sync::watch;

    use super::*;
    use crate::{
        host::{PullState, Served, Unheard},
        wire::{Announce, Refusal, RefusalCode},
    };

    struct Nothing;

    #[async_trait]
    impl Host for Nothing {
        async fn serve(&self, _peer: &NodeName, _volume: &str) -> Result<Served, Refusal> {
            Err(Refusal::new(RefusalCode::NotAllowed, "nothing is served here"))
        }
        async fn announced(&self, _: &NodeName, _: &Announce) -> Result<watch::Receiver<PullState>, Unheard> {
            Err(Refusal::new(RefusalCode::NotAllowed, "nothing is received here").into())
        }
        async fn trace(&self, _: &NodeName, _: &crate::wire::Trace) -> crate::wire::TraceReply {
            crate::wire::TraceReply::Clear
        }
        async fn superseded(&self, _: &NodeName, _: &str, _: zumastor_core::Lineage, _: u64) {}
    }

    fn node(name: &str, protocol: (u16, u16)) -> (Arc<Node>, Peer) {
        let key = NodeKey::generate();
        let public = key.public();
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let name: NodeName = name.parse().unwrap();
        let options = NodeOptions { listen, name: name.clone(), key };
        let node = Node::start_speaking(options, Arc::new(Nothing), protocol).unwrap();
        let addresses = vec![node.local_addr().unwrap().to_string()];
        (node, Peer { name, key: public, addresses })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn revisions_that_do_not_overlap_are_named_on_both_sides() {
        let (old, old_peer) = node("old", (1, 1));
        let (new, new_peer) = node("new", (2, 4));
        old.set_peers(vec![new_peer]);
        new.set_peers(vec![old_peer]);
        for (here, there) in [(&old, "new"), (&new, "old")] {
            let error = here.link(&there.parse().unwrap()).await.err().unwrap();
            assert!(matches!(error, ConnectError::Version { .. }), "{error}");
            assert!(here.connected(&there.parse().unwrap()).is_none());
        }
        assert!(old.connected(&"new".parse().unwrap()).is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn jumbo_frames_are_found_where_the_path_has_them() {
        let (one, one_peer) = node("one", PROTOCOL);
        let (two, two_peer) = node("two", PROTOCOL);
        one.set_peers(vec![two_peer]);
        two.set_peers(vec![one_peer]);
        let link = one.link(&"two".parse().unwrap()).await.unwrap();
        let connection = one.live(&"two".parse().unwrap()).unwrap().connection;
        // Discovery goes on as long as packets do; loopback takes 64 KiB.
        let found = async {
            while connection.stats().path.current_mtu < 8000 {
                let mut channel = link.open().await.unwrap();
                let walk = crate::wire::Request::Committed(crate::wire::Committed {
                    volume: "v".into(),
                    target: zumastor_core::SnapshotGuid::generate(),
                });
                tokio::io::AsyncWriteExt::write_all(&mut channel.send, &crate::frame::encode(&walk, &[]))
                    .await
                    .unwrap();
                tokio::io::AsyncReadExt::read_to_end(&mut channel.recv, &mut Vec::new()).await.unwrap();
            }
        };
        let in_time = timeout(Duration::from_secs(20), found).await;
        assert!(in_time.is_ok(), "packets of {} bytes", connection.stats().path.current_mtu);
    }

    #[test]
    fn ports_are_seen_in_addresses() {
        for with in ["host:1", "10.0.0.1:5", "[::1]:5"] {
            assert!(has_port(with), "{with}");
        }
        for without in ["host", "10.0.0.1", "::1", "[::1]", "fe80::1"] {
            assert!(!has_port(without), "{without}");
        }
    }
}
