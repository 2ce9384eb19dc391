//! The supervisor: one small process for each pod, which outlives the runtime.
//!
//! It holds the pod's namespaces, is the parent of its containers, reads their output into their logs and records
//! how they end. It has one thread and one `poll` loop; everything that allocates much or may block runs in a forked
//! child. Start reading at [`main`], then [`Supervisor::run`]. It must never start an async runtime or a thread.

pub(crate) mod client;
mod connection;
mod exec;
mod launch;
mod log;
mod namespaces;
mod process;
pub(crate) mod protocol;
mod server;
mod sys;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::setsid;

pub(crate) use launch::EMPTY_LAYER;
pub(crate) use process::EXIT_FILE;
use protocol::{Hello, SupervisorConfig};
use server::Supervisor;

use crate::error::chain;

/// The supervisor's own adjustment, as upstream gives a pod's sandbox.
const OOM_SCORE_ADJUSTMENT: &str = "-998";

/// The name of the configuration in the directory a supervisor is given.
pub(crate) const CONFIG_FILE: &str = "supervisor.json";

/// Why a supervisor did not come up.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("want one argument, the sandbox's directory")]
    Usage,
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the supervisor's configuration is not valid")]
    Config(#[source] serde_json::Error),
    #[error("cannot listen on {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Namespaces(#[from] namespaces::NamespaceError),
    #[error("cannot set up {what}")]
    Setup {
        what: &'static str,
        #[source]
        source: nix::Error,
    },
}

/// Runs a supervisor in the sandbox directory named by the only argument. Returns its exit code when told to stop.
pub(crate) fn main(args: &[String]) -> i32 {
    let (hello, supervisor) = match start(args) {
        Ok(supervisor) => (
            Hello::Ready { supervisor: nix::unistd::getpid().as_raw(), holder: supervisor.holder_pid() },
            Some(supervisor),
        ),
        Err(error) => (Hello::Failed { message: chain(&error) }, None),
    };
    let mut line = serde_json::to_vec(&hello).unwrap_or_default();
    line.push(b'\n');
    // A parent that is gone will find the supervisor by its socket.
    let said = std::io::stdout().write_all(&line);
    let Some(supervisor) = supervisor else { return 1 };
    if said.is_err() || detach_output().is_err() {
        return 1;
    }
    supervisor.run()
}

fn start(args: &[String]) -> Result<Supervisor, StartError> {
    let [directory] = args else { return Err(StartError::Usage) };
    let setup = |what| move |source| StartError::Setup { what, source };
    let directory = Path::new(directory);
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| StartError::Read { path, source }
    };
    std::env::set_current_dir(directory).map_err(read(directory))?;
    let text = fs::read(CONFIG_FILE).map_err(read(Path::new(CONFIG_FILE)))?;
    let config: SupervisorConfig = serde_json::from_slice(&text).map_err(StartError::Config)?;
    // It leads a group already when started from a shell; a session of its own is wanted, not needed.
    if let Err(error) = setsid()
        && error != nix::Error::EPERM
    {
        return Err(StartError::Setup { what: "a session", source: error });
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(setup("a reaper"))?;
    nix::sys::prctl::set_name(c"coracle-pod").map_err(setup("a name"))?;
    // Not ours to lower without CAP_SYS_RESOURCE; then the parent's value stays.
    if let Err(source) = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJUSTMENT)
        && source.kind() != std::io::ErrorKind::PermissionDenied
    {
        return Err(StartError::Read { path: "/proc/self/oom_score_adj".into(), source });
    }
    let holder = namespaces::create(&config)?;
    let socket = &config.socket;
    if let Err(source) = fs::remove_file(socket)
        && source.kind() != std::io::ErrorKind::NotFound
    {
        return Err(StartError::Listen { path: socket.clone(), source });
    }
    let listen = |source| StartError::Listen { path: socket.clone(), source };
    let listener = UnixListener::bind(socket).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).map_err(setup("signals"))?;
    Supervisor::new(listener, holder, &signals).map_err(setup("signals"))
}

/// Closes what ties the supervisor to whoever started it.
fn detach_output() -> std::io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
