//! What is special about each built-in kind. A kind without a line here is a plain one.

pub mod namespace;
pub mod pod;
pub mod pod_template;
pub mod rbac;
pub mod service;
mod unserved;
pub mod workloads;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::strategy::{Generation, Plain, Strategy};

/// Kinds whose only behaviour is that they count generations.
const COUNTED: [(&str, &str); 12] = [
    ("", "podtemplates"),
    ("discovery.k8s.io", "endpointslices"),
    ("flowcontrol.apiserver.k8s.io", "flowschemas"),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations"),
    ("networking.k8s.io", "ingresses"),
    ("networking.k8s.io", "ingressclasses"),
    ("networking.k8s.io", "networkpolicies"),
    ("policy", "poddisruptionbudgets"),
    ("resource.k8s.io", "deviceclasses"),
    ("resource.k8s.io", "resourceslices"),
    ("scheduling.k8s.io", "priorityclasses"),
    ("networking.k8s.io", "servicecidrs"),
];

/// A kind that only counts generations.
#[derive(Debug)]
struct Counted;

impl Strategy for Counted {
    fn generation(&self) -> Generation {
        Generation::Spec
    }
}

/// What the server's flags say that kinds depend on.
#[derive(Debug, Clone, Default)]
pub struct KindOptions {
    /// `--service-cluster-ip-range`.
    pub service_cidrs: Vec<String>,
}

/// The strategy of a built-in kind.
pub fn strategy_of(group: &str, resource: &str, options: &KindOptions) -> Arc<dyn Strategy> {
    match (group, resource) {
        ("", "namespaces") => Arc::new(namespace::NamespaceStrategy),
        ("", "pods") => Arc::new(pod::PodStrategy),
        ("", "replicationcontrollers") => Arc::new(workloads::ReplicationControllerStrategy),
        ("", "services") => Arc::new(service::ServiceStrategy::new(&options.service_cidrs)),
        ("apps", "daemonsets") => Arc::new(workloads::DaemonSetStrategy),
        ("apps", "deployments") => Arc::new(workloads::DeploymentStrategy),
        ("apps", "replicasets") => Arc::new(workloads::ReplicaSetStrategy),
        ("apps", "statefulsets") => Arc::new(workloads::StatefulSetStrategy),
        ("batch", "cronjobs") => Arc::new(workloads::CronJobStrategy),
        ("batch", "jobs") => Arc::new(workloads::JobStrategy),
        ("rbac.authorization.k8s.io", "clusterroles" | "roles") => Arc::new(rbac::RoleStrategy),
        ("rbac.authorization.k8s.io", "clusterrolebindings" | "rolebindings") => {
            Arc::new(rbac::BindingStrategy)
        }
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            Arc::new(unserved::UnservedStrategy("custom resources"))
        }
        ("admissionregistration.k8s.io", resource) if resource.contains("webhook") => {
            Arc::new(unserved::UnservedStrategy("admission webhooks"))
        }
        ("admissionregistration.k8s.io", _) => Arc::new(unserved::UnservedStrategy("admission policies")),
        key if COUNTED.contains(&key) => Arc::new(Counted),
        _ => Arc::new(Plain),
    }
}

/// Sets `object[field]` if it is absent.
pub(super) fn default_field(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(object) = fields(object) {
        object.entry(field).or_insert_with(|| value.into());
    }
}

/// Sets a string field if it is absent or empty.
pub(super) fn default_text(object: &mut Value, field: &str, value: &str) {
    if object.get(field).and_then(Value::as_str).unwrap_or_default().is_empty()
        && let Some(object) = fields(object)
    {
        object.insert(field.to_owned(), value.into());
    }
}

/// The object's fields; null becomes an empty object first.
pub(super) fn fields(value: &mut Value) -> Option<&mut Map<String, Value>> {
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

/// The items of a list field, if it is there.
pub(super) fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}
