//! Reading the device of a snapshot.

use std::{fs::File, ops::Range, path::PathBuf, sync::Arc};

use zumastor_core::{ExtentKind, SnapshotReader, StoreError, digest::Source};

use super::changes::Delta;
use crate::{
    described::failed,
    reading::{check_bounds, read_exact, read_stored},
};

/// Reads a thin device that nobody writes. While it is open, the device stays, whatever becomes of the snapshot.
#[derive(Debug)]
pub(crate) struct DeviceReader {
    file: File,
    path: PathBuf,
    size: u64,
}

impl DeviceReader {
    pub(crate) fn open(path: PathBuf, size: u64) -> Result<Self, StoreError> {
        let file = File::open(&path).map_err(failed("opening", &path))?;
        Ok(Self { file, path, size })
    }
}

impl SnapshotReader for DeviceReader {
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
}

/// A snapshot to compute a digest of: what is not mapped is not read.
#[derive(Debug)]
pub(crate) struct Mapped<'a> {
    pub reader: &'a DeviceReader,
    pub mapped: Arc<Delta>,
}

impl Source for Mapped<'_> {
    fn size(&self) -> u64 {
        SnapshotReader::size(self.reader)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        SnapshotReader::read_at(self.reader, offset, buf)
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        let changes = self.mapped.within(&window, Source::size(self));
        let data = changes.iter().filter(|extent| extent.kind == ExtentKind::Data);
        Ok(data.map(|extent| extent.range.clone()).collect())
    }
}
