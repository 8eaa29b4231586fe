//! Volumes that would go round in a circle: refused where that can be seen, otherwise stopped and shown, and over when it is.

use std::{fs, path::Path, sync::Arc};

use crate::common::{Node, image, introduce, write};
use async_trait::async_trait;
use zumastor::api::{HeadStatus, Health, VolumeStatus, WorkState};
use zumastor_core::{Lineage, NodeName, SnapshotNumber};
use zumastor_net::{
    Host, Link, NodeKey, NodeOptions, Peer, PullState, Served, Ticket, Unheard, trace,
    wire::{Announce, Hop, MAX_HOPS, Refusal, RefusalCode, Trace, TraceReply},
};

const MIB: u64 = 1 << 20;

fn shows(number: u64) -> impl Fn(&VolumeStatus) -> bool {
    move |volume| volume.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)))
}

/// Nodes that all know each other. The first masters `v`; each of the others receives it from the one before.
fn chain<const N: usize>(dir: &Path, names: [&'static str; N]) -> [Node; N] {
    let nodes = names.map(|name| Node::start(dir, name));
    for (index, node) in nodes.iter().enumerate() {
        nodes[..index].iter().for_each(|other| introduce(other, node));
    }
    image(&nodes[0].path("v.img"), MIB, 1);
    nodes[0].define("v");
    nodes[0].ok(&["define", "master", "v"]);
    nodes[0].ok(&["snapshot", "v"]);
    for pair in nodes.windows(2) {
        pair[1].define("v");
        pair[0].ok(&["define", "target", "v", pair[1].name]);
        pair[1].ok(&["define", "source", "v", pair[0].name]);
        pair[0].ok(&["replicate", "v", pair[1].name, "--wait"]);
    }
    nodes
}

fn assert_refused(error: &str, circle: &str) {
    let expected = format!("volume v would go round in a circle: {circle}");
    assert!(error.lines().next().unwrap().ends_with(&expected), "{error}");
    assert!(error.contains("`zumastor forget source VOLUME`"), "{error}");
}

#[test]
fn a_circle_is_refused_where_it_would_be_closed() {
    let dir = tempfile::tempdir().unwrap();
    let [alpha, beta, gamma, delta] = chain(dir.path(), ["alpha", "beta", "gamma", "delta"]);
    let files =
        || [&alpha, &beta, &gamma, &delta].map(|node| fs::read_to_string(node.path("etc/volumes/v.toml")));
    let before = files().map(Result::unwrap);
    // By who would send it back, along three nodes and along four.
    assert_refused(&gamma.fails(3, &["define", "target", "v", "alpha"]), "alpha → beta → gamma → alpha");
    let error = delta.fails(3, &["define", "target", "v", "alpha", "-p", "5"]);
    assert_refused(&error, "alpha → beta → gamma → delta → alpha");
    assert_refused(&delta.fails(3, &["define", "target", "v", "beta"]), "beta → gamma → delta → beta");
    assert_eq!(files().map(Result::unwrap), before);

    // Under another name it is another volume, also on the node that it began on.
    assert_eq!(
        gamma.run(&["define", "target", "v", "alpha", "--name", "w"]).err.matches("circle").count(),
        0
    );
    alpha.define("w");
    alpha.ok(&["define", "source", "w", "gamma", "--name", "v"]);
    gamma.ok(&["replicate", "v", "alpha", "--wait"]);
    assert_eq!(alpha.digest("w"), alpha.digest("v"));
    assert_eq!(alpha.volume("w").health, Health::Ok);

    gamma.ok(&["forget", "target", "v", "alpha"]);
    alpha.ok(&["forget", "source", "w"]);

    // A former master that sends it on would be closing the circle.
    gamma.ok(&["forget", "source", "v"]);
    gamma.ok(&["define", "target", "v", "alpha"]);
    gamma.ok(&["define", "source", "v", "beta"]);
    let error = alpha.fails(3, &["define", "source", "v", "gamma", "--yes"]);
    assert_refused(&error, "alpha → beta → gamma → alpha");
    assert_eq!(alpha.volume("v").role, zumastor::api::Role::Master);
    // Nothing of all this is in the way of what is right.
    write(&alpha.path("v.img"), 77, b"next");
    alpha.ok(&["snapshot", "v"]);
    for pair in [[&alpha, &beta], [&beta, &gamma], [&gamma, &delta]] {
        pair[0].ok(&["replicate", "v", pair[1].name, "--wait"]);
    }
    assert_eq!(delta.digest("v"), alpha.digest("v"));
}

#[test]
fn what_spreads_is_no_circle() {
    let dir = tempfile::tempdir().unwrap();
    let [alpha, beta, gamma] = chain(dir.path(), ["alpha", "beta", "gamma"]);
    let delta = Node::start(dir.path(), "delta");
    [&alpha, &beta, &gamma].into_iter().for_each(|node| introduce(node, &delta));
    // alpha → {beta, delta}, beta → {gamma, delta}: delta has it twice, as two volumes.
    for (from, name) in [(&alpha, "v"), (&beta, "w")] {
        delta.define(name);
        assert!(!from.run(&["define", "target", "v", "delta", "-n", name]).err.contains("circle"));
        assert!(!delta.run(&["define", "source", name, from.name, "-n", "v"]).err.contains("circle"));
        from.ok(&["replicate", "v", "delta", "--wait"]);
    }
    // And delta sends one of them on to where the other comes through.
    delta.ok(&["define", "target", "w", "gamma", "-n", "y"]);
    gamma.define("y");
    gamma.ok(&["define", "source", "y", "delta", "-n", "w"]);
    delta.ok(&["replicate", "w", "gamma", "--wait"]);
    for (node, volume) in [(&gamma, "v"), (&gamma, "y"), (&delta, "v"), (&delta, "w")] {
        assert_eq!(node.digest(volume), alpha.digest("v"));
        assert_eq!(node.volume(volume).health, Health::Ok);
    }
}

#[test]
fn a_circle_that_was_closed_while_a_node_was_away_is_found_and_over_when_it_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let [alpha, mut beta, gamma] = chain(dir.path(), ["alpha", "beta", "gamma"]);
    let before = [&alpha, &beta, &gamma].map(|node| node.digest("v"));
    assert_eq!(beta.down(), 0);
    let ran = gamma.run(&["define", "target", "v", "alpha"]);
    assert!(ran.code == 0 && ran.err.contains("circle is not known yet"), "{ran:?}");
    let ran = alpha.run(&["define", "source", "v", "gamma", "--yes"]);
    assert!(ran.code == 0 && ran.err.contains("circle is not known yet"), "{ran:?}");

    beta.up();
    let circles = [
        (&alpha, "alpha → beta → gamma → alpha"),
        (&beta, "beta → gamma → alpha → beta"),
        (&gamma, "gamma → alpha → beta → gamma"),
    ];
    let stopped = |volume: &VolumeStatus| {
        let work = &volume.source.as_ref().unwrap().work;
        volume.health == Health::Stopped && work.state == WorkState::Stopped
    };
    for (node, circle) in circles {
        let volume = node.wait_until("v", "the stop", stopped);
        let error = volume.source.unwrap().work.error.unwrap();
        assert!(error.permanent && error.text.contains(circle), "{error:?}");
        assert!(volume.trouble.unwrap().contains("goes round in a circle"));
        let told = node.ok(&["status"]);
        assert!(told.contains("STOPPED") && told.contains(circle), "{told}");
        assert!(told.contains("`zumastor forget source v`"), "{told}");
    }
    // Whoever asks for it is told the same, and nothing has been touched.
    let error = gamma.fails(3, &["replicate", "v", "beta", "--wait"]);
    assert!(error.contains("gamma → alpha → beta → gamma"), "{error}");
    let error = gamma.fails(3, &["replicate", "v", "alpha", "--wait"]);
    assert!(error.contains("alpha → beta → gamma → alpha"), "{error}");
    assert_eq!([&alpha, &beta, &gamma].map(|node| node.digest("v")), before);

    // Broken by any of them, it is over for all: by a target that is forgotten, while the source is not.
    beta.ok(&["forget", "target", "v", "gamma"]);
    for node in [&alpha, &beta] {
        node.wait_until("v", "recovery", |volume| volume.source.as_ref().unwrap().work.error.is_none());
    }
    beta.ok(&["define", "target", "v", "gamma", "-n", "other"]);
    // Closed again (beta asks, since it is there now) it is refused.
    assert_refused(&beta.fails(3, &["define", "target", "v", "gamma"]), "gamma → alpha → beta → gamma");
    beta.ok(&["forget", "target", "v", "gamma"]);
    gamma.ok(&["forget", "source", "v"]);
    gamma.ok(&["define", "master", "v"]);
    write(&gamma.path("v.img"), 5, b"gamma is the master");
    gamma.ok(&["snapshot", "v"]);
    gamma.ok(&["replicate", "v", "alpha", "--wait"]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert_eq!(beta.digest("v"), gamma.digest("v"));
    for node in [&alpha, &beta, &gamma] {
        node.wait_until("v", "everything to be well", |volume| volume.health == Health::Ok);
    }
    assert!(shows(1)(&beta.volume("v")) || shows(2)(&beta.volume("v")));
}

#[test]
fn a_circle_that_a_file_makes_is_stopped_and_goes_on_after_a_forget() {
    let dir = tempfile::tempdir().unwrap();
    let [alpha, beta, gamma] = chain(dir.path(), ["alpha", "beta", "gamma"]);
    // `w` of alpha comes from gamma, and a hand-edited file sends it to beta, as `v`, whose own file says that it comes from there.
    gamma.ok(&["define", "target", "v", "alpha", "-n", "w"]);
    alpha.define("w");
    alpha.ok(&["define", "source", "w", "gamma", "-n", "v"]);
    gamma.ok(&["replicate", "v", "alpha", "--wait"]);
    let file = |node: &Node, name: &str| node.path(&format!("etc/volumes/{name}.toml"));
    let append = |node: &Node, name: &str, text: &str| {
        let path = file(node, name);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{before}\n{text}\n")).unwrap();
        before
    };
    let w = append(&alpha, "w", "[target.beta]\nname = \"v\"");
    alpha.ok(&["reload"]);
    let v = fs::read_to_string(file(&beta, "v")).unwrap();
    fs::write(file(&beta, "v"), v.replace("host = \"alpha\"", "host = \"alpha\"\nname = \"w\"")).unwrap();
    beta.ok(&["reload"]);
    let circle = "alpha → beta:v → gamma:v → alpha";
    let told = alpha.wait_until("w", "the stop", |volume| volume.health == Health::Stopped).trouble.unwrap();
    assert!(told.contains(circle), "{told}");
    let told = beta.wait_until("v", "the stop", |volume| volume.health == Health::Stopped).trouble.unwrap();
    assert!(told.contains("beta → gamma → alpha:w → beta"), "{told}");
    // The files as they were.
    fs::write(file(&alpha, "w"), w).unwrap();
    fs::write(file(&beta, "v"), v).unwrap();
    alpha.ok(&["reload"]);
    beta.ok(&["reload"]);
    for (node, volume) in [(&alpha, "w"), (&beta, "v"), (&gamma, "v")] {
        node.wait_until(volume, "recovery", |volume| volume.health == Health::Ok);
    }
    write(&alpha.path("v.img"), 5, b"news");
    alpha.ok(&["snapshot", "v"]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    beta.ok(&["replicate", "v", "gamma", "--wait"]);
    gamma.ok(&["replicate", "v", "alpha", "--wait"]);
    assert_eq!(alpha.digest("w"), alpha.digest("v"));
}

/// A node of its own making, which asks what it likes and answers nothing.
struct Stranger;

#[async_trait]
impl Host for Stranger {
    async fn serve(&self, _: &NodeName, _: &str) -> Result<Served, Refusal> {
        Err(Refusal::new(RefusalCode::NotAllowed, "no"))
    }
    async fn announced(
        &self,
        _: &NodeName,
        _: &Announce,
    ) -> Result<tokio::sync::watch::Receiver<PullState>, Unheard> {
        Err(Refusal::new(RefusalCode::NotAllowed, "no").into())
    }
    async fn trace(&self, _: &NodeName, _: &Trace) -> TraceReply {
        // Whatever it is asked, it says that this is a circle, through nodes that are none.
        let hop = |number: u8| Hop { key: [number; 32], node: name("x"), volume: "v".parse().unwrap() };
        TraceReply::Circle((0..MAX_HOPS as u8).map(hop).collect())
    }
    async fn superseded(&self, _: &NodeName, _: &str, _: Lineage, _: u64) {}
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

#[test]
fn only_who_is_sent_a_volume_learns_anything_of_where_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let [alpha, beta] = chain(dir.path(), ["alpha", "beta"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let key = NodeKey::generate();
    let own = key.public();
    let listen = "127.0.0.1:0".parse().unwrap();
    let options = NodeOptions { listen, name: name("stranger"), key };
    let _within = runtime.enter();
    let node = zumastor_net::Node::start(options, Arc::new(Stranger)).unwrap();
    let addresses = vec![node.local_addr().unwrap().to_string()];
    let ticket = Ticket { name: name("stranger"), key: own, addresses }.to_string();
    let theirs: Ticket = beta.ok(&["peer", "ticket"]).trim().parse().unwrap();
    beta.ok(&["peer", "add", "stranger", &ticket]);
    let address = beta.status().node.listen.to_string();
    node.set_peers(vec![Peer { name: name("beta"), key: theirs.key, addresses: vec![address] }]);
    let ask = |volume: &str, path: Vec<Hop>| {
        let asked = async {
            let link: Arc<dyn Link> = node.link(&name("beta")).await.unwrap();
            trace(&*link, volume, path).await.unwrap()
        };
        runtime.block_on(asked)
    };
    let hop = |number: u8| Hop { key: [number; 32], node: name("n"), volume: "v".parse().unwrap() };
    let me = Hop { key: own.0, node: name("stranger"), volume: "v".parse().unwrap() };
    let refused = |reply: TraceReply| match reply {
        TraceReply::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    // Not a word, whether or not there is such a volume.
    for volume in ["v", "none", "../v"] {
        let refusal = refused(ask(volume, vec![me.clone()]));
        let text = format!("beta does not send volume {volume} to you");
        assert!(refusal.code == RefusalCode::NotAllowed && refusal.text.starts_with(&text), "{refusal:?}");
    }
    beta.ok(&["define", "target", "v", "stranger"]);
    assert_eq!(ask("v", vec![me.clone()]), TraceReply::Clear);
    // Who asks is the last on the path, and nobody else.
    for path in [vec![], vec![hop(1)], vec![me.clone(), hop(1)]] {
        assert_eq!(refused(ask("v", path)).code, RefusalCode::Malformed);
    }
    // As long as paths may be, it is not handed on any more, and says so.
    let mut long: Vec<_> = (0..MAX_HOPS as u8 - 1).map(hop).collect();
    long.push(me.clone());
    assert!(refused(ask("v", long)).text.contains("over more than 32 nodes"));
    // A circle that it is told of and that is none of its own is not its matter.
    beta.ok(&["forget", "source", "v"]);
    beta.ok(&["define", "target", "v", "alpha"]);
    let ran = beta.run(&["define", "source", "v", "stranger"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    beta.ok(&["forget", "target", "v", "stranger"]);
    let ran = beta.run(&["define", "source", "v", "stranger"]);
    assert!(ran.code == 0 && !ran.err.contains("circle"), "{ran:?}");
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}
