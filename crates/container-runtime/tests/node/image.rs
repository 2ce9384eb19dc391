//! A busybox image as an OCI layout, made here.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The name the image is imported under.
pub(crate) const BUSYBOX: &str = "cot-busybox:1";

fn blob(layout: &Path, bytes: &[u8]) -> (String, usize) {
    let hex = hex::encode(Sha256::digest(bytes));
    fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
    (format!("sha256:{hex}"), bytes.len())
}

fn put(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, mode: u32, data: &[u8]) {
    let mut header = header(kind, mode);
    header.set_size(data.len() as u64);
    tar.append_data(&mut header, name, data).unwrap();
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

fn root_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (directory, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("tmp", 0o1777),
        ("root", 0o700),
        ("proc", 0o755),
        ("sys", 0o755),
        ("dev", 0o755),
    ] {
        put(&mut tar, tar::EntryType::Directory, directory, mode, b"");
    }
    put(&mut tar, tar::EntryType::Regular, "bin/busybox", 0o755, &fs::read("/bin/busybox").unwrap());
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(list).unwrap().lines().filter(|name| *name != "busybox") {
        let mut header = header(tar::EntryType::Link, 0o755);
        tar.append_link(&mut header, format!("bin/{applet}"), "bin/busybox").unwrap();
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/tmp:/bin/sh\n";
    put(&mut tar, tar::EntryType::Regular, "etc/passwd", 0o644, passwd);
    put(&mut tar, tar::EntryType::Regular, "etc/group", 0o644, b"root:x:0:\nweb:x:1000:\nlogs:x:2000:web\n");
    put(&mut tar, tar::EntryType::Regular, "etc/gone", 0o644, b"below");
    tar.into_inner().unwrap()
}

fn upper_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    put(&mut tar, tar::EntryType::Regular, "etc/.wh.gone", 0o644, b"");
    put(&mut tar, tar::EntryType::Regular, "etc/added", 0o644, b"above");
    tar.into_inner().unwrap()
}

/// Writes the layout.
pub(crate) fn write_layout(layout: &Path) {
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let mut layers: Vec<Value> = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in [root_layer(), upper_layer()] {
        let (digest, size) = blob(layout, &layer);
        layers.push(
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}),
        );
        diff_ids.push(digest);
    }
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let (config, config_size) = blob(layout, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": layers,
    });
    let (manifest, size) = blob(layout, manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest,
        "size": size,
        "annotations": {"org.opencontainers.image.ref.name": BUSYBOX},
    }]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
