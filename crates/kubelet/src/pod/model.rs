//! A pod as the kubelet works with it: the API object and its containers in start order.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::resources::{QosClass, qos_class};

pub(crate) const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
pub(crate) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
pub(crate) const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerKind {
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the regular ones.
    Sidecar,
    Regular,
    Ephemeral,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone)]
pub(crate) struct ContainerModel {
    pub(crate) kind: ContainerKind,
    pub(crate) spec: Container,
    /// For an ephemeral container: whose namespaces it joins.
    pub(crate) target: Option<String>,
}

#[derive(Debug)]
pub(crate) struct PodModel {
    pub(crate) pod: Arc<Pod>,
    pub(crate) spec: PodSpec,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    /// Init containers and sidecars, then regular, then ephemeral ones.
    pub(crate) containers: Vec<ContainerModel>,
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) qos: QosClass,
}

impl PodModel {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let mut containers = Vec::new();
        for container in spec.init_containers.iter().flatten() {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            let kind = if sidecar { ContainerKind::Sidecar } else { ContainerKind::Init };
            containers.push(ContainerModel { kind, spec: container.clone(), target: None });
        }
        for container in &spec.containers {
            let kind = ContainerKind::Regular;
            containers.push(ContainerModel { kind, spec: container.clone(), target: None });
        }
        for ephemeral in spec.ephemeral_containers.iter().flatten() {
            let target = ephemeral.target_container_name.clone().filter(|t| !t.is_empty());
            // The two types share every field but the target, so JSON carries one into the other.
            let converted = serde_json::to_value(ephemeral).and_then(serde_json::from_value::<Container>);
            if let Ok(container) = converted {
                containers.push(ContainerModel { kind: ContainerKind::Ephemeral, spec: container, target });
            }
        }
        let restart_policy = match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        };
        let metadata = &pod.metadata;
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            uid: metadata.uid.clone().unwrap_or_default(),
            qos: qos_class(&spec),
            containers,
            restart_policy,
            spec,
            pod,
        }
    }

    pub(crate) fn container(&self, name: &str) -> Option<&ContainerModel> {
        self.containers.iter().find(|c| c.spec.name == name)
    }

    pub(crate) fn of_kind(
        &self,
        kinds: &[ContainerKind],
    ) -> impl DoubleEndedIterator<Item = &ContainerModel> {
        let kinds = kinds.to_vec();
        self.containers.iter().filter(move |c| kinds.contains(&c.kind))
    }

    pub(crate) fn is_static(&self) -> bool {
        is_static(&self.pod)
    }

    pub(crate) fn host_network(&self) -> bool {
        self.spec.host_network == Some(true)
    }

    /// `name_namespace(uid)`, the form upstream's messages use.
    pub(crate) fn formatted(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }

    pub(crate) fn grace_period_seconds(&self) -> i64 {
        let spec = self.spec.termination_grace_period_seconds.unwrap_or(30);
        self.pod.metadata.deletion_grace_period_seconds.unwrap_or(spec)
    }
}

impl ContainerModel {
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Whether this container, having exited with `exit_code`, is to run again while the pod lives.
    pub(crate) fn restarts_after(&self, exit_code: i32, policy: RestartPolicy) -> bool {
        match self.kind {
            ContainerKind::Sidecar => true,
            ContainerKind::Ephemeral => false,
            ContainerKind::Init => {
                exit_code != 0 && self.restart_policy(policy, exit_code) != RestartPolicy::Never
            }
            ContainerKind::Regular => match self.restart_policy(policy, exit_code) {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => exit_code != 0,
                RestartPolicy::Never => false,
            },
        }
    }

    /// The container's own policy and rules (KEP-5307) come before the pod's.
    fn restart_policy(&self, pod: RestartPolicy, exit_code: i32) -> RestartPolicy {
        for rule in self.spec.restart_policy_rules.iter().flatten() {
            let Some(codes) = &rule.exit_codes else { continue };
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            if rule.action == "Restart" && listed == (codes.operator == "In") {
                return RestartPolicy::Always;
            }
        }
        match self.spec.restart_policy.as_deref() {
            Some("Always") => RestartPolicy::Always,
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => pod,
        }
    }
}

pub(crate) fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Static pods come from a file or a URL and are only mirrored to the API.
pub(crate) fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE_ANNOTATION).is_some_and(|source| source != "api")
}

pub(crate) fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR_ANNOTATION).is_some()
}
