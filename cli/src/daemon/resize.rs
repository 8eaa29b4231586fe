//! `resize`: the size of a master's volume. A replica follows with the next snapshot, and snapshots keep theirs.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use zumastor_core::{HeadState, HumanBytes, VolumeName, files::data_ranges, is_zero, steps};
use zumastor_net::wire::MAX_VOLUME;

use super::Daemon;
use crate::{
    api::{Outcome, Resize},
    exit::Failure,
    mounts,
};

impl Daemon {
    /// `resize`.
    pub async fn resize(self: &Arc<Self>, name: &VolumeName, resize: Resize) -> Result<Outcome, Failure> {
        let Resize { origin, snapshot, metadata, yes } = resize;
        let volume = self.volume(name)?;
        let _snapshotting = volume.snapshotting.lock().await;
        if snapshot.is_some() || metadata.is_some() {
            // Also on a replica: what it keeps, and where, is its own.
            volume.store().await?.resize_store(snapshot, metadata).await?;
            tracing::info!(volume = %name, snapshot, metadata, "the store was resized");
        }
        let Some(size) = origin else {
            return match (snapshot, metadata) {
                (None, None) => Err(Failure::usage("nothing was named whose size is to change")),
                _ => Ok(Outcome::changed(format!("volume {name} uses its devices as was asked"))),
            };
        };
        self.check_master(&volume, "change its size").await?;
        if size == 0 || size > MAX_VOLUME {
            return Err(Failure::usage("a volume has 1 byte to 128 TiB")
                .remedy(format!("for example: `zumastor resize {name} --origin 40G`")));
        }
        let store = volume.store().await?;
        let before = store.geometry()?.size;
        if before == size {
            return Ok(Outcome::already(format!("volume {name} has {} already", HumanBytes(size))));
        }
        let mut kept = None;
        let image = volume.mounting.image_of(&volume);
        if size < before {
            if volume.mounting.shows_head() {
                return Err(Failure::refused(format!(
                    "volume {name} is mounted, and cannot become smaller below its file system"
                ))
                .remedy("make the file system smaller, unmount the volume with `zumastor stop volume`, then repeat the command"));
            }
            let cut = data_within(store.device(None).unwrap_or(volume.config().origin), size..before).await?;
            if cut > 0 && !yes {
                return Err(Failure::refused(format!(
                    "volume {name} has {} of data beyond the new end, which would be cut off",
                    HumanBytes(cut)
                ))
                .asks("Cut it off?"));
            }
            // What is cut off stays in a snapshot.
            if cut > 0 && store.head().await? == HeadState::Written {
                kept = Some(self.keep_head(&volume, &*store).await?);
            }
        }
        steps::pass("resize: before");
        store.resize(size).await?;
        steps::pass("resize: after");
        if let Some(image) = image {
            let grown = tokio::task::spawn_blocking(move || mounts::grown(&image)).await;
            grown
                .expect("asking a loop device does not panic")
                .map_err(Failure::doing("telling the loop device"))?;
        }
        tracing::info!(volume = %name, before, size, "resized");
        let (before, size) = (HumanBytes(before), HumanBytes(size));
        let outcome = Outcome::changed(format!("volume {name} has {size} now, {before} before"));
        let outcome = match kept {
            Some(kept) => outcome.note(format!("what it held before is kept as snapshot {}", kept.number())),
            None => outcome,
        };
        Ok(outcome.note("snapshots keep the size they had; replicas follow with the next snapshot"))
    }
}

/// Bytes of those 64 KiB within a window of a file that are not all zeros.
async fn data_within(path: PathBuf, window: Range<u64>) -> Result<u64, Failure> {
    let count = move || -> io::Result<u64> {
        let file = File::open(&path)?;
        let (mut bytes, mut buffer) = (0, vec![0; PART]);
        for Range { mut start, end } in data_ranges(&file, window)? {
            while start < end {
                let part = &mut buffer[..(end - start).min(PART as u64) as usize];
                file.read_exact_at(part, start)?;
                bytes += if is_zero(part) { 0 } else { part.len() as u64 };
                start += part.len() as u64;
            }
        }
        Ok(bytes)
    };
    tokio::task::spawn_blocking(count)
        .await
        .expect("reading does not panic")
        .map_err(Failure::doing("looking for data beyond the new end"))
}

/// Bytes looked at together.
const PART: usize = 64 << 10;
