//! A guest that runs, and what came of it.

use std::{
    fmt,
    io::{BufRead, BufReader, PipeReader},
    os::unix::process::CommandExt,
    process::{Child, Command},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use zumastor::exit::Failure;

use super::machine::{Job, Machine, VERDICT};

/// A booted guest. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    console: Arc<Console>,
    deadline: Instant,
    proof: Option<&'static str>,
}

/// What the guest has printed so far.
#[derive(Debug, Default)]
struct Console {
    log: Mutex<Log>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Log {
    lines: Vec<String>,
    verdict: Option<i32>,
    closed: bool,
}

/// How a guest ended.
#[derive(Debug)]
pub struct Outcome {
    /// The guest's name.
    pub name: String,
    /// Exit code of its job; nothing if the guest ended before the job did.
    pub code: Option<i32>,
    /// Everything on its console.
    pub log: String,
    proof: Option<&'static str>,
}

impl Outcome {
    /// The log, if the job ended with 0; otherwise a failure that shows its end.
    pub fn passed(self) -> Result<String, Failure> {
        let proven = self.proof.is_none_or(|proof| self.log.contains(proof));
        if self.code == Some(0) && proven {
            return Ok(self.log);
        }
        Err(Failure::failed(self.to_string()))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(0) if self.proof.is_some_and(|proof| !self.log.contains(proof)) => {
                write!(f, "guest {}: the test did not run", self.name)?;
            }
            Some(code @ 120..=123) => write!(f, "guest {}: could not be set up ({code})", self.name)?,
            Some(code) => write!(f, "guest {}: the job ended with {code}", self.name)?,
            None => write!(f, "guest {}: ended or took too long before its job was done", self.name)?,
        }
        let lines: Vec<_> = self.log.lines().collect();
        write!(f, "\n{}", lines[lines.len().saturating_sub(80)..].join("\n"))
    }
}

impl Running {
    pub(super) fn start(machine: &Machine, job: &Job, mut command: Command) -> Result<Self, Failure> {
        let piped = std::io::pipe().and_then(|(reader, writer)| Ok((reader, writer.try_clone()?, writer)));
        let (reader, out, err) = piped.map_err(Failure::doing("a pipe"))?;
        // A group of its own: a guest's processes are threads of its kernel to us.
        let child = command.stdout(out).stderr(err).process_group(0).spawn();
        drop(command); // and with it this process's end of the pipe
        let child = child.map_err(Failure::doing("starting a guest"))?;
        let console = Arc::new(Console::default());
        std::thread::spawn({
            let console = console.clone();
            move || console.read(reader)
        });
        let deadline = Instant::now() + machine.patience;
        Ok(Self { name: machine.name().to_owned(), child, console, deadline, proof: job.proof })
    }

    /// Waits for a line that contains `text`, and gives it.
    pub fn wait_for(&mut self, text: &str) -> Result<String, Failure> {
        let found = |log: &Log| log.lines.iter().find(|line| line.contains(text)).cloned();
        match self.until(found) {
            Some(line) => Ok(line),
            None => {
                self.stop();
                let outcome = self.outcome();
                Err(Failure::failed(format!("waited in vain for {text:?}: {outcome}")))
            }
        }
    }

    /// Waits for the end of the job.
    pub fn wait(mut self) -> Result<Outcome, Failure> {
        self.until(|log| log.verdict);
        self.stop();
        Ok(self.outcome())
    }

    /// Cuts the power: what the guest has not written to its disks is lost. Gives the log.
    pub fn kill(mut self) -> String {
        self.stop();
        self.outcome().log
    }

    /// What `find` finds in the log; nothing if the guest ended or took too long without it.
    fn until<T>(&mut self, find: impl Fn(&Log) -> Option<T>) -> Option<T> {
        let console = self.console.clone();
        let mut log = console.lock();
        loop {
            if let Some(found) = find(&log) {
                return Some(found);
            }
            if log.closed || Instant::now() >= self.deadline {
                return None;
            }
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                // Whoever is left of it keeps the console open.
                drop(log);
                self.stop();
                return find(&console.lock());
            }
            let waited = console.news.wait_timeout(log, Duration::from_millis(200));
            log = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends all of the guest, and waits until everything it said is in the log.
    fn stop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // An error means that nobody is left.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        let mut log = self.console.lock();
        while !log.closed {
            log = self.console.news.wait(log).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn outcome(&self) -> Outcome {
        let log = self.console.lock();
        Outcome { name: self.name.clone(), code: log.verdict, log: log.lines.join("\n"), proof: self.proof }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, pipe: PipeReader) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            let mut log = self.lock();
            if let Some(code) = text.strip_prefix(VERDICT).and_then(|code| code.trim().parse().ok()) {
                log.verdict = Some(code);
            }
            log.lines.push(text);
            self.news.notify_all();
        }
        self.lock().closed = true;
        self.news.notify_all();
    }
}
