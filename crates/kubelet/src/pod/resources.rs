//! What a pod asks for: QoS class, effective requests and limits, and their cgroup numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

type Resources = BTreeMap<String, Quantity>;

/// CPU in thousandths and memory in bytes, from one side (requests or limits) of a resource list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amounts {
    pub(crate) cpu_milli: Option<i64>,
    pub(crate) memory_bytes: Option<i64>,
}

/// The numbers of a cgroup. Absent ones are not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CgroupLimits {
    pub(crate) cpu_shares: u64,
    pub(crate) cpu_quota: Option<i64>,
    pub(crate) memory_bytes: Option<i64>,
}

pub(crate) const CPU_PERIOD_MICROSECONDS: i64 = 100_000;
const MIN_QUOTA_MICROSECONDS: i64 = 1_000;
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

impl QosClass {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The class by requests and limits of cpu and memory alone; pod-level resources decide when given.
pub(crate) fn qos_class(spec: &PodSpec) -> QosClass {
    let declared: Vec<ResourceRequirements> = match spec.resources.clone().filter(|r| !is_empty(r)) {
        Some(pod) => vec![pod],
        None => {
            let init = spec.init_containers.iter().flatten();
            init.chain(&spec.containers).map(|c| c.resources.clone().unwrap_or_default()).collect()
        }
    };
    let mut any = false;
    let mut guaranteed = true;
    for resources in declared {
        let requests = Amounts::of(resources.requests.as_ref());
        let limits = Amounts::of(resources.limits.as_ref());
        for (request, limit) in
            [(requests.cpu_milli, limits.cpu_milli), (requests.memory_bytes, limits.memory_bytes)]
        {
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

fn is_empty(resources: &ResourceRequirements) -> bool {
    resources.requests.as_ref().is_none_or(BTreeMap::is_empty)
        && resources.limits.as_ref().is_none_or(BTreeMap::is_empty)
}

impl Amounts {
    /// Zero counts as not asked for.
    pub(crate) fn of(resources: Option<&Resources>) -> Self {
        let get = |name: &str| resources.and_then(|r| r.get(name));
        Self {
            cpu_milli: get("cpu").map(quantity::milli_value).filter(|v| *v > 0),
            memory_bytes: get("memory").map(quantity::value).filter(|v| *v > 0),
        }
    }
}

/// What the scheduler counts for this pod, per resource: CPU in thousandths, the rest in whole units.
pub(crate) fn pod_requests(spec: &PodSpec) -> BTreeMap<String, i64> {
    let mut running = BTreeMap::new();
    for container in &spec.containers {
        add(&mut running, &container_requests(container));
    }
    let mut sidecars = BTreeMap::new();
    let mut peak: BTreeMap<String, i64> = BTreeMap::new();
    for container in spec.init_containers.iter().flatten() {
        let mut now = container_requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &now);
            now.clone_from(&sidecars);
        } else {
            add(&mut now, &sidecars);
        }
        raise(&mut peak, &now);
    }
    add(&mut running, &sidecars);
    raise(&mut running, &peak);
    if let Some(requests) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        for (name, quantity) in requests {
            running.insert(name.clone(), amount(name, quantity));
        }
    }
    for (name, quantity) in spec.overhead.iter().flatten() {
        *running.entry(name.clone()).or_default() += amount(name, quantity);
    }
    running
}

/// Requests, with a limit standing in for a missing request.
fn container_requests(container: &Container) -> BTreeMap<String, i64> {
    let Some(resources) = &container.resources else { return BTreeMap::new() };
    let mut result = BTreeMap::new();
    for (name, quantity) in resources.limits.iter().flatten().chain(resources.requests.iter().flatten()) {
        result.insert(name.clone(), amount(name, quantity));
    }
    result
}

pub(crate) fn amount(name: &str, quantity: &Quantity) -> i64 {
    if name == "cpu" { quantity::milli_value(quantity) } else { quantity::value(quantity) }
}

fn add(total: &mut BTreeMap<String, i64>, more: &BTreeMap<String, i64>) {
    for (name, value) in more {
        *total.entry(name.clone()).or_default() += value;
    }
}

fn raise(total: &mut BTreeMap<String, i64>, floor: &BTreeMap<String, i64>) {
    for (name, value) in floor {
        let entry = total.entry(name.clone()).or_default();
        *entry = (*entry).max(*value);
    }
}

/// The pod's own cgroup: a limit only where every container has one (or the pod states it).
pub(crate) fn pod_cgroup(spec: &PodSpec) -> CgroupLimits {
    let requests = pod_requests(spec);
    let level = Amounts::of(spec.resources.as_ref().and_then(|r| r.limits.as_ref()));
    let overhead = Amounts::of(spec.overhead.as_ref());
    let total = |pick: fn(&Amounts) -> Option<i64>| -> Option<i64> {
        if let Some(limit) = pick(&level) {
            return Some(limit + pick(&overhead).unwrap_or(0));
        }
        let mut sum = pick(&overhead).unwrap_or(0);
        for container in &spec.containers {
            sum += pick(&limits_of(container))?;
        }
        let mut sidecars = 0;
        let mut peak = 0;
        for container in spec.init_containers.iter().flatten() {
            let limit = pick(&limits_of(container))?;
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars += limit;
                peak = peak.max(sidecars);
            } else {
                peak = peak.max(sidecars + limit);
            }
        }
        Some((sum + sidecars).max(peak))
    };
    CgroupLimits {
        cpu_shares: cpu_shares(requests.get("cpu").copied().unwrap_or(0)),
        cpu_quota: total(|a| a.cpu_milli).map(cpu_quota),
        memory_bytes: total(|a| a.memory_bytes),
    }
}

fn limits_of(container: &Container) -> Amounts {
    Amounts::of(container.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

/// One container's cgroup numbers.
pub(crate) fn container_cgroup(container: &Container) -> CgroupLimits {
    let limits = limits_of(container);
    let requests = container_requests(container);
    CgroupLimits {
        cpu_shares: cpu_shares(requests.get("cpu").copied().unwrap_or(0)),
        cpu_quota: limits.cpu_milli.map(cpu_quota),
        memory_bytes: limits.memory_bytes,
    }
}

pub(crate) fn cpu_shares(milli: i64) -> u64 {
    let milli = u64::try_from(milli).unwrap_or(0);
    (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

pub(crate) fn cpu_quota(milli: i64) -> i64 {
    (milli * CPU_PERIOD_MICROSECONDS / 1000).max(MIN_QUOTA_MICROSECONDS)
}

/// The OOM score adjustment by QoS class: the smaller a burstable request, the sooner it is killed.
pub(crate) fn oom_score_adj(qos: QosClass, priority: i32, memory_request: i64, node_memory: i64) -> i64 {
    const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;
    if priority >= SYSTEM_CRITICAL_PRIORITY {
        return -997;
    }
    match qos {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let share = memory_request.saturating_mul(1000) / node_memory.max(1);
            let score = 1000 - share;
            if score < 3 { 3 } else { score.min(999) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn qos_follows_requests_and_limits() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        for (resources, class) in [
            (json!([{}]), QosClass::BestEffort),
            (json!([full]), QosClass::Guaranteed),
            (json!([full, {}]), QosClass::Burstable),
            (json!([{"requests": {"cpu": "1"}}]), QosClass::Burstable),
            (json!([{"requests": {"cpu": "0"}}]), QosClass::BestEffort),
            (
                json!([{"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}]),
                QosClass::Burstable,
            ),
        ] {
            let containers: Vec<Value> = resources
                .as_array()
                .unwrap()
                .iter()
                .enumerate()
                .map(|(i, r)| json!({"name": format!("c{i}"), "resources": r}))
                .collect();
            assert_eq!(qos_class(&spec(json!({ "containers": containers }))), class, "{resources}");
        }
    }

    #[test]
    fn init_containers_raise_and_sidecars_add() {
        let requests = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let spec = spec(json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": requests("100m")},
                {"name": "init", "resources": requests("1")},
            ],
            "containers": [{"name": "a", "resources": requests("200m")}],
            "overhead": {"cpu": "10m"},
        }));
        assert_eq!(pod_requests(&spec)["cpu"], 1110);
    }

    #[test]
    fn cgroup_numbers_follow_upstream() {
        for (milli, shares, quota) in [(0, 2, 1000), (1, 2, 1000), (100, 102, 10_000), (1000, 1024, 100_000)]
        {
            assert_eq!((cpu_shares(milli), cpu_quota(milli)), (shares, quota), "{milli}");
        }
        for (qos, request, score) in [
            (QosClass::Guaranteed, 0, -997),
            (QosClass::BestEffort, 0, 1000),
            (QosClass::Burstable, 0, 999),
            (QosClass::Burstable, 500, 500),
            (QosClass::Burstable, 1000, 3),
        ] {
            assert_eq!(oom_score_adj(qos, 0, request, 1000), score);
        }
    }
}
