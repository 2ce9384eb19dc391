//! The supervisor's loop: connections, processes, and the children that ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use super::connection::{Connection, Purpose};
use super::exec::{self, ExecPlan};
use super::launch::{self, ChildStdio};
use super::log::Stream;
use super::namespaces::Holder;
use super::process::{
    Container, Process, Role, Said, State, Streams, container_terminal, parse_said, pipes, read_said,
    receive_terminal, say_and_exit,
};
use super::protocol::{
    AttachRequest, ContainerState, ExecRequest, Exit, FrameKind, Reply, Request, StartRequest,
};
use super::sys;
use crate::error::chain;

/// More connections than this wait to be accepted.
const MAX_CONNECTIONS: usize = 512;

/// How many ended children are remembered until their launch is known.
const MAX_UNCLAIMED: usize = 256;

/// The state of a pod.
#[derive(Debug)]
pub(super) struct Supervisor {
    listener: UnixListener,
    signals: SignalFd,
    holder: Holder,
    connections: BTreeMap<u64, Connection>,
    processes: BTreeMap<u64, Process>,
    next_key: u64,
    /// Children that ended before their launch was heard of: process, code, time.
    unclaimed: Vec<(i32, i32, i64)>,
    stopping: bool,
}

/// What a polled descriptor is.
#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Signals,
    Connection(u64),
    Result(u64),
    Output(u64, Stream),
    Input(u64),
}

impl Supervisor {
    pub(super) fn new(listener: UnixListener, holder: Holder, signals: &SigSet) -> nix::Result<Self> {
        let signals = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            listener,
            signals,
            holder,
            connections: BTreeMap::new(),
            processes: BTreeMap::new(),
            next_key: 1,
            unclaimed: Vec::new(),
            stopping: false,
        })
    }

    pub(super) fn holder_pid(&self) -> i32 {
        self.holder.pid
    }

    /// Serves until told to stop. Answers the exit code.
    pub(super) fn run(mut self) -> i32 {
        while !(self.stopping && self.processes.values().all(Process::is_exited)) {
            match self.wait() {
                Ok(ready) => ready.into_iter().for_each(|(source, events)| self.handle(source, events)),
                Err(nix::Error::EINTR) => {}
                Err(_) => return 1,
            }
            self.flush_connections();
        }
        self.flush_connections();
        0
    }

    fn wait(&self) -> nix::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        if self.connections.len() < MAX_CONNECTIONS {
            add(Source::Listener, self.listener.as_fd(), PollFlags::POLLIN);
        }
        for (&key, connection) in &self.connections {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, !self.is_input_full(connection.purpose));
            flags.set(PollFlags::POLLOUT, connection.wants_write());
            add(Source::Connection(key), connection.stream.as_fd(), flags);
        }
        for (&key, process) in &self.processes {
            if let State::Launching { result, .. } = &process.state {
                add(Source::Result(key), result.as_fd(), PollFlags::POLLIN);
            }
            if let (true, Some(stdin)) = (process.has_input(), &process.stdin) {
                add(Source::Input(key), stdin.as_fd(), PollFlags::POLLOUT);
            }
            // A client hears that its process started before it hears the process.
            let full = match process.role {
                _ if matches!(process.state, State::Launching { .. }) => true,
                Role::Exec { connection } => {
                    self.connections.get(&connection).is_some_and(Connection::is_full)
                }
                Role::Container(_) => false,
            };
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let (false, Some(fd)) = (full, process.output(stream)) {
                    add(Source::Output(key, stream), fd.as_fd(), PollFlags::POLLIN);
                }
            }
        }
        poll(&mut fds, PollTimeout::NONE)?;
        let ready = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(sources.into_iter().zip(ready).filter(|(_, events)| !events.is_empty()).collect())
    }

    fn is_input_full(&self, purpose: Purpose) -> bool {
        let key = match purpose {
            Purpose::Exec(key) | Purpose::Attach { process: key, .. } => key,
            _ => return false,
        };
        self.processes.get(&key).is_some_and(Process::is_input_full)
    }

    fn handle(&mut self, source: Source, events: PollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.reap(),
            Source::Connection(key) => {
                if events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                    self.read_connection(key);
                }
            }
            Source::Result(key) => self.read_result(key),
            Source::Output(key, stream) => {
                self.read_output(key, stream);
            }
            Source::Input(key) => {
                if let Some(process) = self.processes.get_mut(&key) {
                    process.drain_input();
                }
            }
        }
    }

    fn accept(&mut self) {
        // One that cannot be taken now is offered again.
        if let Ok((stream, _)) = self.listener.accept()
            && let Ok(connection) = Connection::new(stream)
        {
            let key = self.new_key();
            self.connections.insert(key, connection);
        }
    }

    fn new_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    fn flush_connections(&mut self) {
        let mut dead = Vec::new();
        for (&key, connection) in &mut self.connections {
            let broken = connection.flush().is_err() || connection.is_stuck();
            if broken || (connection.closing && !connection.wants_write()) {
                dead.push(key);
            }
        }
        dead.into_iter().for_each(|key| self.close(key));
    }

    /// Forgets a connection, and ends what lived for it.
    fn close(&mut self, key: u64) {
        let Some(connection) = self.connections.remove(&key) else { return };
        match connection.purpose {
            Purpose::Exec(process) => {
                if let Some(process) = self.processes.get(&process)
                    && let Some(pid) = process.running_pid()
                {
                    signal_process(pid, Signal::SIGKILL as i32);
                }
            }
            Purpose::Attach { process, stdin: true, .. } => self.end_attached_input(process),
            _ => {}
        }
    }

    fn end_attached_input(&mut self, key: u64) {
        if let Some(process) = self.processes.get_mut(&key)
            && let Role::Container(Container { stdin_once: true, .. }) = process.role
        {
            process.close_stdin();
        }
    }

    fn read_connection(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let alive = connection.fill();
        loop {
            let Some(connection) = self.connections.get_mut(&key) else { return };
            match connection.next_frame() {
                Ok(Some((kind, payload))) => self.take_frame(key, kind, &payload),
                Ok(None) if alive => return,
                Ok(None) | Err(_) => return self.close(key),
            }
        }
    }

    fn take_frame(&mut self, key: u64, kind: FrameKind, payload: &[u8]) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let (process_key, may_feed, owns) = match connection.purpose {
            Purpose::Unknown if kind == FrameKind::Message => {
                return match serde_json::from_slice(payload) {
                    Ok(request) => self.take_request(key, request),
                    Err(error) => connection.finish(&Reply::Error { message: chain(&error) }),
                };
            }
            Purpose::Exec(process) => (process, true, true),
            Purpose::Attach { process, stdin, .. } => (process, stdin, false),
            _ => return,
        };
        let Some(process) = self.processes.get_mut(&process_key) else { return };
        match kind {
            FrameKind::Stdin if may_feed => process.feed(payload),
            FrameKind::CloseStdin if owns => process.close_stdin(),
            FrameKind::CloseStdin if may_feed => self.end_attached_input(process_key),
            FrameKind::Resize => {
                if let Ok([a, b, c, d]) = <[u8; 4]>::try_from(payload) {
                    process.resize(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
                }
            }
            _ => {}
        }
    }

    fn take_request(&mut self, key: u64, request: Request) {
        let result = match request {
            Request::Start(request) => self.start(key, *request),
            Request::Exec(request) => self.exec(key, &request),
            Request::Attach(request) => self.attach(key, &request),
            Request::Signal { container, signal, all } => self.signal(key, &container, signal, all),
            Request::ReopenLog { container } => self.reopen_log(key, &container),
            Request::Forget { container } => {
                self.processes.retain(|_, process| process.container != container || !process.is_exited());
                self.answer(key, &Reply::Done);
                Ok(())
            }
            Request::Watch => {
                self.watch(key);
                Ok(())
            }
            Request::Shutdown => {
                self.shut_down();
                Ok(())
            }
        };
        if let Err(message) = result {
            self.answer(key, &Reply::Error { message });
        }
    }

    fn answer(&mut self, key: u64, reply: &Reply) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.finish(reply);
        }
    }

    fn start(&mut self, connection: u64, request: StartRequest) -> Result<(), String> {
        if self.stopping || self.container(&request.container).is_some() {
            return Err("the container exists already, or the pod is stopping".to_owned());
        }
        let container = Container::new(&request).map_err(|error| chain(&error))?;
        let streams = match request.tty {
            true => None,
            false => Some(pipes(request.stdin, true, true).map_err(|error| chain(&error))?),
        };
        let (result, to_parent) = io::pipe().map_err(|error| chain(&error))?;
        let mut process =
            Process::new(request.container.clone(), Role::Container(container), request.tty, result);
        let stdio = match streams {
            None => ChildStdio::Terminal,
            Some(streams) => {
                (process.stdin, process.stdout, process.stderr) =
                    (streams.stdin, streams.stdout, streams.stderr);
                let [stdin, stdout, stderr] = streams.child;
                ChildStdio::Pipes { stdin, stdout, stderr }
            }
        };
        match sys::fork().map_err(|error| chain(&error))? {
            ForkResult::Child => {
                let said = match sys::reset_signals()
                    .map_err(|error| chain(&error))
                    .and_then(|()| launch::launch(&request, stdio).map_err(|error| chain(&error)))
                {
                    Ok(pid) => Said::Pid(pid),
                    Err(message) => Said::Error(message),
                };
                say_and_exit(to_parent, &said)
            }
            ForkResult::Parent { .. } => {}
        }
        let key = self.new_key();
        self.processes.insert(key, process);
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.purpose = Purpose::Start(key);
        }
        Ok(())
    }

    fn exec(&mut self, connection: u64, request: &ExecRequest) -> Result<(), String> {
        let (init, container) = self.running_container(&request.container)?;
        let streams = match request.tty {
            true => container_terminal(init),
            false => pipes(request.stdin, request.stdout, request.stderr),
        };
        let Streams { stdin, stdout, stderr, child } = streams.map_err(|error| chain(&error))?;
        let (result, to_parent) = io::pipe().map_err(|error| chain(&error))?;
        if let ForkResult::Child = sys::fork().map_err(|error| chain(&error))? {
            let plan = ExecPlan {
                init,
                bundle: &container.bundle,
                cgroup: &container.cgroup.directories,
                args: &request.args,
                terminal: request.tty.then_some((80, 24)),
            };
            run_exec(&plan, child, to_parent);
        }
        drop(child);
        let mut process =
            Process::new(request.container.clone(), Role::Exec { connection }, request.tty, result);
        (process.stdin, process.stdout, process.stderr) = (stdin, stdout, stderr);
        let key = self.new_key();
        self.processes.insert(key, process);
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.purpose = Purpose::Exec(key);
        }
        Ok(())
    }

    fn attach(&mut self, key: u64, request: &AttachRequest) -> Result<(), String> {
        let process = self.container(&request.container).ok_or("no such container is running")?;
        let (stdin, stdout, stderr) = (request.stdin, request.stdout, request.stderr);
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(()) };
        connection.send(&Reply::Done);
        connection.purpose = Purpose::Attach { process, stdin, stdout, stderr };
        if let Some(State::Exited { exit, .. }) = self.processes.get(&process).map(|process| &process.state) {
            connection.finish(&Reply::Exited { exit: exit.clone() });
        }
        Ok(())
    }

    fn signal(&mut self, key: u64, container: &str, signal: i32, all: bool) -> Result<(), String> {
        let (pid, container) = self.running_container(container)?;
        if all {
            container.kill_all();
        }
        signal_process(pid, signal);
        self.answer(key, &Reply::Done);
        Ok(())
    }

    fn reopen_log(&mut self, key: u64, container: &str) -> Result<(), String> {
        let process = self.container(container).ok_or("no such container is running")?;
        if let Some(Role::Container(container)) =
            self.processes.get_mut(&process).map(|process| &mut process.role)
            && let Some(log) = &mut container.log
        {
            log.reopen().map_err(|error| chain(&error))?;
        }
        self.answer(key, &Reply::Done);
        Ok(())
    }

    fn watch(&mut self, key: u64) {
        let containers = self
            .processes
            .values()
            .filter(|process| matches!(process.role, Role::Container(_)))
            .filter_map(|process| {
                let (pid, started_at, exit) = match &process.state {
                    State::Launching { .. } => return None,
                    State::Running { pid, started_at } => (*pid, *started_at, None),
                    State::Exited { pid, started_at, exit } => (*pid, *started_at, Some(exit.clone())),
                };
                Some(ContainerState { container: process.container.clone(), pid, started_at, exit })
            })
            .collect();
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.send(&Reply::States { containers });
            connection.purpose = Purpose::Watch;
        }
    }

    fn shut_down(&mut self) {
        self.stopping = true;
        for process in self.processes.values() {
            if let Role::Container(container) = &process.role
                && !process.is_exited()
            {
                container.kill_all();
            }
            if let Some(pid) = process.running_pid() {
                signal_process(pid, Signal::SIGKILL as i32);
            }
        }
    }

    /// The key of a container's first process.
    fn container(&self, id: &str) -> Option<u64> {
        let mut found = self.processes.iter().filter(|(_, process)| process.container == id);
        found.find(|(_, process)| matches!(process.role, Role::Container(_))).map(|(&key, _)| key)
    }

    fn running_container(&self, id: &str) -> Result<(i32, &Container), String> {
        let process = self.container(id).and_then(|key| self.processes.get(&key));
        match process.map(|process| (process.running_pid(), &process.role)) {
            Some((Some(pid), Role::Container(container))) => Ok((pid, container)),
            _ => Err("the container is not running".to_owned()),
        }
    }

    fn read_result(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let State::Launching { result, said } = &mut process.state else { return };
        if !read_said(result, said) {
            return;
        }
        let said = parse_said(said);
        match said {
            Said::Pid(pid) => self.launched(key, pid),
            Said::Error(message) => self.not_launched(key, &message),
        }
        // It may have ended already.
        self.claim(key);
    }

    fn launched(&mut self, key: u64, pid: i32) {
        let started_at = now();
        let Some(process) = self.processes.get_mut(&key) else { return };
        process.state = State::Running { pid, started_at };
        if let Role::Container(container) = &mut process.role
            && let Some(console) = container.console.take()
        {
            // Without its terminal the container still runs; it only cannot be heard.
            if let Ok(master) = receive_terminal(&console) {
                process.stdin = master.try_clone().ok();
                process.stdout = Some(master);
            }
        }
        let mut alone = true;
        for connection in self.connections.values_mut() {
            match connection.purpose {
                Purpose::Start(started) if started == key => {
                    connection.finish(&Reply::Started { pid, started_at });
                    alone = false;
                }
                Purpose::Exec(started) if started == key => {
                    connection.send(&Reply::Started { pid, started_at });
                    alone = false;
                }
                _ => {}
            }
        }
        let orphaned = alone && matches!(process.role, Role::Exec { .. });
        if orphaned || self.stopping {
            signal_process(pid, Signal::SIGKILL as i32);
        }
    }

    fn not_launched(&mut self, key: u64, message: &str) {
        let Some(process) = self.processes.remove(&key) else { return };
        if let Role::Container(container) = &process.role {
            container.kill_all();
            container.remove_cgroup();
        }
        for connection in self.connections.values_mut() {
            if matches!(connection.purpose, Purpose::Start(other) | Purpose::Exec(other) if other == key) {
                connection.finish(&Reply::Error { message: message.to_owned() });
            }
        }
    }

    /// Reads one chunk of output. `true` while there may be more at once.
    fn read_output(&mut self, key: u64, stream: Stream) -> bool {
        let Some(process) = self.processes.get_mut(&key) else { return false };
        let Some(chunk) = process.read(stream) else { return false };
        let exec = match &mut process.role {
            Role::Container(container) => {
                if let Some(log) = &mut container.log {
                    let time = format!("{:.9}", Timestamp::now());
                    // A full disk must not stop the container: what cannot be written is lost.
                    drop(match chunk.is_empty() {
                        true => log.finish(stream, &time),
                        false => log.write(stream, &chunk, &time),
                    });
                }
                false
            }
            Role::Exec { .. } => true,
        };
        if chunk.is_empty() {
            return false;
        }
        let kind = match stream {
            Stream::Stdout => FrameKind::Stdout,
            Stream::Stderr => FrameKind::Stderr,
        };
        for connection in self.connections.values_mut() {
            let wanted = match connection.purpose {
                Purpose::Exec(process) => exec && process == key,
                Purpose::Attach { process, stdout, stderr, .. } => {
                    process == key && if stream == Stream::Stdout { stdout } else { stderr }
                }
                _ => false,
            };
            if wanted {
                connection.send_frame(kind, &chunk);
            }
        }
        true
    }

    /// Takes every child that ended.
    fn reap(&mut self) {
        while matches!(self.signals.read_signal(), Ok(Some(_))) {}
        let ended = || match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => Some((pid.as_raw(), code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => Some((pid.as_raw(), 128 + signal as i32)),
            _ => None,
        };
        while let Some((pid, code)) = ended() {
            let mut keys = self.processes.iter();
            match keys.find(|(_, process)| process.running_pid() == Some(pid)).map(|(&key, _)| key) {
                Some(key) => self.exited(key, pid, code, now()),
                None => {
                    self.unclaimed.push((pid, code, now()));
                    if self.unclaimed.len() > MAX_UNCLAIMED {
                        self.unclaimed.remove(0);
                    }
                }
            }
        }
        if !self.processes.values().any(|process| matches!(process.state, State::Launching { .. })) {
            self.unclaimed = Vec::new();
        }
    }

    /// Lets a process end that did so before its launch was heard of.
    fn claim(&mut self, key: u64) {
        let pid = self.processes.get(&key).and_then(Process::running_pid);
        if let Some(at) = self.unclaimed.iter().position(|(ended, ..)| Some(*ended) == pid) {
            let (pid, code, time) = self.unclaimed.swap_remove(at);
            self.exited(key, pid, code, time);
        }
    }

    fn exited(&mut self, key: u64, pid: i32, code: i32, finished_at: i64) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.read_output(key, stream) {}
        }
        let Some(process) = self.processes.get_mut(&key) else { return };
        let mut exit = Exit { code, oom_killed: false, finished_at };
        let container = process.container.clone();
        match &process.role {
            Role::Container(part) => {
                part.kill_all();
                exit.oom_killed = part.oom_killed();
                // A runtime that is there hears it anyway.
                drop(part.record(&exit));
                part.remove_cgroup();
                let started_at = match process.state {
                    State::Running { started_at, .. } => started_at,
                    _ => finished_at,
                };
                process.stdin = None;
                process.state = State::Exited { pid, started_at, exit: exit.clone() };
            }
            Role::Exec { .. } => drop(self.processes.remove(&key)),
        }
        for connection in self.connections.values_mut() {
            match connection.purpose {
                Purpose::Exec(process) | Purpose::Attach { process, .. } if process == key => {
                    connection.finish(&Reply::Exited { exit: exit.clone() });
                }
                Purpose::Watch if self.processes.contains_key(&key) => {
                    let (container, exit) = (container.clone(), exit.clone());
                    connection.send(&Reply::ContainerExited { container, exit });
                }
                _ => {}
            }
        }
    }
}

/// In a forked child: becomes the wanted process, or says why not.
fn run_exec(plan: &ExecPlan<'_>, stdio: [OwnedFd; 3], to_parent: io::PipeWriter) -> ! {
    let mut to_parent_file = match to_parent.try_clone() {
        Ok(pipe) => File::from(OwnedFd::from(pipe)),
        Err(error) => say_and_exit(to_parent, &Said::Error(chain(&error))),
    };
    let result = sys::reset_signals().map_err(|error| chain(&error));
    let result =
        result.and_then(|()| exec::run(plan, stdio, &mut to_parent_file).map_err(|error| chain(&error)));
    let message = result.err().unwrap_or_default();
    say_and_exit(to_parent, &Said::Error(message))
}

fn signal_process(pid: i32, signal: i32) {
    if let Ok(signal) = Signal::try_from(signal) {
        // It is our child and not reaped, so the id is still its own; one that is dead does not mind.
        kill(Pid::from_raw(pid), signal).unwrap_or_default();
    }
}

fn now() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
