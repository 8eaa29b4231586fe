//! `reload`: applies what people wrote into the files while the daemon ran. All of it or, if any file is bad, nothing.

use std::{collections::BTreeMap, sync::Arc};

use zumastor_core::{
    ByteSize, HumanBytes, NodeName, VolumeName,
    config::{TargetConfig, VolumeConfig},
};

use super::{
    Daemon, config_files::Configuration, hooks::untrusted, puller::Pull, pusher::Push, start::open,
    volume::Volume,
};
use crate::{
    api::{Outcome, Part},
    exit::Failure,
};

impl Daemon {
    /// `reload`.
    pub async fn reload(self: &Arc<Self>) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || files.read_again());
        let (fresh, config) = read.await.expect("reading files does not panic")?;
        let new: BTreeMap<_, _> = config.volumes.iter().cloned().collect();
        self.check_reload(&config, &new)?;
        self.check_chunks(&new).await?;
        self.check_duties(&config.volumes).await?;
        self.files.replace(fresh);
        self.note_duties(&config.volumes).await?;
        let mut notes = Vec::new();
        if config.peers != self.peers() {
            self.set_trusted(config.peers)?;
            notes.push("the peers are those of peers.toml now".to_owned());
        }
        for volume in self.all_volumes() {
            let name = &volume.name;
            match new.get(name) {
                None => {
                    volume.send_no_more().await;
                    volume.stop().await;
                    volume.mounting.close();
                    let busy = self.unmount(&volume).await;
                    notes.extend(busy.iter().map(|busy| format!("{busy}, so it stays mounted")));
                    volume.close().await;
                    self.volumes.write().expect("no panic while locked").remove(name);
                    notes.push(format!("volume {name} is not defined any more; all of its data stays"));
                }
                Some(config) if volume.barred().is_some() => {
                    volume.set_config(config.clone());
                    volume.bar(None);
                    tokio::spawn(open(self.clone(), volume.clone()));
                    self.start_volume(&volume).await;
                    notes.push(format!("volume {name} is what it was before, and goes on"));
                }
                Some(config) if *config != volume.config() => {
                    self.reconfigure(&volume, config).await?;
                    notes.push(format!("volume {name} is as its file says now"));
                    if let Some(untrusted) = untrusted(&config.hooks).await {
                        notes.push(format!("volume {name}: {untrusted}"));
                    }
                }
                Some(_) => {}
            }
        }
        for (name, config) in new {
            if self.find_volume(&name).is_none() {
                let volume = Arc::new(Volume::new(name.clone(), config, self.stores.clone()));
                self.recall_stopped(&volume).await?;
                self.volumes.write().expect("no panic while locked").insert(name.clone(), volume.clone());
                tokio::spawn(open(self.clone(), volume.clone()));
                self.start_volume(&volume).await;
                notes.push(format!("volume {name} is new"));
            }
        }
        if !notes.is_empty() {
            notes.extend(self.all_volumes().iter().flat_map(|volume| self.strangers(volume)));
        }
        if notes.is_empty() {
            return Ok(Outcome::already("the files say nothing new"));
        }
        let outcome = Outcome::changed("the configuration was read again");
        Ok(notes.into_iter().fold(outcome, Outcome::note))
    }

    /// As [`reload`](Self::reload), for who cannot be answered.
    pub async fn reload_on_signal(self: &Arc<Self>) {
        match self.reload().await {
            Ok(outcome) => {
                tracing::info!("{}", [vec![outcome.done], outcome.notes].concat().join("; "));
            }
            Err(failure) => {
                let remedy = failure.remedy.unwrap_or_default();
                tracing::error!(remedy, "the configuration is not read again: {}", failure.error);
            }
        }
    }

    /// That a volume's file names nodes that are no peers: nothing comes from them, or is sent to them.
    fn strangers(&self, volume: &Volume) -> Vec<String> {
        let (peers, config, name) = (self.peers(), volume.config(), &volume.name);
        let unknown = |host: &NodeName| !peers.peer.contains_key(host);
        let source = config.source.map(|source| source.host).filter(unknown);
        let source = source.map(|host| (host.clone(), format!("is to come from {host}")));
        let targets = config
            .target
            .into_keys()
            .filter(unknown)
            .map(|host| (host.clone(), format!("is to be sent to {host}")));
        let told = |(host, what): (NodeName, String)| {
            format!(
                "volume {name} {what}, which is no peer of this node: that waits for `zumastor peer add {host} TICKET`"
            )
        };
        source.into_iter().chain(targets).map(told).collect()
    }

    /// Refuses what cannot change while the daemon runs.
    fn check_reload(
        &self,
        config: &Configuration,
        new: &BTreeMap<VolumeName, VolumeConfig>,
    ) -> Result<(), Failure> {
        if config.node != self.configured {
            return Err(Failure::refused("zumastor.toml has changed, and that is read only at the start")
                .remedy("restart the daemon; nothing was applied"));
        }
        for volume in self.all_volumes() {
            let (name, before) = (&volume.name, volume.config());
            let Some(after) = new.get(name) else { continue };
            let same = before.origin == after.origin
                && before.snapstore == after.snapstore
                && before.metadev == after.metadev
                && (after.store.is_none() || before.store == after.store);
            if !same {
                return Err(Failure::refused(format!(
                    "volumes/{name}.toml names another origin or another snapshot store than the volume has"
                ))
                .remedy("restart the daemon if that is meant; nothing was applied"));
            }
        }
        Ok(())
    }

    /// Refuses chunks of another size than a volume's store has.
    async fn check_chunks(&self, new: &BTreeMap<VolumeName, VolumeConfig>) -> Result<(), Failure> {
        for volume in self.all_volumes() {
            let Some(after) = new.get(&volume.name).filter(|after| after.chunk != volume.config().chunk)
            else {
                continue;
            };
            // One that cannot be opened says so itself.
            let (Some(ByteSize(wanted)), Ok(store)) = (after.chunk, volume.store().await) else { continue };
            let has = store.geometry()?.chunk;
            if wanted != has {
                let (name, kind) = (&volume.name, store.info().kind);
                return Err(self.files.refused_key(
                    name,
                    "chunk",
                    &format!(
                        "the store ({kind}) of volume {name} was made with chunks of {}, and cannot have others",
                        HumanBytes(has)
                    ),
                )
                .remedy(format!("take the line out, or write \"{}\"; nothing was applied", ByteSize(has))));
            }
        }
        Ok(())
    }

    /// Makes a volume as its file says, touching only what that changes.
    async fn reconfigure(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        config: &VolumeConfig,
    ) -> Result<(), Failure> {
        let before = volume.config();
        if before.schedule != config.schedule || before.master != config.master {
            self.settle(volume).await?;
        }
        volume.set_config(config.clone());
        if before.source != config.source {
            let gone = before
                .source
                .filter(|before| config.source.as_ref().is_none_or(|source| source.host != before.host));
            match &config.source {
                Some(source) => Pull::start(self, volume, source).await,
                None => volume.set_puller(|| None).await,
            }
            // Who is a target from now on keeps what both have.
            if let Some(gone) = gone.filter(|gone| !config.target.contains_key(&gone.host)) {
                self.forget_pair(&volume.name, &gone.host).await?;
            }
        }
        if config.source.is_none() {
            self.unstop(volume, &Part::Source).await?;
        }
        self.retarget(volume, &before.target, config).await?;
        self.mount(volume).await;
        if config.store.is_none() {
            // Its file forgot which store it is; that is noted again.
            tokio::spawn(open(self.clone(), volume.clone()));
        }
        Ok(())
    }

    async fn retarget(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        before: &BTreeMap<NodeName, TargetConfig>,
        config: &VolumeConfig,
    ) -> Result<(), Failure> {
        let after = &config.target;
        for host in before.keys().filter(|host| !after.contains_key(host)) {
            volume.set_target(host, || None).await;
            if config.source.as_ref().is_none_or(|source| source.host != *host) {
                self.forget_pair(&volume.name, host).await?;
            }
            self.unstop(volume, &Part::Target(host.clone())).await?;
        }
        for (host, target) in after {
            if before.get(host) != Some(target) {
                Push::start(self, volume, host, target).await;
            }
        }
        Ok(())
    }
}
