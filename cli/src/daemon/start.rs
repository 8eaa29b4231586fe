//! From nothing to a running daemon, and back.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::{Arc, OnceLock, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use zumastor_core::{
    ByteSize, Geometry, NodeName, SnapshotStore,
    config::{DEFAULT_PORT, NodeConfig},
};
use zumastor_net::{Node, NodeKey, NodeOptions};

use super::{
    Daemon, PULLS, cache, circles,
    clock::{self, warn_of_zone},
    config_files::ConfigFiles,
    control, holds,
    host::Answers,
    mounting,
    puller::Pull,
    pusher::Push,
    snapshotter, space,
    state::State,
    volume::{Stores, Volume, identity},
};
use crate::{
    api::Part,
    exit::{Failure, chain},
    paths::{Paths, check_socket_path},
};

/// How long requests that are being answered, and then connections, may take to end.
const FAREWELL: Duration = Duration::from_secs(3);
/// Pause before a store that could not be opened is tried again, the first time and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the command line says; it goes before `zumastor.toml`.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where to listen.
    pub listen: Option<SocketAddr>,
    /// What to be called.
    pub name: Option<NodeName>,
}

/// Runs until SIGTERM or SIGINT. SIGHUP reads the configuration again.
pub async fn run(paths: Paths, settings: Settings) -> Result<(), Failure> {
    check_socket_path(&paths.socket())?;
    // Before anything is touched: a bad file changes nothing.
    let (files, config) = ConfigFiles::load(&paths)?;
    make_dirs(&paths)?;
    let socket = paths.socket();
    let _lock = lock(&paths)?;

    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::doing("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::doing("signals"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Failure::doing("signals"))?;
    warn_of_zone();
    let state = State::open(&paths.database()).map_err(Failure::doing(paths.database().display()))?;
    let key =
        NodeKey::load_or_create(&paths.node_key()).map_err(Failure::doing(paths.node_key().display()))?;
    let name = node_name(&settings, &config.node)?;
    let daemon = Arc::new(Daemon {
        name: name.clone(),
        key: key.public(),
        started: Timestamp::now(),
        clock: clock::of_the_daemon(),
        state: Arc::new(state),
        stores: Arc::new(Stores::new(paths.digests())),
        node: OnceLock::new(),
        peers: RwLock::new(config.peers),
        volumes: RwLock::default(),
        turns: Semaphore::new(PULLS),
        making_room: tokio::sync::Mutex::default(),
        editing: tokio::sync::Mutex::default(),
        files: Arc::new(files),
        configured: config.node.clone(),
    });
    let strange = daemon.strange_duties(&config.volumes).await?;
    let (barred, sound): (Vec<_>, Vec<_>) =
        config.volumes.into_iter().partition(|(name, _)| strange.contains_key(name));
    daemon.note_duties(&sound).await?;
    let listen = settings.listen.or(config.node.listen).unwrap_or_else(anywhere);
    let options = NodeOptions { listen, name: name.clone(), key };
    let node = Node::start(options, Arc::new(Answers(daemon.clone())))
        .map_err(Failure::doing(format_args!("listening on UDP {listen}")))?;
    let address = node.local_addr().map_err(Failure::doing("the listening socket"))?;
    daemon.node.set((node, address)).expect("set once");
    // All are known before anybody can ask for one. They are opened side by side, and nothing waits for that: a file
    // system that does not answer concerns only its own volumes.
    let listener = bind(&socket)?;
    let mut left = daemon.left_windows().await?;
    for (name, config) in sound.into_iter().chain(barred) {
        if let Some(caution) = cache::caution(&config) {
            tracing::warn!(volume = %name, "{caution}");
        }
        let volume = Arc::new(Volume::new(name.clone(), config, daemon.stores.clone()));
        if let Some(strange) = strange.get(&name) {
            let text = strange.text();
            tracing::error!(volume = %name, "{text}");
            volume.bar(Some(text));
        }
        volume.leave(left.remove(&name));
        daemon.recall_stopped(&volume).await?;
        daemon.volumes.write().expect("no panic while locked").insert(name, volume);
    }
    daemon.trust_peers()?;
    daemon.sweep_mounts().await;
    daemon.clone().make_up_for_others(left);
    for volume in daemon.all_volumes() {
        if volume.barred().is_some() {
            tokio::spawn(async move { volume.let_go_on().await });
            continue;
        }
        tokio::spawn(open(daemon.clone(), volume.clone()));
        daemon.start_volume(&volume).await;
    }
    tokio::spawn(space::watch(Arc::downgrade(&daemon)));
    tokio::spawn(circles::watch(Arc::downgrade(&daemon)));
    let (stop, stopped) = watch::channel(false);
    let control = tokio::spawn(control::serve(listener, daemon.clone(), stopped));
    tracing::info!("node {name} listening on {address} (key {})", daemon.key.short());

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => daemon.reload_on_signal().await,
        }
    }
    tracing::info!("stopping");
    let _ = fs::remove_file(&socket);
    stop.send_replace(true);
    for volume in daemon.all_volumes() {
        volume.stop().await;
        volume.mounting.close();
        for busy in daemon.unmount(&volume).await {
            tracing::warn!(volume = %volume.name, "{busy}, so it stays mounted");
        }
    }
    // Whoever follows a replication learns of its end before the program ends.
    let _ = timeout(FAREWELL, control).await;
    let _ = timeout(FAREWELL, daemon.node().close()).await;
    for volume in daemon.all_volumes() {
        volume.close().await;
    }
    let state = daemon.state.clone();
    if let Err(error) = holds::blocking(move || state.write_confirmed()).await {
        tracing::warn!(error = %chain(&error), "when peers were heard of last could not be written");
    }
    Ok(())
}

impl Daemon {
    /// Whether a volume is still defined.
    fn has(&self, volume: &Arc<Volume>) -> bool {
        self.find_volume(&volume.name).is_some_and(|there| Arc::ptr_eq(&there, volume))
    }

    /// Notes the identity of a store that a person named in a file, so that from now on no other is taken for it.
    async fn adopt(&self, volume: &Arc<Volume>) -> Result<(), Failure> {
        let _editing = self.editing.lock().await;
        let mut config = volume.config();
        if config.store.is_some() || !self.has(volume) {
            return Ok(());
        }
        config.store = identity(&config).await?;
        self.write_volume(&volume.name, &config).await?;
        volume.set_config(config);
        Ok(())
    }

    /// Starts what takes snapshots of a volume and replicates it.
    pub async fn start_volume(self: &Arc<Self>, volume: &Arc<Volume>) {
        let config = volume.config();
        snapshotter::start(self, volume);
        mounting::start(self, volume);
        if let Some(source) = &config.source {
            Pull::start(self, volume, source).await;
        }
        for (host, target) in &config.target {
            Push::start(self, volume, host, target).await;
        }
    }
}

/// Opens a volume's store, again and again until that works. Notes which store it is if the file does not say, and drops
/// what its rotations no longer keep.
pub async fn open(daemon: Arc<Daemon>, volume: Arc<Volume>) {
    let mut pause = FIRST_PAUSE;
    // A program may be waiting for this.
    make_up(&daemon, &volume).await;
    loop {
        match volume.store().await {
            Ok(store) => {
                warn_of_chunks(&volume, &*store);
                break;
            }
            Err(error) if pause == FIRST_PAUSE => {
                tracing::warn!(volume = %volume.name, error = %chain(&error), "the volume cannot be opened");
                volume.let_go_on().await;
            }
            Err(_) => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        if !daemon.has(&volume) {
            return;
        }
    }
    make_up(&daemon, &volume).await;
    if let Err(failure) = daemon.adopt(&volume).await {
        tracing::warn!(volume = %volume.name, error = %failure, "the store's identity could not be noted");
    }
    if !volume.is_stopped(&Part::Volume) {
        daemon.retain_to_the_end(&volume).await;
    } else {
        daemon.mount(&volume).await;
    }
}

/// Says so if the file asks for chunks that the store does not have, as it may since it was edited while no daemon ran.
fn warn_of_chunks(volume: &Volume, store: &dyn SnapshotStore) {
    let (Some(ByteSize(wanted)), Ok(Geometry { chunk: has, .. })) = (volume.config().chunk, store.geometry())
    else {
        return;
    };
    if wanted != has {
        let kind = store.info().kind;
        tracing::warn!(
            volume = %volume.name,
            "chunk = \"{}\" has no effect: the store ({kind}) was made with chunks of {}, and cannot have others; take the line out",
            ByteSize(wanted),
            ByteSize(has)
        );
    }
}

async fn make_up(daemon: &Daemon, volume: &Volume) {
    let _snapshotting = volume.snapshotting.lock().await;
    if let Err(failure) = daemon.make_up(volume).await {
        tracing::warn!(volume = %volume.name, error = %failure, "a snapshot that was being taken is not settled yet");
    }
}

fn make_dirs(paths: &Paths) -> Result<(), Failure> {
    let make = |path: &Path, mode| {
        DirBuilder::new().recursive(true).mode(mode).create(path).map_err(Failure::doing(path.display()))
    };
    make(paths.config(), 0o755)?;
    make(&paths.volumes(), 0o755)?;
    make(paths.state(), 0o700)?;
    // Also where it was made otherwise.
    fs::set_permissions(paths.state(), fs::Permissions::from_mode(0o700))
        .map_err(Failure::doing(paths.state().display()))?;
    make(paths.runtime(), 0o755)
}

/// Makes this the only daemon with this state. The lock goes with the process, however it ends.
fn lock(paths: &Paths) -> Result<File, Failure> {
    let path = paths.lock();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Failure::doing(path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let state = paths.state().display();
            Err(Failure::failed(format!("another daemon is running with the state in {state}"))
                .remedy("stop it first, or set ZUMASTOR_ROOT to another directory"))
        }
        Err(error) => Err(Failure::doing(path.display())(error)),
    }
}

/// The control socket, for its owner only from the first moment on. One that a dead daemon left is replaced.
fn bind(path: &Path) -> Result<UnixListener, Failure> {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new).map_err(Failure::doing(new.display()))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(Failure::doing(new.display()))?;
    fs::rename(&new, path).map_err(Failure::doing(path.display()))?;
    Ok(listener)
}

fn node_name(settings: &Settings, config: &NodeConfig) -> Result<NodeName, Failure> {
    if let Some(name) = settings.name.clone().or_else(|| config.name.clone()) {
        return Ok(name);
    }
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    host.parse().map_err(|error| {
        Failure::failed(format!("this host's name will not do for the node: {error}")).remedy(
            "give the node a name: `zumastor daemon --name NODE`, or `name = \"NODE\"` in zumastor.toml",
        )
    })
}

/// All addresses of both families, or of IPv4 where there is no IPv6.
fn anywhere() -> SocketAddr {
    let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    if six {
        (Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into()
    }
}
