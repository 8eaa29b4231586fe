//! Reading the device of a snapshot.

use std::{ops::Range, path::PathBuf, sync::Arc};

use zumastor_core::{ExtentKind, SnapshotReader, StoreError, digest::Source};

use super::changes::Delta;
use crate::{
    described::failed,
    direct::Direct,
    reading::{check_bounds, reading},
};

/// Reads a thin device that nobody writes. While it is open, the device stays, whatever becomes of the snapshot.
#[derive(Debug)]
pub(crate) struct DeviceReader {
    device: Direct,
    path: PathBuf,
    size: u64,
}

impl DeviceReader {
    pub(crate) fn open(path: PathBuf, size: u64) -> Result<Self, StoreError> {
        let device = Direct::device(&path).map_err(failed("opening", &path))?;
        Ok(Self { device, path, size })
    }
}

impl SnapshotReader for DeviceReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        self.device.read_exact_at(offset, buf).map_err(|error| reading(error, &self.path, offset, buf.len()))
    }

    fn read_stored(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.read_at(offset, buf)
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
