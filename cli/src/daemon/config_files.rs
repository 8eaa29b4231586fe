//! Reading and editing the configuration. People edit the same files, so an edit changes what it is about and leaves
//! comments, order and everything else as they are.

use std::{fs, io, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use toml_edit::{DocumentMut, Item, Table, TableLike};
use zumastor_core::{
    VolumeName,
    config::{NodeConfig, PeersConfig, VolumeConfig},
    files::{sync_dir, write_atomically},
};

use crate::{exit::Failure, paths::Paths};

/// Everything that is configured.
#[derive(Debug)]
pub struct Configuration {
    /// `zumastor.toml`.
    pub node: NodeConfig,
    /// `peers.toml`.
    pub peers: PeersConfig,
    /// `volumes/NAME.toml`.
    pub volumes: Vec<(VolumeName, VolumeConfig)>,
}

/// Reads all files. The first that is bad is named, with the line and the reason.
pub fn load(paths: &Paths) -> Result<Configuration, Failure> {
    let node = read(&paths.node_toml())?.unwrap_or_default();
    let peers = read(&paths.peers_toml())?.unwrap_or_default();
    let mut volumes = Vec::new();
    let dir = paths.volumes();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>().map_err(Failure::doing(dir.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Failure::doing(dir.display())(error)),
    };
    for entry in entries {
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str().and_then(|name| name.strip_suffix(".toml")) else { continue };
        if name.starts_with('.') {
            // What an editor, or a write that was cut short, left.
            continue;
        }
        let name: VolumeName = name.parse().map_err(Failure::doing(entry.path().display()))?;
        if let Some(config) = read(&entry.path())? {
            volumes.push((name, config));
        }
    }
    volumes.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Configuration { node, peers, volumes })
}

/// Writes `volumes/NAME.toml`.
pub fn write_volume(paths: &Paths, name: &VolumeName, config: &VolumeConfig) -> Result<(), Failure> {
    edit(&paths.volume_toml(name), config)
}

/// Removes `volumes/NAME.toml`.
pub fn remove_volume(paths: &Paths, name: &VolumeName) -> Result<(), Failure> {
    let path = paths.volume_toml(name);
    match fs::remove_file(&path) {
        Ok(()) => sync_dir(&paths.volumes()).map_err(Failure::doing(path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::doing(path.display())(error)),
    }
}

/// Writes `peers.toml`.
pub fn write_peers(paths: &Paths, config: &PeersConfig) -> Result<(), Failure> {
    edit(&paths.peers_toml(), config)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    toml::from_str(&text).map(Some).map_err(|error| {
        let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        bad_file(path, line, error.message())
    })
}

fn read_text(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::doing(path.display())(error)),
    }
}

fn bad_file(path: &Path, line: Option<usize>, reason: &str) -> Failure {
    let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
    Failure::failed(format!("{}{line}: {reason}", path.display())).remedy("correct the file and try again")
}

/// Makes the file say `config`, changing no more of it than needed.
fn edit<T: Serialize>(path: &Path, config: &T) -> Result<(), Failure> {
    let text = read_text(path)?.unwrap_or_default();
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        bad_file(path, line, error.message())
    })?;
    let wanted = toml_edit::ser::to_document(config).map_err(Failure::doing(path.display()))?;
    merge(document.as_table_mut(), wanted.as_table());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Failure::doing(dir.display()))?;
    }
    write_atomically(path, document.to_string().as_bytes(), 0o644).map_err(Failure::doing(path.display()))
}

/// Makes `table` hold what `wanted` holds. Values that are right already keep their form and their comments.
fn merge(table: &mut dyn TableLike, wanted: &dyn TableLike) {
    let gone: Vec<String> =
        table.iter().map(|(key, _)| key.to_owned()).filter(|key| !wanted.contains_key(key)).collect();
    for key in gone {
        table.remove(&key);
    }
    for (key, wanted) in wanted.iter() {
        if let Some(wanted) = wanted.as_table_like() {
            if !table.get(key).is_some_and(Item::is_table_like) {
                let mut new = Table::new();
                // `[target.beta]` needs no `[target]` before it.
                new.set_implicit(!wanted.is_empty() && wanted.iter().all(|(_, item)| item.is_table_like()));
                table.insert(key, Item::Table(new));
            }
            let inner =
                table.get_mut(key).and_then(Item::as_table_like_mut).expect("made above if it was not there");
            merge(inner, wanted);
            continue;
        }
        match (table.get_mut(key).and_then(Item::as_value_mut), wanted.as_value()) {
            (Some(there), Some(wanted)) if same(there, wanted) => {}
            (Some(there), Some(wanted)) => {
                let decor = there.decor().clone();
                *there = wanted.clone();
                *there.decor_mut() = decor;
            }
            _ => {
                table.insert(key, wanted.clone());
            }
        }
    }
}

/// Whether two values say the same, however they are written.
fn same(a: &toml_edit::Value, b: &toml_edit::Value) -> bool {
    use toml_edit::Value;
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.value() == b.value(),
        (Value::Integer(a), Value::Integer(b)) => a.value() == b.value(),
        (Value::Float(a), Value::Float(b)) => a.value() == b.value(),
        (Value::Boolean(a), Value::Boolean(b)) => a.value() == b.value(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use zumastor_core::config::{MasterConfig, PeerConfig, SourceConfig, TargetConfig};

    use super::*;

    fn fixture() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        fs::create_dir_all(paths.volumes()).unwrap();
        (dir, paths)
    }

    fn volume() -> VolumeConfig {
        VolumeConfig {
            origin: "/data/v.img".into(),
            snapstore: "/data/v.snaps".into(),
            master: Some(MasterConfig::default()),
            source: None,
            target: [("beta".parse().unwrap(), TargetConfig { period: Some(60), ..Default::default() })]
                .into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (_dir, paths) = fixture();
        let name: VolumeName = "v".parse().unwrap();
        let mut config = volume();
        write_volume(&paths, &name, &config).unwrap();
        assert_eq!(load(&paths).unwrap().volumes, [(name.clone(), config.clone())]);
        let text = fs::read_to_string(paths.volume_toml(&name)).unwrap();
        assert!(text.contains("[target.beta]") && !text.contains("[target]"), "{text}");

        config.master = None;
        config.target.clear();
        config.source =
            Some(SourceConfig { host: "alpha".parse().unwrap(), period: None, name: Some("w".into()) });
        write_volume(&paths, &name, &config).unwrap();
        assert_eq!(load(&paths).unwrap().volumes, [(name.clone(), config)]);
        remove_volume(&paths, &name).unwrap();
        assert!(load(&paths).unwrap().volumes.is_empty());
    }

    #[test]
    fn edits_keep_comments_and_order() {
        let (_dir, paths) = fixture();
        let name: VolumeName = "v".parse().unwrap();
        let text = "\
# The mail server's disk.
snapstore = '/data/v.snaps'   # on the same file system
origin = \"/data/v.img\"

[target.beta]  # the attic
period = 60    # every minute

[master]
# nothing here yet
";
        fs::write(paths.volume_toml(&name), text).unwrap();
        let mut config = volume();
        write_volume(&paths, &name, &config).unwrap();
        assert_eq!(fs::read_to_string(paths.volume_toml(&name)).unwrap(), text);

        config.target.get_mut(&"beta".parse().unwrap()).unwrap().period = Some(3600);
        config
            .target
            .insert("gamma".parse().unwrap(), TargetConfig { uncompressed: true, ..Default::default() });
        write_volume(&paths, &name, &config).unwrap();
        let edited = fs::read_to_string(paths.volume_toml(&name)).unwrap();
        let kept = text.replace("period = 60 ", "period = 3600 ");
        for line in kept.lines() {
            assert!(edited.contains(line), "{line:?} is gone from:\n{edited}");
        }
        assert!(edited.contains("[target.gamma]\nuncompressed = true"), "{edited}");
        assert_eq!(load(&paths).unwrap().volumes, [(name, config)]);
    }

    #[test]
    fn bad_files_are_named_with_the_line() {
        let (_dir, paths) = fixture();
        fs::write(paths.peers_toml(), "[peer.beta]\nkey = 'x'\n\ncolour = 'red'\n").unwrap();
        let failure = load(&paths).unwrap_err();
        assert!(failure.error.contains("peers.toml, line 4: unknown field `colour`"), "{failure}");
        fs::write(paths.peers_toml(), "").unwrap();
        fs::write(paths.node_toml(), "listen = \"nowhere\"\n").unwrap();
        let failure = load(&paths).unwrap_err();
        assert!(failure.error.contains("zumastor.toml, line 1: "), "{failure}");
        fs::write(paths.node_toml(), "").unwrap();
        fs::write(paths.volumes().join("-x.toml"), "").unwrap();
        assert!(load(&paths).unwrap_err().error.contains("cannot be a volume name"));
    }

    #[test]
    fn peers_are_tables() {
        let (_dir, paths) = fixture();
        let mut peers = PeersConfig::default();
        let peer = PeerConfig { key: "ab".into(), addresses: vec!["h:1".into()] };
        peers.peer.insert("beta".parse().unwrap(), peer);
        write_peers(&paths, &peers).unwrap();
        let text = fs::read_to_string(paths.peers_toml()).unwrap();
        assert_eq!(text, "[peer.beta]\nkey = \"ab\"\naddresses = [\"h:1\"]\n");
        assert_eq!(load(&paths).unwrap().peers, peers);
        write_peers(&paths, &PeersConfig::default()).unwrap();
        assert_eq!(load(&paths).unwrap().peers, PeersConfig::default());
    }
}
