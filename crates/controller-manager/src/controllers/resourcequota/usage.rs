//! What objects use of a quota.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, Pod, PodSpec, ResourceQuota, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use meta::quantity::{Format, Quantity};

use crate::pods;

pub(super) type Amounts = BTreeMap<String, Quantity>;

/// A scope that a pod must be in for the quota to count it.
struct Scope {
    name: String,
    operator: String,
    values: Vec<String>,
}

/// What one pod that has not finished uses; zero once it has.
pub(super) fn of_pod(pod: &Pod) -> Amounts {
    let mut amounts = Amounts::new();
    add(&mut amounts, "count/pods", &one());
    if pods::is_terminal(pod) {
        return amounts;
    }
    add(&mut amounts, "pods", &one());
    let Some(spec) = &pod.spec else { return amounts };
    for (name, amount) in total(spec, |container| {
        container.resources.as_ref().and_then(|resources| resources.requests.as_ref())
    }) {
        add(&mut amounts, &format!("requests.{name}"), &amount);
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            add(&mut amounts, &name, &amount);
        }
    }
    for (name, amount) in
        total(spec, |container| container.resources.as_ref().and_then(|resources| resources.limits.as_ref()))
    {
        add(&mut amounts, &format!("limits.{name}"), &amount);
    }
    amounts
}

pub(super) fn of_service(service: &Service) -> Amounts {
    let mut amounts = Amounts::new();
    add(&mut amounts, "services", &one());
    add(&mut amounts, "count/services", &one());
    let Some(spec) = &service.spec else { return amounts };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let with_node_port = ports.iter().filter(|port| port.node_port.unwrap_or(0) != 0).count();
    let count = |ports: usize| Quantity::new(i64::try_from(ports).unwrap_or(i64::MAX), Format::DecimalSi);
    match spec.type_.as_deref() {
        Some("NodePort") => add(&mut amounts, "services.nodeports", &count(ports.len())),
        Some("LoadBalancer") => {
            add(&mut amounts, "services.loadbalancers", &one());
            let allocates = spec.allocate_load_balancer_node_ports.unwrap_or(true);
            add(
                &mut amounts,
                "services.nodeports",
                &count(if allocates { ports.len() } else { with_node_port }),
            );
        }
        _ => {}
    }
    amounts
}

pub(super) fn of_claim(claim: &PersistentVolumeClaim) -> Amounts {
    let mut amounts = Amounts::new();
    let spec = claim.spec.as_ref();
    let class = spec.and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
    let requested =
        spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage")).and_then(parse);
    for name in ["persistentvolumeclaims", "count/persistentvolumeclaims"] {
        add(&mut amounts, name, &one());
    }
    if let Some(storage) = &requested {
        add(&mut amounts, "requests.storage", storage);
    }
    if !class.is_empty() {
        let prefix = format!("{class}.storageclass.storage.k8s.io/");
        add(&mut amounts, &format!("{prefix}persistentvolumeclaims"), &one());
        if let Some(storage) = &requested {
            add(&mut amounts, &format!("{prefix}requests.storage"), storage);
        }
    }
    amounts
}

/// True if the quota counts this pod at all.
pub(super) fn counts_pod(quota: &ResourceQuota, pod: &Pod) -> bool {
    scopes(quota).iter().all(|scope| in_scope(scope, pod))
}

/// True if the quota counts only pods.
pub(super) fn has_scopes(quota: &ResourceQuota) -> bool {
    !scopes(quota).is_empty()
}

pub(super) fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

pub(super) fn parse(quantity: &WireQuantity) -> Option<Quantity> {
    quantity.0.parse().ok()
}

pub(super) fn add(amounts: &mut Amounts, name: &str, amount: &Quantity) {
    match amounts.get_mut(name) {
        Some(sum) => sum.add(amount),
        None => {
            amounts.insert(name.to_owned(), *amount);
        }
    }
}

fn scopes(quota: &ResourceQuota) -> Vec<Scope> {
    let Some(spec) = &quota.spec else { return Vec::new() };
    let plain = spec.scopes.iter().flatten().map(|name| Scope {
        name: name.clone(),
        operator: "Exists".to_owned(),
        values: Vec::new(),
    });
    let selected =
        spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
    let selected = selected.map(|requirement| Scope {
        name: requirement.scope_name.clone(),
        operator: requirement.operator.clone(),
        values: requirement.values.clone().unwrap_or_default(),
    });
    plain.chain(selected).collect()
}

fn in_scope(scope: &Scope, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let terminating = spec.active_deadline_seconds.is_some();
    let class = spec.priority_class_name.as_deref().unwrap_or_default();
    match scope.name.as_str() {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => match scope.operator.as_str() {
            "In" => scope.values.iter().any(|value| value == class),
            "NotIn" => !scope.values.iter().any(|value| value == class),
            "DoesNotExist" => class.is_empty(),
            _ => !class.is_empty(),
        },
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        _ => false,
    }
}

fn is_best_effort(pod: &Pod) -> bool {
    let class = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
    let Some(spec) = &pod.spec else { return true };
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let asks = |container: &Container| {
        container.resources.as_ref().is_some_and(|resources| {
            let some = |amounts: &Option<BTreeMap<String, WireQuantity>>| {
                amounts.as_ref().is_some_and(|a| !a.is_empty())
            };
            some(&resources.requests) || some(&resources.limits)
        })
    };
    class.map_or_else(|| !containers.any(asks), |class| class == "BestEffort")
}

fn crosses_namespaces(spec: &PodSpec) -> bool {
    let Some(affinity) = &spec.affinity else { return false };
    let with = affinity.pod_affinity.as_ref();
    let against = affinity.pod_anti_affinity.as_ref();
    let required = with
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .chain(against.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()))
        .flatten();
    let preferred = with
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .chain(against.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()))
        .flatten()
        .map(|term| &term.pod_affinity_term);
    let mut terms = required.chain(preferred);
    terms.any(|term| {
        term.namespaces.as_ref().is_some_and(|list| !list.is_empty()) || term.namespace_selector.is_some()
    })
}

/// What the containers of a pod take together: all that run at once, or the greatest that runs before them.
fn total<'a>(
    spec: &'a PodSpec,
    amounts: impl Fn(&'a Container) -> Option<&'a BTreeMap<String, WireQuantity>>,
) -> Amounts {
    let each = |container| amounts(container).into_iter().flatten().filter_map(|(n, q)| Some((n, parse(q)?)));
    let mut running = Amounts::new();
    for container in &spec.containers {
        each(container).for_each(|(name, amount)| add(&mut running, name, &amount));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            for (name, amount) in each(container) {
                add(&mut running, name, &amount);
                add(&mut sidecars, name, &amount);
            }
            continue;
        }
        for (name, mut amount) in each(container) {
            if let Some(beside) = sidecars.get(name) {
                amount.add(beside);
            }
            let peak = peak.entry(name.clone()).or_insert(amount);
            if amount > *peak {
                *peak = amount;
            }
        }
    }
    for (name, amount) in peak {
        let sum = running.entry(name).or_insert(amount);
        if amount > *sum {
            *sum = amount;
        }
    }
    for (name, amount) in spec.overhead.iter().flatten() {
        if let (Some(sum), Some(amount)) = (running.get_mut(name), parse(amount)) {
            sum.add(&amount);
        }
    }
    running
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn used(amounts: &Amounts, name: &str) -> String {
        amounts.get(name).map_or("none".to_owned(), ToString::to_string)
    }

    #[test]
    fn a_pod_uses_what_runs_at_once_or_the_greatest_that_runs_before() {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": "2"}});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "resources": asks("100m")}, {"name": "b", "resources": asks("200m")}],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": asks("50m")}, {"name": "i", "resources": asks("1")}],
            "overhead": {"cpu": "10m"},
        }}))
        .unwrap();
        let amounts = of_pod(&pod);
        assert_eq!(used(&amounts, "requests.cpu"), "1060m");
        assert_eq!(used(&amounts, "cpu"), "1060m", "two names of one resource");
        assert_eq!(used(&amounts, "limits.cpu"), "6010m");
        assert_eq!(used(&amounts, "pods"), "1");
        let done = Pod { status: serde_json::from_value(json!({"phase": "Failed"})).unwrap(), ..pod };
        assert_eq!(
            (used(&of_pod(&done), "pods"), used(&of_pod(&done), "count/pods")),
            ("none".to_owned(), "1".to_owned())
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let pod: Pod = serde_json::from_value(
            json!({"spec": {"priorityClassName": "high", "containers": [{"name": "a"}]}}),
        )
        .unwrap();
        let quota = |spec: Value| -> ResourceQuota { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let class = |operator: &str, values: Value| {
            quota(
                json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}}),
            )
        };
        let table = [
            (quota(json!({})), true),
            (quota(json!({"scopes": ["BestEffort"]})), true),
            (quota(json!({"scopes": ["NotBestEffort"]})), false),
            (quota(json!({"scopes": ["Terminating"]})), false),
            (quota(json!({"scopes": ["NotTerminating", "BestEffort"]})), true),
            (class("In", json!(["high"])), true),
            (class("NotIn", json!(["high"])), false),
            (class("Exists", json!([])), true),
        ];
        for (quota, counts) in table {
            assert_eq!(counts_pod(&quota, &pod), counts, "{quota:?}");
        }
    }

    #[test]
    fn claims_and_services_count_by_sort() {
        let claim: PersistentVolumeClaim = serde_json::from_value(
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}}}),
        )
        .unwrap();
        assert_eq!(used(&of_claim(&claim), "fast.storageclass.storage.k8s.io/requests.storage"), "5Gi");
        let service: Service = serde_json::from_value(
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}),
        )
        .unwrap();
        assert_eq!(
            (
                used(&of_service(&service), "services.loadbalancers"),
                used(&of_service(&service), "services.nodeports")
            ),
            ("1".to_owned(), "2".to_owned())
        );
    }
}
