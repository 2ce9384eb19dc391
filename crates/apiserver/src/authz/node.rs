//! The Node authorizer: a kubelet reads only what the pods bound to its node need.
//!
//! Relations are followed from the request: which pods are on the node, and do they lead to the object? The answer
//! for a node is kept until a pod changes.

use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use meta::names::GroupResource;
use meta::selector::FieldSelector;
use serde_json::Value;

use super::pod_references::PodReferences;
use super::{Authorizer, Decision, Rule};
use crate::attributes::{Attributes, UserInfo};
use crate::authn::node_identity;
use crate::objects::{ObjectExt as _, Objects};

/// Annotation of a pod that mirrors a static pod of the kubelet itself.
pub const MIRROR_POD_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Nodes whose relations are kept.
const CACHE_CAPACITY: usize = 8_192;

/// The Node mode.
pub struct NodeAuthorizer {
    objects: Arc<dyn Objects>,
    /// What every node may do beside: the rules of the role `system:node`.
    rules: Vec<Rule>,
    relations: Mutex<HashMap<String, (u64, Arc<Relations>)>>,
}

/// Objects the pods of one node name, as namespace and name.
#[derive(Default)]
struct Relations {
    pods: HashSet<(String, String)>,
    secrets: HashSet<(String, String)>,
    config_maps: HashSet<(String, String)>,
    claims: HashSet<(String, String)>,
    resource_claims: HashSet<(String, String)>,
    accounts: HashSet<(String, String)>,
}

impl fmt::Debug for NodeAuthorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeAuthorizer").finish_non_exhaustive()
    }
}

impl NodeAuthorizer {
    /// `rules` are those of the bootstrap role `system:node`.
    pub fn new(objects: Arc<dyn Objects>, rules: Vec<Rule>) -> Self {
        Self { objects, rules, relations: Mutex::default() }
    }

    fn decide(&self, node: &str, request: &Attributes) -> Decision {
        if request.resource_request {
            let verb = request.verb.as_str();
            match (request.api_group.as_str(), request.resource.as_str()) {
                ("", "secrets" | "configmaps") => return self.read_namespaced(node, request),
                ("", "persistentvolumeclaims") if request.subresource == "status" => {
                    return match verb {
                        "update" | "patch" => self.related(node, request),
                        _ => no("can only get/update/patch this type"),
                    };
                }
                ("", "persistentvolumeclaims" | "persistentvolumes")
                | ("resource.k8s.io", "resourceclaims")
                | ("storage.k8s.io", "volumeattachments") => return self.get(node, request),
                ("", "serviceaccounts") => return self.service_account(node, request),
                ("coordination.k8s.io", "leases") => return lease(node, request),
                ("storage.k8s.io", "csinodes") => return csi_node(node, request),
                ("resource.k8s.io", "resourceslices") => return self.resource_slice(node, request),
                ("", "nodes") => return own_node(node, request),
                ("", "pods") => return self.pod(node, request),
                _ => {}
            }
        }
        if self.rules.iter().any(|rule| rule.allows(request)) { allow() } else { no("") }
    }

    fn get(&self, node: &str, request: &Attributes) -> Decision {
        if request.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !request.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(node, request)
    }

    fn read_namespaced(&self, node: &str, request: &Attributes) -> Decision {
        if !request.is_read_only() {
            return no("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, request)
    }

    fn service_account(&self, node: &str, request: &Attributes) -> Decision {
        if request.verb == "get" && request.subresource.is_empty() {
            return self.related(node, request);
        }
        if request.verb != "create" || request.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if request.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(node, request)
    }

    fn resource_slice(&self, node: &str, request: &Attributes) -> Decision {
        if !request.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match request.verb.as_str() {
            // NodeRestriction checks the node named in the new object.
            "create" => allow(),
            "get" | "update" | "patch" | "delete" => self.related(node, request),
            "list" | "watch" | "deletecollection" => {
                if selects(request, "spec.nodeName", node) {
                    return allow();
                }
                no("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                 delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, request: &Attributes) -> Decision {
        match (request.subresource.as_str(), request.verb.as_str()) {
            ("", "get") => self.related(node, request),
            ("", "list" | "watch") if selects(request, "spec.nodeName", node) => allow(),
            ("", "list" | "watch") if !request.name.is_empty() => self.related(node, request),
            ("", "list" | "watch") => no("can only list/watch pods with spec.nodeName field selector"),
            // NodeRestriction limits these to mirror pods and to pods of the node.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => allow(),
            _ => no(""),
        }
    }

    fn related(&self, node: &str, request: &Attributes) -> Decision {
        if request.name.is_empty() {
            return no("No Object name found");
        }
        if self.is_related(node, &request.resource, &request.namespace, &request.name) {
            return allow();
        }
        Decision::NoOpinion(format!("no relationship found between node '{node}' and this object"))
    }

    fn is_related(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let get = |group: &'static str, resource: &'static str, namespace: &str, name: &str| {
            self.objects.get(&GroupResource::new(group, resource), namespace, name)
        };
        match resource {
            "volumeattachments" => {
                return get("storage.k8s.io", "volumeattachments", "", name)
                    .is_some_and(|attachment| attachment.str_at(&["spec", "nodeName"]) == node);
            }
            "resourceslices" => {
                return get("resource.k8s.io", "resourceslices", "", name)
                    .is_some_and(|slice| slice.str_at(&["spec", "nodeName"]) == node);
            }
            _ => {}
        }
        let relations = self.relations(node);
        let key = (namespace.to_owned(), name.to_owned());
        match resource {
            "pods" => relations.pods.contains(&key),
            "configmaps" => relations.config_maps.contains(&key),
            "persistentvolumeclaims" => relations.claims.contains(&key),
            "resourceclaims" => relations.resource_claims.contains(&key),
            "serviceaccounts" => relations.accounts.contains(&key),
            "persistentvolumes" => get("", "persistentvolumes", "", name).is_some_and(|volume| {
                let claim = |field| volume.str_at(&["spec", "claimRef", field]).to_owned();
                relations.claims.contains(&(claim("namespace"), claim("name")))
            }),
            "secrets" => {
                relations.secrets.contains(&key)
                    || relations.claims.iter().any(|(claim_namespace, claim)| {
                        get("", "persistentvolumeclaims", claim_namespace, claim)
                            .and_then(|claim| {
                                get("", "persistentvolumes", "", claim.str_at(&["spec", "volumeName"]))
                            })
                            .is_some_and(|volume| volume_names_secret(&volume, claim_namespace, &key))
                    })
            }
            _ => false,
        }
    }

    fn relations(&self, node: &str) -> Arc<Relations> {
        let pods = GroupResource::new("", "pods");
        let version = self.objects.version(&pods);
        {
            let known = self.relations.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((of, relations)) = known.get(node)
                && *of == version
            {
                return relations.clone();
            }
        }
        let bound = self.objects.list_by_field(&pods, None, &["spec", "nodeName"], node);
        let relations = Arc::new(Relations::of(&bound));
        let mut known = self.relations.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CACHE_CAPACITY {
            known.clear();
        }
        match known.entry(node.to_owned()) {
            Entry::Occupied(newer) if newer.get().0 > version => {}
            Entry::Occupied(mut older) => {
                older.insert((version, relations.clone()));
            }
            Entry::Vacant(empty) => {
                empty.insert((version, relations.clone()));
            }
        }
        relations
    }
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        match node_identity(&attributes.user) {
            None => Decision::NoOpinion(String::new()),
            Some("") => Decision::NoOpinion(format!("unknown node for user {:?}", attributes.user.username)),
            Some(node) => self.decide(node, attributes),
        }
    }

    /// A node's permissions depend on its pods and cannot be listed.
    async fn rules_for(&self, user: &UserInfo, _namespace: &str) -> (Vec<Rule>, bool) {
        (Vec::new(), node_identity(user).is_some())
    }
}

impl Relations {
    fn of(pods: &[Arc<Value>]) -> Self {
        let mut found = Self::default();
        for pod in pods {
            let namespace = pod.namespace();
            let key = |name: String| (namespace.to_owned(), name);
            found.pods.insert(key(pod.name().to_owned()));
            // A mirror pod is the kubelet's own word: it opens nothing.
            if pod.annotation(MIRROR_POD_ANNOTATION).is_some() {
                continue;
            }
            let references = PodReferences::of(pod);
            found.secrets.extend(references.secrets.into_iter().map(key));
            found.config_maps.extend(references.config_maps.into_iter().map(key));
            found.claims.extend(references.claims.into_iter().map(key));
            found.resource_claims.extend(references.resource_claims.into_iter().map(key));
            let account = pod.str_at(&["spec", "serviceAccountName"]);
            if !account.is_empty() {
                found.accounts.insert(key(account.to_owned()));
            }
        }
        found
    }
}

/// Leases of nodes, each node its own.
fn lease(node: &str, request: &Attributes) -> Decision {
    if !matches!(request.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    // The name of a new lease is not known yet; NodeRestriction checks it.
    if request.verb != "create" && request.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    allow()
}

fn csi_node(node: &str, request: &Attributes) -> Decision {
    if !matches!(request.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if request.verb != "create" && request.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    allow()
}

fn own_node(node: &str, request: &Attributes) -> Decision {
    match (request.subresource.as_str(), request.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allow(),
        ("", "get" | "list" | "watch") => {
            if request.name == node || selects(request, "metadata.name", node) {
                return allow();
            }
            Decision::NoOpinion(if request.name.is_empty() {
                format!("node '{node}' cannot read all nodes, only its own Node object")
            } else {
                format!("node '{node}' cannot read '{}', only its own Node object", request.name)
            })
        }
        _ => no(""),
    }
}

fn volume_names_secret(volume: &Value, claim_namespace: &str, key: &(String, String)) -> bool {
    const CSI: [&str; 4] =
        ["controllerPublishSecretRef", "nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"];
    const OTHERS: [&str; 7] = ["cephfs", "cinder", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"];
    let names = |reference: &[&str], name_field: &str, namespace_field: &str| {
        let at = |field| {
            let path: Vec<&str> = ["spec"].iter().chain(reference).copied().chain([field]).collect();
            volume.str_at(&path).to_owned()
        };
        let namespace = Some(at(namespace_field)).filter(|own| !own.is_empty());
        at(name_field) == key.1 && namespace.as_deref().unwrap_or(claim_namespace) == key.0
    };
    CSI.iter().any(|field| names(&["csi", field], "name", "namespace"))
        || OTHERS.iter().any(|source| names(&[source, "secretRef"], "name", "namespace"))
        || names(&["azureFile"], "secretName", "secretNamespace")
}

/// Whether the field selector demands `field=value`.
fn selects(request: &Attributes, field: &str, value: &str) -> bool {
    FieldSelector::parse(&request.field_selector)
        .is_ok_and(|selector| selector.required_value(field) == Some(value))
}

fn allow() -> Decision {
    Decision::Allow(String::new())
}

fn no(reason: &str) -> Decision {
    Decision::NoOpinion(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::FakeObjects;

    fn cluster() -> Arc<FakeObjects> {
        FakeObjects::with(&[
            (
                "pods",
                json!({
                    "metadata": {"namespace": "a", "name": "p"},
                    "spec": {
                        "nodeName": "one", "serviceAccountName": "robot",
                        "imagePullSecrets": [{"name": "pull"}],
                        "containers": [{"envFrom": [{"configMapRef": {"name": "env"}}]}],
                        "volumes": [
                            {"name": "v", "secret": {"secretName": "mounted"}},
                            {"name": "w", "persistentVolumeClaim": {"claimName": "disk"}},
                            {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}},
                        ],
                    },
                }),
            ),
            (
                "pods",
                json!({
                    "metadata": {"namespace": "a", "name": "mirror", "annotations": {MIRROR_POD_ANNOTATION: "x"}},
                    "spec": {"nodeName": "one", "volumes": [{"name": "v", "secret": {"secretName": "stolen"}}]},
                }),
            ),
            (
                "persistentvolumeclaims",
                json!({"metadata": {"namespace": "a", "name": "disk"}, "spec": {"volumeName": "pv"}}),
            ),
            (
                "persistentvolumes",
                json!({"metadata": {"name": "pv"}, "spec": {
                    "claimRef": {"namespace": "a", "name": "disk"},
                    "csi": {"nodePublishSecretRef": {"namespace": "storage", "name": "csi"}},
                }}),
            ),
            (
                "volumeattachments.storage.k8s.io",
                json!({"metadata": {"name": "va"}, "spec": {"nodeName": "one"}}),
            ),
        ])
    }

    fn ask(node: &str, request: &str) -> Attributes {
        let words: Vec<&str> = request.split(' ').collect();
        let (resource, subresource) = words[1].split_once('/').unwrap_or((words[1], ""));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let (namespace, name) = words[2].split_once('/').unwrap_or((words[2], ""));
        Attributes {
            user: Arc::new(UserInfo::new(format!("system:node:{node}"), &["system:nodes"])),
            verb: words[0].to_owned(),
            resource_request: true,
            api_group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            field_selector: words.get(3).copied().unwrap_or_default().to_owned(),
            ..Attributes::default()
        }
    }

    #[tokio::test]
    async fn nodes_reach_only_what_their_pods_name() {
        let rule = Rule {
            verbs: vec!["list".to_owned()],
            api_groups: vec![String::new()],
            resources: vec!["services".to_owned()],
            ..Rule::default()
        };
        let authorizer = NodeAuthorizer::new(cluster(), vec![rule]);
        for (request, one, two) in [
            ("get secrets a/mounted", true, false),
            ("watch secrets a/pull", true, false),
            ("get secrets b/mounted", false, false),
            ("get secrets a/stolen", false, false),
            ("get secrets storage/csi", true, false),
            ("list secrets a", false, false),
            ("delete secrets a/mounted", false, false),
            ("get configmaps a/env", true, false),
            ("get persistentvolumeclaims a/disk", true, false),
            ("get persistentvolumeclaims a/p-e", true, false),
            ("patch persistentvolumeclaims/status a/disk", true, false),
            ("get persistentvolumes /pv", true, false),
            ("get volumeattachments.storage.k8s.io /va", true, false),
            ("create serviceaccounts/token a/robot", true, false),
            ("create serviceaccounts/token a/other", false, false),
            ("get pods a/p", true, false),
            ("list pods / spec.nodeName=one", true, false),
            ("list pods /", false, false),
            ("patch pods/status a/p", true, true),
            ("get nodes /one", true, false),
            ("list nodes /", false, false),
            ("watch nodes / metadata.name=two", false, true),
            ("update leases.coordination.k8s.io kube-node-lease/one", true, false),
            ("update leases.coordination.k8s.io kube-system/one", false, false),
            ("create csinodes.storage.k8s.io /", true, true),
            ("list services /", true, true),
            ("create services a/x", false, false),
        ] {
            for (node, allowed) in [("one", one), ("two", two)] {
                let decision = authorizer.authorize(&ask(node, request)).await;
                assert_eq!(decision.is_allowed(), allowed, "{node}: {request}: {decision:?}");
            }
        }
    }

    #[tokio::test]
    async fn access_ends_with_the_pod_and_is_for_nodes_only() {
        let objects = cluster();
        let authorizer = NodeAuthorizer::new(objects.clone(), Vec::new());
        let mut request = ask("one", "get secrets a/mounted");
        assert!(authorizer.authorize(&request).await.is_allowed());
        objects.remove("pods", "a", "p");
        assert_eq!(
            authorizer.authorize(&request).await.reason(),
            "no relationship found between node 'one' and this object"
        );
        request.user = Arc::new(UserInfo::new("system:node:one", &[]));
        assert_eq!(authorizer.authorize(&request).await.reason(), "");
    }
}
