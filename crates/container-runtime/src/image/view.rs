//! Image layers seen as one file system, without mounting them.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use super::sys;

/// Symbolic links followed in one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// Layers, uppermost first.
#[derive(Debug)]
pub(crate) struct LayerView<'a> {
    layers: Vec<&'a Path>,
}

/// The xattr that hides everything below a directory.
pub(super) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// A character device 0/0 hides what is below.
pub(super) fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

impl<'a> LayerView<'a> {
    pub(crate) fn new(layers: impl IntoIterator<Item = &'a Path>) -> Self {
        Self { layers: layers.into_iter().collect() }
    }

    /// The file a path without symbolic links means: where it is, and what.
    pub(super) fn lookup(&self, path: &Path) -> Option<(PathBuf, Metadata)> {
        for layer in &self.layers {
            let mut here = layer.to_path_buf();
            let mut opaque = false;
            let mut components = path.components().peekable();
            loop {
                let Some(component) = components.next() else {
                    return fs::symlink_metadata(&here).ok().map(|metadata| (here, metadata));
                };
                here.push(component);
                match fs::symlink_metadata(&here) {
                    Ok(metadata) if is_whiteout(&metadata) => return None,
                    Ok(metadata) if components.peek().is_none() => return Some((here, metadata)),
                    Ok(metadata) if !metadata.is_dir() => return None,
                    Ok(_) => opaque |= sys::has_xattr(&here, OPAQUE_XATTR),
                    Err(_) if opaque => return None,
                    Err(_) => break,
                }
            }
        }
        None
    }

    /// A path with every symbolic link followed, inside the root; the last component's only if asked. What does not
    /// exist is taken as it is.
    pub(super) fn resolve(&self, path: &Path, follow_last: bool) -> Option<PathBuf> {
        let mut todo: VecDeque<OsString> = names(path);
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                done.pop();
                continue;
            }
            let here = done.join(&name);
            let target = match self.lookup(&here) {
                Some((file, metadata)) if metadata.is_symlink() && (follow_last || !todo.is_empty()) => {
                    fs::read_link(file).ok()?
                }
                _ => {
                    done = here;
                    continue;
                }
            };
            links += 1;
            if links > MAX_LINKS {
                return None;
            }
            if target.is_absolute() {
                done = PathBuf::new();
            }
            let mut next = names(&target);
            next.append(&mut todo);
            todo = next;
        }
        Some(done)
    }

    /// Reads a small text file; what is larger than the limit is not read at all.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Option<String> {
        let (file, metadata) = self.lookup(&self.resolve(Path::new(path), true)?)?;
        if !metadata.is_file() || metadata.len() > limit {
            return None;
        }
        let mut text = String::new();
        fs::File::open(file).ok()?.take(limit).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

/// The names of a path, `..` among them.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside_and_cross_layers() {
        let directory = tempfile::tempdir().unwrap();
        let (upper, lower) = (directory.path().join("u"), directory.path().join("l"));
        fs::create_dir_all(lower.join("usr/etc")).unwrap();
        fs::create_dir_all(&upper).unwrap();
        symlink("/usr/etc", lower.join("etc")).unwrap();
        symlink("../../../../../etc/passwd", lower.join("usr/out")).unwrap();
        symlink("loop", lower.join("loop")).unwrap();
        fs::write(lower.join("usr/etc/passwd"), "inside").unwrap();
        let view = LayerView::new([upper.as_path(), lower.as_path()]);
        assert_eq!(view.read("/etc/passwd", 100).as_deref(), Some("inside"));
        assert_eq!(view.read("/usr/out", 100).as_deref(), Some("inside"));
        assert_eq!(view.read("/etc/passwd", 3), None);
        assert_eq!(view.read("/loop", 100), None);
        assert_eq!(view.resolve(Path::new("etc/new"), false), Some(PathBuf::from("usr/etc/new")));
    }
}
