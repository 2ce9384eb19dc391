//! One connection of the runtime, without blocking: what came in, cut into frames, and what still has to go out.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::protocol::{
    FrameKind, HEAD_BYTES, ProtocolError, Reply, STREAM_CHUNK_BYTES, parse_head, put_frame, put_message,
};

/// Output waiting beyond this stops the reading of the process it comes from, where that is the client's own.
const HIGH_WATER_BYTES: usize = 256 << 10;

/// A reader this far behind is cut off.
const MAX_BEHIND_BYTES: usize = 4 << 20;

/// What a connection is for, once its request is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Unknown,
    /// Waits for the container with this key to start.
    Start(u64),
    /// Owns the process with this key.
    Exec(u64),
    /// Reads and perhaps feeds the container with this key.
    Attach {
        process: u64,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Watch,
    /// Has its answer.
    Done,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) purpose: Purpose,
    /// Close it as soon as everything is out.
    pub(super) closing: bool,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (incoming, outgoing) = (Vec::new(), Vec::new());
        Ok(Self { stream, purpose: Purpose::Unknown, closing: false, incoming, outgoing })
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether the process it owns should wait.
    pub(super) fn is_full(&self) -> bool {
        self.outgoing.len() > HIGH_WATER_BYTES
    }

    /// Whether nobody reads it.
    pub(super) fn is_stuck(&self) -> bool {
        self.outgoing.len() > MAX_BEHIND_BYTES
    }

    pub(super) fn send(&mut self, reply: &Reply) {
        put_message(&mut self.outgoing, reply);
    }

    pub(super) fn send_frame(&mut self, kind: FrameKind, payload: &[u8]) {
        put_frame(&mut self.outgoing, kind, payload);
    }

    /// Sends the last thing there is to say.
    pub(super) fn finish(&mut self, reply: &Reply) {
        self.send(reply);
        self.purpose = Purpose::Done;
        self.closing = true;
    }

    /// Writes what it can. An error means that the connection is dead.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.outgoing.len() {
            match self.stream.write(&self.outgoing[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outgoing.drain(..written);
        if self.outgoing.is_empty() {
            // Streams come and go; an idle supervisor holds nothing.
            self.outgoing = Vec::new();
        }
        Ok(())
    }

    /// Reads what there is. `false` means that the peer is gone.
    pub(super) fn fill(&mut self) -> bool {
        let mut chunk = [0; STREAM_CHUNK_BYTES];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.incoming.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// The next whole frame.
    pub(super) fn next_frame(&mut self) -> Result<Option<(FrameKind, Vec<u8>)>, ProtocolError> {
        let Some(head) = self.incoming.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let (kind, length) = parse_head(*head)?;
        if self.incoming.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        let payload = self.incoming[HEAD_BYTES..HEAD_BYTES + length].to_vec();
        self.incoming.drain(..HEAD_BYTES + length);
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
        Ok(Some((kind, payload)))
    }
}
