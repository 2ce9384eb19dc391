//! The pod sandbox as the runtime is asked for it.

use std::path::Path;

use cri::v1::{
    DnsConfig, LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
    PortMapping,
};

use super::dns::Resolver;
use super::labels;
use super::security::{self, SeccompRules};
use crate::pod::model::PodModel;
use crate::pod::resources::{CPU_PERIOD_MICROSECONDS, CgroupLimits, amount, pod_cgroup};

pub(crate) struct SandboxInputs<'a> {
    pub(crate) attempt: u32,
    pub(crate) hostname: &'a str,
    pub(crate) resolver: Resolver,
    pub(crate) logs: &'a Path,
    pub(crate) cgroup_parent: &'a str,
    pub(crate) seccomp: &'a SeccompRules,
}

pub(crate) fn log_directory(logs: &Path, namespace: &str, name: &str, uid: &str) -> std::path::PathBuf {
    logs.join(format!("{namespace}_{name}_{uid}"))
}

pub(crate) fn config(model: &PodModel, inputs: SandboxInputs<'_>) -> PodSandboxConfig {
    let mut pod_labels = labels::pod_labels(&model.name, &model.namespace, &model.uid);
    pod_labels.extend(model.pod.metadata.labels.clone().unwrap_or_default());
    let sysctls = model.spec.security_context.as_ref().and_then(|s| s.sysctls.clone()).unwrap_or_default();
    let overhead = model.spec.overhead.as_ref().map(|overhead| {
        let get = |name: &str| overhead.get(name).map(|q| amount(name, q));
        linux_resources(&CgroupLimits {
            cpu_shares: get("cpu").map_or(0, crate::pod::resources::cpu_shares),
            cpu_quota: get("cpu").map(crate::pod::resources::cpu_quota),
            memory_bytes: get("memory"),
        })
    });
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: model.name.clone(),
            uid: model.uid.clone(),
            namespace: model.namespace.clone(),
            attempt: inputs.attempt,
        }),
        hostname: if model.host_network() { String::new() } else { inputs.hostname.to_owned() },
        log_directory: log_directory(inputs.logs, &model.namespace, &model.name, &model.uid)
            .display()
            .to_string(),
        dns_config: Some(DnsConfig {
            servers: inputs.resolver.servers,
            searches: inputs.resolver.searches,
            options: inputs.resolver.options,
        }),
        port_mappings: port_mappings(model),
        labels: pod_labels.into_iter().collect(),
        annotations: model.pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: inputs.cgroup_parent.to_owned(),
            security_context: Some(security::sandbox(model, inputs.seccomp)),
            sysctls: sysctls.into_iter().map(|s| (s.name, s.value)).collect(),
            overhead,
            resources: Some(linux_resources(&pod_cgroup(&model.spec))),
        }),
        windows: None,
    }
}

pub(crate) fn linux_resources(limits: &CgroupLimits) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: if limits.cpu_quota.is_some() { CPU_PERIOD_MICROSECONDS } else { 0 },
        cpu_quota: limits.cpu_quota.unwrap_or(0),
        cpu_shares: i64::try_from(limits.cpu_shares).unwrap_or(i64::MAX),
        memory_limit_in_bytes: limits.memory_bytes.unwrap_or(0),
        ..Default::default()
    }
}

fn port_mappings(model: &PodModel) -> Vec<PortMapping> {
    if model.host_network() {
        return Vec::new();
    }
    let ports = model.containers.iter().flat_map(|c| c.spec.ports.iter().flatten());
    ports
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => cri::v1::Protocol::Udp as i32,
                Some("SCTP") => cri::v1::Protocol::Sctp as i32,
                _ => cri::v1::Protocol::Tcp as i32,
            },
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}
