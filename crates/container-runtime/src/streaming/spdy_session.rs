//! Streams over SPDY/3.1: each kind of stream is one of the connection's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::session::{CHANNEL_CHUNKS, Input, Output, failure, open, parse_size, run};
use super::spdy::{Decoder, Encoder, Frame, HEAD_BYTES, data, payload_length, ping, reset};
use super::{Io, StreamRequest, connect_in_namespace};
use crate::error::chain;
use crate::runtime::Runtime;

/// The protocols of processes and of ports, in the header of that name.
pub(super) const PROCESS_PROTOCOL: &str = "v4.channel.k8s.io";
pub(super) const FORWARD_PROTOCOL: &str = "portforward.k8s.io";

/// How long a client may take to open its streams, and to close the connection in the end.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// One read from a forwarded port.
const FORWARD_CHUNK_BYTES: usize = 32 << 10;

/// How many streams one connection may have open.
const MAX_STREAMS: usize = 512;

/// Reads frames and answers what needs no thought.
struct Reader<R> {
    read: R,
    decoder: Decoder,
    encoder: Encoder,
    out: mpsc::Sender<Vec<u8>>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// The next frame that matters; nothing at the end.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; HEAD_BYTES];
            self.read.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; payload_length(head).ok()?];
            self.read.read_exact(&mut payload).await.ok()?;
            match self.decoder.decode(head, payload).ok()? {
                Frame::Ping { id } => self.out.send(ping(id)).await.ok()?,
                Frame::Ignored => {}
                frame => {
                    if let Frame::Open { stream, .. } = frame {
                        let reply = self.encoder.reply(stream);
                        self.out.send(reply).await.ok()?;
                    }
                    return Some(frame);
                }
            }
        }
    }
}

/// Serves one upgraded connection to its end.
pub(super) async fn serve<S>(runtime: Arc<Runtime>, request: StreamRequest, socket: S)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, mut write) = tokio::io::split(socket);
    let (out, mut frames) = mpsc::channel::<Vec<u8>>(CHANNEL_CHUNKS);
    let reader = Reader { read, decoder: Decoder::new(), encoder: Encoder::default(), out: out.clone() };
    let writing = async move {
        while let Some(frame) = frames.recv().await {
            if write.write_all(&frame).await.is_err() {
                return;
            }
        }
        // A client that is gone does not mind.
        drop(write.shutdown().await);
    };
    let working = async move {
        match &request {
            StreamRequest::Exec { io, .. } | StreamRequest::Attach { io, .. } => {
                serve_process(&runtime, &request, *io, reader, out).await;
            }
            StreamRequest::PortForward { sandbox, .. } => forward(&runtime, sandbox, reader, out).await,
        }
    };
    tokio::join!(working, writing);
}

/// The ids of a process's streams.
#[derive(Debug, Default)]
struct Streams {
    by_kind: HashMap<String, u32>,
}

impl Streams {
    fn id(&self, kind: &str) -> Option<u32> {
        self.by_kind.get(kind).copied()
    }

    fn is_complete(&self, io: Io) -> bool {
        let wanted = [
            ("error", true),
            ("stdin", io.stdin),
            ("stdout", io.stdout),
            ("stderr", io.stderr && !io.tty),
            ("resize", io.tty),
        ];
        wanted.iter().all(|(kind, wanted)| !wanted || self.by_kind.contains_key(*kind))
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}

async fn serve_process<R: AsyncRead + Unpin>(
    runtime: &Runtime,
    request: &StreamRequest,
    io: Io,
    mut reader: Reader<R>,
    out: mpsc::Sender<Vec<u8>>,
) {
    let mut streams = Streams::default();
    let opening = async {
        while !streams.is_complete(io) {
            match reader.next().await? {
                Frame::Open { stream, headers, .. } => {
                    let kind = header(&headers, "streamtype")?.to_owned();
                    streams.by_kind.insert(kind, stream);
                }
                Frame::GoAway => return None,
                _ => {}
            }
        }
        Some(())
    };
    if !matches!(tokio::time::timeout(OPEN_TIMEOUT, opening).await, Ok(Some(()))) {
        return;
    }
    let status = match open(runtime, request).await {
        Ok(talk) => {
            let (input_sender, input) = mpsc::channel(CHANNEL_CHUNKS);
            let (output_sender, output) = mpsc::channel(CHANNEL_CHUNKS);
            let running = run(talk, input, output_sender);
            let writing = write_output(&streams, output, &out);
            let both = async { tokio::join!(running, writing).0 };
            tokio::select! {
                status = both => status,
                // Ends with the client, and so does the talk.
                () = read_input(&mut reader, &streams, input_sender) => return,
            }
        }
        Err(error) => failure(&chain(&error)),
    };
    finish(&streams, &status, &out).await;
    drop(out);
    // The client closes once it has read everything.
    let rest = async { while reader.next().await.is_some() {} };
    drop(tokio::time::timeout(CLOSE_TIMEOUT, rest).await);
}

async fn read_input<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    streams: &Streams,
    input: mpsc::Sender<Input>,
) {
    let (stdin, resize) = (streams.id("stdin"), streams.id("resize"));
    let mut sizes = Vec::new();
    while let Some(frame) = reader.next().await {
        let mut messages = Vec::new();
        match frame {
            Frame::Data { stream, payload, fin } if Some(stream) == stdin => {
                if !payload.is_empty() {
                    messages.push(Input::Stdin(Bytes::from(payload)));
                }
                if fin {
                    messages.push(Input::CloseStdin);
                }
            }
            Frame::Data { stream, payload, .. } if Some(stream) == resize => {
                // JSON documents one after the other, each ending with a newline.
                sizes.extend_from_slice(&payload);
                while let Some(end) = sizes.iter().position(|&byte| byte == b'\n') {
                    let document: Vec<u8> = sizes.drain(..=end).collect();
                    messages.extend(parse_size(&document));
                }
                if sizes.len() > FORWARD_CHUNK_BYTES {
                    return;
                }
            }
            Frame::GoAway => return,
            _ => {}
        }
        for message in messages {
            if input.send(message).await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

async fn write_output(streams: &Streams, mut output: mpsc::Receiver<Output>, out: &mpsc::Sender<Vec<u8>>) {
    while let Some(chunk) = output.recv().await {
        let (kind, chunk) = match chunk {
            Output::Stdout(chunk) => ("stdout", chunk),
            Output::Stderr(chunk) => ("stderr", chunk),
        };
        if let Some(stream) = streams.id(kind)
            && out.send(data(stream, &chunk, false)).await.is_err()
        {
            return;
        }
    }
}

async fn finish(streams: &Streams, status: &Value, out: &mpsc::Sender<Vec<u8>>) {
    let status = status.to_string();
    let last = [("error", status.as_bytes()), ("stdout", b""), ("stderr", b"")];
    for (kind, payload) in last {
        if let Some(stream) = streams.id(kind)
            && out.send(data(stream, payload, true)).await.is_err()
        {
            return;
        }
    }
}

/// Two streams for each connection to a port, tied by a request id: data, and what went wrong.
async fn forward<R: AsyncRead + Unpin>(
    runtime: &Arc<Runtime>,
    sandbox: &str,
    mut reader: Reader<R>,
    out: mpsc::Sender<Vec<u8>>,
) {
    let mut errors: HashMap<String, u32> = HashMap::new();
    let mut inputs: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    let mut tasks = JoinSet::new();
    while let Some(frame) = reader.next().await {
        match frame {
            Frame::Open { stream, headers, .. } => {
                let request =
                    header(&headers, "requestid").or_else(|| header(&headers, "port")).unwrap_or_default();
                let port = header(&headers, "port").and_then(|port| port.parse().ok());
                inputs.retain(|_, input| !input.is_closed());
                match (header(&headers, "streamtype"), port) {
                    (Some("error"), Some(_)) if errors.len() < MAX_STREAMS => {
                        errors.insert(request.to_owned(), stream);
                    }
                    (Some("data"), Some(port)) if inputs.len() < MAX_STREAMS => {
                        let Some(error) = errors.remove(request) else { continue };
                        let (sender, input) = mpsc::channel(CHANNEL_CHUNKS);
                        inputs.insert(stream, sender);
                        let (runtime, sandbox, out) = (Arc::clone(runtime), sandbox.to_owned(), out.clone());
                        tasks.spawn(forward_port(runtime, sandbox, port, (stream, error), input, out));
                    }
                    _ => drop(out.send(reset(stream)).await),
                }
            }
            Frame::Data { stream, payload, fin } => {
                if let Some(input) = inputs.get(&stream)
                    && !payload.is_empty()
                    && input.send(Bytes::from(payload)).await.is_err()
                {
                    inputs.remove(&stream);
                }
                if fin {
                    inputs.remove(&stream);
                }
            }
            Frame::Reset { stream } => drop(inputs.remove(&stream)),
            Frame::GoAway => break,
            _ => {}
        }
        while tasks.try_join_next().is_some() {}
    }
}

async fn forward_port(
    runtime: Arc<Runtime>,
    sandbox: String,
    port: u16,
    (stream, error): (u32, u32),
    mut input: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Vec<u8>>,
) {
    let mut connection = match connect_in_namespace(&runtime, &sandbox, port).await {
        Ok(connection) => connection,
        Err(cause) => {
            let message = format!("an error occurred forwarding {port}: {}", chain(&cause));
            for frame in [data(error, message.as_bytes(), true), data(stream, b"", true)] {
                drop(out.send(frame).await);
            }
            return;
        }
    };
    let (mut from, mut to) = connection.split();
    let upload = async {
        while let Some(chunk) = input.recv().await {
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The client says nothing more, but may still listen.
        drop(to.shutdown().await);
    };
    let download = async {
        let mut chunk = vec![0; FORWARD_CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            if out.send(data(stream, &chunk[..count], false)).await.is_err() {
                return;
            }
        }
        for frame in [data(stream, b"", true), data(error, b"", true)] {
            drop(out.send(frame).await);
        }
    };
    tokio::join!(upload, download);
}
