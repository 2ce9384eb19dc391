//! What the rest of the kubelet needs to know of its node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::machine::Machine;
use crate::config::Config;
use crate::pod::resources::amount;
use crate::quantity;

#[derive(Debug, Clone, Default)]
pub(crate) struct NodeState {
    pub(crate) ips: Vec<String>,
    pub(crate) capacity: BTreeMap<String, Quantity>,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) memory_bytes: i64,
    /// The API's uid of this node, once it is registered.
    pub(crate) uid: String,
    pub(crate) pod_cidr: String,
}

impl NodeState {
    pub(crate) fn new(config: &Config, machine: &Machine) -> Self {
        let capacity = capacity(config, machine);
        Self {
            ips: machine.ips.iter().map(ToString::to_string).collect(),
            allocatable: allocatable(config, &capacity),
            capacity,
            labels: labels(config, machine),
            taints: config.kubelet.register_with_taints.clone(),
            memory_bytes: machine.memory_bytes,
            uid: String::new(),
            pod_cidr: config.kubelet.pod_cidr.clone(),
        }
    }
}

fn labels(config: &Config, machine: &Machine) -> BTreeMap<String, String> {
    let mut labels = config.node_labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine.architecture),
    ] {
        labels.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    labels
}

fn capacity(config: &Config, machine: &Machine) -> BTreeMap<String, Quantity> {
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), Quantity(machine.cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", machine.memory_bytes / 1024))),
        ("pods".to_owned(), Quantity(config.kubelet.max_pods.to_string())),
        ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", machine.disk_bytes / 1024))),
    ]);
    for (size, bytes) in &machine.huge_pages {
        capacity.insert(format!("hugepages-{size}"), quantity::from_bytes(*bytes));
    }
    capacity
}

/// Capacity less what is reserved and what eviction keeps free.
fn allocatable(config: &Config, capacity: &BTreeMap<String, Quantity>) -> BTreeMap<String, Quantity> {
    let kubelet = &config.kubelet;
    let reserved = |name: &str| -> i64 {
        let sides = [&kubelet.system_reserved, &kubelet.kube_reserved];
        sides.iter().filter_map(|side| side.get(name)).map(|v| amount(name, &Quantity(v.clone()))).sum()
    };
    let kept_free = |name: &str, total: i64| -> i64 {
        let signal = match name {
            "memory" => "memory.available",
            "ephemeral-storage" => "nodefs.available",
            _ => return 0,
        };
        kubelet.eviction_hard.get(signal).map_or(0, |threshold| threshold_bytes(threshold, total))
    };
    let mut result = BTreeMap::new();
    for (name, quantity) in capacity {
        let total = amount(name, quantity);
        let left = (total - reserved(name) - kept_free(name, total)).max(0);
        let quantity = match name.as_str() {
            "cpu" => quantity::from_milli(left),
            "memory" => Quantity(format!("{}Ki", left / 1024)),
            _ if left == total => quantity.clone(),
            _ => Quantity(left.to_string()),
        };
        result.insert(name.clone(), quantity);
    }
    result
}

/// `100Mi`, or `10%` of the whole.
pub(crate) fn threshold_bytes(threshold: &str, total: i64) -> i64 {
    match threshold.strip_suffix('%') {
        Some(percent) => {
            let tenths = percent.parse::<f64>().map_or(0.0, |p| (p * 1000.0).round());
            // Percentages are small and exact to a thousandth, far inside what an i64 holds.
            #[expect(clippy::cast_possible_truncation, reason = "a percentage times a thousand fits")]
            let thousandths = tenths as i64;
            total / 100_000 * thousandths
        }
        None => quantity::value(&Quantity(threshold.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_and_eviction_lower_what_can_be_allocated() {
        let mut config = Config::new("n", "/tmp/x");
        config.kubelet.system_reserved = [("cpu".to_owned(), "200m".to_owned())].into();
        config.kubelet.kube_reserved = [("memory".to_owned(), "1Gi".to_owned())].into();
        let machine =
            Machine { cpus: 2, memory_bytes: 4 << 30, disk_bytes: 1_000_000 << 10, ..Machine::default() };
        let node = NodeState::new(&config, &machine);
        let show = |name: &str| node.allocatable[name].0.clone();
        assert_eq!(show("cpu"), "1800m");
        assert_eq!(show("memory"), format!("{}Ki", (4 << 20) - (1 << 20) - 100 * 1024));
        assert_eq!(show("ephemeral-storage"), "921600000");
        assert_eq!(show("pods"), "110");
        assert_eq!(node.labels["kubernetes.io/hostname"], "n");
    }
}
