//! Runs a further process in a container: in a forked child of the supervisor, which becomes that process.
//!
//! libcontainer can do this too, but not with the container's seccomp profile nor in its user namespace.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{
    ForkResult, Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, setgroups, setresgid, setresuid, setsid,
};

use super::sys;

/// What the child becomes.
#[derive(Debug)]
pub(super) struct ExecPlan<'a> {
    pub(super) init: i32,
    pub(super) bundle: &'a Path,
    pub(super) cgroup: &'a [PathBuf],
    pub(super) args: &'a [String],
    pub(super) terminal: Option<(u16, u16)>,
}

/// Why a process did not come to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecError {
    #[error("cannot read the container's configuration")]
    Spec(#[source] libcontainer::oci_spec::OciSpecError),
    #[error("the container's configuration has no process")]
    NoProcess,
    #[error("no command given")]
    NoCommand,
    #[error("a string of the command has a zero byte")]
    ZeroByte(#[source] std::ffi::NulError),
    #[error("cannot join the container's control group")]
    Cgroup(#[source] io::Error),
    #[error("cannot join the container's namespaces")]
    Namespaces(#[source] io::Error),
    #[error("cannot set up {what}")]
    Setup {
        what: &'static str,
        #[source]
        source: nix::Error,
    },
    #[error("cannot take the container's identity")]
    Identity(#[source] libcontainer::syscall::SyscallError),
    #[error("cannot apply the container's seccomp profile")]
    Seccomp(#[source] libcontainer::seccomp::SeccompError),
    #[error("chdir to {} failed", path.display())]
    Chdir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("exec: \"{name}\": executable file not found in $PATH")]
    NotFound { name: String },
    #[error("exec: \"{name}\"")]
    Exec {
        name: String,
        #[source]
        source: nix::Error,
    },
}

fn setup(what: &'static str) -> impl FnOnce(nix::Error) -> ExecError {
    move |source| ExecError::Setup { what, source }
}

/// Joins the container and forks the process, reporting its id to `pid_to`; returns in neither process but
/// to tell of a failure.
pub(super) fn run(plan: &ExecPlan<'_>, stdio: [OwnedFd; 3], pid_to: &mut File) -> Result<(), ExecError> {
    let spec = Spec::load(plan.bundle.join("config.json")).map_err(ExecError::Spec)?;
    let process = spec.process().as_ref().ok_or(ExecError::NoProcess)?;
    for directory in plan.cgroup {
        join_cgroup(directory).map_err(ExecError::Cgroup)?;
    }
    if let Some(adjustment) = process.oom_score_adj() {
        // Lowering it may not be ours to do; the supervisor's own value is never worse for the machine.
        if let Err(error) = fs::write("/proc/self/oom_score_adj", adjustment.to_string())
            && error.kind() != io::ErrorKind::PermissionDenied
        {
            return Err(ExecError::Cgroup(error));
        }
    }
    join_namespaces(plan.init).map_err(ExecError::Namespaces)?;
    // The process namespace holds for children only.
    match sys::fork().map_err(setup("a process"))? {
        ForkResult::Parent { child } => {
            if let Err(error) = writeln!(pid_to, "pid {child}") {
                return Err(ExecError::Namespaces(error));
            }
            sys::exit_now(0);
        }
        ForkResult::Child => become_process(plan, &spec, process, stdio),
    }
}

fn join_cgroup(directory: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(directory.join("cgroup.procs"))?.write_all(b"0")
}

fn join_namespaces(init: i32) -> io::Result<()> {
    let pidfd = sys::pidfd_open(init)?;
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWCGROUP;
    let ours = fs::read_link("/proc/self/ns/user")?;
    if fs::read_link(format!("/proc/{init}/ns/user"))? != ours {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    Ok(setns(pidfd.as_fd(), flags)?)
}

fn become_process(
    plan: &ExecPlan<'_>,
    spec: &Spec,
    process: &Process,
    stdio: [OwnedFd; 3],
) -> Result<(), ExecError> {
    setsid().map_err(setup("a session"))?;
    let [stdin, stdout, stderr] = stdio;
    dup2_stdin(&stdin).map_err(setup("stdin"))?;
    dup2_stdout(&stdout).map_err(setup("stdout"))?;
    dup2_stderr(&stderr).map_err(setup("stderr"))?;
    if let Some((columns, rows)) = plan.terminal {
        sys::set_controlling_terminal(&stdin).map_err(setup("the terminal"))?;
        sys::set_window_size(&stdin, columns, rows).map_err(setup("the terminal's size"))?;
    }
    drop((stdin, stdout, stderr));
    let user = process.user();
    let umask = user.umask().unwrap_or(0o022);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    chdir(process.cwd())?;
    let groups: Vec<Gid> =
        user.additional_gids().iter().flatten().map(|&group| Gid::from_raw(group)).collect();
    setgroups(&groups).map_err(setup("supplementary groups"))?;
    take_identity(spec, process, Uid::from_raw(user.uid()), Gid::from_raw(user.gid()))?;
    execute(plan.args, process.env().as_deref().unwrap_or_default())
}

fn chdir(path: &Path) -> Result<(), ExecError> {
    let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
    std::env::set_current_dir(path).map_err(|source| ExecError::Chdir { path: path.to_owned(), source })
}

/// User, capabilities and system call filter, in the order in which each step is still permitted.
fn take_identity(spec: &Spec, process: &Process, user: Uid, group: Gid) -> Result<(), ExecError> {
    let syscall = create_syscall();
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let no_new_privileges = process.no_new_privileges() == Some(true);
    let filter = || match seccomp {
        Some(seccomp) => initialize_seccomp(seccomp).map(drop).map_err(ExecError::Seccomp),
        None => Ok(()),
    };
    nix::sys::prctl::set_keepcaps(true).map_err(setup("capabilities"))?;
    setresgid(group, group, group).map_err(setup("the group"))?;
    setresuid(user, user, user).map_err(setup("the user"))?;
    nix::sys::prctl::set_keepcaps(false).map_err(setup("capabilities"))?;
    reset_effective(&*syscall).map_err(ExecError::Identity)?;
    if !no_new_privileges {
        filter()?;
    }
    if let Some(capabilities) = process.capabilities() {
        drop_privileges(capabilities, &*syscall).map_err(ExecError::Identity)?;
    }
    if no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(setup("no_new_privs"))?;
        filter()?;
    }
    Ok(())
}

fn execute(args: &[String], env: &[String]) -> Result<(), ExecError> {
    let strings = |list: &[String]| -> Result<Vec<CString>, ExecError> {
        list.iter().map(|text| CString::new(text.as_str()).map_err(ExecError::ZeroByte)).collect()
    };
    let name = args.first().ok_or(ExecError::NoCommand)?.clone();
    let (args, env_strings) = (strings(args)?, strings(env)?);
    let mut failure = nix::Error::ENOENT;
    for path in candidates(&name, env) {
        let path = CString::new(path).map_err(ExecError::ZeroByte)?;
        let Err(error) = nix::unistd::execve(&path, &args, &env_strings);
        // A later directory may have what this one lacks; what else went wrong counts more than absence.
        if !matches!(error, nix::Error::ENOENT | nix::Error::ENOTDIR) {
            failure = error;
        }
        if !matches!(error, nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::EACCES) {
            break;
        }
    }
    if failure == nix::Error::ENOENT && !name.contains('/') {
        return Err(ExecError::NotFound { name });
    }
    Err(ExecError::Exec { name, source: failure })
}

/// The files a command's name may mean.
fn candidates(name: &str, env: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    path.split(':').filter(|directory| directory.starts_with('/')).map(|d| format!("{d}/{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_looked_up_in_the_containers_path() {
        let env = ["PATH=/a:/b::rel".to_owned()];
        assert_eq!(candidates("sh", &env), ["/a/sh", "/b/sh"]);
        assert_eq!(candidates("./sh", &env), ["./sh"]);
        assert_eq!(candidates("sh", &[]), Vec::<String>::new());
    }
}
