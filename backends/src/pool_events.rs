//! What device-mapper tells of its own accord: that a pool has little room left, is full, or can only be read.

use tokio::sync::watch;

/// Changes its value whenever something happened to a device of device-mapper, whichever it is, from the moment on when the
/// first volume on block devices was opened. In a build without these, never.
pub fn pool_events() -> watch::Receiver<u64> {
    CHANNEL.subscribe()
}

static CHANNEL: std::sync::LazyLock<watch::Sender<u64>> = std::sync::LazyLock::new(|| watch::channel(0).0);

/// Begins to listen, once for all volumes.
#[cfg(feature = "device-mapper")]
pub(crate) fn listen() {
    static LISTENING: std::sync::Once = std::sync::Once::new();
    LISTENING.call_once(|| {
        let thread = std::thread::Builder::new().name("dm events".to_owned());
        let spawned = thread.spawn(|| {
            if let Err(error) = wait_for_all() {
                tracing::warn!(
                    error,
                    "device-mapper tells nothing of pools that fill: they are looked at now and then"
                );
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread could be started that listens to device-mapper");
        }
    });
}

#[cfg(feature = "device-mapper")]
fn wait_for_all() -> Result<(), String> {
    use rustix::event::{PollFd, PollFlags, poll};

    let mapper = devicemapper::DM::new().map_err(|error| error.to_string())?;
    loop {
        // Before anybody looks: what happens while they look is told again.
        mapper.arm_poll().map_err(|error| error.to_string())?;
        CHANNEL.send_modify(|count| *count += 1);
        let mut wanted = [PollFd::new(mapper.file(), PollFlags::IN)];
        match poll(&mut wanted, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}
