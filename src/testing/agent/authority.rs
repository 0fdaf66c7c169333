//! Accepts any `:authority` on a Unix socket.
//!
//! grpc-java and grpcio send the path of the socket there, raw or percent-encoded. That is not a
//! valid authority, and h2 resets each request that has one (hyperium/h2#487). This adapter sits
//! between the socket and the HTTP/2 server and replaces such a value with `localhost`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::uri::Authority;
use loona_hpack::Decoder;
use loona_hpack::encoder::encode_integer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
/// The longest frame that a server without settings of its own accepts (RFC 9113 section 4.2).
const MAX_FRAME: usize = 16 * 1024;
/// The longest header block that is accepted, in bytes, encoded or decoded. A call's header block
/// has about 200.
const MAX_BLOCK: usize = 64 * 1024;
/// The largest HPACK table that a client may use without settings of the server (RFC 9113 section
/// 6.5.2).
const MAX_TABLE: usize = 4096;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The server's side of a connection. The server reads valid authorities only.
pub(super) struct AnyAuthority<I> {
    io: I,
    rewriter: Rewriter,
}

impl<I> AnyAuthority<I> {
    pub(super) fn new(io: I) -> Self {
        Self {
            io,
            rewriter: Rewriter::new(),
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for AnyAuthority<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.rewriter.give(buf) {
                return Poll::Ready(Ok(()));
            }
            let mut chunk = [0; 4096];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.take(chunk.filled())?;
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// Rewrites the bytes of one direction.
struct Rewriter {
    decoder: Decoder<'static>,
    /// Received bytes that are not rewritten yet: at most one frame.
    raw: Vec<u8>,
    /// Rewritten bytes, and how many of them the server has read.
    ready: Vec<u8>,
    given: usize,
    at: At,
    /// The header block that is still incomplete.
    block: Option<Block>,
}

#[derive(Clone, Copy)]
enum At {
    Preface,
    FrameHead,
    /// Inside a frame that is forwarded unchanged: this many bytes are left.
    Content(usize),
    /// The client does not speak HTTP/2: the server decides what to do.
    NotHttp2,
}

struct Block {
    stream: [u8; 4],
    end_stream: u8,
    fragment: Vec<u8>,
}

impl Rewriter {
    fn new() -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(MAX_TABLE);
        Self {
            decoder,
            raw: Vec::new(),
            ready: Vec::new(),
            given: 0,
            at: At::Preface,
            block: None,
        }
    }

    /// Moves rewritten bytes into `buf`. Returns false if there are no rewritten bytes.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let rest = self.ready.get(self.given..).unwrap_or_default();
        let fits = rest.len().min(buf.remaining());
        let Some(part) = rest.get(..fits).filter(|_| !rest.is_empty()) else {
            self.ready.clear();
            self.given = 0;
            return false;
        };
        buf.put_slice(part);
        self.given += fits;
        true
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.raw.extend_from_slice(bytes);
        loop {
            let taken = match self.at {
                At::NotHttp2 => {
                    self.ready.append(&mut self.raw);
                    return Ok(());
                }
                At::Preface => {
                    let known = self.raw.len().min(PREFACE.len());
                    if self.raw.get(..known) != PREFACE.get(..known) {
                        self.at = At::NotHttp2;
                        continue;
                    }
                    if known < PREFACE.len() {
                        return Ok(());
                    }
                    self.ready.extend_from_slice(PREFACE);
                    self.at = At::FrameHead;
                    known
                }
                At::Content(left) => {
                    let here = left.min(self.raw.len());
                    self.ready
                        .extend_from_slice(self.raw.get(..here).unwrap_or_default());
                    self.at = match left - here {
                        0 => At::FrameHead,
                        left => At::Content(left),
                    };
                    here
                }
                At::FrameHead => match self.frame()? {
                    Some(taken) => taken,
                    None => return Ok(()),
                },
            };
            if taken == 0 {
                return Ok(());
            }
            self.raw.drain(..taken);
        }
    }

    /// Handles the frame at the start of `raw`. Returns how many of its bytes are done; `None` if
    /// more bytes are needed.
    fn frame(&mut self) -> io::Result<Option<usize>> {
        let Some(&head) = self.raw.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if kind != HEADERS && kind != CONTINUATION {
            self.ready.extend_from_slice(&head);
            self.at = match length {
                0 => At::FrameHead,
                length => At::Content(length),
            };
            return Ok(Some(HEAD));
        }
        if length > MAX_FRAME {
            return Err(malformed("a frame is longer than allowed"));
        }
        let whole = HEAD + length;
        let Some(content) = self.raw.get(HEAD..whole) else {
            return Ok(None);
        };
        let mut block = match self.block.take() {
            None if kind == HEADERS => Block {
                stream,
                end_stream: flags & END_STREAM,
                fragment: fragment(content, flags)?.to_vec(),
            },
            Some(mut block) if kind == CONTINUATION && block.stream == stream => {
                block.fragment.extend_from_slice(content);
                block
            }
            _ => return Err(malformed("a header block is interrupted")),
        };
        if block.fragment.len() > MAX_BLOCK {
            return Err(malformed("a header block is longer than allowed"));
        }
        if flags & END_HEADERS == 0 {
            self.block = Some(block);
        } else {
            block.fragment = self.rewrite(&block.fragment)?;
            block.write_to(&mut self.ready);
        }
        Ok(Some(whole))
    }

    /// Returns the header block with a valid authority. It uses no table entries, because the
    /// server's decoder does not have those of this one.
    fn rewrite(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        const NEVER_INDEXED: u8 = 0x10;
        let mut out = Vec::with_capacity(2 * block.len());
        let decoded = self.decoder.decode_with_cb(block, |name, value| {
            // One byte of the block can stand for a whole entry of the table.
            if out.len() > MAX_BLOCK {
                return;
            }
            let value: &[u8] = match &*name {
                b":authority" if Authority::try_from(&*value).is_err() => b"localhost",
                _ => &value,
            };
            out.push(NEVER_INDEXED);
            for text in [&*name, value] {
                out.extend(encode_integer(text.len(), 7));
                out.extend_from_slice(text);
            }
        });
        decoded.map_err(|_| malformed("a header block cannot be decoded"))?;
        if out.len() > MAX_BLOCK {
            return Err(malformed("a header block is longer than allowed"));
        }
        Ok(out)
    }
}

impl Block {
    fn write_to(&self, out: &mut Vec<u8>) {
        let mut pieces = self.fragment.chunks(MAX_FRAME).peekable();
        let mut kind = HEADERS;
        let mut flags = self.end_stream;
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= END_HEADERS;
            }
            let length = (piece.len() as u32).to_be_bytes();
            out.extend_from_slice(length.get(1..).unwrap_or_default());
            out.extend_from_slice(&[kind, flags]);
            out.extend_from_slice(&self.stream);
            out.extend_from_slice(piece);
            (kind, flags) = (CONTINUATION, 0);
        }
    }
}

/// The header block's part of a HEADERS frame (RFC 9113 section 6.2).
fn fragment(mut content: &[u8], flags: u8) -> io::Result<&[u8]> {
    let short = || malformed("a HEADERS frame is too short");
    if flags & PADDED != 0 {
        let (padding, rest) = content.split_first().ok_or_else(short)?;
        let end = rest.len().checked_sub(usize::from(*padding));
        content = end.and_then(|end| rest.get(..end)).ok_or_else(short)?;
    }
    if flags & PRIORITY != 0 {
        content = content.get(5..).ok_or_else(short)?;
    }
    Ok(content)
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use loona_hpack::Encoder;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u32).to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, stream]);
        frame.extend(content);
        frame
    }

    /// What the server reads if the bytes arrive in pieces of this size.
    fn read(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut rewriter = Rewriter::new();
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            rewriter.take(piece)?;
            let mut room = [0; 7];
            loop {
                let mut buf = ReadBuf::new(&mut room);
                if !rewriter.give(&mut buf) {
                    break;
                }
                out.extend_from_slice(buf.filled());
            }
        }
        Ok(out)
    }

    /// The headers of each block in `bytes`, read by one decoder.
    fn blocks(bytes: &[u8]) -> Vec<Vec<(String, String)>> {
        let mut decoder = Decoder::new();
        let mut rest = &bytes[PREFACE.len()..];
        let (mut found, mut block) = (Vec::new(), Vec::new());
        while !rest.is_empty() {
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            let (kind, flags) = (rest[3], rest[4]);
            if kind == HEADERS || kind == CONTINUATION {
                block.extend_from_slice(&rest[HEAD..HEAD + length]);
                if flags & END_HEADERS != 0 {
                    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
                    let headers = decoder.decode(&std::mem::take(&mut block)).unwrap();
                    let headers = headers.into_iter().map(|(n, v)| (text(n), text(v)));
                    found.push(headers.collect());
                }
            }
            rest = &rest[HEAD + length..];
        }
        found
    }

    fn authorities(authority: &str) -> Vec<(String, String)> {
        let mut encoder = Encoder::new();
        let headers = |n: &'static str| {
            [
                (b":method".as_slice(), b"POST".as_slice()),
                (b":authority", authority.as_bytes()),
                (b"x-number", n.as_bytes()),
            ]
        };
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        // The second block names entries of the first by index.
        bytes.extend(frame(
            HEADERS,
            END_HEADERS,
            1,
            &encoder.encode(headers("1")),
        ));
        bytes.extend(frame(0, END_STREAM, 1, b"data"));
        let second = encoder.encode(headers("2"));
        let mut padded = vec![3, 0, 0, 0, 0, 16];
        padded.extend(&second[..2]);
        padded.extend([0; 3]);
        let flags = PADDED | PRIORITY | END_STREAM;
        bytes.extend(frame(HEADERS, flags, 3, &padded));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 3, &second[2..]));

        let whole = read(&bytes, bytes.len()).unwrap();
        for piece in 1..40 {
            assert_eq!(read(&bytes, piece).unwrap(), whole, "in pieces of {piece}");
        }
        let blocks = blocks(&whole);
        assert_eq!(blocks.len(), 2);
        for (block, number) in blocks.iter().zip(["1", "2"]) {
            assert_eq!(block[0], (":method".into(), "POST".into()));
            assert_eq!(block[2], ("x-number".into(), number.into()));
        }
        blocks.into_iter().map(|block| block[1].clone()).collect()
    }

    #[test]
    fn e31_invalid_authority_becomes_localhost() {
        for authority in ["/run/spire/agent.sock", "%2Frun%2Fagent.sock", "a b", ""] {
            for (name, value) in authorities(authority) {
                assert_eq!(
                    (&*name, &*value),
                    (":authority", "localhost"),
                    "{authority}"
                );
            }
        }
    }

    #[test]
    fn e31_valid_authority_stays() {
        for authority in ["localhost", "agent.example.org:443", "[::1]:80"] {
            for (_, value) in authorities(authority) {
                assert_eq!(value, authority);
            }
        }
    }

    #[test]
    fn e31_malformed_frames_are_errors() {
        let with = |frames: &[Vec<u8>]| {
            let bytes = [PREFACE.to_vec(), frames.concat()].concat();
            read(&bytes, 5).map(drop).map_err(|error| error.kind())
        };
        let malformed = Err(io::ErrorKind::InvalidData);
        // Too short for its padding, and for its priority.
        assert_eq!(with(&[frame(HEADERS, PADDED, 1, &[9, 0])]), malformed);
        assert_eq!(with(&[frame(HEADERS, PADDED, 1, &[])]), malformed);
        assert_eq!(with(&[frame(HEADERS, PRIORITY, 1, &[0; 4])]), malformed);
        // An index that no table has.
        assert_eq!(with(&[frame(HEADERS, END_HEADERS, 1, &[0xff])]), malformed);
        // A continuation without a start, of another stream, and a block within a block.
        assert_eq!(with(&[frame(CONTINUATION, END_HEADERS, 1, &[])]), malformed);
        let begun = frame(HEADERS, 0, 1, &[]);
        let other = frame(CONTINUATION, 0, 3, &[]);
        assert_eq!(with(&[begun.clone(), other]), malformed);
        assert_eq!(with(&[begun.clone(), begun.clone()]), malformed);
        // A block without an end.
        let endless = frame(CONTINUATION, 0, 1, &[0; MAX_FRAME]);
        let many = [vec![begun], vec![endless; 5]].concat();
        assert_eq!(with(&many), malformed);
        let oversized = [&[0, 0x40, 1, HEADERS, 0, 0, 0, 0, 1][..]].concat();
        assert_eq!(with(&[oversized]), malformed);
    }

    #[test]
    fn e31_decoded_headers_are_bounded() {
        let with = |content: &[u8]| {
            let headers = frame(HEADERS, END_HEADERS, 1, content);
            let bytes = [PREFACE.to_vec(), headers].concat();
            read(&bytes, 1000).map(|out| out.len())
        };
        // A header of 4,000 bytes that goes into the table, then its index many times.
        let mut block = vec![0x40, 1, b'x', 0x7f];
        block.extend([0xa1, 0x1e]);
        block.extend([b'v'; 4000]);
        let repeated = |count: usize| [block.clone(), vec![0xbe; count]].concat();
        assert!(with(&repeated(9)).unwrap() > 10 * 4000);
        for count in [16, 1000, 12_000] {
            let error = with(&repeated(count)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{count}");
        }
        // The table may have 4,096 bytes, and not 4,097.
        assert!(with(&[0x3f, 0xe1, 0x1f, 0x82]).is_ok());
        assert!(with(&[0x3f, 0xe2, 0x1f, 0x82]).is_err());
    }

    #[test]
    fn e31_other_protocols_pass_unchanged() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PRI * HTTP/1.1\r\n",
            b"\x16\x03\x01",
        ] {
            assert_eq!(read(bytes, 4).unwrap(), bytes);
        }
    }
}
