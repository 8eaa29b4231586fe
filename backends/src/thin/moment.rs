//! The one moment of its metadata that a pool can hold, and whose it is.

use std::{fs, io::ErrorKind, path::Path, path::PathBuf};

use uuid::Uuid;
use zumastor_core::StoreError;

use super::{lock::LOCKS, mapper::Mapper};
use crate::{described::failed, thin_metadata::ThinMetadata};

/// A note about whether a store holds a moment, which is written before it is held and after it was let go. It lies where a
/// reboot leaves nothing: what a pool holds then is of a program that is no more.
#[derive(Debug)]
pub(crate) struct Moment(PathBuf);

impl Moment {
    pub(crate) fn new(store: Uuid) -> Self {
        Self(Path::new(LOCKS).join(format!("{}.moment", store.simple())))
    }

    /// Whether a moment that is held was left by an earlier run of the store, which did not end well if it `was_open`.
    pub(crate) fn is_ours(&self, was_open: bool) -> bool {
        was_open && fs::read_to_string(&self.0).map_or(true, |text| text == HELD)
    }

    /// Notes that nothing is held: to be called when the store is opened, after what an earlier run held was let go.
    pub(crate) fn begin(&self) -> Result<(), StoreError> {
        self.write("")
    }

    /// Forgets about it, when the store is closed.
    pub(crate) fn end(&self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "could not remove a note");
        }
    }

    /// Lets `read` look at a moment of the metadata of a pool, and lets go of it. `strange` says what is to be done where somebody else
    /// holds one.
    pub(crate) fn hold(
        &self,
        (mapper, pool, metadata): (&Mapper, &str, &Path),
        strange: &dyn Fn() -> String,
        read: &mut dyn FnMut(&ThinMetadata) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let tell = |message: &str| {
            mapper.message(pool, message).map_err(|error| match error.raw_os_error() {
                Some(libc::EBUSY) => StoreError::Unsupported(strange()),
                _ => StoreError::io(format!("{message} in the pool {pool}"))(error),
            })
        };
        self.write(HELD)?;
        let reserved = tell("reserve_metadata_snap");
        if reserved.is_err() {
            self.write("")?;
        }
        reserved?;
        let metadata = ThinMetadata::open_held(metadata);
        let done = metadata.map_err(StoreError::from).and_then(|metadata| read(&metadata));
        tell("release_metadata_snap")?;
        self.write("")?;
        done
    }

    fn write(&self, text: &str) -> Result<(), StoreError> {
        let dir = Path::new(LOCKS);
        let written = fs::create_dir_all(dir).and_then(|()| fs::write(&self.0, text));
        written.map_err(failed("writing", &self.0))
    }
}

const HELD: &str = "held";
