//! Shares of Samba whose snapshots are the "previous versions" of Windows: one file, which `smb.conf` includes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A volume that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What the share is called: as the volume.
    pub name: String,
    /// Where the volume is mounted.
    pub path: PathBuf,
    /// Where its snapshots are mounted, each in a directory with the time it was taken.
    pub snappath: PathBuf,
    /// Whether it can be written to.
    pub writable: bool,
}

/// Writes the file that tells Samba of these shares, and lets it know; true if that changed anything.
pub fn write_shares(file: &Path, shares: &[Share]) -> io::Result<bool> {
    let text = format!("{HEAD}{}", shares.iter().map(section).collect::<String>());
    let before = fs::read_to_string(file).ok();
    if before.as_deref() == Some(&text) || (before.is_none() && shares.is_empty()) {
        return Ok(false);
    }
    let new = file.with_extension("conf.new");
    fs::write(&new, text)?;
    fs::rename(&new, file)?;
    // It may not run, or not be installed; it reads the file when it starts, and looks again every few minutes.
    let _ = Command::new("smbcontrol")
        .args(["smbd", "reload-config"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    Ok(true)
}

fn section(share: &Share) -> String {
    let Share { name, path, snappath, writable } = share;
    let (path, snappath, read_only) =
        (path.display(), snappath.display(), if *writable { "no" } else { "yes" });
    format!(
        "\n[{name}]\n    comment = volume {name} and its snapshots\n    path = {path}\n    read only = {read_only}\n    \
         vfs objects = shadow_copy2\n    shadow:snapdir = {snappath}\n    shadow:format = %Y.%m.%d-%H.%M.%S\n    \
         shadow:localtime = yes\n    shadow:sort = desc\n"
    )
}

const HEAD: &str = "# Written by zumastor, again and again. A line in the [global] section of smb.conf brings it into force:\n\
                    #     include = THIS FILE\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("samba.conf");
        assert!(!write_shares(&file, &[]).unwrap() && !file.exists());
        let share = Share {
            name: "disk".into(),
            path: "/srv/disk".into(),
            snappath: "/run/s".into(),
            writable: false,
        };
        let shares = [share];
        assert!(write_shares(&file, &shares).unwrap() && !write_shares(&file, &shares).unwrap());
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("\n[disk]\n") && text.contains("\n    shadow:snapdir = /run/s\n"), "{text}");
        assert!(write_shares(&file, &[]).unwrap());
        assert!(!fs::read_to_string(&file).unwrap().contains("[disk]"));
    }
}
