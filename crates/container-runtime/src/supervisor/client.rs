//! The runtime's side of the talk with a supervisor.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};

use super::CONFIG_FILE;
use super::protocol::{
    FrameKind, HEAD_BYTES, Hello, Reply, Request, SupervisorConfig, parse_head, put_frame, put_message,
};

/// The program that becomes a supervisor, with the arguments that make it one.
#[derive(Clone, Debug)]
pub struct SupervisorCommand {
    /// The program, usually `/proc/self/exe`.
    pub program: PathBuf,
    /// Arguments before the sandbox's directory, usually the name of a subcommand.
    pub args: Vec<OsString>,
}

/// Why a supervisor did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("cannot start the supervisor {}", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the supervisor is gone")]
    Io(#[source] io::Error),
    #[error("the supervisor speaks another language")]
    Protocol(#[source] super::protocol::ProtocolError),
    #[error("the supervisor's answer does not parse")]
    Json(#[source] serde_json::Error),
    #[error("{message}")]
    Refused { message: String },
    #[error("the supervisor answered something else")]
    Unexpected,
}

/// A supervisor that was just started.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) child: Child,
    pub(crate) supervisor: i32,
    pub(crate) holder: i32,
}

/// Starts a supervisor for the sandbox whose directory is given, and waits until it serves.
pub(crate) async fn spawn(
    command: &SupervisorCommand,
    directory: &Path,
    config: &SupervisorConfig,
) -> Result<Spawned, ClientError> {
    let text = serde_json::to_vec(config).map_err(ClientError::Json)?;
    tokio::fs::write(directory.join(CONFIG_FILE), text).await.map_err(ClientError::Io)?;
    let spawn_error = |source| ClientError::Spawn { program: command.program.clone(), source };
    let mut child = Command::new(&command.program)
        .args(&command.args)
        .arg(directory)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(spawn_error)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).await.map_err(ClientError::Io)?;
    }
    match serde_json::from_str(&line) {
        Ok(Hello::Ready { supervisor, holder }) => Ok(Spawned { child, supervisor, holder }),
        Ok(Hello::Failed { message }) => Err(ClientError::Refused { message }),
        Err(error) => Err(ClientError::Json(error)),
    }
}

/// Finds a supervisor by its socket, however long the directory's name is.
#[derive(Clone, Debug)]
pub(crate) struct SupervisorClient {
    directory: PathBuf,
    socket: PathBuf,
}

impl SupervisorClient {
    pub(crate) fn new(directory: PathBuf, socket: PathBuf) -> Self {
        Self { directory, socket }
    }

    /// Sends a request and leaves the rest of the talk to the caller.
    pub(crate) async fn open(&self, request: &Request) -> Result<Talk, ClientError> {
        let directory = std::fs::File::open(&self.directory).map_err(ClientError::Io)?;
        let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), self.socket.display());
        let stream = UnixStream::connect(path).await.map_err(ClientError::Io)?;
        let (read, write) = stream.into_split();
        let mut talk = Talk { reader: TalkReader { read }, writer: TalkWriter { write } };
        talk.writer.send_message(request).await?;
        Ok(talk)
    }

    /// Sends a request and waits for its one answer; a refusal is an error.
    pub(crate) async fn call(&self, request: &Request) -> Result<Reply, ClientError> {
        let mut talk = self.open(request).await?;
        talk.reader.reply().await
    }
}

/// One connection after its request.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) reader: TalkReader,
    pub(crate) writer: TalkWriter,
}

/// What comes from the supervisor.
#[derive(Debug)]
pub(crate) struct TalkReader {
    read: OwnedReadHalf,
}

/// What goes to the supervisor.
#[derive(Debug)]
pub(crate) struct TalkWriter {
    write: OwnedWriteHalf,
}

/// A frame that came.
#[derive(Debug)]
pub(crate) enum Event {
    Reply(Reply),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

impl TalkReader {
    pub(crate) async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            let mut head = [0; HEAD_BYTES];
            self.read.read_exact(&mut head).await.map_err(ClientError::Io)?;
            let (kind, length) = parse_head(head).map_err(ClientError::Protocol)?;
            let mut payload = vec![0; length];
            self.read.read_exact(&mut payload).await.map_err(ClientError::Io)?;
            return Ok(match kind {
                FrameKind::Message => match serde_json::from_slice(&payload).map_err(ClientError::Json)? {
                    Reply::Error { message } => return Err(ClientError::Refused { message }),
                    reply => Event::Reply(reply),
                },
                FrameKind::Stdout => Event::Stdout(payload),
                FrameKind::Stderr => Event::Stderr(payload),
                _ => continue,
            });
        }
    }

    pub(crate) async fn reply(&mut self) -> Result<Reply, ClientError> {
        match self.next().await? {
            Event::Reply(reply) => Ok(reply),
            _ => Err(ClientError::Unexpected),
        }
    }
}

impl TalkWriter {
    pub(crate) async fn send(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), ClientError> {
        let mut out = Vec::with_capacity(payload.len() + HEAD_BYTES);
        put_frame(&mut out, kind, payload);
        self.write.write_all(&out).await.map_err(ClientError::Io)
    }

    pub(crate) async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), ClientError> {
        let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
        self.send(FrameKind::Resize, &[a, b, c, d]).await
    }

    async fn send_message(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut out = Vec::new();
        put_message(&mut out, request);
        self.write.write_all(&out).await.map_err(ClientError::Io)
    }
}

impl From<ClientError> for crate::error::RuntimeError {
    fn from(error: ClientError) -> Self {
        Self::Supervisor { message: crate::error::chain(&error) }
    }
}
