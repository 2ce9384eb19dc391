use super::*;
use crate::image::view::is_whiteout;
use tar::{Builder, Header};

struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Adds an entry under a name no well-meaning archiver would write.
    fn entry(mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        if kind == EntryType::Char {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, name, "", data.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Two layers: `upper` is unpacked over `lower`, beside a file neither may touch.
struct Layers {
    root: tempfile::TempDir,
}

impl Layers {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for name in ["lower", "upper"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        fs::write(root.path().join("outside"), "safe").unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn unpack(&self, name: &str, tar: Tar) -> io::Result<String> {
        let parents = if name == "upper" { vec![self.path("lower")] } else { Vec::new() };
        unpack(io::Cursor::new(tar.bytes()), &self.path(name), &parents)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }
}

#[test]
fn nothing_leaves_the_layer() {
    for tar in [
        Tar::new().file("../outside", "bad"),
        Tar::new().file("a/../../outside", "bad"),
        Tar::new().symlink("up", "..").file("up/outside", "bad"),
        Tar::new().symlink("up", "../../../..").file("up/outside", "bad"),
        Tar::new().symlink("outside", "../outside").file("outside", "bad"),
        Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "bad"),
        Tar::new().link("mine", "../outside").file("mine", "bad"),
        Tar::new().symlink("l", "../outside").link("mine", "l"),
        Tar::new().file(".wh...", ""),
    ] {
        let layers = Layers::new();
        // Refused or kept inside: either will do.
        drop(layers.unpack("upper", tar));
        assert_eq!(layers.read("outside"), "safe");
        assert_eq!(fs::read_dir(layers.root.path()).unwrap().count(), 3);
    }
}

#[test]
fn absolute_names_and_links_are_taken_from_the_root() {
    let layers = Layers::new();
    let absolute = format!("{}/x", layers.path("outside").display());
    layers
        .unpack("upper", Tar::new().symlink("lib", "/usr/lib").file("lib/a", "1").file(&absolute, "2"))
        .unwrap();
    assert_eq!(layers.read("upper/usr/lib/a"), "1");
    assert_eq!(layers.read(&format!("upper/{absolute}")), "2");
}

#[test]
fn links_of_lower_layers_are_followed_and_files_copied_up() {
    let layers = Layers::new();
    layers.unpack("lower", Tar::new().directory("usr").symlink("lib", "usr").file("usr/f", "below")).unwrap();
    layers.unpack("upper", Tar::new().file("lib/a", "1").link("g", "usr/f")).unwrap();
    assert_eq!((layers.read("upper/usr/a"), layers.read("upper/g")), ("1".into(), "below".into()));
    assert!(!layers.path("upper/lib").exists());
}

#[test]
fn whiteouts_are_overlays_own() {
    let layers = Layers::new();
    layers.unpack("lower", Tar::new().directory("d").file("d/f", "x").file("gone", "x")).unwrap();
    layers
        .unpack("upper", Tar::new().file(".wh.gone", "").directory("d").file("d/.wh..wh..opq", ""))
        .unwrap();
    assert!(is_whiteout(&fs::symlink_metadata(layers.path("upper/gone")).unwrap()));
    assert!(sys::has_xattr(&layers.path("upper/d"), OPAQUE_XATTR));
    let (upper, lower) = (layers.path("upper"), layers.path("lower"));
    let view = LayerView::new([upper.as_path(), lower.as_path()]);
    assert!(view.read("gone", 10).is_none() && view.read("d/f", 10).is_none());
}

#[test]
fn archives_cannot_speak_to_overlayfs() {
    let layers = Layers::new();
    let mut tar = Tar::new();
    let attribute = ("SCHILY.xattr.trusted.overlay.redirect", b"/etc".as_slice());
    tar.0.append_pax_extensions([attribute]).unwrap();
    layers.unpack("upper", tar.directory("d").entry(EntryType::Char, "null", "", b"")).unwrap();
    assert!(!sys::has_xattr(&layers.path("upper/d"), "trusted.overlay.redirect"));
    assert!(!layers.path("upper/null").exists());
}

#[test]
fn every_compression_is_read() {
    let tar = Tar::new().file("f", "x").bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &tar).unwrap();
    let plain = super::super::digest::digest_of(&tar);
    for bytes in [tar.clone(), gzip.finish().unwrap(), zstd::encode_all(tar.as_slice(), 1).unwrap()] {
        let layers = Layers::new();
        assert_eq!(unpack(io::Cursor::new(bytes), &layers.path("upper"), &[]).unwrap(), plain);
        assert_eq!(layers.read("upper/f"), "x");
    }
}
