//! What `status` and `history` tell, and to whom.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use crate::common::{Node, image, introduce, master_and_replica, text, wait_for, write};
use jiff::Timestamp;
use rustix::{pty, termios};
use zumastor::api::{Health, History, SnapshotReport, Status, VolumeStatus};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

#[test]
fn who_is_silent_is_late_and_the_lag_grows() {
    let dir = tempfile::tempdir().unwrap();
    let often = ["--period", "1", "--margin", "2"];
    let (mut alpha, mut beta) = master_and_replica(dir.path(), MIB, &often, &often);
    let well = |node: &Node| {
        node.wait_until("v", "all to be well", |volume| {
            let behind =
                volume.snapshots.is_empty() || volume.targets.iter().any(|target| target.lag.behind > 0);
            volume.health == Health::Ok && !behind
        })
    };
    let (master, replica) = (well(&alpha), well(&beta));
    assert_eq!(master.targets[0].lag.allowed_seconds, 3);
    assert_eq!(replica.source.unwrap().lag.late_seconds, None);

    // The upstream goes: the downstream knows that it hears nothing, and since when.
    alpha.kill();
    let late = beta.wait_until("v", "the replica to be late", |volume| volume.health == Health::Late);
    let before = late.source.unwrap().lag;
    assert!(late.trouble.unwrap().starts_with("nothing has been heard from alpha for "));
    let told = beta.ok(&["status", "v"]);
    assert!(told.contains("v  replica, 1.00 MiB  LATE") && told.contains(": LATE by "), "{told}");
    assert!(!told.contains("up to date"), "{told}");
    beta.wait_until("v", "the lag to grow", |volume| {
        let lag = volume.source.as_ref().unwrap().lag;
        lag.age_seconds > before.age_seconds && lag.late_seconds > before.late_seconds
    });
    // Also when its daemon was started anew, and has heard nothing ever since.
    beta.down();
    beta.up();
    let lag = beta.volume("v").source.unwrap().lag;
    assert!(lag.late_seconds > before.late_seconds, "{lag:?}");
    alpha.up();
    well(&beta);

    // The downstream goes: the upstream knows that a snapshot waits.
    beta.kill();
    write(&alpha.path("v.img"), 0, b"new");
    alpha.ok(&["snapshot", "v"]);
    let late = alpha.wait_until("v", "the target to be late", |volume| volume.health == Health::Late);
    let trouble = late.trouble.unwrap();
    assert!(trouble.starts_with("beta has lacked a snapshot for "), "{trouble}");
    let told = alpha.ok(&["status"]);
    assert!(told.contains("LATE by ") && told.contains("1 snapshot behind with snapshot 0"), "{told}");
    // What a person stopped is not late.
    alpha.ok(&["stop", "target", "v", "beta"]);
    assert_eq!(alpha.volume("v").targets[0].lag.late_seconds, None);
    alpha.ok(&["start", "target", "v", "beta"]);
    beta.up();
    well(&alpha);
}

#[test]
fn who_never_got_anything_is_late_from_the_definition_on_and_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta) = (Node::start(dir.path(), "alpha"), Node::start(dir.path(), "beta"));
    introduce(&alpha, &beta);
    image(&alpha.path("v.img"), MIB, 1);
    for node in [&alpha, &beta] {
        node.define("v");
    }
    alpha.ok(&["define", "master", "v"]);
    alpha.ok(&["snapshot", "v"]);
    beta.kill();
    wait_for("the daemon to have run for longer than is allowed", || {
        let started = alpha.status().node.started;
        (Timestamp::now().duration_since(started).as_secs() > 4).then_some(())
    });
    let defining = Timestamp::now();
    alpha.ok(&["define", "target", "v", "beta", "--period", "1", "--margin", "2"]);
    let lag = alpha.volume("v").targets[0].lag;
    let most = Timestamp::now().duration_since(defining).as_secs() as u64;
    assert!(lag.waiting_seconds <= most, "{lag:?} within {most} s of the definition");
    let late = |node: &Node, of: fn(&VolumeStatus) -> Option<u64>| {
        node.wait_until("v", "it to be late", |volume| of(volume).is_some());
        of(&node.volume("v")).unwrap()
    };
    let of_target = |volume: &VolumeStatus| volume.targets[0].lag.late_seconds;
    let before = late(&alpha, of_target);
    alpha.kill();
    alpha.up();
    assert!(of_target(&alpha.volume("v")) >= Some(before), "{:?}", alpha.volume("v").targets);

    // And a replica whose source was never there.
    alpha.kill();
    beta.up();
    beta.ok(&["define", "source", "v", "alpha", "--period", "1", "--margin", "2"]);
    let of_source = |volume: &VolumeStatus| volume.source.as_ref().unwrap().lag.late_seconds;
    let before = late(&beta, of_source);
    beta.kill();
    beta.up();
    assert!(of_source(&beta.volume("v")) >= Some(before), "{:?}", beta.volume("v").source);
}

#[test]
fn one_snapshot_and_what_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), MIB, 1);
    node.define("v");
    node.ok(&["define", "master", "v", "--daily", "3"]);
    node.ok(&["snapshot", "v", "daily"]);
    image(&node.path("v.img"), MIB, 2);
    node.ok(&["snapshot", "v"]);
    node.ok(&["hold", "v", "1", "before the upgrade"]);
    node.wait_until("v", "digests", |volume| volume.snapshots.iter().all(|s| s.digest.is_some()));

    let report = |args: &[&str]| -> SnapshotReport {
        serde_json::from_str(&node.ok(&[&["status", "v"], args, &["--json"]].concat())).unwrap()
    };
    let plain = report(&["1"]);
    assert_eq!((plain.schema, plain.snapshot.number, plain.snapshot.usage), (1, SnapshotNumber(1), None));
    assert_eq!(plain.snapshot, node.volume("v").snapshots[1]);
    // Nothing of the first is left anywhere else.
    let usage = report(&["0", "--usage"]).snapshot.usage.unwrap();
    assert_eq!((usage.referenced, usage.exclusive, usage.shared), (MIB, MIB, 0));

    let told = node.ok(&["status", "v", "1", "-u"]);
    for part in [
        "v  snapshot 1  at alpha, master\n",
        "  rotations  none: manual\n",
        "  size       1.00 MiB\n",
        "  takes      1.00 MiB: ",
        &format!("  digest     {}\n", node.digest("v")),
        "  held by    user since ",
        " ago): before the upgrade\n",
        &plain.snapshot.guid.to_string(),
        &plain.snapshot.name,
    ] {
        assert!(told.contains(part), "{part:?} in {told}");
    }
    assert!(node.ok(&["status", "v", "0"]).contains("  rotations  daily\n"));
    let all = node.ok(&["status", "v", "--usage"]);
    assert!(all.contains("its own") && all.contains(", all together free "), "{all}");
    assert!(!node.ok(&["status", "v"]).contains("its own"));
    let error = node.fails(1, &["status", "v", "9"]);
    assert!(error.contains("volume v has no snapshot 9") && error.contains("`zumastor status v`"), "{error}");
    node.fails(2, &["status", "v", "first"]);
}

#[test]
fn what_came_of_a_replication_is_in_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    assert!(alpha.ok(&["history", "v"]).is_empty());
    let said = alpha.ok(&["replicate", "v", "beta"]);
    assert_eq!(said.trim(), "volume v is being sent to beta");
    let history =
        |node: &Node| -> History { serde_json::from_str(&node.ok(&["history", "v", "--json"])).unwrap() };
    wait_for("the end", || history(&alpha).transfers.first().cloned());
    wait_for("the end", || history(&beta).transfers.first().cloned());
    assert!(alpha.volume("v").targets[0].work.last.is_some());
    assert!(
        alpha.ok(&["history", "v"]).contains("  to beta: snapshot 0 replicated in full: 1.00 MiB of data")
    );
    assert!(
        beta.ok(&["history", "v"]).contains("  from alpha: snapshot 0 replicated in full: 1.00 MiB of data")
    );

    // What fails is there, too, and so is what becomes of snapshots.
    beta.down();
    write(&alpha.path("v.img"), 0, b"new");
    alpha.ok(&["snapshot", "v"]);
    alpha.ok(&["snapshot", "v"]);
    alpha.ok(&["replicate", "v", "beta"]);
    wait_for("the failure", || (history(&alpha).transfers.len() == 2).then_some(()));
    alpha.ok(&["delete", "v", "1"]);
    let told = alpha.ok(&["history", "v"]);
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines.len(), 3, "{told}");
    assert!(
        lines[1].contains("  to beta: failed: ") && lines[2].ends_with("  snapshot 1 deleted: by hand"),
        "{told}"
    );
    assert_eq!(alpha.ok(&["history", "v", "-n", "1"]).trim(), lines[2]);
    let work = alpha.volume("v").targets[0].work.clone();
    assert!(work.error.unwrap().remedy.unwrap().contains("`zumastor replicate v beta`"));
    // It survives a restart.
    let mut alpha = alpha;
    alpha.kill();
    alpha.up();
    assert!(alpha.ok(&["history", "v"]).starts_with(&told[..told.len() - 1]));
    assert!(alpha.fails(1, &["history", "w"]).contains("there is no volume w"));
}

#[test]
fn watching_writes_lines_where_there_is_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), MIB, 1);
    node.define("v");
    node.ok(&["define", "master", "v"]);
    let mut watching = node.spawn(&["status", "--watch=1", "--json"]);
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next = || -> Status { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert!(next().volumes[0].snapshots.is_empty());
    node.ok(&["snapshot", "v"]);
    wait_for("the snapshot to be seen", || (next().volumes[0].snapshots.len() == 1).then_some(()));
    // A daemon that goes away is waited for.
    node.down();
    node.up();
    next();
    // Nobody reads any more: that is its end, and no failure.
    drop(lines);
    assert!(watching.wait().unwrap().success());

    let mut watching = node.spawn(&["status", "v", "-w"]);
    let mut line = String::new();
    BufReader::new(watching.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("Z v master ok, newest 0 ("), "{line}");
    let pid = rustix::process::Pid::from_child(&watching);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(watching.wait().unwrap().success());
    node.down();
    assert!(node.fails(1, &["status", "--watch"]).contains("no daemon is running"));
}

#[test]
fn watching_leaves_the_terminal_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), "alpha");
    let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
    pty::grantpt(&master).unwrap();
    pty::unlockpt(&master).unwrap();
    let name = pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
    termios::tcsetwinsize(&terminal, termios::Winsize { ws_row: 10, ws_col: 60, ws_xpixel: 0, ws_ypixel: 0 })
        .unwrap();
    let before = format!("{:?}", termios::tcgetattr(&terminal).unwrap());

    // The terminal becomes that of a session of its own, with no shell in between.
    let stdio = || Stdio::from(OwnedFd::from(terminal.try_clone().unwrap()));
    let mut watching = Command::new("setsid")
        .args(["--ctty", env!("CARGO_BIN_EXE_zumastor"), "status", "--watch=1"])
        .env("ZUMASTOR_ROOT", &node.root)
        .stdin(stdio())
        .stdout(stdio())
        .stderr(stdio())
        .spawn()
        .unwrap();
    let mut keyboard = File::from(master);
    let mut screen = keyboard.try_clone().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let drawn = seen.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = screen.read(&mut buffer) {
            drawn.lock().unwrap().extend_from_slice(&buffer[..length]);
        }
    });
    let shown = || String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    wait_for("two frames", || (shown().matches("node alpha, listening on ").count() >= 2).then_some(()));
    // A path that is too long for the terminal is cut.
    image(&node.path("v.img"), MIB, 1);
    let far = node.path(&"x".repeat(80));
    node.ok(&["define", "volume", "v", &text(&node.path("v.img")), &text(&far)]);
    wait_for("the volume", || shown().contains("  snapstore  ").then_some(()));
    assert!(!shown().contains(&"x".repeat(50)));

    keyboard.write_all(b"\x03").unwrap();
    assert!(watching.wait().unwrap().success());
    let (enter, leave) = ("\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l");
    wait_for("the screen to be left", || shown().ends_with(leave).then_some(()));
    assert!(shown().starts_with(enter), "{:?}", shown());
    assert_eq!(format!("{:?}", termios::tcgetattr(&terminal).unwrap()), before);
}
