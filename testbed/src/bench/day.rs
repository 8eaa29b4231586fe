//! Whether daemons grow: what they have in memory, and files, while a volume is replicated as often as once a minute for a day, one
//! time right after the other.

use std::{fs, io, path::Path};

use zumastor::exit::Failure;
use zumastor_core::HumanBytes;
use zumastor_testbed::{FileSystem, Scratch, peak_memory, reset_peak_memory};

use super::{
    many_snapshots::Lab,
    report::{Machine, align},
    say,
};

/// Minutes of a day.
const CYCLES: u64 = 24 * 60;
/// Parts of it that are looked at by themselves.
const PARTS: u64 = 6;
/// Snapshots that are kept, on both sides.
const KEPT: usize = 10;

/// Measures below `parent`, and gives the table.
pub fn run(program: &Path, parent: &Path) -> Result<String, Failure> {
    let scratch = Scratch::mount(FileSystem::Xfs, 32 << 30, parent)?;
    let mut lab = Lab::new(program, scratch.path())?;
    let head = ["cycles", "sender peak", "files", "receiver peak", "files"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for part in 0..PARTS {
        let (first, last) = (CYCLES / PARTS * part + 1, CYCLES / PARTS * (part + 1));
        say(format_args!("cycles {first} to {last}"));
        let both = [lab.alpha.pid(), lab.beta.pid()];
        both.into_iter().try_for_each(reset_peak_memory).map_err(Failure::doing("a daemon's memory"))?;
        for _ in first..=last {
            lab.snapshot()?;
            lab.settled()?;
            lab.replicate()?;
            lab.thin_out(KEPT)?;
        }
        let mut row = vec![format!("{first}–{last}")];
        for pid in both {
            row.extend(held(pid).map_err(Failure::doing("a daemon's memory and files"))?);
        }
        rows.push(row);
    }
    lab.check()?;
    let machine = Machine::here(scratch.path()).line();
    Ok(format!("**A day of a volume that is replicated every minute**\n\n{machine}\n\n{}", align(&rows)))
}

/// The most memory since it was reset, and the files that are open.
fn held(pid: u32) -> io::Result<[String; 2]> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok([HumanBytes(peak_memory(pid)?).to_string(), files.to_string()])
}
