//! Every command that changes something, with the daemon killed at every step of it: when it is started again, the change was
//! made or was not, `status` tells which, and the command can be repeated. What was acknowledged was made.

use std::{cell::RefCell, fs, path::Path};

use crate::common::{
    Node,
    damage::{content_files, damage_snapshot},
    image, introduce, master_and_replica, text, wait_for, write,
};
use zumastor::api::{Health, Part, Role, VolumeStatus};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

/// A node that knows a peer `beta`, which is not there, and has the image of a volume `v`.
fn node(dir: &Path) -> Node {
    let alpha = Node::start(dir, "alpha");
    introduce(&alpha, &Node::start(dir, "beta"));
    image(&alpha.path("v.img"), MIB, 1);
    alpha
}

/// As [`node`], which masters the volume and has a snapshot of it.
fn master(dir: &Path) -> Node {
    let node = node(dir);
    node.define("v");
    node.ok(&["define", "master", "v"]);
    node.ok(&["snapshot", "v"]);
    node
}

/// Kills the daemon at the first step of a command, at the second, and so on until it comes to its end. `prepare` brings
/// about the state before it, `verb` is the command, and `made` tells whether the change was made; nothing if it was half.
fn at_every_step(
    node: &mut Node,
    prepare: impl Fn(&Node),
    verb: impl Fn(&Node) -> Vec<String>,
    made: impl Fn(&Node) -> Option<bool>,
) {
    if cfg!(not(debug_assertions)) {
        println!("left out: this build has no steps to be killed at");
        return;
    }
    for steps in 1.. {
        prepare(node);
        assert_eq!(made(node), Some(false));
        let verb = verb(node);
        let verb: Vec<&str> = verb.iter().map(String::as_str).collect();
        node.kill_at(steps);
        let ran = node.run(&verb);
        if !node.was_killed(ran.code) {
            assert_eq!(made(node), Some(true), "{verb:?}: {ran:?}");
            assert!(steps > 1, "{verb:?} passed no step");
            println!("{verb:?}: {} steps", steps - 1);
            return;
        }
        node.up();
        let there = wait_for("one state or the other", || made(node));
        assert!(there || ran.code != 0, "{verb:?} was acknowledged, and is gone after step {steps}: {ran:?}");
        let again = node.run(&verb);
        // Some say that there is nothing left to be done.
        assert!(again.code == 0 || there, "{verb:?} after step {steps}: {again:?}");
        assert!(wait_for("the change", || made(node)), "{verb:?} after step {steps}: {again:?}");
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// A command that is always the same.
fn always(line: &str) -> impl Fn(&Node) -> Vec<String> {
    let words = words(line);
    move |_| words.clone()
}

/// Whether a volume is so, or otherwise.
fn is(look: impl Fn(&VolumeStatus) -> bool) -> impl Fn(&Node) -> Option<bool> {
    move |node| {
        let volume = node.volume("v");
        (volume.health != Health::Unavailable).then(|| look(&volume))
    }
}

fn numbers(volume: &VolumeStatus) -> Vec<SnapshotNumber> {
    volume.snapshots.iter().map(|snapshot| snapshot.number).collect()
}

#[test]
fn volumes_and_their_roles() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node(dir.path());
    let defined = |node: &Node| Some(node.status().volumes.iter().any(|v| v.name.as_str() == "v"));
    let define =
        words(&format!("define volume v {} {}", text(&node.path("v.img")), text(&node.path("v.snaps"))));
    let forget = |node: &Node| drop(node.run(&["forget", "volume", "v"]));
    at_every_step(&mut node, forget, |_| define.clone(), defined);
    node.ok(&["define", "master", "v"]);
    node.ok(&["snapshot", "v"]);
    let there = |node: &Node| {
        if defined(node) == Some(false) {
            node.define("v");
        }
        assert_eq!(numbers(&node.volume("v")), [SnapshotNumber(0)]);
    };
    at_every_step(&mut node, there, always("forget volume v"), |node| defined(node).map(|defined| !defined));

    let undecided = |node: &Node| {
        node.run(&["forget", "volume", "v"]);
        node.define("v");
    };
    at_every_step(
        &mut node,
        undecided,
        always("define master v --hourly 3 --custom mine,2 --group g"),
        |node| {
            let volume = node.volume("v");
            let scheduled = volume.schedule.is_some_and(|schedule| schedule.rotations.len() == 2);
            match (volume.role, scheduled, volume.group.is_some()) {
                (Role::Master, true, true) => Some(true),
                (Role::Undecided, false, false) => Some(false),
                _ => None,
            }
        },
    );
    // From a replica to a master and back.
    let replica = |node: &Node| {
        if node.volume("v").role == Role::Master {
            node.ok(&["define", "source", "v", "beta", "--yes"]);
        }
    };
    let role = |wanted| {
        move |node: &Node| {
            is(move |v| v.role == wanted && v.source.is_none() == (wanted == Role::Master))(node)
        }
    };
    at_every_step(&mut node, replica, always("promote v"), role(Role::Master));
    at_every_step(&mut node, replica, always("define master v --daily 4"), |node| {
        let volume = node.volume("v");
        let scheduled =
            volume.schedule.unwrap().rotations.iter().any(|rotation| rotation.name.as_str() == "daily");
        match (volume.role, scheduled) {
            (Role::Master, true) => Some(true),
            // It stays scheduled when it becomes a replica.
            (Role::Replica, _) => Some(false),
            _ => None,
        }
    });
    let rounds = RefCell::new(0u64);
    let master = |node: &Node| {
        node.ok(&["promote", "v"]);
        // What no snapshot has is kept.
        *rounds.borrow_mut() += 1;
        write(&node.path("v.img"), 0, &rounds.borrow().to_le_bytes());
    };
    at_every_step(&mut node, master, always("define source v beta --yes"), role(Role::Replica));
}

/// What an origin held is gone only if the volume is defined and says so.
#[test]
fn volumes_that_are_initialized() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node(dir.path());
    let (origin, store) = (text(&node.path("v.img")), text(&node.path("v.snaps")));
    let held = fs::read(&origin).unwrap();
    let define = words(&format!("define volume v {origin} {store} --initialize --yes"));
    let prepare = |node: &Node| {
        node.run(&["forget", "volume", "v"]);
        write(&node.path("v.img"), 0, &held);
    };
    let made = |node: &Node| {
        let holds = fs::read(&origin).unwrap();
        let zero = holds.iter().all(|byte| *byte == 0);
        let Some(volume) = node.status().volumes.into_iter().next() else {
            assert!(holds == held, "the origin of no volume was written to");
            return Some(false);
        };
        if volume.health == Health::Unavailable {
            let why = volume.trouble.unwrap();
            assert!(why.contains("was being made zero") && why.contains("--initialize"), "{why}");
            return Some(false);
        }
        assert!(zero, "what is defined was initialized");
        Some(true)
    };
    at_every_step(&mut node, prepare, |_| define.clone(), made);

    // Broken off, and the origin is to be taken as it is.
    node.run(&["forget", "volume", "v"]);
    write(&node.path("v.img"), 0, &held);
    node.define("v");
    node.ok(&["define", "master", "v"]);
    let file = node.path("etc/volumes/v.toml");
    let written = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("initializing = true\n{written}")).unwrap();
    node.ok(&["reload"]);
    assert!(node.fails(3, &["snapshot", "v"]).contains("remove the line `initializing`"));
    assert!(node.ok(&["status"]).contains("may be zero in part"));
    assert!(!fs::read_to_string(node.path("log")).unwrap().contains("may stand still"));
    fs::write(&file, written).unwrap();
    node.ok(&["reload"]);
    assert_eq!(node.volume("v").health, Health::Ok);
    assert!(fs::read(&origin).unwrap() == held);
}

#[test]
fn schedules_sources_and_targets() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = master(dir.path());
    let daily = |v: &VolumeStatus| {
        v.schedule
            .as_ref()
            .is_some_and(|schedule| schedule.rotations.iter().any(|r| r.name.as_str() == "daily"))
    };
    let unscheduled = |node: &Node| drop(node.run(&["forget", "schedule", "v"]));
    at_every_step(&mut node, unscheduled, always("define schedule v --daily 2"), is(daily));
    let scheduled = |node: &Node| drop(node.ok(&["define", "schedule", "v", "--daily", "2"]));
    at_every_step(&mut node, scheduled, always("forget schedule v"), is(|v| v.schedule.is_none()));

    stopped_and_started(&mut node, "master v", Part::Master);
    stopped_and_started(&mut node, "volume v", Part::Volume);

    let no_target = |node: &Node| drop(node.run(&["forget", "target", "v", "beta"]));
    at_every_step(
        &mut node,
        no_target,
        always("define target v beta --period 600"),
        is(|v| v.targets.len() == 1 && v.targets[0].config.period == Some(600)),
    );
    let target = |node: &Node| drop(node.ok(&["define", "target", "v", "beta"]));
    stopped_and_started(&mut node, "target v beta", Part::Target("beta".parse().unwrap()));
    at_every_step(&mut node, target, always("forget target v beta"), is(|v| v.targets.is_empty()));

    image(&node.path("w.img"), MIB, 2);
    node.define("w");
    let sourced = |node: &Node| Some(node.volume("w").source.is_some());
    let no_source = |node: &Node| drop(node.run(&["forget", "source", "w"]));
    at_every_step(&mut node, no_source, always("define source w beta --period 60"), sourced);
    let source = |node: &Node| drop(node.ok(&["define", "source", "w", "beta"]));
    stopped_and_started(&mut node, "source w", Part::Source);
    at_every_step(&mut node, source, always("forget source w"), |node| sourced(node).map(|sourced| !sourced));
}

/// Until it is forgotten to its end, what is held for a target is shown, and the command can be repeated.
#[test]
fn a_target_that_is_forgotten_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, _beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    let held = |node: &Node| {
        node.ok(&["define", "target", "v", "beta"]);
        node.ok(&["replicate", "v", "beta", "--wait"]);
        node.wait_until("v", "the hold", |v| !v.snapshots[0].holds.is_empty());
    };
    let made = is(|v| v.targets.is_empty() && v.snapshots[0].holds.is_empty());
    at_every_step(&mut alpha, held, always("forget target v beta"), made);
}

/// Stops and starts a part of a volume's work, named as a person names it.
fn stopped_and_started(node: &mut Node, words: &str, part: Part) {
    let volume = words.split(' ').nth(1).unwrap();
    let stopped = |node: &Node| node.volume(volume).stopped == [part.clone()];
    let [start, stop] = ["start", "stop"].map(|verb| format!("{verb} {words}"));
    let run = |line: &str| {
        let line = self::words(line);
        move |node: &Node| drop(node.ok(&line.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    at_every_step(node, run(&start), always(&stop), |node| Some(stopped(node)));
    at_every_step(node, run(&stop), always(&start), |node| Some(!stopped(node)));
}

#[test]
fn snapshots_and_what_is_held_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = master(dir.path());
    let before = RefCell::new(Vec::new());
    let note = |node: &Node| *before.borrow_mut() = numbers(&node.volume("v"));
    at_every_step(&mut node, note, always("snapshot v"), |node| {
        let volume = node.volume("v");
        let (there, before) = (numbers(&volume), before.borrow());
        let more = there.starts_with(&before).then(|| there.len() > before.len());
        more.filter(|_| volume.health != Health::Unavailable)
    });
    // It takes back what it cannot complete.
    image(&node.path("w.img"), MIB, 2);
    node.define("w");
    for volume in ["v", "w"] {
        node.ok(&["define", "master", volume, "--group", "g"]);
    }
    let both = |node: &Node| ["v", "w"].map(|name| numbers(&node.volume(name)));
    let before = RefCell::new([vec![], vec![]]);
    let note = |node: &Node| *before.borrow_mut() = both(node);
    at_every_step(&mut node, note, always("snapshot --group g"), |node| {
        if ["v", "w"].iter().any(|name| node.volume(name).health == Health::Unavailable) {
            return None;
        }
        let (there, before) = (both(node), before.borrow());
        let more = [0, 1].map(|one| there[one].len() - before[one].len());
        let shared = ["v", "w"].map(|name| node.volume(name).snapshots.last().and_then(|last| last.group));
        (more[0] == more[1])
            .then(|| more[0] > 0)
            .filter(|more| !more || (shared[0].is_some() && shared[0] == shared[1]))
    });

    let newest = |node: &Node| node.volume("v").snapshots.last().unwrap().number;
    let going = RefCell::new(SnapshotNumber(0));
    let one_more = |node: &Node| {
        node.ok(&["snapshot", "v"]);
        *going.borrow_mut() = newest(node);
    };
    let delete = |_: &Node| words(&format!("delete v {}", going.borrow()));
    at_every_step(&mut node, one_more, delete, is(|v| !numbers(v).contains(&going.borrow())));

    let held = is(|v| v.snapshots[0].holds.len() == 1);
    let release = |node: &Node| drop(node.run(&["release", "v", "0", "audit"]));
    at_every_step(&mut node, release, always("hold v 0 audit"), held);
    let hold = |node: &Node| drop(node.ok(&["hold", "v", "0", "audit"]));
    at_every_step(&mut node, hold, always("release v 0 audit"), is(|v| v.snapshots[0].holds.is_empty()));

    // Of many, each goes as a whole, the oldest first; what is held stays, and no number comes back.
    let (taken, last) = (RefCell::new(Vec::new()), RefCell::new(SnapshotNumber(0)));
    let three = |node: &Node| {
        node.run(&["hold", "v", "0", "audit"]);
        while numbers(&node.volume("v")).len() < 4 {
            node.ok(&["snapshot", "v"]);
            let new = newest(node);
            assert!(new > *last.borrow(), "number {new} was given before");
            *last.borrow_mut() = new;
        }
        *taken.borrow_mut() = numbers(&node.volume("v"))[1..].to_vec();
    };
    at_every_step(&mut node, three, always("delete v --all --yes"), |node| {
        let there = numbers(&node.volume("v"));
        assert!(there[0] == SnapshotNumber(0) && taken.borrow().ends_with(&there[1..]), "{there:?}");
        for number in &there[1..] {
            let read = node.ok(&["scrub", "v", &number.to_string()]);
            assert!(read.contains("all as it was"), "{read}");
        }
        Some(there.len() == 1)
    });
}

/// The file that holds the volume stays whatever happens.
#[test]
fn a_volume_is_destroyed() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node(dir.path());
    let content = node.digest("v");
    let (image, snaps) = (node.path("v.img"), node.path("v.snaps"));
    let by_paths = ["destroy".to_owned(), text(&image), text(&snaps), "--yes".to_owned()];
    let defined = |node: &Node| !node.status().volumes.is_empty();
    let there = |node: &Node| {
        if !defined(node) {
            if snaps.exists() {
                // It was forgotten, and goes by its paths now.
                let error = node.fails(3, &["define", "volume", "v", &text(&image), &text(&snaps)]);
                assert!(error.contains("`zumastor destroy"), "{error}");
                node.ok(&by_paths.each_ref().map(String::as_str));
            }
            node.define("v");
            node.ok(&["define", "master", "v"]);
            node.ok(&["snapshot", "v"]);
        }
    };
    at_every_step(&mut node, there, always("destroy v --yes"), |node| {
        assert_eq!(node.digest("v"), content);
        if !defined(node) {
            return Some(true);
        }
        // What is half deleted is no volume that could be used, and says so.
        let volume = node.volume("v");
        let half = volume.health == Health::Unavailable;
        assert!(!half || volume.trouble.unwrap().contains("`zumastor destroy`"));
        assert!(half || numbers(&node.volume("v")) == [SnapshotNumber(0)]);
        Some(false)
    });
    there(&node);
    node.ok(&["forget", "volume", "v"]);
    let forgotten = |node: &Node| {
        if !snaps.exists() {
            node.define("v");
            node.ok(&["define", "master", "v"]);
            node.ok(&["snapshot", "v"]);
            node.ok(&["forget", "volume", "v"]);
        }
    };
    at_every_step(
        &mut node,
        forgotten,
        |_| by_paths.to_vec(),
        |node| {
            assert_eq!(node.digest("v"), content);
            Some(!snaps.exists())
        },
    );
}

#[test]
fn a_snapshot_of_a_replica_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    repaired(&mut beta);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}

#[test]
fn a_snapshot_of_a_master_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    alpha.wait_until("v", "the digest", |v| v.snapshots[0].digest.is_some());
    let (head, before) = (alpha.path("v.img"), alpha.digest("v"));
    write(&head, 5 << 16, b"written meanwhile");
    let written = alpha.digest("v");
    repaired(&mut alpha);
    assert_eq!((beta.digest("v"), alpha.digest("v")), (before, written), "the head is nobody's to repair");
}

/// What is damaged is known to be until all of it is right again.
fn repaired(node: &mut Node) {
    let files = content_files(node, 0);
    let bytes = || files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>();
    let good = bytes();
    let damaged = |node: &Node| {
        for leaf in [0, 3, 9] {
            damage_snapshot(node, 0, leaf * (64 << 10) + 7, 1);
        }
        assert_eq!(node.run(&["scrub", "v", "--no-repair"]).code, 1);
    };
    at_every_step(node, damaged, always("scrub v 0"), |node| {
        let volume = node.volume("v");
        let right = bytes() == good;
        assert!(right || volume.health == Health::Damaged, "damage is not told: {:?}", volume.health);
        (volume.health != Health::Unavailable).then_some(volume.health != Health::Damaged)
    });
    assert!(node.ok(&["scrub", "v"]).contains("all as it was"));
}

#[test]
fn what_a_volume_holds_and_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = master(dir.path());
    let old = node.digest("v");
    let new = RefCell::new(String::new());
    let rounds = RefCell::new(0u64);
    let change = |node: &Node| {
        *rounds.borrow_mut() += 1;
        write(&node.path("v.img"), 4096, &rounds.borrow().to_le_bytes());
        *new.borrow_mut() = node.digest("v");
    };
    let reverted = |node: &Node| match node.digest("v") {
        now if now == old => Some(true),
        now if now == *new.borrow() => Some(false),
        _ => None,
    };
    at_every_step(&mut node, change, always("revert v 0"), reverted);
    let small = |node: &Node| drop(node.ok(&["resize", "v", "--origin", "1M", "--yes"]));
    at_every_step(&mut node, small, always("resize v --origin 2M"), is(|v| v.size == Some(2 * MIB)));
    small(&node);
    let before = node.digest("v");
    let large = |node: &Node| drop(node.ok(&["resize", "v", "--origin", "2M"]));
    at_every_step(&mut node, large, always("resize v --origin 1M --yes"), is(|v| v.size == Some(MIB)));
    assert_eq!(node.digest("v"), before, "what is within the smaller size stayed");
}

#[test]
fn peers_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = master(dir.path());
    let ticket = Node::start(dir.path(), "gamma").ok(&["peer", "ticket"]);
    let known = |node: &Node| Some(node.ok(&["peer", "list"]).contains("gamma"));
    let remove = |node: &Node| drop(node.run(&["peer", "remove", "gamma"]));
    let add = words(&format!("peer add gamma {}", ticket.trim()));
    at_every_step(&mut node, remove, |_| add.clone(), known);
    let there = |node: &Node| {
        node.run(&["peer", "add", "gamma", ticket.trim()]);
    };
    at_every_step(&mut node, there, always("peer remove gamma"), |node| known(node).map(|known| !known));

    // What the files say is so from the next start on, whether or not they were read before.
    let file = node.path("etc/volumes/v.toml");
    let plain = fs::read_to_string(&file).unwrap();
    let edited = format!("{plain}\n[target.beta]\nperiod = 600\n\n[schedule]\ndaily = 3\n");
    node.ok(&["define", "target", "v", "beta"]);
    let back = |node: &Node| {
        fs::write(&file, &plain).unwrap();
        node.ok(&["reload"]);
    };
    let edit = |_: &Node| {
        fs::write(&file, &edited).unwrap();
        words("reload")
    };
    at_every_step(&mut node, back, edit, |node| {
        let volume = node.volume("v");
        (volume.targets.len() == usize::from(volume.schedule.is_some())).then_some(volume.schedule.is_some())
    });
}
