//! Nodes over real QUIC sockets on loopback.

#[path = "transfer/harness.rs"]
#[allow(dead_code)]
mod harness;

use std::{net::SocketAddr, sync::Arc};

use harness::{Downstream, Upstream, noise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zumastor_core::{SegmentIndex, SnapshotGuid, SnapshotNumber, SnapshotRecord, SnapshotStore};
use zumastor_net::{
    ConnectError, Host, Node, NodeKey, NodeOptions, Patience, Peer, PublicKey, Reporter, announce, frame,
    pull, trace, wire,
};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

struct Running {
    node: Arc<Node>,
    key: PublicKey,
}

fn start(name: &str, host: &Arc<Upstream>) -> Running {
    let key = NodeKey::generate();
    let public = key.public();
    let options = NodeOptions { listen: LOOPBACK, name: name.parse().unwrap(), key };
    Running { node: Node::start(options, Arc::clone(host) as Arc<dyn Host>).unwrap(), key: public }
}

fn peer(name: &str, running: &Running) -> Peer {
    let addresses = vec![running.node.local_addr().unwrap().to_string()];
    Peer { name: name.parse().unwrap(), key: running.key, addresses }
}

async fn volume() -> Arc<Upstream> {
    let upstream = Arc::new(Upstream::new(70 << 20));
    upstream.store.write_head(5000, &noise(9 << 20, 1));
    upstream.snapshot(0).await;
    upstream
}

async fn pull_over(
    node: &Node,
    from: &str,
    downstream: &Downstream,
) -> Result<zumastor_net::PullSummary, String> {
    let link = node.link(&from.parse().unwrap()).await.map_err(|error| error.to_string())?;
    let pulled = pull(&*link, &downstream.replica, &Patience::default(), &Reporter::new()).await;
    pulled.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_crosses_quic_whoever_opened_the_connection() {
    let upstream = volume().await;
    let (alpha, beta) = (start("alpha", &upstream), start("beta", &Arc::new(Upstream::new(0))));
    alpha.node.set_peers(vec![peer("beta", &beta)]);
    // Beta cannot reach alpha by itself: no address, as behind a NAT.
    beta.node.set_peers(vec![Peer { addresses: vec![], ..peer("alpha", &alpha) }]);
    let downstream = Downstream::new();
    let error = pull_over(&beta.node, "alpha", &downstream).await.unwrap_err();
    assert!(error.contains("no address"), "{error}");
    let link = alpha.node.link(&"beta".parse().unwrap()).await.unwrap();
    let news = wire::Announce {
        exactly: false,
        lineage: zumastor_core::Lineage::generate(),
        epoch: 0,
        volume: "x".into(),
        upstream_volume: "vol".into(),
        number: SnapshotNumber(0),
    };
    let refused = announce(&*link, news, &Patience::default(), &mut |_| {}).await.unwrap_err();
    assert_eq!(refused.to_string(), "x is not received here");
    assert!(beta.node.connected(&"alpha".parse().unwrap()).is_some());
    let pulled = pull_over(&beta.node, "alpha", &downstream).await.unwrap();
    assert!(pulled.received);
    downstream.assert_shows(&upstream, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_refused_on_both_sides() {
    let upstream = volume().await;
    let (alpha, intruder) = (start("alpha", &upstream), start("beta", &upstream));
    intruder.node.set_peers(vec![peer("alpha", &alpha)]);
    let error = intruder.node.link(&"alpha".parse().unwrap()).await.err().unwrap();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    assert!(alpha.node.connected(&"beta".parse().unwrap()).is_none());
    // And the other way: whoever answers at alpha's address with another key is not alpha.
    let real = start("real", &upstream);
    alpha.node.set_peers(vec![peer("intruder", &intruder)]);
    intruder.node.set_peers(vec![Peer { key: real.key, ..peer("alpha", &alpha) }]);
    let error = intruder.node.link(&"alpha".parse().unwrap()).await.err().unwrap();
    assert!(matches!(error, ConnectError::WrongKey { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_node_that_is_no_target_gets_nothing() {
    let upstream = volume().await;
    let (alpha, other) = (start("alpha", &upstream), start("other", &upstream));
    alpha.node.set_peers(vec![peer("other", &other)]);
    other.node.set_peers(vec![peer("alpha", &alpha)]);
    let downstream = Downstream::new();
    let error = pull_over(&other.node, "alpha", &downstream).await.unwrap_err();
    assert_eq!(error, "vol is not for other");
    assert_eq!(upstream.meter.data(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_removed_is_cut_off() {
    let upstream = volume().await;
    let (alpha, beta) = (start("alpha", &upstream), start("beta", &upstream));
    alpha.node.set_peers(vec![peer("beta", &beta)]);
    beta.node.set_peers(vec![peer("alpha", &alpha)]);
    let downstream = Downstream::new();
    pull_over(&beta.node, "alpha", &downstream).await.unwrap();
    alpha.node.set_peers(vec![]);
    let error = loop {
        // The old connection may be seen to end before the new one is refused.
        match pull_over(&beta.node, "alpha", &downstream).await {
            Err(error) if error.contains("refuses this node's key") => break error,
            Err(_) => {}
            Ok(_) => panic!("still trusted"),
        }
    };
    assert!(error.contains("peer add"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_request_end_the_connection_and_nothing_else() {
    let upstream = volume().await;
    let (alpha, beta) = (start("alpha", &upstream), start("beta", &upstream));
    alpha.node.set_peers(vec![peer("beta", &beta)]);
    beta.node.set_peers(vec![peer("alpha", &alpha)]);
    let oversized = [&u32::MAX.to_le_bytes()[..], &u32::MAX.to_le_bytes()].concat();
    let nonsense = [&3u32.to_le_bytes()[..], &0u32.to_le_bytes(), &[0xee; 3]].concat();
    for (bytes, expected) in [(oversized, "more than is allowed"), (nonsense, "is no Request")] {
        let link = beta.node.link(&"alpha".parse().unwrap()).await.unwrap();
        let mut channel = link.open().await.unwrap();
        channel.send.write_all(&bytes).await.unwrap();
        channel.recv.read_to_end(&mut Vec::new()).await.unwrap_err();
        let reason = link.open().await.unwrap_err().to_string();
        assert!(reason.contains(expected), "{reason}");
    }
    let downstream = Downstream::new();
    pull_over(&beta.node, "alpha", &downstream).await.unwrap();
    downstream.assert_shows(&upstream, 0).await;
}

/// Every request that there is, asked about a snapshot that is there. A new one does not compile here before somebody has
/// thought about it: none of them may take anything away.
fn every_request(target: SnapshotGuid) -> Vec<wire::Request> {
    use wire::Request::{Announce, Committed, Fetch, Terms, Trace, Walk, Want};
    let volume = || "vol".to_owned();
    let hop = wire::Hop { key: [1; 32], node: "n".parse().unwrap(), volume: "v".parse().unwrap() };
    let news = wire::Announce {
        volume: volume(),
        upstream_volume: volume(),
        number: SnapshotNumber(0),
        exactly: true,
        lineage: zumastor_core::Lineage::generate(),
        epoch: u64::MAX,
    };
    let want = wire::Want { volume: volume(), have: vec![], resume: None, wanted: None, epoch: None };
    let what = wire::FetchWhat::Changes { base: None, segments: vec![SegmentIndex(0)] };
    let (level, first) = (wire::WalkLevel::Nodes, SegmentIndex(0));
    let all = vec![
        Announce(news),
        Want(want),
        Fetch(wire::Fetch { volume: volume(), target, what }),
        Walk(wire::Walk { volume: volume(), target, level, first, count: 1 }),
        Committed(wire::Committed { volume: volume(), target }),
        Terms(wire::Terms { volume: volume() }),
        Trace(wire::Trace { volume: volume(), path: vec![hop] }),
    ];
    let position = |request: &wire::Request| match request {
        Announce(_) => 0,
        Want(_) => 1,
        Fetch(_) => 2,
        Walk(_) => 3,
        Committed(_) => 4,
        Terms(_) => 5,
        Trace(_) => 6,
    };
    assert!(all.iter().map(position).eq(0..all.len()));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_and_no_bytes_take_anything_away() {
    let upstream = volume().await;
    upstream.store.write_head(1 << 20, &noise(70_000, 2));
    upstream.snapshot(1).await;
    let (alpha, beta) = (start("alpha", &upstream), start("beta", &Arc::new(Upstream::new(0))));
    alpha.node.set_peers(vec![peer("beta", &beta)]);
    beta.node.set_peers(vec![peer("alpha", &alpha)]);
    let there = async || {
        let snapshots = upstream.store.snapshots().await.unwrap();
        let mut all = Vec::new();
        for number in snapshots.iter().map(SnapshotRecord::number) {
            all.push((number, upstream.store.leaves(number).await.unwrap().digest()));
        }
        // With the digests, which may have been computed only now.
        (upstream.store.snapshots().await.unwrap(), all, upstream.store.head_content())
    };
    let before = there().await;
    let say = async |bytes: &[u8]| {
        // The connection before may have been closed for what was said on it.
        let mut channel = loop {
            let link = beta.node.link(&"alpha".parse().unwrap()).await.unwrap();
            match link.open().await {
                Ok(channel) => break channel,
                Err(_) => continue,
            }
        };
        let _ = channel.send.write_all(bytes).await;
        let _ = channel.send.shutdown().await;
        let _ = channel.recv.read_to_end(&mut Vec::new()).await;
    };
    let guid = before.0[0].guid();
    let requests = every_request(guid);
    for request in &requests {
        say(&frame::encode(request, &[])).await;
    }
    // Every number that a request could have, with what others could mean by it.
    let named = [&[3][..], b"vol", &[16], guid.0.as_bytes()].concat();
    for variant in (0..=15u8).chain([127, 128, 255]) {
        for rest in [&[][..], &named, &[0; 48], &[0xff; 48]] {
            let header = [&[variant][..], rest].concat();
            let length = (header.len() as u32).to_le_bytes();
            say(&[&length[..], &[0; 4], &header].concat()).await;
        }
    }
    assert!(there().await == before, "something is not what it was");
    let downstream = Downstream::new();
    pull_over(&beta.node, "alpha", &downstream).await.unwrap();
    downstream.assert_shows(&upstream, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_too_long_ends_the_connection() {
    let upstream = volume().await;
    let (alpha, beta) = (start("alpha", &upstream), start("beta", &upstream));
    alpha.node.set_peers(vec![peer("beta", &beta)]);
    beta.node.set_peers(vec![peer("alpha", &alpha)]);
    let long = "x".repeat(63);
    let hop = wire::Hop { key: [1; 32], node: long.parse().unwrap(), volume: long.parse().unwrap() };
    let link = beta.node.link(&"alpha".parse().unwrap()).await.unwrap();
    // As long as it may be, it comes back.
    let path = vec![hop.clone(); wire::MAX_HOPS];
    let reply = trace(&*link, "vol", path.clone()).await.unwrap();
    assert_eq!(reply, wire::TraceReply::Circle(path.clone()));
    let reply = trace(&*link, "other", path).await.unwrap();
    assert!(
        matches!(reply, wire::TraceReply::Refused(refusal) if refusal.code == wire::RefusalCode::NotAllowed)
    );
    trace(&*link, "vol", vec![hop; wire::MAX_HOPS + 1]).await.unwrap_err();
    let reason = link.open().await.unwrap_err().to_string();
    assert!(reason.contains("is no Request"), "{reason}");
}
