//! The one moment of its metadata that a pool can hold, and whose it is.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use uuid::Uuid;
use zumastor_core::StoreError;

use super::lock::LOCKS;
use crate::{described::failed, thin_metadata::ThinMetadata};

/// A note about whether a store holds a moment, which is written before it is held and after it was let go. It lies where a
/// reboot leaves nothing: what a pool holds then is of a program that is no more.
#[derive(Debug)]
pub(crate) struct Moment {
    note: PathBuf,
    /// Whether one is held: after a reading, one that could not be let go.
    held: AtomicBool,
}

impl Moment {
    pub(crate) fn new(store: Uuid) -> Self {
        let note = Path::new(LOCKS).join(format!("{}.moment", store.simple()));
        Self { note, held: AtomicBool::new(false) }
    }

    /// Whether a moment that is held was left by an earlier run of the store, which did not end well if it `was_open`.
    pub(crate) fn is_ours(&self, was_open: bool) -> bool {
        fs::read_to_string(&self.note).map_or(was_open, |text| text == HELD)
    }

    /// Notes that nothing is held: to be called when the store is opened, after what an earlier run held was let go.
    pub(crate) fn begin(&self) -> Result<(), StoreError> {
        self.write("")
    }

    /// Forgets about it, when the store is closed; not about one that could not be let go.
    pub(crate) fn end(&self) {
        if !self.held.load(Ordering::Relaxed)
            && let Err(error) = fs::remove_file(&self.note)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.note.display(), %error, "could not remove a note");
        }
    }

    /// Lets `read` look at a moment of the metadata of a pool, which `tell` gives messages to, and lets go of it. `strange` says what is
    /// to be done where somebody else holds one. To be called by one at a time.
    pub(crate) fn hold(
        &self,
        tell: &dyn Fn(&str) -> Result<(), io::Error>,
        (pool, metadata): (&str, &Path),
        strange: &dyn Fn() -> String,
        read: &mut dyn FnMut(&ThinMetadata) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let refused = |message: &str, error: io::Error| match error.raw_os_error() {
            Some(libc::EBUSY) => StoreError::Unsupported(strange()),
            _ => StoreError::io(format!("{message} in the pool {pool}"))(error),
        };
        let release = |gone: bool| match tell(RELEASE) {
            Err(error) if !(gone && error.raw_os_error() == Some(libc::EINVAL)) => {
                Err(refused(RELEASE, error))
            }
            _ => {
                self.held.store(false, Ordering::Relaxed);
                self.write("")
            }
        };
        if self.held.load(Ordering::Relaxed) {
            // Somebody may have done it meanwhile.
            release(true)?;
        }
        self.write(HELD)?;
        if let Err(error) = tell(RESERVE) {
            self.write("")?;
            return Err(refused(RESERVE, error));
        }
        self.held.store(true, Ordering::Relaxed);
        let metadata = ThinMetadata::open_held(metadata);
        let done = metadata.map_err(StoreError::from).and_then(|metadata| read(&metadata));
        release(false)?;
        done
    }

    fn write(&self, text: &str) -> Result<(), StoreError> {
        let dir = self.note.parent().unwrap_or(Path::new("/"));
        let written = fs::create_dir_all(dir).and_then(|()| fs::write(&self.note, text));
        written.map_err(failed("writing", &self.note))
    }
}

const HELD: &str = "held";
/// Messages to a pool; a release where nothing is held is `EINVAL`.
const RESERVE: &str = "reserve_metadata_snap";
const RELEASE: &str = "release_metadata_snap";

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_could_not_be_let_go_is_let_go_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let moment = Moment { note: dir.path().join("moment"), held: AtomicBool::new(false) };
        // As the kernel answers; a pool that becomes read-only takes no messages.
        let (held, fills, full) = (Cell::new(false), Cell::new(false), Cell::new(false));
        let tell = |message: &str| {
            let answer = |errno| Err(io::Error::from_raw_os_error(errno));
            match message {
                _ if full.get() => answer(libc::EOPNOTSUPP),
                RESERVE if held.replace(true) => answer(libc::EBUSY),
                RELEASE if !held.replace(false) => answer(libc::EINVAL),
                _ => {
                    full.set(fills.get());
                    Ok(())
                }
            }
        };
        let hold = || {
            let nothing = dir.path().join("metadata");
            let held = moment.hold(&tell, ("pool", &nothing), &|| "somebody else".into(), &mut |_| Ok(()));
            held.unwrap_err().to_string()
        };
        let is_well = || {
            fills.set(false);
            full.set(false);
        };
        let note = || fs::read_to_string(&moment.note).unwrap();
        // There is nothing to read, which keeps nobody from letting go.
        let unread = hold();
        assert!(!unread.contains(RELEASE) && !held.get() && note().is_empty(), "{unread}");
        fills.set(true);
        for _ in 0..2 {
            assert!(hold().contains(RELEASE));
            moment.end();
            assert!(held.get() && note() == HELD && moment.is_ours(false));
        }
        is_well();
        assert_eq!(hold(), unread);
        assert!(!held.get() && note().is_empty() && !moment.is_ours(true));
        // Another let go of it, or holds one.
        for another in [false, true] {
            fills.set(true);
            assert!(hold().contains(RELEASE));
            is_well();
            held.set(false);
            if another {
                moment.held.store(false, Ordering::Relaxed);
                held.set(true);
            }
            assert_eq!(hold(), if another { "somebody else".to_owned() } else { unread.clone() });
            assert!(held.get() == another && note().is_empty());
        }
    }
}
