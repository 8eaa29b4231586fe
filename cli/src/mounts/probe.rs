//! Which file system a device or an image holds, as far as its superblock tells.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// A file system that can be mounted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 or ext4; `replay` when its journal holds what is not in its place yet.
    Ext {
        /// Whether that is so.
        replay: bool,
    },
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl Kind {
    /// What is on a device or in an image; nothing if it is none of these.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let field = |offset, length: usize| -> io::Result<Option<Vec<u8>>> {
            let mut bytes = vec![0; length];
            match file.read_exact_at(&mut bytes, offset) {
                Ok(()) => Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                Err(error) => Err(error),
            }
        };
        if field(0, 4)?.is_some_and(|magic| magic == b"XFSB") {
            return Ok(Some(Self::Xfs));
        }
        if let Some(superblock) = field(1024, 1024)?
            && superblock[56..58] == [0x53, 0xEF]
        {
            // s_feature_incompat, EXT4_FEATURE_INCOMPAT_RECOVER.
            return Ok(Some(Self::Ext { replay: superblock[96] & 4 != 0 }));
        }
        let btrfs = field(0x1_0040, 8)?.is_some_and(|magic| magic == b"_BHRfS_M");
        Ok(btrfs.then_some(Self::Btrfs))
    }

    /// The name that the kernel has for it.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Ext { .. } => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The option for mounting a read-only device although its journal was not replayed.
    pub fn without_replay(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Ext { .. } => ("noload", None),
            Self::Xfs => ("norecovery", None),
            Self::Btrfs => ("rescue", Some("nologreplay")),
        }
    }
}
