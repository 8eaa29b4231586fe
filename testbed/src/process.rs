//! What a process has cost so far, from `/proc` (proc(5)).

use std::{fs, io};

/// Processor time of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    /// Seconds of all its threads, those that have ended included.
    pub own: f64,
    /// Seconds of its children that have ended and were waited for, and of theirs.
    pub children: f64,
}

/// Processor time of a process so far, in steps of a clock tick; of one that has ended too, until it is waited for.
pub fn cpu(pid: u32) -> io::Result<Cpu> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not as expected")))
}

/// Bytes that a process has read from files so far, from the page cache or not (`rchar`). What came over sockets does not count.
pub fn bytes_read(pid: u32) -> io::Result<u64> {
    let said = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let read = said.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok());
    read.ok_or_else(|| io::Error::other(format!("/proc/{pid}/io does not tell what was read")))
}

/// Most memory that a process has had resident so far, in bytes (`VmHWM`).
pub fn peak_memory(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other(format!("process {pid} has no VmHWM")))
}

/// Makes [`peak_memory`] count from now on.
pub fn reset_peak_memory(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// The processes that a process started and that still run, and theirs.
pub fn descendants(pid: u32) -> Vec<u32> {
    // Each thread has the children that it started itself.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    let theirs: Vec<u32> = children.iter().flat_map(|child| descendants(*child)).collect();
    [children, theirs].concat()
}

fn parse_stat(stat: &str) -> Option<Cpu> {
    // The second field is the program's name in parentheses, and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: Vec<u64> =
        rest.split_whitespace().skip(11).take(4).map(|field| field.parse().unwrap_or(0)).collect();
    let [user, system, child_user, child_system] = ticks[..] else { return None };
    let second = rustix::param::clock_ticks_per_second() as f64;
    Some(Cpu { own: (user + system) as f64 / second, children: (child_user + child_system) as f64 / second })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let second = rustix::param::clock_ticks_per_second();
        let stat = format!("7 (a) b (c)) S 1 7 7 0 -1 0 0 0 0 0 {second} {second} 3 {second} 20 0");
        let cpu = parse_stat(&stat).unwrap();
        assert!((cpu.own - 2.0).abs() < 1e-9 && cpu.children > 1.0, "{cpu:?}");
    }

    #[test]
    fn children_of_any_thread_are_found() {
        let this = std::process::id();
        let child = std::thread::spawn(|| std::process::Command::new("sleep").arg("60").spawn().unwrap());
        // The thread has ended: its children are another thread's now.
        let child = &mut child.join().unwrap();
        let found = descendants(this);
        child.kill().and_then(|()| child.wait()).unwrap();
        assert!(found.contains(&child.id()), "{found:?}");
    }

    #[test]
    fn this_process_has_memory() {
        assert!(peak_memory(std::process::id()).unwrap() > 1 << 20);
        assert!(cpu(std::process::id()).is_ok());
        let before = bytes_read(std::process::id()).unwrap();
        let read = fs::read("/proc/self/maps").unwrap().len() as u64;
        assert!(bytes_read(std::process::id()).unwrap() >= before + read);
    }
}
