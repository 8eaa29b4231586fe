//! The UDP socket and the QUIC settings.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, ServerConfig,
    TokioRuntime, TransportConfig, UdpPoller, VarInt,
    udp::{RecvMeta, Transmit},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::congestion::Congestion;
use crate::security::NodeKey;

/// Starts an endpoint, with packets as large as [`transport_config`] lets the path discovery find.
///
/// # Panics
/// Outside a tokio runtime.
pub fn endpoint(
    listen: SocketAddr,
    mut config: EndpointConfig,
    server: Option<ServerConfig>,
) -> io::Result<Endpoint> {
    // What we take bounds what the peer's discovery tries: the default would keep it at 1,472 whatever the path has.
    config.max_udp_payload_size(MAX_UDP).expect("within what QUIC allows");
    let runtime = Arc::new(TokioRuntime);
    let socket = Arc::new(Batched(runtime.wrap_udp_socket(bind(listen)?)?));
    Endpoint::new_with_abstract_socket(config, server, socket, runtime)
}

/// A socket that sends what quinn hands over in pieces that the system takes.
///
/// quinn gathers ten packets for one call (generic segmentation offload), whatever their size. Of jumbo packets that is
/// more than one call may send: the system refuses it, quinn takes the refusal for the answer to a probe, and all ten are
/// lost. After some of these losses it believes that the path has lost its large packets, and goes back to small ones.
#[derive(Debug)]
struct Batched(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Batched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(segment) = transmit.segment_size.filter(|_| transmit.contents.len() > MAX_SEND) else {
            return self.0.try_send(transmit);
        };
        // If only a later piece finds no room, the ones before are sent once more with it, which does no harm.
        for contents in transmit.contents.chunks(MAX_SEND / segment * segment) {
            let segment_size = Some(segment).filter(|segment| contents.len() > *segment);
            let Transmit { destination, ecn, src_ip, .. } = *transmit;
            self.0.try_send(&Transmit { destination, ecn, contents, segment_size, src_ip })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

/// Binds the socket. A wildcard IPv6 address takes IPv4 too, and falls back to it where there is no IPv6.
fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    match bind_exactly(listen) {
        Err(error)
            if listen.is_ipv6()
                && listen.ip().is_unspecified()
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            bind_exactly((Ipv4Addr::UNSPECIFIED, listen.port()).into())
        }
        result => result,
    }
}

fn bind_exactly(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    enlarge_buffers(&socket);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// With the usual 208 KiB a fast path loses tens of thousands of packets. Beyond the system's limit only root may go.
fn enlarge_buffers(socket: &Socket) {
    use rustix::net::sockopt;
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    let _ = socket.set_send_buffer_size(BUFFER);
}

/// Settings of the endpoint. Connection ids and reset tokens follow from the node's key, so that a restarted node
/// tells its peers at once that their old connections are gone.
pub(super) fn endpoint_config(key: &NodeKey) -> EndpointConfig {
    let reset = key.derive("zumastor stateless reset v1");
    let reset = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &reset);
    let ids = key.derive("zumastor connection id v1");
    let ids = u64::from_le_bytes(ids[..8].try_into().expect("8 bytes"));
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)));
    config
}

/// Settings of every connection.
pub fn transport_config() -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_UDP);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        // Four of them are all that the other end has under way, and as much as 1 Gbit/s has on a path of 167 ms.
        .stream_receive_window(VarInt::from_u32(5 << 20))
        .receive_window(VarInt::from_u32(64 << 20))
        .send_window(32 << 20)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(Congestion))
        .keep_alive_interval(Some(Duration::from_secs(2)))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))));
    Arc::new(config)
}

/// Largest UDP payload: jumbo frames of 9,000 bytes, less IPv6 and UDP headers. Where the path has them, a byte costs a
/// third of the CPU time.
const MAX_UDP: u16 = 8952;

/// Most bytes that one call may send: what fits an IPv4 datagram.
const MAX_SEND: usize = 65_507;

/// Streams that a peer may have open at the same time.
pub(super) const MAX_STREAMS: u32 = 512;

/// Bytes of a socket's buffer, each way.
const BUFFER: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn as_many_jumbo_packets_as_are_handed_over_arrive() {
        let bind = || TokioRuntime.wrap_udp_socket(bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap()).unwrap();
        let (here, there) = (Arc::new(Batched(bind())), bind());
        let packet = usize::from(MAX_UDP);
        let contents: Vec<u8> = (0..10 * packet - 5).map(|at| (at / packet) as u8).collect();
        let transmit = Transmit {
            destination: there.local_addr().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: Some(packet),
            src_ip: None,
        };
        let mut writable = Arc::clone(&here).create_io_poller();
        poll_fn(|context| writable.as_mut().poll_writable(context)).await.unwrap();
        here.try_send(&transmit).unwrap();
        let mut received = Vec::new();
        while received.len() < contents.len() {
            let (mut buffer, mut meta) = (vec![0; 65_536], [RecvMeta::default()]);
            let read =
                poll_fn(|context| there.poll_recv(context, &mut [IoSliceMut::new(&mut buffer)], &mut meta));
            tokio::time::timeout(Duration::from_secs(5), read).await.expect("all arrive").unwrap();
            received.extend_from_slice(&buffer[..meta[0].len]);
        }
        assert!(received == contents);
    }
}
