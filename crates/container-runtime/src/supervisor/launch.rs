//! Makes a container: runs in a forked child of the supervisor, so that nothing it allocates stays.
//!
//! The root file system is mounted in a mount namespace of the child, which only the container inherits: the
//! machine's own mount table never sees it, and it goes when the container goes.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::linux::MountAttr;
use libcontainer::syscall::syscall::{SyscallType, create_syscall};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::protocol::{OverlayMount, StartRequest};

/// Where libcontainer keeps the state of a container, in its bundle.
const STATE_DIRECTORY: &str = "state";

/// The socket on which a terminal's master comes, in the bundle.
pub(super) const CONSOLE_SOCKET: &str = "console.sock";

/// The directory that stands in for an image without layers.
pub(crate) const EMPTY_LAYER: &str = "empty";

/// The largest option string the kernel takes: a page.
const MAX_MOUNT_OPTIONS: usize = 4095;

/// What becomes the container's first process's standard streams.
#[derive(Debug)]
pub(super) enum ChildStdio {
    Terminal,
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
}

/// Why a container did not come to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("cannot make a mount namespace")]
    Unshare(#[source] nix::Error),
    #[error("cannot prepare {}", path.display())]
    Prepare {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the image has too many layers to mount")]
    TooManyLayers,
    #[error("cannot mount the layers on {}", path.display())]
    Mount {
        path: PathBuf,
        #[source]
        source: nix::Error,
    },
    #[error("cannot map the owner ids of a layer")]
    MapLayer(#[source] libcontainer::syscall::SyscallError),
    #[error("cannot create the container")]
    Create(#[source] libcontainer::error::LibcontainerError),
    #[error("cannot start the container")]
    Start(#[source] libcontainer::error::LibcontainerError),
    #[error("the container has no process")]
    NoProcess,
}

/// Makes the container and starts its first process, which becomes the supervisor's child. Answers its id.
pub(super) fn launch(request: &StartRequest, stdio: ChildStdio) -> Result<i32, LaunchError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(LaunchError::Unshare)?;
    for overlay in &request.mounts {
        mount_overlay(overlay, &request.layers)?;
    }
    chdir(&request.bundle)?;
    let builder = ContainerBuilder::new(request.container.clone(), SyscallType::default())
        .with_root_path(request.bundle.join(STATE_DIRECTORY))
        .map_err(LaunchError::Create)?;
    let builder = match stdio {
        ChildStdio::Terminal => builder.with_console_socket(Some(request.bundle.join(CONSOLE_SOCKET))),
        ChildStdio::Pipes { stdin, stdout, stderr } => {
            builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
        }
    };
    let mut container = builder
        .as_init(&request.bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(LaunchError::Create)?;
    container.start().map_err(LaunchError::Start)?;
    container.pid().map(|pid| pid.as_raw()).ok_or(LaunchError::NoProcess)
}

fn chdir(path: &Path) -> Result<(), LaunchError> {
    std::env::set_current_dir(path).map_err(|source| LaunchError::Prepare { path: path.to_owned(), source })
}

fn mount_overlay(overlay: &OverlayMount, layers: &Path) -> Result<(), LaunchError> {
    let target = &overlay.target;
    let prepare = |source| LaunchError::Prepare { path: target.clone(), source };
    fs::create_dir_all(target).map_err(prepare)?;
    let mut lowers = overlay.lowers.clone();
    // The kernel wants one lower directory, and two where nothing is above them.
    let wanted = if overlay.upper.is_some() { 1 } else { 2 };
    while lowers.len() < wanted {
        lowers.push(EMPTY_LAYER.to_owned());
    }
    match &overlay.user_namespace {
        Some(namespace) => {
            lowers = map_lowers(&lowers, layers, target, namespace)?;
            chdir(target.parent().unwrap_or(layers))?;
        }
        None => chdir(layers)?,
    }
    let mut options = format!("lowerdir={}", lowers.join(":"));
    let mut flags = if overlay.devices { MsFlags::empty() } else { MsFlags::MS_NODEV };
    match &overlay.upper {
        Some((upper, work)) => {
            options.push_str(&format!(",upperdir={},workdir={}", escape(upper), escape(work)));
        }
        None => flags |= MsFlags::MS_RDONLY,
    }
    if options.len() > MAX_MOUNT_OPTIONS {
        return Err(LaunchError::TooManyLayers);
    }
    mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))
        .map_err(|source| LaunchError::Mount { path: target.clone(), source })
}

/// Mounts each layer beside the target once more, seen through the ids of a user namespace.
fn map_lowers(
    lowers: &[String],
    layers: &Path,
    target: &Path,
    namespace: &Path,
) -> Result<Vec<String>, LaunchError> {
    let prepare = |path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::Prepare { path, source }
    };
    let syscall = create_syscall();
    let namespace = File::open(namespace).map_err(prepare(namespace))?;
    let attributes = MountAttr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap_or_default(),
    };
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let mut mapped = Vec::with_capacity(lowers.len());
    for (index, lower) in lowers.iter().enumerate() {
        let source = layers.join(lower);
        let link = format!("{name}.{index}");
        let to = target.with_file_name(&link);
        fs::create_dir_all(&to).map_err(prepare(&to))?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let tree =
            syscall.open_tree(libc::AT_FDCWD, source.to_str(), flags).map_err(LaunchError::MapLayer)?;
        let at_empty_path = libc::AT_EMPTY_PATH.unsigned_abs();
        syscall
            .mount_setattr(tree.as_fd(), Path::new(""), at_empty_path, &attributes, size_of::<MountAttr>())
            .map_err(LaunchError::MapLayer)?;
        let at = File::open(&to).map_err(prepare(&to))?;
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
        syscall
            .move_mount(tree.as_fd(), Some(""), at.as_fd(), Some(""), flags)
            .map_err(LaunchError::MapLayer)?;
        mapped.push(link);
    }
    Ok(mapped)
}

fn escape(path: &Path) -> String {
    let mut out = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | ',' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_paths_are_escaped() {
        assert_eq!(escape(Path::new("/a:b,c\\d")), "/a\\:b\\,c\\\\d");
    }
}
