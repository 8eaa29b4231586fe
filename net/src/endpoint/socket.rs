//! The UDP socket and the QUIC settings.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::security::NodeKey;

/// Binds the socket. A wildcard IPv6 address takes IPv4 too, and falls back to it where there is no IPv6.
pub(super) fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
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
    // What we take bounds what the peer's discovery tries: the default would keep it at 1,472 whatever the path has.
    config.max_udp_payload_size(MAX_UDP).expect("within what QUIC allows");
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)));
    config
}

/// Settings of every connection.
pub(super) fn transport_config() -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_UDP);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(64 << 20))
        .send_window(16 << 20)
        .mtu_discovery_config(Some(discovery))
        .keep_alive_interval(Some(Duration::from_secs(2)))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))));
    Arc::new(config)
}

/// Largest UDP payload: jumbo frames of 9,000 bytes, less IPv6 and UDP headers. Where the path has them, a byte costs a
/// third of the CPU time.
const MAX_UDP: u16 = 8952;

/// Streams that a peer may have open at the same time.
pub(super) const MAX_STREAMS: u32 = 512;

/// Bytes of a socket's buffer, each way.
const BUFFER: usize = 8 << 20;
