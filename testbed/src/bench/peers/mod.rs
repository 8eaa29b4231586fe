//! What else copies an image to another machine.

mod nbd;
mod restic;
mod rsync;
mod ssh;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use zumastor::exit::Failure;
use zumastor_testbed::{find, output};

use super::{link::Link, measure::Sample, report::RSYNC_WHOLE};

/// One way to do it.
pub struct Peer {
    /// What it is called in tables.
    pub name: &'static str,
    /// What it takes: programs, and the Debian packages that have them.
    programs: &'static [(&'static str, &'static str)],
    /// Whether the programs can do it, beside being there.
    able: fn() -> bool,
    run: fn(&Job<'_>) -> Result<Sample, Failure>,
    /// Whether [`Job::copy`] is a copy of the image afterwards.
    copies: bool,
}

/// What is to be copied where.
pub struct Job<'a> {
    /// The way there.
    pub link: &'a Link,
    /// The image.
    pub image: &'a Path,
    /// A directory on the receiving side, for the copy and whatever else it takes.
    pub dir: &'a Path,
}

impl Job<'_> {
    /// Name of the copy in the directory.
    const COPY: &'static str = "copy.img";

    /// Where the copy belongs.
    pub fn copy(&self) -> PathBuf {
        self.dir.join(Self::COPY)
    }
}

/// All that make a full copy.
pub const FULL: [Peer; 9] = [
    RSYNC,
    Peer {
        name: "rsync -W --inplace --fsync",
        able: rsync::can_sync,
        run: |job| rsync::run(&["-W", "--inplace", "--fsync"], job),
        ..RSYNC
    },
    Peer {
        name: "nbdcopy to nbdkit, clear text",
        programs: &[NBDKIT, ("nbdcopy", "libnbd-bin")],
        run: nbd::copy,
        ..PEER
    },
    Peer {
        name: "qemu-img convert to nbdkit, clear text",
        programs: &[NBDKIT, ("qemu-img", "qemu-utils")],
        run: nbd::convert,
        ..PEER
    },
    Peer {
        name: "nbdcopy to nbdkit, TLS",
        programs: &[NBDKIT, ("nbdcopy", "libnbd-bin")],
        run: nbd::copy_encrypted,
        ..PEER
    },
    Peer {
        name: "rsync -W --inplace over ssh",
        programs: &[RSYNC_PROGRAM, SSH, SSHD],
        run: ssh::rsync,
        ..PEER
    },
    PIPE,
    Peer {
        name: "zstd -1 | ssh | zstd -d",
        programs: &[("zstd", "zstd"), SSH, SSHD],
        run: ssh::compressed,
        ..PEER
    },
    Peer {
        name: "restic backup over sftp",
        programs: &[("restic", "restic"), SSH, SSHD],
        run: restic::backup,
        copies: false,
        ..PEER
    },
];

/// rsync that reads both files and sends what differs; to a copy that is there already.
pub const DELTA: Peer = Peer {
    name: "rsync --inplace --no-whole-file (delta)",
    run: |job| rsync::run(&["--inplace", "--no-whole-file"], job),
    ..RSYNC
};

/// The same with all files of a directory, whose path ends with a slash; the copies are below [`Job::copy`].
pub const DELTA_OF_ALL: Peer = Peer {
    name: "rsync -a --inplace --no-whole-file (delta)",
    run: |job| rsync::run(&["-a", "--inplace", "--no-whole-file"], job),
    copies: false,
    ..RSYNC
};

/// rsync that sends everything, whatever is there.
pub const RSYNC: Peer = Peer {
    name: RSYNC_WHOLE,
    programs: &[RSYNC_PROGRAM],
    run: |job| rsync::run(&["-W", "--inplace"], job),
    ..PEER
};

/// What needs nothing but ssh.
pub const PIPE: Peer = Peer { name: "dd | ssh | dd", programs: &[SSH, SSHD], run: ssh::pipe, ..PEER };

const PEER: Peer = Peer { name: "", programs: &[], able: || true, run: ssh::pipe, copies: true };

const RSYNC_PROGRAM: (&str, &str) = ("rsync", "rsync");
const SSH: (&str, &str) = ("ssh", "openssh-client");
const SSHD: (&str, &str) = ("sshd", "openssh-server");
const NBDKIT: (&str, &str) = ("nbdkit", "nbdkit");

impl Peer {
    /// Why it cannot run here, if it cannot.
    pub fn missing(&self) -> Option<String> {
        if let Some((program, package)) = self.programs.iter().find(|(program, _)| find(program).is_none()) {
            let name = self.name;
            return Some(format!(
                "Not compared: {name}, because {program} (package {package}) is not installed."
            ));
        }
        (!(self.able)()).then(|| format!("Not compared: {}, which is too old here.", self.name))
    }

    /// Copies, and checks what came of it, which is not measured.
    pub fn run(&self, job: &Job<'_>) -> Result<Sample, Failure> {
        let named = |failure: Failure| Failure::failed(format!("{}: {failure}", self.name));
        let sample = (self.run)(job).map_err(named)?;
        if self.copies && !equal(job.image, &job.copy()).map_err(Failure::doing("comparing a copy"))? {
            return Err(Failure::failed(format!("{}: the copy differs from the image", self.name)));
        }
        Ok(sample)
    }
}

/// The versions of what the peers use, in a sentence.
pub fn versions() -> Option<String> {
    let said = |(program, option): &(&str, &str)| {
        let path = find(program)?;
        let ask = "\"$0\" \"$1\" 2>&1";
        let text = output("sh", |sh| sh.args(["-c", ask]).arg(&path).arg(option)).ok()?;
        let line = text.lines().next()?.trim_matches(['*', ' ']);
        // Some say more than the version, behind two spaces or a comma.
        let words = line.split_inclusive("  ").take(2).collect::<String>();
        Some(words.split(',').next()?.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let asked = [
        ("rsync", "--version"),
        ("ssh", "-V"),
        ("zstd", "--version"),
        ("nbdkit", "--version"),
        ("nbdcopy", "--version"),
        ("qemu-img", "--version"),
        ("restic", "version"),
    ];
    let found: Vec<_> = asked.iter().filter_map(said).collect();
    (!found.is_empty()).then(|| format!("Beside it: {}.", found.join(", ")))
}

/// Whether two files are equal.
fn equal(one: &Path, two: &Path) -> io::Result<bool> {
    let (one, two) = (File::open(one)?, File::open(two)?);
    let size = one.metadata()?.len();
    if two.metadata()?.len() != size {
        return Ok(false);
    }
    let [mut left, mut right] = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut at = 0;
    while at < size {
        let length = (size - at).min(left.len() as u64) as usize;
        one.read_exact_at(&mut left[..length], at)?;
        two.read_exact_at(&mut right[..length], at)?;
        if left[..length] != right[..length] {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_files_are_equal_to_the_last_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        let mut content = vec![1; (1 << 20) + 3];
        std::fs::write(&one, &content).unwrap();
        std::fs::write(&two, &content).unwrap();
        assert!(equal(&one, &two).unwrap());
        *content.last_mut().unwrap() = 2;
        std::fs::write(&two, &content).unwrap();
        assert!(!equal(&one, &two).unwrap());
        content.pop();
        std::fs::write(&two, &content).unwrap();
        assert!(!equal(&one, &two).unwrap());
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let peer =
            Peer { name: "a copier", programs: &[("sh", "dash"), ("no-such-copier", "copiers")], ..PEER };
        let said = peer.missing().unwrap();
        assert!(said.contains("a copier") && said.contains("no-such-copier (package copiers)"), "{said}");
        assert_eq!(Peer { programs: &[("sh", "dash")], ..PEER }.missing(), None);
    }
}
