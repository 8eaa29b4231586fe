//! How large chunks and metadata are, and what goes where.

use std::path::Path;

use zumastor_core::{HumanBytes, StoreError};

use super::header::{HEADER, Layout, On, Piece};

/// Smallest and largest chunk of the kernel's thin pools.
pub(super) const CHUNKS: (u64, u64) = (64 << 10, 1 << 30);
/// Chunks of an origin above which they are made larger: adopting it writes one mapping for each.
const MANY: u64 = 2 << 20;
/// Least and most metadata: a pool cannot use more.
const METADATA: (u64, u64) = (4 << 20, 255 << 14 << 12);
/// Bytes of metadata for each chunk of the pool. A mapping takes some 20, but each snapshot after which the volume is
/// written everywhere adds leaves of its own.
const PER_CHUNK: u64 = 128;

/// The chunk of a volume that nobody chose one for.
pub(super) fn chunk_for(origin: u64) -> u64 {
    let mut chunk = CHUNKS.0;
    while origin / chunk > MANY && chunk < CHUNKS.1 {
        chunk *= 2;
    }
    chunk
}

pub(super) fn check_chunk(chunk: u64) -> Result<(), StoreError> {
    if chunk.is_power_of_two() && (CHUNKS.0..=CHUNKS.1).contains(&chunk) {
        return Ok(());
    }
    Err(StoreError::Unsupported(format!(
        "chunks of {chunk} bytes are not possible on block devices: the kernel takes powers of two from 64 KiB to 1 GiB"
    )))
}

/// Lays out a new volume.
pub(super) fn layout(
    chunk: u64,
    origin: u64,
    snapdev: (&Path, u64),
    metadev: Option<(&Path, u64)>,
) -> Result<Layout, StoreError> {
    let (path, size) = snapdev;
    let small = |path: &Path, size: u64, least: u64| {
        StoreError::Unsupported(format!(
            "{} has {}: that is too small, {} at least are needed",
            path.display(),
            HumanBytes(size),
            HumanBytes(least)
        ))
    };
    let wanted = ((origin + size) / chunk * PER_CHUNK).next_multiple_of(METADATA.0);
    let (metadata, begin) = match metadev {
        Some((path, size)) if size < METADATA.0 => return Err(small(path, size, METADATA.0)),
        Some((_, size)) => {
            (Piece { on: On::MetadataDevice, begin: 0, length: size.min(METADATA.1) / 4096 * 4096 }, HEADER)
        }
        None => {
            let most = (size / 4 / METADATA.0 * METADATA.0).max(METADATA.0);
            let length = wanted.clamp(METADATA.0, METADATA.1.min(most));
            (Piece { on: On::SnapshotStore, begin: HEADER, length }, HEADER + length)
        }
    };
    // What completes the last chunk of the origin, and some to work with.
    let least = begin + chunk * 16;
    if size < least {
        return Err(small(path, size, least));
    }
    let data = vec![
        Piece { on: On::Origin, begin: 0, length: origin },
        Piece { on: On::SnapshotStore, begin, length: (size - begin) / 4096 * 4096 },
    ];
    Ok(Layout { chunk, origin, identity: None, data, metadata: vec![metadata] })
}

/// The layout when the devices, which have these sizes now, are used up to so many bytes of data and of metadata.
pub(super) fn grown(
    layout: &Layout,
    (snapstore, metadev): (u64, u64),
    data: Option<u64>,
    metadata: Option<u64>,
) -> Result<Layout, StoreError> {
    let mut layout = layout.clone();
    let refused = |what: String| Err(StoreError::Unsupported(what));
    if let Some(wanted) = metadata {
        let wanted = wanted / 4096 * 4096;
        let has = length(&layout.metadata);
        if wanted < has {
            return refused(format!(
                "the metadata have {}, and a pool cannot do with less than it has: metadata are never made smaller",
                HumanBytes(has)
            ));
        }
        if wanted > METADATA.1 {
            return refused(format!("a pool cannot use more than {} of metadata", HumanBytes(METADATA.1)));
        }
        let more = wanted - has;
        let own = layout.metadata[0].on == On::MetadataDevice;
        let (begin, size) = if own { (has, metadev) } else { (layout.end(), snapstore) };
        if begin + more > size {
            let (which, remedy) = match own {
                true => ("the metadata device", "make it larger first"),
                false => {
                    ("the snapshot store", "make its device larger first, without giving that to the data")
                }
            };
            return refused(format!(
                "{} more of metadata do not fit: {which} has {} left; {remedy}",
                HumanBytes(more),
                HumanBytes(size.saturating_sub(begin) / 4096 * 4096)
            ));
        }
        let on = layout.metadata[0].on;
        add(&mut layout.metadata, Piece { on, begin, length: more });
    }
    if let Some(wanted) = data {
        let (wanted, end) = (wanted / 4096 * 4096, layout.end());
        if wanted > snapstore {
            return refused(format!(
                "the device of the snapshot store has {}: make it larger first",
                HumanBytes(snapstore)
            ));
        }
        if wanted < end {
            return refused(format!(
                "{} of the snapshot store are in use, and what is there cannot be moved: to make it smaller, replicate the volume \
                 to one with a smaller snapshot store",
                HumanBytes(end)
            ));
        }
        add(&mut layout.data, Piece { on: On::SnapshotStore, begin: end, length: wanted - end });
    }
    Ok(layout)
}

/// Adds a piece, or makes the last one longer.
fn add(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        _ if piece.length == 0 => {}
        Some(last) if last.on == piece.on && last.begin + last.length == piece.begin => {
            last.length += piece.length
        }
        _ => pieces.push(piece),
    }
}

impl Layout {
    /// Where the used part of the snapshot store ends.
    fn end(&self) -> u64 {
        let pieces = self.data.iter().chain(&self.metadata).filter(|piece| piece.on == On::SnapshotStore);
        pieces.map(|piece| piece.begin + piece.length).max().unwrap_or(HEADER)
    }

    /// Bytes of data that the pool has.
    pub(super) fn pool(&self) -> u64 {
        length(&self.data) / self.chunk * self.chunk
    }
}

/// Bytes of several pieces.
pub(super) fn length(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.length).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_with_the_volume_and_stay_small_enough_to_replicate() {
        for (size, chunk) in
            [(1 << 20, 64 << 10), (128 << 30, 64 << 10), (1 << 40, 512 << 10), (100 << 40, 64 << 20)]
        {
            assert_eq!(chunk_for(size), chunk, "of {size}");
        }
        for bad in [0, 512, 32 << 10, 65_537, 2 << 30] {
            assert!(check_chunk(bad).is_err());
        }
    }

    #[test]
    fn devices_that_grew_are_used_and_nothing_is_made_smaller() {
        let path = Path::new("/dev/x");
        let before = layout(64 << 10, 100 << 20, (path, 64 << 20), None).unwrap();
        let grow = |layout: &Layout, size, data, metadata| grown(layout, (size, size), data, metadata);
        let more = grow(&before, 80 << 20, Some(72 << 20), None).unwrap();
        assert_eq!((more.data.len(), more.pool()), (2, before.pool() + (8 << 20)));
        let more = grow(&more, 80 << 20, None, Some(8 << 20)).unwrap();
        assert_eq!(more.metadata[1], Piece { on: On::SnapshotStore, begin: 72 << 20, length: 4 << 20 });
        let more = grow(&more, 80 << 20, Some(80 << 20), None).unwrap();
        assert_eq!((more.data.len(), more.pool()), (3, before.pool() + (12 << 20)));
        assert_eq!(grow(&more, 80 << 20, Some(80 << 20), Some(8 << 20)).unwrap(), more);
        for (data, metadata) in
            [(Some(81), None), (Some(40), None), (None, Some(4)), (None, Some(9)), (None, Some(20_000))]
        {
            assert!(grow(&more, 80 << 20, data.map(|d| d << 20), metadata.map(|m: u64| m << 20)).is_err());
        }
        let own = layout(64 << 10, 100 << 20, (path, 64 << 20), Some((path, 8 << 20))).unwrap();
        assert_eq!(length(&grow(&own, 64 << 20, None, Some(32 << 20)).unwrap().metadata), 32 << 20);
    }

    #[test]
    fn everything_has_its_place() {
        let path = Path::new("/dev/x");
        let found = layout(64 << 10, 100 << 20, (path, 64 << 20), None).unwrap();
        let on_store = |begin, length| Piece { on: On::SnapshotStore, begin, length };
        assert_eq!(found.metadata, [on_store(HEADER, 4 << 20)]);
        assert_eq!(found.data[1..], [on_store(8 << 20, 56 << 20)]);
        assert_eq!(found.pool(), 156 << 20);
        let found = layout(64 << 10, 1 << 40, (path, 1 << 40), None).unwrap();
        assert_eq!(found.metadata, [on_store(HEADER, 4 << 30)]);
        let found = layout(64 << 10, 100 << 20, (path, 64 << 20), Some((path, 9 << 20))).unwrap();
        assert_eq!(found.metadata, [Piece { on: On::MetadataDevice, begin: 0, length: 9 << 20 }]);
        assert!(layout(64 << 10, 100 << 20, (path, 8 << 20), None).is_err());
        assert!(layout(64 << 10, 100 << 20, (path, 64 << 20), Some((path, 1 << 20))).is_err());
    }
}
