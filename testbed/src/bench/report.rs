//! The benchmark's result, as Markdown and as JSON.

use std::{fmt::Write as _, fs, path::Path};

use serde::Serialize;
use zumastor_core::HumanBytes;

use super::{link::Kind, measure::Sample};

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Machine, kernel and file system.
    pub machine: Machine,
    /// Size of the volume in bytes.
    pub size: u64,
    /// What lay between the two sides.
    pub path: Kind,
    /// How often each contender ran.
    pub rounds: u32,
    /// What is good to know about this run.
    pub notes: Vec<String>,
    /// The tables.
    pub tables: Vec<Table>,
}

/// Where it ran.
#[derive(Debug, Serialize)]
pub struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    memory: u64,
    file_system: String,
}

/// The contenders of one discipline.
#[derive(Debug, Serialize)]
pub struct Table {
    /// What they did.
    pub title: String,
    /// Bytes of volume data that had to be moved.
    pub bytes: u64,
    /// The contenders, in the order of the first round.
    pub rows: Vec<Row>,
}

/// One contender.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// Every run of it.
    pub samples: Vec<Sample>,
    /// The medians of them.
    pub median: Sample,
}

impl Table {
    /// A table without rows.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), bytes: 0, rows: Vec::new() }
    }

    /// Adds a run of a contender.
    pub fn add(&mut self, name: &str, sample: Sample) {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name: name.to_owned(), samples: Vec::new(), median: sample });
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        row.samples.push(sample);
        row.median = Sample::median(&row.samples);
    }

    /// How many times as fast one contender is as another.
    pub fn ratio(&self, of: &str, to: &str) -> Option<f64> {
        Some(self.seconds(to)? / self.seconds(of)?)
    }

    /// The table as it stands in a document.
    pub fn markdown(&self) -> String {
        format!("**{}** ({} of data)\n\n{}", self.title, HumanBytes(self.bytes), align(&rows(self)))
    }

    /// The median of a contender, in seconds.
    pub fn seconds(&self, name: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.name == name).map(|row| row.median.seconds)
    }
}

impl Report {
    /// The report as it stands in a document.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let size = HumanBytes(self.size);
        let _ = writeln!(text, "{} Volume of {size}, medians of {}.", self.machine.line(), self.rounds);
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        for table in &self.tables {
            let _ = write!(text, "\n{}", table.markdown());
        }
        text
    }
}

/// The names that others are compared with.
pub const OURS: &str = "zumastor";
/// The same.
pub const RAW: &str = "raw QUIC, memory to memory";
/// The same.
pub const RAW_FILES: &str = "raw QUIC, file to file, hashed";
/// The same.
pub const RSYNC_WHOLE: &str = "rsync -W --inplace";

fn rows(table: &Table) -> Vec<Vec<String>> {
    let header = [
        "",
        "s",
        "min–max",
        "MB/s",
        "CPU s sender",
        "receiver",
        "peak MiB sender",
        "receiver",
        "wire MB",
        "× raw QUIC",
        "× rsync -W",
        "zumastor is × as fast",
    ];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    let ratio = |reference: Option<f64>, seconds: f64| {
        reference.map_or_else(|| "–".to_owned(), |reference| format!("{:.2}", reference / seconds))
    };
    for row in &table.rows {
        let Sample { seconds, sender, receiver, wire } = row.median;
        let each = row.samples.iter().map(|sample| sample.seconds);
        let (least, most) = (each.clone().fold(f64::MAX, f64::min), each.fold(0.0, f64::max));
        let moves = wire > 0;
        let or_dash = |text: String| if moves { text } else { "–".to_owned() };
        let mebi = |bytes: u64| if bytes == 0 { "–".to_owned() } else { format!("{}", bytes >> 20) };
        lines.push(vec![
            row.name.clone(),
            format!("{seconds:.2}"),
            format!("{least:.2}–{most:.2}"),
            or_dash(format!("{:.0}", table.bytes as f64 / 1e6 / seconds)),
            format!("{:.2}", sender.cpu),
            or_dash(format!("{:.2}", receiver.cpu)),
            mebi(sender.peak),
            mebi(receiver.peak),
            or_dash(format!("{:.1}", wire as f64 / 1e6)),
            or_dash(ratio(table.seconds(RAW), seconds)),
            or_dash(ratio(table.seconds(RSYNC_WHOLE), seconds)),
            or_dash(
                table.seconds(OURS).map_or_else(|| "–".to_owned(), |ours| format!("{:.2}", seconds / ours)),
            ),
        ]);
    }
    lines
}

/// A Markdown table whose columns stand one below the other.
pub fn align(lines: &[Vec<String>]) -> String {
    // What would end a cell does not.
    let escaped = |line: &Vec<String>| line.iter().map(|cell| cell.replace('|', "\\|")).collect();
    let lines: Vec<Vec<String>> = lines.iter().map(escaped).collect();
    let columns = lines.first().map_or(0, Vec::len);
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ =
                if at == 0 { write!(text, "| {cell:width$} ") } else { write!(text, "| {cell:>width$} ") };
        }
        text.push_str("|\n");
        if number == 0 {
            for (at, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                text.push_str(&if at == 0 { format!("|{dashes}-") } else { format!("|{dashes}:") });
            }
            text.push_str("|\n");
        }
    }
    text
}

impl Machine {
    /// What it is, in a sentence.
    pub fn line(&self) -> String {
        let Self { cpu, cores, kernel, memory, file_system } = self;
        let memory = HumanBytes(*memory);
        format!(
            "{cpu}, {cores} cores (both ends of every transfer on them), {memory} memory, Linux {kernel}, {file_system}."
        )
    }

    /// This one, with the file system of `dir`.
    pub fn here(dir: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?.split_once(':')?;
            Some(line.1.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let memory = memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10;
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name")
                .unwrap_or_else(|| "unknown processor".to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory,
            file_system: file_system(&read("/proc/self/mounts"), dir),
        }
    }
}

/// Kind of the file system that holds `dir`.
fn file_system(mounts: &str, dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    // Of those mounted at one place, the last hides the others.
    let found = fields.filter(|(place, _)| dir.starts_with(place)).max_by_key(|(place, _)| place.len());
    found.map_or_else(|| "unknown file system".to_owned(), |(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_compare() {
        let mut table = Table::new("Full copy");
        table.bytes = 100_000_000;
        for (name, seconds) in [(RAW, 1.0), (OURS, 2.0), (RSYNC_WHOLE, 4.0)] {
            table.add(name, Sample { seconds, wire: 1, ..Sample::default() });
        }
        let text = align(&rows(&table));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        let width = lines[0].chars().count();
        assert!(lines.iter().all(|line| line.chars().count() == width), "{text}");
        let ours: Vec<_> = lines[3].split('|').map(str::trim).collect();
        assert_eq!((ours[1], ours[2], ours[4], ours[10], ours[11]), (OURS, "2.00", "50", "0.50", "2.00"));
        let rsync: Vec<_> = lines[4].split('|').map(str::trim).collect();
        assert_eq!((ours[12], rsync[12]), ("1.00", "2.00"));
        assert_eq!(table.ratio(OURS, RAW), Some(0.5));
        assert_eq!(table.ratio("nobody", RAW), None);
    }

    #[test]
    fn a_pipe_ends_no_cell() {
        let line = |cell: &str| vec![cell.to_owned(), "1".to_owned()];
        let text = align(&[line("a"), line("dd | ssh | dd")]);
        assert_eq!(text.lines().last(), Some("| dd \\| ssh \\| dd |   1 |"));
    }

    #[test]
    fn the_deepest_mount_holds_the_directory() {
        let mounts = "a / ext4 rw 0 0\nb /tmp tmpfs rw 0 0\nc /tmp/x xfs rw 0 0\n";
        assert_eq!(file_system(mounts, Path::new("/tmp/y-not-there")), "tmpfs");
        assert_eq!(file_system(mounts, Path::new("/home")), "ext4");
    }
}
