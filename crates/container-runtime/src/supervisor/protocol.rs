//! What the runtime and a pod's supervisor say to each other over the pod's Unix socket.
//!
//! A frame is a little-endian `u32` length, a kind byte and that many bytes of payload. Requests and replies are
//! JSON, the streams of a process are raw. Each connection carries one request; all but the streams end with
//! its reply. An upgraded runtime talks to supervisors of the version before: fields are only ever added.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The largest payload of a frame.
pub(crate) const MAX_FRAME_BYTES: usize = 4 << 20;

/// How many bytes of a stream go into one frame.
pub(crate) const STREAM_CHUNK_BYTES: usize = 32 << 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A [`Request`] or a [`Reply`].
    Message,
    Stdin,
    Stdout,
    Stderr,
    /// Two little-endian `u16`: columns and rows.
    Resize,
    /// Nothing more comes on stdin.
    CloseStdin,
}

impl FrameKind {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Stdin => 2,
            Self::Stdout => 3,
            Self::Stderr => 4,
            Self::Resize => 5,
            Self::CloseStdin => 6,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Message,
            2 => Self::Stdin,
            3 => Self::Stdout,
            4 => Self::Stderr,
            5 => Self::Resize,
            6 => Self::CloseStdin,
            _ => return None,
        })
    }
}

/// The head of a frame: length and kind.
pub(crate) const HEAD_BYTES: usize = 5;

/// Writes one frame behind `out`.
pub(crate) fn put_frame(out: &mut Vec<u8>, kind: FrameKind, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.push(kind.to_byte());
    out.extend_from_slice(payload);
}

/// Writes one message behind `out`.
pub(crate) fn put_message<T: Serialize>(out: &mut Vec<u8>, message: &T) {
    let payload = serde_json::to_vec(message).expect("messages have string keys and no failing serializers");
    put_frame(out, FrameKind::Message, &payload);
}

/// Reads the head of a frame: its kind and the length of its payload.
pub(crate) fn parse_head(head: [u8; HEAD_BYTES]) -> Result<(FrameKind, usize), ProtocolError> {
    let [a, b, c, d, kind] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(ProtocolError::TooLong { length });
    }
    let kind = FrameKind::from_byte(kind).ok_or(ProtocolError::UnknownKind { kind })?;
    Ok((kind, length))
}

/// A peer that does not speak this protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("frame of {length} bytes is over the limit")]
    TooLong { length: usize },
    #[error("unknown frame kind {kind}")]
    UnknownKind { kind: u8 },
}

/// What the runtime asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Create and start a container; answered by `Started` or `Error`.
    Start(Box<StartRequest>),
    /// Run a process in a container; `Started`, then its streams, then `Exited`.
    Exec(ExecRequest),
    /// Join the streams of a container; `Done`, then its streams, then `Exited`.
    Attach(AttachRequest),
    /// Signal a container's first process, or all of its processes.
    Signal { container: String, signal: i32, all: bool },
    /// Open the container's log again under its name.
    ReopenLog { container: String },
    /// Drop what is known of an exited container.
    Forget { container: String },
    /// `States` at once, then `ContainerExited` for each that exits, for as long as the connection is open.
    Watch,
    /// Kill everything and exit.
    Shutdown,
}

/// What the supervisor answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Started { pid: i32, started_at: i64 },
    Error { message: String },
    States { containers: Vec<ContainerState> },
    ContainerExited { container: String, exit: Exit },
    Exited { exit: Exit },
}

/// A container as its supervisor sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerState {
    pub(crate) container: String,
    pub(crate) pid: i32,
    pub(crate) started_at: i64,
    pub(crate) exit: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// The exit code, or 128 and the signal.
    pub(crate) code: i32,
    /// The kernel killed a process of the container for want of memory.
    pub(crate) oom_killed: bool,
    /// Nanoseconds since the epoch.
    pub(crate) finished_at: i64,
}

/// How to make one container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StartRequest {
    pub(crate) container: String,
    /// Holds `config.json`; gets `exit.json` and libcontainer's state.
    pub(crate) bundle: PathBuf,
    /// Where relative lower directories are found.
    pub(crate) layers: PathBuf,
    /// Mounted in the container's own mount namespace only; the first is its root.
    pub(crate) mounts: Vec<OverlayMount>,
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) cgroup: CgroupFiles,
}

/// One overlay of image layers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OverlayMount {
    pub(crate) target: PathBuf,
    /// Uppermost first, relative to the layers' directory.
    pub(crate) lowers: Vec<String>,
    /// The upper and the work directory; without them the mount is read-only.
    pub(crate) upper: Option<(PathBuf, PathBuf)>,
    /// Devices among the files may be used.
    #[serde(default)]
    pub(crate) devices: bool,
    /// Show the layers through the ids of this user namespace.
    pub(crate) user_namespace: Option<PathBuf>,
}

/// The control group files a supervisor uses itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CgroupFiles {
    /// Every directory of the container's group, one a hierarchy.
    pub(crate) directories: Vec<PathBuf>,
    /// Holds an `oom_kill` line.
    pub(crate) oom_counter: Option<PathBuf>,
}

/// A further process in a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    pub(crate) container: String,
    pub(crate) args: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// Which streams of a container are wanted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AttachRequest {
    pub(crate) container: String,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// What a supervisor is started with, as a file in its sandbox's directory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SupervisorConfig {
    /// Where to listen, relative to the directory given on the command line.
    pub(crate) socket: PathBuf,
    pub(crate) hostname: Option<String>,
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    /// Containers share one process namespace.
    pub(crate) share_processes: bool,
    pub(crate) user_namespace: Option<IdMappings>,
    pub(crate) sysctls: Vec<(String, String)>,
}

/// The ids of a user namespace, in the form of `/proc/PID/uid_map`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMappings {
    pub(crate) uids: String,
    pub(crate) gids: String,
}

/// What a supervisor says on its standard output once it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Hello {
    /// The process whose `/proc/PID/ns` holds the pod's namespaces.
    Ready {
        supervisor: i32,
        holder: i32,
    },
    Failed {
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_bad_heads_are_refused() {
        let mut out = Vec::new();
        put_message(&mut out, &Request::Watch);
        put_frame(&mut out, FrameKind::Stdout, b"x");
        let (kind, length) = parse_head(out[..HEAD_BYTES].try_into().unwrap()).unwrap();
        assert_eq!(kind, FrameKind::Message);
        let request: Request = serde_json::from_slice(&out[HEAD_BYTES..HEAD_BYTES + length]).unwrap();
        assert!(matches!(request, Request::Watch));
        assert!(parse_head([0, 0, 0, 0xff, 1]).is_err());
        assert!(parse_head([0, 0, 0, 0, 99]).is_err());
    }
}
