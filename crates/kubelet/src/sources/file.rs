//! Static pods from a file or directory, by inotify, with a slow look now and then for file systems without it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;
use tracing::warn;

use super::manifest;
use super::{Source, SourceUpdate};

pub(crate) async fn run(
    path: PathBuf,
    node_name: String,
    every: Duration,
    updates: mpsc::Sender<SourceUpdate>,
) {
    let inotify = watch(&path);
    if let Err(error) = &inotify {
        warn!(path = %path.display(), %error, "manifests are looked at by time only");
    }
    let inotify = inotify.ok();
    loop {
        let pods = read(&path, &node_name);
        if updates.send(SourceUpdate::Set { source: Source::File, pods }).await.is_err() {
            return;
        }
        let sleep = tokio::time::sleep(every.max(Duration::from_secs(1)));
        match &inotify {
            Some(fd) => tokio::select! {
                () = sleep => {}
                () = changed(fd) => {}
            },
            None => sleep.await,
        }
    }
}

/// The events are only waited for, never parsed, so any readable descriptor will do.
fn watch(path: &Path) -> std::io::Result<Receiver> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE;
    inotify.add_watch(path, flags)?;
    Receiver::from_owned_fd_unchecked(inotify.into())
}

async fn changed(events: &Receiver) {
    if events.readable().await.is_err() {
        return std::future::pending().await;
    }
    let mut buffer = [0; 4096];
    while events.try_read(&mut buffer).is_ok_and(|read| read > 0) {}
}

fn read(path: &Path, node_name: &str) -> Vec<k8s_openapi::api::core::v1::Pod> {
    let mut files = if path.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(|p| p.is_file() && !is_hidden(p)).collect()
    } else {
        vec![path.to_owned()]
    };
    files.sort();
    let mut pods = Vec::new();
    for file in files {
        let parsed = match std::fs::read_to_string(&file) {
            Ok(text) => manifest::parse(&text, Source::File, &file.to_string_lossy(), node_name),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                warn!(path = %file.display(), %error, "manifest not read");
                continue;
            }
        };
        match parsed {
            Ok(found) => pods.extend(found),
            Err(error) => {
                warn!(path = %file.display(), error = %reconcile::chain(&error), "manifest refused")
            }
        }
    }
    pods
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}
