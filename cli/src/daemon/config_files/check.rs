//! What no type can say of a file that a person wrote.

use std::path::Path;

use toml_edit::{Document, Item};
use zumastor_core::{
    VolumeName, check_chunk,
    config::{PeersConfig, VolumeConfig},
};
use zumastor_net::PublicKey;

use crate::{exports::Client, mounts::Options};

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// The keys that lead there.
    pub keys: Vec<String>,
    /// In words.
    pub reason: String,
}

fn problem(keys: &[&str], reason: impl Into<String>) -> Option<Problem> {
    Some(Problem { keys: keys.iter().map(|key| (*key).to_owned()).collect(), reason: reason.into() })
}

/// Whether a snapshot store may be a thin pool of LVM's, which several volumes may have: it is in the directory of a volume group,
/// with the origin. What it is shows when it is opened: any other store is one volume's.
fn may_be_pool(config: &VolumeConfig) -> bool {
    let group = config.snapstore.parent();
    group == config.origin.parent() && group.and_then(Path::parent) == Some(Path::new("/dev"))
}

/// What is wrong with a volume beside `others`.
pub fn volume(config: &VolumeConfig, others: &[(VolumeName, VolumeConfig)]) -> Option<Problem> {
    for (key, path) in [("origin", &config.origin), ("snapstore", &config.snapstore)] {
        if !path.is_absolute() {
            return problem(&[key], "the path must be absolute");
        }
        let used =
            |other: &VolumeConfig| [&other.origin, &other.snapstore].into_iter().any(|used| used == path);
        let shared =
            |other: &VolumeConfig| key == "snapstore" && other.snapstore == *path && may_be_pool(config);
        if let Some((other, _)) = others.iter().find(|(_, other)| used(other) && !shared(other)) {
            return problem(&[key], format!("{} belongs to volume {other}", path.display()));
        }
    }
    if nested(&config.origin, &config.snapstore) {
        return problem(&["snapstore"], "the snapshot store and the origin must lie beside each other");
    }
    if let Some((key, reason)) = config.hooks.problem() {
        return problem(&["hooks", key], reason);
    }
    if let Some(Err(error)) = config.chunk.map(|size| check_chunk(size.0)) {
        return problem(&["chunk"], error.to_string());
    }
    if config.master.is_some() && config.source.is_some() {
        return problem(&["source"], "a volume has [master] or [source], not both");
    }
    if let Some(source) = &config.source {
        if let Some((key, reason)) = options(source.period, None, source.name.as_deref()) {
            return problem(&["source", key], reason);
        }
        if config.target.contains_key(&source.host) {
            let host = source.host.as_str();
            return problem(
                &["target", host],
                format!("the volume comes from {host}, so it cannot be sent there"),
            );
        }
    }
    for (key, path) in [("mountpoint", &config.mountpoint), ("snappath", &config.snappath)] {
        let Some(path) = path else { continue };
        if !path.is_absolute() {
            return problem(&[key], "the path must be absolute");
        }
        let used = |other: &VolumeConfig| {
            [&other.mountpoint, &other.snappath].into_iter().flatten().any(|used| used == path)
        };
        let shared =
            |other: &VolumeConfig| key == "snapstore" && other.snapstore == *path && may_be_pool(config);
        if let Some((other, _)) = others.iter().find(|(_, other)| used(other) && !shared(other)) {
            return problem(&[key], format!("{} belongs to volume {other}", path.display()));
        }
    }
    if config.mountpoint.is_some() && config.mountpoint == config.snappath {
        return problem(&["snappath"], "the volume and its snapshots are not mounted on one directory");
    }
    if let Some(Err(error)) = config.mountopts.as_deref().map(Options::parse) {
        return problem(&["mountopts"], error.to_string());
    }
    let exports = [
        ("master", config.master.as_ref().map(|master| &master.export)),
        ("source", config.source.as_ref().map(|source| &source.export)),
    ];
    for (table, clients) in exports {
        let bad = clients.into_iter().flatten().find_map(|client| client.parse::<Client>().err());
        if let Some(error) = bad {
            return problem(&[table, "export"], error.to_string());
        }
    }
    for (host, target) in &config.target {
        if let Some((key, reason)) = options(target.period, target.ratelimit, target.name.as_deref()) {
            return problem(&["target", host.as_str(), key], reason);
        }
    }
    None
}

/// What is wrong with how a volume is sent or received: the option, and the reason.
pub fn options(
    period: Option<u64>,
    ratelimit: Option<u64>,
    name: Option<&str>,
) -> Option<(&'static str, String)> {
    if period == Some(0) {
        return Some(("period", "a period is at least one second".to_owned()));
    }
    if ratelimit == Some(0) {
        return Some(("ratelimit", "a rate limit is at least one byte a second".to_owned()));
    }
    let error = name.and_then(|name| name.parse::<VolumeName>().err());
    error.map(|error| ("name", error.to_string()))
}

/// Whether one path is the other, or lies below it.
pub fn nested(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// What is wrong with the peers.
pub fn peers(config: &PeersConfig) -> Option<Problem> {
    let mut known: Vec<(PublicKey, &str)> = Vec::new();
    for (name, peer) in &config.peer {
        let name = name.as_str();
        let Ok(key) = peer.key.parse::<PublicKey>() else {
            return problem(
                &["peer", name, "key"],
                "a key is 64 hexadecimal digits; `zumastor peer add NAME TICKET` writes it",
            );
        };
        if let Some((_, other)) = known.iter().find(|(known, _)| *known == key) {
            return problem(
                &["peer", name, "key"],
                format!("this is the key of {other}: a node has one name"),
            );
        }
        known.push((key, name));
    }
    None
}

/// The line where `keys` leads, or where its way is lost.
pub fn line_of(text: &str, keys: &[String]) -> Option<usize> {
    let document = Document::parse(text).ok()?;
    let mut item: &Item = document.as_item();
    let mut found = None;
    for key in keys {
        let Some((name, next)) = item.as_table_like().and_then(|table| table.get_key_value(key)) else {
            break;
        };
        found = name.span().or_else(|| next.span()).or(found);
        item = next;
    }
    super::line_at(text, found)
}
