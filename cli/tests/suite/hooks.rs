//! Hooks: real programs, run by real daemons that are also killed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::common::{Node, image, master_and_replica, text, wait_for};
use zumastor::api::{EventKind, Health, VolumeStatus};
use zumastor_core::{SnapshotNumber, config::HookKind};

const MIB: u64 = 1 << 20;

/// A node with volume `v`, which it masters.
fn master(dir: &Path) -> Node {
    let node = Node::start(dir, "alpha");
    image(&node.path("v.img"), MIB, 1);
    node.define("v");
    node.ok(&["define", "master", "v"]);
    node
}

/// A program that the daemon may run. `$DIR` is the node's directory.
fn script(node: &Node, name: &str, body: &str) -> PathBuf {
    let path = node.path(name);
    fs::write(&path, format!("#!/bin/sh\nDIR='{}'\n{body}\n", text(&node.root))).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Gives a volume these hooks, by hand.
fn hook(node: &Node, volume: &str, hooks: &[(&str, &Path)], more: &str) {
    let file = node.path(&format!("etc/volumes/{volume}.toml"));
    let before = fs::read_to_string(&file).unwrap();
    let mut tables: Vec<_> = before.split("\n[").map(str::trim_end).collect();
    tables.retain(|table| !table.starts_with("hooks]"));
    let before = tables.join("\n\n[");
    let lines: String = hooks.iter().map(|(hook, path)| format!("{hook} = '{}'\n", path.display())).collect();
    fs::write(&file, format!("{before}\n\n[hooks]\n{lines}{more}\n")).unwrap();
    node.ok(&["reload"]);
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn numbers(volume: &VolumeStatus) -> Vec<u64> {
    volume.snapshots.iter().map(|snapshot| snapshot.number.0).collect()
}

fn runs(pid: &str) -> bool {
    // A process that has ended and that nobody has asked after yet runs no more.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Writes a line with what it was told.
const TOLD: &str = "echo \"$ZUMASTOR_HOOK $ZUMASTOR_VOLUME $ZUMASTOR_SNAPSHOT [$ZUMASTOR_ROTATIONS] $ZUMASTOR_RESULT\" \
                    \"$ZUMASTOR_PEER $ZUMASTOR_DIRECTION\" >> \"$DIR/told\"";

#[test]
fn hooks_run_around_snapshots_and_are_told_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let node = master(dir.path());
    node.ok(&["define", "schedule", "v", "--custom", "mine,5"]);
    let told = script(
        &node,
        "hook",
        &format!("{TOLD}; env | grep ^ZUMASTOR_ > \"$DIR/env\"; echo said; echo more >&2"),
    );
    hook(&node, "v", &[("pre_snapshot", &told), ("post_snapshot", &told)], "");
    assert!(node.ok(&["snapshot", "v", "mine"]).starts_with("0  20"));
    assert!(node.ok(&["snapshot", "v"]).starts_with("1  20"));
    assert_eq!(
        lines(&node.path("told")),
        [
            "pre_snapshot v 0 [mine]   ",
            "post_snapshot v 0 [mine] taken  ",
            "pre_snapshot v 1 []   ",
            "post_snapshot v 1 [] taken  "
        ]
    );
    let volume = node.volume("v");
    let env = lines(&node.path("env"));
    for (name, value) in [
        ("GUID", volume.snapshots[1].guid.to_string()),
        ("NAME", volume.snapshots[1].name.clone()),
        ("ORIGIN", text(&node.path("v.img"))),
        ("ERROR", String::new()),
    ] {
        assert!(env.contains(&format!("ZUMASTOR_{name}={value}")), "{name}: {env:?}");
    }
    let of = |hook| volume.hooks.iter().find(|run| run.hook == hook).unwrap();
    for hook in [HookKind::PreSnapshot, HookKind::PostSnapshot] {
        assert!(of(hook).error.is_none() && of(hook).millis.is_some());
        assert_eq!(
            (of(hook).output.join(" "), of(hook).snapshot),
            ("said more".into(), Some(SnapshotNumber(1)))
        );
    }
    assert!(node.ok(&["status", "v"]).contains("pre_snapshot"));
    assert!(fs::read_to_string(node.path("log")).unwrap().contains("said"));
    // What keeps something before it is replaced has no hooks: nobody uses the volume then.
    node.ok(&["revert", "v", "0"]);
    assert_eq!(lines(&node.path("told")).len(), 4);
}

#[test]
fn a_hook_that_fails_before_a_snapshot_prevents_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = master(dir.path());
    let (fails, post) = (script(&node, "pre", "echo cannot quiesce; exit 7"), script(&node, "post", TOLD));
    hook(&node, "v", &[("pre_snapshot", &fails), ("post_snapshot", &post)], "");
    let error = node.fails(1, &["snapshot", "v"]);
    assert!(
        error.contains(&format!("the pre_snapshot hook {} ended with exit code 7", fails.display())),
        "{error}"
    );
    assert!(error.contains("cannot quiesce") && error.contains("no snapshot was taken"), "{error}");
    assert_eq!(lines(&node.path("told")), ["post_snapshot v 0 [] failed  "]);
    let volume = node.volume("v");
    assert!(volume.snapshots.is_empty() && volume.events[0].what == EventKind::Hook, "{volume:?}");
    let shown = node.ok(&["status"]);
    assert!(shown.contains("FAILED") && shown.contains("| cannot quiesce"), "{shown}");

    // One that fails afterwards does not undo the snapshot, and is told.
    let after = script(&node, "after", "exit 3");
    hook(&node, "v", &[("post_snapshot", &after)], "");
    let ran = node.run(&["snapshot", "v"]);
    assert!(
        ran.code == 0 && ran.out.starts_with("0  ") && ran.err.contains("ended with exit code 3"),
        "{ran:?}"
    );

    // By schedule it is tried again.
    hook(&node, "v", &[("pre_snapshot", &fails)], "");
    node.ok(&["define", "schedule", "v", "--custom", "often,3,1s"]);
    let volume = node.wait_until("v", "the error", |v| v.health == Health::Retrying);
    assert!(volume.trouble.unwrap().contains("exit code 7"));
    let works = script(&node, "works", "true");
    hook(&node, "v", &[("pre_snapshot", &works)], "");
    node.wait_until("v", "a snapshot", |v| v.health == Health::Ok && v.snapshots.len() > 1);
}

#[test]
fn a_hook_that_takes_too_long_is_ended_with_all_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let node = master(dir.path());
    let slow = script(
        &node,
        "slow",
        "trap '' TERM; sleep 600 & echo $! > \"$DIR/child\"; echo $$ > \"$DIR/pid\"; wait; sleep 600",
    );
    let post = script(&node, "post", TOLD);
    hook(&node, "v", &[("pre_snapshot", &slow), ("post_snapshot", &post)], "timeout = 1");
    let error = node.fails(1, &["snapshot", "v"]);
    assert!(error.contains("was ended: it took longer than 1 s"), "{error}");
    assert_eq!(lines(&node.path("told")), ["post_snapshot v 0 [] failed  "]);
    for file in ["pid", "child"] {
        let pid = lines(&node.path(file))[0].clone();
        wait_for("its end", || (!runs(&pid)).then_some(()));
    }
    // Whoever goes on in the background keeps nobody waiting.
    let leaves = script(&node, "leaves", "sleep 600 & echo $! > \"$DIR/child\"; echo left");
    hook(&node, "v", &[("pre_snapshot", &leaves)], "");
    node.ok(&["snapshot", "v"]);
    let pid = lines(&node.path("child"))[0].clone();
    assert!(runs(&pid));
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn what_may_not_be_run_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let node = master(dir.path());
    let program = script(&node, "hook", "true");
    hook(&node, "v", &[("pre_snapshot", &program)], "");
    node.ok(&["snapshot", "v"]);
    let mode = |mode| fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    let error = node.fails(3, &["snapshot", "v"]);
    assert!(error.contains("hook cannot be trusted") && error.contains("`chmod go-w"), "{error}");
    mode(0o644);
    assert!(node.fails(3, &["snapshot", "v"]).contains("is not executable"));
    fs::remove_file(&program).unwrap();
    assert!(node.fails(3, &["snapshot", "v"]).contains("cannot be looked at"));
    assert_eq!(numbers(&node.volume("v")), [0]);
    // A file that says nonsense is refused, and reload tells of what could not be run.
    let file = node.path("etc/volumes/v.toml");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, before.replace(&text(&program), "hook")).unwrap();
    let error = node.fails(1, &["reload"]);
    assert!(
        error.contains("v.toml, line ") && error.contains("hooks.pre_snapshot: the path of a hook"),
        "{error}"
    );
    fs::write(&file, before.replace(&text(&program), &text(&node.path("nothing")))).unwrap();
    assert!(node.run(&["reload"]).err.contains("nothing cannot be looked at"));
}

#[test]
fn what_was_begun_is_ended_though_the_daemon_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = master(dir.path());
    let hangs = script(&node, "hangs", &format!("{TOLD}; echo $$ > \"$DIR/pid\"; exec sleep 600"));
    let post = script(&node, "post", TOLD);
    let running = |node: &Node, hook| {
        node.wait_until("v", "the hook", |v| {
            v.hooks.iter().any(|run| run.hook == hook && run.millis.is_none())
        });
        wait_for("its first words", || (!lines(&node.path("pid")).is_empty()).then_some(()));
    };
    hook(&node, "v", &[("pre_snapshot", &hangs), ("post_snapshot", &post)], "");
    let mut asking = node.spawn(&["snapshot", "v"]);
    running(&node, HookKind::PreSnapshot);
    node.kill();
    asking.wait().unwrap();
    let pid = lines(&node.path("pid"))[0].clone();
    assert!(runs(&pid), "it outlives the daemon");
    node.up();
    let ended = ["pre_snapshot v 0 []   ", "post_snapshot v 0 [] failed  "];
    wait_for("the hook to be made up for", || (lines(&node.path("told")) == ended).then_some(()));
    wait_for("the end of what was left", || (!runs(&pid)).then_some(()));
    assert!(node.volume("v").snapshots.is_empty());

    // After the snapshot, too; and also when the volume is gone by then.
    fs::remove_file(node.path("pid")).unwrap();
    let once = format!("if [ ! -e \"$DIR/pid\" ]; then echo $$ > \"$DIR/pid\"; exec sleep 600; fi\n{TOLD}");
    let once = script(&node, "once", &once);
    for (gone, last) in [(false, "post_snapshot v 1 [] taken  "), (true, "post_snapshot v 2 [] unknown  ")] {
        let _ = fs::remove_file(node.path("pid"));
        hook(&node, "v", &[("post_snapshot", &once)], "");
        let mut asking = node.spawn(&["snapshot", "v"]);
        running(&node, HookKind::PostSnapshot);
        node.kill();
        asking.wait().unwrap();
        let file = node.path("etc/volumes/v.toml");
        let config = fs::read_to_string(&file).unwrap();
        if gone {
            fs::remove_file(&file).unwrap();
        }
        node.up();
        wait_for("the hook to be made up for", || {
            (lines(&node.path("told")).last().map(String::as_str) == Some(last)).then_some(())
        });
        if gone {
            fs::write(&file, config).unwrap();
            node.ok(&["reload"]);
            assert_eq!(numbers(&node.volume("v")), [1, 2]);
        } else {
            // The number of the one that was never taken is left out.
            assert_eq!(numbers(&node.volume("v")), [1]);
        }
    }
    // Once, and not again.
    let count = lines(&node.path("told")).len();
    node.down();
    node.up();
    assert!(node.ok(&["snapshot", "v"]).starts_with("3  "));
    assert_eq!(lines(&node.path("told")).len(), count + 1);
}

#[test]
fn a_daemon_that_is_stopped_ends_what_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = master(dir.path());
    let pre = script(&node, "pre", &format!("{TOLD}; read line < \"$DIR/fifo\""));
    let post = script(&node, "post", TOLD);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        node.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    hook(&node, "v", &[("pre_snapshot", &pre), ("post_snapshot", &post)], "");
    let mut asking = node.spawn(&["snapshot", "v"]);
    wait_for("the hook", || (!lines(&node.path("told")).is_empty()).then_some(()));
    let going = std::thread::spawn({
        let fifo = node.path("fifo");
        move || fs::write(fifo, "go on\n").unwrap()
    });
    assert_eq!(node.down(), 0);
    going.join().unwrap();
    asking.wait().unwrap();
    assert_eq!(lines(&node.path("told")), ["pre_snapshot v 0 []   ", "post_snapshot v 0 [] taken  "]);
    node.up();
    assert_eq!((numbers(&node.volume("v")), lines(&node.path("told")).len()), (vec![0], 2));
}

#[test]
fn both_ends_are_told_of_a_replication() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    for node in [&alpha, &beta] {
        let told = script(node, "told-of", TOLD);
        hook(node, "v", &[("post_replicate", &told)], "");
    }
    let tells = |node: &Node, expected: &[&str]| {
        wait_for("the hook", || (lines(&node.path("told")).len() >= expected.len()).then_some(()));
        assert_eq!(lines(&node.path("told")), expected);
    };
    // A push, and a pull.
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    let mut sent = vec!["post_replicate v 0 [] done beta sent"];
    let mut received = vec!["post_replicate v 0 [] done alpha received"];
    tells(&alpha, &sent);
    tells(&beta, &received);
    alpha.ok(&["snapshot", "v"]);
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    sent.push("post_replicate v 1 [] done beta sent");
    received.push("post_replicate v 1 [] done alpha received");
    tells(&alpha, &sent);
    tells(&beta, &received);
    // Nothing new is nothing to tell; an error is told once.
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    alpha.ok(&["stop", "volume", "v"]);
    assert_ne!(beta.run(&["replicate", "v", "alpha", "--wait"]).code, 0);
    assert_ne!(beta.run(&["replicate", "v", "alpha", "--wait"]).code, 0);
    received.push("post_replicate v  [] failed alpha received");
    tells(&beta, &received);
    tells(&alpha, &sent);
}
