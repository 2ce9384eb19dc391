//! The namespaces of a pod, which live as long as its supervisor.
//!
//! Most pods' are the supervisor's own. A pod with a user namespace or a shared process namespace has a child
//! for them, the *holder*: the supervisor itself stays on the machine's side of both.

use std::fs::{self, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, Gid, Pid, Uid, getpid, setresgid, setresuid};

use super::protocol::{IdMappings, SupervisorConfig};
use super::sys;

/// Why a pod's namespaces did not come to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum NamespaceError {
    #[error("cannot make the pod's {what}")]
    Make {
        what: &'static str,
        #[source]
        source: nix::Error,
    },
    #[error("cannot map the pod's user ids")]
    Map(#[source] io::Error),
    #[error("cannot set sysctl {name}={value}")]
    Sysctl {
        name: String,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error("the holder of the pod's namespaces died: {message}")]
    Holder { message: String },
    #[error("no pipe to the holder of the pod's namespaces")]
    Pipe(#[source] io::Error),
}

fn make(what: &'static str) -> impl FnOnce(nix::Error) -> NamespaceError {
    move |source| NamespaceError::Make { what, source }
}

/// The process that is in all of a pod's namespaces, and what keeps it alive.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) pid: i32,
    _lifeline: Option<PipeWriter>,
}

/// Makes the namespaces.
pub(super) fn create(config: &SupervisorConfig) -> Result<Holder, NamespaceError> {
    if config.user_namespace.is_none() && !config.share_processes {
        enter(config)?;
        return Ok(Holder { pid: getpid().as_raw(), _lifeline: None });
    }
    if config.user_namespace.is_none() {
        enter(config)?;
    }
    spawn_holder(config)
}

/// Leaves the machine's namespaces for new ones and sets them up.
fn enter(config: &SupervisorConfig) -> Result<(), NamespaceError> {
    let mut flags = CloneFlags::empty();
    if !config.host_network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if config.hostname.is_some() {
        flags |= CloneFlags::CLONE_NEWUTS;
    }
    if !config.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags).map_err(make("namespaces"))?;
    if !config.host_network {
        sys::loopback_up().map_err(make("loopback interface"))?;
    }
    if let Some(hostname) = &config.hostname {
        nix::unistd::sethostname(hostname).map_err(make("hostname"))?;
    }
    for (name, value) in &config.sysctls {
        fs::write(sysctl_path(name), value).map_err(|source| NamespaceError::Sysctl {
            name: name.clone(),
            value: value.clone(),
            source,
        })?;
    }
    Ok(())
}

/// `net.ipv4.ip_forward` is a path below `/proc/sys`; so is `net/ipv4/conf/eth0.1/forwarding`.
fn sysctl_path(name: &str) -> PathBuf {
    let name = match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'/') => name.to_owned(),
        _ => name
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    };
    PathBuf::from("/proc/sys").join(name)
}

fn spawn_holder(config: &SupervisorConfig) -> Result<Holder, NamespaceError> {
    let (mut from_child, to_parent) = io::pipe().map_err(NamespaceError::Pipe)?;
    let (from_parent, mut to_child) = io::pipe().map_err(NamespaceError::Pipe)?;
    let child = match sys::fork().map_err(make("holder"))? {
        ForkResult::Child => {
            drop((from_child, to_child));
            let mut report = to_parent;
            let message = match hold(config, from_parent, &mut report) {
                Ok(never) => match never {},
                Err(error) => format!("error {}\n", crate::error::chain(&error)),
            };
            // The parent learns of a failed write by the pipe's end.
            let code = i32::from(report.write_all(message.as_bytes()).is_err()) + 1;
            sys::exit_now(code);
        }
        ForkResult::Parent { child } => child,
    };
    drop((to_parent, from_parent));
    if let Some(mappings) = &config.user_namespace {
        expect_line(&mut from_child, "unshared")?;
        map_ids(child, mappings).map_err(NamespaceError::Map)?;
        to_child.write_all(b"m").map_err(NamespaceError::Pipe)?;
    }
    let line = read_line(&mut from_child)?;
    match line.strip_prefix("holder ").and_then(|pid| pid.parse().ok()) {
        Some(pid) => Ok(Holder { pid, _lifeline: Some(to_child) }),
        None => Err(NamespaceError::Holder { message: line }),
    }
}

fn map_ids(child: Pid, mappings: &IdMappings) -> io::Result<()> {
    fs::write(format!("/proc/{child}/uid_map"), &mappings.uids)?;
    fs::write(format!("/proc/{child}/gid_map"), &mappings.gids)
}

/// A type without a value: what never returns.
enum Never {}

/// In the holder: makes the namespaces, says so, and waits for death.
fn hold(
    config: &SupervisorConfig,
    mut from_parent: PipeReader,
    to_parent: &mut PipeWriter,
) -> Result<Never, NamespaceError> {
    sys::reset_signals().map_err(make("signals"))?;
    if config.user_namespace.is_some() {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(make("user namespace"))?;
        to_parent.write_all(b"unshared\n").map_err(NamespaceError::Pipe)?;
        from_parent.read_exact(&mut [0]).map_err(NamespaceError::Pipe)?;
        setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).map_err(make("group"))?;
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).map_err(make("user"))?;
        // The change made it opaque; containers find the namespaces by this process, as the same user.
        nix::sys::prctl::set_dumpable(true).map_err(make("holder"))?;
        enter(config)?;
    }
    if config.share_processes {
        unshare(CloneFlags::CLONE_NEWPID).map_err(make("process namespace"))?;
        match sys::fork().map_err(make("first process"))? {
            ForkResult::Parent { child } => {
                writeln!(to_parent, "holder {child}").map_err(NamespaceError::Pipe)?;
                sys::exit_now(0);
            }
            ForkResult::Child => {}
        }
    } else {
        writeln!(to_parent, "holder {}", getpid()).map_err(NamespaceError::Pipe)?;
    }
    // The first process of a namespace inherits its orphans.
    sys::ignore_children().map_err(make("reaper"))?;
    close_all_but(&from_parent)?;
    // The supervisor holds the other end for as long as it lives.
    let mut byte = [0];
    while matches!(nix::unistd::read(io::stdin(), &mut byte), Ok(1) | Err(nix::Error::EINTR)) {}
    sys::exit_now(0)
}

/// The holder keeps nothing of the supervisor's open but the pipe that tells of its death, as stdin.
fn close_all_but(pipe: &PipeReader) -> Result<(), NamespaceError> {
    let null = OpenOptions::new().write(true).open("/dev/null").map_err(NamespaceError::Pipe)?;
    nix::unistd::dup2_stdin(pipe).map_err(make("stdin"))?;
    nix::unistd::dup2_stdout(&null).map_err(make("stdout"))?;
    nix::unistd::dup2_stderr(&null).map_err(make("stderr"))?;
    drop(null);
    sys::close_from(3).map_err(make("descriptors"))
}

fn expect_line(from: &mut PipeReader, wanted: &str) -> Result<(), NamespaceError> {
    let line = read_line(from)?;
    if line == wanted {
        return Ok(());
    }
    Err(NamespaceError::Holder { message: line })
}

fn read_line(from: &mut PipeReader) -> Result<String, NamespaceError> {
    let mut line = Vec::new();
    let mut byte = [0];
    while from.read(&mut byte).map_err(NamespaceError::Pipe)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_are_files() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
            ("net.ipv4.conf.eth0/1.forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
        ] {
            assert_eq!(sysctl_path(name), PathBuf::from(path));
        }
    }
}
