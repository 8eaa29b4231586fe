//! The one moment of its metadata that a pool can hold, and whose it is.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use zumastor_core::StoreError;

use super::lock::{LOCKS, locks};
use crate::{
    Faults,
    described::failed,
    thin_metadata::{ThinMetadata, is_half_held},
};

/// Gives a pool a message; the error is what the kernel answered, and one of no number where it is unknown what came of it.
type Tell<'a> = &'a dyn Fn(&str) -> Result<(), io::Error>;

/// A note about whether one of ours holds a moment of a pool, which is written before it is held and after it was let go. All volumes
/// in the pool have it in common, so that what one of them left is let go by the next. It lies where a reboot leaves nothing: what a
/// pool holds then is of a program that is no more.
///
/// All of this is for who has the right to hold a moment, against all other volumes in the pool.
#[derive(Debug)]
pub(crate) struct Moment {
    note: PathBuf,
    faults: Faults,
    /// Whether one was somebody else's when that was looked at last.
    foreign: AtomicBool,
}

impl Moment {
    /// That of a pool, by a name that no other has.
    pub(crate) fn new(pool: &str, faults: Faults) -> Self {
        Self {
            note: Path::new(LOCKS).join(format!("{pool}.moment")),
            faults,
            foreign: AtomicBool::new(false),
        }
    }

    /// Whether a moment that is held was left by one of ours. Before anything is noted: if one of them `was_open`, and did not end well.
    pub(crate) fn is_ours(&self, was_open: bool) -> bool {
        fs::read_to_string(&self.note).map_or(was_open, |text| text == HELD)
    }

    /// Notes that nothing of ours is held: to be called when a store is opened, after what an earlier run held was let go.
    pub(crate) fn begin(&self) -> Result<(), StoreError> {
        self.write("")
    }

    /// Lets go of what one of ours left in a pool, whose metadata are there. Where that cannot be done, it is tried again before the next is
    /// held.
    pub(crate) fn let_go(&self, tell: Tell<'_>, (pool, metadata): (&str, &Path)) -> Result<(), StoreError> {
        self.write(HELD)?;
        if is_half_held(metadata)? {
            return Err(StoreError::Damaged { path: metadata.to_owned(), what: HALF_HELD.to_owned() });
        }
        match tell(RELEASE) {
            // Somebody may have done it meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.write(""),
            answer => self.let_go_of(answer, pool),
        }
    }

    /// Lets `read` look at a moment of the metadata of a pool, which `tell` gives messages to, and lets go of it. `strange` says what is
    /// to be done where somebody else holds one.
    pub(crate) fn hold(
        &self,
        tell: Tell<'_>,
        (pool, metadata): (&str, &Path),
        strange: &dyn Fn() -> String,
        read: &mut dyn FnMut(&ThinMetadata) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.let_go_of_left(tell, (pool, metadata))?;
        self.write(HELD)?;
        if let Err(error) = tell(RESERVE) {
            if error.raw_os_error().is_some() {
                self.write("")?;
            }
            return Err(match error.raw_os_error() {
                Some(libc::EBUSY) => StoreError::Unsupported(strange()),
                _ => StoreError::io(format!("{RESERVE} in the pool {pool}"))(error),
            });
        }
        self.faults.at("moment: held")?;
        let metadata = ThinMetadata::open_held(metadata);
        let done = metadata.map_err(StoreError::from).and_then(|metadata| read(&metadata));
        // If another let go of it, what was read may have been anything.
        self.let_go_of(tell(RELEASE), pool)?;
        done
    }

    /// Whether a moment that is held is somebody else's, as far as is known. `right` is the right to hold one, where it could be had:
    /// whoever has it holds one of ours, and what was so before is so still. `held` asks the pool again.
    pub(crate) fn is_foreign<R>(
        &self,
        right: Option<R>,
        tell: Tell<'_>,
        pool: (&str, &Path),
        held: &dyn Fn() -> Result<bool, StoreError>,
    ) -> bool {
        if right.is_some() {
            // Where it is not let go, the pool can only be read.
            let left = self.let_go_of_left(tell, pool).is_err();
            if let Ok(held) = held() {
                self.foreign.store(held && !left, Ordering::Relaxed);
            }
        }
        self.foreign.load(Ordering::Relaxed)
    }

    /// Takes note that none is held.
    pub(crate) fn none_is_held(&self) {
        self.foreign.store(false, Ordering::Relaxed);
    }

    fn let_go_of_left(&self, tell: Tell<'_>, pool: (&str, &Path)) -> Result<(), StoreError> {
        if self.is_ours(false) { self.let_go(tell, pool) } else { Ok(()) }
    }

    fn let_go_of(&self, answer: Result<(), io::Error>, pool: &str) -> Result<(), StoreError> {
        if let Err(error) = answer {
            self.faults.at("moment: not let go")?;
            return Err(StoreError::io(format!("{RELEASE} in the pool {pool}"))(error));
        }
        self.faults.at("moment: let go")?;
        self.write("")
    }

    fn write(&self, text: &str) -> Result<(), StoreError> {
        if self.note.starts_with(LOCKS) {
            locks()?;
        }
        fs::write(&self.note, text).map_err(failed("writing", &self.note))
    }
}

/// What is to be done about a moment that is named as held and not counted.
pub(crate) const HALF_HELD: &str = "the power went before the kernel had counted what it holds of these metadata, and to let go of it would free \
                                    what is in use: repair them while the pool is not active, with thin_repair(8) or `lvconvert --repair`";
const HELD: &str = "held";
/// Messages to a pool; a release where nothing is held is `EINVAL`.
const RESERVE: &str = "reserve_metadata_snap";
const RELEASE: &str = "release_metadata_snap";

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::thin_metadata::{NewPool, name_as_held};

    #[test]
    fn what_could_not_be_let_go_is_let_go_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let moment = || Moment {
            note: dir.path().join("moment"),
            faults: Faults::none(),
            foreign: AtomicBool::new(false),
        };
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
        let metadata = dir.path().join("metadata");
        fs::File::create(&metadata).and_then(|file| file.set_len(1 << 20)).unwrap();
        let new =
            NewPool { device: 0, mapped: 0, data_blocks: 1, data_block_size: 128, metadata_blocks: 256 };
        new.write(&metadata).unwrap();
        let hold = || {
            let held = moment().hold(&tell, ("pool", &metadata), &|| "somebody else".into(), &mut |_| Ok(()));
            held.unwrap_err().to_string()
        };
        let is_well = || {
            fills.set(false);
            full.set(false);
        };
        let note = || fs::read_to_string(moment().note).unwrap();
        // There is nothing to read, which keeps nobody from letting go.
        let unread = hold();
        assert!(!unread.contains(RELEASE) && !held.get() && note().is_empty(), "{unread}");
        fills.set(true);
        for _ in 0..2 {
            assert!(hold().contains(RELEASE));
            assert!(held.get() && note() == HELD && moment().is_ours(false));
        }
        is_well();
        assert_eq!(hold(), unread);
        assert!(!held.get() && note().is_empty() && !moment().is_ours(true));
        // Another let go of it, or holds one.
        for another in [false, true] {
            fills.set(true);
            assert!(hold().contains(RELEASE));
            is_well();
            held.set(false);
            if another {
                moment().let_go(&tell, ("pool", &metadata)).unwrap();
                held.set(true);
            }
            assert_eq!(hold(), if another { "somebody else".to_owned() } else { unread.clone() });
            assert!(held.get() == another && note().is_empty());
        }
    }

    #[test]
    fn what_is_not_counted_is_not_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let metadata = dir.path().join("metadata");
        let file = fs::File::create_new(&metadata).unwrap();
        file.set_len(1 << 20).unwrap();
        let new =
            NewPool { device: 0, mapped: 0, data_blocks: 1, data_block_size: 128, metadata_blocks: 256 };
        new.write(&metadata).unwrap();
        name_as_held(&metadata, 200);
        let moment = Moment {
            note: dir.path().join("moment"),
            faults: Faults::none(),
            foreign: AtomicBool::new(false),
        };
        let tell = |message: &str| panic!("{message} was sent");
        let refused = moment.let_go(&tell, ("pool", &metadata)).unwrap_err().to_string();
        assert!(refused.contains("would free what is in use"), "{refused}");
        // Nor by whoever is next.
        let refused = moment.hold(&tell, ("pool", &metadata), &String::new, &mut |_| Ok(())).unwrap_err();
        assert!(refused.to_string().contains("would free what is in use"), "{refused}");
    }
}
