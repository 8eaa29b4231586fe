//! Reading and editing the configuration. People edit the same files, so an edit changes what it is about and leaves
//! comments, order and everything else as they are; and a file that was edited by hand since it was read is not touched.

mod check;
mod words;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde::{Serialize, de::DeserializeOwned};
use toml_edit::{DocumentMut, Item, Table, TableLike};
use zumastor_core::{
    VolumeName,
    config::{NodeConfig, PeersConfig, VolumeConfig},
    files::{sync_dir, write_atomically},
    steps,
};

pub use check::{nested, options};

use crate::{
    exit::{Exit, Failure},
    paths::Paths,
};

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

/// The files, and what they said when they were read or written last.
#[derive(Debug)]
pub struct ConfigFiles {
    paths: Paths,
    /// A file that is not here did not exist.
    known: Mutex<HashMap<PathBuf, String>>,
}

impl ConfigFiles {
    /// Reads all files. The first that is bad is named, with the line and the reason.
    pub fn load(paths: &Paths) -> Result<(Self, Configuration), Failure> {
        let files = Self { paths: paths.clone(), known: Mutex::default() };
        let node = files.read(&paths.node_toml(), |_: &NodeConfig| None)?.unwrap_or_default();
        let peers = files.read(&paths.peers_toml(), check::peers)?.unwrap_or_default();
        let mut volumes: Vec<(VolumeName, VolumeConfig)> = Vec::new();
        for (name, path) in files.volume_files()? {
            if let Some(config) = files.read(&path, |config| check::volume(config, &volumes))? {
                volumes.push((name, config));
            }
        }
        Ok((files, Configuration { node, peers, volumes }))
    }

    /// The directories of this node.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Reads all files once more, and leaves it to the caller to [replace](Self::replace) what was known of them.
    pub fn read_again(&self) -> Result<(Self, Configuration), Failure> {
        Self::load(&self.paths)
    }

    /// What the files say by now has been applied.
    pub fn replace(&self, fresh: Self) {
        let known = fresh.known.into_inner().expect("no panic while locked");
        *self.known.lock().expect("no panic while locked") = known;
    }

    /// Writes `volumes/NAME.toml`.
    pub fn write_volume(&self, name: &VolumeName, config: &VolumeConfig) -> Result<(), Failure> {
        self.edit(&self.paths.volume_toml(name), config)
    }

    /// Removes `volumes/NAME.toml`.
    pub fn remove_volume(&self, name: &VolumeName) -> Result<(), Failure> {
        let path = self.paths.volume_toml(name);
        let mut known = self.known.lock().expect("no panic while locked");
        if unchanged(&known, &path)?.is_some() {
            steps::pass("configuration: before removal");
            fs::remove_file(&path).map_err(Failure::doing(path.display()))?;
            steps::pass("configuration: after removal");
            sync_dir(&self.paths.volumes()).map_err(Failure::doing(path.display()))?;
        }
        known.remove(&path);
        Ok(())
    }

    /// Refuses if `volumes/NAME.toml` could not be written now because somebody edited it.
    pub fn check_volume(&self, name: &VolumeName) -> Result<(), Failure> {
        let known = self.known.lock().expect("no panic while locked");
        unchanged(&known, &self.paths.volume_toml(name)).map(drop)
    }

    /// What is wrong with a key of `volumes/NAME.toml`, with its line.
    pub fn refused_key(&self, name: &VolumeName, key: &str, reason: &str) -> Failure {
        let path = self.paths.volume_toml(name);
        let line = read_text(&path).ok().flatten().and_then(|text| check::line_of(&text, &[key.to_owned()]));
        Failure { exit: Exit::Refused, ..bad_file(&path, line, &format!("{key}: {reason}")) }
    }

    /// Writes `peers.toml`.
    pub fn write_peers(&self, config: &PeersConfig) -> Result<(), Failure> {
        self.edit(&self.paths.peers_toml(), config)
    }

    /// The files of the volumes, by name.
    fn volume_files(&self) -> Result<Vec<(VolumeName, PathBuf)>, Failure> {
        let dir = self.paths.volumes();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>().map_err(Failure::doing(dir.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Failure::doing(dir.display())(error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().and_then(|name| name.strip_suffix(".toml")) else { continue };
            if name.starts_with('.') {
                // What an editor, or a write that was cut short, left.
                continue;
            }
            let name = name.parse().map_err(Failure::doing(entry.path().display()))?;
            files.push((name, entry.path()));
        }
        files.sort();
        Ok(files)
    }

    fn read<T: DeserializeOwned>(
        &self,
        path: &Path,
        check: impl FnOnce(&T) -> Option<check::Problem>,
    ) -> Result<Option<T>, Failure> {
        let Some(text) = read_text(path)? else { return Ok(None) };
        let config: T =
            toml::from_str(&text).map_err(|error| unreadable(path, &text, error.span(), error.message()))?;
        if let Some(check::Problem { keys, reason }) = check(&config) {
            return Err(bad_file(
                path,
                check::line_of(&text, &keys),
                &format!("{}: {reason}", keys.join(".")),
            ));
        }
        self.known.lock().expect("no panic while locked").insert(path.to_owned(), text);
        Ok(Some(config))
    }

    /// Makes the file say `config`, changing no more of it than needed.
    fn edit<T: Serialize>(&self, path: &Path, config: &T) -> Result<(), Failure> {
        let mut known = self.known.lock().expect("no panic while locked");
        let text = unchanged(&known, path)?.unwrap_or_default();
        let mut document: DocumentMut = text
            .parse()
            .map_err(|error: toml_edit::TomlError| unreadable(path, &text, error.span(), error.message()))?;
        let wanted = toml_edit::ser::to_document(config).map_err(Failure::doing(path.display()))?;
        merge(document.as_table_mut(), wanted.as_table());
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(Failure::doing(dir.display()))?;
        }
        let text = document.to_string();
        write_atomically(path, text.as_bytes(), 0o644).map_err(Failure::doing(path.display()))?;
        known.insert(path.to_owned(), text);
        Ok(())
    }
}

/// The file's content, if it is what it was when it was read or written last.
fn unchanged(known: &HashMap<PathBuf, String>, path: &Path) -> Result<Option<String>, Failure> {
    let text = read_text(path)?;
    if text.as_ref() == known.get(path) {
        return Ok(text);
    }
    Err(Failure::refused(format!("{} was edited since the daemon read it", path.display()))
        .remedy("`zumastor reload` applies the edit; then repeat this command"))
}

fn line_at(text: &str, span: Option<Range<usize>>) -> Option<usize> {
    span.map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count())
}

fn read_text(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::doing(path.display())(error)),
    }
}

/// A file of which `message` says what keeps it from being read, and `at` where.
fn unreadable(path: &Path, text: &str, at: Option<Range<usize>>, message: &str) -> Failure {
    bad_file(path, line_at(text, at.clone()), &words::explained(text, at, message))
}

fn bad_file(path: &Path, line: Option<usize>, reason: &str) -> Failure {
    let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
    Failure::failed(format!("{}{line}: {reason}", path.display())).remedy("correct the file and try again")
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
