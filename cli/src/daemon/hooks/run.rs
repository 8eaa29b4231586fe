//! Runs a program, without a shell, and listens to what it says.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::Receiver,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::super::state::Process;

/// Lines that are remembered: the last.
pub const LINES: usize = 10;
/// Longest line that is remembered, in bytes; what is beyond is left out.
const LINE: usize = 500;
/// Lines that go to the log; the program may say more.
const LOGGED: usize = 1000;
/// Between asking a program to end and ending it.
const GRACE: Duration = Duration::from_secs(2);
/// How long what was said last may be under way when the program has ended. Others may hold on to its output.
const DRAIN: Duration = Duration::from_millis(500);
/// How long a program may be open for writing: who writes it is about to close it.
const BUSY: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug, Default)]
pub struct Ended {
    /// What went wrong, in words that follow its name.
    pub error: Option<String>,
    /// What it said last, line by line.
    pub output: Vec<String>,
}

/// Runs `program` with these variables besides the daemon's own, and ends it and all it started, if they are still of its
/// process group, after `limit`. `began` is told the process while that runs. What is said goes to `log`, line by line.
pub async fn run(
    program: &Path,
    limit: Duration,
    variables: &[(&'static str, String)],
    began: impl AsyncFnOnce(Option<Process>),
    mut log: impl FnMut(&str) + Send + 'static,
) -> Ended {
    let failed =
        |error: io::Error| Ended { error: Some(format!("could not be run: {error}")), output: vec![] };
    let (mut child, output) = match start(program, variables).await {
        Ok(started) => started,
        Err(error) => return failed(error),
    };
    let reading = tokio::spawn(async move {
        let mut lines = Lines::default();
        let read = lines.read(output, &mut log);
        // It may go on for as long as anybody has the other end.
        (read.await, lines.last)
    });
    let abort = reading.abort_handle();
    let ends = Instant::now() + limit;
    began(child.id().and_then(Process::of)).await;
    let error = match tokio::time::timeout_at(ends, child.wait()).await {
        Ok(Ok(status)) => explain(status),
        Ok(Err(error)) => Some(format!("could not be waited for: {error}")),
        Err(_) => {
            end(&mut child).await;
            Some(format!("was ended: it took longer than {} s", limit.as_secs()))
        }
    };
    let output = match timeout(DRAIN, reading).await {
        Ok(Ok((_, last))) => last.into(),
        _ => {
            abort.abort();
            vec!["(its output is still held open by a program that it started)".to_owned()]
        }
    };
    Ended { error, output }
}

async fn start(program: &Path, variables: &[(&'static str, String)]) -> io::Result<(Child, Receiver)> {
    let begun = Instant::now();
    loop {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).current_dir("/");
        command.process_group(0).envs(variables.iter().map(|(name, value)| (name, value)));
        match command.spawn() {
            Ok(child) => return Ok((child, Receiver::from_owned_fd(OwnedFd::from(reader))?)),
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && begun.elapsed() < BUSY => {
                sleep(BUSY / 20).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Ends a program and its process group: asks first.
async fn end(child: &mut Child) {
    let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) else { return };
    let _ = kill_process_group(pid, Signal::TERM);
    let _ = timeout(GRACE, child.wait()).await;
    // Whoever of the group is left.
    let _ = kill_process_group(pid, Signal::KILL);
    let _ = child.wait().await;
}

fn explain(status: ExitStatus) -> Option<String> {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("ended with exit code {code}")),
        (None, signal) => Some(format!("was ended by signal {}", signal.unwrap_or_default())),
    }
}

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    begun: Vec<u8>,
    count: usize,
}

impl Lines {
    async fn read(&mut self, mut output: Receiver, log: &mut (impl FnMut(&str) + Send)) -> io::Result<()> {
        let mut buffer = vec![0; 8192];
        loop {
            let length = output.read(&mut buffer).await?;
            if length == 0 {
                if !self.begun.is_empty() {
                    self.end_line(log);
                }
                return Ok(());
            }
            for byte in &buffer[..length] {
                match byte {
                    b'\n' => self.end_line(log),
                    _ if self.begun.len() < LINE => self.begun.push(*byte),
                    _ => {}
                }
            }
        }
    }

    fn end_line(&mut self, log: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.begun);
        let line: String = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.begun.clear();
        self.count += 1;
        match self.count {
            ..LOGGED => log(&line),
            LOGGED => log("(it says more, which is not logged)"),
            _ => {}
        }
        if self.last.len() == LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}
