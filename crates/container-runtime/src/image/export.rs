//! Images to files: an archive of an OCI layout that `docker load` understands too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;
use tar::{Builder, Header};

use super::ImageError;
use super::config::{Descriptor, Index, MANIFEST_TYPES, Manifest};
use super::digest::digest_hex;
use super::store::ImageStore;

impl ImageStore {
    /// Writes images into one archive.
    pub fn export(&self, names: &[String], to: &Path) -> Result<(), ImageError> {
        let file = File::create(to).map_err(ImageError::file("write", to))?;
        let mut archive = Archive { tar: Builder::new(io::BufWriter::new(file)), written: Vec::new() };
        let write = ImageError::file("write", to);
        let (mut manifests, mut docker) = (Vec::new(), Vec::new());
        for name in names {
            let image = self.find(name)?;
            let manifest: Manifest = self.document("the manifest", &image.manifest)?;
            let blobs = manifest.layers.iter().chain([&manifest.config]).map(|blob| blob.digest.clone());
            for digest in blobs.chain([image.manifest.clone()]) {
                let path = self.blob_path(&digest)?;
                archive.blob(&digest, &path).map_err(ImageError::file("copy", path))?;
            }
            let size = self.read_blob(&image.manifest)?.len() as u64;
            for tag in &image.tags {
                let annotations = BTreeMap::from([
                    ("io.containerd.image.name".to_owned(), tag.clone()),
                    ("org.opencontainers.image.ref.name".to_owned(), tag.clone()),
                ]);
                manifests.push(Descriptor {
                    media_type: manifest.media_type.clone().unwrap_or_else(|| MANIFEST_TYPES[0].to_owned()),
                    digest: image.manifest.clone(),
                    size,
                    platform: None,
                    annotations,
                });
            }
            docker.push(json!({
                "Config": blob_name(&manifest.config.digest),
                "RepoTags": image.tags,
                "Layers": manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect::<Vec<_>>(),
            }));
        }
        let index = Index { schema_version: 2, manifests };
        let finish = || -> io::Result<()> {
            archive.document("oci-layout", &serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?)?;
            archive.document("index.json", &serde_json::to_vec(&index)?)?;
            archive.document("manifest.json", &serde_json::to_vec(&docker)?)?;
            let mut file = archive.tar.into_inner()?;
            file.flush()?;
            file.get_ref().sync_all()
        };
        finish().map_err(write)
    }
}

struct Archive<W: Write> {
    tar: Builder<W>,
    written: Vec<String>,
}

impl<W: Write> Archive<W> {
    fn blob(&mut self, digest: &str, path: &Path) -> io::Result<()> {
        if self.written.iter().any(|other| other == digest) {
            return Ok(());
        }
        self.written.push(digest.to_owned());
        let mut file = File::open(path)?;
        let mut header = header(file.metadata()?.len());
        self.tar.append_data(&mut header, blob_name(digest), &mut file)
    }

    fn document(&mut self, name: &str, text: &[u8]) -> io::Result<()> {
        self.tar.append_data(&mut header(text.len() as u64), name, text)
    }
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

fn blob_name(digest: &str) -> String {
    format!("blobs/sha256/{}", digest_hex(digest).unwrap_or_default())
}
