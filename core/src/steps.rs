//! Moments at which a crash is worth trying: where something became durable, or is about to.
//!
//! A test has the program ended at one of them. Only programs that are built for debugging can be; in others, nothing
//! happens here.

use std::sync::OnceLock;

type Watcher = Box<dyn Fn(&'static str) + Send + Sync>;

static WATCHER: OnceLock<Watcher> = OnceLock::new();

/// Has `watcher` told of every step from now on, on whatever thread that is passed. The first call counts.
pub fn watch(watcher: impl Fn(&'static str) + Send + Sync + 'static) {
    if cfg!(debug_assertions) {
        let _ = WATCHER.set(Box::new(watcher));
    }
}

/// Passes a step.
pub fn pass(step: &'static str) {
    if cfg!(debug_assertions)
        && let Some(watcher) = WATCHER.get()
    {
        watcher(step);
    }
}
