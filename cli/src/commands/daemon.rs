//! `zumastor daemon`

use std::{
    fs::File,
    io::{Seek, Write},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};
use tracing_subscriber::EnvFilter;
use zumastor_core::{NodeName, steps};

use super::node_name;
use crate::{
    daemon::{self, Settings},
    exit::Failure,
    paths::Paths,
};

/// Run the daemon of this node
///
/// It owns the node's volumes and replicates them, until SIGTERM or SIGINT. Its messages go to stderr; ZUMASTOR_LOG
/// (or RUST_LOG) says how many.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and UDP port to listen on [default: all addresses, port 11235]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// What this node calls itself [default: the host's name]
    #[arg(long, value_name = "NODE", value_parser = node_name)]
    name: Option<NodeName>,
}

/// How long work that cannot be interrupted may go on at the end: reads and writes that are under way.
const GRACE: Duration = Duration::from_secs(5);

pub fn run(args: Args) -> Result<(), Failure> {
    let filter = ["ZUMASTOR_LOG", "RUST_LOG"].iter().find_map(|name| EnvFilter::try_from_env(name).ok());
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new("info")))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    let paths = Paths::from_env()?;
    raise_file_limit();
    keep_memory();
    if let Some(file) = std::env::var_os("ZUMASTOR_TEST_KILL") {
        killed_at_a_step(file.into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::doing("starting"))?;
    let result = runtime.block_on(daemon::run(paths, Settings { listen: args.listen, name: args.name }));
    runtime.shutdown_timeout(GRACE);
    result
}

/// For tests of crashes: while there is a file with a number, it is counted down at each step, and the program ends at 0 as a
/// crash would end it. Who locks the file and empties it is not in the middle of a step. Only programs that are built for
/// debugging pass steps.
fn killed_at_a_step(file: PathBuf) {
    steps::watch(move |step| {
        let counted = || {
            let mut file = File::options().read(true).write(true).open(&file)?;
            file.lock()?;
            let Ok(left) = std::io::read_to_string(&file)?.trim().parse::<u32>() else { return Ok(()) };
            if left <= 1 {
                tracing::warn!(step, "ended by a test");
                kill_process(getpid(), Signal::KILL)?;
            }
            file.set_len(0)?;
            file.rewind()?;
            file.write_all((left - 1).to_string().as_bytes())
        };
        // There is no such file but in tests.
        let _ = counted();
    });
}

/// Many volumes have many files. The soft limit is low only for programs that use select(2).
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit on open files stays what it is");
    }
}

/// Memory that is given back to the kernel is soon wanted again: each packet that arrives gets some of its own, and each page of it
/// costs a fault. So some is kept, in few places, as a thread that wants memory is another one each time.
#[cfg(target_env = "gnu")]
fn keep_memory() {
    let settings = [(libc::M_TRIM_THRESHOLD, KEPT), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_ARENA_MAX, 2)];
    for (name, value) in settings {
        // SAFETY: it takes two numbers.
        #[allow(unsafe_code)]
        let set = unsafe { libc::mallopt(name, value) };
        if set == 0 {
            tracing::debug!(name, value, "an allocator that does not take this setting");
        }
    }
}

/// Another allocator knows better, or has no such settings.
#[cfg(not(target_env = "gnu"))]
fn keep_memory() {}

/// Bytes of free memory that are kept at the end of each of the allocator's arenas.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 48 << 20;

/// What is as large as this is mapped from the kernel by itself, and given back at once: no batch is (mallopt(3): at most 32 MiB).
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 8 << 20;
