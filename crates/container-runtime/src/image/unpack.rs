//! Unpacks one layer into a directory of its own, to be the lower directory of an overlay mount.
//!
//! The archive is not trusted: every name is resolved inside the layer (and the layers below it), nothing is ever
//! opened through a symbolic link of its own, and attributes that mean something to overlayfs are ours alone.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::digest::hex_digest;
use super::sys;
use super::view::{LayerView, OPAQUE_XATTR};

const WHITEOUT_PREFIX: &str = ".wh.";
const OPAQUE_MARKER: &str = ".wh..wh..opq";

/// Reads a layer in any of the compressions images use.
pub(super) fn decompress(reader: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let magic = reader.fill_buf()?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(Box::new(zstd::stream::read::Decoder::with_buffer(reader)?));
    }
    Ok(Box::new(reader))
}

/// Unpacks a layer below `root`, over the layers `parents` (uppermost first). Answers the digest of the
/// uncompressed archive.
pub(super) fn unpack(reader: impl Read + 'static, root: &Path, parents: &[PathBuf]) -> io::Result<String> {
    let mut archive = Archive::new(Hashing { inner: decompress(reader)?, hasher: Sha256::new() });
    let layers = std::iter::once(root).chain(parents.iter().map(PathBuf::as_path));
    let mut layer = Layer { root, view: LayerView::new(layers), parents, directory_times: BTreeMap::new() };
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        layer.add(&mut entry, &name).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot unpack {}: {error}", name.display()))
        })?;
    }
    for (path, time) in &layer.directory_times {
        set_time(&root.join(path), *time)?;
    }
    let mut hashing = archive.into_inner();
    io::copy(&mut hashing, &mut io::sink())?;
    Ok(hex_digest(hashing.hasher))
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

struct Layer<'a> {
    root: &'a Path,
    view: LayerView<'a>,
    parents: &'a [PathBuf],
    /// Set last: unpacking into a directory changes its time.
    directory_times: BTreeMap<PathBuf, i64>,
}

impl Layer<'_> {
    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, name: &Path) -> io::Result<()> {
        let Some((parent, file)) = split(name)? else {
            // The root itself.
            return apply_metadata(entry, self.root, true);
        };
        let parent = self.view.resolve(&parent, true).ok_or_else(too_many_links)?;
        self.make_directories(&parent)?;
        if file == OPAQUE_MARKER {
            return sys::set_xattr(&self.root.join(&parent), OPAQUE_XATTR, b"y");
        }
        if let Some(hidden) = file.strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(&parent.join(checked_name(hidden)?));
        }
        let path = parent.join(&file);
        let to = self.root.join(&path);
        let kind = entry.header().entry_type();
        clear_place(&to, kind == EntryType::Directory)?;
        match kind {
            EntryType::Directory => {
                make_directory(&to)?;
                self.directory_times.insert(path, modified(entry));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut out = create_file(&to)?;
                io::copy(entry, &mut out)?;
            }
            EntryType::Symlink => symlink(link_name(entry)?, &to)?,
            EntryType::Link => return self.hard_link(&link_name(entry)?, &to),
            EntryType::Char | EntryType::Block | EntryType::Fifo if make_node(entry, &to)? => {}
            // Headers of other kinds speak of entries, and are none.
            _ => return Ok(()),
        }
        apply_metadata(entry, &to, kind == EntryType::Directory)
    }

    fn whiteout(&self, path: &Path) -> io::Result<()> {
        let to = self.root.join(path);
        // It hides what is below, never what this layer brings itself.
        if fs::symlink_metadata(&to).is_ok() {
            return Ok(());
        }
        Ok(mknod(&to, SFlag::S_IFCHR, Mode::empty(), 0)?)
    }

    fn hard_link(&self, target: &Path, to: &Path) -> io::Result<()> {
        let target = self.view.resolve(target, false).ok_or_else(too_many_links)?;
        let in_layer = self.root.join(&target);
        if fs::symlink_metadata(&in_layer).is_err() {
            let below = LayerView::new(self.parents.iter().map(PathBuf::as_path));
            let (file, metadata) = below.lookup(&target).ok_or(io::ErrorKind::NotFound)?;
            if let Some(parent) = target.parent() {
                self.make_directories(parent)?;
            }
            copy_up(&file, &metadata, &in_layer)?;
        }
        if fs::symlink_metadata(&in_layer)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "hard link to a directory"));
        }
        fs::hard_link(in_layer, to)
    }

    /// Makes a directory and those above it, as the layers below have them.
    fn make_directories(&self, path: &Path) -> io::Result<()> {
        let mut here = PathBuf::new();
        for component in path.components() {
            here.push(component);
            let to = self.root.join(&here);
            match fs::symlink_metadata(&to) {
                Ok(metadata) if metadata.is_dir() => continue,
                Ok(_) => fs::remove_file(&to)?,
                Err(_) => {}
            }
            let below = LayerView::new(self.parents.iter().map(PathBuf::as_path)).lookup(&here);
            make_directory(&to)?;
            if let Some((_, metadata)) = below.filter(|(_, metadata)| metadata.is_dir()) {
                lchown(&to, Some(metadata.uid()), Some(metadata.gid()))?;
                fs::set_permissions(&to, Permissions::from_mode(metadata.mode() & 0o7777))?;
            }
        }
        Ok(())
    }
}

/// The directory and the last name of an entry. `None` is the root. `..` may not lead out; absolute names are
/// taken from the root.
fn split(name: &Path) -> io::Result<Option<(PathBuf, String)>> {
    let mut clean = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir if !clean.pop() => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the name leads out of the layer"));
            }
            _ => {}
        }
    }
    let Some(file) = clean.file_name() else { return Ok(None) };
    let file =
        file.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the name is not UTF-8"))?;
    let file = file.to_owned();
    clean.pop();
    Ok(Some((clean, file)))
}

fn checked_name(name: &str) -> io::Result<&str> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a whiteout of no file"));
    }
    Ok(name)
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> io::Result<PathBuf> {
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "a link to nowhere");
    Ok(entry.link_name()?.ok_or_else(missing)?.into_owned())
}

fn too_many_links() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "too many symbolic links")
}

/// Removes what an earlier entry put here, but keeps a directory for a directory.
fn clear_place(to: &Path, keep_directory: bool) -> io::Result<()> {
    match fs::symlink_metadata(to) {
        Ok(metadata) if metadata.is_dir() && keep_directory => Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(to),
        Ok(_) => fs::remove_file(to),
        Err(_) => Ok(()),
    }
}

fn make_directory(to: &Path) -> io::Result<()> {
    match fs::create_dir(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.and_then(|()| fs::set_permissions(to, Permissions::from_mode(0o755))),
    }
}

fn create_file(to: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(to)
}

fn copy_up(from: &Path, metadata: &fs::Metadata, to: &Path) -> io::Result<()> {
    if metadata.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "hard link to what is no file"));
    }
    io::copy(&mut File::open(from)?, &mut create_file(to)?)?;
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, Permissions::from_mode(metadata.mode() & 0o7777))?;
    set_time(to, metadata.mtime())
}

/// Makes a device or a pipe. `false` where it would be a whiteout in disguise.
fn make_node<R: Read>(entry: &Entry<'_, R>, to: &Path) -> io::Result<bool> {
    let header = entry.header();
    let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
    let kind = match header.entry_type() {
        EntryType::Char if (major, minor) == (0, 0) => return Ok(false),
        EntryType::Char => SFlag::S_IFCHR,
        EntryType::Block => SFlag::S_IFBLK,
        _ => SFlag::S_IFIFO,
    };
    mknod(to, kind, Mode::from_bits_truncate(0o600), makedev(major.into(), minor.into()))?;
    Ok(true)
}

fn apply_metadata<R: Read>(entry: &mut Entry<'_, R>, to: &Path, is_directory: bool) -> io::Result<()> {
    let header = entry.header();
    let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "owner id"));
    let is_link = header.entry_type() == EntryType::Symlink;
    lchown(to, Some(id(header.uid()?)?), Some(id(header.gid()?)?))?;
    if !is_link {
        fs::set_permissions(to, Permissions::from_mode(header.mode()? & 0o7777))?;
    }
    let time = modified(entry);
    let mut attributes = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) {
            attributes.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    for (name, value) in attributes.iter().filter(|(name, _)| !name.starts_with("trusted.overlay.")) {
        match sys::set_xattr(to, name, value) {
            // Not every file system has all of them.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_link => {}
            result => result?,
        }
    }
    if is_directory { Ok(()) } else { set_time(to, time) }
}

fn modified<R: Read>(entry: &Entry<'_, R>) -> i64 {
    i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0)
}

fn set_time(to: &Path, seconds: i64) -> io::Result<()> {
    let time = TimeSpec::new(seconds, 0);
    Ok(utimensat(AT_FDCWD, to, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

#[cfg(test)]
mod tests;
