//! Who masters a volume is decided by commands, which tell other nodes and keep what would be lost; a line in a file does
//! neither. So what the files say is compared with what was applied last, at the start and when they are read again.

use std::collections::BTreeMap;

use zumastor_core::{VolumeName, config::VolumeConfig};

use super::{Daemon, holds::blocking, state::Duty};
use crate::exit::Failure;

impl Daemon {
    /// Writes the file of a volume. A daemon that is killed in the middle finds that it may say what it said, or this.
    pub async fn write_volume(&self, name: &VolumeName, config: &VolumeConfig) -> Result<(), Failure> {
        if let Some(barred) = self.find_volume(name).and_then(|volume| volume.barred()) {
            // The file would then be taken for what was applied.
            return Err(Failure::refused(barred));
        }
        let duty = Duty::of(config);
        let (state, volume) = (self.state.clone(), name.clone());
        let before = blocking(move || {
            let before = state.duties(&volume)?;
            if !duty.is_none() && !before.contains(&duty) {
                state.note_duties(&volume, &[&before[..], &[duty]].concat())?;
            }
            Ok(before)
        });
        let before = before.await?;
        let (volume, written) = (name.clone(), config.clone());
        let written = self.configuring(move |files| files.write_volume(&volume, &written)).await;
        let now = if written.is_ok() && !duty.is_none() { vec![duty] } else { before };
        let (state, volume) = (self.state.clone(), name.clone());
        let noted = blocking(move || state.note_duties(&volume, &now)).await;
        // The file decides. That it may say either of both stays noted, and does no harm.
        if let Err(error) = noted {
            tracing::warn!(volume = %name, %error, "could not note what the file of the volume says");
        }
        written
    }

    /// Refuses files that make this node another master of a volume than it was, or none.
    pub async fn check_duties(&self, volumes: &[(VolumeName, VolumeConfig)]) -> Result<(), Failure> {
        match self.strange_duties(volumes).await?.into_values().next() {
            Some(Strange { what, remedy }) => {
                Err(Failure::refused(what).remedy(format!("{remedy}; nothing was applied")))
            }
            None => Ok(()),
        }
    }

    /// The volumes of which the files make this node another master than it was, or none.
    pub async fn strange_duties(
        &self,
        volumes: &[(VolumeName, VolumeConfig)],
    ) -> Result<BTreeMap<VolumeName, Strange>, Failure> {
        let mut strange = BTreeMap::new();
        for (name, config) in volumes {
            let (state, volume, now) = (self.state.clone(), name.clone(), Duty::of(config));
            let before = blocking(move || state.duties(&volume)).await?;
            let Some(was) = before.last().filter(|_| before.iter().all(|before| before.turns_into(now)))
            else {
                continue;
            };
            let was = match was {
                Duty { master: Some(0), .. } => "has [master]".to_owned(),
                Duty { master: Some(epoch), .. } => format!("has [master] with epoch = {epoch}"),
                Duty { .. } => "has no [master]".to_owned(),
            };
            let what = format!(
                "volumes/{name}.toml makes this node another master of the volume, or none, and that is more than a line in a \
                 file: other nodes must hear of it, and what the volume holds must be kept"
            );
            let remedy = format!(
                "edit the file so that it {was}, as before; then, with the daemon running, `zumastor promote {name}` or \
                 `zumastor define source {name} HOST` do that; if it is another volume of that name, `zumastor forget volume {name}` and define \
                 it again"
            );
            strange.insert(name.clone(), Strange { what, remedy });
        }
        Ok(strange)
    }

    /// Notes what the files say that are applied now.
    pub async fn note_duties(&self, volumes: &[(VolumeName, VolumeConfig)]) -> Result<(), Failure> {
        for (name, config) in volumes {
            let (state, volume, now) = (self.state.clone(), name.clone(), Duty::of(config));
            if !now.is_none() {
                blocking(move || state.note_duties(&volume, &[now])).await?;
            }
        }
        Ok(())
    }
}

/// What a file says of a volume that it may not.
#[derive(Debug)]
pub struct Strange {
    what: String,
    remedy: String,
}

impl Strange {
    /// Why nothing is done with the volume, and what helps.
    pub fn text(&self) -> String {
        format!("nothing is done with the volume: {}; {}, and `zumastor reload`", self.what, self.remedy)
    }
}
