//! Reading plain files and devices, without any store.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
};

use zumastor_core::{StoreError, digest::Source, files};

use crate::direct::Direct;

/// Opens a file or block device to compute its digest: what `zumastor digest FILE` reads. Of a device that is what is on the disk,
/// whatever is mounted from it.
pub fn plain_source(path: &Path) -> Result<impl Source + use<>, StoreError> {
    let open = || -> io::Result<Option<(Content, u64)>> {
        let metadata = fs::metadata(path)?;
        let kind = metadata.file_type();
        Ok(if kind.is_file() {
            let file = File::open(path)?;
            let size = file.metadata()?.len();
            Some((Content::File(file), size))
        } else if kind.is_block_device() {
            let device = Direct::device(path)?;
            let size = device.size()?;
            Some((Content::Device(device), size))
        } else {
            None
        })
    };
    let opened = open().map_err(StoreError::io(format!("opening {}", path.display())))?;
    let (content, size) = opened
        .ok_or_else(|| StoreError::Unsupported(format!("{} is no file or block device", path.display())))?;
    Ok(Plain { content, path: path.to_owned(), size })
}

#[derive(Debug)]
enum Content {
    File(File),
    Device(Direct),
}

#[derive(Debug)]
struct Plain {
    content: Content,
    path: PathBuf,
    size: u64,
}

impl Source for Plain {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let read = match &self.content {
            Content::File(file) => file.read_exact_at(buf, offset),
            Content::Device(device) => device.read_exact_at(offset, buf),
        };
        let what = || format!("reading {} at byte {offset}", self.path.display());
        read.map_err(|e| StoreError::io(what())(e))
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        let Content::File(file) = &self.content else { return Ok(vec![window]) };
        files::data_ranges(file, window)
            .map_err(|e| StoreError::io(format!("reading {}", self.path.display()))(e))
    }
}
