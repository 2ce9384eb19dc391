//! `NodeRestriction`: a kubelet changes its own node, its own pods, and nothing that would draw work to it.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authn::node_identity;
use crate::authz::node::MIRROR_POD_ANNOTATION;
use crate::authz::pod_references::{PodReferences, list};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Labels of Kubernetes' own name space that a kubelet knows best.
const KUBELET_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

struct NodeRestriction(Context);

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(NodeRestriction(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, _subresource: &str) -> bool {
        operation != Operation::Connect
            && matches!(
                (&*resource.group, &*resource.resource),
                ("", "pods" | "nodes" | "persistentvolumeclaims" | "serviceaccounts")
                    | ("coordination.k8s.io", "leases")
                    | ("storage.k8s.io", "csinodes")
                    | ("resource.k8s.io", "resourceslices")
            )
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let user = request.user.clone();
        let Some(node) = node_identity(&user) else { return Ok(()) };
        if node.is_empty() {
            let why = format!("could not determine node from user {:?}", user.username);
            return Err(request.forbidden(&why));
        }
        let refusal = match (&*request.resource.resource, request.subresource.as_str()) {
            ("pods", "") => self.pod(node, request)?,
            ("pods", "status") => pod_status(node, request),
            ("pods", "eviction") => self.eviction(node, request)?,
            ("pods", other) => Some(format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            )),
            ("nodes", _) => node_change(node, request),
            ("persistentvolumeclaims", "status") => claim_status(node, request),
            ("persistentvolumeclaims", _) => Some("may only update PVC status".to_owned()),
            ("serviceaccounts", "token") => self.token(node, request)?,
            ("leases", _) => lease(node, request),
            ("csinodes", _) => csi_node(node, request),
            ("resourceslices", _) => resource_slice(node, request),
            _ => None,
        };
        refusal.map_or(Ok(()), |why| Err(request.forbidden(&why)))
    }
}

impl NodeRestriction {
    fn live_pod(&self, namespace: &str, name: &str) -> Result<Arc<Value>, ApiError> {
        let pods = GroupResource::new("", "pods");
        self.0.objects.get(&pods, namespace, name).ok_or_else(|| ApiError::not_found(&pods, name))
    }

    fn pod(&self, node: &str, request: &AdmissionRequest) -> Result<Option<String>, ApiError> {
        match request.operation {
            Operation::Create => self.mirror_pod(node, &request.object),
            Operation::Delete => {
                // A collection is deleted one by one: each pod is checked by itself.
                let pod = self.live_pod(&request.namespace, &request.name)?;
                let own = pod.str_at(&["spec", "nodeName"]) == node;
                Ok((!own)
                    .then(|| format!("node {node:?} can only delete pods with spec.nodeName set to itself")))
            }
            operation => Ok(Some(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                operation.as_str()
            ))),
        }
    }

    fn mirror_pod(&self, node: &str, pod: &Value) -> Result<Option<String>, ApiError> {
        let can_only = |what: &str| Ok(Some(format!("node {node:?} can only create pods with {what}")));
        if pod.annotation(MIRROR_POD_ANNOTATION).is_none() {
            return Ok(Some(format!(
                "pod does not have {MIRROR_POD_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
            )));
        }
        if pod.str_at(&["spec", "nodeName"]) != node {
            return can_only("spec.nodeName set to itself");
        }
        let owners = list(pod, &["metadata", "ownerReferences"]);
        let owner = match owners {
            [owner] => owner,
            [] => return can_only("an owner reference set to itself"),
            _ => return can_only("a single owner reference set to itself"),
        };
        let own = owner.str_at(&["apiVersion"]) == "v1"
            && owner.str_at(&["kind"]) == "Node"
            && owner.str_at(&["name"]) == node;
        if !own {
            return can_only("an owner reference set to itself");
        }
        if owner.get("controller") != Some(&Value::Bool(true)) {
            return can_only("a controller owner reference set to itself");
        }
        if owner.get("blockOwnerDeletion") == Some(&Value::Bool(true)) {
            return Ok(Some(format!("node {node:?} must not set blockOwnerDeletion on an owner reference")));
        }
        let nodes = GroupResource::new("", "nodes");
        let live = self.0.objects.get(&nodes, "", node).ok_or_else(|| ApiError::not_found(&nodes, node))?;
        let uid = owner.str_at(&["uid"]);
        if uid != live.uid() {
            return Ok(Some(format!("node {node} UID mismatch: expected {uid} got {}", live.uid())));
        }
        Ok(reference_of(pod).map(|what| format!("node {node:?} can not create pods that reference {what}")))
    }

    fn eviction(&self, node: &str, request: &AdmissionRequest) -> Result<Option<String>, ApiError> {
        if request.operation != Operation::Create {
            return Ok(Some(format!("unexpected operation {}", request.operation.as_str())));
        }
        let name = if request.name.is_empty() { request.object.name() } else { &request.name };
        if name.is_empty() {
            return Ok(Some("could not determine pod from request data".to_owned()));
        }
        let pod = self.live_pod(&request.namespace, name)?;
        let own = pod.str_at(&["spec", "nodeName"]) == node;
        Ok((!own).then(|| format!("node {node} can only evict pods with spec.nodeName set to itself")))
    }

    /// Tokens are for pods on the node only.
    fn token(&self, node: &str, request: &AdmissionRequest) -> Result<Option<String>, ApiError> {
        if request.operation != Operation::Create {
            return Ok(None);
        }
        let reference = request.object.at(&["spec", "boundObjectRef"]);
        let field = |name: &str| reference.map(|reference| reference.str_at(&[name])).unwrap_or_default();
        if field("apiVersion") != "v1" || field("kind") != "Pod" || field("name").is_empty() {
            return Ok(Some("node requested token not bound to a pod".to_owned()));
        }
        let uid = field("uid");
        if uid.is_empty() {
            return Ok(Some("node requested token with a pod binding without a uid".to_owned()));
        }
        let pod = self.live_pod(&request.namespace, field("name"))?;
        if pod.uid() != uid {
            return Ok(Some(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            )));
        }
        let own = pod.str_at(&["spec", "nodeName"]) == node;
        Ok((!own).then(|| "node requested token bound to a pod scheduled on a different node".to_owned()))
    }
}

/// What a mirror pod must not name: it would open it to the node.
fn reference_of(pod: &Value) -> Option<&'static str> {
    if !pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
        return Some("a service account");
    }
    let references = PodReferences::of(pod);
    if !references.secrets.is_empty() {
        return Some("secrets");
    }
    if !references.config_maps.is_empty() {
        return Some("configmaps");
    }
    if references.trust_bundles {
        return Some("clustertrustbundles");
    }
    if !references.claims.is_empty() {
        return Some("persistentvolumeclaims");
    }
    (!references.resource_claims.is_empty()).then_some("resourceclaims")
}

fn pod_status(node: &str, request: &AdmissionRequest) -> Option<String> {
    if request.operation != Operation::Update {
        return Some(format!("unexpected operation {:?}", request.operation.as_str()));
    }
    let (new, old) = (&request.object, &request.old_object);
    if old.str_at(&["spec", "nodeName"]) != node {
        return Some(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    if new.labels().filter(|labels| !labels.is_empty()) != old.labels().filter(|labels| !labels.is_empty()) {
        return Some(format!("node {node:?} cannot update labels through pod status"));
    }
    let claims = |pod: &Value| list(pod, &["status", "resourceClaimStatuses"]).to_vec();
    if claims(new) != claims(old) {
        return Some(format!("node {node:?} cannot update resource claim statues"));
    }
    None
}

fn node_change(node: &str, request: &AdmissionRequest) -> Option<String> {
    let name = if request.name.is_empty() { request.object.name() } else { &request.name };
    if name != node {
        return Some(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let has_source = |object: &Value| object.at(&["spec", "configSource"]).is_some_and(Value::is_object);
    let (new, old) = (&request.object, &*request.old_object);
    match request.operation {
        Operation::Create => {
            if has_source(new) {
                return Some(format!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                ));
            }
            let labels = forbidden_labels(new, old);
            (!labels.is_empty()).then(|| {
                format!("node {node:?} is not allowed to set the following labels: {}", labels.join(", "))
            })
        }
        Operation::Update => {
            if has_source(new) && new.at(&["spec", "configSource"]) != old.at(&["spec", "configSource"]) {
                return Some(format!(
                    "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            let taints = |object: &Value| list(object, &["spec", "taints"]).to_vec();
            if taints(new) != taints(old) {
                return Some(format!("node {node:?} is not allowed to modify taints"));
            }
            let owners = |object: &Value| list(object, &["metadata", "ownerReferences"]).to_vec();
            if owners(new) != owners(old) {
                return Some(format!("node {node:?} is not allowed to modify ownerReferences"));
            }
            let labels = forbidden_labels(new, old);
            (!labels.is_empty())
                .then(|| format!("node {node:?} is not allowed to modify labels: {}", labels.join(", ")))
        }
        _ => None,
    }
}

/// Labels that differ and are not the kubelet's to set.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let get = |object: &Value, key: &str| object.labels().and_then(|labels| labels.get(key)).cloned();
    let keys = [new, old].into_iter().filter_map(|object| object.labels()).flat_map(|labels| labels.keys());
    let mut forbidden: Vec<String> =
        keys.filter(|key| get(new, key) != get(old, key) && !is_kubelets(key)).cloned().collect();
    forbidden.sort();
    forbidden.dedup();
    forbidden
}

fn is_kubelets(label: &str) -> bool {
    let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
    let within = |domain: &str| {
        namespace == domain || namespace.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    within("kubelet.kubernetes.io") || within("node.kubernetes.io") || KUBELET_LABELS.contains(&label)
}

fn claim_status(node: &str, request: &AdmissionRequest) -> Option<String> {
    if request.operation != Operation::Update {
        return Some(format!("unexpected operation {:?}", request.operation.as_str()));
    }
    // What a node may report is taken out of both; the rest must be equal.
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        for field in ["resourceVersion", "managedFields"] {
            claim.metadata_mut().remove(field);
        }
        if let Some(status) = claim.get_mut("status").and_then(Value::as_object_mut) {
            for field in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
                status.remove(field);
            }
        }
        claim
    };
    (rest(&request.object) != rest(&request.old_object)).then(|| {
        format!(
            "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
        )
    })
}

fn lease(node: &str, request: &AdmissionRequest) -> Option<String> {
    if request.namespace != LEASE_NAMESPACE {
        return Some(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
    }
    let name = if request.operation == Operation::Create { request.object.name() } else { &request.name };
    (name != node).then(|| "can only access node lease with the same name as the requesting node".to_owned())
}

fn csi_node(node: &str, request: &AdmissionRequest) -> Option<String> {
    let name = if request.operation == Operation::Create { request.object.name() } else { &request.name };
    (name != node).then(|| "can only access CSINode with the same name as the requesting node".to_owned())
}

fn resource_slice(node: &str, request: &AdmissionRequest) -> Option<String> {
    let (object, verb) = match request.operation {
        Operation::Create => (&request.object, "create"),
        Operation::Delete => (&*request.old_object, "delete"),
        _ => return None,
    };
    (object.str_at(&["spec", "nodeName"]) != node)
        .then(|| format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, request, run};
    use super::*;
    use crate::attributes::UserInfo;

    async fn check(operation: Operation, target: &str, new: Value, old: Value) -> Result<(), String> {
        let context = context(&[
            ("nodes", json!({"metadata": {"name": "n", "uid": "u"}})),
            (
                "pods",
                json!({"metadata": {"namespace": "a", "name": "mine", "uid": "m"}, "spec": {"nodeName": "n"}}),
            ),
            (
                "pods",
                json!({"metadata": {"namespace": "a", "name": "other", "uid": "o"}, "spec": {"nodeName": "x"}}),
            ),
        ]);
        let mut request = request(operation, target, new, old);
        request.user = Arc::new(UserInfo::new("system:node:n", &["system:nodes"]));
        run(&context, "NodeRestriction", &mut request)
            .await
            .map_err(|error| error.split_once("forbidden: ").map_or(error.clone(), |(_, why)| why.to_owned()))
    }

    fn refused(why: &str) -> Result<(), String> {
        Err(why.to_owned())
    }

    #[tokio::test]
    async fn nodes_change_themselves_only() {
        use Operation::{Create, Update};
        let node = |name: &str, labels: Value, taints: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
        let own = node("n", json!({}), json!([]));
        assert_eq!(check(Create, "nodes", own.clone(), Value::Null).await, Ok(()));
        assert_eq!(
            check(Create, "nodes", node("x", json!({}), json!([])), Value::Null).await,
            refused(r#"node "n" is not allowed to modify node "x""#)
        );
        let labelled = node(
            "n",
            json!({"kubernetes.io/os": "linux", "acme.com/x": "y", "node.kubernetes.io/y": "z",
                   "node-role.kubernetes.io/control-plane": "", "node-restriction.kubernetes.io/a": "b"}),
            json!([]),
        );
        let names = "node-restriction.kubernetes.io/a, node-role.kubernetes.io/control-plane";
        assert_eq!(
            check(Create, "nodes", labelled.clone(), Value::Null).await,
            refused(&format!(r#"node "n" is not allowed to set the following labels: {names}"#))
        );
        assert_eq!(
            check(Update, "nodes", labelled, own.clone()).await,
            refused(&format!(r#"node "n" is not allowed to modify labels: {names}"#))
        );
        assert_eq!(
            check(Update, "nodes/status", node("n", json!({}), json!([{"key": "x"}])), own).await,
            refused(r#"node "n" is not allowed to modify taints"#)
        );
    }

    #[tokio::test]
    async fn pods_are_mirrors_or_its_own() {
        use Operation::{Create, Delete, Update};
        let mirror = |spec: Value| {
            json!({
                "metadata": {"namespace": "a", "name": "m", "annotations": {MIRROR_POD_ANNOTATION: "x"},
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}]},
                "spec": spec,
            })
        };
        assert_eq!(check(Create, "pods", mirror(json!({"nodeName": "n"})), Value::Null).await, Ok(()));
        let secret = json!({"nodeName": "n", "volumes": [{"name": "v", "secret": {"secretName": "s"}}]});
        assert_eq!(
            check(Create, "pods", mirror(secret), Value::Null).await,
            refused(r#"node "n" can not create pods that reference secrets"#)
        );
        assert_eq!(
            check(Create, "pods", mirror(json!({"nodeName": "x"})), Value::Null).await,
            refused(r#"node "n" can only create pods with spec.nodeName set to itself"#)
        );
        let old = |name: &str| json!({"metadata": {"namespace": "a", "name": name}, "spec": {"nodeName": if name == "mine" { "n" } else { "x" }}});
        assert_eq!(check(Delete, "pods", Value::Null, old("mine")).await, Ok(()));
        assert_eq!(
            check(Delete, "pods", Value::Null, old("other")).await,
            refused(r#"node "n" can only delete pods with spec.nodeName set to itself"#)
        );
        assert_eq!(check(Update, "pods/status", old("mine"), old("mine")).await, Ok(()));
        assert!(check(Update, "pods/status", old("other"), old("other")).await.is_err());
        assert!(check(Update, "pods", old("mine"), old("mine")).await.is_err());
    }

    #[tokio::test]
    async fn tokens_and_leases_are_its_own() {
        use Operation::Create;
        let token = |name: &str, uid: &str| {
            json!({"metadata": {"namespace": "a", "name": "robot"},
                   "spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}})
        };
        assert_eq!(check(Create, "serviceaccounts/token", token("mine", "m"), Value::Null).await, Ok(()));
        assert_eq!(
            check(Create, "serviceaccounts/token", token("other", "o"), Value::Null).await,
            refused("node requested token bound to a pod scheduled on a different node")
        );
        assert_eq!(
            check(Create, "serviceaccounts/token", json!({"metadata": {"namespace": "a"}}), Value::Null)
                .await,
            refused("node requested token not bound to a pod")
        );
        let lease = |name: &str| json!({"metadata": {"namespace": LEASE_NAMESPACE, "name": name}});
        assert_eq!(check(Create, "leases.coordination.k8s.io", lease("n"), Value::Null).await, Ok(()));
        assert!(check(Create, "leases.coordination.k8s.io", lease("x"), Value::Null).await.is_err());
    }
}
