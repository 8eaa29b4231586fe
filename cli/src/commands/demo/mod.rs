//! `zumastor demo`: the main job, from nothing to three equal copies, on this machine and without privileges.
//!
//! Everything is real: three daemons in processes of their own, a file system image made from this machine's own
//! files, QUIC on loopback, a `kill -9`. What is shown was measured or checked just now; a check that fails makes the
//! whole demo fail.

mod image;
mod node;
mod report;

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};
use zumastor_core::{HumanBytes, digest::digest_of};
use zumastor_net::PullSummary;

use self::{
    image::Image,
    node::DemoNode,
    report::{Report, Row},
};
use crate::{
    api::{Replicate, ReplicateEvent, Status, VolumeStatus},
    exit::Failure,
};

/// Show the main job on this machine: three nodes, one volume, a killed daemon, an intruder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep everything in this directory, which must be empty or absent [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

pub async fn run(args: Args) -> Result<(), Failure> {
    let temporary;
    let dir = match &args.keep {
        Some(dir) => {
            let dir = std::path::absolute(dir).map_err(Failure::doing(dir.display()))?;
            std::fs::create_dir_all(&dir).map_err(Failure::doing(dir.display()))?;
            if std::fs::read_dir(&dir).map_err(Failure::doing(dir.display()))?.next().is_some() {
                return Err(Failure::refused(format!("{} is not empty", dir.display()))
                    .remedy("name a directory that is empty, or one that does not exist yet"));
            }
            dir
        }
        None => {
            temporary = tempfile::Builder::new().prefix("zumastor-demo-").tempdir();
            temporary
                .as_ref()
                .map_err(|e| Failure::failed(format!("no temporary directory: {e}")))?
                .path()
                .to_owned()
        }
    };
    check_space(&dir)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::doing("signals"))?;
    let listen = OnceCell::new();
    // The daemons die with what is dropped here.
    let result = tokio::select! {
        result = show(&dir, &listen) => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
        _ = terminate.recv() => Err(Failure::failed("terminated")),
    };
    if let (Some(_), Some(listen)) = (&args.keep, listen.get()) {
        let command =
            format!("ZUMASTOR_ROOT={}/alpha zumastor daemon --name alpha --listen {listen}", dir.display());
        println!("\nEverything is kept in {}: try `{command}`.", dir.display());
    }
    result
}

async fn show(dir: &Path, listen: &OnceCell<String>) -> Result<(), Failure> {
    let started = Instant::now();
    let mut report = Report::new();

    report.chapter("A volume: a file system image made from this machine's own files");
    let image = Image::make(dir)?;
    report.say(&image.description);

    report.chapter("Three nodes, each with its own key: alpha is the master, beta and gamma hold replicas");
    let mut alpha = DemoNode::start(dir, "alpha").await?;
    let _ = listen.set(alpha.listen.clone());
    let mut beta = DemoNode::start(dir, "beta").await?;
    let mut gamma = DemoNode::start(dir, "gamma").await?;
    acquaint(&alpha, &beta, &report).await?;
    acquaint(&beta, &gamma, &report).await?;
    alpha
        .zumastor(&["define", "volume", "vol", image.path_str(), alpha.path_str("snapshots")?], &report)
        .await?;
    alpha.zumastor(&["define", "master", "vol", "--no-snapmount"], &report).await?;
    // The rate limit only makes the first copy slow enough to be interrupted in a sporting way.
    alpha.zumastor(&["define", "target", "vol", "beta", "--ratelimit", "48M"], &report).await?;
    for node in [&beta, &gamma] {
        let (image, snapshots) = (node.path_str("vol.img")?, node.path_str("snapshots")?);
        node.zumastor(&["define", "volume", "vol", image, snapshots], &report).await?;
    }
    beta.zumastor(&["define", "source", "vol", "alpha"], &report).await?;
    beta.zumastor(&["define", "target", "vol", "gamma", "--period", "1"], &report).await?;
    gamma.zumastor(&["define", "source", "vol", "beta"], &report).await?;

    report.chapter("The full copy, with beta killed in the middle (SIGKILL) and started again");
    alpha.zumastor(&["snapshot", "vol"], &report).await?;
    full_copy(&alpha, &mut beta, &mut report).await?;
    chained(&gamma, 0, &mut report, "full copy, gamma ← beta (push)").await?;

    report.chapter("Some files change inside the image, and only the changed blocks travel");
    report.say(&image.change(dir)?);
    alpha.zumastor(&["snapshot", "vol"], &report).await?;
    incremental(&beta, &image, &mut report).await?;
    chained(&gamma, 1, &mut report, "changes, gamma ← beta (push)").await?;

    report.chapter("An intruder with a key of its own, and alpha's ticket, wants the volume");
    intruder(dir, &alpha, &mut report).await?;

    report.chapter("Are the three volumes equal? Digests computed from scratch, and a file system check");
    compare(&image, &[&alpha, &beta, &gamma], &mut report).await?;

    for node in [&mut alpha, &mut beta, &mut gamma] {
        node.stop().await?;
    }
    report.finish(started.elapsed())
}

/// Each of two nodes gets to know the other by its ticket.
async fn acquaint(one: &DemoNode, other: &DemoNode, report: &Report) -> Result<(), Failure> {
    for (from, to) in [(one, other), (other, one)] {
        let ticket = from.zumastor(&["peer", "ticket"], report).await?;
        to.zumastor(&["peer", "add", from.name, ticket.trim()], report).await?;
    }
    Ok(())
}

async fn full_copy(alpha: &DemoNode, beta: &mut DemoNode, report: &mut Report) -> Result<(), Failure> {
    let started = Instant::now();
    beta.zumastor(&["replicate", "vol", "alpha"], report).await?;
    let interrupted = beta
        .until("the transfer is half done", |status| {
            let progress = volume(status)?.source.as_ref()?.work.progress?;
            (progress.total > 0 && progress.done > progress.total / 2).then_some(progress)
        })
        .await?;
    beta.kill().await?;
    report.say(&format!(
        "beta was killed when it had {} of {}.",
        HumanBytes(interrupted.done),
        HumanBytes(interrupted.total)
    ));
    let head = beta.dir.join("vol.img");
    report.check("an interrupted copy shows nothing, not half a volume", !head.exists(), "");
    beta.restart().await?;
    let summary = received(beta, 0).await?;
    report.say(&format!(
        "Started again, it went on by itself: {} were already here and were not sent again.",
        HumanBytes(summary.resumed)
    ));
    report.check("the transfer resumed instead of starting over", summary.resumed > 0, "nothing was resumed");
    let status = alpha.status().await?;
    let target = volume(&status).and_then(|volume| volume.targets.first());
    let (sent, wire) = target.map_or((0, 0), |target| (target.sent_data, target.sent_wire));
    let again = sent.saturating_sub(interrupted.total);
    report.check(
        "less than a segment per stream was sent twice",
        again <= 4 * zumastor_core::SEGMENT,
        &format!("{} were sent again", HumanBytes(again)),
    );
    report.row(Row {
        what: "full copy, beta ← alpha (pull), killed once",
        data: sent,
        wire,
        time: started.elapsed(),
        note: format!("{} resumed", HumanBytes(summary.resumed)),
    });
    Ok(())
}

async fn incremental(beta: &DemoNode, image: &Image, report: &mut Report) -> Result<(), Failure> {
    let started = Instant::now();
    let summary = follow(beta, "alpha").await?;
    report.say(&format!(
        "Of {} only {} changed; they crossed the wire as {}.",
        HumanBytes(image.size),
        HumanBytes(summary.data),
        HumanBytes(summary.wire)
    ));
    report.check(
        "only changes were sent",
        summary.received && summary.data < image.size / 10,
        "too much was sent",
    );
    report.row(Row {
        what: "changes, beta ← alpha (pull)",
        data: summary.data,
        wire: summary.wire,
        time: started.elapsed(),
        note: format!("snapshot {} → {}", summary.base.map_or("–".into(), |b| b.to_string()), 1),
    });
    Ok(())
}

/// Waits until the last node of the chain shows a snapshot that nobody there asked for.
async fn chained(
    gamma: &DemoNode,
    number: u64,
    report: &mut Report,
    what: &'static str,
) -> Result<(), Failure> {
    let summary = received(gamma, number).await?;
    report.say(&format!("beta passed snapshot {number} on to gamma by itself."));
    let time = Duration::from_millis(summary.millis);
    report.row(Row { what, data: summary.data, wire: summary.wire, time, note: "not asked for".into() });
    Ok(())
}

/// Waits until a node has received a snapshot, and says what that took.
async fn received(node: &DemoNode, number: u64) -> Result<PullSummary, Failure> {
    let arrived = |status: &Status| {
        let last = volume(status)?.source.as_ref()?.work.last?;
        (last.summary.received && last.summary.number.is_some_and(|n| n.0 == number)).then_some(last.summary)
    };
    node.until("the snapshot has been received", arrived).await
}

async fn intruder(dir: &Path, alpha: &DemoNode, report: &mut Report) -> Result<(), Failure> {
    let sent = |status: &Status| volume(status).and_then(|v| Some(v.targets.first()?.sent_wire));
    let before = sent(&alpha.status().await?);
    let mut mallory = DemoNode::start(dir, "mallory").await?;
    let ticket = alpha.zumastor(&["peer", "ticket"], report).await?;
    mallory.zumastor(&["peer", "add", "alpha", ticket.trim()], report).await?;
    let (image, snapshots) = (mallory.path_str("vol.img")?, mallory.path_str("snapshots")?);
    mallory.zumastor(&["define", "volume", "vol", image, snapshots], report).await?;
    mallory.zumastor(&["define", "source", "vol", "alpha"], report).await?;
    let refusal = match follow(&mallory, "alpha").await {
        Ok(_) => "it was served".to_owned(),
        Err(failure) => failure.error,
    };
    report.say(&format!("mallory is told: {refusal}"));
    report.check(
        "a node with an unknown key is refused",
        refusal.contains("refuses this node's key"),
        &refusal,
    );
    let nothing = !mallory.dir.join("vol.img").exists() && sent(&alpha.status().await?) == before;
    report.check("and got not one byte of the volume", nothing, "something was sent");
    mallory.stop().await
}

async fn compare(image: &Image, nodes: &[&DemoNode], report: &mut Report) -> Result<(), Failure> {
    let mut digests = Vec::new();
    for node in nodes {
        let path = if node.name == "alpha" { image.path.clone() } else { node.dir.join("vol.img") };
        let digest = tokio::task::spawn_blocking(move || {
            let source = zumastor_backends::plain_source(&path)?;
            digest_of(&source, None)
        });
        let digest = digest.await.map_err(Failure::doing("computing a digest"))??;
        let said = volume(&node.status().await?).and_then(|v| v.snapshots.last()?.digest);
        report.say(&format!("{:<6} {digest}", node.name));
        report.check("the file has the digest that the daemon vouches for", said == Some(digest), node.name);
        digests.push(digest);
    }
    report.check(
        "all three volumes are equal",
        digests.windows(2).all(|pair| pair[0] == pair[1]),
        "they differ",
    );
    if let Some(last) = nodes.last() {
        match image.check(&last.dir.join("vol.img"))? {
            Some(problem) => {
                report.check("the file system on gamma is clean (e2fsck -fn)", problem.is_empty(), &problem)
            }
            None => report.say("There is no e2fsck on this machine, so the file system was not checked."),
        }
    }
    Ok(())
}

/// Replicates now, and waits for the end.
async fn follow(node: &DemoNode, host: &str) -> Result<PullSummary, Failure> {
    let name = "vol".parse().expect("a valid name");
    let asked = Replicate { host: host.to_owned(), ..Replicate::default() };
    let mut events = node.client.replicate_and_follow(&name, &asked).await?;
    loop {
        match events.next().await? {
            ReplicateEvent::Progress(_) => {}
            ReplicateEvent::Done(summary) => return Ok(summary),
            ReplicateEvent::Already(outcome) => return Err(Failure::failed(outcome.done)),
            ReplicateEvent::Failed(failure) => return Err(failure),
        }
    }
}

fn volume(status: &Status) -> Option<&VolumeStatus> {
    status.volumes.first()
}

fn check_space(dir: &Path) -> Result<(), Failure> {
    let stat =
        rustix::fs::statvfs(dir).map_err(|error| Failure::failed(format!("{}: {error}", dir.display())))?;
    let free = stat.f_bavail * stat.f_frsize;
    if free >= SPACE {
        return Ok(());
    }
    let (free, space) = (HumanBytes(free), HumanBytes(SPACE));
    Err(Failure::failed(format!("{} are free in {}, the demo needs up to {space}", free, dir.display()))
        .remedy("use `--keep DIR` or TMPDIR to name a place with more space"))
}

/// What three nodes with an image of some 250 MiB of data take at most, where nothing can be shared.
const SPACE: u64 = 3 << 30;
