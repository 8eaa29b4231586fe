//! The volume of the demo: an ext4 image with real files.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use zumastor_core::HumanBytes;

use crate::exit::Failure;

/// A raw image in a file.
pub(super) struct Image {
    pub path: PathBuf,
    pub size: u64,
    /// What it holds, in a sentence.
    pub description: String,
    /// Whether it holds an ext4 file system; otherwise files one after the other.
    ext4: bool,
}

impl Image {
    /// Makes an image from files of this machine.
    pub fn make(dir: &Path) -> Result<Self, Failure> {
        let tree = dir.join("tree");
        let (count, bytes) = collect(&tree).map_err(Failure::doing("collecting files"))?;
        let path = dir.join("volume.img");
        let file = File::create(&path).map_err(Failure::doing(path.display()))?;
        file.set_len(SIZE).map_err(Failure::doing(path.display()))?;
        let content = format!("{count} files, {}", HumanBytes(bytes));
        let ext4 = tool("mkfs.ext4").is_some() && tool("debugfs").is_some();
        let description = if ext4 {
            run("mkfs.ext4", |mkfs| {
                mkfs.args(["-q", "-F", "-L", "zumastor-demo", "-d"]).arg(&tree).arg(&path)
            })?;
            format!("{}: ext4, {}, made with mkfs.ext4 -d from {content}.", path.display(), HumanBytes(SIZE))
        } else {
            concatenate(&tree, file).map_err(Failure::doing(path.display()))?;
            format!(
                "{}: {}, holding {content} one after the other. It is no file system, because this machine has no \
                 e2fsprogs; with them it would be an ext4.",
                path.display(),
                HumanBytes(SIZE)
            )
        };
        fs::remove_dir_all(&tree).map_err(Failure::doing(tree.display()))?;
        Ok(Self { path, size: SIZE, description, ext4 })
    }

    /// The path, as an argument.
    pub fn path_str(&self) -> &str {
        self.path.to_str().unwrap_or("volume.img")
    }

    /// Changes some of the content, and says what.
    pub fn change(&self, dir: &Path) -> Result<String, Failure> {
        let news = dir.join("news.txt");
        let text: String =
            (0..40_000).map(|line| format!("line {line} of a file that was not there before\n")).collect();
        fs::write(&news, &text).map_err(Failure::doing(news.display()))?;
        if self.ext4 {
            let commands = dir.join("debugfs.commands");
            let script = format!(
                "write {} news.txt\nmkdir fresh\nwrite {0} fresh/copy.txt\nrm file-7\nrm file-8\n",
                news.display()
            );
            fs::write(&commands, script).map_err(Failure::doing(commands.display()))?;
            run("debugfs", |debugfs| debugfs.args(["-w", "-f"]).arg(&commands).arg(&self.path))?;
            let listing = run("debugfs", |debugfs| debugfs.args(["-R", "ls fresh"]).arg(&self.path))?;
            if !listing.contains("copy.txt") {
                return Err(Failure::failed("debugfs did not write into the image"));
            }
        } else {
            let image =
                File::options().write(true).open(&self.path).map_err(Failure::doing(self.path.display()))?;
            for place in [1 << 20, 100 << 20] {
                image.write_all_at(text.as_bytes(), place).map_err(Failure::doing(self.path.display()))?;
            }
        }
        let length = HumanBytes(text.len() as u64);
        Ok(match self.ext4 {
            true => format!(
                "Two files of {length} were written and two deleted inside the image (debugfs, no mount)."
            ),
            false => format!("{length} were written in two places of the image."),
        })
    }

    /// Checks the file system of a replica: what is wrong with it, empty if nothing; none if it cannot be checked.
    pub fn check(&self, replica: &Path) -> Result<Option<String>, Failure> {
        let Some(e2fsck) = tool("e2fsck").filter(|_| self.ext4) else { return Ok(None) };
        let output = Command::new(e2fsck).args(["-fn"]).arg(replica).stdin(Stdio::null()).output();
        let output = output.map_err(Failure::doing("starting e2fsck"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Some(if output.status.success() { String::new() } else { said }))
    }
}

/// Copies files of this machine into `tree` as `file-0`, `file-1`, …: about [`CONTENT`] bytes.
fn collect(tree: &Path) -> std::io::Result<(u64, u64)> {
    fs::create_dir_all(tree)?;
    let (mut count, mut bytes) = (0, 0);
    let own = std::env::current_exe().ok();
    let places = ["/usr/share", "/usr/lib", "/usr/bin", "/opt", "/lib", "/bin"].map(PathBuf::from);
    for place in places {
        let mut queue = vec![place];
        let end = (bytes + CONTENT / 3).min(CONTENT);
        while let Some(dir) = queue.pop() {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() {
                    queue.push(entry.path());
                }
                if bytes >= end || !kind.is_file() {
                    continue;
                }
                let length = entry.metadata().map_or(u64::MAX, |metadata| metadata.len());
                if (1..MAX_FILE).contains(&length)
                    && fs::copy(entry.path(), tree.join(format!("file-{count}"))).is_ok()
                {
                    count += 1;
                    bytes += length;
                }
            }
            if bytes >= end {
                break;
            }
        }
    }
    // A very small machine: this program is made of real data too.
    while let Some(own) = own.as_ref().filter(|_| bytes < CONTENT / 4 || count < 10) {
        bytes += fs::copy(own, tree.join(format!("file-{count}")))?;
        count += 1;
    }
    Ok((count, bytes))
}

fn concatenate(tree: &Path, mut image: File) -> std::io::Result<()> {
    let mut position = 0;
    for entry in fs::read_dir(tree)? {
        let content = fs::read(entry?.path())?;
        image.seek(SeekFrom::Start(position))?;
        image.write_all(&content)?;
        position += (content.len() as u64).next_multiple_of(4096);
    }
    Ok(())
}

/// Where a program is. Ordinary users often have no sbin in their PATH.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    places.map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn run(name: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<String, Failure> {
    let path = tool(name).ok_or_else(|| Failure::failed(format!("{name} is gone")))?;
    let mut command = Command::new(path);
    let output = arguments(command.stdin(Stdio::null()))
        .output()
        .map_err(Failure::doing(format!("starting {name}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::failed(format!("{name} failed: {}", said.trim())))
}

/// Size of the image.
const SIZE: u64 = 640 << 20;
/// Bytes of files in it.
const CONTENT: u64 = 320 << 20;
/// Longest file.
const MAX_FILE: u64 = 24 << 20;
