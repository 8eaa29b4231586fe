//! A store that is deleted for good is there or is not, whenever a crash comes.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
};

use crate::common::{Mounted, Volume, numbers, three};
use zumastor_backends::{Faults, FileStore, FileStoreOptions, Mode, conformance::destroy_store, store_id};

fn reopen(volume: &Volume) -> Option<FileStore> {
    FileStore::open(volume.origin(), volume.snapstore(), FileStoreOptions::default()).ok()
}

fn crashes(place: &Path, mode: Mode) {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let recorder = steps.clone();
    let note = move |step| {
        recorder.lock().unwrap().push(step);
        false
    };
    let whole = three(place, mode);
    let origin = fs::read(whole.origin()).unwrap();
    destroy_store(&whole.origin(), &whole.snapstore(), &Faults::new(note)).unwrap();
    assert!(!whole.snapstore().exists() && fs::read(whole.origin()).unwrap() == origin);
    let steps = steps.lock().unwrap().clone();
    assert!(steps.len() > 8, "{steps:?}");
    for (stop, step) in steps.iter().enumerate() {
        let volume = three(place, mode);
        let mut passed = 0;
        let at = move |_| {
            passed += 1;
            passed == stop + 1
        };
        assert!(destroy_store(&volume.origin(), &volume.snapstore(), &Faults::new(at)).is_err(), "{step}");
        match reopen(&volume) {
            // All of it is there, and can be deleted later.
            Some(store) => assert!(numbers(&store) == [0, 1, 2] && stop == 0, "after a stop at {step}"),
            None => {
                assert!(stop > 0, "after a stop at {step}");
                let refused = store_id(&volume.origin(), &volume.snapstore()).unwrap_err().to_string();
                assert!(refused.contains("`zumastor destroy`"), "{refused}");
                // Nor is another one made among what is left.
                let made = FileStore::open_or_create(
                    volume.origin(),
                    volume.snapstore(),
                    FileStoreOptions::default(),
                );
                assert!(made.is_err(), "after a stop at {step}");
            }
        }
        destroy_store(&volume.origin(), &volume.snapstore(), &Faults::none()).unwrap();
        assert!(!volume.snapstore().exists(), "after a stop at {step}");
        assert!(fs::read(volume.origin()).unwrap() == origin, "after a stop at {step}");
    }
}

#[test]
fn layers_are_deleted_for_good() {
    crashes(&std::env::temp_dir(), Mode::Layered);
}

#[test]
fn root_images_are_deleted_for_good_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    crashes(&mounted.path(), Mode::Reflink);
}

#[test]
fn what_is_not_the_stores_stays() {
    let volume = three(&std::env::temp_dir(), Mode::Layered);
    fs::write(volume.snapstore().join("notes"), "mine").unwrap();
    let beside = volume.origin().with_file_name(".image.zumastor-other");
    fs::write(&beside, "mine").unwrap();
    // Somebody has it open.
    let store = volume.store();
    let refused =
        destroy_store(&volume.origin(), &volume.snapstore(), &Faults::none()).unwrap_err().to_string();
    assert!(refused.contains("in use"), "{refused}");
    drop(store);
    destroy_store(&volume.origin(), &volume.snapstore(), &Faults::none()).unwrap();
    let left: Vec<_> = fs::read_dir(volume.snapstore()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["notes"]);
    assert!(beside.exists());
    volume.image().write_all_at(b"in use", 0).unwrap();
    // What never was a store is none to delete.
    let refused =
        destroy_store(&volume.origin(), &volume.snapstore(), &Faults::none()).unwrap_err().to_string();
    assert!(refused.contains("is no snapshot store"), "{refused}");
}
