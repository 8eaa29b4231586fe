//! Files that people and the daemon write.

use zumastor_core::config::{MasterConfig, PeerConfig, SourceConfig, TargetConfig};

use super::*;

fn load(paths: &Paths) -> Configuration {
    ConfigFiles::load(paths).unwrap().1
}

fn load_error(paths: &Paths) -> String {
    ConfigFiles::load(paths).unwrap_err().error
}

fn files(paths: &Paths) -> ConfigFiles {
    ConfigFiles::load(paths).unwrap().0
}

fn fixture() -> (tempfile::TempDir, Paths) {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::below(dir.path());
    fs::create_dir_all(paths.volumes()).unwrap();
    (dir, paths)
}

fn volume() -> VolumeConfig {
    VolumeConfig {
        master: Some(MasterConfig::default()),
        target: [("beta".parse().unwrap(), TargetConfig { period: Some(60), ..Default::default() })].into(),
        ..VolumeConfig::new("/data/v.img", "/data/v.snaps")
    }
}

#[test]
fn what_is_written_is_read_back() {
    let (_dir, paths) = fixture();
    let files = files(&paths);
    let name: VolumeName = "v".parse().unwrap();
    let mut config = volume();
    files.write_volume(&name, &config).unwrap();
    assert_eq!(load(&paths).volumes, [(name.clone(), config.clone())]);
    let text = fs::read_to_string(paths.volume_toml(&name)).unwrap();
    assert!(text.contains("[target.beta]") && !text.contains("[target]"), "{text}");

    config.master = None;
    config.target.clear();
    let (host, name_there) = ("alpha".parse().unwrap(), Some("w".into()));
    config.source = Some(SourceConfig {
        host,
        period: None,
        name: name_there,
        margin: None,
        mount_snap: true,
        export: Vec::new(),
    });
    files.write_volume(&name, &config).unwrap();
    assert_eq!(load(&paths).volumes, [(name.clone(), config)]);
    files.remove_volume(&name).unwrap();
    assert!(load(&paths).volumes.is_empty());
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
    let files = files(&paths);
    let mut config = volume();
    files.write_volume(&name, &config).unwrap();
    assert_eq!(fs::read_to_string(paths.volume_toml(&name)).unwrap(), text);

    config.target.get_mut(&"beta".parse().unwrap()).unwrap().period = Some(3600);
    config.target.insert("gamma".parse().unwrap(), TargetConfig { uncompressed: true, ..Default::default() });
    files.write_volume(&name, &config).unwrap();
    let edited = fs::read_to_string(paths.volume_toml(&name)).unwrap();
    let kept = text.replace("period = 60 ", "period = 3600 ");
    for line in kept.lines() {
        assert!(edited.contains(line), "{line:?} is gone from:\n{edited}");
    }
    assert!(edited.contains("[target.gamma]\nuncompressed = true"), "{edited}");
    assert_eq!(load(&paths).volumes, [(name, config)]);
}

#[test]
fn bad_files_are_named_with_the_line() {
    let (_dir, paths) = fixture();
    fs::write(paths.peers_toml(), "[peer.beta]\nkey = 'x'\n\ncolour = 'red'\n").unwrap();
    let failure = load_error(&paths);
    assert!(failure.contains("peers.toml, line 4: there is no \"colour\" in [peer.beta]"), "{failure}");
    fs::write(paths.peers_toml(), "").unwrap();
    fs::write(paths.node_toml(), "listen = \"nowhere\"\n").unwrap();
    let failure = load_error(&paths);
    assert!(failure.contains("zumastor.toml, line 1: "), "{failure}");
    fs::write(paths.node_toml(), "").unwrap();
    fs::write(paths.volumes().join("-x.toml"), "").unwrap();
    assert!(load_error(&paths).contains("cannot be a volume name"));
}

#[test]
fn peers_are_tables() {
    let (_dir, paths) = fixture();
    let files = files(&paths);
    let mut peers = PeersConfig::default();
    let peer = PeerConfig { key: "ab".repeat(32), addresses: vec!["h:1".into()] };
    peers.peer.insert("beta".parse().unwrap(), peer);
    files.write_peers(&peers).unwrap();
    let text = fs::read_to_string(paths.peers_toml()).unwrap();
    assert_eq!(text, format!("[peer.beta]\nkey = \"{}\"\naddresses = [\"h:1\"]\n", "ab".repeat(32)));
    assert_eq!(load(&paths).peers, peers);
    files.write_peers(&PeersConfig::default()).unwrap();
    assert_eq!(load(&paths).peers, PeersConfig::default());
}

#[test]
fn a_file_that_was_edited_meanwhile_is_left_alone() {
    let (_dir, paths) = fixture();
    let files = files(&paths);
    let name: VolumeName = "v".parse().unwrap();
    let path = paths.volume_toml(&name);
    files.write_volume(&name, &volume()).unwrap();
    files.write_volume(&name, &volume()).unwrap();
    let edited = format!("# mine\n{}", fs::read_to_string(&path).unwrap());
    fs::write(&path, &edited).unwrap();
    for refused in
        [files.write_volume(&name, &volume()), files.remove_volume(&name), files.check_volume(&name)]
    {
        let failure = refused.unwrap_err();
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.error.contains("was edited since the daemon read it"), "{failure}");
        assert!(failure.remedy.is_some_and(|remedy| remedy.contains("`zumastor reload`")));
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), edited);
    // So is one that was not there before, or is gone.
    let other: VolumeName = "w".parse().unwrap();
    fs::write(paths.volume_toml(&other), "").unwrap();
    assert!(files.write_volume(&other, &volume()).is_err());
    fs::write(paths.peers_toml(), "# nobody\n").unwrap();
    assert!(files.write_peers(&PeersConfig::default()).is_err());
    fs::remove_file(&path).unwrap();
    assert!(files.write_volume(&name, &volume()).is_err());
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_meant_is_refused_by_line_and_key() {
    let (_dir, paths) = fixture();
    let place = "origin = '/v'\nsnapstore = '/s'\n";
    for (text, complaint) in [
        ("origin = 'v'\nsnapstore = '/s'\n".to_owned(), "line 1: origin: the path must be absolute"),
        ("origin = '/v'\nsnapstore = 's'\n".to_owned(), "line 2: snapstore: the path must be absolute"),
        (
            "origin = '/v'\nsnapstore = '/v'\n".to_owned(),
            "line 2: snapstore: the snapshot store and the origin",
        ),
        (format!("{place}[master]\n[source]\nhost = 'a'\n"), "line 4: source: a volume has [master] or"),
        (format!("{place}[source]\nhost = 'a'\nperiod = 0\n"), "line 5: source.period: a period is at least"),
        (format!("{place}[target.b]\n\nperiod = 0\n"), "line 5: target.b.period: a period is at least"),
        (
            format!("{place}[target.b]\nratelimit = 0\n"),
            "line 4: target.b.ratelimit: a rate limit is at least",
        ),
        (format!("{place}[target.b]\nratelimit = '0K'\n"), "line 4: target.b.ratelimit: a rate limit is"),
        (format!("{place}[target.b]\nname = 'x/y'\n"), "line 4: target.b.name: "),
        (format!("{place}[source]\nhost = 'a'\n[target.a]\n"), "line 5: target.a: the volume comes from a"),
        (format!("{place}store = 'x'\n"), "line 3: "),
    ] {
        fs::write(paths.volumes().join("v.toml"), &text).unwrap();
        let error = load_error(&paths);
        assert!(error.contains(&format!("volumes/v.toml, {complaint}")), "{text}{error}");
    }
    fs::write(paths.volumes().join("v.toml"), place).unwrap();
    for (text, complaint) in [
        ("origin = '/v'\nsnapstore = '/t'\n", "line 1: origin: /v belongs to volume v"),
        ("snapstore = '/s'\norigin = '/w'\n", "line 1: snapstore: /s belongs to volume v"),
    ] {
        fs::write(paths.volumes().join("w.toml"), text).unwrap();
        let error = load_error(&paths);
        assert!(error.contains(&format!("volumes/w.toml, {complaint}")), "{text}{error}");
    }
    fs::remove_file(paths.volumes().join("w.toml")).unwrap();
    let key = "ab".repeat(32);
    fs::write(paths.peers_toml(), "[peer.b]\nkey = 'xy'\n").unwrap();
    assert!(load_error(&paths).contains("peers.toml, line 2: peer.b.key: a key is 64 hexadecimal digits"));
    let text = format!("[peer.b]\nkey = '{key}'\n[peer.c]\nkey = '{}'\n", key.to_uppercase());
    fs::write(paths.peers_toml(), text).unwrap();
    assert!(load_error(&paths).contains("peers.toml, line 4: peer.c.key: this is the key of b"));
}
