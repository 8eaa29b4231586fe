//! How much memory the daemon takes for a volume.
//!
//! A quarter is for what stores keep because they may be asked for it again, the rest for what is received or sent. A replica
//! that sends on does both at a time, and keeps less. Where there is less, it is received over fewer streams, and sent in
//! smaller pieces. What a connection to a peer has under way is not a volume's: see [`transport_config`](zumastor_net::transport_config).

use std::sync::LazyLock;

use zumastor_core::{HumanBytes, VolumeName, config::VolumeConfig};
use zumastor_net::{LEAST_FOR_A_TARGET, MOST_STREAMS};

use crate::{api::CacheStatus, exit::Failure};

/// The smallest size that is of any use: one stream, and something to remember.
pub const LEAST: u64 = 16 << 20;
/// The size when nobody says one, if the machine has enough.
const USUAL: u64 = 128 << 20;
/// What one stream that is received takes at most: 5 MiB that came in, then batches of 1 MiB: one that is taken from those,
/// one that waits, one that is written, what it is when it is decompressed, and what was staged before and is read back in the end.
const STREAM: u64 = 10 << 20;

/// What a volume's memory is for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// What the store may keep.
    pub kept: u64,
    /// What is being received.
    receiving: u64,
    /// What is being sent, to all targets together.
    pub sending: u64,
}

impl Shares {
    /// Those of a volume.
    pub fn of(config: &VolumeConfig) -> Self {
        Self::out_of(size(config), config)
    }

    fn out_of(size: u64, config: &VolumeConfig) -> Self {
        match (config.source.is_some(), config.target.is_empty()) {
            (true, false) => {
                let (kept, sending) = (size / 16, size / 16 * 5);
                Self { kept, receiving: size - kept - sending, sending }
            }
            // What is lent to the source for a repair is sent while nothing is received.
            _ => Self { kept: size / 4, receiving: size - size / 4, sending: size - size / 4 },
        }
    }

    /// Streams that the volume is received over.
    pub fn streams(&self) -> usize {
        ((self.receiving / STREAM) as usize).clamp(1, MOST_STREAMS)
    }
}

/// Bytes of memory for a volume: what it is given, or what it needs if that is more.
pub fn size(config: &VolumeConfig) -> u64 {
    given(config).max(least(config))
}

fn given(config: &VolumeConfig) -> u64 {
    config.cache.map_or_else(|| USUAL.min(memory() / 4).max(LEAST), |size| size.0)
}

/// The smallest size, in steps, with which a volume can be received and sent as configured.
fn least(config: &VolumeConfig) -> u64 {
    let needed = config.target.len() as u64 * LEAST_FOR_A_TARGET;
    let mut size = LEAST;
    while Shares::out_of(size, config).sending < needed {
        size += LEAST / 2;
    }
    size
}

/// As `status` shows it.
pub fn status(config: &VolumeConfig, kept: u64) -> CacheStatus {
    let streams = Shares::of(config).streams() as u64;
    CacheStatus { size: size(config), kept, streams, caution: caution(config) }
}

/// What is to be said where a volume takes more than its file gives it.
pub fn caution(config: &VolumeConfig) -> Option<String> {
    let given = config.cache?.0;
    let reason = check(given).and_then(|()| check_targets(config)).err()?;
    Some(format!("{reason}; until then it takes {}", HumanBytes(size(config))))
}

/// What is wrong with a size, if anything.
pub fn check(bytes: u64) -> Result<(), String> {
    match bytes >= LEAST {
        true => Ok(()),
        false => Err(format!(
            "a cache of {} is too small to receive anything: give 16M or more",
            HumanBytes(bytes)
        )),
    }
}

/// What is wrong with the size for what a volume is sent to, if anything.
pub fn check_targets(config: &VolumeConfig) -> Result<(), String> {
    let (given, least) = (given(config), least(config));
    if given >= least {
        return Ok(());
    }
    Err(format!(
        "a cache of {} is too small to send the volume to {} nodes at a time: give it {}M or more",
        HumanBytes(given),
        config.target.len(),
        least >> 20
    ))
}

/// Refuses what a volume is to be if its memory is too small for that.
pub fn refuse(name: &VolumeName, config: &VolumeConfig) -> Result<(), Failure> {
    check_targets(config).map_err(|reason| {
        let (origin, snapstore) = (config.origin.display(), config.snapstore.display());
        Failure::refused(format!("volume {name}: {reason}")).remedy(format!(
            "`zumastor define volume {name} {origin} {snapstore} --cachesize SIZE` changes it"
        ))
    })
}

/// Bytes of memory that the machine has, as it had them when they were asked for first: to count them takes the kernel a while,
/// and each pull asks.
fn memory() -> u64 {
    static MEMORY: LazyLock<u64> = LazyLock::new(|| {
        let info = rustix::system::sysinfo();
        info.totalram.saturating_mul(u64::from(info.mem_unit))
    });
    *MEMORY
}

#[cfg(test)]
mod tests {
    use zumastor_core::{
        ByteSize,
        config::{SourceConfig, TargetConfig},
    };

    use super::*;

    fn config(cache: Option<u64>, source: bool, targets: usize) -> VolumeConfig {
        let source = source.then(|| SourceConfig {
            host: "up".parse().unwrap(),
            period: None,
            name: None,
            mount_snap: false,
            export: Vec::new(),
            margin: None,
        });
        let target = (0..targets).map(|n| (format!("down{n}").parse().unwrap(), TargetConfig::default()));
        let target = target.collect();
        VolumeConfig { cache: cache.map(ByteSize), source, target, ..VolumeConfig::new("/v", "/s") }
    }

    #[test]
    fn memory_is_shared_out() {
        for (size, streams) in [(16 << 20, 1), (24 << 20, 1), (32 << 20, 2), (64 << 20, 4), (1 << 40, 4)] {
            let Shares { kept, receiving, .. } = Shares::of(&config(Some(size), true, 0));
            assert_eq!(Shares::of(&config(Some(size), true, 0)).streams(), streams, "{size}");
            assert!(streams as u64 * STREAM <= receiving && kept + receiving <= size, "{size}");
            let Shares { kept, sending, .. } = Shares::of(&config(Some(size), false, 1));
            assert!(kept + sending <= size && sending >= LEAST_FOR_A_TARGET, "{size}");
            // One that does both.
            let shares = Shares::of(&config(Some(size), true, 1));
            assert!(shares.streams() as u64 * STREAM <= shares.receiving, "{size}");
            assert!(shares.kept + shares.receiving + shares.sending <= size, "{size}");
        }
        let usual = size(&config(None, false, 0));
        assert!((LEAST..=USUAL).contains(&usual));
        assert_eq!(Shares::of(&config(Some(USUAL), true, 2)).streams(), MOST_STREAMS);
    }

    #[test]
    fn targets_that_do_not_fit_are_told_how_much_would_do() {
        assert_eq!(check_targets(&config(Some(16 << 20), false, 2)), Ok(()));
        let error = check_targets(&config(Some(16 << 20), false, 3)).unwrap_err();
        assert!(error.contains("a cache of 16.0 MiB") && error.contains("3 nodes"), "{error}");
        assert!(error.ends_with("give it 24M or more"), "{error}");
        assert_eq!(check_targets(&config(Some(24 << 20), false, 3)), Ok(()));
        assert_eq!(check_targets(&config(Some(16 << 20), true, 1)), Ok(()));
        // What a file gives too little is given what it takes, and no more.
        assert_eq!(size(&config(Some(16 << 20), false, 3)), 24 << 20);
        assert_eq!(caution(&config(Some(24 << 20), false, 3)), None);
        assert_eq!(Shares::of(&config(Some(1 << 20), true, 0)), Shares::of(&config(Some(16 << 20), true, 0)));
        assert!(
            check_targets(&config(Some(16 << 20), true, 2)).unwrap_err().ends_with("give it 32M or more")
        );
    }
}
