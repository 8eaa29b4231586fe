//! Reading blocks of a metadata device, past the page cache: the pool writes past it too.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{ThinMetadataError, format::BLOCK};

/// No metadata device is longer: about 16 GiB, `THIN_METADATA_MAX_SECTORS` of the kernel.
const MOST: u64 = 255 << 14;

/// A metadata device, or a file that holds the same.
#[derive(Debug)]
pub(super) struct Blocks {
    path: PathBuf,
    file: File,
    count: u64,
}

impl Blocks {
    pub(super) fn open(path: &Path) -> Result<Self, ThinMetadataError> {
        let opened = open(path).and_then(|mut file| Ok((file.seek(SeekFrom::End(0))?, file)));
        let (length, file) =
            opened.map_err(|source| ThinMetadataError::Io { path: path.to_owned(), block: 0, source })?;
        Ok(Self { path: path.to_owned(), file, count: (length / BLOCK as u64).min(MOST) })
    }

    /// How many blocks there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Reads whole blocks into a buffer that begins at a page.
    pub(super) fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), ThinMetadataError> {
        let read = self.file.read_exact_at(buffer, block * BLOCK as u64);
        read.map_err(|source| ThinMetadataError::Io { path: self.path.clone(), block, source })
    }

    pub(super) fn damaged(&self, block: u64, what: impl Into<String>) -> ThinMetadataError {
        ThinMetadataError::Damaged { path: self.path.clone(), block, what: what.into() }
    }

    pub(super) fn no_superblock(&self, block: u64, what: impl Into<String>) -> ThinMetadataError {
        ThinMetadataError::Superblock { path: self.path.clone(), block, what: what.into() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        // A file system in memory has no such thing, and a file on it no other reader of its blocks.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            let file = options.open(path)?;
            if file.metadata()?.file_type().is_block_device() { Err(e) } else { Ok(file) }
        }
        opened => opened,
    }
}
