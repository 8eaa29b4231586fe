//! `--blocksize`, `--chunksize` and `--cachesize` of `define volume`: what cannot be had is refused, and nothing is ignored.

use zumastor_core::{Geometry, HumanBytes, check_chunk};

use super::cache;
use crate::{api::DefineVolume, exit::Failure};

/// Blocks of the metadata of every store that has a device for it.
const METADATA_BLOCK: u64 = 4096;

/// Checks what was asked for, and gives the size of chunks if one was.
pub fn wanted(define: &DefineVolume) -> Result<Option<u64>, Failure> {
    for bytes in [define.blocksize, define.chunksize].into_iter().flatten() {
        check_chunk(bytes).map_err(|error| Failure::usage(error.to_string()))?;
    }
    if let Some(bytes) = define.cachesize {
        cache::check(bytes).map_err(Failure::usage)?;
    }
    let differ =
        define.chunksize.is_some() && define.blocksize.is_some() && define.blocksize != define.chunksize;
    if differ && define.metadev.is_none() {
        return Err(Failure::usage(
            "blocks of metadata and chunks of data may only have different sizes with a separate metadata device (--metadev)",
        ));
    }
    if define.metadev.is_none() {
        return Ok(define.chunksize.or(define.blocksize));
    }
    match define.blocksize {
        Some(bytes) if bytes != METADATA_BLOCK => Err(Failure::refused(format!(
            "metadata have blocks of {}, and no other size can be had",
            HumanBytes(METADATA_BLOCK)
        ))
        .remedy("leave out --blocksize, or give 4K")),
        _ => Ok(define.chunksize),
    }
}

/// Refuses a store that has chunks of another size than was asked for.
pub fn check(wanted: Option<u64>, geometry: Geometry, kind: &str) -> Result<(), Failure> {
    let Some(wanted) = wanted.filter(|wanted| *wanted != geometry.chunk) else { return Ok(()) };
    let (asked, has) = (HumanBytes(wanted), HumanBytes(geometry.chunk));
    Err(Failure::refused(format!("this store ({kind}) has chunks of {has}, and cannot have chunks of {asked}"))
        .remedy("leave out --chunksize and --blocksize: what changes is found and sent by the page of 4 KiB in any case"))
}
