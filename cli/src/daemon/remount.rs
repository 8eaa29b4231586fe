//! `remount`: where a volume is mounted, and how.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use zumastor_core::{VolumeName, config::VolumeConfig};

use super::{Daemon, config_files::nested, volume::Volume};
use crate::{
    api::{Mounts, Outcome},
    exit::Failure,
    mounts::{self, Options},
};

impl Daemon {
    /// `remount`.
    pub async fn remount(self: &Arc<Self>, name: &VolumeName, mounts: Mounts) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        self.remount_as(&volume, mounts).await
    }

    /// The same, to be called with `editing` held.
    pub async fn remount_as(&self, volume: &Arc<Volume>, mounts: Mounts) -> Result<Outcome, Failure> {
        let name = &volume.name;
        if !mounts::can_mount() {
            return Err(Failure::refused(
                "this daemon may not mount anything: that takes root (CAP_SYS_ADMIN)",
            ));
        }
        let mut config = volume.config();
        self.set_mounts(name, &mut config, mounts).await?;
        // No snapshot is taken meanwhile: its file system would not hold still.
        let _snapshotting = volume.snapshotting.lock().await;
        self.unmount_head(volume).await?;
        let busy = self.unmount(volume).await;
        if config != volume.config() {
            let written = self.write_volume(name, &config).await;
            if let Err(failure) = written {
                self.mount(volume).await;
                return Err(failure);
            }
            volume.set_config(config);
        }
        let outcome = Outcome::changed(format!("volume {name} is mounted anew"));
        let outcome =
            busy.iter().fold(outcome, |outcome, busy| outcome.note(format!("{busy}, so it stays mounted")));
        let outcome = self.mounted(outcome, volume).await;
        let notes = volume.mounting.view().status().into_iter().flat_map(|status| status.notes);
        Ok(notes.fold(outcome, Outcome::note))
    }

    /// Enters into a volume's configuration where it is mounted, and refuses what cannot be.
    pub async fn set_mounts(
        &self,
        name: &VolumeName,
        config: &mut VolumeConfig,
        mounts: Mounts,
    ) -> Result<(), Failure> {
        if let Some(options) = mounts.mountopts {
            Options::parse(&options).map_err(|error| Failure::usage(error.to_string()))?;
            config.mountopts = Some(options).filter(|options| !options.is_empty());
        }
        let places = [(mounts.mountpoint, &mut config.mountpoint), (mounts.snappath, &mut config.snappath)];
        let mut fresh = Vec::new();
        for (given, place) in places {
            let Some(path) = given else { continue };
            if path.as_os_str().is_empty() {
                *place = None;
                continue;
            }
            if !path.is_absolute() {
                return Err(Failure::usage(format!("{} is no absolute path", path.display())));
            }
            let path = directory(path).await?;
            if place.as_ref() != Some(&path) {
                fresh.push(path.clone());
            }
            *place = Some(path);
        }
        if let (Some(mountpoint), Some(snappath)) = (&config.mountpoint, &config.snappath)
            && nested(mountpoint, snappath)
        {
            return Err(Failure::refused("the volume and its snapshots are not mounted in each other")
                .remedy("give them directories beside each other"));
        }
        for path in fresh {
            self.check_place(name, config, &path).await?;
        }
        Ok(())
    }

    /// Refuses a directory that another volume has, or on which something is mounted.
    async fn check_place(
        &self,
        name: &VolumeName,
        config: &VolumeConfig,
        path: &Path,
    ) -> Result<(), Failure> {
        for other in self.all_volumes().into_iter().filter(|other| other.name != *name) {
            let theirs = other.config();
            let places = [theirs.mountpoint, theirs.snappath, Some(theirs.snapstore)];
            if places.into_iter().flatten().any(|place| nested(&place, path)) {
                return Err(Failure::refused(format!("{} belongs to volume {}", path.display(), other.name))
                    .remedy("give each volume directories of its own"));
            }
        }
        let owned = path.to_owned();
        let mounted = tokio::task::spawn_blocking(move || mounts::mounted_at(&owned)).await;
        let mounted = mounted
            .expect("reading a table does not panic")
            .map_err(Failure::doing("looking at what is mounted"))?;
        if let Some(source) = mounted {
            return Err(Failure::refused(format!(
                "{} is mounted on {} already",
                source.display(),
                path.display()
            ))
            .remedy("choose a directory on which nothing is mounted"));
        }
        for own in [&config.origin, &config.snapstore] {
            if nested(own, path) {
                let (own, path) = (own.display(), path.display());
                return Err(Failure::refused(format!("{path} and {own} must not lie in each other")).remedy(
                    "choose another directory: what is mounted there would hide the volume's own data",
                ));
            }
        }
        Ok(())
    }

    /// Refuses a name whose directories would be those of another volume's snapshots.
    pub fn check_name(&self, name: &VolumeName) -> Result<(), Failure> {
        let clash = self.all_volumes().into_iter().find(|other| {
            let (one, other) = (name.as_str(), other.name.as_str());
            one.strip_suffix("-snapshots") == Some(other) || other.strip_suffix("-snapshots") == Some(one)
        });
        match clash {
            None => Ok(()),
            Some(other) => Err(Failure::refused(format!(
                "volume {name} would be mounted where the snapshots of volume {} are, or the other way round",
                other.name
            ))
            .remedy("choose another name")),
        }
    }
}

/// The directory at a path, without links on the way.
async fn directory(path: PathBuf) -> Result<PathBuf, Failure> {
    let shown = path.display().to_string();
    let look = move || path.canonicalize().map(|real| real.is_dir().then_some(real));
    let found = tokio::task::spawn_blocking(look).await.expect("looking does not panic");
    let found = found.map_err(|error| {
        Failure::refused(format!("{shown} cannot be mounted on: {error}")).remedy("make the directory first")
    })?;
    found.ok_or_else(|| Failure::refused(format!("{shown} is no directory")).remedy("choose a directory"))
}
