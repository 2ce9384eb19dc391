//! `/stats/summary`: what node, pods and containers use.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cri::v1;
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use crate::container::labels;
use crate::context::Context;
use crate::pod::container_status::seconds;
use crate::pod::handle::PodView;
use crate::pod::observed::from_nanos;

#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) node: NodeStats,
    pub(super) pods: Vec<PodStats>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeStats {
    pub(super) node_name: String,
    start_time: String,
    pub(super) cpu: CpuStats,
    pub(super) memory: MemoryStats,
    fs: FsStats,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStats {
    pub(super) pod_ref: PodRef,
    start_time: String,
    pub(super) containers: Vec<ContainerStats>,
    pub(super) cpu: CpuStats,
    pub(super) memory: MemoryStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network: Option<NetworkStats>,
}

#[derive(Debug, Serialize)]
pub(super) struct PodRef {
    pub(super) name: String,
    pub(super) namespace: String,
    uid: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerStats {
    pub(super) name: String,
    pub(super) start_time: String,
    pub(super) cpu: CpuStats,
    pub(super) memory: MemoryStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<FsStats>,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CpuStats {
    pub(super) time: String,
    usage_nano_cores: u64,
    pub(super) usage_core_nano_seconds: u64,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MemoryStats {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    usage_bytes: u64,
    pub(super) working_set_bytes: u64,
    rss_bytes: u64,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct FsStats {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_bytes: Option<u64>,
    used_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_free: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkStats {
    time: String,
    pub(super) name: String,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

/// The last two counters of each CPU user, from which its present rate follows.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<HashMap<String, Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    used: u64,
    rate: u64,
}

/// Two readings nearer than this give no useful rate.
const LEAST_SPAN: Duration = Duration::from_millis(500);

impl Rates {
    fn rate(&self, key: &str, used: u64, now: Duration) -> u64 {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.get(key).copied();
        let Some(before) = before.filter(|b| used >= b.used) else {
            samples.insert(key.to_owned(), Sample { at: now, used, rate: 0 });
            return 0;
        };
        let span = now.saturating_sub(before.at);
        if span < LEAST_SPAN {
            return before.rate;
        }
        let nanos = u128::from(used - before.used) * 1_000_000_000 / span.as_nanos().max(1);
        let rate = u64::try_from(nanos).unwrap_or(u64::MAX);
        samples.insert(key.to_owned(), Sample { at: now, used, rate });
        rate
    }

    fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
    }
}

fn number(value: Option<v1::UInt64Value>) -> u64 {
    value.map_or(0, |v| v.value)
}

pub(super) async fn summary(context: &Context) -> Summary {
    // A runtime without one of these lists still leaves the rest to show.
    let (containers, sandboxes) =
        tokio::join!(context.runtime.container_stats(), context.runtime.sandbox_stats());
    let mut of_pod: HashMap<String, Vec<v1::ContainerStats>> = HashMap::new();
    for stats in containers.unwrap_or_default() {
        let uid = stats.attributes.as_ref().and_then(|a| a.labels.get(labels::POD_UID)).cloned();
        of_pod.entry(uid.unwrap_or_default()).or_default().push(stats);
    }
    let networks: HashMap<String, v1::NetworkUsage> = sandboxes
        .unwrap_or_default()
        .into_iter()
        .filter_map(|s| Some((s.attributes?.metadata?.uid, s.linux?.network?)))
        .collect();
    let views: Vec<PodView> =
        context.pods.all().iter().map(|h| h.view()).filter(|v| v.observed.any_alive()).collect();
    context.rates.retain(|key| {
        key == "node"
            || of_pod.keys().any(|uid| key.starts_with(uid.as_str()))
            || views.iter().any(|v| key == v.model.uid)
    });
    let pods = views
        .into_iter()
        .map(|view| {
            let containers = of_pod.remove(&view.model.uid).unwrap_or_default();
            let network = networks.get(&view.model.uid).cloned();
            pod(context, &view, containers, network)
        })
        .collect();
    Summary { node: node(context), pods }
}

fn now_text(context: &Context) -> String {
    seconds(context.clock.now()).0.to_string()
}

fn cpu(context: &Context, key: &str, used: u64) -> CpuStats {
    CpuStats {
        time: now_text(context),
        usage_nano_cores: context.rates.rate(key, used, context.clock.monotonic()),
        usage_core_nano_seconds: used,
    }
}

fn pod(
    context: &Context,
    view: &PodView,
    containers: Vec<v1::ContainerStats>,
    network: Option<v1::NetworkUsage>,
) -> PodStats {
    let model = &view.model;
    let time = now_text(context);
    let mut shown: Vec<ContainerStats> = Vec::new();
    for stats in containers {
        let Some(attributes) = stats.attributes else { continue };
        let Some(seen) = view.observed.container(&attributes.id).filter(|c| c.is_alive()) else { continue };
        let used = number(stats.cpu.and_then(|c| c.usage_core_nano_seconds));
        let memory = stats.memory.unwrap_or_default();
        shown.push(ContainerStats {
            name: seen.name.clone(),
            start_time: seconds(seen.started_at.unwrap_or(seen.created_at)).0.to_string(),
            cpu: cpu(context, &format!("{}/{}", model.uid, attributes.id), used),
            memory: MemoryStats {
                time: time.clone(),
                available_bytes: None,
                usage_bytes: number(memory.usage_bytes),
                working_set_bytes: number(memory.working_set_bytes),
                rss_bytes: number(memory.rss_bytes),
            },
            rootfs: stats.writable_layer.map(|layer| FsStats {
                time: from_nanos(layer.timestamp).map_or_else(|| time.clone(), |t| seconds(t).0.to_string()),
                used_bytes: number(layer.used_bytes),
                ..FsStats::default()
            }),
        });
    }
    let (used, memory) = pod_totals(context, view, &shown);
    let network = network.and_then(|n| n.default_interface).map(|interface| NetworkStats {
        time: time.clone(),
        name: interface.name,
        rx_bytes: number(interface.rx_bytes),
        tx_bytes: number(interface.tx_bytes),
    });
    PodStats {
        pod_ref: PodRef {
            name: model.name.clone(),
            namespace: model.namespace.clone(),
            uid: model.uid.clone(),
        },
        start_time: view.status.start_time.as_ref().map(|t| t.0.to_string()).unwrap_or_default(),
        containers: shown,
        cpu: cpu(context, &model.uid, used),
        memory: MemoryStats { time, ..memory },
        network,
    }
}

/// The pod's cgroup where there is one, else the sum of its containers.
fn pod_totals(context: &Context, view: &PodView, containers: &[ContainerStats]) -> (u64, MemoryStats) {
    let model = &view.model;
    let directory =
        |controller: &str| context.cgroups.as_ref()?.pod_directory(controller, model.qos, &model.uid);
    let used = directory("cpuacct").or_else(|| directory("cpu")).and_then(|d| cpu_used(&d));
    let memory = directory("memory").and_then(|d| memory_used(&d));
    let sum = |pick: fn(&ContainerStats) -> u64| containers.iter().map(pick).sum::<u64>();
    let used = used.unwrap_or_else(|| sum(|c| c.cpu.usage_core_nano_seconds));
    let memory = memory.unwrap_or_else(|| MemoryStats {
        usage_bytes: sum(|c| c.memory.usage_bytes),
        working_set_bytes: sum(|c| c.memory.working_set_bytes),
        rss_bytes: sum(|c| c.memory.rss_bytes),
        ..MemoryStats::default()
    });
    (used, memory)
}

/// The working set of a pod's cgroup.
pub(crate) fn pod_memory(context: &Context, view: &PodView) -> i64 {
    let (_, memory) = pod_totals(context, view, &[]);
    i64::try_from(memory.working_set_bytes).unwrap_or(i64::MAX)
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A named number of a `name value` file.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

fn cpu_used(directory: &Path) -> Option<u64> {
    let v2 = field(&directory.join("cpu.stat"), "usage_usec").map(|micros| micros * 1000);
    v2.or_else(|| read_number(&directory.join("cpuacct.usage")))
}

fn memory_used(directory: &Path) -> Option<MemoryStats> {
    let stat = directory.join("memory.stat");
    let v2 = read_number(&directory.join("memory.current"));
    let usage = v2.or_else(|| read_number(&directory.join("memory.usage_in_bytes")))?;
    let (inactive, rss) =
        if v2.is_some() { ("inactive_file", "anon") } else { ("total_inactive_file", "total_rss") };
    Some(MemoryStats {
        usage_bytes: usage,
        working_set_bytes: usage.saturating_sub(field(&stat, inactive).unwrap_or(0)),
        rss_bytes: field(&stat, rss).unwrap_or(0),
        ..MemoryStats::default()
    })
}

fn node(context: &Context) -> NodeStats {
    let time = now_text(context);
    let kibibytes = |name: &str| {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
        line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let (total, available) = (kibibytes("MemTotal:"), kibibytes("MemAvailable:"));
    let fs = statvfs(&context.config.root_dir).ok();
    let bytes = |blocks: u64, size: u64| blocks * size;
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = boot.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<i64>().ok());
    let boot = boot.and_then(|s| jiff::Timestamp::from_second(s).ok());
    NodeStats {
        node_name: context.config.node_name.clone(),
        start_time: boot.map(|t| t.to_string()).unwrap_or_default(),
        cpu: cpu(context, "node", machine_cpu()),
        memory: MemoryStats {
            time: time.clone(),
            available_bytes: Some(available),
            usage_bytes: total.saturating_sub(kibibytes("MemFree:")),
            working_set_bytes: total.saturating_sub(available),
            rss_bytes: kibibytes("AnonPages:"),
        },
        fs: FsStats {
            time,
            available_bytes: fs.map(|f| bytes(f.blocks_available(), f.fragment_size())),
            capacity_bytes: fs.map(|f| bytes(f.blocks(), f.fragment_size())),
            used_bytes: fs.map_or(0, |f| bytes(f.blocks() - f.blocks_free(), f.fragment_size())),
            inodes_free: fs.map(|f| f.files_free()),
            inodes: fs.map(|f| f.files()),
        },
    }
}

/// All CPU time but idle and waiting since boot. `/proc/stat` counts in hundredths of a second.
fn machine_cpu() -> u64 {
    const TICK_NANOS: u64 = 10_000_000;
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
    let busy: u64 = ticks.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, t)| t).sum();
    busy * TICK_NANOS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_two_samples() {
        let rates = Rates::default();
        let at = Duration::from_secs;
        let shown: Vec<u64> = [(0, 0), (1, 500_000_000), (2, 500_000_000), (3, 0), (5, 2_000_000_000)]
            .iter()
            .map(|(second, used)| rates.rate("a", *used, at(*second)))
            .collect();
        assert_eq!(shown, [0, 500_000_000, 0, 0, 1_000_000_000]);
    }
}
