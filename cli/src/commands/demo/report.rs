//! What the demo says, and the table at its end.

use std::time::Duration;

use zumastor_core::HumanBytes;

use crate::exit::Failure;

/// Collects what was measured and checked.
pub(super) struct Report {
    rows: Vec<Row>,
    checks: Vec<(&'static str, Result<(), String>)>,
}

/// A transfer.
pub(super) struct Row {
    pub what: &'static str,
    /// Bytes of the volume that were sent.
    pub data: u64,
    /// Bytes they took on the wire.
    pub wire: u64,
    pub time: Duration,
    pub note: String,
}

impl Report {
    pub fn new() -> Self {
        Self { rows: Vec::new(), checks: Vec::new() }
    }

    pub fn chapter(&self, title: &str) {
        println!("\n== {title}");
    }

    pub fn say(&self, text: &str) {
        println!("   {text}");
    }

    /// Shows a command as it would be typed; what is too long to read is cut.
    pub fn command(&self, node: &str, args: &[&str]) {
        let shown: Vec<String> = args
            .iter()
            .map(|arg| match arg.char_indices().nth(40) {
                Some((cut, _)) if arg.starts_with("zuma1-") => format!("{}…", &arg[..cut.min(16)]),
                _ => (*arg).to_owned(),
            })
            .collect();
        println!("   {node}$ zumastor {}", shown.join(" "));
    }

    pub fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Notes whether something that must hold does.
    pub fn check(&mut self, what: &'static str, holds: bool, otherwise: &str) {
        let result = if holds { Ok(()) } else { Err(otherwise.to_owned()) };
        let mark = if holds { "✓" } else { "✗" };
        println!("   {mark} {what}{}", if holds { String::new() } else { format!(": {otherwise}") });
        self.checks.push((what, result));
    }

    /// Prints the table; an error if any check failed.
    pub fn finish(self, took: Duration) -> Result<(), Failure> {
        println!("\n   {:<46} {:>9} {:>9} {:>7}  ", "transfer", "sent", "on wire", "time");
        for row in &self.rows {
            println!(
                "   {:<46} {:>9} {:>9} {:>5.1} s  {}",
                row.what,
                HumanBytes(row.data),
                HumanBytes(row.wire),
                row.time.as_secs_f64(),
                row.note
            );
        }
        let failed: Vec<_> =
            self.checks.iter().filter(|(_, result)| result.is_err()).map(|(what, _)| *what).collect();
        let good = self.checks.len() - failed.len();
        println!("\n   {good} of {} checks held, {:.0} s in all.", self.checks.len(), took.as_secs_f64());
        if failed.is_empty() {
            Ok(())
        } else {
            Err(Failure::failed(format!("these did not hold: {}", failed.join("; "))))
        }
    }
}
