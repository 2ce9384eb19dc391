//! Mounts made by the kubelet itself: tmpfs volumes, subpath binds, and their removal.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts a tmpfs unless the directory is one already. No size means the kernel's default: half the memory.
pub(crate) fn tmpfs(target: &Path, size: Option<i64>, noswap: bool) -> io::Result<()> {
    fs::create_dir_all(target)?;
    if is_mount_point(target)? {
        return Ok(());
    }
    let mut options = vec!["mode=0777".to_owned()];
    options.extend(size.map(|bytes| format!("size={bytes}")));
    let attempts: &[&str] = if noswap { &["noswap", ""] } else { &[""] };
    let mut last = Ok(());
    for extra in attempts {
        let mut all = options.clone();
        all.extend(Some((*extra).to_owned()).filter(|e| !e.is_empty()));
        last = mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some(all.join(",").as_str()));
        if last.is_ok() {
            break;
        }
    }
    last.map_err(io::Error::from)
}

pub(crate) fn hugetlbfs(target: &Path, page_size: Option<&str>) -> io::Result<()> {
    fs::create_dir_all(target)?;
    if is_mount_point(target)? {
        return Ok(());
    }
    let options = page_size.map(|size| format!("pagesize={size}"));
    Ok(mount(Some("nodev"), target, Some("hugetlbfs"), MsFlags::empty(), options.as_deref())?)
}

pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let own = fs::symlink_metadata(path)?;
    let parent = fs::symlink_metadata(path.parent().unwrap_or(path))?;
    Ok(own.dev() != parent.dev() || own.ino() == parent.ino())
}

/// Unmounts everything below `root`, deepest first.
pub(crate) fn unmount_below(root: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(root))
        .collect();
    points.reverse();
    for point in points {
        match umount2(&point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(nix::Error::EBUSY) => umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// mountinfo writes blanks and backslashes as octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Binds `subpath` of a volume to `target`, made as a directory if it is missing. Links in the volume are
/// followed, but never out of it.
pub(crate) fn bind_subpath(volume: &Path, subpath: &str, target: &Path) -> io::Result<()> {
    let ordinary =
        Path::new(subpath).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !ordinary {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid subPath {subpath:?}")));
    }
    let root = fs::File::open(volume)?;
    if open_beneath(&root, subpath).is_err() {
        create_beneath(&root, volume, subpath)?;
    }
    let source = open_beneath(&root, subpath)?;
    let link = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    let is_directory = fs::metadata(&link)?.is_dir();
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::symlink_metadata(target).is_ok() {
        unmount_below(target)?;
    } else if is_directory {
        fs::create_dir(target)?;
    } else {
        fs::File::create(target)?;
    }
    Ok(mount(Some(&link), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

fn open_beneath(root: &fs::File, path: &str) -> io::Result<std::os::fd::OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, if path.is_empty() { "." } else { path }, how)?)
}

/// New directories take the volume's mode and owner, so that the pod's user can write to them.
fn create_beneath(root: &fs::File, volume: &Path, subpath: &str) -> io::Result<()> {
    let model = fs::metadata(volume)?;
    let mut made = PathBuf::new();
    for part in Path::new(subpath).components() {
        let parent = open_beneath(root, &made.to_string_lossy())?;
        made.push(part);
        if open_beneath(root, &made.to_string_lossy()).is_ok() {
            continue;
        }
        let full = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(part);
        fs::create_dir(&full)?;
        fs::set_permissions(&full, fs::Permissions::from_mode(model.mode() & 0o7777))?;
        chown(&full, Some(model.uid()), Some(model.gid()))?;
    }
    Ok(())
}

/// Gives a volume to a group: owner and group may read and write, new files inherit the group.
pub(crate) fn set_group(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.file_type().is_symlink() {
        return std::os::unix::fs::lchown(path, None, Some(group));
    }
    chown(path, None, Some(group))?;
    let mut wanted = metadata.mode() & 0o7777 | if read_only { 0o440 } else { 0o660 };
    if metadata.is_dir() {
        wanted |= 0o2110;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(wanted))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            set_group(&entry?.path(), group, read_only)?;
        }
    }
    Ok(())
}

/// Whether the root already belongs to the group with the wanted rights: enough for `OnRootMismatch`.
pub(crate) fn has_group(path: &Path, group: u32) -> io::Result<bool> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.gid() == group && metadata.mode() & 0o2770 == 0o2770)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subpaths_cannot_leave_their_volume() {
        let base = std::env::temp_dir().join(format!("cot-subpath-{}", std::process::id()));
        fs::create_dir_all(base.join("volume/inner")).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("volume/out")).unwrap();
        std::os::unix::fs::symlink("inner", base.join("volume/in")).unwrap();
        for (subpath, works) in [
            ("inner", true),
            ("in", true),
            ("new/deep", true),
            ("out", false),
            ("../x", false),
            ("/etc", false),
        ] {
            let target = base.join("target").join(subpath.replace('/', "_"));
            let result = bind_subpath(&base.join("volume"), subpath, &target);
            assert_eq!(result.is_ok(), works, "{subpath}: {result:?}");
        }
        assert!(base.join("volume/new/deep").is_dir());
        unmount_below(&base).unwrap();
        fs::remove_dir_all(&base).unwrap();
    }
}
