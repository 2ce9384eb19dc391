//! A process the supervisor is the parent of: a container's first, or one executed in a container.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, openat2};
use nix::sys::stat::Mode;

use super::log::{LogWriter, Stream};
use super::protocol::{CgroupFiles, Exit, STREAM_CHUNK_BYTES, StartRequest};
use super::sys;

/// Input waiting beyond this stops the reading of the connection it comes from.
const MAX_INPUT_BYTES: usize = 256 << 10;

/// What is known of how the process came to be.
#[derive(Debug)]
pub(super) enum State {
    /// A forked child is at work; what it says comes on the pipe.
    Launching {
        result: PipeReader,
        said: Vec<u8>,
    },
    Running {
        pid: i32,
        started_at: i64,
    },
    Exited {
        pid: i32,
        started_at: i64,
        exit: Exit,
    },
}

/// What the process is to the pod.
#[derive(Debug)]
pub(super) enum Role {
    Container(Container),
    /// Dies with the connection that asked for it.
    Exec {
        connection: u64,
    },
}

/// What only a container's first process has.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) bundle: PathBuf,
    pub(super) cgroup: CgroupFiles,
    pub(super) log: Option<LogWriter>,
    pub(super) stdin_once: bool,
    pub(super) console: Option<UnixListener>,
}

/// One process.
#[derive(Debug)]
pub(super) struct Process {
    /// The container it belongs to.
    pub(super) container: String,
    pub(super) role: Role,
    pub(super) state: State,
    pub(super) terminal: bool,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    input: VecDeque<u8>,
    close_input: bool,
}

/// The ends of a process's streams: ours, and the child's.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) child: [OwnedFd; 3],
}

/// Makes pipes for the wanted streams; the child's others are `/dev/null`.
pub(super) fn pipes(stdin: bool, stdout: bool, stderr: bool) -> io::Result<Streams> {
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let (ours_in, child_in) = match stdin {
        true => io::pipe().map(|(read, write)| (Some(OwnedFd::from(write)), OwnedFd::from(read)))?,
        false => (None, null()?),
    };
    let output = |wanted| -> io::Result<(Option<OwnedFd>, OwnedFd)> {
        match wanted {
            true => io::pipe().map(|(read, write)| (Some(OwnedFd::from(read)), OwnedFd::from(write))),
            false => Ok((None, null()?)),
        }
    };
    let (ours_out, child_out) = output(stdout)?;
    let (ours_err, child_err) = output(stderr)?;
    for fd in [&ours_in, &ours_out, &ours_err].into_iter().flatten() {
        set_nonblocking(fd)?;
    }
    Ok(Streams {
        stdin: ours_in,
        stdout: ours_out,
        stderr: ours_err,
        child: [child_in, child_out, child_err],
    })
}

/// Opens a terminal of the container's own, found below the root of its first process.
pub(super) fn container_terminal(init: i32) -> io::Result<Streams> {
    let root = File::open(format!("/proc/{init}/root"))?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let master = openat2(&root, "dev/pts/ptmx", how)?;
    if !File::from(master.try_clone()?).metadata()?.file_type().is_char_device() {
        return Err(ErrorKind::InvalidInput.into());
    }
    sys::unlock_terminal(&master)?;
    let peer = sys::open_terminal_peer(&master)?;
    set_nonblocking(&master)?;
    let child = [peer.try_clone()?, peer.try_clone()?, peer];
    Ok(Streams { stdin: Some(master.try_clone()?), stdout: Some(master), stderr: None, child })
}

pub(super) fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl Process {
    pub(super) fn new(container: String, role: Role, terminal: bool, result: PipeReader) -> Self {
        Self {
            container,
            role,
            state: State::Launching { result, said: Vec::new() },
            terminal,
            stdin: None,
            stdout: None,
            stderr: None,
            input: VecDeque::new(),
            close_input: false,
        }
    }

    pub(super) fn running_pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    pub(super) fn is_exited(&self) -> bool {
        matches!(self.state, State::Exited { .. })
    }

    pub(super) fn output(&self, stream: Stream) -> Option<&OwnedFd> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    /// Reads one chunk. `None` is nothing for now; an empty chunk is the end, after which the stream is closed.
    pub(super) fn read(&mut self, stream: Stream) -> Option<Vec<u8>> {
        let slot = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let fd = slot.as_ref()?;
        let mut chunk = [0; STREAM_CHUNK_BYTES];
        match nix::unistd::read(fd, &mut chunk) {
            Ok(0) | Err(nix::Error::EIO) => {
                *slot = None;
                Some(Vec::new())
            }
            Ok(count) => Some(chunk[..count].to_vec()),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => None,
            Err(_) => {
                *slot = None;
                Some(Vec::new())
            }
        }
    }

    pub(super) fn has_input(&self) -> bool {
        self.stdin.is_some() && !self.input.is_empty()
    }

    pub(super) fn is_input_full(&self) -> bool {
        self.stdin.is_some() && self.input.len() > MAX_INPUT_BYTES
    }

    /// Queues input and writes what it can.
    pub(super) fn feed(&mut self, data: &[u8]) {
        if self.stdin.is_some() && !self.close_input {
            self.input.extend(data);
            self.drain_input();
        }
    }

    /// Closes stdin once everything queued is written. A terminal has no such end.
    pub(super) fn close_stdin(&mut self) {
        if !self.terminal {
            self.close_input = true;
            self.drain_input();
        }
    }

    pub(super) fn drain_input(&mut self) {
        while let Some(stdin) = &self.stdin
            && !self.input.is_empty()
        {
            match nix::unistd::write(stdin, self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return,
                // The process closed its end.
                Err(_) => self.stdin = None,
            }
        }
        if self.close_input || self.stdin.is_none() {
            self.stdin = None;
            self.input = VecDeque::new();
        }
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) {
        if self.terminal
            && let Some(master) = &self.stdout
        {
            // A size that cannot be set is a picture that looks odd, no more.
            sys::set_window_size(master, columns, rows).unwrap_or_default();
        }
    }
}

impl Container {
    pub(super) fn new(request: &StartRequest) -> io::Result<Self> {
        let log = request.log_path.clone().map(LogWriter::open).transpose()?;
        let console = match request.tty {
            true => Some(bind_console(&request.bundle)?),
            false => None,
        };
        Ok(Self {
            bundle: request.bundle.clone(),
            cgroup: request.cgroup.clone(),
            log,
            stdin_once: request.stdin_once,
            console,
        })
    }

    /// Kills every process in the container's control group, which is named after it: never anybody else's.
    pub(super) fn kill_all(&self) {
        if let Some(directory) = self.cgroup.directories.first()
            && directory.file_name() == self.bundle.file_name()
        {
            crate::cgroup::kill_all(directory);
        }
    }

    pub(super) fn oom_killed(&self) -> bool {
        let Some(path) = &self.cgroup.oom_counter else { return false };
        let Ok(text) = fs::read_to_string(path) else { return false };
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }

    /// Removes the group; one that is still busy is left to the runtime.
    pub(super) fn remove_cgroup(&self) {
        for directory in &self.cgroup.directories {
            drop(fs::remove_dir(directory));
        }
    }

    /// Records the end where a restarted runtime looks for it.
    pub(super) fn record(&self, exit: &Exit) -> io::Result<()> {
        let (new, path) = (self.bundle.join("exit.json.new"), self.bundle.join(EXIT_FILE));
        fs::write(&new, serde_json::to_vec(exit)?)?;
        fs::rename(new, path)
    }
}

/// Where a container's end is recorded, in its bundle.
pub(crate) const EXIT_FILE: &str = "exit.json";

/// Binds the socket libcontainer sends a terminal to; by a relative name, for socket names are short.
fn bind_console(bundle: &Path) -> io::Result<UnixListener> {
    let here = std::env::current_dir()?;
    std::env::set_current_dir(bundle)?;
    let listener = match fs::remove_file(super::launch::CONSOLE_SOCKET) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(super::launch::CONSOLE_SOCKET),
    };
    std::env::set_current_dir(here)?;
    listener
}

/// Takes the terminal's master that libcontainer sent.
pub(super) fn receive_terminal(listener: &UnixListener) -> io::Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    listener.set_nonblocking(true)?;
    let (stream, _) = listener.accept()?;
    let mut name = [0; 256];
    let mut buffers = [io::IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            let master = sys::own(fd);
            set_nonblocking(&master)?;
            return Ok(master);
        }
    }
    Err(ErrorKind::UnexpectedEof.into())
}

/// What a forked child said of the process it made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Pid(i32),
    Error(String),
}

/// Understands what a forked child said; later lines count more.
pub(super) fn parse_said(said: &[u8]) -> Said {
    let text = String::from_utf8_lossy(said);
    if let Some((_, message)) = text.split_once("error ") {
        return Said::Error(message.trim_end().to_owned());
    }
    match text.trim().strip_prefix("pid ").and_then(|pid| pid.parse().ok()) {
        Some(pid) => Said::Pid(pid),
        None => Said::Error("the process that makes containers died".to_owned()),
    }
}

/// Reads what a forked child says. `true` at its end.
pub(super) fn read_said(result: &mut PipeReader, said: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 4096];
    match result.read(&mut chunk) {
        Ok(0) => true,
        Ok(count) => {
            said.extend_from_slice(&chunk[..count]);
            false
        }
        Err(error) => error.kind() != ErrorKind::Interrupted,
    }
}

/// In a forked child: says what became of it, and ends.
pub(super) fn say_and_exit(mut to: PipeWriter, said: &Said) -> ! {
    let line = match said {
        Said::Pid(pid) => format!("pid {pid}\n"),
        Said::Error(message) => format!("error {message}\n"),
    };
    // The parent learns of a failure by the silence.
    let failed = to.write_all(line.as_bytes()).is_err();
    sys::exit_now(i32::from(failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_counts_more_than_a_pid() {
        assert_eq!(parse_said(b"pid 12\n"), Said::Pid(12));
        assert_eq!(parse_said(b"pid 12\nerror no such file\n"), Said::Error("no such file".to_owned()));
        assert!(matches!(parse_said(b""), Said::Error(_)));
    }
}
