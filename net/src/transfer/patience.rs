//! How long to wait for a peer.

use std::time::Duration;

/// One deadline per phase, and a watchdog on progress: nothing waits for ever.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// To open a stream and to get an answer that needs no work.
    pub answer: Duration,
    /// For the upstream to find out what has changed, hashing what it has not hashed before. It says every few
    /// seconds that it is still at it, so this bounds only a peer that says so for ever.
    pub planning: Duration,
    /// Without a byte going either way, while something is due.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            planning: Duration::from_secs(24 * 3600),
            stall: Duration::from_secs(60),
        }
    }
}
