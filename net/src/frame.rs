//! Frames on a stream: a header, which is a message, and a payload, which is volume data.
//!
//! ```text
//! 4 bytes  length of the header, little-endian
//! 4 bytes  length of the payload, little-endian
//! header   postcard
//! payload  empty unless the header says otherwise
//! ```

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bounds on a frame, checked before anything is allocated.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
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
    let mut bytes = Vec::with_capacity(PREFIX + 512 + payload.len());
    bytes.resize(PREFIX, 0);
    let mut bytes = postcard::to_extend(header, bytes).expect("messages can be encoded");
    let length = u32::try_from(bytes.len() - PREFIX).expect("a header is far below 4 GiB");
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    let length = u32::try_from(payload.len()).expect("a payload is far below 4 GiB");
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// Reads one frame. `stall` bounds the time between two pieces of it, not the whole: slow is not stuck.
///
/// # Errors
/// [`FrameError::Ended`] also when the stream ends cleanly before the frame.
pub async fn read<R, H>(reader: &mut R, limits: Limits, stall: Duration) -> Result<(H, Bytes), FrameError>
where
    R: AsyncRead + Unpin + ?Sized,
    H: DeserializeOwned,
{
    let mut prefix = BytesMut::with_capacity(PREFIX);
    fill(reader, &mut prefix, PREFIX, stall).await?;
    let length = |at: usize| u32::from_le_bytes(prefix[at..at + 4].try_into().expect("4 bytes")) as usize;
    let (header, payload) = (length(0), length(4));
    if header > limits.header || payload > limits.payload {
        return Err(FrameError::TooLarge { header, payload });
    }
    let mut bytes = BytesMut::new();
    fill(reader, &mut bytes, header + payload, stall).await?;
    let rest = bytes.split_off(header);
    Ok((decode(&bytes)?, rest.freeze()))
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

/// Reads until `bytes` holds `length` bytes. Memory grows with what arrives, not with what was promised.
async fn fill<R: AsyncRead + Unpin + ?Sized>(
    reader: &mut R,
    bytes: &mut BytesMut,
    length: usize,
    stall: Duration,
) -> Result<(), FrameError> {
    while bytes.len() < length {
        if bytes.len() == bytes.capacity() {
            bytes.reserve((length - bytes.len()).min(bytes.len().max(STEP)));
        }
        let mut piece = (&mut *reader).take((length - bytes.len()) as u64);
        let read = tokio::time::timeout(stall, piece.read_buf(bytes)).await;
        if read.map_err(|_| FrameError::Stalled(stall))?.map_err(FrameError::Io)? == 0 {
            return Err(FrameError::Ended);
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
/// Most bytes allocated ahead of what has arrived: a whole batch, so that the common case allocates once.
const STEP: usize = crate::wire::MAX_BATCH + crate::wire::MAX_BATCH_HEADER;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{FetchReply, Request, SegmentLeafSet, WantReply};

    const LIMITS: Limits = Limits { header: 1000, payload: 1000 };
    const STALL: Duration = Duration::from_secs(5);

    fn read_all<H: DeserializeOwned>(mut bytes: &[u8]) -> Result<(H, Bytes), FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(read(&mut bytes, LIMITS, STALL))
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
        let silent = read::<_, u8>(&mut here, LIMITS, STALL).await;
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
