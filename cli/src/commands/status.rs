//! `zumastor status`

mod one;
mod watch;

use jiff::Timestamp;
use zumastor_core::{Fill, HumanBytes, NodeName, SnapshotNumber, VolumeName};

use super::{hook_lines, snapshot_number, volume_name};
use crate::{
    api::{
        CacheStatus, EventKind, HeadStatus, Health, Lag, MetadataPlan, PoolStatus, Role, ScrubResult,
        SnapshotReport, SnapshotStatus, Status, VolumeEvent, VolumeStatus, WorkState, WorkStatus,
    },
    client::Client,
    exit::Failure,
    ui::{self, Span},
};

/// Show how the volumes are doing; of one volume, also its snapshots
///
/// LATE is what is further behind than its period and a margin (`--margin` of `define target` and `define source`) allow.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of a volume [default: all]
    #[arg(value_parser = volume_name)]
    volume: Option<VolumeName>,
    /// Number of a snapshot of that volume, to see it alone
    #[arg(value_parser = snapshot_number)]
    snapshot: Option<SnapshotNumber>,
    /// Also show what each snapshot takes, and what deleting it would free; this may take a while
    #[arg(short, long)]
    usage: bool,
    /// End with exit code 1 unless all of them are ok: for whatever watches over machines. Not of a snapshot alone
    #[arg(long, conflicts_with_all = ["watch", "snapshot"])]
    check: bool,
    /// As JSON; its field `schema` says which version
    #[arg(long)]
    json: bool,
    /// Show it again every so many seconds until interrupted; with --json, one object a line
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=86400))]
    watch: Option<u64>,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    if let Some(seconds) = args.watch {
        return watch::run(&args, &client, seconds).await;
    }
    let shown = look(&args, &client).await?;
    match args.json {
        true => ui::answer(shown.json(true)?)?,
        false => ui::answer(shown.text(args.volume.is_some(), Timestamp::now()).trim_end())?,
    }
    match (args.check, &shown) {
        (true, Shown::Status(status)) => check(status),
        _ => Ok(()),
    }
}

/// Fails if a volume is not well.
fn check(status: &Status) -> Result<(), Failure> {
    let ill = status.volumes.iter().filter(|volume| volume.health != Health::Ok);
    let ill: Vec<_> = ill.map(|volume| format!("{} ({})", volume.name, health(volume.health))).collect();
    match ill.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(format!("not ok: {}", ill.join(", ")))
            .remedy("`zumastor status VOLUME` says what is wrong, and what to do about it")),
    }
}

/// What is to be shown.
enum Shown {
    Status(Box<Status>),
    Snapshot(Box<SnapshotReport>),
}

async fn look(args: &Args, client: &Client) -> Result<Shown, Failure> {
    Ok(match (&args.volume, args.snapshot) {
        (Some(volume), Some(number)) => {
            Shown::Snapshot(Box::new(client.snapshot_report(volume, number, args.usage).await?))
        }
        (volume, _) => Shown::Status(Box::new(client.status_with(volume.as_ref(), args.usage).await?)),
    })
}

impl Shown {
    fn json(&self, pretty: bool) -> Result<String, Failure> {
        let text = match (self, pretty) {
            (Self::Status(status), true) => serde_json::to_string_pretty(status),
            (Self::Status(status), false) => serde_json::to_string(status),
            (Self::Snapshot(report), true) => serde_json::to_string_pretty(report),
            (Self::Snapshot(report), false) => serde_json::to_string(report),
        };
        text.map_err(Failure::doing("writing JSON"))
    }

    /// For people.
    fn text(&self, one: bool, now: Timestamp) -> String {
        match self {
            Self::Status(status) => human(status, one, now),
            Self::Snapshot(report) => one::text(report, now),
        }
    }
}

/// The status for people.
fn human(status: &Status, one: bool, now: Timestamp) -> String {
    let mut out = Lines::default();
    let node = &status.node;
    let since = seconds(node.started, now);
    let key = ui::short_key(&node.key);
    out.line(0, format!("node {}, listening on {}, key {key}, up {}", node.name, node.listen, Span(since)));
    if status.volumes.is_empty() {
        out.line(0, "no volumes yet: `zumastor define volume VOLUME ORGDEV SNAPDEV` makes one");
    }
    for volume in &status.volumes {
        out.line(0, "");
        volume_lines(&mut out, volume, one, now);
        if one {
            snapshot_lines(&mut out, volume, now);
            event_lines(&mut out, volume, now);
        }
    }
    out.0
}

fn volume_lines(out: &mut Lines, volume: &VolumeStatus, one: bool, now: Timestamp) {
    let (role, health) = (role(volume.role), health(volume.health));
    let size = volume.size.map(|size| format!(", {}", HumanBytes(size))).unwrap_or_default();
    out.line(0, format!("{}  {role}{size}  {health}", volume.name));
    // What a replication says for itself, stands there.
    let works = volume.source.iter().map(|source| &source.work).chain(volume.targets.iter().map(|t| &t.work));
    let told = |trouble: &String| {
        let late = volume.health == Health::Late;
        late || works.clone().any(|w| w.error.as_ref().is_some_and(|e| e.text == *trouble))
    };
    if let Some(trouble) = volume.trouble.as_ref().filter(|trouble| !told(trouble)) {
        out.line(1, trouble);
    }
    let shows = match volume.head {
        Some(HeadStatus::Snapshot(number)) if volume.role == Role::Replica => {
            format!(", shows snapshot {number}")
        }
        Some(HeadStatus::Written) if volume.role == Role::Replica => ", WRITTEN TO by somebody".to_owned(),
        _ => String::new(),
    };
    out.line(1, format!("origin     {}{shows}", volume.origin.display()));
    let space = match (volume.used, volume.free) {
        (Some(used), Some(free)) => format!(", {} used, {} free", HumanBytes(used), HumanBytes(free)),
        _ => String::new(),
    };
    let kind = volume.store.as_ref().map(|store| format!(" ({})", store.kind)).unwrap_or_default();
    out.line(1, format!("snapstore  {}{kind}{space}", volume.snapstore.display()));
    let CacheStatus { size, kept, streams, caution } = &volume.cache;
    let streams =
        if volume.source.is_some() { format!(", received over {streams} streams") } else { String::new() };
    out.line(1, format!("cache      {} at most, {} kept{streams}", HumanBytes(*size), HumanBytes(*kept)));
    if let Some(caution) = caution {
        out.line(2, format!("note: {caution}"));
    }
    if let Some(space) = &volume.space {
        let manual = if space.drop_manual { ", manual ones as well" } else { "" };
        let dropped = match space.dropped {
            0 => String::new(),
            count => format!("; {count} dropped since the daemon started"),
        };
        let least = HumanBytes(space.minimum_free);
        out.line(1, format!("space      below {least} free, the oldest snapshots go{manual}{dropped}"));
        if let Some(remedy) = &space.remedy {
            out.line(3, format!("remedy: {remedy}"));
        }
    }
    pool_lines(out, volume);
    let newest = volume.snapshots.iter().rev().find(|snapshot| !snapshot.number.is_local());
    let newest = newest.map_or_else(String::new, |newest| {
        let age = Span(seconds(newest.created, now));
        format!(", newest {} of {} ({age} ago)", newest.number, newest.name)
    });
    let all = volume.all_snapshots.map(|all| format!(", all together free {}", HumanBytes(all)));
    out.line(1, format!("snapshots  {}{newest}{}", volume.snapshots.len(), all.unwrap_or_default()));
    schedule_lines(out, volume, now);
    scrub_lines(out, volume, now);
    mount_lines(out, volume);
    for (indent, line) in hook_lines::lines(volume, one, now) {
        out.line(indent, line);
    }
    if let Some(caution) = volume.store.as_ref().and_then(|store| store.caution.as_ref()) {
        out.line(1, format!("caution    {caution}"));
    }
    if let Some(source) = &volume.source {
        let period = period(source.config.period);
        let link = if source.connected.is_some() { "connected" } else { "not connected" };
        let remote = remote(source.config.name.as_deref());
        out.line(
            1,
            format!(
                "source     {}{remote}, {link}{period}: {}",
                source.config.host,
                lag(&source.lag, &source.work, now)
            ),
        );
        if let Some(caution) = &source.caution {
            out.line(3, format!("caution: {caution}"));
        }
        work_lines(out, &source.work, &volume.name, &source.config.host, now);
    }
    for target in &volume.targets {
        let period = period(target.config.period);
        let link = if target.connected.is_some() { "connected" } else { "not connected" };
        let remote = remote(target.config.name.as_deref());
        out.line(
            1,
            format!(
                "target     {}{remote}, {link}{period}: {}",
                target.host,
                lag(&target.lag, &target.work, now)
            ),
        );
        if let Some(missed) = &target.missed {
            out.line(3, format!("it {missed}"));
        }
        work_lines(out, &target.work, &volume.name, &target.host, now);
    }
}

/// How full the pool of the volume is, and what its metadata will have to hold.
fn pool_lines(out: &mut Lines, volume: &VolumeStatus) {
    let Some(PoolStatus { data, metadata, plan }) = &volume.pool else { return };
    let of = |fill: &Fill| {
        let percent = (fill.used * 100).checked_div(fill.total).unwrap_or(0);
        format!("{} of {} ({percent} %)", HumanBytes(fill.used), HumanBytes(fill.total))
    };
    out.line(1, format!("pool       data {}, metadata {}", of(data), of(metadata)));
    let Some(plan) = plan else { return };
    let MetadataPlan { chunks, snapshots, planned, .. } = *plan;
    let [each, own, needed, worst] = [plan.each, plan.volume, plan.needed, plan.worst].map(HumanBytes);
    let usable = metadata.total.saturating_sub(metadata.low);
    let verdict = if plan.needed > usable { "TOO LITTLE" } else { "enough" };
    out.line(
        1,
        format!(
            "metadata   {own} for {chunks} chunks + {planned} snapshots × {each} = {needed}, of {}: {verdict}",
            HumanBytes(usable)
        ),
    );
    let so_far = match snapshots {
        0 => "a snapshot takes so much at least".to_owned(),
        count => format!("so much the {count} there are have taken on average"),
    };
    out.line(3, format!("{so_far}; if all is written over between any two: {worst}"));
    if plan.needed > usable {
        let size = HumanBytes((plan.needed * 3 / 2).next_multiple_of(1 << 20));
        out.line(3, format!("remedy: `zumastor resize {} --metadata SIZE`, such as {size}", volume.name));
    }
}

/// The rotations, and what a person stopped.
fn schedule_lines(out: &mut Lines, volume: &VolumeStatus, now: Timestamp) {
    if let Some(schedule) = &volume.schedule {
        let limits: Vec<_> = schedule
            .rotations
            .iter()
            .map(|rotation| format!("{} {}", rotation.keep, rotation.name))
            .collect();
        let next = schedule.next.map(|next| format!(", next snapshot {}", ui::moment(next, now)));
        out.line(1, format!("schedule   {}{}", limits.join(", "), next.unwrap_or_default()));
        if let Some(error) = &schedule.error {
            let ago = Span(seconds(error.at, now));
            out.line(3, format!("error: {} ({ago} ago)", error.text));
            if let Some(remedy) = &error.remedy {
                out.line(3, format!("remedy: {remedy}"));
            }
            out.line(3, format!("trying again {}", ui::moment(error.next, now)));
        }
    }
    if !volume.stopped.is_empty() {
        let stopped: Vec<_> = volume.stopped.iter().map(ToString::to_string).collect();
        out.line(1, format!("stopped    {}", stopped.join(", ")));
    }
}

/// How far a scrub is, what the last one found, and what is bad still.
fn scrub_lines(out: &mut Lines, volume: &VolumeStatus, now: Timestamp) {
    if let Some(progress) = &volume.scrub {
        out.line(1, format!("scrub      {}", ui::transfer_line(progress)));
    }
    let reports = || volume.snapshots.iter().filter_map(|snapshot| snapshot.scrub.as_ref());
    let last =
        reports().max_by_key(|report| report.at).filter(|report| report.result != ScrubResult::Damaged);
    let damaged = reports().filter(|report| report.result == ScrubResult::Damaged);
    for report in last.into_iter().chain(damaged) {
        let ago = Span(seconds(report.at, now));
        out.line(1, format!("scrubbed   {} ({ago} ago)", super::scrub::line(report)));
        for trouble in report.troubles.iter().chain(&report.head) {
            out.line(3, trouble);
        }
    }
}

/// What is mounted, and what is wrong with that.
fn mount_lines(out: &mut Lines, volume: &VolumeStatus) {
    let Some(mounts) = &volume.mounts else { return };
    if let Some(mountpoint) = &mounts.mountpoint {
        let shows = mounts.shows.map(|number| format!(", snapshot {number}")).unwrap_or_default();
        out.line(1, format!("mounted    {}{shows}", mountpoint.display()));
    }
    if let Some(snappath) = &mounts.snappath {
        let count = volume.snapshots.iter().filter(|snapshot| snapshot.mounted.is_some()).count();
        out.line(1, format!("mounted    {count} snapshots below {}", snappath.display()));
    }
    match (mounts.exported, mounts.shared) {
        (0, false) => {}
        (0, true) => out.line(1, "offered    by Samba"),
        (count, shared) => {
            let samba = if shared { ", and by Samba" } else { "" };
            out.line(1, format!("offered    {count} directories by NFS{samba}"));
        }
    }
    for trouble in mounts.troubles.iter().filter(|trouble| volume.trouble.as_ref() != Some(trouble)) {
        out.line(3, format!("error: {trouble}"));
    }
    for note in &mounts.notes {
        out.line(3, note);
    }
}

fn event_lines(out: &mut Lines, volume: &VolumeStatus, now: Timestamp) {
    for event in &volume.events {
        out.line(1, format!("{}: {}", event_text(event, Span(seconds(event.at, now))), event.text));
    }
}

fn event_text(event: &VolumeEvent, ago: Span) -> String {
    format!("{} {ago} ago", event_name(event))
}

/// What happened, to which snapshot.
pub fn event_name(event: &VolumeEvent) -> String {
    let number = event.number.map(|number| format!("snapshot {number} ")).unwrap_or_default();
    let what = match event.what {
        EventKind::Dropped => "dropped",
        EventKind::Deleted => "deleted",
        EventKind::Failed => "scheduled snapshot failed",
        EventKind::Full => "space is short",
        EventKind::Kept => "not dropped",
        EventKind::Hook => "hook failed",
    };
    format!("{number}{what}")
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Master => "master",
        Role::Replica => "replica",
        Role::Undecided => "neither master nor replica yet",
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Retrying => "TROUBLE, trying again",
        Health::Late => "LATE",
        Health::Full => "SPACE IS SHORT",
        Health::Stopped => "STOPPED",
        Health::Damaged => "DAMAGED",
        Health::Unavailable => "UNAVAILABLE",
    }
}

fn work_lines(out: &mut Lines, work: &WorkStatus, volume: &VolumeName, host: &NodeName, now: Timestamp) {
    let next = work.next.map(|next| format!("next in {}", Span(seconds(now, next))));
    match (&work.progress, work.state) {
        (Some(progress), _) => {
            let rate = if work.rate > 0 { format!(", {}/s", HumanBytes(work.rate)) } else { String::new() };
            let remark = work.remark.as_ref().map(|remark| format!(", {remark}")).unwrap_or_default();
            out.line(3, format!("{}{rate}{remark}", ui::transfer_line(progress)));
        }
        (None, WorkState::Waiting) => out.line(3, format!("trying again, {}", next.unwrap_or_default())),
        (None, WorkState::Stopped) => {
            let command = format!("`zumastor replicate {volume} {host}`");
            let next = next.map(|next| format!("; without it, {next}")).unwrap_or_default();
            out.line(3, format!("stopped: when what is wrong has been put right, {command}{next}"));
        }
        (None, _) => {
            if let Some(next) = next {
                out.line(3, next);
            }
        }
    }
    if let Some(asked) = &work.asked {
        let what =
            asked.snapshot.map_or_else(|| "the newest snapshot".to_owned(), |n| format!("snapshot {n}"));
        out.line(3, format!("asked for: {what}, begins in {}", Span(seconds(now, asked.at))));
    }
    if let Some(last) = &work.last {
        let ago = Span(seconds(last.at, now));
        out.line(3, format!("last: {} ({ago} ago)", ui::summary(&last.summary, None)));
    }
    if let Some(error) = &work.error {
        out.line(3, format!("error: {} ({} ago)", error.text, Span(seconds(error.at, now))));
        // A remedy that was told with the state above is told once.
        if let Some(remedy) = error.remedy.as_ref().filter(|_| !error.permanent) {
            out.line(3, format!("remedy: {remedy}"));
        }
    }
}

fn snapshot_lines(out: &mut Lines, volume: &VolumeStatus, now: Timestamp) {
    if volume.snapshots.is_empty() {
        return;
    }
    let grouped = volume.snapshots.iter().any(|snapshot| snapshot.group.is_some());
    let measured = volume.snapshots.iter().any(|snapshot| snapshot.usage.is_some());
    let space = |referenced: &str, own: &str| {
        if measured { format!("  {referenced:>10}  {own:>10}") } else { String::new() }
    };
    out.line(
        1,
        format!(
            "{:>6}  {:19}  {:>10}  {:>10}{}  {:16}  {:12}  held by{}",
            "number",
            "taken",
            "age",
            "size",
            space("takes", "its own"),
            "digest",
            "rotations",
            if grouped { ", group" } else { "" }
        ),
    );
    for snapshot in &volume.snapshots {
        let SnapshotStatus { number, name, created, rotations, size, digest, holds, usage, group, .. } =
            snapshot;
        let space = usage.map_or_else(
            || space("-", "-"),
            |usage| {
                let (takes, own) = (HumanBytes(usage.referenced), HumanBytes(usage.exclusive));
                space(&takes.to_string(), &own.to_string())
            },
        );
        let rotations = if rotations.is_empty() { "manual".to_owned() } else { rotations.join(" ") };
        let digest = digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string()[..16].to_owned());
        let holds = holds.iter().map(|hold| format!("{} ({})", hold.owner, hold.name));
        let holds: Vec<_> = holds.chain(group.map(|group| format!("group {group}"))).collect();
        let (age, size, holds) = (Span(seconds(*created, now)), HumanBytes(*size), holds.join(", "));
        out.line(
            1,
            format!(
                "{number:>6}  {name:19}  {age:>10}  {size:>10}{space}  {digest:16}  {rotations:12}  {holds}"
            ),
        );
    }
    if let Some(staged) = volume.staged {
        out.line(1, format!("{staged:>6}  being received"));
    }
}

fn lag(lag: &Lag, work: &WorkStatus, now: Timestamp) -> String {
    let coming =
        work.progress.and_then(|progress| progress.number).filter(|n| lag.common.is_none_or(|c| c < *n));
    let coming = coming.map(|number| format!(", snapshot {number} is on its way")).unwrap_or_default();
    let late = lag.late_seconds.map(|late| format!("LATE by {}, ", Span(late))).unwrap_or_default();
    let Some(common) = lag.common else { return format!("{late}nothing in common yet{coming}") };
    let age = lag.age_seconds.map(|age| format!(" of {} ago", Span(age))).unwrap_or_default();
    let behind = match lag.behind {
        // Who is silent may have more than is known of.
        0 if coming.is_empty() && lag.late_seconds.is_some() => "nothing newer heard of, still".to_owned(),
        0 if coming.is_empty() => "up to date".to_owned(),
        0 | 1 => "1 snapshot behind".to_owned(),
        count => format!("{count} snapshots behind"),
    };
    let confirmed =
        lag.confirmed.map(|at| format!(", confirmed {} ago", Span(seconds(at, now)))).unwrap_or_default();
    format!("{late}{behind} with snapshot {common}{age}{confirmed}{coming}")
}

fn period(period: Option<u64>) -> String {
    period.map(|period| format!(", every {}", Span(period))).unwrap_or_default()
}

fn remote(name: Option<&str>) -> String {
    name.map(|name| format!(" (its {name})")).unwrap_or_default()
}

/// Seconds from one moment to a later one.
fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_secs()).unwrap_or(0)
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, indent: usize, text: impl AsRef<str>) {
        self.0.push_str(&"  ".repeat(indent));
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }
}
