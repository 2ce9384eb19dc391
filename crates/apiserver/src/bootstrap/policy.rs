//! The default RBAC policy as objects, made from the compact table in `policy.txt`.

use meta::names::GroupResource;
use serde_json::{Value, json};

use super::BootstrapObject;
use crate::authz::Rule;
use crate::authz::rbac::GROUP;

const POLICY: &str = include_str!("policy.txt");
const AGGREGATE_LABEL: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// Every default role and binding.
pub fn objects() -> Vec<BootstrapObject> {
    let mut objects = Vec::new();
    for line in POLICY.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["clusterrole", name, options @ ..] => objects.push(cluster_role(name, options)),
            ["role", namespace, name] => objects.push(role("roles", "Role", namespace, name)),
            ["clusterrolebinding", name, of] => {
                objects.push(binding(
                    "clusterrolebindings",
                    "ClusterRoleBinding",
                    "",
                    name,
                    "ClusterRole",
                    of,
                ));
            }
            ["rolebinding", namespace, name, of] => {
                objects.push(binding("rolebindings", "RoleBinding", namespace, name, "Role", of));
            }
            ["controller", account] => {
                let name = format!("system:controller:{account}");
                let mut bound =
                    binding("clusterrolebindings", "ClusterRoleBinding", "", &name, "ClusterRole", &name);
                push(&mut bound.1, "subjects", service_account("kube-system", account));
                objects.push(bound);
                objects.push(cluster_role(&name, &[]));
            }
            [subject @ ("user" | "group" | "serviceaccount"), name] => {
                add_to_last(&mut objects, "subjects", subject_of(subject, name));
            }
            rule => add_to_last(&mut objects, "rules", rule_of(rule)),
        }
    }
    objects
}

/// What every node may do; the Node authorizer's rules beside its graph.
pub fn node_rules() -> Vec<Rule> {
    let node = objects().into_iter().find(|(resource, role)| {
        resource.resource == "clusterroles" && role["metadata"]["name"] == "system:node"
    });
    node.map(|(_, role)| crate::authz::rbac::rules_of(&role)).unwrap_or_default()
}

fn cluster_role(name: &str, options: &[&str]) -> BootstrapObject {
    let (resource, mut role) = role("clusterroles", "ClusterRole", "", name);
    for option in options {
        if let Some(to) = option.strip_prefix("label=") {
            role["metadata"]["labels"][format!("{AGGREGATE_LABEL}{to}")] = "true".into();
        }
        if let Some(to) = option.strip_prefix("aggregate=") {
            let mut labels = json!({});
            labels[format!("{AGGREGATE_LABEL}{to}")] = "true".into();
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
        }
    }
    (resource, role)
}

fn role(resource: &'static str, kind: &str, namespace: &str, name: &str) -> BootstrapObject {
    (GroupResource::new(GROUP, resource), with_metadata(kind, namespace, name, json!({"rules": null})))
}

fn binding(
    resource: &'static str,
    kind: &str,
    namespace: &str,
    name: &str,
    role_kind: &str,
    role: &str,
) -> BootstrapObject {
    let role_ref = json!({"roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role}});
    (GroupResource::new(GROUP, resource), with_metadata(kind, namespace, name, role_ref))
}

fn with_metadata(kind: &str, namespace: &str, name: &str, mut object: Value) -> Value {
    object["apiVersion"] = format!("{GROUP}/v1").into();
    object["kind"] = kind.into();
    object["metadata"] = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {super::AUTOUPDATE_ANNOTATION: "true"},
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

fn subject_of(kind: &str, name: &str) -> Value {
    match (kind, name.split_once('/')) {
        ("serviceaccount", Some((namespace, name))) => service_account(namespace, name),
        ("user", _) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        _ => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
    }
}

fn service_account(namespace: &str, name: &str) -> Value {
    json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
}

fn rule_of(words: &[&str]) -> Value {
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    match words {
        ["-", paths, verbs] => json!({"verbs": verbs_of(verbs), "nonResourceURLs": list(paths)}),
        [groups, resources, verbs, names @ ..] => {
            let groups: Vec<String> = list(groups)
                .into_iter()
                .map(|group| if group == "core" { String::new() } else { group })
                .collect();
            let mut rule =
                json!({"verbs": verbs_of(verbs), "apiGroups": groups, "resources": list(resources)});
            if let [names] = names {
                rule["resourceNames"] = list(names).into();
            }
            rule
        }
        _ => Value::Null,
    }
}

fn verbs_of(text: &str) -> Vec<&str> {
    let mut verbs: Vec<&str> = text
        .split(',')
        .flat_map(|word| match word {
            "read" => vec!["get", "list", "watch"],
            "write" => vec!["create", "delete", "deletecollection", "patch", "update"],
            verb => vec![verb],
        })
        .collect();
    verbs.sort_unstable();
    verbs
}

fn add_to_last(objects: &mut [BootstrapObject], field: &str, value: Value) {
    if let Some((_, object)) = objects.last_mut() {
        push(object, field, value);
    }
}

fn push(object: &mut Value, field: &str, value: Value) {
    match &mut object[field] {
        Value::Array(list) => list.push(value),
        empty => *empty = json!([value]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use super::*;
    use crate::attributes::{Attributes, UserInfo};
    use crate::authz::Authorizer as _;
    use crate::authz::rbac::{Rbac, rules_of};
    use crate::testing::FakeObjects;

    #[test]
    fn every_object_is_whole_and_there_once() {
        let mut seen = HashSet::new();
        for (resource, object) in objects() {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            assert!(seen.insert((
                resource.clone(),
                object["metadata"]["namespace"].clone().to_string(),
                name.clone()
            )));
            if resource.resource.ends_with("roles") && object.get("aggregationRule").is_none() {
                assert!(!rules_of(&object).is_empty(), "{name}");
            }
            for rule in rules_of(&object) {
                let resources = !rule.api_groups.is_empty() && !rule.resources.is_empty();
                assert!(
                    !rule.verbs.is_empty() && (resources == rule.non_resource_urls.is_empty()),
                    "{name}: {rule:?}"
                );
            }
        }
    }

    /// Who may do what in a fresh cluster.
    #[tokio::test]
    async fn default_users_may_do_their_work_and_no_more() {
        let store = FakeObjects::with(&[]);
        for (resource, object) in objects() {
            store.put(&resource.to_string(), object);
        }
        let rbac = Rbac::new(store);
        for (user, groups, verb, what, allowed) in [
            ("alice", &["system:authenticated"][..], "list", "/pods", false),
            (
                "alice",
                &["system:authenticated"],
                "create",
                "authorization.k8s.io/selfsubjectaccessreviews",
                true,
            ),
            ("alice", &["system:masters"], "delete", "/nodes", true),
            ("system:anonymous", &["system:unauthenticated"], "list", "/pods", false),
            ("system:kube-scheduler", &[], "create", "/pods/binding", true),
            ("system:kube-scheduler", &[], "delete", "/pods", true),
            ("system:kube-scheduler", &[], "create", "/pods", false),
            ("system:kube-scheduler", &[], "list", "/secrets", false),
            ("system:kube-controller-manager", &[], "list", "apps/deployments", true),
            ("system:kube-controller-manager", &[], "delete", "/pods", false),
            ("system:kube-proxy", &[], "watch", "discovery.k8s.io/endpointslices", true),
            ("system:kube-proxy", &[], "list", "/pods", false),
            ("system:serviceaccount:kube-system:job-controller", &[], "create", "/pods", true),
            ("system:serviceaccount:kube-system:job-controller", &[], "update", "apps/deployments", false),
            ("system:serviceaccount:default:job-controller", &[], "create", "/pods", false),
            (
                "system:serviceaccount:kube-system:namespace-controller",
                &[],
                "deletecollection",
                "x.io/anything",
                true,
            ),
            ("system:node:n", &["system:nodes"], "get", "/secrets", false),
        ] {
            let (group, resource) = what.split_once('/').unwrap();
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let attributes = Attributes {
                user: Arc::new(UserInfo::new(user, groups)),
                verb: verb.to_owned(),
                resource_request: true,
                api_group: group.to_owned(),
                resource: resource.to_owned(),
                subresource: subresource.to_owned(),
                ..Attributes::default()
            };
            assert_eq!(rbac.authorize(&attributes).await.is_allowed(), allowed, "{user} {verb} {what}");
        }
    }
}
