//! Nodes with a network between them: a cable that is pulled out, and an upstream that cannot be dialled.

use std::{
    net::UdpSocket,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::common::{PROGRAM, equal, replicated, root_with, shows};
use zumastor::exit::Failure;
use zumastor_net::Ticket;
use zumastor_testbed::{LongCable, LongPath, Namespaces, Node, NodeOptions, image, introduce};

const MIB: u64 = 1 << 20;

/// Longer than a dead connection takes to be noticed, and what comes after.
const PATIENCE: Duration = Duration::from_secs(100);

/// A node in one of the namespaces, at its address.
fn node(spaces: &Namespaces, side: usize, dir: &Path, name: &str) -> Result<Node, Failure> {
    Node::start_with(NodeOptions {
        program: PROGRAM.into(),
        root: dir.join(name),
        name: name.to_owned(),
        listen: format!("{}:11235", Namespaces::address(side)),
        namespace: Some(spaces.name(side).to_owned()),
    })
}

#[test]
fn root_a_cable_pulled_out_in_the_middle() -> Result<(), Failure> {
    if !root_with(&["ip"]) {
        return Ok(());
    }
    let spaces = Namespaces::new("c")?;
    let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let upstream = node(&spaces, 0, dir.path(), "upstream")?;
    let mut downstream = node(&spaces, 1, dir.path(), "downstream")?;
    introduce(&upstream, &downstream)?;
    image(&upstream.path("v.img"), 160 * MIB, 3)?;
    replicated(&upstream, (&downstream, downstream.root()), &["--ratelimit", "20M"], &["--period", "2"])?;
    downstream.wait_for("v", "the middle of the copy", PATIENCE, |volume| {
        let progress = volume.source.as_ref()?.work.progress?;
        (progress.done >= 60 * MIB).then_some(())
    })?;

    spaces.cable(false)?;
    let start = Instant::now();
    let error = downstream.wait_for("v", "an error", PATIENCE, |volume| {
        volume.source.as_ref()?.work.error.as_ref().map(|error| error.text.clone())
    })?;
    println!("after {:.1?} without a cable: {error}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(5), "a short break is no error");
    let held = downstream.volume("v")?;
    assert!(held.snapshots.is_empty() && held.staged.is_some(), "{held:?}");

    spaces.cable(true)?;
    let start = Instant::now();
    let summary = downstream.wait_for("v", "the copy, by itself", PATIENCE, |volume| {
        let done = volume.history.iter().find_map(|transfer| transfer.summary)?;
        shows(volume, 0).then_some(done)
    })?;
    println!("{:.1?} after it was put back: {summary:?}", start.elapsed());
    // All but the last second or so before the break.
    assert!(summary.resumed >= 24 * MIB, "{summary:?}");
    equal(&upstream, &downstream)
}

/// As behind a NAT: nobody can dial the downstream, whose own connection carries what the upstream pushes.
#[test]
fn root_a_push_through_the_connection_of_the_other() -> Result<(), Failure> {
    if !root_with(&["ip"]) {
        return Ok(());
    }
    let spaces = Namespaces::new("n")?;
    let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let upstream = node(&spaces, 0, dir.path(), "upstream")?;
    let mut downstream = node(&spaces, 1, dir.path(), "downstream")?;
    let ticket = upstream.ok(&["peer", "ticket"])?;
    downstream.ok(&["peer", "add", "upstream", ticket.trim()])?;
    let ticket = downstream.ok(&["peer", "ticket"])?;
    let ticket: Ticket = ticket.trim().parse().map_err(Failure::doing("a ticket"))?;
    let nowhere = Ticket { addresses: Vec::new(), ..ticket };
    upstream.ok(&["peer", "add", "downstream", &nowhere.to_string()])?;
    image(&upstream.path("v.img"), 8 * MIB, 4)?;
    replicated(&upstream, (&downstream, downstream.root()), &[], &[])?;

    let alone = upstream.run(&["replicate", "v", "downstream", "--wait"])?;
    println!("before: {}", alone.err.trim());
    assert_eq!(alone.code, 1, "{alone:?}");
    assert!(alone.err.contains("not connected") && alone.err.contains("no address"), "{alone:?}");

    // The other side pulls once, and its connection stays.
    downstream.ok(&["replicate", "v", "upstream", "--wait"])?;
    upstream.ok(&["snapshot", "v"])?;
    upstream.ok(&["replicate", "v", "downstream", "--wait"])?;
    downstream.wait_for("v", "the second snapshot", PATIENCE, |volume| shows(volume, 1).then_some(()))?;
    equal(&upstream, &downstream)
}

/// Sends packets over a long cable, one after the other, and counts those that arrive; tells how long the first took.
fn arrive(namespaces: &Namespaces, packets: u32) -> (u32, Duration) {
    let at = |side: usize| format!("{}:9", Namespaces::address(side));
    let bound = |side| {
        namespaces.enter(side).unwrap();
        UdpSocket::bind(at(side)).unwrap()
    };
    // Threads that are moved stay where they are; those of other tests are not.
    thread::scope(|scope| {
        let receiver = scope.spawn(move || bound(1)).join().unwrap();
        let sender = scope.spawn(move || bound(0)).join().unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let begin = Instant::now();
        for number in 0..packets {
            sender.send_to(&number.to_le_bytes(), at(1)).unwrap();
        }
        let (mut arrived, mut first) = (0, Duration::ZERO);
        while arrived < packets && receiver.recv(&mut [0; 4]).is_ok() {
            if arrived == 0 {
                first = begin.elapsed();
            }
            arrived += 1;
        }
        (arrived, first)
    })
}

#[test]
fn root_a_long_cable_delays_and_loses() {
    if !root_with(&["ip"]) {
        return;
    }
    let namespaces = Namespaces::apart("long").unwrap();
    let path = LongPath { rtt: 100, loss: 0.0, rate: 1_000_000_000 };
    let cable = LongCable::join(&namespaces, path).unwrap();
    let (arrived, first) = arrive(&namespaces, 500);
    assert_eq!(arrived, 500);
    assert!(first >= Duration::from_millis(50), "the first took {first:?}");
    cable.become_like(LongPath { loss: 0.5, ..path });
    let (arrived, _) = arrive(&namespaces, 500);
    assert!((150..350).contains(&arrived), "{arrived} of 500");
    // Full with three packets: what finds no room is lost.
    cable.become_like(LongPath { rtt: 100, loss: 0.0, rate: 10_000 });
    let (arrived, _) = arrive(&namespaces, 500);
    assert!((1..10).contains(&arrived), "{arrived} of 500");
}
