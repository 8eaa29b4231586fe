//! Reading plain files and devices, without any store.

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
};

use rustix::fs::SeekFrom;
use zumastor_core::{StoreError, digest::Source, files};

/// Opens a file or block device to compute its digest: what `zumastor digest FILE` reads.
pub fn plain_source(path: &Path) -> Result<impl Source + use<>, StoreError> {
    let failed = || StoreError::io(format!("opening {}", path.display()));
    let file = File::open(path).map_err(failed())?;
    let metadata = file.metadata().map_err(failed())?;
    let kind = metadata.file_type();
    let (size, sparse) = if kind.is_file() {
        (metadata.len(), true)
    } else if kind.is_block_device() {
        (rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| failed()(e.into()))?, false)
    } else {
        return Err(StoreError::Unsupported(format!("{} is no file or block device", path.display())));
    };
    Ok(Plain { file, path: path.to_owned(), size, sparse })
}

#[derive(Debug)]
struct Plain {
    file: File,
    path: PathBuf,
    size: u64,
    sparse: bool,
}

impl Source for Plain {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let what = || format!("reading {} at byte {offset}", self.path.display());
        self.file.read_exact_at(buf, offset).map_err(|e| StoreError::io(what())(e))
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        if !self.sparse {
            return Ok(vec![window]);
        }
        files::data_ranges(&self.file, window)
            .map_err(|e| StoreError::io(format!("reading {}", self.path.display()))(e))
    }
}
