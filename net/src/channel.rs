//! A stream to a peer, whatever carries it.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// A bidirectional stream.
pub struct Channel {
    /// To the peer.
    pub send: Box<dyn Outlet>,
    /// From the peer.
    pub recv: Box<dyn AsyncRead + Send + Unpin>,
    /// What the path to the peer could carry now, if that can be told.
    pub capacity: Option<Capacity>,
}

impl Channel {
    /// A stream over something that takes only copies of what is sent, and of which nothing else is known.
    pub fn over(
        send: impl AsyncWrite + Send + Unpin + 'static,
        recv: impl AsyncRead + Send + Unpin + 'static,
    ) -> Self {
        Self { send: Box::new(Copying(send)), recv: Box::new(recv), capacity: None }
    }
}

/// Tells how many bytes a second a path could carry now.
pub type Capacity = Arc<dyn Fn() -> u64 + Send + Sync>;

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channel")
    }
}

/// The end of a stream that goes to the peer.
#[async_trait]
pub trait Outlet: AsyncWrite + Send + Unpin {
    /// Sends some of these pieces, of which the first is not empty, and takes off them what was sent. When this is dropped, what
    /// was taken off was sent, and nothing else.
    ///
    /// # Errors
    /// When the stream is broken or the peer does not want it.
    async fn send(&mut self, pieces: &mut [Bytes]) -> io::Result<()>;
}

#[async_trait]
impl Outlet for quinn::SendStream {
    async fn send(&mut self, pieces: &mut [Bytes]) -> io::Result<()> {
        self.write_chunks(pieces).await?;
        Ok(())
    }
}

struct Copying<W>(W);

#[async_trait]
impl<W: AsyncWrite + Send + Unpin> Outlet for Copying<W> {
    async fn send(&mut self, pieces: &mut [Bytes]) -> io::Result<()> {
        let Some(piece) = pieces.first_mut() else { return Ok(()) };
        match self.0.write(piece).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => {
                piece.advance(written);
                Ok(())
            }
        }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Copying<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
