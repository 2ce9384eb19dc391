//! Streams over WebSocket: each message's first byte is its channel.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::session::{CHANNEL_CHUNKS, Input, Output, failure, open, parse_size, run};
use super::{Io, StreamRequest, connect_in_namespace};
use crate::error::chain;
use crate::runtime::Runtime;

/// What is spoken, the best first.
pub(super) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Since v5: closes the channel named by the next byte.
const CLOSE: u8 = 255;

/// One read from a forwarded port.
const FORWARD_CHUNK_BYTES: usize = 32 << 10;

type Sink<S> = SplitSink<WebSocketStream<S>, Message>;

fn message(channel: u8, payload: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(payload.len() + 1);
    out.put_u8(channel);
    out.extend_from_slice(payload);
    Message::Binary(out.freeze())
}

/// Serves one upgraded connection to its end.
pub(super) async fn serve<S>(runtime: Arc<Runtime>, request: StreamRequest, socket: WebSocketStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, stream) = socket.split();
    match &request {
        StreamRequest::Exec { io, .. } | StreamRequest::Attach { io, .. } => {
            serve_process(&runtime, &request, *io, sink, stream).await;
        }
        StreamRequest::PortForward { sandbox, ports } => {
            forward(runtime, sandbox.clone(), ports.clone(), sink, stream).await;
        }
    }
}

async fn serve_process<S>(
    runtime: &Runtime,
    request: &StreamRequest,
    io: Io,
    mut sink: Sink<S>,
    stream: SplitStream<WebSocketStream<S>>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let talk = match open(runtime, request).await {
        Ok(talk) => talk,
        Err(error) => return finish(sink, &failure(&chain(&error))).await,
    };
    // An empty message tells the client that it is connected.
    let first = if io.stdout {
        STDOUT
    } else if io.stderr {
        STDERR
    } else {
        ERROR
    };
    if sink.send(message(first, &[])).await.is_err() {
        return;
    }
    let (input_sender, input) = mpsc::channel(CHANNEL_CHUNKS);
    let (output_sender, output) = mpsc::channel(CHANNEL_CHUNKS);
    let reading = read_input(stream, input_sender, io);
    let writing = write_output(sink, output);
    let running = run(talk, input, output_sender);
    let both = async { tokio::join!(running, writing) };
    tokio::select! {
        (status, sink) = both => {
            if let Some(sink) = sink {
                finish(sink, &status).await;
            }
        }
        // Ends with the client, and so does the talk.
        () = reading => {}
    }
}

async fn read_input<S>(mut stream: SplitStream<WebSocketStream<S>>, input: mpsc::Sender<Input>, io: Io)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(received)) = stream.next().await {
        let data = match received {
            Message::Binary(data) => data,
            Message::Close(_) => return,
            _ => continue,
        };
        let Some((&channel, payload)) = data.split_first() else { continue };
        let parsed = match channel {
            STDIN if io.stdin => Some(Input::Stdin(Bytes::copy_from_slice(payload))),
            RESIZE => parse_size(payload),
            CLOSE if payload == [STDIN] => Some(Input::CloseStdin),
            _ => None,
        };
        if let Some(parsed) = parsed
            && input.send(parsed).await.is_err()
        {
            return std::future::pending().await;
        }
    }
}

/// Answers the sink once the process says nothing more; nothing where the client is gone.
async fn write_output<S>(mut sink: Sink<S>, mut output: mpsc::Receiver<Output>) -> Option<Sink<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(chunk) = output.recv().await {
        let chunk = match chunk {
            Output::Stdout(chunk) => message(STDOUT, &chunk),
            Output::Stderr(chunk) => message(STDERR, &chunk),
        };
        sink.send(chunk).await.ok()?;
    }
    Some(sink)
}

async fn finish<S>(mut sink: Sink<S>, status: &Value)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A client that is gone does not mind.
    if sink.send(message(ERROR, status.to_string().as_bytes())).await.is_ok() {
        drop(sink.send(normal_close()).await);
    }
}

/// Clients take a close without a code for a broken connection.
fn normal_close() -> Message {
    let reason = "".into();
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason }))
}

/// Two channels for each port: data, and what went wrong.
async fn forward<S>(
    runtime: Arc<Runtime>,
    sandbox: String,
    ports: Vec<u16>,
    mut sink: Sink<S>,
    mut stream: SplitStream<WebSocketStream<S>>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (messages, mut outgoing) = mpsc::channel::<Message>(CHANNEL_CHUNKS);
    let mut tasks = JoinSet::new();
    let mut inputs = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let Ok(channel) = u8::try_from(index * 2) else { break };
        let (sender, input) = mpsc::channel::<Bytes>(CHANNEL_CHUNKS);
        inputs.push(sender);
        tasks.spawn(forward_port(
            Arc::clone(&runtime),
            sandbox.clone(),
            port,
            channel,
            input,
            messages.clone(),
        ));
    }
    drop(messages);
    loop {
        tokio::select! {
            out = outgoing.recv() => match out {
                Some(out) => if sink.send(out).await.is_err() { return },
                None => break,
            },
            received = stream.next() => {
                let Some(Ok(received)) = received else { return };
                if let Message::Binary(data) = received
                    && let Some((&channel, payload)) = data.split_first()
                    && let Some(input) = inputs.get(usize::from(channel) / 2)
                    && channel % 2 == 0
                    && input.send(Bytes::copy_from_slice(payload)).await.is_err()
                {
                    return;
                }
            }
        }
    }
    drop(sink.close().await);
}

async fn forward_port(
    runtime: Arc<Runtime>,
    sandbox: String,
    port: u16,
    channel: u8,
    mut input: mpsc::Receiver<Bytes>,
    messages: mpsc::Sender<Message>,
) {
    for channel in [channel, channel + 1] {
        if messages.send(message(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let mut connection = match connect_in_namespace(&runtime, &sandbox, port).await {
        Ok(connection) => connection,
        Err(error) => {
            drop(messages.send(message(channel + 1, chain(&error).as_bytes())).await);
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
    };
    let download = async {
        let mut chunk = vec![0; FORWARD_CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            if messages.send(message(channel, &chunk[..count])).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = upload => {}
        () = download => {}
    }
}
