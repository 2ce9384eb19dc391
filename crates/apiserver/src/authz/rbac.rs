//! Role based access control, over an index of the live roles and bindings that is rebuilt when they change.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use super::{Authorizer, Decision, Rule};
use crate::attributes::{Attributes, UserInfo};
use crate::authn::SERVICE_ACCOUNT_USER_PREFIX;
use crate::objects::{ObjectExt as _, Objects};

pub const GROUP: &str = "rbac.authorization.k8s.io";
const ALL: &str = "*";

/// The RBAC mode.
pub struct Rbac {
    objects: Arc<dyn Objects>,
    resources: Resources,
    index: ArcSwap<Index>,
    /// Only one request builds a new index; the others wait for it.
    building: Mutex<()>,
}

struct Resources {
    cluster_roles: GroupResource,
    roles: GroupResource,
    cluster_bindings: GroupResource,
    bindings: GroupResource,
}

/// Versions of the four resources an index was built from.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Versions {
    cluster_roles: u64,
    roles: u64,
    cluster_bindings: u64,
    bindings: u64,
}

struct Index {
    versions: Option<Versions>,
    /// By namespace (empty for cluster roles) and name.
    cluster_roles: Arc<RoleTable>,
    roles: Arc<RoleTable>,
    cluster_bindings: Arc<Grants>,
    bindings: Arc<HashMap<String, Grants>>,
}

type RoleTable = HashMap<String, HashMap<String, Arc<Role>>>;

struct Role {
    resource_version: String,
    rules: Vec<Rule>,
}

/// Bindings by whom they bind.
#[derive(Default)]
struct Grants {
    by_user: HashMap<String, Vec<Grant>>,
    by_group: HashMap<String, Vec<Grant>>,
}

/// One subject of one binding.
#[derive(Clone)]
struct Grant {
    binding: Arc<Binding>,
    /// As upstream prints it: `Group "system:masters"`.
    subject: Arc<str>,
}

struct Binding {
    namespace: String,
    name: String,
    role_ref: RoleRef,
}

/// What a binding grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleRef {
    pub kind: String,
    pub name: String,
}

impl fmt::Debug for Rbac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rbac").finish_non_exhaustive()
    }
}

impl Rbac {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        let resource = |name: &'static str| GroupResource::new(GROUP, name);
        let resources = Resources {
            cluster_roles: resource("clusterroles"),
            roles: resource("roles"),
            cluster_bindings: resource("clusterrolebindings"),
            bindings: resource("rolebindings"),
        };
        let empty = Index {
            versions: None,
            cluster_roles: Arc::default(),
            roles: Arc::default(),
            cluster_bindings: Arc::default(),
            bindings: Arc::default(),
        };
        Self { objects, resources, index: ArcSwap::from_pointee(empty), building: Mutex::default() }
    }

    /// All rules `user` holds in `namespace` (empty: cluster-wide), and the errors met on the way.
    pub fn policy_rules(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let index = self.current();
        let mut rules = Vec::new();
        let mut errors = Vec::new();
        index.visit(user, namespace, |_, role| {
            match role {
                Ok(role) => rules.extend(role.rules.iter().cloned()),
                Err(error) => errors.push(error),
            }
            true
        });
        (rules, errors)
    }

    /// The rules a role reference stands for; `None` if there is no such role.
    pub fn role_rules(&self, role_ref: &RoleRef, namespace: &str) -> Option<Vec<Rule>> {
        self.current().role(role_ref, namespace).map(|role| role.rules.clone())
    }

    fn current(&self) -> arc_swap::Guard<Arc<Index>> {
        let versions = self.versions();
        let index = self.index.load();
        if index.versions == Some(versions) {
            return index;
        }
        let _building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let index = self.index.load();
        // Read again: what is listed below may be newer than this, never older.
        let versions = self.versions();
        if index.versions != Some(versions) {
            self.index.store(Arc::new(self.build(&index, versions)));
        }
        self.index.load()
    }

    fn versions(&self) -> Versions {
        Versions {
            cluster_roles: self.objects.version(&self.resources.cluster_roles),
            roles: self.objects.version(&self.resources.roles),
            cluster_bindings: self.objects.version(&self.resources.cluster_bindings),
            bindings: self.objects.version(&self.resources.bindings),
        }
    }

    /// Keeps what has not changed: whole tables by version, roles by their resource version.
    fn build(&self, old: &Index, versions: Versions) -> Index {
        let same =
            |of: fn(&Versions) -> u64| old.versions.as_ref().is_some_and(|known| of(known) == of(&versions));
        Index {
            versions: Some(versions),
            cluster_roles: if same(|v| v.cluster_roles) {
                old.cluster_roles.clone()
            } else {
                Arc::new(self.role_table(&self.resources.cluster_roles, &old.cluster_roles))
            },
            roles: if same(|v| v.roles) {
                old.roles.clone()
            } else {
                Arc::new(self.role_table(&self.resources.roles, &old.roles))
            },
            cluster_bindings: if same(|v| v.cluster_bindings) {
                old.cluster_bindings.clone()
            } else {
                let mut all = self.grants(&self.resources.cluster_bindings);
                Arc::new(all.remove("").unwrap_or_default())
            },
            bindings: if same(|v| v.bindings) {
                old.bindings.clone()
            } else {
                Arc::new(self.grants(&self.resources.bindings))
            },
        }
    }

    fn role_table(&self, resource: &GroupResource, old: &RoleTable) -> RoleTable {
        let mut table = RoleTable::new();
        for object in self.objects.list(resource, None) {
            let (namespace, name) = (object.namespace(), object.name());
            let known = old.get(namespace).and_then(|roles| roles.get(name));
            let role = match known {
                Some(known) if known.resource_version == object.resource_version() => known.clone(),
                _ => Arc::new(Role {
                    resource_version: object.resource_version().to_owned(),
                    rules: rules_of(&object),
                }),
            };
            table.entry(namespace.to_owned()).or_default().insert(name.to_owned(), role);
        }
        table
    }

    fn grants(&self, resource: &GroupResource) -> HashMap<String, Grants> {
        let mut all: HashMap<String, Grants> = HashMap::new();
        for object in self.objects.list(resource, None) {
            let namespace = object.namespace();
            let binding = Arc::new(Binding {
                namespace: namespace.to_owned(),
                name: object.name().to_owned(),
                role_ref: role_ref_of(&object),
            });
            let grants = all.entry(namespace.to_owned()).or_default();
            let subjects = object.get("subjects").and_then(Value::as_array).map(Vec::as_slice);
            for subject in subjects.unwrap_or_default() {
                grants.add(subject, &binding);
            }
        }
        all
    }
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        let index = self.current();
        let mut allowed = None;
        let mut errors = Vec::new();
        index.visit(&attributes.user, &attributes.namespace, |grant, role| {
            match role {
                Ok(role) if role.rules.iter().any(|rule| rule.allows(attributes)) => {
                    allowed = Some(grant.reason());
                    return false;
                }
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
            true
        });
        match allowed {
            Some(reason) => Decision::Allow(reason),
            None if errors.is_empty() => Decision::NoOpinion(String::new()),
            None => Decision::NoOpinion(format!("RBAC: {}", aggregate(&errors))),
        }
    }

    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, bool) {
        let (rules, errors) = self.policy_rules(user, namespace);
        (rules, !errors.is_empty())
    }
}

impl Index {
    /// Calls `visitor` with every role bound to the user, cluster-wide ones first, until it says no.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visitor: impl FnMut(&Grant, Result<&Role, String>) -> bool,
    ) {
        let local = if namespace.is_empty() { None } else { self.bindings.get(namespace) };
        for grants in std::iter::once(&*self.cluster_bindings).chain(local) {
            let of_user = grants.by_user.get(&user.username).into_iter();
            let of_groups = user.groups.iter().filter_map(|group| grants.by_group.get(group));
            for grant in of_user.chain(of_groups).flatten() {
                let role_ref = &grant.binding.role_ref;
                let role = self.role(role_ref, &grant.binding.namespace).ok_or_else(|| {
                    format!("{}.{GROUP} {:?} not found", role_ref.kind.to_lowercase(), role_ref.name)
                });
                if !visitor(grant, role) {
                    return;
                }
            }
        }
    }

    fn role(&self, role_ref: &RoleRef, namespace: &str) -> Option<&Role> {
        let roles = match role_ref.kind.as_str() {
            "ClusterRole" => self.cluster_roles.get("")?,
            "Role" => self.roles.get(namespace)?,
            _ => return None,
        };
        roles.get(&role_ref.name).map(Arc::as_ref)
    }
}

impl Grants {
    fn add(&mut self, subject: &Value, binding: &Arc<Binding>) {
        let (kind, name) = (subject.str_at(&["kind"]), subject.str_at(&["name"]));
        let grant = |subject: String| Grant { binding: binding.clone(), subject: subject.into() };
        match kind {
            "User" => {
                self.by_user.entry(name.to_owned()).or_default().push(grant(format!("User {name:?}")));
            }
            "Group" => {
                self.by_group.entry(name.to_owned()).or_default().push(grant(format!("Group {name:?}")));
            }
            "ServiceAccount" => {
                let own = subject.str_at(&["namespace"]);
                let namespace = if own.is_empty() { binding.namespace.as_str() } else { own };
                if !namespace.is_empty() {
                    let user = format!("{SERVICE_ACCOUNT_USER_PREFIX}{namespace}:{name}");
                    let text = format!("ServiceAccount \"{name}/{namespace}\"");
                    self.by_user.entry(user).or_default().push(grant(text));
                }
            }
            _ => {}
        }
    }
}

impl Grant {
    fn reason(&self) -> String {
        let Binding { namespace, name, role_ref } = &*self.binding;
        let RoleRef { kind, name: role } = role_ref;
        let subject = &self.subject;
        if namespace.is_empty() {
            format!("RBAC: allowed by ClusterRoleBinding {name:?} of {kind} {role:?} to {subject}")
        } else {
            format!("RBAC: allowed by RoleBinding \"{name}/{namespace}\" of {kind} {role:?} to {subject}")
        }
    }
}

impl Rule {
    /// Whether this rule covers the request.
    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !has(&self.verbs, &attributes.verb) {
            return false;
        }
        if !attributes.resource_request {
            return self.non_resource_urls.iter().any(|rule| url_matches(rule, &attributes.path));
        }
        has(&self.api_groups, &attributes.api_group)
            && self
                .resources
                .iter()
                .any(|rule| resource_matches(rule, &attributes.resource, &attributes.subresource))
            && (self.resource_names.is_empty() || self.resource_names.contains(&attributes.name))
    }
}

/// The rules of a Role or ClusterRole.
pub fn rules_of(role: &Value) -> Vec<Rule> {
    let rules = role.get("rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    rules.iter().map(rule_of).collect()
}

/// `roleRef` of a binding.
pub fn role_ref_of(binding: &Value) -> RoleRef {
    RoleRef {
        kind: binding.str_at(&["roleRef", "kind"]).to_owned(),
        name: binding.str_at(&["roleRef", "name"]).to_owned(),
    }
}

fn rule_of(rule: &Value) -> Rule {
    let strings = |field: &str| -> Vec<String> {
        let list = rule.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    Rule {
        verbs: strings("verbs"),
        api_groups: strings("apiGroups"),
        resources: strings("resources"),
        resource_names: strings("resourceNames"),
        non_resource_urls: strings("nonResourceURLs"),
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

/// `pods`, `pods/log`, `*/scale` or `*`.
fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == ALL {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    rule.split_once('/').is_some_and(|(of, sub)| sub == subresource && (of == ALL || of == resource))
}

/// An exact path, or a prefix with a trailing `*`.
pub(super) fn url_matches(rule: &str, path: &str) -> bool {
    rule == ALL || rule == path || (rule.ends_with(ALL) && path.starts_with(rule.trim_end_matches('*')))
}

/// Several errors in one text, as upstream aggregates them: duplicates once.
fn aggregate(errors: &[String]) -> String {
    let mut seen: Vec<&str> = Vec::new();
    for error in errors {
        if !seen.contains(&error.as_str()) {
            seen.push(error);
        }
    }
    match seen.as_slice() {
        [one] => (*one).to_owned(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::FakeObjects;

    fn cluster() -> Arc<FakeObjects> {
        let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
        let binding = |name: &str, role: &str, subject: Value| json!({"metadata": {"name": name}, "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": [subject]});
        let cluster_roles = "clusterroles.rbac.authorization.k8s.io";
        let cluster_bindings = "clusterrolebindings.rbac.authorization.k8s.io";
        FakeObjects::with(&[
            (
                cluster_roles,
                role(
                    "root",
                    json!([
                        {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
                        {"verbs": ["*"], "nonResourceURLs": ["*"]},
                    ]),
                ),
            ),
            (
                cluster_roles,
                role(
                    "reader",
                    json!([
                        {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]},
                        {"verbs": ["get"], "apiGroups": ["*"], "resources": ["*/scale"]},
                        {"verbs": ["get"], "nonResourceURLs": ["/healthz/*", "/version"]},
                        {"verbs": ["update"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["only"]},
                    ]),
                ),
            ),
            (cluster_bindings, binding("roots", "root", json!({"kind": "Group", "name": "ops"}))),
            (cluster_bindings, binding("readers", "reader", json!({"kind": "User", "name": "bob"}))),
            (cluster_bindings, binding("dangling", "gone", json!({"kind": "User", "name": "eve"}))),
            (
                "rolebindings.rbac.authorization.k8s.io",
                json!({
                    "metadata": {"namespace": "a", "name": "robots"},
                    "roleRef": {"kind": "ClusterRole", "name": "reader"},
                    "subjects": [{"kind": "ServiceAccount", "name": "robot"}],
                }),
            ),
        ])
    }

    fn ask(user: &str, request: &str) -> Attributes {
        let words: Vec<&str> = request.split(' ').collect();
        let (name, groups) = user.split_once('+').unwrap_or((user, ""));
        let groups: Vec<&str> = groups.split('+').filter(|group| !group.is_empty()).collect();
        let mut attributes = Attributes {
            user: Arc::new(UserInfo::new(name, &groups)),
            verb: words[0].to_owned(),
            ..Attributes::default()
        };
        if words[1].starts_with('/') {
            attributes.path = words[1].to_owned();
            return attributes;
        }
        attributes.resource_request = true;
        let (resource, subresource) = words[1].split_once('/').unwrap_or((words[1], ""));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        attributes.resource = resource.to_owned();
        attributes.api_group = group.to_owned();
        attributes.subresource = subresource.to_owned();
        let place = words.get(2).copied().unwrap_or("/");
        let (namespace, name) = place.split_once('/').unwrap_or((place, ""));
        attributes.namespace = namespace.to_owned();
        attributes.name = name.to_owned();
        attributes
    }

    #[tokio::test]
    async fn rules_decide_by_verb_resource_name_and_path() {
        let rbac = Rbac::new(cluster());
        for (user, request, allowed) in [
            ("bob", "get pods a/x", true),
            ("bob", "get pods/log a/x", true),
            ("bob", "get pods/exec a/x", false),
            ("bob", "delete pods a/x", false),
            ("bob", "get pods.metrics.k8s.io a/x", false),
            ("bob", "get deployments.apps/scale a/x", true),
            ("bob", "get deployments.apps a/x", false),
            ("bob", "update configmaps a/only", true),
            ("bob", "update configmaps a/other", false),
            ("bob", "get /healthz/etcd", true),
            ("bob", "get /version", true),
            ("bob", "get /versions", false),
            ("alice+ops", "delete nodes /n", true),
            ("alice+ops", "post /anything", true),
            ("alice+dev", "delete nodes /n", false),
            ("system:serviceaccount:a:robot", "list pods a", true),
            ("system:serviceaccount:a:robot", "list pods b", false),
            ("system:serviceaccount:b:robot", "list pods a", false),
            ("system:serviceaccount:a:robot", "get /version", false),
        ] {
            let decision = rbac.authorize(&ask(user, request)).await;
            assert_eq!(decision.is_allowed(), allowed, "{user}: {request}: {decision:?}");
        }
    }

    #[tokio::test]
    async fn reasons_name_the_binding() {
        let rbac = Rbac::new(cluster());
        for (user, request, reason) in [
            (
                "alice+ops",
                "get pods a/x",
                r#"RBAC: allowed by ClusterRoleBinding "roots" of ClusterRole "root" to Group "ops""#,
            ),
            (
                "system:serviceaccount:a:robot",
                "get pods a/x",
                r#"RBAC: allowed by RoleBinding "robots/a" of ClusterRole "reader" to ServiceAccount "robot/a""#,
            ),
            ("eve", "get pods a/x", r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#),
            ("mallory", "get pods a/x", ""),
        ] {
            assert_eq!(rbac.authorize(&ask(user, request)).await.reason(), reason);
        }
    }

    #[tokio::test]
    async fn changes_take_effect_at_the_next_request() {
        let objects = cluster();
        let rbac = Rbac::new(objects.clone());
        assert!(rbac.authorize(&ask("bob", "get pods a/x")).await.is_allowed());
        objects.remove("clusterrolebindings.rbac.authorization.k8s.io", "", "readers");
        assert!(!rbac.authorize(&ask("bob", "get pods a/x")).await.is_allowed());
    }
}
