//! Where the bytes of a snapshot go while it is received.

use std::{fmt::Debug, ops::Range, path::PathBuf};

use zumastor_core::{SnapshotReader, StoreError, files};

use super::{
    layout::failed,
    reader::{check_bounds, read_exact, reading},
    runs::Runs,
};
use crate::bulk::BulkFile;

/// Where the bytes of a staging go. Calls for different segments may run on different threads.
pub(crate) trait Body: Debug + Send + Sync {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;
    /// As `read_at`, from the disk and not from memory, if that is as fast.
    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError>;
    fn zero(&self, range: Range<u64>) -> Result<(), StoreError>;
    fn sync(&self) -> Result<(), StoreError>;
    /// The leaves that are here and not in the base; nothing where the file system keeps account.
    fn runs(&self) -> Runs;
}

/// An image of its own that is written in place.
#[derive(Debug)]
pub(crate) struct ImageBody {
    pub file: BulkFile,
    pub path: PathBuf,
}

impl Body for ImageBody {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        read_exact(self.file.file(), &self.path, offset, buf)
    }

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact_at(buf, offset).map_err(|error| reading(error, &self.path, offset, buf.len()))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.file.write_all_at(data, offset).map_err(failed("writing", &self.path))
    }

    fn zero(&self, range: Range<u64>) -> Result<(), StoreError> {
        files::punch_hole(self.file.file(), range).map_err(failed("writing", &self.path))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.file.file().sync_data().map_err(failed("syncing", &self.path))
    }

    fn runs(&self) -> Runs {
        Runs::default()
    }
}

/// Reads what is staged.
#[derive(Debug)]
pub(crate) struct StagedReader<'a> {
    pub body: &'a dyn Body,
    pub size: u64,
}

impl SnapshotReader for StagedReader<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        self.body.read_at(offset, buf)
    }
}
