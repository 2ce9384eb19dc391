//! Images from files: OCI layouts, as directories or archives, and the archives of `docker save`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use oci_client::Reference;
use serde::Deserialize;
use tar::{Archive, EntryType};
use tempfile::TempDir;

use super::config::{Descriptor, INDEX_TYPES, Index, MANIFEST_TYPES, Manifest, choose};
use super::digest::digest_hex;
use super::store::{ImageRecord, ImageStore, parse_name, put_document, with_digest};
use super::{ImageError, unpack};

/// How deep indexes may hold indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// How many links of links an archive may have.
const MAX_LINKS: usize = 8;

/// The largest JSON document in an archive.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// The files of a layout or an archive, by name.
enum Source {
    Directory(PathBuf),
    Unpacked { directory: TempDir, files: BTreeMap<String, Stored> },
}

enum Stored {
    File(usize),
    Link(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Takes in every image of a file or directory: an OCI layout, an archive of one, or an archive made by
    /// `docker save`. An image without a name is named after the file.
    pub fn import(&self, path: &Path) -> Result<Vec<ImageRecord>, ImageError> {
        let _activity = self.begin()?;
        let source = Source::open(path, &self.incoming_dir())?;
        let fallback = fallback_name(path);
        if source.has("index.json") {
            return self.import_layout(&source, &fallback);
        }
        if source.has("manifest.json") {
            return self.import_docker(&source);
        }
        Err(ImageError::malformed("neither an OCI layout nor a docker archive"))
    }

    fn import_layout(&self, source: &Source, fallback: &str) -> Result<Vec<ImageRecord>, ImageError> {
        let index: Index = source.json("index.json")?;
        let mut images = Vec::new();
        for descriptor in &index.manifests {
            let name = layout_name(descriptor, fallback)?;
            let manifest = self.import_descriptor(source, descriptor, 0)?;
            let digest = with_digest(&name, &descriptor.digest);
            images.push(self.add(&manifest, Some(&name), Some(digest))?);
        }
        Ok(images)
    }

    /// Takes in the manifest for this machine and its blobs. Answers the manifest's digest.
    fn import_descriptor(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<String, ImageError> {
        let digest = &descriptor.digest;
        self.import_blob(source, digest)?;
        if INDEX_TYPES.contains(&descriptor.media_type.as_str()) {
            if depth >= MAX_INDEX_DEPTH {
                return Err(ImageError::malformed("indexes of indexes"));
            }
            let index: Index = self.document("the index", digest)?;
            return self.import_descriptor(source, choose(&index)?, depth + 1);
        }
        if !MANIFEST_TYPES.contains(&descriptor.media_type.as_str()) {
            return Err(ImageError::malformed(format!("media type {:?}", descriptor.media_type)));
        }
        let manifest: Manifest = self.document("the manifest", digest)?;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            self.import_blob(source, &blob.digest)?;
        }
        Ok(digest.clone())
    }

    fn import_blob(&self, source: &Source, digest: &str) -> Result<(), ImageError> {
        if self.has_blob(digest) {
            return Ok(());
        }
        let hex = digest_hex(digest).ok_or_else(|| ImageError::malformed(format!("digest {digest:?}")))?;
        let mut file = source.file(&format!("blobs/sha256/{hex}"))?;
        self.put_blob(&mut file, Some(digest)).map(drop)
    }

    fn import_docker(&self, source: &Source) -> Result<Vec<ImageRecord>, ImageError> {
        let mut records = Vec::new();
        for image in source.json::<Vec<DockerImage>>("manifest.json")? {
            let (config, size) = self.put_blob(&mut source.file(&image.config)?, None)?;
            let mut layers = Vec::with_capacity(image.layers.len());
            for layer in &image.layers {
                let (digest, size) = self.put_blob(&mut source.file(layer)?, None)?;
                layers.push(descriptor("application/vnd.oci.image.layer.v1.tar", digest, size));
            }
            let manifest = Manifest {
                schema_version: 2,
                media_type: Some(MANIFEST_TYPES[0].to_owned()),
                config: descriptor("application/vnd.oci.image.config.v1+json", config, size),
                layers,
            };
            let (digest, _) = put_document(self, "the manifest", &manifest)?;
            let tags = image.repo_tags.unwrap_or_default();
            if tags.is_empty() {
                records.push(self.add(&digest, None, None)?);
            }
            for tag in tags {
                let name = parse_name(&tag)?;
                records.push(self.add(&digest, Some(&name), Some(with_digest(&name, &digest)))?);
            }
        }
        Ok(records)
    }
}

fn descriptor(media_type: &str, digest: String, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

/// The name of an image in a layout: a whole one where its maker wrote that, else a tag only.
fn layout_name(descriptor: &Descriptor, fallback: &str) -> Result<Reference, ImageError> {
    let annotation = |name: &str| descriptor.annotations.get(name).map(String::as_str);
    if let Some(name) = annotation("io.containerd.image.name") {
        return parse_name(name);
    }
    match annotation("org.opencontainers.image.ref.name") {
        Some(name) if name.contains(['/', ':']) => parse_name(name),
        Some(tag) => parse_name(&format!("{fallback}:{tag}")),
        None => parse_name(fallback),
    }
}

/// `/x/Busy_Box.tar.gz` is named `busy_box`.
fn fallback_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let stem = file.split('.').next().unwrap_or_default();
    let clean: String =
        stem.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_').collect();
    let clean = clean.trim_matches(['-', '_']);
    if clean.is_empty() { "imported".to_owned() } else { clean.to_owned() }
}

impl Source {
    fn open(path: &Path, incoming: &Path) -> Result<Self, ImageError> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let file = File::open(path).map_err(ImageError::file("read", path))?;
        Self::unpack(file, incoming).map_err(ImageError::file("unpack", path))
    }

    /// Puts the files of an archive under numbers: no name of the archive ever reaches the file system.
    fn unpack(file: File, incoming: &Path) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("archive-").tempdir_in(incoming)?;
        let mut archive = Archive::new(unpack::decompress(file)?);
        let mut files = BTreeMap::new();
        for (number, entry) in archive.entries()?.enumerate() {
            let mut entry = entry?;
            let Some(name) = clean(&entry.path()?) else { continue };
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    io::copy(&mut entry, &mut File::create(directory.path().join(number.to_string()))?)?;
                    files.insert(name, Stored::File(number));
                }
                kind @ (EntryType::Symlink | EntryType::Link) => {
                    let target = entry.link_name()?.unwrap_or_default().into_owned();
                    let target = match (kind, Path::new(&name).parent()) {
                        (EntryType::Symlink, Some(parent)) => parent.join(target),
                        _ => target,
                    };
                    if let Some(target) = clean(&target) {
                        files.insert(name, Stored::Link(target));
                    }
                }
                _ => {}
            }
        }
        Ok(Self::Unpacked { directory, files })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(directory) => directory.join(name).is_file(),
            Self::Unpacked { files, .. } => files.contains_key(name),
        }
    }

    fn file(&self, name: &str) -> Result<File, ImageError> {
        let missing = || ImageError::malformed(format!("{name:?} is missing"));
        let path = match self {
            Self::Directory(directory) => directory.join(clean(Path::new(name)).ok_or_else(missing)?),
            Self::Unpacked { directory, files } => {
                let mut name = clean(Path::new(name)).ok_or_else(missing)?;
                let mut links = 0;
                loop {
                    match files.get(&name) {
                        Some(Stored::File(number)) => break directory.path().join(number.to_string()),
                        Some(Stored::Link(target)) if links < MAX_LINKS => {
                            links += 1;
                            name.clone_from(target);
                        }
                        _ => return Err(missing()),
                    }
                }
            }
        };
        File::open(&path).map_err(ImageError::file("read", &path))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &'static str) -> Result<T, ImageError> {
        let mut text = Vec::new();
        let file = self.file(name)?;
        file.take(MAX_DOCUMENT_BYTES).read_to_end(&mut text).map_err(ImageError::file("read", name))?;
        serde_json::from_slice(&text).map_err(|source| ImageError::Json { what: name, source })
    }
}

/// A relative name without `.` and `..`; nothing for one that leads out.
fn clean(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            _ => {}
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_archives_cannot_lead_out() {
        assert_eq!(clean(Path::new("./a/../b")).as_deref(), Some("b"));
        assert_eq!(clean(Path::new("/a/b")).as_deref(), Some("a/b"));
        assert_eq!(clean(Path::new("../a")), None);
    }

    #[test]
    fn nameless_images_are_named_after_the_file() {
        assert_eq!(fallback_name(Path::new("/x/Busy-Box.tar.gz")), "busy-box");
        assert_eq!(fallback_name(Path::new("/x/...")), "imported");
    }
}
