//! Nobody grants what they do not hold: checks on writes of roles and bindings.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use super::rbac::{GROUP, Rbac, role_ref_of, rules_of};
use super::{Authorizer, Rule};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::attributes::{Attributes, UserInfo};
use crate::authn::PRIVILEGED_GROUP;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

/// The check as the last step of admission: an object is as it will be stored.
pub struct NoEscalation {
    pub rbac: Arc<Rbac>,
    pub authorizer: Arc<dyn Authorizer>,
}

impl fmt::Debug for NoEscalation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NoEscalation").finish_non_exhaustive()
    }
}

#[async_trait]
impl AdmissionPlugin for NoEscalation {
    fn name(&self) -> &'static str {
        "NoEscalation"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && resource.group == GROUP
            && subresource.is_empty()
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let old = (request.operation == Operation::Update).then_some(&*request.old_object);
        let resource = request.group_resource();
        confirm_no_escalation(&self.rbac, &*self.authorizer, &request.user, &resource, &request.object, old)
            .await
    }
}

/// Refuses a create (`old` is `None`) or update of a Role, ClusterRole, RoleBinding or ClusterRoleBinding that
/// would give anyone more than `user` holds.
pub async fn confirm_no_escalation(
    rbac: &Rbac,
    authorizer: &dyn Authorizer,
    user: &Arc<UserInfo>,
    resource: &GroupResource,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    if resource.group != GROUP || user.in_group(PRIVILEGED_GROUP) {
        return Ok(());
    }
    let checked: &[&str] = match &*resource.resource {
        "roles" | "clusterroles" => &["rules", "aggregationRule"],
        "rolebindings" | "clusterrolebindings" => &["roleRef", "subjects"],
        _ => return Ok(()),
    };
    // Labels, owners and finalizers grant nothing.
    if old.is_some_and(|old| checked.iter().all(|field| old.get(field) == new.get(field))) {
        return Ok(());
    }
    let check = Check { rbac, authorizer, user, resource, namespace: new.namespace(), name: new.name() };
    match &*resource.resource {
        "roles" | "clusterroles" => check.role(new).await,
        _ => check.binding(new).await,
    }
}

struct Check<'a> {
    rbac: &'a Rbac,
    authorizer: &'a dyn Authorizer,
    user: &'a Arc<UserInfo>,
    resource: &'a GroupResource,
    namespace: &'a str,
    name: &'a str,
}

impl Check<'_> {
    async fn role(&self, role: &Value) -> Result<(), ApiError> {
        if self.may("escalate", &self.resource.resource, self.name).await {
            return Ok(());
        }
        self.holds(&rules_of(role)).map_err(|why| ApiError::forbidden(self.resource, self.name, &why))?;
        if role.get("aggregationRule").is_some_and(|rule| !rule.is_null()) {
            let all = || vec!["*".to_owned()];
            let everything = [
                Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
            ];
            let why = "must have cluster-admin privileges to use an aggregationRule";
            self.holds(&everything).map_err(|_| ApiError::forbidden(self.resource, self.name, why))?;
        }
        Ok(())
    }

    async fn binding(&self, binding: &Value) -> Result<(), ApiError> {
        let role_ref = role_ref_of(binding);
        let resource = if role_ref.kind == "Role" { "roles" } else { "clusterroles" };
        if self.may("bind", resource, &role_ref.name).await {
            return Ok(());
        }
        let rules = self
            .rbac
            .role_rules(&role_ref, self.namespace)
            .ok_or_else(|| ApiError::not_found(&GroupResource::new(GROUP, resource), &role_ref.name))?;
        self.holds(&rules).map_err(|why| ApiError::forbidden(self.resource, self.name, &why))
    }

    async fn may(&self, verb: &str, resource: &str, name: &str) -> bool {
        let attributes = Attributes {
            user: self.user.clone(),
            verb: verb.to_owned(),
            resource_request: true,
            api_group: GROUP.to_owned(),
            api_version: "*".to_owned(),
            resource: resource.to_owned(),
            namespace: self.namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        self.authorizer.authorize(&attributes).await.is_allowed()
    }

    /// The text that says what of `wanted` the user does not hold.
    fn holds(&self, wanted: &[Rule]) -> Result<(), String> {
        let (held, errors) = self.rbac.policy_rules(self.user, self.namespace);
        let missing = uncovered(&held, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let mut descriptions: Vec<String> = compact(missing).iter().map(describe).collect();
        descriptions.sort();
        descriptions.dedup();
        let mut text = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            self.user.username,
            quoted(&self.user.groups),
            descriptions.join("\n")
        );
        if !errors.is_empty() {
            text.push_str(&format!("; resolution errors: [{}]", errors.join(", ")));
        }
        Err(text)
    }
}

/// The parts of `wanted`, each with one verb, group, resource and name, that no held rule covers.
pub(crate) fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted.iter().flat_map(break_down).filter(|part| !held.iter().any(|rule| covers(rule, part))).collect()
}

fn break_down(rule: &Rule) -> Vec<Rule> {
    let one = |text: &String| vec![text.clone()];
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let part = Rule {
                    verbs: one(verb),
                    api_groups: one(group),
                    resources: one(resource),
                    ..Rule::default()
                };
                if rule.resource_names.is_empty() {
                    parts.push(part);
                    continue;
                }
                parts.extend(
                    rule.resource_names.iter().map(|name| Rule { resource_names: one(name), ..part.clone() }),
                );
            }
        }
        parts.extend(rule.non_resource_urls.iter().map(|url| Rule {
            verbs: one(verb),
            non_resource_urls: one(url),
            ..Rule::default()
        }));
    }
    parts
}

/// `part` comes from [`break_down`].
fn covers(rule: &Rule, part: &Rule) -> bool {
    let in_list = |list: &[String], wanted: &[String]| {
        list.iter().any(|item| item == "*") || wanted.iter().all(|item| list.contains(item))
    };
    let resources = rule.resources.iter().any(|item| item == "*")
        || part.resources.iter().all(|wanted| {
            let subresource = wanted.split_once('/').map(|(_, subresource)| format!("*/{subresource}"));
            rule.resources.iter().any(|item| item == wanted || Some(item) == subresource.as_ref())
        });
    let names = if part.resource_names.is_empty() {
        rule.resource_names.is_empty()
    } else {
        rule.resource_names.is_empty() || in_list(&rule.resource_names, &part.resource_names)
    };
    let urls = part
        .non_resource_urls
        .iter()
        .all(|wanted| rule.non_resource_urls.iter().any(|item| super::rbac::url_matches(item, wanted)));
    in_list(&rule.verbs, &part.verbs)
        && in_list(&rule.api_groups, &part.api_groups)
        && resources
        && names
        && urls
}

/// Joins the verbs of parts that agree in all else.
fn compact(parts: Vec<Rule>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for part in parts {
        let same = rules.iter_mut().find(|rule| {
            part.non_resource_urls.is_empty()
                && rule.api_groups == part.api_groups
                && rule.resources == part.resources
                && rule.resource_names == part.resource_names
                && rule.non_resource_urls.is_empty()
        });
        match same {
            Some(rule) => rule.verbs.extend(part.verbs),
            None => rules.push(part),
        }
    }
    rules
}

fn describe(rule: &Rule) -> String {
    let fields = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = fields
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted(list)))
        .collect();
    format!("{{{}}}", parts.join(", "))
}

fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::FakeObjects;

    async fn check(
        held: Value,
        resource: &'static str,
        new: Value,
        old: Option<Value>,
    ) -> Result<(), String> {
        let subject = json!([{"kind": "User", "name": "bob"}]);
        let objects = FakeObjects::with(&[
            ("clusterroles.rbac.authorization.k8s.io", json!({"metadata": {"name": "held"}, "rules": held})),
            (
                "clusterroles.rbac.authorization.k8s.io",
                json!({"metadata": {"name": "pods"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
            ),
            (
                "clusterrolebindings.rbac.authorization.k8s.io",
                json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "held"}, "subjects": subject}),
            ),
        ]);
        let rbac = Rbac::new(objects);
        let user = Arc::new(UserInfo::new("bob", &["dev", "ops"]));
        let resource = GroupResource::new(GROUP, resource);
        confirm_no_escalation(&rbac, &rbac, &user, &resource, &new, old.as_ref())
            .await
            .map_err(|e| e.to_string())
    }

    fn role(rules: Value) -> Value {
        json!({"metadata": {"name": "new", "namespace": "a"}, "rules": rules})
    }

    #[tokio::test]
    async fn only_held_permissions_can_be_granted() {
        let held = json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/scale"]}]);
        let within = role(
            json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"]}]),
        );
        assert_eq!(check(held.clone(), "roles", within, None).await, Ok(()));
        let scale = role(
            json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["replicationcontrollers/scale"]}]),
        );
        assert_eq!(check(held.clone(), "roles", scale, None).await, Ok(()));
        let more =
            role(json!([{"verbs": ["get", "delete", "watch"], "apiGroups": [""], "resources": ["pods"]}]));
        assert_eq!(
            check(held.clone(), "roles", more.clone(), None).await.unwrap_err(),
            "roles.rbac.authorization.k8s.io \"new\" is forbidden: user \"bob\" (groups=[\"dev\" \"ops\"]) is attempting \
             to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"watch\"]}"
        );
        assert_eq!(check(held, "roles", more.clone(), Some(more)).await, Ok(()));
    }

    #[tokio::test]
    async fn escalate_bind_and_cluster_admin_lift_the_check() {
        let escalate = json!([{"verbs": ["escalate"], "apiGroups": [GROUP], "resources": ["roles"]}]);
        let nodes = role(json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]}]));
        assert_eq!(check(escalate, "roles", nodes.clone(), None).await, Ok(()));
        let bind = json!([{"verbs": ["bind"], "apiGroups": [GROUP], "resources": ["clusterroles"]}]);
        let binding =
            json!({"metadata": {"name": "new"}, "roleRef": {"kind": "ClusterRole", "name": "pods"}});
        assert_eq!(check(bind, "clusterrolebindings", binding.clone(), None).await, Ok(()));
        assert!(check(json!([]), "clusterrolebindings", binding, None).await.is_err());
        let absent = json!({"metadata": {"name": "new"}, "roleRef": {"kind": "ClusterRole", "name": "gone"}});
        assert_eq!(
            check(json!([]), "clusterrolebindings", absent, None).await.unwrap_err(),
            "clusterroles.rbac.authorization.k8s.io \"gone\" not found"
        );
        let aggregated =
            json!({"metadata": {"name": "new"}, "aggregationRule": {"clusterRoleSelectors": []}});
        assert!(
            check(json!([]), "clusterroles", aggregated, None)
                .await
                .unwrap_err()
                .ends_with("must have cluster-admin privileges to use an aggregationRule")
        );
    }
}
