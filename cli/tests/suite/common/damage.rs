//! Disks that make bytes others than they were.

use std::{
    fs::{self, File, FileTimes},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::Node;

/// The files that hold what snapshots hold.
pub fn content_files(node: &Node, number: u64) -> Vec<PathBuf> {
    let snaps = node.path("v.snaps");
    let image = snaps.join(format!("snapshots/{number:010}/image"));
    if image.exists() {
        return vec![image];
    }
    fs::read_dir(snaps.join("data")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Makes bytes of a file others than they were, unnoticed.
pub fn damage(path: &Path, offset: u64, length: usize) {
    let metadata = fs::metadata(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0xff);
    file.write_all_at(&bytes, offset).unwrap();
    file.set_times(FileTimes::new().set_modified(metadata.modified().unwrap())).unwrap();
    fs::set_permissions(path, metadata.permissions()).unwrap();
}

/// Damages a snapshot of `v` wherever its content lies.
pub fn damage_snapshot(node: &Node, number: u64, offset: u64, length: usize) {
    content_files(node, number).iter().for_each(|path| damage(path, offset, length));
}
