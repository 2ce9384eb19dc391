//! The frames of SPDY/3.1, as far as Kubernetes' streams use them: no priorities, no settings, no flow control.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// The length of every frame's head.
pub(super) const HEAD_BYTES: usize = 8;

/// The largest frame that is read. Kubernetes' clients send 32 KiB at once.
pub(super) const MAX_FRAME_BYTES: usize = 1 << 20;

/// The largest block of headers.
const MAX_HEADER_BYTES: usize = 64 << 10;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

/// Words every header block may refer to: the protocol's own, each after its length.
const DICTIONARY_WORDS: [&str; 62] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
];

/// The rest of the words.
const DICTIONARY_MORE_WORDS: [&str; 3] = ["set-cookie", "keep-alive", "origin"];

/// What follows the words.
const DICTIONARY_TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut out = Vec::new();
    for word in DICTIONARY_WORDS.iter().chain(&DICTIONARY_MORE_WORDS) {
        out.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(DICTIONARY_TAIL.as_bytes());
    out
}

/// A peer that does not speak SPDY/3.1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum SpdyError {
    #[error("frame of {0} bytes is over the limit")]
    TooLong(usize),
    #[error("malformed frame")]
    Malformed,
    #[error("malformed block of headers")]
    Headers,
}

/// What a client sends that matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Open { stream: u32, headers: Vec<(String, String)>, fin: bool },
    Data { stream: u32, payload: Vec<u8>, fin: bool },
    Reset { stream: u32 },
    Ping { id: u32 },
    GoAway,
    Ignored,
}

/// How many bytes follow a head.
pub(super) fn payload_length(head: [u8; HEAD_BYTES]) -> Result<usize, SpdyError> {
    let [.., a, b, c] = head;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if length > MAX_FRAME_BYTES { Err(SpdyError::TooLong(length)) } else { Ok(length) }
}

/// Understands frames; header blocks build on those before them.
#[derive(Debug)]
pub(super) struct Decoder {
    inflater: Inflater,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { inflater: Inflater::new() }
    }

    pub(super) fn decode(&mut self, head: [u8; HEAD_BYTES], payload: Vec<u8>) -> Result<Frame, SpdyError> {
        let [a, b, c, d, flags, ..] = head;
        let fin = flags & FLAG_FIN != 0;
        if a & 0x80 == 0 {
            return Ok(Frame::Data { stream: u32::from_be_bytes([a, b, c, d]), payload, fin });
        }
        let number = |at: usize| -> Result<u32, SpdyError> {
            let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_be_bytes).ok_or(SpdyError::Malformed)
        };
        match u16::from_be_bytes([c, d]) {
            1 => {
                let stream = number(0)?;
                let block = payload.get(10..).ok_or(SpdyError::Malformed)?;
                Ok(Frame::Open { stream, headers: self.headers(block)?, fin })
            }
            3 => Ok(Frame::Reset { stream: number(0)? }),
            6 => Ok(Frame::Ping { id: number(0)? }),
            7 => Ok(Frame::GoAway),
            // Replies and further headers: read, for the blocks after them build on theirs.
            2 | 8 => {
                self.headers(payload.get(4..).ok_or(SpdyError::Malformed)?)?;
                Ok(Frame::Ignored)
            }
            _ => Ok(Frame::Ignored),
        }
    }

    fn headers(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, SpdyError> {
        let text = self.inflater.inflate(block)?;
        let mut rest = text.as_slice();
        let count = take_number(&mut rest)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = take_text(&mut rest)?.to_lowercase();
            headers.push((name, take_text(&mut rest)?));
        }
        Ok(headers)
    }
}

fn take_number(rest: &mut &[u8]) -> Result<u32, SpdyError> {
    let (bytes, after) = rest.split_first_chunk::<4>().ok_or(SpdyError::Headers)?;
    *rest = after;
    Ok(u32::from_be_bytes(*bytes))
}

fn take_text(rest: &mut &[u8]) -> Result<String, SpdyError> {
    let length = take_number(rest)? as usize;
    let (text, after) = rest.split_at_checked(length).ok_or(SpdyError::Headers)?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Headers)
}

/// The one zlib stream of a direction. No crate here takes a preset dictionary, so the window is laid out by hand.
struct Inflater {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    position: usize,
    /// Bytes of the stream's head that are still to come.
    head: usize,
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inflater").field("position", &self.position).finish_non_exhaustive()
    }
}

const WINDOW_BYTES: usize = 32 << 10;

/// Two bytes of zlib's, four that name the dictionary.
const ZLIB_HEAD_BYTES: usize = 6;

impl Inflater {
    fn new() -> Self {
        let mut window = dictionary();
        let position = window.len();
        window.resize(WINDOW_BYTES, 0);
        Self { state: Box::default(), window, position, head: ZLIB_HEAD_BYTES }
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let skip = self.head.min(block.len());
        self.head -= skip;
        let mut input = &block[skip..];
        let mut out = Vec::new();
        loop {
            let (status, read, written) = decompress(
                &mut self.state,
                input,
                &mut self.window,
                self.position,
                TINFL_FLAG_HAS_MORE_INPUT,
            );
            out.extend_from_slice(&self.window[self.position..self.position + written]);
            self.position = (self.position + written) % WINDOW_BYTES;
            input = &input[read..];
            if out.len() > MAX_HEADER_BYTES {
                return Err(SpdyError::Headers);
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if input.is_empty() => return Ok(out),
                _ => return Err(SpdyError::Headers),
            }
        }
    }
}

/// Writes frames.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// The zlib stream of header blocks has begun.
    begun: bool,
}

impl Encoder {
    /// Accepts a stream, with no headers to tell: a stored block, for which no compressor is needed.
    pub(super) fn reply(&mut self, stream: u32) -> Vec<u8> {
        let mut block = Vec::new();
        if !self.begun {
            self.begun = true;
            block.extend_from_slice(&[0x78, 0x01]);
        }
        block.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend_from_slice(&block);
        control(2, &payload)
    }
}

/// Answers a ping.
pub(super) fn ping(id: u32) -> Vec<u8> {
    control(6, &id.to_be_bytes())
}

/// Refuses or ends a stream.
pub(super) fn reset(stream: u32) -> Vec<u8> {
    const PROTOCOL_ERROR: u32 = 1;
    let mut payload = stream.to_be_bytes().to_vec();
    payload.extend_from_slice(&PROTOCOL_ERROR.to_be_bytes());
    control(3, &payload)
}

/// Sends data, or the end of it.
pub(super) fn data(stream: u32, payload: &[u8], fin: bool) -> Vec<u8> {
    let mut out = (stream & 0x7fff_ffff).to_be_bytes().to_vec();
    put_length(&mut out, if fin { FLAG_FIN } else { 0 }, payload);
    out
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = (0x8000 | VERSION).to_be_bytes().to_vec();
    out.extend_from_slice(&kind.to_be_bytes());
    put_length(&mut out, 0, payload);
    out
}

fn put_length(out: &mut Vec<u8>, flags: u8, payload: &[u8]) {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    out.extend_from_slice(&[flags, a, b, c]);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(stream: u32, block: &str) -> ([u8; 8], Vec<u8>) {
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        payload.extend(hex::decode(block).unwrap());
        let frame = control(1, &payload);
        (frame[..8].try_into().unwrap(), frame[8..].to_vec())
    }

    #[test]
    fn header_blocks_build_on_the_dictionary_and_each_other() {
        // Made by zlib with the dictionary of the protocol, whose checksum is in the first block.
        let mut decoder = Decoder::new();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let (head, payload) = open(1, "78f9e3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff");
        assert_eq!(payload_length(head), Ok(payload.len()));
        assert_eq!(
            decoder.decode(head, payload),
            Ok(Frame::Open { stream: 1, headers: vec![pair("streamtype", "error")], fin: false })
        );
        let (head, payload) = open(3, "02651c0c2960624ec90797d1b02284b102000000ffff");
        let headers = vec![pair("streamtype", "stdout"), pair("host", "x")];
        assert_eq!(decoder.decode(head, payload), Ok(Frame::Open { stream: 3, headers, fin: false }));
    }

    #[test]
    fn data_frames_round_trip() {
        let frame = data(5, b"hi", true);
        let head = frame[..8].try_into().unwrap();
        let decoded = Decoder::new().decode(head, frame[8..].to_vec());
        assert_eq!(decoded, Ok(Frame::Data { stream: 5, payload: b"hi".to_vec(), fin: true }));
    }

    #[test]
    fn bad_frames_are_refused() {
        assert_eq!(payload_length([0, 0, 0, 1, 0, 0xff, 0xff, 0xff]), Err(SpdyError::TooLong(0xff_ffff)));
        let (head, _) = open(1, "");
        assert_eq!(Decoder::new().decode(head, vec![1]), Err(SpdyError::Malformed));
        let (head, payload) = open(1, "000000000000ffffffff");
        assert_eq!(Decoder::new().decode(head, payload), Err(SpdyError::Headers));
    }
}
