//! Facts about this machine, and the few mounts the runtime makes on it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cgroup::Hierarchies;
use crate::error::RuntimeError;
use crate::spec::{CAPABILITIES, DeviceNode, Machine};

/// The size of the shared memory of a pod, as upstream has it.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// How deep a directory of devices is read.
const MAX_DEVICE_DEPTH: usize = 4;

/// Finds out what this process can give to containers.
pub(crate) fn detect(cgroups: &Hierarchies) -> Result<Machine, RuntimeError> {
    let path = "/proc/self/status";
    let status = fs::read_to_string(path).map_err(RuntimeError::file("read", path))?;
    let bounding = capability_mask(&status, "CapBnd:") & capability_mask(&status, "CapPrm:");
    let names = CAPABILITIES.iter().enumerate().filter(|(bit, _)| bounding & (1 << bit) != 0);
    let capabilities: BTreeSet<String> = names.map(|(_, name)| (*name).to_owned()).collect();
    let path = "/proc/self/oom_score_adj";
    let own = fs::read_to_string(path).map_err(RuntimeError::file("read", path))?;
    let min_oom_score_adj = match capabilities.contains("CAP_SYS_RESOURCE") {
        true => -1000,
        false => own.trim().parse().unwrap_or(0),
    };
    let (unified_cgroups, swap_accounting, hugetlb) = match cgroups {
        Hierarchies::V1(controllers) => {
            let swap = controllers
                .get("memory")
                .is_some_and(|root| root.join("memory.memsw.limit_in_bytes").exists());
            (false, swap, controllers.contains_key("hugetlb"))
        }
        Hierarchies::V2(root) => {
            let available = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            (true, Path::new("/proc/swaps").exists(), available.contains("hugetlb"))
        }
    };
    Ok(Machine { capabilities, min_oom_score_adj, unified_cgroups, swap_accounting, hugetlb })
}

fn capability_mask(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Makes a directory a mount of its own that tells no other mount namespace of what is mounted in it.
pub(crate) fn make_private_mount(path: &Path) -> Result<(), RuntimeError> {
    fs::create_dir_all(path).map_err(RuntimeError::file("create", path))?;
    if is_mount_point(path) {
        return Ok(());
    }
    let none: Option<&str> = None;
    mount(Some(path), path, none, MsFlags::MS_BIND, none)
        .and_then(|()| mount(none, path, none, MsFlags::MS_PRIVATE, none))
        .map_err(|error| RuntimeError::file("mount", path)(error.into()))
}

/// Mounts a pod's shared memory.
pub(crate) fn mount_shm(path: &Path, owner: Option<(u32, u32)>) -> Result<(), RuntimeError> {
    fs::create_dir_all(path).map_err(RuntimeError::file("create", path))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), path, Some("tmpfs"), flags, Some(SHM_OPTIONS))
        .map_err(|error| RuntimeError::file("mount", path)(error.into()))?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .map_err(RuntimeError::file("change the owner of", path))?;
    }
    Ok(())
}

/// Unmounts what may be mounted.
pub(crate) fn unmount(path: &Path) -> Result<(), RuntimeError> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(RuntimeError::file("unmount", path)(error.into())),
    }
}

fn is_mount_point(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| Path::new(&unescape(point)) == path)
}

/// Spaces and the like are octal in `mountinfo`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The devices a path means: itself, or all below it.
pub(crate) fn devices(
    host_path: &Path,
    container_path: &str,
    access: &str,
) -> Result<Vec<DeviceNode>, RuntimeError> {
    let mut found = Vec::new();
    let read = RuntimeError::file("use the device", host_path);
    let host_path = host_path.canonicalize().map_err(read)?;
    collect_devices(&host_path, Path::new(container_path), access, 0, &mut found)
        .map_err(RuntimeError::file("use the device", &host_path))?;
    if found.is_empty() {
        return Err(RuntimeError::invalid(format!("{} is no device", host_path.display())));
    }
    Ok(found)
}

fn collect_devices(
    host: &Path,
    container: &Path,
    access: &str,
    depth: usize,
    found: &mut Vec<DeviceNode>,
) -> io::Result<()> {
    let metadata = fs::symlink_metadata(host)?;
    let kind = metadata.file_type();
    if kind.is_dir() && depth < MAX_DEVICE_DEPTH {
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            let name = entry.file_name();
            // Terminals, shared memory and message queues are the container's own.
            if depth == 0 && host == Path::new("/dev") && OWN_DEVICES.iter().any(|own| name == *own) {
                continue;
            }
            collect_devices(&entry.path(), &container.join(name), access, depth + 1, found)?;
        }
    }
    if kind.is_block_device() || kind.is_char_device() {
        found.push(DeviceNode {
            path: container.to_string_lossy().into_owned(),
            block: kind.is_block_device(),
            major: nix::sys::stat::major(metadata.rdev()),
            minor: nix::sys::stat::minor(metadata.rdev()),
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            access: if access.is_empty() { "rwm".to_owned() } else { access.to_owned() },
        });
    }
    Ok(())
}

/// What a container's `/dev` has of its own.
const OWN_DEVICES: [&str; 7] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", "tty"];

/// All devices of the node, for privileged containers.
pub(crate) fn all_devices() -> Result<Vec<DeviceNode>, RuntimeError> {
    devices(Path::new("/dev"), "/dev", "rwm")
}

/// A fresh id, as long as those of other runtimes.
pub(crate) fn new_id() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// Where the runtime keeps what.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn sandbox(&self, id: &str) -> PathBuf {
        self.root.join("sandboxes").join(id)
    }

    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    pub(crate) fn shm(&self, sandbox: &str) -> PathBuf {
        self.sandbox(sandbox).join("shm")
    }

    /// Mount points that are only used in the mount namespaces of containers.
    pub(crate) fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// The root of a container, in its own mount namespace.
    pub(crate) fn rootfs(&self, container: &str) -> PathBuf {
        self.mounts().join(container).join("rootfs")
    }

    /// The root of an image a container mounts.
    pub(crate) fn image_mount(&self, container: &str, index: usize) -> PathBuf {
        self.mounts().join(container).join(format!("image{index}"))
    }
}
