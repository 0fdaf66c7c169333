//! The body of a response, read up to a limit.

use std::pin::pin;

use bytes::{Buf as _, BufMut as _};
use http_body::Body;
use http_body_util::BodyExt as _;

/// Returns the data of the body, or `None` if there are more than `most` bytes.
pub(crate) async fn read<B: Body>(body: B, most: usize) -> Result<Option<Vec<u8>>, B::Error> {
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > most {
        return Ok(None);
    }
    let mut body = pin!(body);
    // Copied: small chunks must not keep many buffers.
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if data.remaining() > most.saturating_sub(read.len()) {
                return Ok(None);
            }
            read.put(data);
        }
    }
    Ok(Some(read))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::{FutureExt as _, stream};
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    #[test]
    fn h11_small_chunks_keep_no_buffers() {
        // Each chunk of one byte is a part of a buffer of 8 KiB.
        let chunks = (0..1024).map(|_| {
            let buffer = Bytes::from(vec![b'x'; 8 * 1024]);
            Ok::<_, Infallible>(Frame::data(buffer.slice(..1)))
        });
        let body = StreamBody::new(stream::iter(chunks));
        let kept = allocation_counter::measure(|| {
            let read = read(body, 1024).now_or_never();
            assert_eq!(read.unwrap().unwrap().unwrap().len(), 1024);
        });
        assert!(kept.bytes_max < 64 * 1024, "{} bytes", kept.bytes_max);
    }

    #[tokio::test]
    async fn h11_longer_bodies_are_not_read() {
        let body = |len| Full::new(Bytes::from(vec![b'x'; len]));
        assert_eq!(read(body(8), 8).await.unwrap().unwrap().len(), 8);
        assert!(read(body(9), 8).await.unwrap().is_none());
        // Without a length in advance.
        let chunks = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(
            b"123456789",
        )))];
        let body = StreamBody::new(stream::iter(chunks));
        assert!(read(body, 8).await.unwrap().is_none());
    }
}
