//! `NodeStatus`: conditions, addresses, info, images.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};

use super::VERSION;
use super::facts::NodeState;
use super::machine::Machine;
use crate::config::Config;
use crate::pod::container_status::seconds;

const MAX_IMAGES: usize = 50;
const MAX_NAMES_PER_IMAGE: usize = 5;

/// Which resources run low.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pid: bool,
}

pub(crate) struct StatusInputs<'a> {
    pub(crate) config: &'a Config,
    pub(crate) machine: &'a Machine,
    pub(crate) node: &'a NodeState,
    pub(crate) runtime: String,
    /// Why the runtime cannot run pods, if it cannot.
    pub(crate) not_ready: Option<String>,
    pub(crate) pressure: Pressure,
    pub(crate) images: &'a [cri::v1::Image],
    pub(crate) handlers: &'a cri::v1::StatusResponse,
    pub(crate) port: u16,
}

pub(crate) fn node_status(inputs: &StatusInputs<'_>, old: &NodeStatus, now: Timestamp) -> NodeStatus {
    let mut addresses: Vec<NodeAddress> = inputs
        .node
        .ips
        .iter()
        .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.clone() })
        .collect();
    let hostname = inputs.config.node_name.clone();
    addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: hostname });
    let mut capacity = inputs.node.capacity.clone();
    let mut allocatable = inputs.node.allocatable.clone();
    // Extended resources are patched in by others; what they say stands.
    for (name, quantity) in old.capacity.iter().flatten().filter(|(name, _)| name.contains('/')) {
        capacity.entry(name.clone()).or_insert_with(|| quantity.clone());
        allocatable.entry(name.clone()).or_insert_with(|| quantity.clone());
    }
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(inputs, old, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(inputs.port) }),
        }),
        images: Some(images(inputs.images)).filter(|i| !i.is_empty()),
        node_info: Some(info(inputs)),
        runtime_handlers: Some(handlers(inputs.handlers)).filter(|h| !h.is_empty()),
        features: inputs
            .handlers
            .features
            .as_ref()
            .map(|f| NodeFeatures { supplemental_groups_policy: Some(f.supplemental_groups_policy) }),
        ..NodeStatus::default()
    }
}

fn info(inputs: &StatusInputs<'_>) -> NodeSystemInfo {
    let machine = inputs.machine;
    NodeSystemInfo {
        architecture: machine.architecture.to_owned(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: inputs.runtime.clone(),
        kernel_version: machine.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os_image.clone(),
        system_uuid: machine.system_uuid.clone(),
        ..NodeSystemInfo::default()
    }
}

fn handlers(status: &cri::v1::StatusResponse) -> Vec<NodeRuntimeHandler> {
    let handler = |h: &cri::v1::RuntimeHandler| NodeRuntimeHandler {
        name: Some(h.name.clone()),
        features: h.features.as_ref().map(|f| NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
            user_namespaces: Some(f.user_namespaces),
        }),
    };
    status.runtime_handlers.iter().map(handler).collect()
}

/// The largest images, digests before tags.
fn images(images: &[cri::v1::Image]) -> Vec<ContainerImage> {
    let mut images: Vec<&cri::v1::Image> = images.iter().collect();
    images.sort_by(|a, b| (b.size, &a.id).cmp(&(a.size, &b.id)));
    let shown = images.into_iter().take(MAX_IMAGES);
    shown
        .map(|image| ContainerImage {
            names: Some(
                image
                    .repo_digests
                    .iter()
                    .chain(&image.repo_tags)
                    .take(MAX_NAMES_PER_IMAGE)
                    .cloned()
                    .collect(),
            ),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}

fn conditions(inputs: &StatusInputs<'_>, old: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let pressure = inputs.pressure;
    let ready = match &inputs.not_ready {
        None => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(message) => (false, "KubeletNotReady", message.clone()),
    };
    let plain = |bad: bool, yes: &'static str, no: &'static str, yes_text: &str, no_text: &str| {
        if bad { (true, yes, yes_text.to_owned()) } else { (false, no, no_text.to_owned()) }
    };
    let all = [
        (
            "MemoryPressure",
            plain(
                pressure.memory,
                "KubeletHasInsufficientMemory",
                "KubeletHasSufficientMemory",
                "kubelet has insufficient memory available",
                "kubelet has sufficient memory available",
            ),
        ),
        (
            "DiskPressure",
            plain(
                pressure.disk,
                "KubeletHasDiskPressure",
                "KubeletHasNoDiskPressure",
                "kubelet has disk pressure",
                "kubelet has no disk pressure",
            ),
        ),
        (
            "PIDPressure",
            plain(
                pressure.pid,
                "KubeletHasInsufficientPID",
                "KubeletHasSufficientPID",
                "kubelet has insufficient PID available",
                "kubelet has sufficient PID available",
            ),
        ),
        ("Ready", ready),
    ];
    all.into_iter()
        .map(|(kind, (status, reason, message))| condition(kind, status, reason, message, old, now))
        .collect()
}

fn condition(
    kind: &str,
    status: bool,
    reason: &str,
    message: String,
    old: &NodeStatus,
    now: Timestamp,
) -> NodeCondition {
    let status = if status { "True" } else { "False" };
    let before = old.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(seconds(now)),
        last_transition_time: before
            .and_then(|b| b.last_transition_time.clone())
            .or_else(|| Some(seconds(now))),
    }
}

/// Whether more than heartbeat times differs.
pub(crate) fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let strip = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status.conditions.get_or_insert_default().retain(|c| c.type_ != "NetworkUnavailable");
        status.volumes_attached = None;
        status.volumes_in_use = None;
        serde_json::to_value(status).unwrap_or_default()
    };
    strip(old) != strip(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(not_ready: Option<&str>, old: &NodeStatus, now: i64) -> NodeStatus {
        let config = Config::new("n", "/tmp");
        let machine = Machine::default();
        let node = NodeState::new(&config, &machine);
        let inputs = StatusInputs {
            config: &config,
            machine: &machine,
            node: &node,
            runtime: "r://1".into(),
            not_ready: not_ready.map(str::to_owned),
            pressure: Pressure::default(),
            images: &[],
            handlers: &cri::v1::StatusResponse::default(),
            port: 10250,
        };
        node_status(&inputs, old, Timestamp::from_second(now).unwrap())
    }

    #[test]
    fn readiness_moves_its_transition_time_and_nothing_else_does() {
        let first = status(Some("container runtime is down"), &NodeStatus::default(), 10);
        let again = status(Some("container runtime is down"), &first, 20);
        assert!(!differs(&first, &again));
        let ready = status(None, &again, 30);
        assert!(differs(&again, &ready));
        let transition = |s: &NodeStatus, kind: &str| {
            let condition = s.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap().clone();
            condition.last_transition_time.unwrap().0.as_second()
        };
        assert_eq!((transition(&ready, "Ready"), transition(&ready, "DiskPressure")), (30, 10));
    }
}
