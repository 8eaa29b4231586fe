//! What is read, hashed and written beside QUIC: what any copy that verifies has to do, and nothing else.

use std::{
    fs::{File, OpenOptions},
    hint::black_box,
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use quinn::{Connection, RecvStream};
use rustix::fs::OFlags;
use tokio::{sync::mpsc, task::spawn_blocking};
use zumastor_core::{LEAF, PageBuf, digest::Hash};

use super::Anything;

/// Bytes that are read, sent and written together: those of a batch.
const PIECE: usize = 1 << 20;

/// Opens what is written to, past the page cache where that can be.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let direct = options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    direct.or_else(|_| options.open(path))
}

/// Which part of so many bytes a stream has: whole pieces, but for the end.
pub fn part(bytes: u64, stream: u64, streams: u64) -> Range<u64> {
    let at = |nth: u64| (bytes * nth / streams / PIECE as u64 * PIECE as u64).min(bytes);
    at(stream)..if stream + 1 == streams { bytes } else { at(stream + 1) }
}

/// Sends a part of a file over a stream.
pub async fn send(connection: Connection, file: Arc<File>, part: Range<u64>) -> Result<(), Anything> {
    let (mut data, mut answer) = connection.open_bi().await?;
    data.write_all(&part.start.to_le_bytes()).await?;
    let (queue, mut pieces) = mpsc::channel::<Vec<u8>>(2);
    let reading = spawn_blocking(move || -> io::Result<()> {
        for start in part.clone().step_by(PIECE) {
            let mut piece = vec![0; (part.end - start).min(PIECE as u64) as usize];
            file.read_exact_at(&mut piece, start)?;
            hash(&piece);
            if queue.blocking_send(piece).is_err() {
                break;
            }
        }
        Ok(())
    });
    while let Some(piece) = pieces.recv().await {
        data.write_chunk(piece.into()).await?;
    }
    reading.await??;
    data.finish()?;
    // The last byte is on the disk when this has arrived.
    answer.read_exact(&mut [0]).await?;
    Ok(())
}

/// Writes what comes over a stream, to its end, and makes it durable.
pub async fn receive(mut data: RecvStream, file: Arc<File>) -> Result<(), Anything> {
    let mut start = [0; 8];
    data.read_exact(&mut start).await?;
    let mut at = u64::from_le_bytes(start);
    let (queue, mut pieces) = mpsc::channel::<(PageBuf, usize)>(1);
    let (back, mut free) = mpsc::channel(3);
    for _ in 0..3 {
        back.try_send(PageBuf::new(PIECE))?;
    }
    let writing = spawn_blocking(move || -> io::Result<()> {
        while let Some((piece, length)) = pieces.blocking_recv() {
            hash(&piece[..length]);
            file.write_all_at(&piece[..length], at)?;
            at += length as u64;
            // Nobody waits for it any more if all has come.
            let _ = back.try_send(piece);
        }
        file.sync_data()
    });
    while let Some(mut piece) = free.recv().await {
        let mut length = 0;
        while length < PIECE {
            match data.read(&mut piece[length..]).await? {
                Some(read) => length += read,
                None => break,
            }
        }
        if length == 0 || queue.send((piece, length)).await.is_err() {
            break;
        }
    }
    drop(queue);
    Ok(writing.await??)
}

fn hash(piece: &[u8]) {
    piece.chunks(LEAF as usize).for_each(|leaf| {
        black_box(Hash::of_leaf(leaf));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_of_it() {
        for bytes in [1, 5 << 20, 3_220_963_328] {
            let parts: Vec<_> = (0..4).map(|stream| part(bytes, stream, 4)).collect();
            assert_eq!((parts[0].start, parts[3].end), (0, bytes));
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start), "{parts:?}");
            assert!(parts.iter().all(|part| part.start % PIECE as u64 == 0), "{parts:?}");
        }
    }
}
