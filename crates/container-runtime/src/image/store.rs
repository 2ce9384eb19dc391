//! The image store: blobs by digest, one directory for each unpacked layer, and an index of images.
//!
//! ```text
//! images/index.json           what images there are, written whole
//! images/blobs/sha256/HEX     manifests, configurations, layers as they came
//! layers/HEX                  the unpacked layer whose chain of digests begins so
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use oci_client::Reference;
use serde::{Deserialize, Serialize};

use super::config::{ImageConfig, Manifest, check_platform};
use super::digest::{chain_id, copy_digest, digest_hex, digest_of};
use super::{ImageError, LayerView, unpack};
use crate::supervisor::EMPTY_LAYER;

/// How much of a chain's digest names its directory: all of them must fit into the options of one mount.
const LAYER_NAME_LENGTH: usize = 26;

/// The largest manifest or configuration.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The digest of its configuration.
    pub id: String,
    /// Full names with a tag.
    pub tags: Vec<String>,
    /// Full names with the digest of the manifest or index they came by.
    pub digests: Vec<String>,
    /// The manifest.
    pub manifest: String,
    /// The layers' directories, lowest first.
    pub layers: Vec<String>,
    /// All blobs together.
    pub size: u64,
    /// The user it runs as, as it says.
    pub user: String,
}

/// The images of one state directory, which several processes may use at once. Blocking.
#[derive(Debug)]
pub struct ImageStore {
    root: PathBuf,
    index: Mutex<IndexState>,
    /// One layer is unpacked at a time: the same one may be wanted twice.
    unpacking: Mutex<()>,
}

/// Content that is no image's yet is safe while this lives, from other processes too.
#[derive(Debug)]
pub(super) struct Activity {
    _lock: File,
}

/// The index, read again if another process wrote it, and safe from others while this lives.
#[derive(Debug)]
struct Images<'a> {
    state: MutexGuard<'a, IndexState>,
    _lock: Option<File>,
}

impl std::ops::Deref for Images<'_> {
    type Target = BTreeMap<String, ImageRecord>;

    fn deref(&self) -> &Self::Target {
        &self.state.images
    }
}

impl std::ops::DerefMut for Images<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.state.images
    }
}

/// The index as it was last read or written.
#[derive(Debug, Default)]
struct IndexState {
    images: BTreeMap<String, ImageRecord>,
    /// Which file it was: inode, and when it was written.
    version: Option<(u64, i64, i64)>,
}

/// What is written to the disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct IndexFile {
    images: Vec<ImageRecord>,
}

impl ImageStore {
    /// Opens the store below a runtime's state directory, making it if need be.
    pub fn open(state_dir: &Path) -> Result<Self, ImageError> {
        let root = state_dir.to_owned();
        for directory in ["images/blobs/sha256", "images/incoming", &format!("layers/{EMPTY_LAYER}")] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(ImageError::file("create", &path))?;
        }
        let store = Self { root, index: Mutex::default(), unpacking: Mutex::new(()) };
        store.refresh(&mut store.state())?;
        Ok(store)
    }

    fn state(&self) -> MutexGuard<'_, IndexState> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("images/index.json")
    }

    /// Reads the index if it is not the one last seen.
    fn refresh(&self, state: &mut IndexState) -> Result<(), ImageError> {
        let path = self.index_path();
        let version = file_version(&path);
        if version == state.version {
            return Ok(());
        }
        let text = fs::read(&path).map_err(ImageError::file("read", &path))?;
        let file: IndexFile =
            serde_json::from_slice(&text).map_err(|source| ImageError::Json { what: "the index", source })?;
        state.images = file.images.into_iter().map(|image| (image.id.clone(), image)).collect();
        state.version = version;
        Ok(())
    }

    /// The images, to look at.
    fn read(&self) -> Result<Images<'_>, ImageError> {
        let mut state = self.state();
        self.refresh(&mut state)?;
        Ok(Images { state, _lock: None })
    }

    /// The images, to change.
    fn write(&self) -> Result<Images<'_>, ImageError> {
        let mut state = self.state();
        let lock = self.lock_file("index.lock")?;
        lock.lock().map_err(ImageError::file("lock", self.root.join("images/index.lock")))?;
        self.refresh(&mut state)?;
        Ok(Images { state, _lock: Some(lock) })
    }

    fn lock_file(&self, name: &str) -> Result<File, ImageError> {
        let path = self.root.join("images").join(name);
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        options.open(&path).map_err(ImageError::file("open", path))
    }

    /// Every image.
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        Ok(self.read()?.values().cloned().collect())
    }

    /// The image an id, a name or a name with a digest means.
    pub fn find(&self, name: &str) -> Result<ImageRecord, ImageError> {
        self.find_in(&*self.read()?, name)
    }

    fn find_in(&self, images: &BTreeMap<String, ImageRecord>, name: &str) -> Result<ImageRecord, ImageError> {
        let not_found = || ImageError::NotFound { name: name.to_owned() };
        let id = if digest_hex(name).is_some() { name.to_owned() } else { format!("sha256:{name}") };
        if digest_hex(&id).is_some() {
            let by_manifest = |image: &&ImageRecord| image.manifest == id;
            let found = images.get(&id).or_else(|| images.values().find(by_manifest));
            return found.cloned().ok_or_else(not_found);
        }
        let reference = parse_name(name)?;
        let tag = tagged(&reference);
        let digest = digested(&reference);
        let wanted = |image: &&ImageRecord| match &digest {
            Some(digest) => image.digests.contains(digest),
            None => image.tags.contains(&tag),
        };
        images.values().find(wanted).cloned().ok_or_else(not_found)
    }

    /// The configuration of an image.
    pub(crate) fn config(&self, image: &ImageRecord) -> Result<ImageConfig, ImageError> {
        self.document("the configuration", &image.id)
    }

    /// Where layers are.
    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Reads a small file of an image.
    pub(crate) fn read_file(&self, layers: &[String], path: &str, limit: u64) -> Option<String> {
        let directory = self.layers_dir();
        let layers: Vec<PathBuf> = layers.iter().rev().map(|layer| directory.join(layer)).collect();
        LayerView::new(layers.iter().map(PathBuf::as_path)).read(path, limit)
    }

    /// Removes a name; with the last one, or by id, the image. Answers what is gone.
    pub fn remove(&self, name: &str) -> Result<Vec<String>, ImageError> {
        let mut images = self.write()?;
        let found = self.find_in(&images, name)?;
        let by_id = digest_hex(name).is_some() || digest_hex(&format!("sha256:{name}")).is_some();
        let mut removed = Vec::new();
        if let Some(image) = images.get_mut(&found.id) {
            if !by_id {
                let reference = parse_name(name)?;
                let (tag, digest) = (tagged(&reference), digested(&reference));
                image.tags.retain(|other| digest.is_some() || *other != tag);
                image.digests.retain(|other| Some(other) != digest.as_ref());
            }
            if by_id || image.tags.is_empty() {
                removed.append(&mut found.tags.clone());
                removed.push(found.id.clone());
                images.remove(&found.id);
            } else {
                removed.push(name.to_owned());
            }
        }
        self.save(&mut images)?;
        Ok(removed)
    }

    /// Deletes blobs and layers that neither an image nor `in_use` needs; not while an image is taken in.
    pub(crate) fn collect_garbage(&self, in_use: &BTreeSet<String>) -> Result<(), ImageError> {
        let active = self.lock_file("active.lock")?;
        if active.try_lock().is_err() {
            return Ok(());
        }
        let images = self.write()?;
        let mut blobs = BTreeSet::new();
        let mut layers: BTreeSet<&str> = in_use.iter().map(String::as_str).collect();
        layers.insert(EMPTY_LAYER);
        for image in images.values() {
            layers.extend(image.layers.iter().map(String::as_str));
            blobs.extend([image.id.clone(), image.manifest.clone()]);
            let manifest: Manifest = self.document("the manifest", &image.manifest)?;
            blobs.extend(manifest.layers.into_iter().map(|layer| layer.digest));
        }
        let directory = self.root.join("images/blobs/sha256");
        for name in names_in(&directory)? {
            if !blobs.contains(&format!("sha256:{name}")) {
                let path = directory.join(name);
                fs::remove_file(&path).map_err(ImageError::file("remove", &path))?;
            }
        }
        for name in names_in(&self.layers_dir())? {
            if !layers.contains(name.as_str()) {
                let path = self.layers_dir().join(name);
                fs::remove_dir_all(&path).map_err(ImageError::file("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Keeps new content from being collected.
    pub(super) fn begin(&self) -> Result<Activity, ImageError> {
        let lock = self.lock_file("active.lock")?;
        lock.lock_shared().map_err(ImageError::file("lock", self.root.join("images/active.lock")))?;
        Ok(Activity { _lock: lock })
    }

    /// Where a blob is, or would be.
    pub(super) fn blob_path(&self, digest: &str) -> Result<PathBuf, ImageError> {
        let hex = digest_hex(digest).ok_or_else(|| ImageError::malformed(format!("digest {digest:?}")))?;
        Ok(self.root.join("images/blobs/sha256").join(hex))
    }

    /// Where unfinished content is kept.
    pub(super) fn incoming_dir(&self) -> PathBuf {
        self.root.join("images/incoming")
    }

    /// Whether a blob is here whole.
    pub(super) fn has_blob(&self, digest: &str) -> bool {
        self.blob_path(digest).is_ok_and(|path| path.exists())
    }

    /// Takes a blob in, checking its digest where one is known. Answers digest and length.
    pub(super) fn put_blob(
        &self,
        from: &mut dyn Read,
        expected: Option<&str>,
    ) -> Result<(String, u64), ImageError> {
        let directory = self.incoming_dir();
        let mut file =
            tempfile::NamedTempFile::new_in(&directory).map_err(ImageError::file("write", &directory))?;
        let (digest, length) =
            copy_digest(from, file.as_file_mut()).map_err(ImageError::file("write", file.path()))?;
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(ImageError::WrongDigest { expected: expected.to_owned(), actual: digest });
        }
        let to = self.blob_path(&digest)?;
        file.persist(&to).map_err(|error| ImageError::file("write", &to)(error.error))?;
        Ok((digest, length))
    }

    /// Reads a document of an image.
    pub(super) fn document<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        digest: &str,
    ) -> Result<T, ImageError> {
        let text = self.read_blob(digest)?;
        serde_json::from_slice(&text).map_err(|source| ImageError::Json { what, source })
    }

    pub(super) fn read_blob(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest)?;
        let mut text = Vec::new();
        let file = File::open(&path).map_err(ImageError::file("read", &path))?;
        file.take(MAX_DOCUMENT_BYTES).read_to_end(&mut text).map_err(ImageError::file("read", &path))?;
        Ok(text)
    }

    /// Makes an image of a manifest whose blobs are all here: unpacks what is missing and gives it its names.
    pub(super) fn add(
        &self,
        manifest_digest: &str,
        tag: Option<&Reference>,
        digest: Option<String>,
    ) -> Result<ImageRecord, ImageError> {
        let manifest: Manifest = self.document("the manifest", manifest_digest)?;
        let config: ImageConfig = self.document("the configuration", &manifest.config.digest)?;
        check_platform(&config)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::malformed("the manifest and the configuration differ in layers"));
        }
        let layers = self.unpack_all(&manifest, &config)?;
        let size = manifest.config.size + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        let mut images = self.write()?;
        let id = manifest.config.digest.clone();
        let image = images.entry(id.clone()).or_insert_with(|| ImageRecord {
            id: id.clone(),
            tags: Vec::new(),
            digests: Vec::new(),
            manifest: manifest_digest.to_owned(),
            layers,
            size,
            user: config.config.user,
        });
        image.digests.extend(digest.filter(|digest| !image.digests.contains(digest)));
        let record = image.clone();
        if let Some(tag) = tag.map(tagged) {
            // A tag moves: whoever had it loses it.
            for other in images.values_mut() {
                other.tags.retain(|existing| *existing != tag);
            }
            if let Some(image) = images.get_mut(&id) {
                image.tags.push(tag);
            }
        }
        self.save(&mut images)?;
        Ok(images.get(&id).cloned().unwrap_or(record))
    }

    fn unpack_all(&self, manifest: &Manifest, config: &ImageConfig) -> Result<Vec<String>, ImageError> {
        let _unpacking = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chain: Option<String> = None;
        let mut names: Vec<String> = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            let id = chain_id(chain.as_deref(), diff_id);
            let name = layer_name(&id)?;
            self.unpack_layer(&layer.digest, diff_id, &name, &names)?;
            names.push(name);
            chain = Some(id);
        }
        Ok(names)
    }

    fn unpack_layer(
        &self,
        blob: &str,
        diff_id: &str,
        name: &str,
        below: &[String],
    ) -> Result<(), ImageError> {
        let directory = self.layers_dir();
        let to = directory.join(name);
        if to.exists() {
            return Ok(());
        }
        let unpack_error = |source| ImageError::Unpack { digest: blob.to_owned(), source };
        let path = self.blob_path(blob)?;
        let file = File::open(&path).map_err(ImageError::file("read", &path))?;
        let incoming = self.incoming_dir();
        let work = tempfile::Builder::new().prefix("layer-").tempdir_in(&incoming).map_err(unpack_error)?;
        let root = work.path().join("root");
        fs::create_dir(&root).map_err(unpack_error)?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&root, permissions).map_err(unpack_error)?;
        let parents: Vec<PathBuf> = below.iter().rev().map(|name| directory.join(name)).collect();
        let actual = unpack::unpack(file, &root, &parents).map_err(unpack_error)?;
        if actual != *diff_id {
            return Err(ImageError::WrongDigest { expected: diff_id.to_owned(), actual });
        }
        fs::rename(&root, &to).map_err(ImageError::file("move a layer to", &to))
    }

    fn save(&self, images: &mut Images<'_>) -> Result<(), ImageError> {
        let file = IndexFile { images: images.values().cloned().collect() };
        let text =
            serde_json::to_vec(&file).map_err(|source| ImageError::Json { what: "the index", source })?;
        let path = self.index_path();
        let write = || -> io::Result<()> {
            let mut new = tempfile::NamedTempFile::new_in(self.root.join("images"))?;
            new.write_all(&text)?;
            new.as_file().sync_data()?;
            new.persist(&path)?;
            Ok(())
        };
        write().map_err(ImageError::file("write", &path))?;
        images.state.version = file_version(&path);
        Ok(())
    }
}

/// What tells one index file from the next.
fn file_version(path: &Path) -> Option<(u64, i64, i64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

fn names_in(directory: &Path) -> Result<Vec<String>, ImageError> {
    let read = || -> io::Result<Vec<String>> {
        let entries = fs::read_dir(directory)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    read().map_err(ImageError::file("read", directory))
}

fn layer_name(chain: &str) -> Result<String, ImageError> {
    let hex = digest_hex(chain).ok_or_else(|| ImageError::malformed(format!("layer digest {chain:?}")))?;
    Ok(hex[..LAYER_NAME_LENGTH].to_owned())
}

/// Understands a name as Docker does: `bb:1` is `docker.io/library/bb:1`.
pub(crate) fn parse_name(name: &str) -> Result<Reference, ImageError> {
    name.parse().map_err(|error: oci_client::ParseError| ImageError::InvalidName {
        name: name.to_owned(),
        reason: error.to_string(),
    })
}

/// The full name with its tag.
pub(super) fn tagged(reference: &Reference) -> String {
    let tag = reference.tag().unwrap_or("latest");
    format!("{}/{}:{tag}", reference.registry(), reference.repository())
}

/// The full name with its digest, if it has one.
pub(super) fn digested(reference: &Reference) -> Option<String> {
    reference.digest().map(|digest| with_digest(reference, digest))
}

/// The full name with a digest.
pub(super) fn with_digest(reference: &Reference, digest: &str) -> String {
    format!("{}/{}@{digest}", reference.registry(), reference.repository())
}

/// Writes a document of ours as a blob. Answers its descriptor's digest and length.
pub(super) fn put_document<T: Serialize>(
    store: &ImageStore,
    what: &'static str,
    document: &T,
) -> Result<(String, u64), ImageError> {
    let text = serde_json::to_vec(document).map_err(|source| ImageError::Json { what, source })?;
    let digest = digest_of(&text);
    store.put_blob(&mut text.as_slice(), Some(&digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_dockers() {
        for (name, full) in [
            ("bb:1", "docker.io/library/bb:1"),
            ("bb", "docker.io/library/bb:latest"),
            ("user/bb:2", "docker.io/user/bb:2"),
            ("localhost:5000/bb", "localhost:5000/bb:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ] {
            assert_eq!(tagged(&parse_name(name).unwrap()), full);
        }
        assert!(parse_name("UPPER").is_err());
        assert!(parse_name("").is_err());
    }
}
