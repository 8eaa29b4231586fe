//! Volumes whose snapshots are taken together.

use std::sync::atomic::{AtomicBool, Ordering};

use zumastor_core::GroupName;

use super::*;

impl Fixture {
    /// Another master beside the first one.
    async fn beside(&self, name: &str, config: VolumeConfig) -> (Arc<Volume>, MemoryStore) {
        let name: VolumeName = name.parse().unwrap();
        let (volume, store) =
            (Volume::new(name.clone(), config, self.daemon.stores.clone()), MemoryStore::new(1 << 20));
        let volume = Arc::new(volume);
        volume.set_store(Arc::new(store.clone())).await;
        self.daemon.volumes.write().unwrap().insert(name, volume.clone());
        self.daemon.start_volume(&volume).await;
        (volume, store)
    }

    fn group(&self, volume: &Volume) -> GroupName {
        let group: GroupName = "db".parse().unwrap();
        volume.set_config(VolumeConfig { group: Some(group.clone()), ..volume.config() });
        group
    }
}

async fn records(store: &MemoryStore) -> Vec<zumastor_core::SnapshotRecord> {
    store.snapshots().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_due_for_a_group_is_taken_together() {
    let f = Fixture::new(&["hourly,5"], "2026-06-01T20:30:00Z").await;
    let (w, store) = f.beside("w", config(&["hourly,5", "daily,2"])).await;
    let (alone, _) = f.beside("u", config(&["hourly,5"])).await;
    f.group(&f.volume);
    f.group(&w);
    f.pass(3 * 3600).await;
    let (here, there) = (records(&f.store).await, records(&store).await);
    assert_eq!((here.len(), there.len()), (3, 3));
    for (one, other) in here.iter().zip(&there) {
        assert!(one.new.group.is_some() && one.new.group == other.new.group, "{one:?} {other:?}");
        assert_eq!(one.new.created, other.new.created);
    }
    // Midnight in Berlin.
    assert_eq!(there[1].new.rotations, ["hourly", "daily"]);
    assert_eq!(here[1].new.rotations, ["hourly"]);
    let ids: std::collections::BTreeSet<_> = here.iter().map(|record| record.new.group).collect();
    assert_eq!(ids.len(), 3, "each moment has an identity of its own");
    assert!(alone.store().await.unwrap().snapshots().await.unwrap().iter().all(|r| r.new.group.is_none()));
    // Whoever is stopped is left out, and there is no group of one.
    f.daemon.stop_part(&w.name, Part::Master).await.unwrap();
    f.pass(3600).await;
    assert_eq!((f.numbers().await.len(), records(&store).await.len()), (4, 3));
    assert_eq!(records(&f.store).await[3].new.group, None);
    w.stop().await;
    alone.stop().await;
}

/// Two volumes that one program writes to, the first always before the second: no snapshots of one moment show it otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn the_snapshots_of_a_group_are_of_one_moment() {
    let f = Fixture::new(&[], "2026-06-01T20:30:00Z").await;
    // The second is taken first.
    let (a, first) = f.beside("z", config(&[])).await;
    let group = f.group(&f.volume);
    f.group(&a);
    let (second, stop) = (f.store.clone(), Arc::new(AtomicBool::new(false)));
    let (writer_first, writer_stop) = (first.clone(), stop.clone());
    let writer = std::thread::spawn(move || {
        let mut count = 0u64;
        while !writer_stop.load(Ordering::Relaxed) {
            count += 1;
            writer_first.write_head(0, &count.to_le_bytes());
            second.write_head(0, &count.to_le_bytes());
        }
    });
    for _ in 0..50 {
        let taken = f.daemon.snapshot_group(&group, None).await.unwrap();
        let number = |name: &str| taken.snapshots[&name.parse::<VolumeName>().unwrap()].snapshot.number;
        let read = async |store: &MemoryStore, number| {
            let mut bytes = [0; 8];
            store.open_snapshot(number).await.unwrap().read_at(0, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        let (one, two) = (read(&first, number("z")).await, read(&f.store, number("v")).await);
        assert!(one == two || one == two + 1, "{one} and {two}");
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    a.stop().await;
}
