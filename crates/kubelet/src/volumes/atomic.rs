//! Files that change all at once: a directory of a fresh name, and one link that moves to it.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

const DATA_LINK: &str = "..data";
const NEW_LINK: &str = "..data_tmp";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProjectedFile {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    /// Who may read it, where that is not root.
    pub(crate) owner: Option<u32>,
}

pub(crate) type Payload = BTreeMap<String, ProjectedFile>;

/// Makes `target` hold exactly `payload`; running containers see either the old files or the new ones.
/// Returns whether anything changed.
pub(crate) fn write(target: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        validate(path)?;
    }
    if is_current(target, payload) {
        return Ok(false);
    }
    let old = fs::read_link(target.join(DATA_LINK)).ok();
    let name = fresh_name(target, old.as_deref());
    let directory = target.join(&name);
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        write_file(&directory, path, file, group)?;
    }
    set_group(&directory, group)?;
    let fresh_link = target.join(NEW_LINK);
    remove_if_there(&fresh_link)?;
    symlink(&name, &fresh_link)?;
    fs::rename(&fresh_link, target.join(DATA_LINK))?;
    link_entries(target, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(target.join(old))?;
    }
    Ok(true)
}

fn validate(path: &str) -> io::Result<()> {
    let ordinary = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !ordinary || path.starts_with("..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?}")));
    }
    Ok(())
}

fn is_current(target: &Path, payload: &Payload) -> bool {
    let data = target.join(DATA_LINK);
    let same = payload.iter().all(|(path, file)| {
        let path = data.join(path);
        fs::read(&path).is_ok_and(|found| found == file.data)
            && fs::metadata(&path).is_ok_and(|m| m.permissions().mode() & 0o600 == file.mode & 0o600)
    });
    same && data.exists() && count_files(&data) == payload.len()
}

fn count_files(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries.flatten().map(|e| if e.path().is_dir() { count_files(&e.path()) } else { 1 }).sum()
}

fn fresh_name(target: &Path, old: Option<&Path>) -> PathBuf {
    let number = old.and_then(|o| o.to_str()?.strip_prefix("..")?.parse::<u64>().ok()).unwrap_or(0);
    let mut next = number + 1;
    while target.join(format!("..{next}")).exists() {
        next += 1;
    }
    PathBuf::from(format!("..{next}"))
}

fn write_file(directory: &Path, path: &str, file: &ProjectedFile, group: Option<u32>) -> io::Result<()> {
    let full = directory.join(path);
    let mut parent = directory.to_owned();
    for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        if !parent.exists() {
            fs::create_dir(&parent)?;
            fs::set_permissions(&parent, Permissions::from_mode(0o755))?;
            set_group(&parent, group)?;
        }
    }
    fs::write(&full, &file.data)?;
    let readable = if group.is_some() { 0o440 } else { 0 };
    if file.owner.is_some() || group.is_some() {
        chown(&full, file.owner, group)?;
    }
    fs::set_permissions(&full, Permissions::from_mode(file.mode | readable))
}

fn set_group(path: &Path, group: Option<u32>) -> io::Result<()> {
    if group.is_none() {
        return Ok(());
    }
    chown(path, None, group)?;
    fs::set_permissions(path, Permissions::from_mode(0o2775))
}

/// One link per first path component, and none for what is gone.
fn link_entries(target: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: std::collections::BTreeSet<&str> =
        payload.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for name in &wanted {
        let link = target.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA_LINK).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        let file = |data: &str, mode| ProjectedFile { data: data.into(), mode, owner: None };
        files.iter().map(|(path, data, mode)| ((*path).to_owned(), file(data, *mode))).collect()
    }

    #[test]
    fn files_appear_change_and_go_together() {
        let target = std::env::temp_dir().join(format!("cot-atomic-{}", std::process::id()));
        fs::create_dir_all(&target).unwrap();
        let first = payload(&[("a", "1", 0o644), ("dir/b", "2", 0o400)]);
        assert!(write(&target, &first, None).unwrap());
        assert!(!write(&target, &first, None).unwrap());
        assert_eq!(fs::read_to_string(target.join("dir/b")).unwrap(), "2");
        assert_eq!(fs::metadata(target.join("dir/b")).unwrap().permissions().mode() & 0o777, 0o400);
        assert!(write(&target, &payload(&[("a", "3", 0o644)]), None).unwrap());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "3");
        let mut names: Vec<_> = fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["..2", "..data", "a"]);
        fs::remove_dir_all(&target).unwrap();
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        for path in ["../x", "/x", "a/../../x", "", "..data"] {
            assert!(
                write(Path::new("/nonexistent"), &payload(&[(path, "", 0o644)]), None).is_err(),
                "{path}"
            );
        }
    }
}
