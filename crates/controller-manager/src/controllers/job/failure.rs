//! What a failed pod means for its job.

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::pods::{self, name, namespace};

/// The action of the first rule of `spec.podFailurePolicy` that matches, or to count the failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

/// True if the pod has failed, or is going and so counts as failed.
pub(super) fn is_failed(job: &Job, pod: &Pod) -> bool {
    pods::phase(pod) == "Failed"
        || (pods::is_terminating(pod) && pods::phase(pod) != "Succeeded" && !waits_for_terminal(job))
}

/// True if pods are replaced only once they have fully terminated.
pub(super) fn waits_for_terminal(job: &Job) -> bool {
    let Some(spec) = &job.spec else { return false };
    match spec.pod_replacement_policy.as_deref() {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

pub(super) fn judge(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    for (at, rule) in policy.into_iter().flat_map(|policy| &policy.rules).enumerate() {
        if let Some(message) = matching(rule, at, pod) {
            return match rule.action.as_str() {
                "FailJob" => Verdict::FailJob(message),
                "FailIndex" => Verdict::FailIndex,
                "Ignore" => Verdict::Ignore,
                _ => Verdict::Count,
            };
        }
    }
    Verdict::Count
}

fn matching(rule: &PodFailurePolicyRule, at: usize, pod: &Pod) -> Option<String> {
    let (space, pod_name) = (namespace(&pod.metadata), name(&pod.metadata));
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = exit_code(codes, pod)?;
        return Some(format!(
            "Container {container} for pod {space}/{pod_name} failed with exit code {code} matching {} rule at index {at}",
            rule.action
        ));
    }
    for pattern in rule.on_pod_conditions.iter().flatten() {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        if pods::condition(pod, &pattern.type_).is_some_and(|condition| condition.status == wanted) {
            return Some(format!(
                "Pod {space}/{pod_name} has condition {} matching {} rule at index {at}",
                pattern.type_, rule.action
            ));
        }
    }
    None
}

fn exit_code(rule: &PodFailurePolicyOnExitCodesRequirement, pod: &Pod) -> Option<(String, i32)> {
    let status = pod.status.as_ref()?;
    let named =
        |status: &&ContainerStatus| rule.container_name.as_ref().is_none_or(|name| *name == status.name);
    let containers =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    for container in containers.filter(named) {
        let Some(ended) = container.state.as_ref().and_then(|state| state.terminated.as_ref()) else {
            continue;
        };
        let listed = rule.values.contains(&ended.exit_code);
        if ended.exit_code != 0 && listed == (rule.operator == "In") {
            return Some((container.name.clone(), ended.exit_code));
        }
    }
    None
}
