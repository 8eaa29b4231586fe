//! What people see: the answer on stdout, everything else on stderr.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use zumastor_core::{HumanBytes, SnapshotNumber};
use zumastor_net::{Phase, Progress, PullSummary};

use crate::{api::Outcome, exit::Failure};

/// Writes a line of the answer. That nobody reads it any more (`| head`) is no error.
pub fn answer(text: impl fmt::Display) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::doing("writing to stdout")(error))
        }
        _ => Ok(()),
    }
}

/// Writes a line of commentary.
pub fn comment(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes what was done, and what is good to know about it.
pub fn outcome(outcome: &Outcome) -> Result<(), Failure> {
    answer(&outcome.done)?;
    for note in &outcome.notes {
        comment(format_args!("  {note}"));
    }
    Ok(())
}

/// Writes what went wrong, and what to do next.
pub fn failure(failure: &Failure) {
    comment(format_args!("zumastor: {}", failure.error));
    if let Some(remedy) = &failure.remedy {
        comment(format_args!("  {remedy}"));
    }
}

/// As much of a key as people compare.
pub fn short_key(key: &str) -> &str {
    key.get(..10).unwrap_or(key)
}

/// A span of time as people say it: the two largest units.
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
        let text = match seconds {
            0..60 => format!("{seconds} s"),
            60..600 if !seconds.is_multiple_of(60) => format!("{minutes} min {} s", seconds % 60),
            60..3600 => format!("{minutes} min"),
            3600..86400 if !minutes.is_multiple_of(60) => format!("{hours} h {} min", minutes % 60),
            3600..86400 => format!("{hours} h"),
            _ if days < 10 && !hours.is_multiple_of(24) => format!("{days} d {} h", hours % 24),
            _ => format!("{days} d"),
        };
        f.pad(&text)
    }
}

/// A moment, seen from `now`.
pub fn moment(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.duration_since(now).as_secs();
    match u64::try_from(seconds) {
        Ok(seconds) => format!("in {}", Span(seconds)),
        Err(_) => format!("since {} ago", Span(seconds.unsigned_abs())),
    }
}

/// What a transfer came to, in a sentence; `asked` is the snapshot it was for, if it was for one.
pub fn summary(summary: &PullSummary, asked: Option<SnapshotNumber>) -> String {
    let Some(number) = summary.number else { return "there is no snapshot to replicate yet".to_owned() };
    if !summary.received {
        return match asked.filter(|asked| *asked < number) {
            Some(asked) => {
                format!("snapshot {number} was there already, which is more recent than snapshot {asked}")
            }
            None => format!("snapshot {number} was there already"),
        };
    }
    let seconds = Duration::from_millis(summary.millis).as_secs_f64();
    let base = summary.base.map_or_else(|| "in full".to_owned(), |base| format!("from snapshot {base}"));
    let what = match summary.snapshots {
        0 | 1 => format!("snapshot {number}"),
        count => format!("{count} snapshots up to {number}"),
    };
    let mut text = format!(
        "{what} replicated {base}: {} of data, {} on the wire, {seconds:.1} s",
        HumanBytes(summary.data),
        HumanBytes(summary.wire)
    );
    if summary.resumed > 0 {
        text.push_str(&format!(", {} resumed", HumanBytes(summary.resumed)));
    }
    if summary.refetched > 0 {
        text.push_str(&format!(", {} leaves fetched twice", summary.refetched));
    }
    text
}

/// Shows how far a transfer is: a bar on a terminal, else a line now and then.
pub struct TransferBar {
    bar: Option<ProgressBar>,
    begun: bool,
    said: Option<(Instant, Phase)>,
}

/// Pause between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

impl TransferBar {
    /// Nothing has begun.
    pub fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = "{msg:12} {wide_bar} {bytes} of {total_bytes}{prefix}, {bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(style).expect("a valid template").progress_chars("━╸ ");
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
        });
        Self { bar, begun: false, said: None }
    }

    /// It is so far now.
    pub fn update(&mut self, progress: &Progress) {
        let Some(bar) = &self.bar else { return self.say(progress) };
        bar.set_message(progress.phase.to_string());
        bar.set_length(progress.total);
        if progress.resumed > 0 && bar.prefix().is_empty() {
            bar.set_prefix(format!(" ({} resumed)", HumanBytes(progress.resumed)));
        }
        bar.set_position(progress.done);
        if !self.begun && progress.total > 0 {
            // What was there before says nothing about the speed now.
            self.begun = true;
            bar.reset_eta();
        }
    }

    /// It has ended.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    fn say(&mut self, progress: &Progress) {
        let now = Instant::now();
        if self.said.is_some_and(|(at, phase)| phase == progress.phase && now - at < LINE) {
            return;
        }
        self.said = Some((now, progress.phase));
        comment(transfer_line(progress));
    }
}

/// How far a transfer is, in a line.
pub fn transfer_line(progress: &Progress) -> String {
    let number = progress.number.map(|number| format!(" snapshot {number}")).unwrap_or_default();
    let mut line = format!("{}{number}", progress.phase);
    if progress.total > 0 {
        let percent = u128::from(progress.done.min(progress.total)) * 100 / u128::from(progress.total);
        line.push_str(&format!(": {percent} % of {}", HumanBytes(progress.total)));
    }
    if progress.resumed > 0 {
        line.push_str(&format!(", {} resumed", HumanBytes(progress.resumed)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_in_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (61, "1 min 1 s"),
            (120, "2 min"),
            (3000, "50 min"),
            (7260, "2 h 1 min"),
            (90000, "1 d 1 h"),
            (864000 * 3, "30 d"),
        ] {
            assert_eq!(Span(seconds).to_string(), text);
        }
    }
}
