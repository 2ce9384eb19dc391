//! hostPath types: what must be there, and what is made.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use super::{VolumeError, at};

pub(crate) fn prepare(path: &Path, kind: &str) -> Result<(), VolumeError> {
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(at(path))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(at(path))?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::File::create(path).map_err(at(path))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(at(path))?;
        }
        _ => {}
    }
    let found = fs::metadata(path).ok().map(|m| m.file_type());
    let (fits, wanted) = match kind {
        "Directory" | "DirectoryOrCreate" => (found.is_some_and(|t| t.is_dir()), "a directory"),
        "File" | "FileOrCreate" => (found.is_some_and(|t| t.is_file()), "a file"),
        "Socket" => (found.is_some_and(|t| t.is_socket()), "a socket file"),
        "CharDevice" => (found.is_some_and(|t| t.is_char_device()), "a character device"),
        "BlockDevice" => (found.is_some_and(|t| t.is_block_device()), "a block device"),
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(VolumeError::HostPathType { path: path.to_owned(), wanted }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let base = std::env::temp_dir().join(format!("cot-hostpath-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        for (name, kind, works) in [
            ("none", "", true),
            ("none", "Directory", false),
            ("made", "DirectoryOrCreate", true),
            ("made", "File", false),
            ("file", "FileOrCreate", true),
            ("file", "File", true),
            ("file", "Socket", false),
        ] {
            assert_eq!(prepare(&base.join(name), kind).is_ok(), works, "{name} as {kind:?}");
        }
        assert!(prepare(Path::new("/dev/null"), "CharDevice").is_ok());
        fs::remove_dir_all(&base).unwrap();
    }
}
