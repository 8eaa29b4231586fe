//! What a new user runs into: each usage error ends with 2, each refusal with 3, each failure with 1; all of them name
//! what is wrong and say what to do next, and nothing waits for an answer that nobody can give.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::common::{Node, image, introduce, text};

const MIB: u64 = 1 << 20;

/// What a command comes to: its exit code, words that name the trouble, and words of the way out.
type Try<'a> = (i32, &'a str, &'a str, &'a str);

#[track_caller]
fn all(node: &Node, tries: &[Try<'_>]) {
    let mut wrong = String::new();
    for (code, line, trouble, remedy) in tries {
        let args: Vec<String> = line
            .split_whitespace()
            .map(|word| word.replace("DIR", &text(&node.root)).replace("NOTHING", ""))
            .map(|word| word.replace("HERE", node.address()))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ran = node.run(&args);
        if (ran.code, ran.out.as_str()) != (*code, "")
            || !ran.err.contains(trouble)
            || !ran.err.contains(remedy)
        {
            wrong += &format!(
                "{line}: ended with {}, {:?} and {:?} were to be said:\n{}{}\n",
                ran.code, trouble, remedy, ran.out, ran.err
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A node that masters `v`, with two snapshots, has `r` as a replica of beta's, and `u`, which is neither.
fn node(dir: &Path) -> Node {
    let node = Node::start(dir, "alpha");
    introduce(&node, &Node::start(dir, "beta"));
    for (seed, name) in [(1, "v"), (2, "r"), (3, "u")] {
        image(&node.path(&format!("{name}.img")), MIB, seed);
        node.define(name);
    }
    node.ok(&["define", "master", "v", "--hourly", "3"]);
    node.ok(&["snapshot", "v"]);
    node.ok(&["snapshot", "v"]);
    node.ok(&["hold", "v", "0", "audit"]);
    node.ok(&["define", "target", "v", "beta"]);
    node.ok(&["define", "source", "r", "beta"]);
    node
}

/// Wrong usage of each command.
const WRONG: &[Try<'_>] = &[
    (2, "", "Usage: zumastor", "Commands:"),
    (2, "snapshoot v", "unrecognized subcommand 'snapshoot'", "'snapshot'"),
    (2, "snapshot", "<VOLUME>", "--help"),
    (2, "snapshot v/w", "cannot be a volume name", "use 1 to 63 letters"),
    (2, "snapshot --group a/b", "cannot be a group name", "use 1 to 63 letters"),
    (2, "snapshot --group g v hourly", "no volume is named", "`zumastor snapshot --group GROUP [ROTATION]`"),
    (2, "define", "Usage: zumastor define", "volume"),
    (2, "define volume w", "<ORGDEV>", "--help"),
    (2, "define master", "<VOLUME>", "--help"),
    (2, "define master v -h", "a value is required", "--help"),
    (2, "define master v -h many", "is no number of snapshots to keep", "write 0 to"),
    (2, "define master v -c mine", "is no custom rotation", "such as frequent,96,15m"),
    (2, "define master v -c mine,3,sometimes", "sometimes", "15m"),
    (2, "define master v -c daily,3", "cannot be the name of a custom rotation", "choose another name"),
    (2, "define master v --group g --no-group", "cannot be used with", "--help"),
    (2, "define schedule v", "no rotation was named", "`zumastor define schedule v --hourly 24"),
    (2, "define source r", "<HOST[:PORT]>", "--help"),
    (2, "define master v -h -1", "\"-1\" is no number of snapshots to keep", "write 0 to"),
    (2, "define master v -e 10.0.0.0/8", "a value of '-e' stands behind '='", "'-e=10.0.0.0/8'"),
    (
        2,
        "define master --export 10.0.0.1 v",
        "a value of '--export' stands behind '='",
        "'--export=10.0.0.1'",
    ),
    (2, "define master v -n false", "a value of '-n' stands behind '='", "'-n=false'"),
    (2, "define source r beta -p 0", "a period is at least one second", "--help"),
    (2, "define source r beta -p soon", "\"soon\" is no length of time", "such as 90, 15m or 6h"),
    (2, "define target v beta -p -1", "\"-1\" is no length of time", "such as 90, 15m or 6h"),
    (2, "define target v beta --margin -1m", "unexpected argument", "--help"),
    (2, "define target v beta -r 12Q", "invalid value '12Q'", "--help"),
    (2, "define target v beta -r 0", "at least one byte a second", "--help"),
    (2, "define target v beta --rotations a/b", "a/b", "use 1 to 63 letters"),
    (2, "forget", "Usage: zumastor forget", "volume"),
    (2, "forget target v", "<HOST>", "--help"),
    (2, "hold v one x", "not the number of a snapshot", "--help"),
    (2, "hold v 0", "<NAME>", "--help"),
    (2, "delete v", "<SNAPSHOT>...", "--help"),
    (2, "replicate v", "<HOST>", "--help"),
    (2, "replicate v beta -s newest", "not the number of a snapshot", "--help"),
    (2, "replicate v beta -d soon", "\"soon\" is no length of time", "such as 90, 15m or 6h"),
    (2, "resize v", "--origin <SIZE>", "--help"),
    (2, "resize v -o large", "invalid value 'large'", "--help"),
    (2, "resize v -o 0", "a volume has 1 byte to 128 TiB", "--origin 40G"),
    (2, "revert v", "<SNAPSHOT>", "--help"),
    (2, "start", "Usage: zumastor start", "master"),
    (2, "stop everything v", "unrecognized subcommand 'everything'", "--help"),
    (2, "peer add gamma", "<TICKET>", "--help"),
    (2, "peer add gamma zuma1-nonsense", "ticket", "`zumastor peer ticket`"),
    (2, "digest", "<FILE|DEVICE>...", "--help"),
    (2, "daemon --listen here", "invalid socket address", "--help"),
    (2, "status --colour", "unexpected argument '--colour'", "--help"),
    (2, "status v one", "not the number of a snapshot", "--help"),
    (2, "status --watch=0", "0 is not in 1..", "--help"),
    (2, "status --watch 5", "a value of '--watch' stands behind '='", "'--watch=5'"),
    (2, "status v -uw 5", "a value of '-uw' stands behind '='", "'-uw=5'"),
    (2, "status v 0 --check", "cannot be used with '--check'", "--help"),
    (2, "daemon --name a/b", "cannot be a node name", "use 1 to 63 letters"),
    (2, "define volume w DIR/w DIR/w.snaps -c 3000", "must be a power of two", "--help"),
    (2, "define volume w DIR/w DIR/w.snaps -k 1M", "a cache of 1.00 MiB is too small", "give 16M or more"),
    (2, "forget volume", "<VOLUME>", "--help"),
    (2, "forget schedule", "<VOLUME>", "--help"),
    (2, "forget source", "<VOLUME>", "--help"),
    (2, "destroy", "<VOLUME|ORGDEV>", "--help"),
    (2, "destroy v/w", "cannot be a volume name", "use 1 to 63 letters"),
    (2, "destroy v DIR/v.snaps more", "unexpected argument 'more'", "--help"),
    (2, "delete v 0 --all", "cannot be used with '--all'", "--help"),
    (2, "plan", "<VOLUME>", "--help"),
    (2, "plan v r", "unexpected argument 'r'", "--help"),
    (2, "reload now", "unexpected argument 'now'", "--help"),
    (2, "promote", "<VOLUME>", "--help"),
    (2, "remount", "<VOLUME>", "--help"),
    (2, "remount v --mountpoint", "a value is required", "--help"),
    (2, "scrub", "<VOLUME>", "--help"),
    (2, "scrub v one", "not the number of a snapshot", "--help"),
    (2, "scrub v 0 --all", "cannot be used with '--all'", "--help"),
    (2, "history", "<VOLUME>", "--help"),
    (2, "history v -n 0", "0 is not in 1..", "--help"),
    (2, "hold v 0 NOTHING", "a hold's name has 1 to 63 bytes", "--help"),
    (2, "release v 0", "<NAME>", "--help"),
    (2, "release v 0 NOTHING", "a hold's name has 1 to 63 bytes", "--help"),
    (2, "start master", "<VOLUME>", "--help"),
    (2, "stop target v", "<HOST>", "--help"),
    (2, "peer", "Usage: zumastor peer", "ticket"),
    (2, "peer ticket --address a:b:c:7", "no HOST or HOST:PORT", "such as beta.example"),
    (2, "peer list gamma", "unexpected argument 'gamma'", "--help"),
    (2, "peer remove", "<NAME>", "--help"),
    (2, "demo here", "unexpected argument 'here'", "--help"),
    (2, "completions tcsh", "invalid value 'tcsh'", "bash"),
    (2, "man DIR more", "unexpected argument 'more'", "--help"),
];

#[test]
fn usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    all(&node(dir.path()), WRONG);
}

#[test]
fn each_command_has_been_used_wrongly() {
    let help = Command::new(env!("CARGO_BIN_EXE_zumastor")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = listed
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.len() > 20, "{commands:?}");
    let tried = |command: &str| WRONG.iter().any(|(_, line, ..)| line.split(' ').next() == Some(command));
    let missing: Vec<_> = commands.into_iter().filter(|command| !tried(command)).collect();
    assert!(missing.is_empty(), "nobody has tried to use wrongly: {missing:?}");
}

#[test]
fn refusals() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    fs::create_dir(node.path("full")).unwrap();
    fs::write(node.path("full/diary"), "mine").unwrap();
    all(
        &node,
        &[
            (
                3,
                "define volume v DIR/x.img DIR/x.snaps",
                "volume v is defined already",
                "`zumastor forget volume v` first",
            ),
            (
                3,
                "define volume w DIR/v.img DIR/w.snaps",
                "v.img belongs to volume v",
                "give each volume an origin",
            ),
            (3, "define volume w DIR/w.img DIR/v.snaps/w", "belongs to volume v", "of its own"),
            (
                3,
                "define volume w DIR/w DIR/w/snaps",
                "must not be one, nor lie in each other",
                "put them beside each other",
            ),
            (
                3,
                "define volume w DIR/u.img2 DIR/full",
                "is not empty and no snapshot store",
                "give a new or empty directory",
            ),
            (3, "snapshot r", "volume r is a replica", "on the master"),
            (3, "snapshot u", "this node is not the master of volume u", "`zumastor define master u` first"),
            (
                3,
                "define source v beta",
                "this node is the master of volume v",
                "`--yes` does it without asking",
            ),
            (3, "define target r beta", "comes from beta", "`zumastor forget source r` first"),
            (3, "define target v alpha", "alpha is this node itself", "`zumastor peer list`"),
            (3, "define source u alpha:11235", "alpha:11235 is this node itself", "`zumastor peer list`"),
            (3, "define target v HERE", "is this node itself", "`zumastor peer list`"),
            (
                3,
                "define schedule u --daily 3",
                "neither master nor replica yet",
                "`zumastor define master u`",
            ),
            (3, "delete v 0", "is held as \"audit\"", "`zumastor release v 0 'audit'` first"),
            (3, "delete v 1 0", "snapshot 0 of volume v is held", "`zumastor release"),
            (3, "revert r 0", "volume r is a replica", "on the master"),
            (3, "resize r -o 2M", "volume r is a replica", "on the master"),
            (
                3,
                "resize v -o 4K",
                "beyond the new end, which would be cut off",
                "`--yes` does it without asking",
            ),
            (3, "promote u", "neither master nor replica", "`zumastor define master u` makes it the master"),
            (3, "peer remove beta", "beta", "`zumastor forget"),
            (3, "delete v --all", "would delete 1 snapshots of volume v", "`--yes` does it without asking"),
            (3, "destroy v", "snapshots are held: 0 by user (audit)", "`zumastor release v SNAPSHOT NAME`"),
            (3, "destroy u", "volume u with 0 snapshots", "`--yes` does it without asking"),
            (3, "destroy DIR/v.img DIR/v.snaps", "v.img belongs to volume v", "give each volume"),
            (3, "destroy DIR/x.img DIR/full", "full is no snapshot store", "that `define volume` was given"),
            (3, "destroy DIR/x.img DIR/full --yes", "full is no snapshot store", ""),
            (3, "resize v --snapshot 1G", "are for block devices", "has the size of its file system"),
            (3, "digest DIR", "is no file or block device", ""),
            (3, "remount v -p DIR/nowhere", "mount", ""),
        ],
    );
    assert_eq!(node.volume("v").snapshots.len(), 2);
    node.ok(&["forget", "volume", "u"]);
    all(
        &node,
        &[(
            3,
            "define volume u DIR/u.img DIR/u.snaps --initialize",
            "u.img",
            "`--yes` does it without asking",
        )],
    );
    // Parts that are stopped, and files that were edited.
    node.ok(&["stop", "target", "v", "beta"]);
    node.ok(&["stop", "source", "r"]);
    let file = node.path("etc/volumes/v.toml");
    let edited = format!("# mine\n{}", fs::read_to_string(&file).unwrap());
    fs::write(&file, edited).unwrap();
    all(
        &node,
        &[
            (
                3,
                "replicate v beta",
                "sending volume v to beta is stopped",
                "`zumastor start target v beta` first",
            ),
            (3, "replicate r beta", "receiving volume r is stopped", "`zumastor start source r` first"),
            (
                3,
                "define schedule v --daily 3",
                "v.toml was edited since the daemon read it",
                "`zumastor reload` applies",
            ),
        ],
    );
    fs::write(node.path("etc/zumastor.toml"), "name = 'other'\n").unwrap();
    all(&node, &[(3, "reload", "zumastor.toml has changed", "restart the daemon")]);
}

#[test]
fn failures() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node(dir.path());
    all(
        &node,
        &[
            (1, "snapshot w", "there is no volume w", "`zumastor status` lists the volumes"),
            (1, "snapshot v daily", "no rotation \"daily\"; it has hourly", "`zumastor define schedule v`"),
            (1, "snapshot --group g", "there is no group g", "`zumastor define master VOLUME --group g`"),
            (1, "status w", "there is no volume w", "`zumastor define volume w"),
            (1, "plan w", "there is no volume w", "`zumastor status`"),
            (1, "define master w", "there is no volume w", "`zumastor define volume w"),
            (1, "define target v gamma", "gamma", "`zumastor peer add"),
            (1, "define source u gamma", "gamma", "`zumastor peer add"),
            (1, "forget volume w", "there is no volume w", "`zumastor status`"),
            (1, "forget schedule r", "volume r has no schedule", "`zumastor status r`"),
            (1, "forget source v", "volume v has no source", "`zumastor status v`"),
            (1, "forget target r beta", "volume r is not sent to beta", "`zumastor status r`"),
            (1, "hold v 9 x", "volume v has no snapshot 9", "`zumastor status v` lists them"),
            (1, "release v 1 x", "is not held as \"x\"", "`zumastor status v` lists the holds"),
            (1, "delete v 9", "volume v has no snapshot 9", "`zumastor status v`"),
            (1, "revert v 9", "volume v has no snapshot 9", "`zumastor status v`"),
            (1, "replicate v beta -s 9", "volume v has no snapshot 9", "`zumastor status v`"),
            (1, "replicate u beta", "beta", "`zumastor define target u beta`"),
            (1, "start source v", "volume v has no source", "`zumastor status v`"),
            (1, "stop target v gamma", "volume v is not sent to gamma", "`zumastor status v`"),
            (1, "stop master r", "this node is not the master of volume r", "`zumastor status r`"),
            (1, "peer remove gamma", "gamma", "`zumastor peer list`"),
            (1, "digest DIR/nothing", "nothing", "No such file"),
        ],
    );
    // A selection of which there is nothing: no promise is made, and nothing is begun.
    node.ok(&["define", "target", "v", "beta", "--rotations", "hourly,daily"]);
    let none = "volume v has no snapshot for beta, which gets only those of hourly, daily";
    all(
        &node,
        &[
            (1, "replicate v beta", none, "`zumastor snapshot v ROTATION`"),
            (1, "replicate v beta --wait", none, "`zumastor replicate v beta --snapnum NUMBER`"),
        ],
    );
    // Files that are wrong: a line at the top, or a table at the end.
    let (file, before) = (node.path("etc/volumes/v.toml"), node.volume("v"));
    let written = fs::read_to_string(&file).unwrap();
    let end = written.lines().count();
    let failed = (1, "correct the file");
    for (bad, line, said, (code, remedy)) in [
        ("shedule = 3", 1, "there is no \"shedule\": it may have origin, snapstore,", failed),
        ("metadev = 7", 1, "metadev is 7, and must be a path in quotes", failed),
        ("hourly", 1, "this cannot be read as TOML", failed),
        ("chunk = '128K'", 1, "chunk: the store (", (3, "take the line out, or write \"")),
        ("[schedule.custom.x]", end + 1, "\"keep\" is missing in [schedule.custom.x]", failed),
        (
            "[schedule.custom.x]\nkeep = 'many'",
            end + 2,
            "schedule.custom.x.keep is the text \"many\", and must be a whole number",
            failed,
        ),
        (
            "[target.gamma]\nperiod = -1",
            end + 2,
            "target.gamma.period: \"-1\" is no length of time: write seconds, or",
            failed,
        ),
        (
            "[space]\nfree = '1G'",
            end + 2,
            "there is no \"free\" in [space]: it may have minimum_free,",
            failed,
        ),
    ] {
        let table = bad.starts_with('[');
        fs::write(&file, if table { format!("{written}{bad}\n") } else { format!("{bad}\n{written}") })
            .unwrap();
        all(&node, &[(code, "reload", &format!("v.toml, line {line}: {said}"), remedy)]);
    }
    assert_eq!(node.volume("v").snapshots, before.snapshots);
    node.kill();
    all(
        &node,
        &[
            (1, "status", "no daemon is running", "`zumastor daemon`"),
            (1, "snapshot v", "no daemon is running", "start it"),
        ],
    );
}

/// Somebody may have a pipe open and never write into it, as programs that run programs do.
#[test]
fn nobody_waits_for_an_answer_that_cannot_be_given() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    for line in ["define source v beta", "resize v -o 4K", "revert v 0", "snapshot v", "status", "delete v 0"]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zumastor"));
        command.args(line.split(' ')).env("ZUMASTOR_ROOT", &node.root);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let silent = child.stdin.take().unwrap();
        crate::common::wait_for(line, || child.try_wait().unwrap());
        drop(silent);
    }
}
