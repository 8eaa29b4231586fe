//! `zumastor digest` of devices, beside that of what is on them.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use crate::common::{PROGRAM, root_with};
use zumastor::exit::Failure;
use zumastor_testbed::output;

fn digest(path: &Path) -> Result<String, Failure> {
    let out = output(PROGRAM, |program| program.arg("digest").arg(path))?;
    Ok(out.split_whitespace().next().unwrap_or_default().to_owned())
}

/// A loop device, taken away with this.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(failure) = output("losetup", |losetup| losetup.args(["-d", &self.0])) {
            eprintln!("{failure:?}");
        }
    }
}

#[test]
fn root_the_digest_of_a_device_is_of_what_is_on_it() -> Result<(), Failure> {
    if !root_with(&["losetup"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    let image = dir.path().join("image");
    // Not whole pieces of what is read and hashed at once.
    let write = |byte: u8| {
        let file = File::options().create(true).truncate(false).write(true).open(&image)?;
        file.set_len((3 << 20) + 512)?;
        file.write_all_at(&[byte; 70_000], (1 << 20) + 5)?;
        file.write_all_at(&[byte; 512], 3 << 20)?;
        file.sync_all()
    };
    write(1).map_err(Failure::doing("the image"))?;
    let device = output("losetup", |losetup| losetup.args(["-f", "--show"]).arg(&image))?;
    let device = Loop(device.trim().to_owned());
    let device = Path::new(&device.0);
    let before = digest(device)?;
    assert_eq!(before, digest(&image)?);

    // What the page cache has of the device, as a mounted file system would, is older than what is on it.
    let _cached = File::open(device).map_err(Failure::doing(device.display()))?;
    let read = || fs::read(device).map_err(Failure::doing(device.display()));
    let stale = read()?;
    write(2).map_err(Failure::doing("the image"))?;
    assert_eq!(read()?, stale, "nothing is cached");
    let after = digest(device)?;
    assert_ne!(after, before);
    assert_eq!(after, digest(&image)?);
    Ok(())
}
