//! One container as the runtime is asked for it.

use std::path::Path;

use cri::v1::{self, ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig};

use super::env::expand;
use super::labels;
use super::sandbox::linux_resources;
use super::security::{self, SeccompRules};
use crate::pod::model::{ContainerModel, PodModel};
use crate::pod::resources::{Amounts, container_cgroup, oom_score_adj};
use crate::quantity;
use crate::runtime::Image;

pub(crate) struct ContainerInputs<'a> {
    pub(crate) attempt: i32,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) mounts: Vec<v1::Mount>,
    pub(crate) devices: Vec<v1::Device>,
    pub(crate) image: &'a Image,
    pub(crate) image_ref: String,
    pub(crate) target_id: Option<String>,
    pub(crate) seccomp: &'a SeccompRules,
    pub(crate) node_memory: i64,
    /// The lowest OOM score adjustment this process may set.
    pub(crate) lowest_oom_score: i64,
    pub(crate) cfs_quota: bool,
}

pub(crate) fn log_path(container: &str, attempt: i32) -> String {
    format!("{container}/{attempt}.log")
}

pub(crate) fn config(
    model: &PodModel,
    container: &ContainerModel,
    inputs: ContainerInputs<'_>,
) -> ContainerConfig {
    let spec = &container.spec;
    let lookup =
        |name: &str| inputs.environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| expand(word, lookup)).collect()
    };
    let mut container_labels = labels::pod_labels(&model.name, &model.namespace, &model.uid);
    container_labels.insert(labels::CONTAINER_NAME.to_owned(), spec.name.clone());
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: spec.name.clone(),
            attempt: u32::try_from(inputs.attempt).unwrap_or(0),
        }),
        image: Some(ImageSpec {
            image: inputs.image_ref.clone(),
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expanded(&spec.command),
        args: expanded(&spec.args),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        labels: container_labels.into_iter().collect(),
        annotations: annotations(model, container, inputs.attempt),
        log_path: log_path(&spec.name, inputs.attempt),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        tty: spec.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(model, container, &inputs)),
            security_context: Some(security::container(
                model,
                container,
                inputs.image,
                inputs.target_id.clone(),
                inputs.seccomp,
            )),
        }),
        envs: inputs.environment.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        mounts: inputs.mounts,
        devices: inputs.devices,
        ..Default::default()
    }
}

fn annotations(
    model: &PodModel,
    container: &ContainerModel,
    attempt: i32,
) -> std::collections::HashMap<String, String> {
    let spec = &container.spec;
    let or = |value: &Option<String>, default: &str| {
        value.clone().filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned())
    };
    [
        (labels::HASH, labels::hash(spec)),
        (labels::RESTART_COUNT, attempt.to_string()),
        (labels::TERMINATION_MESSAGE_PATH, or(&spec.termination_message_path, "/dev/termination-log")),
        (labels::TERMINATION_MESSAGE_POLICY, or(&spec.termination_message_policy, "File")),
        (labels::POD_GRACE_PERIOD, model.spec.termination_grace_period_seconds.unwrap_or(30).to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

pub(crate) fn resources(
    model: &PodModel,
    container: &ContainerModel,
    inputs: &ContainerInputs<'_>,
) -> v1::LinuxContainerResources {
    let mut limits = container_cgroup(&container.spec);
    if !inputs.cfs_quota {
        limits.cpu_quota = None;
    }
    let own = container.spec.resources.as_ref();
    let request = Amounts::of(own.and_then(|r| r.requests.as_ref())).memory_bytes.or(limits.memory_bytes);
    let priority = model.spec.priority.unwrap_or(0);
    let score = oom_score_adj(model.qos, priority, request.unwrap_or(0), inputs.node_memory);
    let mut resources = linux_resources(&limits);
    resources.oom_score_adj = score.max(inputs.lowest_oom_score);
    for (name, quantity) in own.and_then(|r| r.limits.as_ref()).into_iter().flatten() {
        if let Some(size) = name.strip_prefix("hugepages-") {
            resources.hugepage_limits.push(v1::HugepageLimit {
                page_size: size.replace("i", "") + "B",
                limit: u64::try_from(quantity::value(quantity)).unwrap_or(0),
            });
        }
    }
    resources
}

/// The file the container leaves its last words in, beside its other private files.
pub(crate) fn termination_file(pod_dir: &Path, container: &str, attempt: i32) -> std::path::PathBuf {
    pod_dir.join("containers").join(container).join(attempt.to_string())
}
