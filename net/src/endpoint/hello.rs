//! The first message on a connection. Its form is frozen, so that any two versions can tell each other why they
//! cannot talk.
//!
//! ```text
//! 4  "ZUMA"
//! 2  length of what follows, little-endian
//! 2  oldest revision of the protocol that the node speaks, little-endian
//! 2  newest
//! 8  features, a bit each, little-endian; unknown ones are ignored
//! 1  length of the node's name, then the name in UTF-8
//! …  anything more is ignored
//! ```

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zumastor_core::NodeName;

use crate::frame::FrameError;

/// Who a node says it is, and what it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Oldest and newest revision of the protocol.
    pub protocol: (u16, u16),
    /// What it can do beyond that.
    pub features: u64,
    /// What it calls itself. For people only: the key says who it is.
    pub name: NodeName,
}

impl Hello {
    /// The newest revision that both speak.
    pub fn agree(&self, other: &Self) -> Option<u16> {
        let newest = self.protocol.1.min(other.protocol.1);
        (newest >= self.protocol.0.max(other.protocol.0)).then_some(newest)
    }

    pub async fn write(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        limit: Duration,
    ) -> Result<(), FrameError> {
        let name = self.name.as_str().as_bytes();
        let mut body = Vec::with_capacity(13 + name.len());
        body.extend(self.protocol.0.to_le_bytes());
        body.extend(self.protocol.1.to_le_bytes());
        body.extend(self.features.to_le_bytes());
        body.push(name.len() as u8);
        body.extend(name);
        let mut bytes = MAGIC.to_vec();
        bytes.extend((body.len() as u16).to_le_bytes());
        bytes.extend(body);
        let written = tokio::time::timeout(limit, async {
            writer.write_all(&bytes).await?;
            writer.shutdown().await
        });
        written.await.map_err(|_| FrameError::Stalled(limit))?.map_err(FrameError::Io)
    }

    pub async fn read(reader: &mut (impl AsyncRead + Unpin), limit: Duration) -> Result<Self, FrameError> {
        let read = async {
            let mut prefix = [0; 6];
            reader.read_exact(&mut prefix).await?;
            let mut body = vec![0; usize::from(u16::from_le_bytes([prefix[4], prefix[5]]))];
            reader.read_exact(&mut body).await?;
            Ok((prefix, body))
        };
        let (prefix, body) = tokio::time::timeout(limit, read)
            .await
            .map_err(|_| FrameError::Stalled(limit))?
            .map_err(FrameError::Io)?;
        if &prefix[..4] != MAGIC {
            return Err(MALFORMED);
        }
        Self::parse(&body).ok_or(MALFORMED)
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let (oldest, rest) = body.split_first_chunk()?;
        let (newest, rest) = rest.split_first_chunk()?;
        let (features, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first()?;
        let name = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
        Some(Self {
            protocol: (u16::from_le_bytes(*oldest), u16::from_le_bytes(*newest)),
            features: u64::from_le_bytes(*features),
            name: name.parse().ok()?,
        })
    }
}

const MAGIC: &[u8; 4] = b"ZUMA";
const MALFORMED: FrameError = FrameError::Malformed { expected: "Hello" };

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn the_form_is_frozen() {
        let hello = Hello { protocol: (1, 3), features: 0x80, name: "ab".parse().unwrap() };
        let mut bytes = Vec::new();
        hello.write(&mut bytes, LIMIT).await.unwrap();
        assert_eq!(
            bytes,
            [b'Z', b'U', b'M', b'A', 15, 0, 1, 0, 3, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 2, b'a', b'b']
        );
        assert_eq!(Hello::read(&mut &bytes[..], LIMIT).await.unwrap(), hello);
        // A later version may say more.
        bytes[4] += 3;
        bytes.extend([1, 2, 3]);
        assert_eq!(Hello::read(&mut &bytes[..], LIMIT).await.unwrap(), hello);
        for cut in 0..bytes.len() {
            assert!(Hello::read(&mut &bytes[..cut], LIMIT).await.is_err());
        }
    }

    #[test]
    fn ranges_agree_on_the_newest() {
        let hello =
            |oldest, newest| Hello { protocol: (oldest, newest), features: 0, name: "n".parse().unwrap() };
        assert_eq!(hello(1, 3).agree(&hello(2, 5)), Some(3));
        assert_eq!(hello(4, 6).agree(&hello(2, 5)), Some(5));
        assert_eq!(hello(1, 1).agree(&hello(2, 2)), None);
    }
}
