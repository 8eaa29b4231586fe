//! Stopping a store at a named step, as a crash would.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use zumastor_core::{StoreError, steps};

/// Steps at which a store may be made to stop. In production there are none.
///
/// A store that was stopped leaves everything as it is at that moment, as a crash would: it does not tidy up on its
/// way out. What must then hold is that a store opened anew shows the state before the operation or after it.
#[derive(Clone, Default)]
pub struct Faults(Option<Arc<Plan>>);

struct Plan {
    stop: Mutex<Stop>,
    stopped: AtomicBool,
    /// Whether a step only fails, and the program goes on.
    fails: bool,
}

type Stop = Box<dyn FnMut(&'static str) -> bool + Send>;

impl Faults {
    /// No faults.
    pub fn none() -> Self {
        Self::default()
    }

    /// Stops at every step for which `stop` says so.
    pub fn new(stop: impl FnMut(&'static str) -> bool + Send + 'static) -> Self {
        Self::plan(stop, false)
    }

    /// Lets every step fail for which `fail` says so, as a disk does: the store goes on, tidies up, and is used again.
    pub fn failing(fail: impl FnMut(&'static str) -> bool + Send + 'static) -> Self {
        Self::plan(fail, true)
    }

    fn plan(stop: impl FnMut(&'static str) -> bool + Send + 'static, fails: bool) -> Self {
        let stop = Mutex::new(Box::new(stop) as Stop);
        Self(Some(Arc::new(Plan { stop, stopped: AtomicBool::new(false), fails })))
    }

    /// Passes a step, or stops there.
    pub(crate) fn at(&self, step: &'static str) -> Result<(), StoreError> {
        steps::pass(step);
        let Some(plan) = &self.0 else { return Ok(()) };
        // Whoever is dead stays dead: another thread must not go on where a crash would have ended it.
        if !plan.stopped.load(Ordering::Relaxed) && (plan.stop.lock().expect("no panic while locked"))(step) {
            if plan.fails {
                let source = io::Error::from_raw_os_error(libc::EIO);
                return Err(StoreError::Io { what: step.to_owned(), source });
            }
            plan.stopped.store(true, Ordering::Relaxed);
        }
        if self.stopped() {
            let source = io::Error::other("stopped by a test");
            return Err(StoreError::Io { what: step.to_owned(), source });
        }
        Ok(())
    }

    /// Whether a step stopped the store: then nothing is tidied up.
    pub fn stopped(&self) -> bool {
        self.0.as_ref().is_some_and(|plan| plan.stopped.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Faults" } else { "no faults" })
    }
}
