//! Whether a program may be run as a hook: what the daemon runs, nobody but its own user and root may have written.

use std::{
    fs::{self, Metadata},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

/// Why not, in words that follow the program's path, and what to do about it.
pub fn check(program: &Path) -> Result<(), (String, String)> {
    let unknown = |error: std::io::Error| (format!("cannot be looked at: {error}"), REMEDY.to_owned());
    let real = program.canonicalize().map_err(unknown)?;
    let metadata = fs::metadata(&real).map_err(unknown)?;
    if !metadata.is_file() {
        return Err(("is no file".to_owned(), REMEDY.to_owned()));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(("is not executable".to_owned(), format!("`chmod +x {}`", program.display())));
    }
    trusted(&real, &metadata)?;
    // Who may write a directory may put another program there.
    for dir in program.ancestors().skip(1).chain(real.ancestors().skip(1)) {
        let metadata = fs::metadata(dir).map_err(unknown)?;
        let sticky = metadata.permissions().mode() & 0o1000 != 0;
        if !sticky || metadata.uid() != 0 {
            trusted(dir, &metadata)?;
        }
    }
    Ok(())
}

fn trusted(path: &Path, metadata: &Metadata) -> Result<(), (String, String)> {
    let (path, own) = (path.display(), rustix::process::geteuid().as_raw());
    if metadata.uid() != 0 && metadata.uid() != own {
        let text = format!("cannot be trusted: {path} belongs to neither root nor the daemon's user");
        return Err((
            text,
            format!("`chown {} {path}`", if own == 0 { "root".to_owned() } else { own.to_string() }),
        ));
    }
    if metadata.permissions().mode() & 0o022 != 0 {
        let text = format!("cannot be trusted: {path} may be written by others than its owner");
        return Err((text, format!("`chmod go-w {path}`")));
    }
    Ok(())
}

const REMEDY: &str = "put the program there, or correct the path in the volume's file and `zumastor reload`";

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn what_others_could_have_written_is_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("hook");
        let refused = || check(&program).unwrap_err();
        assert!(refused().0.contains("cannot be looked at"));
        fs::write(&program, "#!/bin/sh\n").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        mode(&program, 0o644);
        assert_eq!(refused().1, format!("`chmod +x {}`", program.display()));
        mode(&program, 0o755);
        check(&program).unwrap();
        mode(&program, 0o775);
        assert!(refused().0.contains("may be written by others") && refused().1.contains("chmod go-w"));
        mode(&program, 0o700);
        mode(dir.path(), 0o777);
        assert!(
            refused().0.contains(&format!("{} may be written", dir.path().canonicalize().unwrap().display()))
        );
        mode(dir.path(), 0o755);
        // Through a link, both ways are looked at.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&program, &link).unwrap();
        check(&link).unwrap();
        assert_eq!(check(dir.path()).unwrap_err().0, "is no file");
    }
}
