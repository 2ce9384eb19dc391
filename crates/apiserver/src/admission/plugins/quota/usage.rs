//! What objects use of quotas, kind by kind.

use std::collections::{BTreeMap, BTreeSet};

use meta::names::GroupResource;
use meta::quantity::{Format, Quantity};
use serde_json::Value;

use crate::admission::Operation;
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;

/// Amounts by the names quotas use.
pub(super) type Usage = BTreeMap<String, Quantity>;

/// Resources of a container that a quota on them makes mandatory.
const CONSTRAINED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// How objects of a resource are counted.
pub(super) struct Evaluator {
    kind: Kind,
    /// `count/<resource>.<group>`.
    count_name: String,
    /// Quotas had names for some kinds before `count/` came.
    legacy_name: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pod,
    Service,
    Claim,
    Other,
    /// Never counted: events, and questions that are not stored.
    Ignored,
}

impl Evaluator {
    pub(super) fn of(resource: &GroupResource) -> Self {
        let kind = match (&*resource.group, &*resource.resource) {
            ("", "pods") => Kind::Pod,
            ("", "services") => Kind::Service,
            ("", "persistentvolumeclaims") => Kind::Claim,
            ("" | "events.k8s.io", "events")
            | ("", "namespaces" | "bindings")
            | ("authorization.k8s.io", _) => Kind::Ignored,
            _ => Kind::Other,
        };
        let legacy_name = match (&*resource.group, &*resource.resource) {
            ("", "pods") => Some("pods"),
            ("", "services") => Some("services"),
            ("", "persistentvolumeclaims") => Some("persistentvolumeclaims"),
            ("", "configmaps") => Some("configmaps"),
            ("", "secrets") => Some("secrets"),
            ("", "replicationcontrollers") => Some("replicationcontrollers"),
            ("", "resourcequotas") => Some("resourcequotas"),
            _ => None,
        };
        Self { kind, count_name: format!("count/{resource}"), legacy_name }
    }

    pub(super) fn handles(&self, operation: Operation, subresource: &str) -> bool {
        match (self.kind, subresource) {
            (Kind::Ignored, _) => false,
            (Kind::Pod, "resize") => operation == Operation::Update,
            (Kind::Service | Kind::Claim, "") => true,
            (_, "") => operation == Operation::Create,
            _ => false,
        }
    }

    /// Whether a quota on `name` is one on these objects.
    pub(super) fn counts(&self, name: &str) -> bool {
        if name == self.count_name || Some(name) == self.legacy_name {
            return true;
        }
        match self.kind {
            Kind::Pod => {
                matches!(name, "cpu" | "memory" | "ephemeral-storage")
                    || name.starts_with("hugepages-")
                    || name.starts_with("limits.")
                    || (name.starts_with("requests.") && name != "requests.storage")
            }
            Kind::Service => matches!(name, "services.nodeports" | "services.loadbalancers"),
            Kind::Claim => name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/"),
            Kind::Other | Kind::Ignored => false,
        }
    }

    pub(super) fn usage(&self, object: &Value) -> Usage {
        let mut usage = Usage::new();
        let one = Quantity::new(1, Format::DecimalSi);
        usage.insert(self.count_name.clone(), one);
        // A pod that has ended exists but uses nothing.
        let ended = matches!(object.str_at(&["status", "phase"]), "Succeeded" | "Failed");
        if self.kind == Kind::Pod && ended {
            return usage;
        }
        if let Some(name) = self.legacy_name {
            usage.insert(name.to_owned(), one);
        }
        match self.kind {
            Kind::Pod => add_pod(&mut usage, object),
            Kind::Service => add_service(&mut usage, object),
            Kind::Claim => add_claim(&mut usage, object),
            Kind::Other | Kind::Ignored => {}
        }
        usage
    }

    /// Whether every scope of the quota holds for the object.
    pub(super) fn matches_scopes(&self, quota: &Value, object: &Value) -> bool {
        let plain = list(quota, &["spec", "scopes"]).iter().filter_map(Value::as_str);
        let plain = plain.map(|scope| (scope, "Exists", &[][..]));
        let selected = list(quota, &["spec", "scopeSelector", "matchExpressions"]).iter().map(|expression| {
            (
                expression.str_at(&["scopeName"]),
                expression.str_at(&["operator"]),
                list(expression, &["values"]),
            )
        });
        plain.chain(selected).all(|(scope, operator, values)| match self.kind {
            Kind::Pod => pod_in_scope(object, scope, operator, values),
            Kind::Claim if scope == "VolumeAttributesClass" => {
                selects(object.str_at(&["spec", "volumeAttributesClassName"]), operator, values)
            }
            _ => false,
        })
    }

    /// Containers must name what is limited.
    pub(super) fn check_constraints(&self, limited: &[String], object: &Value) -> Result<(), String> {
        if self.kind != Kind::Pod {
            return Ok(());
        }
        let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for name in limited.iter().map(String::as_str).filter(|name| CONSTRAINED.contains(name)) {
            let (field, resource) = match name.split_once('.') {
                Some(("limits", resource)) => ("limits", resource),
                Some((_, resource)) => ("requests", resource),
                None => ("requests", name),
            };
            let of_pod = object.at(&["spec", "resources", field, resource]).is_some();
            for container in ["containers", "initContainers"]
                .iter()
                .flat_map(|list_name| list(object, &["spec", list_name]))
            {
                if !of_pod && container.at(&["resources", field, resource]).is_none() {
                    missing.entry(name).or_default().insert(container.str_at(&["name"]));
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let parts = missing.into_iter().map(|(name, containers)| {
            format!("{name} for: {}", containers.into_iter().collect::<Vec<_>>().join(","))
        });
        Err(format!("must specify {}", parts.collect::<Vec<_>>().join("; ")))
    }
}

fn add_pod(usage: &mut Usage, pod: &Value) {
    for (name, amount) in pod_total(pod, "requests") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            usage.insert(name.clone(), amount);
        }
        usage.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in pod_total(pod, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
}

/// What a pod takes at its busiest moment: all containers with their sidecars, or one init container with the
/// sidecars started before it.
fn pod_total(pod: &Value, field: &str) -> Usage {
    let mut running = Usage::new();
    for container in list(pod, &["spec", "containers"]) {
        add(&mut running, &amounts(container, field));
    }
    let mut sidecars = Usage::new();
    let mut starting = Usage::new();
    for container in list(pod, &["spec", "initContainers"]) {
        let own = amounts(container, field);
        let moment = if container.str_at(&["restartPolicy"]) == "Always" {
            add(&mut running, &own);
            add(&mut sidecars, &own);
            sidecars.clone()
        } else {
            let mut with = own;
            add(&mut with, &sidecars);
            with
        };
        raise(&mut starting, moment);
    }
    raise(&mut running, starting);
    for (name, amount) in amounts(&pod["spec"], field) {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            running.insert(name, amount);
        }
    }
    let overhead = pod.at(&["spec", "overhead"]).map(parse_all).unwrap_or_default();
    for (name, amount) in overhead {
        // Overhead is no limit by itself.
        if field == "requests" || running.contains_key(&name) {
            running.entry(name).or_default().add(&amount);
        }
    }
    running
}

fn add_service(usage: &mut Usage, service: &Value) {
    let count = |number: usize| Quantity::new(i64::try_from(number).unwrap_or(i64::MAX), Format::DecimalSi);
    let ports = list(service, &["spec", "ports"]);
    let (mut node_ports, mut balancers) = (0, 0);
    match service.str_at(&["spec", "type"]) {
        "NodePort" => node_ports = ports.len(),
        "LoadBalancer" => {
            balancers = 1;
            node_ports =
                if service.at(&["spec", "allocateLoadBalancerNodePorts"]) == Some(&Value::Bool(false)) {
                    ports
                        .iter()
                        .filter(|port| port.get("nodePort").and_then(Value::as_i64).is_some_and(|n| n != 0))
                        .count()
                } else {
                    ports.len()
                };
        }
        _ => {}
    }
    usage.insert("services.nodeports".to_owned(), count(node_ports));
    usage.insert("services.loadbalancers".to_owned(), count(balancers));
}

fn add_claim(usage: &mut Usage, claim: &Value) {
    let annotation = claim.annotation("volume.beta.kubernetes.io/storage-class");
    let class = annotation.unwrap_or_else(|| claim.str_at(&["spec", "storageClassName"]));
    let mut insert = |name: &str, amount: Quantity| {
        usage.insert(name.to_owned(), amount);
        if !class.is_empty() {
            usage.insert(format!("{class}.storageclass.storage.k8s.io/{name}"), amount);
        }
    };
    insert("persistentvolumeclaims", Quantity::new(1, Format::DecimalSi));
    if let Ok(amount) = claim.str_at(&["spec", "resources", "requests", "storage"]).parse() {
        insert("requests.storage", amount);
    }
}

fn pod_in_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let terminating = || {
        pod.at(&["spec", "activeDeadlineSeconds"]).and_then(Value::as_i64).is_some_and(|seconds| seconds >= 0)
    };
    match scope {
        "Terminating" => terminating(),
        "NotTerminating" => !terminating(),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => selects(pod.str_at(&["spec", "priorityClassName"]), operator, values),
        "CrossNamespacePodAffinity" => has_cross_namespace_affinity(pod),
        _ => false,
    }
}

fn selects(value: &str, operator: &str, values: &[Value]) -> bool {
    let listed = values.iter().any(|known| known.as_str() == Some(value));
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => !value.is_empty(),
        "DoesNotExist" => value.is_empty(),
        _ => false,
    }
}

/// No container asks for any processor or memory.
fn is_best_effort(pod: &Value) -> bool {
    ["requests", "limits"].iter().all(|field| {
        let owners = ["containers", "initContainers"].iter().flat_map(|name| list(pod, &["spec", name]));
        owners.chain(pod.get("spec")).all(|owner| {
            let own = amounts(owner, field);
            !["cpu", "memory"].iter().any(|name| own.get(*name).is_some_and(|amount| !amount.is_zero()))
        })
    })
}

fn has_cross_namespace_affinity(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let of = |field: &str| list(pod, &["spec", "affinity", kind, field]);
        let required = of("requiredDuringSchedulingIgnoredDuringExecution").iter();
        let preferred = of("preferredDuringSchedulingIgnoredDuringExecution").iter();
        required.chain(preferred.filter_map(|term| term.get("podAffinityTerm"))).any(|term| {
            !list(term, &["namespaces"]).is_empty()
                || term.get("namespaceSelector").is_some_and(Value::is_object)
        })
    })
}

fn amounts(owner: &Value, field: &str) -> Usage {
    owner.at(&["resources", field]).map(parse_all).unwrap_or_default()
}

fn parse_all(map: &Value) -> Usage {
    map.as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.parse().ok()?)))
        .collect()
}

fn add(total: &mut Usage, own: &Usage) {
    for (name, amount) in own {
        match total.get_mut(name) {
            Some(known) => known.add(amount),
            None => {
                total.insert(name.clone(), *amount);
            }
        }
    }
}

fn raise(total: &mut Usage, other: Usage) {
    for (name, amount) in other {
        let known = total.entry(name).or_insert(amount);
        if *known < amount {
            *known = amount;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(resource: &'static str, object: Value) -> BTreeMap<String, String> {
        let usage = Evaluator::of(&GroupResource::new("", resource)).usage(&object);
        usage.into_iter().map(|(name, amount)| (name, amount.to_string())).collect()
    }

    #[test]
    fn pods_count_their_busiest_moment() {
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        for (spec, cpu) in [
            (json!({"containers": [container("1"), container("500m")]}), "1500m"),
            (json!({"initContainers": [container("3")], "containers": [container("1")]}), "3"),
            (json!({"initContainers": [sidecar("1"), container("3")], "containers": [container("1")]}), "4"),
            (json!({"initContainers": [sidecar("1")], "containers": [container("1")]}), "2"),
            (json!({"containers": [container("1")], "overhead": {"cpu": "250m"}}), "1250m"),
            (json!({"containers": [container("1")], "resources": {"requests": {"cpu": "5"}}}), "5"),
        ] {
            let usage = check("pods", json!({"spec": spec}));
            assert_eq!((usage["cpu"].as_str(), usage["requests.cpu"].as_str()), (cpu, cpu));
            assert_eq!((usage["pods"].as_str(), usage["count/pods"].as_str()), ("1", "1"));
        }
        let ended = json!({"status": {"phase": "Succeeded"}, "spec": {"containers": [container("1")]}});
        assert_eq!(check("pods", ended), BTreeMap::from([("count/pods".to_owned(), "1".to_owned())]));
    }

    #[test]
    fn services_and_claims_have_their_own_names() {
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        let usage = check("services", service);
        assert_eq!(
            (usage["services.nodeports"].as_str(), usage["services.loadbalancers"].as_str()),
            ("2", "1")
        );
        let claim =
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}});
        let usage = check("persistentvolumeclaims", claim);
        assert_eq!(usage["fast.storageclass.storage.k8s.io/requests.storage"], "2Gi");
        assert_eq!(usage["persistentvolumeclaims"], "1");
    }
}
