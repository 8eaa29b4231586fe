//! `define` and `forget`: what is configured, and what runs because of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::timeout;
use uuid::Uuid;
use zumastor_backends::{Making, is_pool, pool_of};
use zumastor_core::{
    ByteSize, HumanBytes, NodeName, Selection, StoreError, VolumeName,
    config::{MasterConfig, SourceConfig, TargetConfig, VolumeConfig},
};

use super::{
    Daemon, cache,
    circles::{Asked, unknown_note, would_circle},
    config_files::{nested, options},
    destroy,
    holds::blocking,
    initialize,
    promote::master_before,
    puller::{Pull, compare},
    pusher::Push,
    rotations::with_rotations,
    sizes, snapshotter,
    state::Era,
    volume::{Volume, exists, identity, is_device},
    worker::Wish,
};
use crate::{
    api::{DefineMaster, DefineSource, DefineTarget, DefineVolume, Mounts, Outcome, Part},
    exit::Failure,
    exports,
};

impl Daemon {
    /// `define volume`.
    pub async fn define_volume(
        self: &Arc<Self>,
        name: VolumeName,
        define: DefineVolume,
    ) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let chunk = sizes::wanted(&define)?;
        let DefineVolume { origin, snapstore, metadev, cachesize, initialize, yes, mounts, .. } = define;
        if ![Some(&origin), snapstore.as_ref(), metadev.as_ref()]
            .into_iter()
            .flatten()
            .all(|p| p.is_absolute())
        {
            return Err(Failure::usage("the paths of a volume must be absolute"));
        }
        let from = origin.clone();
        let (snapstore, pooled) = store_of(from, snapstore).await?;
        if let Some(there) = self.find_volume(&name) {
            let config = there.config();
            let same = config.origin == origin && config.snapstore == snapstore && config.metadev == metadev;
            if same && !initialize && (chunk.is_none() || chunk.map(ByteSize) == config.chunk) {
                if let Some(bytes) = cachesize.filter(|bytes| config.cache != Some(ByteSize(*bytes))) {
                    let config = VolumeConfig { cache: Some(ByteSize(bytes)), ..config };
                    cache::refuse(&name, &config)?;
                    self.write_volume(&name, &config).await?;
                    there.set_config(config);
                    let takes = format!("volume {name} may take {} of memory", HumanBytes(bytes));
                    if mounts == Mounts::default() {
                        return Ok(Outcome::changed(takes));
                    }
                    return Ok(self.remount_as(&there, mounts).await?.note(takes));
                }
                if mounts != Mounts::default() {
                    return self.remount_as(&there, mounts).await;
                }
                return Ok(Outcome::already(format!("volume {name} is defined so already")));
            }
            if same && initialize && config.initializing {
                initialize::check(&name, origin, yes).await?;
                self.initialize(&there).await?;
                return Ok(Outcome::changed(format!("volume {name} is defined, and initialized now")));
            }
            if same && initialize {
                return Err(Failure::refused(format!(
                    "volume {name} is defined already: only one that is not is initialized"
                ))
                .remedy(format!("`zumastor forget volume {name}` first; its snapshots stay")));
            }
            let is = format!("{} with snapshots in {}", config.origin.display(), config.snapstore.display());
            return Err(Failure::refused(format!("volume {name} is defined already: {is}"))
                .remedy(format!("choose another name, or `zumastor forget volume {name}` first")));
        }
        self.check_paths(&origin, &snapstore).await?;
        self.check_name(&name)?;
        if initialize && !pooled {
            initialize::check(&name, origin.clone(), yes).await?;
        }
        if !yes && !pooled {
            for device in [Some(&snapstore), metadev.as_ref()].into_iter().flatten() {
                initialize::check_device(device.clone()).await?;
            }
        }
        // Before a store is made.
        let owned = name.clone();
        self.configuring(move |files| files.check_volume(&owned)).await?;
        let (cache, chunk_size) = (cachesize.map(ByteSize), chunk.map(ByteSize));
        let mut config =
            VolumeConfig { metadev, cache, chunk: chunk_size, ..VolumeConfig::new(origin, snapstore) };
        self.set_mounts(&name, &mut config, mounts).await?;
        let volume = Arc::new(Volume::new(name.clone(), config.clone(), self.stores.clone()));
        let is = identity(&config).await;
        let fresh = matches!(is, Ok(None));
        if let (true, Ok(Some(id))) = (pooled, is) {
            // A logical volume may have been renamed.
            self.check_store(&config.origin, id)?;
        }
        let there = exists(config.origin.clone()).await;
        let making = Making { initialize, overwrite: yes };
        let (store, id) = volume.found(making).await?;
        if let Err(refused) = sizes::check(chunk, store.geometry()?, &store.info().kind) {
            if fresh {
                // It was made for nothing.
                drop((store, volume));
                destroy::undo(&config.origin, &config.snapstore).await;
            }
            return Err(refused);
        }
        config.store = id;
        let snapshots = store.snapshots().await?;
        let on_devices = is_device(config.snapstore.clone()).await;
        config.initializing = initialize && !on_devices && !pooled;
        if config.initializing {
            initialize::check_new(&config.origin, &snapshots)?;
        }
        volume.set_config(config.clone());
        self.write_volume(&name, &config).await?;
        snapshotter::start(self, &volume);
        self.volumes.write().expect("no panic while locked").insert(name.clone(), volume.clone());
        if config.initializing {
            self.initialize(&volume).await?;
        }

        let mut outcome = Outcome::changed(format!("volume {name} is defined"));
        if !snapshots.is_empty() {
            let numbers: Vec<_> = snapshots.iter().map(|record| record.number().to_string()).collect();
            let count = snapshots.len();
            outcome = outcome.note(format!("{count} snapshots were there already: {}", numbers.join(", ")));
        }
        if !there && pooled {
            outcome = outcome.note(format!(
                "there was no {}: it was made, to receive a volume into; for a master, check the name",
                config.origin.display()
            ));
        } else if !there {
            outcome = outcome.note(format!(
                "there is no {}: that is right for a replica, which gets it with the first snapshot; for a master, \
                 check the path, and that its file system is mounted",
                config.origin.display()
            ));
        }
        if let Some(caution) = store.info().caution {
            outcome = outcome.note(caution);
        }
        if let Some(device) = store.device(None).filter(|_| on_devices && !pooled) {
            outcome = outcome.note(format!(
                "from now on, use {} and not {}, which is a part of it",
                device.display(),
                config.origin.display()
            ));
        }
        let master = format!("`zumastor define master {name}` to take snapshots of it here, or ");
        Ok(outcome.note(format!(
            "next, {}`zumastor define source {name} HOST` to receive it",
            if there { &master } else { "" }
        )))
    }

    /// Makes the origin of a volume zero whose file says that this is being done, and writes down that it was.
    async fn initialize(&self, volume: &Volume) -> Result<(), Failure> {
        let config = VolumeConfig { initializing: false, ..volume.config() };
        initialize::zero(config.origin.clone()).await?;
        self.write_volume(&volume.name, &config).await?;
        volume.set_config(config);
        Ok(())
    }

    /// Refuses a store that another volume has, whatever it is called by now.
    fn check_store(&self, origin: &Path, id: Uuid) -> Result<(), Failure> {
        let there = self.all_volumes().into_iter().find(|other| other.config().store == Some(id));
        there.map_or(Ok(()), |other| {
            let (origin, other) = (origin.display(), &other.name);
            Err(Failure::refused(format!("{origin} belongs to volume {other}, by another name")).remedy(
                format!("`zumastor forget volume {other}` first, and define it again with this name"),
            ))
        })
    }

    /// Refuses paths that cannot be a volume's own.
    pub async fn check_paths(&self, origin: &Path, snapstore: &Path) -> Result<(), Failure> {
        let others = self.all_volumes().into_iter().map(|other| (other.name.clone(), other.config()));
        let (others, origin, snapstore) =
            (others.collect::<Vec<_>>(), origin.to_owned(), snapstore.to_owned());
        let check = move || {
            let pooled = is_pool(&snapstore)?;
            let (real_origin, real_snapstore) = (resolved(&origin), resolved(&snapstore));
            if nested(&real_origin, &real_snapstore) {
                let (origin, snapstore) = (origin.display(), snapstore.display());
                return Err(Failure::refused(format!(
                    "the origin {origin} and the snapshot store {snapstore} must not be one, nor lie in each other"
                ))
                .remedy("put them beside each other: the origin is a file, the snapshot store a directory"));
            }
            for (other, config) in others {
                let (used_origin, used_snapstore) = (resolved(&config.origin), resolved(&config.snapstore));
                let clash = if [&used_origin, &used_snapstore].contains(&&real_origin)
                    || nested(&real_origin, &used_snapstore)
                {
                    &origin
                } else if pooled && real_snapstore == used_snapstore {
                    // A pool may have many volumes.
                    continue;
                } else if nested(&real_snapstore, &used_snapstore) || nested(&real_snapstore, &used_origin) {
                    &snapstore
                } else {
                    continue;
                };
                return Err(Failure::refused(format!("{} belongs to volume {other}", clash.display()))
                    .remedy("give each volume an origin and a snapshot store of its own"));
            }
            Ok(())
        };
        tokio::task::spawn_blocking(check).await.expect("comparing paths does not panic")
    }

    /// `define master`.
    pub async fn define_master(
        self: &Arc<Self>,
        name: &VolumeName,
        define: DefineMaster,
    ) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        let DefineMaster { rotations, group, no_group, no_snapmount, dotsnapshot, samba, export } = define;
        export.as_deref().map_or(Ok(()), check_clients)?;
        if group.is_some() && no_group {
            return Err(Failure::usage("a group and no group cannot both be wanted"));
        }
        let options = |master: MasterConfig| MasterConfig {
            no_snapmount: no_snapmount.unwrap_or(master.no_snapmount),
            dotsnapshot: dotsnapshot.unwrap_or(master.dotsnapshot),
            samba: samba.unwrap_or(master.samba),
            export: export.clone().unwrap_or(master.export),
            ..master
        };
        let mut config = volume.config();
        let (scheduled, before) = (!rotations.is_empty(), config.group.clone());
        config.schedule = with_rotations(&config.schedule, rotations)?;
        if group.is_some() || no_group {
            config.group = group;
        }
        let regrouped = config.group != before;
        let same = config.master.as_ref().is_some_and(|master| options(master.clone()) == *master);
        if same && config == volume.config() {
            return Ok(Outcome::already(format!("this node is the master of volume {name} already")));
        }
        let outcome = self.make_master(&volume, config, options).await?;
        let outcome = match volume.config().master {
            Some(MasterConfig { no_snapmount: true, dotsnapshot, samba, export, .. })
                if dotsnapshot || samba || !export.is_empty() =>
            {
                outcome.note("the snapshots are not mounted, so nothing is exported or shared, and there is no .snapshot")
            }
            _ => outcome,
        };
        let outcome = if scheduled { self.told(outcome, &volume) } else { outcome };
        Ok(if regrouped { outcome.note(self.group_note(&volume, before.as_ref())) } else { outcome })
    }

    /// Makes this node the master with that configuration, in one write.
    async fn make_master(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        mut config: VolumeConfig,
        options: impl Fn(MasterConfig) -> MasterConfig,
    ) -> Result<Outcome, Failure> {
        let name = &volume.name;
        if config.source.is_some() {
            config.master = Some(options(master_before(&config)));
            return self.take_over(volume, config).await;
        }
        if !exists(config.origin.clone()).await {
            let origin = config.origin.display();
            return Err(Failure::failed(format!(
                "{origin} does not exist, so there is nothing to take snapshots of"
            ))
            .remedy("create it, or `zumastor define source` if the volume comes from another node"));
        }
        let epoch = match volume.newest().await? {
            Some(newest) => self.era(newest.new.lineage).await?,
            None => Era::default(),
        };
        if config.master.is_none() && (epoch.received || epoch.latest > epoch.here) {
            // It came from another node, or was defined anew, and in between another node was made the master: two masters must
            // not be taken for one.
            config.master = Some(options(config.master.unwrap_or_default()));
            return self.take_over(volume, config).await;
        }
        let before = config.master.take();
        let now = before.unwrap_or_else(|| MasterConfig { epoch: epoch.here, ..MasterConfig::default() });
        config.master = Some(options(now));
        self.set_schedule(volume, config).await?;
        let outcome = Outcome::changed(format!("this node is the master of volume {name}"));
        Ok(self.mounted(outcome, volume).await)
    }

    /// `define source`.
    pub async fn define_source(
        self: &Arc<Self>,
        name: &VolumeName,
        define: DefineSource,
    ) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        check_options(define.period, None, define.name.as_deref())?;
        check_clients(&define.export)?;
        let mut config = volume.config();
        let (host, address) = self.resolve_host(&define.host)?;
        if let Some(there) = config.source.as_ref().filter(|there| there.host != host) {
            return Err(Failure::refused(format!("volume {name} comes from {}", there.host))
                .remedy(format!("`zumastor forget source {name}` first")));
        }
        if config.target.contains_key(&host) && config.master.is_none() {
            return Err(Failure::refused(format!(
                "volume {name} is sent to {host}, so it cannot come from there"
            ))
            .remedy(format!("`zumastor forget target {name} {host}` first")));
        }
        let remote = define.name.clone().unwrap_or_else(|| name.to_string());
        for other in self.all_volumes().into_iter().filter(|other| other.name != *name) {
            let source = other.config().source;
            let same = source.is_some_and(|source| {
                source.host == host && source.name.as_deref().unwrap_or(other.name.as_str()) == remote
            });
            if same {
                return Err(Failure::refused(format!(
                    "volume {} receives {remote} from {host} already",
                    other.name
                ))
                .remedy("one replica of a volume is enough for a node"));
            }
        }
        let source = SourceConfig {
            host: host.clone(),
            period: define.period,
            name: define.name.filter(|remote| remote != name.as_str()),
            mount_snap: define.mount_snap,
            export: define.export,
            margin: define.margin,
        };
        let mut wanted = VolumeConfig { source: Some(source.clone()), ..config.clone() };
        wanted.target.remove(&host);
        cache::refuse(name, &wanted)?;
        self.remember(&host, address).await?;
        if config.source.as_ref() == Some(&source) {
            return Ok(Outcome::already(format!("volume {name} comes from {host} so already")));
        }
        let new = config.source.is_none();
        let mut notes: Vec<_> = config
            .source
            .as_ref()
            .and_then(|before| no_longer(&source_options(before), &source_options(&source)))
            .into_iter()
            .collect();
        // As a former master, it is not sent to where it comes from any more.
        if config.target.keys().any(|target| *target != host) {
            match self.ask_about_source(name, &source).await {
                Asked::Circle(circle) => return Err(would_circle(name, &circle)),
                Asked::Unknown(why) => notes.push(unknown_note(&why)),
                Asked::Clear => {}
            }
        }
        // Nobody takes a snapshot between what is kept and the change of roles.
        let _snapshotting = volume.snapshotting.lock().await;
        let was_master = config.master.is_some();
        if let Some(master) = config.master.take() {
            if !define.yes {
                return Err(Failure::refused(format!(
                    "this node is the master of volume {name}: as a replica of {host} it will hold what {host} has, and take \
                     no snapshots of its own"
                ))
                .asks("What it holds now is kept as a snapshot. Make it a replica?"));
            }
            self.unmount_head(&volume).await?;
            let kept = match self.keep_mastered(&volume, master.epoch).await {
                Ok(kept) => kept,
                Err(failure) => {
                    self.mount(&volume).await;
                    return Err(failure);
                }
            };
            notes.push(format!("this node is not the master of volume {name} any more"));
            notes.extend(kept.map(|kept| format!("what it held is kept as snapshot {kept}")));
            if config.target.remove(&host).is_some() {
                notes.push(format!("it is sent to {host} no more"));
            }
        }
        config.source = Some(source.clone());
        self.write_volume(name, &config).await?;
        volume.set_config(config);
        volume.set_target(&host, || None).await;
        Pull::start(self, &volume, &source).await;
        if was_master {
            self.unstop(&volume, &Part::Master).await?;
            self.unstop(&volume, &Part::Target(host.clone())).await?;
            // What is here may be another history than the new master's: that is found out now.
            volume.with_puller(|puller| puller.map(|puller| puller.ask(Wish::default())));
        }
        let outcome = Outcome::changed(format!("volume {name} comes from {host}"));
        let outcome = notes.into_iter().fold(outcome, Outcome::note);
        let outcome = self.mounted(outcome, &volume).await;
        let note = format!("there, it must be sent: `zumastor define target {remote} {}`", self.name);
        let outcome = if new { outcome.note(note) } else { outcome };
        Ok(self.compared(&volume, &source).await.into_iter().fold(outcome, Outcome::note))
    }

    /// What is to be said of a source's interval, if the source answers at once; otherwise it is found out later.
    async fn compared(&self, volume: &Volume, source: &SourceConfig) -> Option<String> {
        source.period?;
        let ask = async {
            let link = self.node().link(&source.host).await.ok()?;
            compare(volume, source, &*link).await.ok()?
        };
        timeout(PROMPTLY, ask).await.ok().flatten()
    }

    /// `define target`.
    pub async fn define_target(
        self: &Arc<Self>,
        name: &VolumeName,
        define: DefineTarget,
    ) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        let mut target = define.options;
        check_options(target.period, target.ratelimit, target.name.as_deref())?;
        target.name = target.name.filter(|remote| remote != name.as_str());
        let (host, address) = self.resolve_host(&define.host)?;
        let mut config = volume.config();
        if config.source.as_ref().is_some_and(|source| source.host == host) {
            return Err(Failure::refused(format!(
                "volume {name} comes from {host}, so it cannot be sent there"
            ))
            .remedy(format!("`zumastor forget source {name}` first")));
        }
        if config.target.get(&host) == Some(&target) {
            self.remember(&host, address).await?;
            return Ok(Outcome::already(format!("volume {name} is sent to {host} so already")));
        }
        let remote = target.name.as_deref().unwrap_or(name.as_str());
        let mut outcome = Outcome::changed(format!("volume {name} is sent to {host}"));
        if let (None, Some(source)) = (&config.master, &config.source) {
            match self.ask_about_target(name, source, &host, remote).await {
                Asked::Circle(circle) => return Err(would_circle(name, &circle)),
                Asked::Unknown(why) => outcome = outcome.note(unknown_note(&why)),
                Asked::Clear => {}
            }
        }
        let before = config.target.insert(host.clone(), target.clone());
        let new = before.is_none();
        let lost = before.and_then(|before| no_longer(&target_options(&before), &target_options(&target)));
        outcome =
            lost.into_iter().chain(not_taken(&config, name, &target.rotations)).fold(outcome, Outcome::note);
        cache::refuse(name, &config)?;
        self.remember(&host, address).await?;
        self.write_volume(name, &config).await?;
        volume.set_config(config);
        Push::start(self, &volume, &host, &target).await;
        let note = format!("there, it must be received: `zumastor define source {remote} {}`", self.name);
        Ok(if new { outcome.note(note) } else { outcome })
    }

    /// `forget volume`.
    pub async fn forget_volume(self: &Arc<Self>, name: &VolumeName) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let (config, busy) = self.forget_defined(name).await?;
        let kept = format!(
            "{} and the snapshots in {} are untouched: `zumastor define volume` with both takes them up again",
            config.origin.display(),
            config.snapstore.display()
        );
        let outcome = Outcome::changed(format!("volume {name} is forgotten")).note(kept);
        Ok(busy.into_iter().fold(outcome, Outcome::note))
    }

    /// Stops everything and forgets a volume; its data stay. Also tells what stays mounted. To be called with `editing`
    /// locked.
    pub async fn forget_defined(
        self: &Arc<Self>,
        name: &VolumeName,
    ) -> Result<(VolumeConfig, Vec<String>), Failure> {
        let volume = self.volume(name)?;
        let config = volume.config();
        let owned = name.clone();
        self.configuring(move |files| files.check_volume(&owned)).await?;
        // First of all: it is refused while somebody writes to what is mounted.
        self.unmount_head(&volume).await?;
        // A transfer that is ending moves no more holds.
        volume.set_config(VolumeConfig { source: None, target: [].into(), ..config.clone() });
        volume.send_no_more().await;
        volume.stop().await;
        // The database first: after a crash in between, nothing is held on behalf of the next volume of this name.
        let (state, owned) = (self.state.clone(), name.clone());
        let forgotten = blocking(move || state.forget_volume(&owned)).await.map_err(Failure::from);
        let owned = name.clone();
        let removed = match forgotten {
            Ok(()) => self.configuring(move |files| files.remove_volume(&owned)).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = removed {
            volume.set_config(config);
            self.start_volume(&volume).await;
            self.mount(&volume).await;
            return Err(failure);
        }
        volume.mounting.close();
        let busy = self.unmount(&volume).await;
        volume.close().await;
        self.volumes.write().expect("no panic while locked").remove(name);
        Ok((config, busy.iter().map(|busy| format!("{busy}, so it stays mounted")).collect()))
    }

    /// `forget source`.
    pub async fn forget_source(&self, name: &VolumeName) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        let mut config = volume.config();
        let Some(source) = config.source.take() else {
            return Err(Failure::failed(format!("volume {name} has no source"))
                .remedy(format!("`zumastor status {name}` shows what it has")));
        };
        if let Ok(Some(newest)) = volume.newest().await {
            let state = self.state.clone();
            blocking(move || state.note_received(newest.new.lineage)).await?;
        }
        self.write_volume(name, &config).await?;
        volume.set_config(config);
        volume.set_puller(|| None).await;
        self.unstop(&volume, &Part::Source).await?;
        self.forget_pair(name, &source.host).await?;
        self.mount(&volume).await;
        let outcome = Outcome::changed(format!("volume {name} comes from {} no more", source.host));
        Ok(outcome.note("what was received stays"))
    }

    /// `forget target`.
    pub async fn forget_target(&self, name: &VolumeName, host: &str) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        let mut config = volume.config();
        // A target may be forgotten whose peer is not known any more.
        let host = match host.parse::<NodeName>() {
            Ok(host) if config.target.contains_key(&host) => host,
            _ => self.known_host(host)?,
        };
        if config.target.remove(&host).is_none() {
            let (state, owned, peer) = (self.state.clone(), name.clone(), host.clone());
            let left = blocking(move || state.cursor(&owned, &peer)).await?.is_some();
            if left && config.source.as_ref().is_none_or(|source| source.host != host) {
                // It was the source, until this node was promoted.
                self.forget_pair(name, &host).await?;
                return Ok(Outcome::changed(format!(
                    "what was held of volume {name} for {host} is held no more"
                )));
            }
            return Err(Failure::failed(format!("volume {name} is not sent to {host}"))
                .remedy(format!("`zumastor status {name}` shows where it is sent")));
        }
        self.write_volume(name, &config).await?;
        volume.set_config(config);
        volume.set_target(&host, || None).await;
        self.unstop(&volume, &Part::Target(host.clone())).await?;
        self.forget_pair(name, &host).await?;
        let outcome = Outcome::changed(format!("volume {name} is sent to {host} no more"));
        Ok(outcome.note(format!("what {host} has stays there; its holds here are lifted")))
    }

    /// Forgets what a peer has of a volume, and its holds.
    pub async fn forget_pair(&self, name: &VolumeName, host: &NodeName) -> Result<(), Failure> {
        let (state, name, host) = (self.state.clone(), name.clone(), host.clone());
        Ok(blocking(move || state.forget_pair(&name, &host)).await?)
    }
}

/// The snapshot store of a volume that is being defined, and whether that is a pool that several may have.
async fn store_of(origin: PathBuf, snapstore: Option<PathBuf>) -> Result<(PathBuf, bool), Failure> {
    let look = move || -> Result<_, StoreError> {
        let snapstore = snapstore.map_or_else(|| pool_of(&origin), Ok)?;
        let pooled = is_pool(&snapstore)?;
        Ok((snapstore, pooled))
    };
    Ok(tokio::task::spawn_blocking(look).await.expect("asking LVM does not panic")?)
}

/// Refuses what names no clients of an export.
fn check_clients(clients: &[String]) -> Result<(), Failure> {
    let bad = clients.iter().find_map(|client| client.parse::<exports::Client>().err());
    bad.map_or(Ok(()), |error| Err(Failure::usage(error.to_string())))
}

/// How long a command waits for a peer that has something to say about it.
const PROMPTLY: Duration = Duration::from_secs(2);

fn check_options(period: Option<u64>, ratelimit: Option<u64>, name: Option<&str>) -> Result<(), Failure> {
    options(period, ratelimit, name).map_or(Ok(()), |(_, reason)| Err(Failure::usage(reason)))
}

/// Options that were given before, and are not now: a definition replaces the one before.
fn no_longer(before: &[(&str, Option<String>)], now: &[(&str, Option<String>)]) -> Option<String> {
    let lost = before.iter().zip(now).filter(|((_, before), (_, now))| before.is_some() && now.is_none());
    let lost: Vec<_> = lost
        .map(|((option, value), _)| {
            format!("--{option} {}", value.as_deref().unwrap_or_default()).trim_end().to_owned()
        })
        .collect();
    (!lost.is_empty()).then(|| format!("not given again, so no longer so: {}", lost.join(", ")))
}

fn target_options(target: &TargetConfig) -> [(&'static str, Option<String>); 7] {
    let given = |so: bool| so.then(String::new);
    let rotations = target.rotations.names().join(",");
    [
        ("period", target.period.map(|period| period.to_string())),
        ("name", target.name.clone()),
        ("ratelimit", target.ratelimit.map(|rate| ByteSize(rate).to_string())),
        ("uncompressed", given(target.uncompressed)),
        ("rotations", Some(rotations).filter(|names| !names.is_empty())),
        ("all", given(target.all)),
        ("margin", target.margin.map(|margin| margin.to_string())),
    ]
}

fn source_options(source: &SourceConfig) -> [(&'static str, Option<String>); 5] {
    let export = source.export.join(",");
    [
        ("period", source.period.map(|period| period.to_string())),
        ("name", source.name.clone()),
        ("mount-snap", source.mount_snap.then(String::new)),
        ("export", Some(export).filter(|clients| !clients.is_empty())),
        ("margin", source.margin.map(|margin| margin.to_string())),
    ]
}

/// That rotations are selected of which this node, the master, takes no snapshots.
fn not_taken(config: &VolumeConfig, name: &VolumeName, selected: &Selection) -> Option<String> {
    config.master.as_ref()?;
    let specs = config.schedule.specs();
    let taken = |name: &String| {
        name == Selection::MANUAL || specs.iter().any(|spec| spec.name.as_str() == name.as_str())
    };
    let not: Vec<_> = selected.names().iter().filter(|name| !taken(name)).map(String::as_str).collect();
    (!not.is_empty()).then(|| {
        let not = not.join(", ");
        format!("volume {name} has no rotation {not}: nothing of it is sent until it has (`zumastor status {name}` shows those there are)")
    })
}

/// What a path really names, as far as it exists.
pub fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_by_what_they_name() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        assert_eq!(resolved(&dir.path().join("link/new")), resolved(&real.join("new")));
        assert_ne!(resolved(&real.join("a")), resolved(&real.join("b")));
    }
}
