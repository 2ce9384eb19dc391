//! The built-in admission plugins, in upstream's order.

mod always;
mod always_pull_images;
mod certificates;
mod default_ingress_class;
mod default_toleration_seconds;
mod deny_service_external_ips;
mod event_rate_limit;
mod extended_resource_toleration;
mod limit_pod_hard_anti_affinity_topology;
mod limit_ranger;
mod namespaces;
mod node_restriction;
mod owner_references;
mod pod_node_selector;
mod pod_security;
mod pod_toleration_restriction;
mod pod_topology_labels;
mod priority;
mod quota;
mod runtime_class;
mod service_account;
mod storage;
mod taint_nodes_by_condition;
mod tolerations;

use meta::names::GroupResource;
use serde_json::{Map, Value};

use super::Operation;
use super::chain::{Build, Registration};

/// All plugins, in the order in which they run.
pub const PLUGINS: &[Registration] = &[
    off("AlwaysAdmit", always::admit),
    off("NamespaceAutoProvision", namespaces::auto_provision),
    on("NamespaceLifecycle", namespaces::lifecycle),
    off("NamespaceExists", namespaces::exists),
    off("LimitPodHardAntiAffinityTopology", limit_pod_hard_anti_affinity_topology::build),
    on("LimitRanger", limit_ranger::build),
    on("ServiceAccount", service_account::build),
    off("NodeRestriction", node_restriction::build),
    on("TaintNodesByCondition", taint_nodes_by_condition::build),
    off("AlwaysPullImages", always_pull_images::build),
    brought("ImagePolicyWebhook", false),
    on("PodSecurity", pod_security::build),
    off("PodNodeSelector", pod_node_selector::build),
    on("Priority", priority::build),
    on("DefaultTolerationSeconds", default_toleration_seconds::build),
    off("PodTolerationRestriction", pod_toleration_restriction::build),
    off("EventRateLimit", event_rate_limit::build),
    off("ExtendedResourceToleration", extended_resource_toleration::build),
    on("DefaultStorageClass", storage::default_class),
    on("StorageObjectInUseProtection", storage::in_use_protection),
    off("OwnerReferencesPermissionEnforcement", owner_references::build),
    on("PersistentVolumeClaimResize", storage::resize),
    on("RuntimeClass", runtime_class::build),
    on("CertificateApproval", certificates::approval),
    on("CertificateSigning", certificates::signing),
    on("ClusterTrustBundleAttest", certificates::attest),
    on("CertificateSubjectRestriction", certificates::subject_restriction),
    on("DefaultIngressClass", default_ingress_class::build),
    off("DenyServiceExternalIPs", deny_service_external_ips::build),
    on("PodTopologyLabels", pod_topology_labels::build),
    brought("MutatingAdmissionPolicy", true),
    brought("MutatingAdmissionWebhook", true),
    brought("ValidatingAdmissionPolicy", true),
    brought("ValidatingAdmissionWebhook", true),
    on("ResourceQuota", quota::build),
    off("AlwaysDeny", always::deny),
];

const fn on(name: &'static str, build: Build) -> Registration {
    Registration { name, default: true, build: Some(build) }
}

const fn off(name: &'static str, build: Build) -> Registration {
    Registration { name, default: false, build: Some(build) }
}

const fn brought(name: &'static str, default: bool) -> Registration {
    Registration { name, default, build: None }
}

/// Whether a request is about `resource` of `group` itself, not a subresource.
fn is(wanted: (&str, &str), resource: &GroupResource, subresource: &str) -> bool {
    subresource.is_empty() && resource.group == wanted.0 && resource.resource == wanted.1
}

fn creates_or_updates(operation: Operation) -> bool {
    matches!(operation, Operation::Create | Operation::Update)
}

/// The list at `path`, made if it is missing; everything on the way becomes an object.
fn list_mut<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Vec<Value> {
    let at = field_mut(value, path);
    if !at.is_array() {
        *at = Value::Array(Vec::new());
    }
    at.as_array_mut().expect("made a list just above")
}

/// The object at `path`, made if it is missing.
fn map_mut<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let at = field_mut(value, path);
    if !at.is_object() {
        *at = Value::Object(Map::new());
    }
    at.as_object_mut().expect("made an object just above")
}

fn field_mut<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Value {
    path.iter().fold(value, |at, &field| {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        &mut at[field]
    })
}

/// The lists of containers a pod may have.
const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Runs `change` on every container; absent lists stay absent.
fn each_container_mut(pod: &mut Value, mut change: impl FnMut(&mut Value)) {
    for field in CONTAINER_LISTS {
        if let Some(containers) = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut) {
            containers.iter_mut().for_each(&mut change);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use meta::names::{GroupVersionKind, GroupVersionResource};
    use serde_json::json;

    use super::*;
    use crate::admission::AdmissionRequest;
    use crate::admission::chain::{Chain, Context};
    use crate::attributes::UserInfo;
    use crate::authn::system_clock;
    use crate::authz::union::AlwaysAllow;
    use crate::objects::ObjectExt as _;
    use crate::testing::FakeObjects;

    pub(crate) fn context(objects: &[(&str, Value)]) -> Context {
        context_of(&FakeObjects::with(objects))
    }

    pub(crate) fn context_of(store: &Arc<FakeObjects>) -> Context {
        Context {
            objects: store.clone(),
            writer: store.clone(),
            authorizer: Arc::new(AlwaysAllow),
            clock: system_clock(),
            configuration: BTreeMap::new(),
        }
    }

    /// A request on `pods`, `pods/status` or `certificatesigningrequests.certificates.k8s.io/approval`; `kind`
    /// comes from the object.
    pub(crate) fn request(operation: Operation, target: &str, object: Value, old: Value) -> AdmissionRequest {
        let (resource, subresource) = target.split_once('/').unwrap_or((target, ""));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let known = if object.is_null() { &old } else { &object };
        let kind = known["kind"].as_str().unwrap_or_default().to_owned();
        AdmissionRequest {
            operation,
            kind: GroupVersionKind::new(group.to_owned(), "v1", kind),
            resource: GroupVersionResource {
                group: group.to_owned().into(),
                version: "v1".into(),
                resource: resource.to_owned().into(),
            },
            subresource: subresource.to_owned(),
            namespace: known.namespace().to_owned(),
            name: known.name().to_owned(),
            user: Arc::new(UserInfo::new("alice", &[])),
            dry_run: false,
            options: json!({}),
            object,
            old_object: Arc::new(old),
            warnings: Vec::new(),
            audit_annotations: BTreeMap::new(),
        }
    }

    /// Runs one plugin alone: both phases, if it handles the request.
    pub(crate) async fn run(
        context: &Context,
        plugin: &str,
        request: &mut AdmissionRequest,
    ) -> Result<(), String> {
        let disabled: Vec<String> =
            PLUGINS.iter().map(|row| row.name.to_owned()).filter(|name| name != plugin).collect();
        let chain =
            Chain::new(context, &[plugin.to_owned()], &disabled, &[]).map_err(|error| error.to_string())?;
        chain.admit(request).await.map_err(|error| error.to_string())?;
        chain.validate(request).await.map_err(|error| error.to_string())
    }

    /// The created object as the plugin leaves it, or its refusal.
    pub(crate) async fn create(
        context: &Context,
        plugin: &str,
        target: &str,
        object: Value,
    ) -> Result<Value, String> {
        let mut request = request(Operation::Create, target, object, Value::Null);
        run(context, plugin, &mut request).await?;
        Ok(request.object)
    }
}
