//! Log files that have grown too long are put aside, and the oldest of those removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tracing::warn;

use crate::context::Context;
use crate::pod::observed::ContainerPhase;
use crate::quantity;

pub(super) async fn rotate(context: &Context) {
    let limit = quantity::value(&Quantity(context.config.kubelet.container_log_max_size.clone()));
    let Ok(limit) = u64::try_from(limit) else { return };
    let keep = context.config.kubelet.container_log_max_files.max(2) - 1;
    for view in context.pods.all().iter().map(|h| h.view()) {
        for seen in view.observed.containers.iter().filter(|c| c.phase == ContainerPhase::Running) {
            let path = PathBuf::from(&seen.log_path);
            if fs::metadata(&path).map_or(0, |m| m.len()) <= limit {
                continue;
            }
            let stamp = context.clock.now().strftime("%Y%m%d-%H%M%S").to_string();
            if let Err(error) = put_aside(&path, &stamp, keep) {
                warn!(path = %path.display(), %error, "log not rotated");
                continue;
            }
            if let Err(error) = context.runtime.reopen_log(&seen.id).await {
                warn!(path = %path.display(), error = %reconcile::chain(&error), "log not reopened");
            }
        }
    }
}

/// `0.log` becomes `0.log.STAMP`; of all those at most `keep` stay.
fn put_aside(path: &Path, stamp: &str, keep: usize) -> io::Result<()> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let parent = path.parent().unwrap_or(path);
    let prefix = format!("{name}.");
    fs::rename(path, parent.join(format!("{prefix}{stamp}")))?;
    let mut old = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            old.push(entry.path());
        }
    }
    old.sort();
    let surplus = old.len().saturating_sub(keep);
    old.into_iter().take(surplus).try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_are_kept_up_to_their_number() {
        let directory = std::env::temp_dir().join(format!("cot-rotate-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let log = directory.join("0.log");
        for stamp in ["20260101-000001", "20260101-000002", "20260101-000003"] {
            fs::write(&log, "x").unwrap();
            put_aside(&log, stamp, 2).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(names, ["0.log.20260101-000002", "0.log.20260101-000003"]);
    }
}
