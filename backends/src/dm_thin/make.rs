//! Making the store of a volume that has none: nothing of the origin is moved or changed.

use std::{fs::OpenOptions, io, os::unix::fs::FileExt, path::Path};

use uuid::Uuid;
use zumastor_core::StoreError;

use super::{
    below::clear_others,
    devices::{BlockDevice, check_unused, signature, wipe},
    header::{Content, Header, Layout},
    new_pool,
    sizes::{self, length},
};
use crate::{
    Faults, Making, VolumeSpec,
    described::failed,
    thin::{
        Catalogue, ThinId,
        kernel::{SECTOR, check_name, prefix},
        mapper::Mapper,
    },
    thin_metadata::NewPool,
};

/// The first thin device of a pool: the head.
const FIRST: ThinId = ThinId(0);

/// Makes a store. The header, which is written last, makes it one: until then nothing has happened that matters.
pub(super) fn make(
    spec: &VolumeSpec,
    making: Making,
    mapper: Mapper,
    header: &mut Header,
    faults: &Faults,
) -> Result<Content, StoreError> {
    let origin = BlockDevice::look(&spec.origin)?;
    let snapdev = BlockDevice::look(&spec.snapstore)?;
    let metadev = spec.metadev.as_deref().map(|path| Ok::<_, StoreError>((path, BlockDevice::look(path)?)));
    let metadev = metadev.transpose()?;
    let same = |other: &BlockDevice| other.number == origin.number || other.number == snapdev.number;
    if origin.number == snapdev.number || metadev.as_ref().is_some_and(|(_, metadev)| same(metadev)) {
        return Err(StoreError::Unsupported(
            "origin, snapshot store and metadata device must be different devices".to_owned(),
        ));
    }
    check_name(&mapper, spec.name.as_str())?;
    let store = Uuid::now_v7();
    clear_others(&mapper, spec.name.as_str(), &prefix(store))?;
    let overwritten: Vec<&Path> =
        [Some(spec.snapstore.as_path()), spec.metadev.as_deref()].into_iter().flatten().collect();
    for path in [spec.origin.as_path()].iter().chain(&overwritten) {
        check_unused(path)?;
    }
    for path in &overwritten {
        match signature(path)? {
            Some(found) if !making.overwrite => {
                return Err(StoreError::Unsupported(format!(
                    "{} holds {found}, which would be overwritten: give an empty device, or `--yes` if it is not needed",
                    path.display()
                )));
            }
            Some(_) => wipe(path)?,
            None => {}
        }
    }
    let size = origin.size / SECTOR * SECTOR;
    let chunk = spec.chunk.unwrap_or_else(|| sizes::chunk_for(size));
    sizes::check_chunk(chunk)?;
    let metadev_size = metadev.as_ref().map(|(path, device)| (*path, device.size));
    let mut layout = sizes::layout(chunk, size, (&spec.snapstore, snapdev.size), metadev_size)?;
    layout.identity = origin.identity(&spec.origin);
    let content =
        Content { layout, transaction: 0, open: true, catalogue: Catalogue::new(store, FIRST, size) };
    fill(spec, making, header, &content, faults)?;
    faults.at("make: before the header")?;
    header.write(&content)?;
    faults.at("make: after the header")?;
    Ok(content)
}

/// Writes the metadata, and what completes the last chunk of the origin.
fn fill(
    spec: &VolumeSpec,
    making: Making,
    header: &Header,
    content: &Content,
    faults: &Faults,
) -> Result<(), StoreError> {
    let again = header.try_clone()?;
    let pool = new_pool(spec, again, content.clone(), faults.clone())?;
    let Layout { chunk, origin, .. } = content.layout;
    if !making.initialize {
        let padding = origin.next_multiple_of(chunk) - origin;
        let begin = content.layout.data[1].begin;
        write_zeros(&spec.snapstore, begin, padding)?;
    }
    let metadata = pool.assemble_metadata()?;
    // The kernel takes a first block of zeros for metadata that are to be made.
    write_zeros(&metadata, 0, 4096)?;
    faults.at("make: before the metadata")?;
    if !making.initialize {
        adopt(&content.layout, &metadata)?;
    }
    faults.at("make: after the metadata")?;
    pool.assemble()?;
    if making.initialize {
        pool.message(&format!("create_thin {FIRST}")).map_err(StoreError::io("making the head"))?;
    }
    Ok(())
}

/// Writes metadata in which the head is mapped onto the whole origin, chunk by chunk.
fn adopt(layout: &Layout, metadata: &Path) -> Result<(), StoreError> {
    let pool = NewPool {
        device: FIRST.0,
        mapped: layout.origin.div_ceil(layout.chunk),
        data_blocks: layout.pool() / layout.chunk,
        data_block_size: (layout.chunk / SECTOR) as u32,
        metadata_blocks: length(&layout.metadata) / 4096,
    };
    pool.write(metadata).map_err(failed("writing the metadata of the pool to", metadata))
}

fn write_zeros(path: &Path, begin: u64, length: u64) -> Result<(), StoreError> {
    let file = OpenOptions::new().write(true).open(path).map_err(failed("opening", path))?;
    let zeros = vec![0; 1 << 20];
    let write = || -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let part = (length - done).min(zeros.len() as u64);
            file.write_all_at(&zeros[..part as usize], begin + done)?;
            done += part;
        }
        file.sync_data()
    };
    write().map_err(failed("writing", path))
}
