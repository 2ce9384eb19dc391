//! How much room files take.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The size of a directory's files and how many there are, for the statistics of a file system.
pub(crate) fn disk_usage(path: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    let mut todo = vec![path.to_owned()];
    while let Some(directory) = todo.pop() {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            // What vanishes meanwhile takes no room.
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            inodes += 1;
            if metadata.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}
