//! What each snapshot takes, by the mappings.

use zumastor_core::{SnapshotUsage, StoreError, UsageBySnapshot};

use super::inner::Inner;

impl Inner {
    pub(crate) fn usage_by_snapshot(&self) -> Result<UsageBySnapshot, StoreError> {
        let chunk = self.pool.chunk();
        let mut devices = Vec::new();
        self.pool.read_metadata(&mut |metadata| {
            devices = metadata.usage()?;
            Ok(())
        })?;
        let find = |id: u32| devices.iter().find(|device| device.device == id);
        let catalogue = self.catalogue();
        let snapshots: Vec<_> = catalogue
            .snapshots
            .iter()
            .filter_map(|kept| {
                let device = find(kept.thin.0)?;
                Some(SnapshotUsage {
                    number: kept.record.number(),
                    referenced: (device.exclusive + device.shared) * chunk,
                    exclusive: device.exclusive * chunk,
                })
            })
            .collect();
        // All that the head and what is staged do not have.
        let head = find(catalogue.head.thin.0).map_or(0, |head| head.exclusive + head.shared);
        let beside = match &catalogue.staged {
            Some(staged) => self.compare(Some(catalogue.head.thin), staged.thin)?.right(),
            None => 0,
        };
        let used = self.pool.status()?.data.used;
        let own = snapshots.iter().map(|usage| usage.exclusive).sum();
        let all = used.saturating_sub((head + beside) * chunk).max(own);
        Ok(UsageBySnapshot { snapshots, all })
    }
}
