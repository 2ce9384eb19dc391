//! What containers and pods use.

use std::path::Path;
use std::sync::Arc;

use cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, SwapUsage, UInt64Value,
};

use crate::cgroup::Usage;
use crate::container::{Container, Phase};
use crate::runtime::{Runtime, now};
use crate::sandbox::Sandbox;
use crate::usage::disk_usage;

/// The interface whose traffic is the pod's.
const DEFAULT_INTERFACE: &str = "eth0";

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu(timestamp: i64, usage: &Usage) -> CpuUsage {
    CpuUsage { timestamp, usage_core_nano_seconds: value(usage.cpu_nanoseconds), usage_nano_cores: None }
}

fn memory(timestamp: i64, usage: &Usage) -> MemoryUsage {
    let available = usage.memory_limit_bytes.map(|limit| limit.saturating_sub(usage.working_set_bytes));
    MemoryUsage {
        timestamp,
        working_set_bytes: value(usage.working_set_bytes),
        available_bytes: available.and_then(value),
        usage_bytes: value(usage.memory_bytes),
        rss_bytes: value(usage.rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
    }
}

impl Runtime {
    /// What one container uses. Blocking.
    pub(crate) fn container_stats(&self, container: &Container) -> ContainerStats {
        let record = container.record();
        let timestamp = now();
        let usage = self.cgroups.usage(&record.cgroup).unwrap_or_default();
        ContainerStats {
            attributes: Some(ContainerAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            cpu: Some(cpu(timestamp, &usage)),
            memory: Some(memory(timestamp, &usage)),
            writable_layer: Some(usage_of(&self.layout.container(&record.id).join("upper"))),
            swap: Some(SwapUsage {
                timestamp,
                swap_available_bytes: None,
                swap_usage_bytes: value(usage.swap_bytes),
            }),
        }
    }

    /// What one pod uses. Blocking.
    pub(crate) fn sandbox_stats(&self, sandbox: &Sandbox) -> PodSandboxStats {
        let record = sandbox.record();
        let timestamp = now();
        let usage = self.cgroups.usage(&record.cgroup).unwrap_or_default();
        let containers: Vec<Arc<Container>> = self.containers_of(&record.id);
        let running =
            containers.iter().filter(|container| matches!(container.phase(), Phase::Running { .. }));
        let network = (!record.uses_host_network() && record.live.holder != 0)
            .then(|| network_usage(record.live.holder, timestamp));
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: Some(cpu(timestamp, &usage)),
                memory: Some(memory(timestamp, &usage)),
                network: network.flatten(),
                process: Some(ProcessUsage { timestamp, process_count: value(usage.processes) }),
                containers: running.map(|container| self.container_stats(container)).collect(),
            }),
            windows: None,
        }
    }
}

/// The room a directory takes.
pub(crate) fn usage_of(path: &Path) -> FilesystemUsage {
    let (bytes, inodes) = disk_usage(path);
    FilesystemUsage {
        timestamp: now(),
        fs_id: Some(FilesystemIdentifier { mountpoint: path.to_string_lossy().into_owned() }),
        used_bytes: value(bytes),
        inodes_used: value(inodes),
    }
}

fn network_usage(holder: i32, timestamp: i64) -> Option<NetworkUsage> {
    let text = std::fs::read_to_string(format!("/proc/{holder}/net/dev")).ok()?;
    let interfaces = parse_interfaces(&text);
    let default_interface = interfaces.iter().find(|interface| interface.name == DEFAULT_INTERFACE).cloned();
    let others = interfaces.into_iter().filter(|interface| interface.name != DEFAULT_INTERFACE);
    Some(NetworkUsage { timestamp, default_interface, interfaces: others.collect() })
}

/// Reads `/proc/PID/net/dev`, loopback left out.
fn parse_interfaces(text: &str) -> Vec<NetworkInterfaceUsage> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let name = name.trim().to_owned();
        (name != "lo").then_some(())?;
        Some(NetworkInterfaceUsage {
            name,
            rx_bytes: value(*numbers.first()?),
            rx_errors: value(*numbers.get(2)?),
            tx_bytes: value(*numbers.get(8)?),
            tx_errors: value(*numbers.get(10)?),
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_counted_for_each_interface_but_loopback() {
        let text = "Inter-|   Receive  |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0
  eth0: 100 2 3 0 0 0 0 0 200 4 5 0 0 0 0 0
";
        let found = parse_interfaces(text);
        assert_eq!(found.len(), 1);
        assert_eq!((&*found[0].name, found[0].rx_bytes, found[0].tx_errors), ("eth0", value(100), value(5)));
    }
}
