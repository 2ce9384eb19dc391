//! Eviction: when a resource of the node runs out, pods that use more than they asked for go first.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use reconcile::events::EventType::Warning;
use tracing::warn;

use crate::config::{KubeletConfiguration, parse_duration};
use crate::context::Context;
use crate::node::facts::threshold_bytes;
use crate::node::status::Pressure;
use crate::pod::handle::PodView;
use crate::pod::memory::Failure;
use crate::pod::resources::pod_requests;
use crate::quantity;
use crate::server::pod_memory;
use crate::volumes::VolumePath;

const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What is left of a resource, and how much there is of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    available: i64,
    capacity: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Threshold {
    signal: String,
    value: String,
    /// A soft threshold must hold this long.
    grace: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Evictor {
    thresholds: Vec<Threshold>,
    transition: Duration,
    max_grace: Duration,
    /// Since when each threshold is crossed, and when it last was.
    crossed: BTreeMap<String, Duration>,
    last_seen: BTreeMap<&'static str, Duration>,
}

impl Evictor {
    pub(super) fn new(config: &KubeletConfiguration) -> Self {
        let threshold = |(signal, value): (&String, &String), grace| Threshold {
            signal: signal.clone(),
            value: value.clone(),
            grace,
        };
        let hard = config.eviction_hard.iter().map(|entry| threshold(entry, None));
        let soft = config.eviction_soft.iter().map(|entry| {
            let grace = config.eviction_soft_grace_period.get(entry.0).and_then(|g| parse_duration(g));
            threshold(entry, Some(grace.unwrap_or_default()))
        });
        Self {
            thresholds: hard.chain(soft).collect(),
            transition: config.eviction_pressure_transition_period,
            max_grace: Duration::from_secs(u64::try_from(config.eviction_max_pod_grace_period).unwrap_or(0)),
            crossed: BTreeMap::new(),
            last_seen: BTreeMap::new(),
        }
    }

    /// Evicts at most one pod for pressure, and those that broke limits of their own.
    pub(super) fn look(&mut self, context: &Context) -> Pressure {
        let now = context.clock.monotonic();
        let left = observe(context);
        let views: Vec<PodView> = context.pods.all().iter().map(|h| h.view()).filter(|v| !v.ending).collect();
        for (view, message) in views.iter().filter_map(|v| Some((v, over_own_limit(v)?))) {
            evict(context, view, message, Duration::ZERO);
        }
        let mut acted = false;
        for threshold in self.thresholds.clone() {
            let Some(left) = left.get(threshold.signal.as_str()).copied() else { continue };
            let key = format!("{}<{}", threshold.signal, threshold.value);
            if left.available >= threshold_bytes(&threshold.value, left.capacity) {
                self.crossed.remove(&key);
                continue;
            }
            let since = *self.crossed.entry(key).or_insert(now);
            if threshold.grace.is_some_and(|grace| now.saturating_sub(since) < grace) {
                continue;
            }
            let resource = resource(&threshold.signal);
            self.last_seen.insert(resource, now);
            if !acted {
                let grace = threshold.grace.map_or(Duration::ZERO, |_| self.max_grace);
                acted = evict_one(context, &views, resource, &threshold, left, grace);
            }
        }
        self.pressure(now)
    }

    /// A condition stays for a while after its cause, so that it does not flap.
    fn pressure(&self, now: Duration) -> Pressure {
        let lately = |names: &[&str]| {
            names
                .iter()
                .any(|n| self.last_seen.get(n).is_some_and(|at| now.saturating_sub(*at) < self.transition))
        };
        Pressure {
            memory: lately(&["memory"]),
            disk: lately(&["ephemeral-storage", "inodes"]),
            pid: lately(&["pids"]),
        }
    }
}

fn resource(signal: &str) -> &'static str {
    match signal {
        "memory.available" => "memory",
        "pid.available" => "pids",
        other if other.ends_with("inodesFree") => "inodes",
        _ => "ephemeral-storage",
    }
}

fn observe(context: &Context) -> BTreeMap<&'static str, Left> {
    let mut left = BTreeMap::new();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|l| l.split_whitespace().next()?.parse::<i64>().ok())
    };
    if let (Some(available), Some(total)) = (kibibytes("MemAvailable:"), kibibytes("MemTotal:")) {
        left.insert("memory.available", Left { available: available * 1024, capacity: total * 1024 });
    }
    if let Ok(fs) = statvfs(&context.config.root_dir) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let bytes = |blocks: u64| number(blocks.saturating_mul(fs.fragment_size()));
        left.insert(
            "nodefs.available",
            Left { available: bytes(fs.blocks_available()), capacity: bytes(fs.blocks()) },
        );
        if fs.files() > 0 {
            left.insert(
                "nodefs.inodesFree",
                Left { available: number(fs.files_free()), capacity: number(fs.files()) },
            );
        }
    }
    left
}

fn evict_one(
    context: &Context,
    views: &[PodView],
    resource: &str,
    threshold: &Threshold,
    left: Left,
    grace: Duration,
) -> bool {
    let mut ranked: Vec<(bool, i32, i64, &PodView)> = views
        .iter()
        .filter(|v| !v.model.is_static() && v.model.spec.priority.unwrap_or(0) < CRITICAL_PRIORITY)
        .map(|view| {
            let used =
                if resource == "memory" { pod_memory(context, view) } else { disk_used(context, view) };
            let asked = pod_requests(&view.model.spec).get(resource).copied().unwrap_or(0);
            (used <= asked, view.model.spec.priority.unwrap_or(0), asked - used, view)
        })
        .collect();
    ranked.sort_by_key(|(within, priority, spare, _)| (*within, *priority, *spare));
    let note = format!("Attempting to reclaim {resource}");
    context.recorder.node(Warning, "EvictionThresholdMet", note);
    let Some((.., view)) = ranked.first() else { return false };
    let least = threshold_bytes(&threshold.value, left.capacity);
    let message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        shown(resource, least),
        shown(resource, left.available)
    );
    evict(context, view, message, grace);
    true
}

fn shown(resource: &str, amount: i64) -> String {
    if matches!(resource, "inodes" | "pids") { amount.to_string() } else { format!("{}Ki", amount / 1024) }
}

fn evict(context: &Context, view: &PodView, message: String, grace: Duration) {
    let (namespace, name) = (&view.model.namespace, &view.model.name);
    warn!(namespace, name, message, "pod evicted");
    context.recorder.pod(&view.model, Warning, "Evicted", message.clone());
    if let Some(handle) = context.pods.get(&view.model.uid) {
        let disruption = Some(message.clone());
        let failure = Failure { reason: "Evicted".to_owned(), message, disruption };
        handle.tell(|inbox| inbox.eviction = Some((failure, grace)));
    }
}

/// A disk emptyDir past its size limit.
fn over_own_limit(view: &PodView) -> Option<String> {
    for volume in view.model.spec.volumes.iter().flatten() {
        let Some(source) = volume.empty_dir.as_ref().filter(|s| s.medium.as_deref() != Some("Memory")) else {
            continue;
        };
        let Some(limit) = &source.size_limit else { continue };
        let Some(VolumePath::Directory { path, .. }) = view.volumes.paths.get(&volume.name) else { continue };
        if quantity::value(limit) > 0 && size(path) > quantity::value(limit) {
            return Some(format!(
                "Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ",
                volume.name, limit.0
            ));
        }
    }
    None
}

fn disk_used(context: &Context, view: &PodView) -> i64 {
    let volumes = context.volumes.pod_directory(&view.model.uid).join("volumes/kubernetes.io~empty-dir");
    let logs = view.observed.containers.iter().map(|c| size(Path::new(&c.log_path)));
    size(&volumes) + logs.sum::<i64>()
}

/// Bytes on disk below a path; links are not followed.
fn size(path: &Path) -> i64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = i64::try_from(metadata.blocks() * 512).unwrap_or(i64::MAX);
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| size(&entry.path())).sum::<i64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_bytes_or_shares() {
        for (value, capacity, expected) in
            [("10%", 1_000_000, 100_000), ("100Mi", 0, 104_857_600), ("x", 100, 0)]
        {
            assert_eq!(threshold_bytes(value, capacity), expected, "{value}");
        }
    }

    #[test]
    fn pressure_outlives_its_cause_for_a_while() {
        let mut evictor = Evictor::new(&KubeletConfiguration::default());
        evictor.last_seen.insert("memory", Duration::from_secs(10));
        assert!(evictor.pressure(Duration::from_secs(20)).memory);
        assert!(!evictor.pressure(Duration::from_secs(400)).memory);
    }
}
