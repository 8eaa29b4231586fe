//! `status --watch`: the status again and again, until somebody ends it. On a terminal it is drawn in place, on a screen of
//! its own that goes in the end; elsewhere it is lines.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use rustix::process::{Signal, getpid, kill_process};
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::sleep,
};

use super::{Args, Shown, health, lag, look, role, seconds};
use crate::{api::Status, client::Client, exit::Failure, ui};

pub async fn run(args: &Args, client: &Client, every: u64) -> Result<(), Failure> {
    // Where there is no daemon at first, there is nothing to watch.
    let first = look(args, client).await?;
    let caught = |kind| signal(kind).map_err(Failure::doing("waiting for signals"));
    let mut ends = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        ends.push(caught(kind)?);
    }
    let every = Duration::from_secs(every);
    if args.json || !io::stdout().is_terminal() {
        return until(ends, lines(args, client, first, every)).await;
    }
    let stopped = caught(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
    let resized = caught(SignalKind::window_change())?;
    let screen = Screen::enter();
    let result = until(ends, draw(args, client, first, every, (stopped, resized))).await;
    drop(screen);
    result
}

/// Does the work until it ends or a signal comes, which is the usual end.
async fn until(
    mut ends: Vec<Signals>,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let [first, second, third] = &mut ends[..] else { unreachable!("three signals") };
    tokio::select! {
        result = work => result,
        _ = first.recv() => Ok(()),
        _ = second.recv() => Ok(()),
        _ = third.recv() => Ok(()),
    }
}

/// One line for each volume, or one object for all of them.
async fn lines(args: &Args, client: &Client, first: Shown, every: Duration) -> Result<(), Failure> {
    let mut next = Ok(first);
    let mut silent = false;
    loop {
        match next {
            Ok(shown) => {
                silent = false;
                let text = match (args.json, &shown) {
                    (true, shown) => shown.json(false)?,
                    (false, Shown::Status(status)) => brief(status, Timestamp::now()),
                    (false, shown) => shown.text(true, Timestamp::now()).trim_end().to_owned(),
                };
                if !put(&format!("{text}\n"))? {
                    return Ok(());
                }
            }
            // Said once: the next that is heard is better news.
            Err(failure) if !silent => {
                silent = true;
                ui::failure(&failure);
            }
            Err(_) => {}
        }
        sleep(every).await;
        next = look(args, client).await;
    }
}

/// A line for each volume: when, which, how it is and how far each peer is.
fn brief(status: &Status, now: Timestamp) -> String {
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ");
    if status.volumes.is_empty() {
        return format!("{time} no volumes");
    }
    let lines = status.volumes.iter().map(|volume| {
        let newest = volume.snapshots.iter().rev().find(|snapshot| !snapshot.number.is_local());
        let newest = newest.map(|newest| {
            format!(", newest {} ({} ago)", newest.number, ui::Span(seconds(newest.created, now)))
        });
        let source = volume
            .source
            .iter()
            .map(|source| (format!("from {}", source.config.host), &source.lag, &source.work));
        let targets =
            volume.targets.iter().map(|target| (target.host.to_string(), &target.lag, &target.work));
        let peers: String = source
            .chain(targets)
            .map(|(name, behind, work)| {
                let running = work.progress.as_ref().map(|p| format!(" ({})", ui::transfer_line(p)));
                format!("; {name}: {}{}", lag(behind, work, now), running.unwrap_or_default())
            })
            .collect();
        let (role, health, newest) = (role(volume.role), health(volume.health), newest.unwrap_or_default());
        format!("{time} {} {role} {health}{newest}{peers}", volume.name)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The whole status in place of the one before.
async fn draw(
    args: &Args,
    client: &Client,
    first: Shown,
    every: Duration,
    (mut stopped, mut resized): (Signals, Signals),
) -> Result<(), Failure> {
    let mut shown = first;
    let mut trouble = None;
    loop {
        let clock = Timestamp::now().to_zoned_datetime(TimeZone::system()).strftime("%H:%M:%S").to_string();
        let mut text = format!("{clock}, every {} s, ^C ends\n\n", every.as_secs());
        if let Some(Failure { error, remedy, .. }) = &trouble {
            text.push_str(&format!("NO ANSWER: {error}\n  {}\n\n", remedy.as_deref().unwrap_or_default()));
        }
        text.push_str(&shown.text(args.volume.is_some(), Timestamp::now()));
        if !put(&frame(&text, window()))? {
            return Ok(());
        }
        tokio::select! {
            () = sleep(every) => {}
            _ = resized.recv() => {}
            _ = stopped.recv() => {
                Screen::leave();
                let _ = kill_process(getpid(), Signal::STOP);
                // Here it goes on again, whenever that is.
                let _ = put(ENTER);
            }
        }
        match look(args, client).await {
            Ok(now) => (shown, trouble) = (now, None),
            // What was seen last stays in sight.
            Err(failure) => trouble = Some(failure),
        }
    }
}

/// A screen of its own, without cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// The terminal while it is drawn on; it is as before when this is dropped.
struct Screen;

impl Screen {
    fn enter() -> Self {
        let _ = put(ENTER);
        Self
    }

    fn leave() {
        let _ = put(LEAVE);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        Self::leave();
    }
}

/// Columns and rows of the terminal.
fn window() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

/// What makes the terminal show `text`, as much of it as there is room for.
fn frame(text: &str, (columns, rows): (usize, usize)) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let more = (lines.len() > rows).then(|| format!("… and {} more lines", lines.len() - rows + 1));
    let fit = if more.is_some() { rows - 1 } else { lines.len() };
    let mut frame = "\x1b[H".to_owned();
    for (index, line) in lines[..fit].iter().copied().chain(more.as_deref()).enumerate() {
        if index > 0 {
            frame.push_str("\r\n");
        }
        // What a peer or a path says must not steer the terminal.
        frame.extend(line.chars().take(columns).map(|c| if c.is_control() { '?' } else { c }));
        frame.push_str("\x1b[K");
    }
    frame.push_str("\x1b[J");
    frame
}

/// Writes; false when nobody reads any more.
fn put(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::doing("writing to stdout")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_no_more_than_the_terminal() {
        assert_eq!(frame("ab\nc\n", (80, 24)), "\x1b[Hab\x1b[K\r\nc\x1b[K\x1b[J");
        assert_eq!(frame("abc\nd\ne\nf", (2, 3)), "\x1b[Hab\x1b[K\r\nd\x1b[K\r\n… \x1b[K\x1b[J");
        assert_eq!(frame("a\x1b[2Jb", (80, 24)), "\x1b[Ha?[2Jb\x1b[K\x1b[J");
    }
}
