//! Full copies over long paths: ours, raw QUIC, and what goes over TCP.

use std::{fs, path::Path};

use serde::Serialize;
use zumastor::exit::Failure;
use zumastor_core::{HumanBytes, PAGE};
use zumastor_testbed::{LongPath, image};

use super::{
    Args, fresh,
    link::Link,
    ours::Pair,
    peers::{self, Job, Peer},
    raw,
    report::{Machine, OURS, RAW, Table, align},
    say,
};

/// Round trips in milliseconds, losses, and rates in bits per second: each with each.
const RTTS: [u64; 2] = [50, 150];
const LOSSES: [f64; 3] = [0.0, 0.001, 0.01];
const RATES: [u64; 2] = [1_000_000_000, 100_000_000];

/// Those that it is compared with.
const PEERS: [Peer; 2] = [peers::RSYNC, peers::PIPE];

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    machine: Machine,
    rounds: u32,
    notes: Vec<String>,
    paths: Vec<Measured>,
}

/// What was found on one path.
#[derive(Debug, Serialize)]
struct Measured {
    path: LongPath,
    table: Table,
}

/// Bytes to move, as parts of `--size`: as it is by default, some seconds at the full rate, in which a start that has to find
/// the rate is made good, and no hours for TCP where much is lost.
fn bytes(path: LongPath, size: u64) -> u64 {
    let part = match (path.rate, path.loss) {
        (1_000_000_000, 0.0) => size / 4,
        (_, 0.0) => size / 32,
        (_, loss) if loss < 0.005 => size / 256,
        _ => size / 512,
    };
    part.max(1).next_multiple_of(PAGE)
}

/// Measures below `parent`, prints the table, and writes it where it is wanted.
pub fn run(args: &Args, program: &Path, parent: &Path) -> Result<(), Failure> {
    let mut all = Vec::new();
    // Those that take much of the processors first.
    for loss in LOSSES {
        for rate in RATES {
            all.extend(RTTS.map(|rtt| LongPath { rtt, loss, rate }));
        }
    }
    if let Some(only) = &args.only {
        let names: Vec<_> = all.iter().map(|path| words(*path)).collect();
        all.retain(|path| words(*path).contains(only));
        if all.is_empty() {
            return Err(Failure::usage(format!("no path has \"{only}\" in its name"))
                .remedy(format!("they are: {}", names.join("; "))));
        }
    }
    let link = Link::long(all[0])?;
    let dir = tempfile::Builder::new()
        .prefix("zb-")
        .tempdir_in(parent)
        .map_err(Failure::doing(parent.display()))?;
    let peers: Vec<&Peer> = PEERS.iter().filter(|peer| !args.no_peers && peer.missing().is_none()).collect();
    let mut notes: Vec<String> = PEERS.iter().filter_map(Peer::missing).collect();
    notes.extend(peers::versions());
    let mut paths = Vec::new();
    for path in all {
        link.become_like(path);
        let master = dir.path().join("master.img");
        let bytes = bytes(path, args.size);
        image(&master, bytes, path.rtt)?;
        let mut table = Table::new(words(path));
        table.bytes = bytes;
        for round in 0..args.rounds {
            say(format_args!("{}, round {}", words(path), round + 1));
            let place = fresh(dir.path(), "pair")?;
            let mut pair = Pair::start(&link, program, &place, &master)?;
            pair.snapshot()?;
            table.add(OURS, pair.replicate()?);
            pair.check()?;
            drop(pair);
            table.add(RAW, raw::run(&link, bytes)?);
            for peer in &peers {
                let dir = fresh(dir.path(), "copy")?;
                table.add(peer.name, peer.run(&Job { link: &link, image: &master, dir: &dir })?);
            }
        }
        paths.push(Measured { path, table });
    }
    let found = Found { machine: Machine::here(dir.path()), rounds: args.rounds, notes, paths };
    println!("{}", found.markdown());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&found).map_err(Failure::doing("writing JSON"))?;
        fs::write(path, json).map_err(Failure::doing(path.display()))?;
    }
    Ok(())
}

fn words(path: LongPath) -> String {
    let LongPath { rtt, loss, rate } = path;
    format!("{} Mbit/s, {rtt} ms, {} % lost", rate / 1_000_000, loss * 100.0)
}

impl Found {
    /// As it stands in a document.
    fn markdown(&self) -> String {
        let Self { machine, rounds, notes, .. } = self;
        let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
        format!(
            "**Full copies over long paths**\n\n{} Data that do not compress, packets of 1,500 bytes; medians of {rounds}.\n{notes}\n{}",
            machine.line(),
            align(&self.rows())
        )
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let mut head =
            ["path", "of data", "zumastor s", "% of the rate", "raw QUIC s"].map(str::to_owned).to_vec();
        for peer in &PEERS {
            head.extend([format!("{} s", peer.name), "zumastor is × as fast".to_owned()]);
        }
        let rows = self.paths.iter().map(|Measured { path, table }| {
            let of = |name: &str| table.seconds(name);
            let ours = of(OURS).unwrap_or(f64::NAN);
            let shown = |seconds: Option<f64>| seconds.map_or_else(|| "–".to_owned(), |s| format!("{s:.2}"));
            let ideal = table.bytes as f64 * 8.0 / path.rate as f64;
            let mut row = vec![
                words(*path),
                HumanBytes(table.bytes).to_string(),
                shown(of(OURS)),
                format!("{:.0}", 100.0 * ideal / ours),
                shown(of(RAW)),
            ];
            for peer in &PEERS {
                let times = of(peer.name).map_or_else(|| "–".to_owned(), |s| format!("{:.1}", s / ours));
                row.extend([shown(of(peer.name)), times]);
            }
            row
        });
        [head].into_iter().chain(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::measure::Sample, *};

    #[test]
    fn what_a_path_carries_is_told_in_parts_of_its_rate_and_beside_the_others() {
        let path = LongPath { rtt: 150, loss: 0.01, rate: 100_000_000 };
        let mut table = Table::new(words(path));
        table.bytes = 12_500_000;
        for (name, seconds) in [(OURS, 2.0), (RAW, 1.0), (PEERS[1].name, 30.0)] {
            table.add(name, Sample { seconds, ..Sample::default() });
        }
        let machine = Machine::here(Path::new("/"));
        let found = Found { machine, rounds: 1, notes: vec![], paths: vec![Measured { path, table }] };
        let rows = found.rows();
        assert_eq!(rows[1][0], "100 Mbit/s, 150 ms, 1 % lost");
        assert_eq!(rows[1][2..], ["2.00", "50", "1.00", "–", "–", "30.00", "15.0"]);
    }
}
