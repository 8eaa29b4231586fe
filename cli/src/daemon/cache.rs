//! How much memory the daemon takes for a volume.
//!
//! A quarter is for what stores keep because they may be asked for it again, the rest for what is received: fewer streams
//! where there is less.

use zumastor_core::config::VolumeConfig;

use crate::api::CacheStatus;

/// The smallest size that is of any use: one stream, and something to remember.
pub const LEAST: u64 = 16 << 20;
/// The size when nobody says one, if the machine has enough.
const USUAL: u64 = 128 << 20;
/// What one stream takes at most: what comes in, what it becomes, what is read back, and what waits in between.
const STREAM: u64 = 8 << 20;
/// More streams are not faster.
const STREAMS: u64 = 4;

/// Bytes of memory for a volume.
pub fn size(config: &VolumeConfig) -> u64 {
    config.cache.map_or_else(|| USUAL.min(memory() / 4).max(LEAST), |size| size.0)
}

/// Of those, what the store may keep.
pub fn kept(config: &VolumeConfig) -> u64 {
    size(config) / 4
}

/// Streams that the volume is received over.
pub fn streams(config: &VolumeConfig) -> usize {
    ((size(config) - kept(config)) / STREAM).clamp(1, STREAMS) as usize
}

/// As `status` shows it.
pub fn status(config: &VolumeConfig, kept: u64) -> CacheStatus {
    CacheStatus { size: size(config), kept, streams: streams(config) as u64 }
}

/// What is wrong with a size, if anything.
pub fn check(bytes: u64) -> Result<(), String> {
    match bytes >= LEAST {
        true => Ok(()),
        false => Err(format!("a cache of {bytes} bytes is too small to receive anything: give 16M or more")),
    }
}

/// Bytes of memory that the machine has.
fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
mod tests {
    use zumastor_core::ByteSize;

    use super::*;

    #[test]
    fn memory_is_shared_out() {
        let config =
            |cache: Option<u64>| VolumeConfig { cache: cache.map(ByteSize), ..VolumeConfig::new("/v", "/s") };
        for (size, streams) in [(16 << 20, 1), (24 << 20, 2), (64 << 20, 4), (1 << 40, 4)] {
            let config = config(Some(size));
            assert_eq!(super::streams(&config), streams as usize, "{size}");
            assert!(kept(&config) + streams * STREAM <= size, "{size}");
        }
        let usual = size(&config(None));
        assert!((LEAST..=USUAL).contains(&usual));
    }
}
