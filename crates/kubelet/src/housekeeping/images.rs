//! Images nobody uses go when their disk fills up, those unused the longest first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use reconcile::events::EventType::Warning;
use tracing::{info, warn};

use crate::config::parse_duration;
use crate::context::Context;

/// When each image was first seen, and last seen in use.
#[derive(Debug, Default)]
pub(super) struct Collector {
    seen: BTreeMap<String, Duration>,
}

impl Collector {
    pub(super) async fn collect(&mut self, context: &Context) {
        let kubelet = &context.config.kubelet;
        let Some((used, capacity)) = disk(context).await else { return };
        let high = capacity / 100 * u64::from(kubelet.image_gc_high_threshold_percent);
        if kubelet.image_gc_high_threshold_percent >= 100 || used <= high {
            return self.seen.clear();
        }
        let low = capacity / 100 * u64::from(kubelet.image_gc_low_threshold_percent);
        let Ok(images) = context.runtime.list_images().await else { return };
        let now = context.clock.monotonic();
        let in_use = in_use(context);
        let least_age = parse_duration(&kubelet.image_minimum_gc_age).unwrap_or_default();
        let mut candidates: Vec<(Duration, String, u64)> = Vec::new();
        for image in images.into_iter().filter(|i| !i.pinned) {
            let mut names = image.repo_tags.iter().chain(&image.repo_digests);
            let used = names.any(|name| in_use.contains(name)) || in_use.contains(&image.id);
            let since = self.seen.entry(image.id.clone()).or_insert(now);
            if used {
                *since = now;
            } else if now.saturating_sub(*since) >= least_age {
                candidates.push((*since, image.id, image.size));
            }
        }
        candidates.sort();
        self.remove(context, candidates, used - low).await;
    }

    async fn remove(&mut self, context: &Context, candidates: Vec<(Duration, String, u64)>, wanted: u64) {
        let mut freed = 0;
        for (_, id, size) in candidates {
            if freed >= wanted {
                return;
            }
            match context.runtime.remove_image(&id).await {
                Ok(()) => {
                    info!(image = id, size, "unused image removed");
                    freed += size;
                    self.seen.remove(&id);
                }
                Err(error) => warn!(image = id, error = %reconcile::chain(&error), "image not removed"),
            }
        }
        if freed < wanted {
            let note = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
            );
            context.recorder.node(Warning, "FreeDiskSpaceFailed", note);
        }
    }
}

fn in_use(context: &Context) -> BTreeSet<String> {
    let views = context.pods.all().into_iter().map(|h| h.view());
    views.flat_map(|v| v.observed.containers.clone()).flat_map(|c| [c.image, c.image_id]).collect()
}

/// Used and whole bytes of the disk the images are on.
async fn disk(context: &Context) -> Option<(u64, u64)> {
    let answer = context.runtime.image_filesystems().await.ok()?;
    let mount = answer.image_filesystems.into_iter().next()?.fs_id?.mountpoint;
    let fs = statvfs(mount.as_str()).ok()?;
    let capacity = fs.blocks() * fs.fragment_size();
    Some((capacity.saturating_sub(fs.blocks_available() * fs.fragment_size()), capacity))
}
