//! A process and its client, whatever the client's protocol is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::v1::ExecSyncResponse;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Io, StreamRequest};
use crate::error::{RuntimeError, chain};
use crate::runtime::Runtime;
use crate::supervisor::client::{ClientError, Event, Talk, TalkReader, TalkWriter};
use crate::supervisor::protocol::{AttachRequest, ExecRequest, FrameKind, Reply, Request};

/// What each stream of a synchronous exec may hold; the rest is discarded (CVE-2022-31030).
const MAX_SYNC_BYTES: usize = 16 << 20;

/// Chunks between a client and its process.
pub(super) const CHANNEL_CHUNKS: usize = 16;

/// What a client sends.
#[derive(Debug)]
pub(super) enum Input {
    Stdin(Bytes),
    CloseStdin,
    Resize { columns: u16, rows: u16 },
}

/// What a client gets.
#[derive(Debug)]
pub(super) enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// Asks the supervisor for a new or a running process.
pub(super) async fn open(runtime: &Runtime, request: &StreamRequest) -> Result<Talk, RuntimeError> {
    let (container, request) = match request {
        StreamRequest::Exec { container, args, io } => {
            (container, Request::Exec(exec_request(container, args, *io)))
        }
        StreamRequest::Attach { container, io } => {
            let request = AttachRequest {
                container: container.clone(),
                stdin: io.stdin,
                stdout: io.stdout,
                stderr: io.stderr,
            };
            (container, Request::Attach(request))
        }
        StreamRequest::PortForward { .. } => return Err(RuntimeError::invalid("no process is forwarded")),
    };
    let container = runtime.find_container(container)?;
    let sandbox = runtime.find_sandbox(&container.sandbox())?;
    let mut talk = sandbox.client.open(&request).await?;
    match talk.reader.reply().await? {
        Reply::Started { .. } | Reply::Done => Ok(talk),
        _ => Err(ClientError::Unexpected.into()),
    }
}

fn exec_request(container: &str, args: &[String], io: Io) -> ExecRequest {
    ExecRequest {
        container: container.to_owned(),
        args: args.to_vec(),
        tty: io.tty,
        stdin: io.stdin,
        stdout: io.stdout,
        stderr: io.stderr && !io.tty,
    }
}

/// Passes everything on until the process ends or the client goes. Answers the `Status` of the end.
pub(super) async fn run(talk: Talk, input: mpsc::Receiver<Input>, output: mpsc::Sender<Output>) -> Value {
    let Talk { mut reader, writer } = talk;
    tokio::select! {
        status = pass_output(&mut reader, &output) => status,
        status = pass_input(writer, input) => status,
    }
}

async fn pass_output(reader: &mut TalkReader, output: &mpsc::Sender<Output>) -> Value {
    loop {
        let sent = match reader.next().await {
            Ok(Event::Stdout(chunk)) => output.send(Output::Stdout(chunk.into())).await,
            Ok(Event::Stderr(chunk)) => output.send(Output::Stderr(chunk.into())).await,
            Ok(Event::Reply(Reply::Exited { exit })) => return exit_status(exit.code),
            Ok(Event::Reply(_)) => Ok(()),
            Err(error) => return failure(&chain(&error)),
        };
        if sent.is_err() {
            return failure("the client is gone");
        }
    }
}

async fn pass_input(mut writer: TalkWriter, mut input: mpsc::Receiver<Input>) -> Value {
    while let Some(message) = input.recv().await {
        let sent = match message {
            Input::Stdin(chunk) => writer.send(FrameKind::Stdin, &chunk).await,
            Input::CloseStdin => writer.send(FrameKind::CloseStdin, &[]).await,
            Input::Resize { columns, rows } => writer.resize(columns, rows).await,
        };
        if sent.is_err() {
            // The other direction learns why.
            return std::future::pending().await;
        }
    }
    failure("the client is gone")
}

/// How a process ended, as Kubernetes' clients want to hear it.
fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// Why there is no process.
pub(super) fn failure(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

/// A terminal's size, as clients send it.
pub(super) fn parse_size(payload: &[u8]) -> Option<Input> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let size: Size = serde_json::from_slice(payload).ok()?;
    Some(Input::Resize { columns: size.width, rows: size.height })
}

/// Runs a command to its end and collects what it says.
pub(crate) async fn exec_sync(
    runtime: &Arc<Runtime>,
    container: String,
    args: Vec<String>,
    timeout: Duration,
) -> Result<ExecSyncResponse, RuntimeError> {
    let io = Io { stdin: false, stdout: true, stderr: true, tty: false };
    let request = StreamRequest::Exec { container, args, io };
    let work = async {
        // While the talk lives the process does: dropping it kills.
        let mut talk = open(runtime, &request).await?;
        collect(&mut talk.reader).await
    };
    if timeout.is_zero() {
        return work.await;
    }
    let result = tokio::time::timeout(timeout, work).await;
    result.unwrap_or(Err(RuntimeError::Timeout { what: "command", seconds: timeout.as_secs() }))
}

async fn collect(reader: &mut TalkReader) -> Result<ExecSyncResponse, RuntimeError> {
    let mut response = ExecSyncResponse::default();
    let put = |all: &mut Vec<u8>, chunk: &[u8]| {
        let room = MAX_SYNC_BYTES.saturating_sub(all.len());
        all.extend_from_slice(&chunk[..room.min(chunk.len())]);
    };
    loop {
        match reader.next().await? {
            Event::Stdout(chunk) => put(&mut response.stdout, &chunk),
            Event::Stderr(chunk) => put(&mut response.stderr, &chunk),
            Event::Reply(Reply::Exited { exit }) => {
                response.exit_code = exit.code;
                return Ok(response);
            }
            Event::Reply(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_causes() {
        assert_eq!(exit_status(0)["status"], "Success");
        assert_eq!(exit_status(7)["details"]["causes"][0]["message"], "7");
    }

    #[test]
    fn sizes_are_json() {
        let size = parse_size(br#"{"Width":80,"Height":24}"#);
        assert!(matches!(size, Some(Input::Resize { columns: 80, rows: 24 })));
        assert!(parse_size(b"{}").is_none());
    }
}
