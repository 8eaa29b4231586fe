//! The daemon is killed at each step of what it does with mounts. Whoever looks meanwhile sees one snapshot or the other; the next
//! start goes on from there, and nothing hangs.

use std::{fs, path::Path};

use crate::common::{
    mounted::{Place, Standing, generation, master, mounted_pair, refused, wait_for, wait_until, write},
    root_with,
};
use zumastor::exit::Failure;
use zumastor_testbed::Node;

const TOOLS: &[&str] = &["mkfs.xfs", "mkfs.ext4", "mount", "losetup"];

/// How many mounts there are on a directory.
fn depth(at: &Path) -> usize {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.lines().filter(|line| line.split(' ').nth(4) == at.to_str()).count()
}

/// Does something with the daemon killed at its first step, at its second, and so on until it comes to its end; `check` looks at
/// what there is while no daemon runs, `after` once there is one again.
fn at_every_step(
    node: &mut Node,
    mut act: impl FnMut(&Node) -> Result<(), Failure>,
    mut check: impl FnMut(u32),
    mut after: impl FnMut(&Node, u32) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for step in 1.. {
        node.kill_at(step)?;
        act(node)?;
        if !node.was_killed()? {
            assert!(step > 10, "only {step} steps");
            println!("{} steps", step - 1);
            return Ok(());
        }
        check(step);
        node.up()?;
        after(node, step)?;
    }
    Ok(())
}

/// A file system outlives the daemon that made it hold still. The next one lets it go on, and whoever waits to write goes on.
#[test]
fn root_a_head_goes_on_after_a_kill_at_any_step_of_a_snapshot() -> Result<(), Failure> {
    if !root_with(TOOLS) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &["--hourly", "3"])?;
    write(&at, 0);
    let mut number = 0;
    let there = |node: &Node| {
        wait_until(node, "the volume", |volume| {
            volume.mounts.as_ref().is_some_and(|m| m.mountpoint.is_some())
        })
    };
    at_every_step(
        &mut node,
        |node| node.run(&["snapshot", "v", "hourly"]).map(drop),
        |_| {},
        |node, step| {
            // Were it not to go on, this would hang.
            number += 1;
            let (to, new) = (at.clone(), number);
            let writing = std::thread::spawn(move || write(&to, new));
            wait_for("the head to go on", || writing.is_finished().then_some(()));
            writing.join().expect("it was written to");
            let volume = there(node);
            assert_eq!(volume.mounts.expect("it is mounted").troubles, Vec::<String>::new(), "step {step}");
            for snapshot in volume.snapshots {
                generation(&snapshot.mounted.expect("it is mounted"));
            }
            Ok(())
        },
    )?;
    assert_eq!(node.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

#[test]
fn root_a_flip_that_was_cut_short_is_ended() -> Result<(), Failure> {
    if !root_with(TOOLS) {
        return Ok(());
    }
    let place = Place::new()?;
    let (alpha, mut beta, at, shown) = mounted_pair(&place, "ext4", &["--mount-snap"])?;
    write(&at, 0);
    alpha.ok(&["snapshot", "v"])?;
    beta.ok(&["replicate", "v", "alpha", "--wait"])?;
    let now = std::cell::Cell::new(0);
    at_every_step(
        &mut beta,
        |beta| {
            now.set(now.get() + 1);
            write(&at, now.get());
            alpha.ok(&["snapshot", "v"])?;
            beta.run(&["replicate", "v", "alpha", "--wait"]).map(drop)
        },
        |step| {
            let seen = generation(&shown);
            assert!(seen == now.get() || seen + 1 == now.get(), "step {step}: {seen} of {}", now.get());
        },
        |beta, step| {
            beta.ok(&["replicate", "v", "alpha", "--wait"])?;
            wait_for("the new snapshot", || (generation(&shown) == now.get()).then_some(()));
            wait_for("the end of the flip", || (depth(&shown) == 1).then_some(()));
            // Nothing holds on to the one before.
            let old = (now.get() - 1).to_string();
            wait_for("the one before to be let go", || {
                (beta.run(&["delete", "v", &old]).unwrap().code == 0).then_some(())
            });
            let troubles = beta.volume("v")?.mounts.expect("it is mounted").troubles;
            assert_eq!(troubles, Vec::<String>::new(), "step {step}");
            Ok(())
        },
    )?;
    assert_eq!(generation(&shown), now.get());
    for mut node in [alpha, beta] {
        assert_eq!(node.down()?, 0);
    }
    place.nothing_is_left();
    Ok(())
}

/// What is in use is not destroyed; and what was begun is ended by the same command.
#[test]
fn root_a_mounted_volume_is_destroyed_or_refused() -> Result<(), Failure> {
    if !root_with(TOOLS) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &["--dotsnapshot", "--samba"])?;
    write(&at, 0);
    node.ok(&["snapshot", "v"])?;
    let standing = Standing::in_directory(&at);
    let err = refused(&node, &["destroy", "v", "--yes"]);
    assert!(err.contains(&format!("sleep ({})", standing.0.id())), "{err}");
    assert_eq!(node.volume("v")?.snapshots.len(), 1, "a refused command destroyed something");
    write(&at, 1);
    node.ok(&["snapshot", "v"])?;
    drop(standing);
    let (image, snapshots) = (node.path("v.img"), node.path("v.snaps"));
    let [image, snapshots, mountpoint] =
        [&image, &snapshots, &at].map(|path| path.to_str().unwrap().to_owned());
    let define = |node: &Node| -> Result<(), Failure> {
        node.ok(&["define", "volume", "v", &image, &snapshots, "--mountpoint", &mountpoint])?;
        node.ok(&["define", "master", "v", "--dotsnapshot", "--samba"])?;
        node.ok(&["snapshot", "v"]).map(drop)
    };
    let destroyed = |node: &Node| node.volume("v").is_err() && !Path::new(&snapshots).exists();
    at_every_step(
        &mut node,
        |node| node.run(&["destroy", "v", "--yes"]).map(drop),
        |_| {},
        |node, step| {
            if node.volume("v").is_ok() {
                node.ok(&["destroy", "v", "--yes"])?;
            } else if Path::new(&snapshots).exists() {
                node.ok(&["destroy", &image, &snapshots, "--yes"])?;
            }
            assert!(destroyed(node), "step {step}");
            assert_eq!(place.mounts(), Vec::<String>::new(), "step {step}");
            define(node)
        },
    )?;
    assert!(destroyed(&node));
    place.nothing_is_left();
    assert_eq!(node.down()?, 0);
    Ok(())
}
