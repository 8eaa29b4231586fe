//! Tests of mounts that change the mounts of the machine: each has its own view of them.

use std::{fs, path::Path};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::{
    kernel::{self, Aside, can_mount},
    place,
    table::Table,
};

/// Gives this thread mounts of its own; false, said loudly, where that cannot be done.
fn own_mounts(propagation: MountPropagationFlags) -> bool {
    if !can_mount() {
        let required = std::env::var_os("ZUMASTOR_REQUIRE_ROOT_TESTS").is_some_and(|value| value == "1");
        assert!(!required, "not run: needs root");
        eprintln!("skipped: needs root");
        return false;
    }
    // SAFETY: nothing of this thread depends on sharing its mounts or its directory with others.
    #[allow(unsafe_code)]
    unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
    let all = MountPropagationFlags::REC;
    mount_change("/", MountPropagationFlags::PRIVATE | all).unwrap();
    mount_change("/", propagation | all).unwrap();
    true
}

/// What is seen at a directory, when one view takes the place of another.
fn one_after_the_other(beneath: impl Fn(&Aside, &Path) -> std::io::Result<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["old", "new", "at"] {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join("name"), name).unwrap();
    }
    let seen = || fs::read_to_string(path("at/name")).unwrap();
    let propagation = || {
        let table = Table::read().unwrap();
        table.holding(&path("at")).map(|mount| (mount.shared, mount.slave))
    };
    let (before, mounts) = (propagation(), Table::read().unwrap().0.len());
    Aside::bind(&path("old"), false).unwrap().put(&path("at")).unwrap();
    assert_eq!(seen(), "old");
    beneath(&Aside::bind(&path("new"), false).unwrap(), &path("at")).unwrap();
    assert_eq!((seen().as_str(), propagation()), ("old", before));
    let stack = Table::read().unwrap();
    assert_eq!(stack.stack(&path("at")).len(), 2);
    kernel::take(&path("at")).unwrap();
    assert_eq!(seen(), "new");
    kernel::take(&path("at")).unwrap();
    assert_eq!((seen().as_str(), Table::read().unwrap().0.len()), ("at", mounts));
}

#[test]
fn root_a_mount_takes_the_place_of_another() {
    if own_mounts(MountPropagationFlags::SHARED) {
        one_after_the_other(place::put_beneath);
    }
}

#[test]
fn root_a_mount_takes_the_place_of_another_as_on_older_kernels() {
    if own_mounts(MountPropagationFlags::SHARED) {
        one_after_the_other(place::tuck);
    }
}

#[test]
fn root_a_mount_takes_the_place_of_another_where_mounts_are_private() {
    if own_mounts(MountPropagationFlags::PRIVATE) {
        one_after_the_other(place::tuck);
        one_after_the_other(place::put_beneath);
    }
}

#[test]
fn root_what_was_seen_stays_until_it_is_let_go() {
    if !own_mounts(MountPropagationFlags::SHARED) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    mount("none", dir.path(), "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
    fs::write(dir.path().join("file"), "1").unwrap();
    let open = fs::File::open(dir.path().join("file")).unwrap();
    assert!(kernel::take(dir.path()).is_err());
    let device = super::users::device(dir.path()).unwrap();
    let me = format!("({})", std::process::id());
    assert!(super::users::users(&[device]).iter().any(|user| user.ends_with(&me)));
    kernel::detach(dir.path()).unwrap();
    assert_eq!(std::io::read_to_string(open).unwrap(), "1");
    assert!(!dir.path().join("file").exists());
}
