//! Frames on a stream: a header, which is a message, and a payload, which is volume data.
//!
//! ```text
//! 4 bytes  length of the header, little-endian
//! 4 bytes  length of the payload, little-endian
//! header   postcard
//! payload  empty unless the header says otherwise
//! ```

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    buffers::{Buffer, Buffers},
    channel::Outlet,
};

/// Bounds on a frame, checked before anything is allocated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Largest header in bytes.
    pub header: usize,
    /// Largest payload in bytes.
    pub payload: usize,
}

/// Why no frame could be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream ended between or within frames.
    #[error("the peer ended the stream early")]
    Ended,
    /// The stream broke.
    #[error("the connection broke: {0}")]
    Io(#[source] io::Error),
    /// Nothing came, or nothing was taken, for so long.
    #[error("the peer made no progress for {} seconds", .0.as_secs())]
    Stalled(Duration),
    /// A length beyond the limit.
    #[error("the peer sent a frame of {header} + {payload} bytes, more than is allowed here")]
    TooLarge {
        /// Length of the header.
        header: usize,
        /// Length of the payload.
        payload: usize,
    },
    /// Bytes that are no message of the expected kind.
    #[error("the peer sent something that is no {expected}")]
    Malformed {
        /// The kind of message that was expected.
        expected: &'static str,
    },
}

/// Encodes a frame.
///
/// # Panics
/// When header or payload is 4 GiB or longer.
pub fn encode(header: &impl Serialize, payload: &[u8]) -> Bytes {
    let mut bytes = head(header, payload.len());
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// Encodes a frame but for its payload, which is to follow.
pub(crate) fn head(header: &impl Serialize, payload: usize) -> Vec<u8> {
    let bytes = postcard::to_extend(header, vec![0; PREFIX]);
    let mut bytes = bytes.expect("messages can be encoded");
    let length = u32::try_from(bytes.len() - PREFIX).expect("a header is far below 4 GiB");
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    let length = u32::try_from(payload).expect("a payload is far below 4 GiB");
    bytes[4..PREFIX].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Reads one frame that has no payload, and a header of at most `limit` bytes. `stall` bounds the time between two pieces of it,
/// not the whole: slow is not stuck.
///
/// # Errors
/// [`FrameError::Ended`] also when the stream ends cleanly before the frame.
pub async fn read<R, H>(reader: &mut R, limit: usize, stall: Duration) -> Result<H, FrameError>
where
    R: AsyncRead + Unpin + ?Sized,
    H: DeserializeOwned,
{
    let limits = Limits { header: limit, payload: 0 };
    Ok(read_header(reader, limits, stall).await?.0)
}

/// Reads one frame, as [`read`] does, and what belongs to it into a buffer.
pub(crate) async fn read_with_payload<R, H>(
    reader: &mut R,
    limits: Limits,
    stall: Duration,
    buffers: &Arc<Buffers>,
) -> Result<(H, Buffer), FrameError>
where
    R: AsyncRead + Unpin + ?Sized,
    H: DeserializeOwned,
{
    let (header, length) = read_header(reader, limits, stall).await?;
    let mut buffer = buffers.take(if length == 0 { 0 } else { limits.payload });
    fill(reader, &mut buffer.all()[..length], stall).await?;
    buffer.set_len(length);
    Ok((header, buffer))
}

/// Reads a header; tells the length of the payload that follows.
async fn read_header<R, H>(reader: &mut R, limits: Limits, stall: Duration) -> Result<(H, usize), FrameError>
where
    R: AsyncRead + Unpin + ?Sized,
    H: DeserializeOwned,
{
    let mut prefix = [0; PREFIX];
    fill(reader, &mut prefix, stall).await?;
    let length = |at: usize| u32::from_le_bytes(prefix[at..at + 4].try_into().expect("4 bytes")) as usize;
    let (header, payload) = (length(0), length(4));
    if header > limits.header || payload > limits.payload {
        return Err(FrameError::TooLarge { header, payload });
    }
    let mut bytes = Vec::new();
    // Memory grows with what arrives, not with what was promised.
    while bytes.len() < header {
        let arrived = bytes.len();
        bytes.resize(header.min(arrived + arrived.max(STEP)), 0);
        fill(reader, &mut bytes[arrived..], stall).await?;
    }
    Ok((decode(&bytes)?, payload))
}

/// Decodes a header; every byte must belong to it.
pub fn decode<H: DeserializeOwned>(bytes: &[u8]) -> Result<H, FrameError> {
    match postcard::take_from_bytes(bytes) {
        Ok((header, [])) => Ok(header),
        _ => Err(FrameError::Malformed { expected: short_name::<H>() }),
    }
}

/// Writes bytes that [`encode`] made. `stall` bounds the time in which the peer takes none of them.
pub async fn write<W: AsyncWrite + Unpin + ?Sized>(
    writer: &mut W,
    mut bytes: &[u8],
    stall: Duration,
) -> Result<(), FrameError> {
    while !bytes.is_empty() {
        let written = tokio::time::timeout(stall, writer.write(bytes)).await;
        match written.map_err(|_| FrameError::Stalled(stall))?.map_err(FrameError::Io)? {
            0 => return Err(FrameError::Ended),
            count => bytes = &bytes[count..],
        }
    }
    Ok(())
}

/// Writes pieces that are in memory already, as [`write`] does, without copying them where the stream can.
pub(crate) async fn write_pieces(
    outlet: &mut dyn Outlet,
    mut pieces: &mut [Bytes],
    stall: Duration,
) -> Result<(), FrameError> {
    loop {
        let written = pieces.iter().take_while(|piece| piece.is_empty()).count();
        pieces = &mut pieces[written..];
        if pieces.is_empty() {
            return Ok(());
        }
        let sent = tokio::time::timeout(stall, outlet.send(pieces)).await;
        sent.map_err(|_| FrameError::Stalled(stall))?.map_err(FrameError::Io)?;
    }
}

/// Fills `bytes`.
async fn fill<R: AsyncRead + Unpin + ?Sized>(
    reader: &mut R,
    mut bytes: &mut [u8],
    stall: Duration,
) -> Result<(), FrameError> {
    while !bytes.is_empty() {
        let read = tokio::time::timeout(stall, reader.read(bytes)).await;
        match read.map_err(|_| FrameError::Stalled(stall))?.map_err(FrameError::Io)? {
            0 => return Err(FrameError::Ended),
            count => bytes = &mut bytes[count..],
        }
    }
    Ok(())
}

fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

/// Bytes before the header.
const PREFIX: usize = 8;
/// Most bytes of a header that are allocated ahead of what has arrived.
const STEP: usize = crate::wire::MAX_BATCH_HEADER;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{FetchReply, Request, SegmentLeafSet, WantReply};

    const LIMITS: Limits = Limits { header: 1000, payload: 1000 };
    const STALL: Duration = Duration::from_secs(5);

    fn read_all<H: DeserializeOwned>(mut bytes: &[u8]) -> Result<(H, Buffer), FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(read_with_payload(&mut bytes, LIMITS, STALL, &Buffers::new(0)))
    }

    #[test]
    fn what_is_written_is_read() {
        let message = SegmentLeafSet { segment: zumastor_core::SegmentIndex(4), leaves: vec![1, 2] };
        let (read, payload) = read_all::<SegmentLeafSet>(&encode(&message, b"data")).unwrap();
        assert_eq!((read, &payload[..]), (message, &b"data"[..]));
    }

    #[test]
    fn oversized_and_trailing_bytes_are_refused() {
        let mut huge = vec![0xff; 8];
        assert!(matches!(read_all::<u8>(&huge), Err(FrameError::TooLarge { .. })));
        huge[..8].copy_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0]);
        huge.extend([1, 2]);
        assert!(matches!(read_all::<u8>(&huge), Err(FrameError::Malformed { .. })));
        assert!(matches!(read_all::<u8>(&huge[..9]), Err(FrameError::Ended)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_given_up() {
        let (mut here, _there) = tokio::io::duplex(64);
        let silent = read::<_, u8>(&mut here, 1000, STALL).await;
        assert!(matches!(silent, Err(FrameError::Stalled(_))), "{silent:?}");
        let full = write(&mut here, &[0; 100], STALL).await;
        assert!(matches!(full, Err(FrameError::Stalled(_))), "{full:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        /// Whatever a peer sends, decoding returns: no panic, no runaway allocation.
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<WantReply>(&bytes);
            let _ = decode::<FetchReply>(&bytes);
            let _ = read_all::<Request>(&bytes);
        }
    }
}
