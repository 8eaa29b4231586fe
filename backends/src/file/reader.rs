//! Reading a snapshot that is one file.

use std::{fs::File, io, ops::Range, path::PathBuf};

use zumastor_core::{SnapshotReader, StoreError, digest::Source, files};

use super::layout::failed;
pub(crate) use crate::reading::{check_bounds, read_exact, read_stored, reading};

/// Reads an image file.
#[derive(Debug)]
pub(crate) struct ImageReader {
    file: File,
    path: PathBuf,
    size: u64,
}

impl ImageReader {
    /// Opens an image that should have `size` bytes.
    pub(crate) fn open(path: PathBuf, size: u64) -> Result<Self, StoreError> {
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Damaged {
                    path,
                    what: "the image of this snapshot is missing".into(),
                });
            }
            file => file.map_err(failed("opening", &path))?,
        };
        let length = file.metadata().map_err(failed("opening", &path))?.len();
        if length != size {
            let what = format!("the image has {length} bytes where the snapshot has {size}");
            return Err(StoreError::Damaged { path, what });
        }
        Ok(Self { file, path, size })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl SnapshotReader for ImageReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        read_exact(&self.file, &self.path, offset, buf)
    }

    fn read_stored(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        read_stored(&self.file, &self.path, offset, buf)
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        Source::data(self, window)
    }
}

impl Source for ImageReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        SnapshotReader::read_at(self, offset, buf)
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        files::data_ranges(&self.file, window).map_err(failed("reading", &self.path))
    }
}
