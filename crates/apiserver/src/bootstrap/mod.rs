//! What a cluster starts with: namespaces, default policy, priority classes, flow control, and the objects that
//! describe the API server. Made when missing, put right when they have drifted; [`reconcile`] writes only what
//! differs, all of it at once.

pub mod flowcontrol;
pub mod policy;
mod system;

use std::net::IpAddr;

use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use meta::names::GroupResource;
use serde_json::{Map, Value, json};

use crate::authn::request_header::RequestHeaderOptions;
use crate::authz::escalation::uncovered;
use crate::authz::rbac::{self, rules_of};
use crate::objects::{ObjectExt as _, Objects, Writer};
use crate::status::ApiError;

/// An object the cluster should have, in its stored version.
pub type BootstrapObject = (GroupResource, Value);

/// `false` on a role or binding keeps the server from putting it right.
pub(crate) const AUTOUPDATE_ANNOTATION: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Writes under way at once: the store commits what is queued together.
const CONCURRENT_WRITES: usize = 256;

/// What the objects depend on.
#[derive(Debug, Clone)]
pub struct BootstrapOptions {
    /// Cluster IP of the `kubernetes` service.
    pub service_ip: IpAddr,
    pub service_cidrs: Vec<String>,
    /// Where the API server is reached.
    pub advertise_address: IpAddr,
    pub port: u16,
    /// PEM of the client authorities.
    pub client_ca: Option<String>,
    /// PEM of the front proxy's authorities, and its headers.
    pub request_header: Option<(String, RequestHeaderOptions)>,
    pub now: Timestamp,
}

/// Every object a fresh cluster has.
pub fn objects(options: &BootstrapOptions) -> Vec<BootstrapObject> {
    let mut objects = system::namespaces();
    objects.extend(policy::objects());
    objects.extend(flowcontrol::objects());
    objects.extend(system::objects(options));
    objects
}

/// Brings the live objects to what they should be. An object that cannot be written does not keep the others from
/// it; the first error is returned.
pub async fn reconcile(
    options: &BootstrapOptions,
    objects: &dyn Objects,
    writer: &dyn Writer,
) -> Result<(), ApiError> {
    // Namespaced objects need their namespaces.
    write_all(system::namespaces(), objects, writer).await?;
    let mut rest = policy::objects();
    rest.extend(flowcontrol::objects());
    rest.extend(system::objects(options));
    write_all(rest, objects, writer).await
}

/// What has to be written for one object.
#[derive(Debug, PartialEq)]
enum Change {
    Nothing,
    Create(Value),
    Update(Value),
    /// A binding's role cannot be changed in place.
    Replace(Value),
}

async fn write_all(
    wanted: Vec<BootstrapObject>,
    objects: &dyn Objects,
    writer: &dyn Writer,
) -> Result<(), ApiError> {
    let writes = wanted.into_iter().map(|(resource, object)| async move {
        let live = objects.get(&resource, object.namespace(), object.name());
        match change(&resource, live.as_deref(), object) {
            Change::Nothing => Ok(()),
            Change::Create(object) => create(writer, &resource, object).await,
            Change::Update(object) => writer.update(&resource, object).await.map(|_| ()),
            Change::Replace(object) => {
                writer.delete(&resource, object.namespace(), object.name()).await?;
                create(writer, &resource, object).await
            }
        }
    });
    let results: Vec<Result<(), ApiError>> =
        stream::iter(writes).buffer_unordered(CONCURRENT_WRITES).collect().await;
    results.into_iter().collect()
}

/// Another server may have been faster.
async fn create(writer: &dyn Writer, resource: &GroupResource, object: Value) -> Result<(), ApiError> {
    match writer.create(resource, object).await {
        Err(error) if error.reason() == "AlreadyExists" => Ok(()),
        result => result.map(|_| ()),
    }
}

fn change(resource: &GroupResource, live: Option<&Value>, wanted: Value) -> Change {
    let Some(live) = live else { return Change::Create(wanted) };
    if live.is_terminating() {
        return Change::Nothing;
    }
    let mut merged = live.clone();
    match (&*resource.group, &*resource.resource) {
        (rbac::GROUP, _) if live.annotation(AUTOUPDATE_ANNOTATION) == Some("false") => {}
        (rbac::GROUP, "clusterroles" | "roles") => merge_role(&mut merged, &wanted),
        (rbac::GROUP, _) if live.get("roleRef") != wanted.get("roleRef") => return Change::Replace(wanted),
        (rbac::GROUP, _) => merge_binding(&mut merged, &wanted),
        (flowcontrol::GROUP, _) => merge_flow_control(&mut merged, &wanted),
        ("", "configmaps") => merge_field(&mut merged, &wanted, "data"),
        ("", "endpoints") => merged["subsets"] = wanted["subsets"].clone(),
        ("discovery.k8s.io", _) => {
            for field in ["addressType", "endpoints", "ports"] {
                merged[field] = wanted[field].clone();
            }
        }
        // Namespaces, priority classes, the service and its range: the user's once they are there.
        _ => {}
    }
    if merged == *live { Change::Nothing } else { Change::Update(merged) }
}

/// Adds what is missing; more than the default is the user's choice.
fn merge_role(live: &mut Value, wanted: &Value) {
    merge_metadata(live, wanted);
    if let Some(selectors) = wanted.at(&["aggregationRule", "clusterRoleSelectors"]).and_then(Value::as_array)
    {
        let rule = &mut live["aggregationRule"]["clusterRoleSelectors"];
        add_missing(rule, selectors);
    }
    let missing = uncovered(&rules_of(live), &rules_of(wanted));
    if missing.is_empty() {
        return;
    }
    // Whole default rules are added, as they read in the policy, rather than their missing parts.
    let held = rules_of(live);
    let rules: Vec<Value> = wanted["rules"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter(|rule| !uncovered(&held, &rules_of(&json!({"rules": [rule]}))).is_empty())
        .cloned()
        .collect();
    add_missing(&mut live["rules"], &rules);
}

fn merge_binding(live: &mut Value, wanted: &Value) {
    merge_metadata(live, wanted);
    if let Some(subjects) = wanted.get("subjects").and_then(Value::as_array) {
        add_missing(&mut live["subjects"], subjects);
    }
}

/// The spec is the server's while the annotation says so. Mandatory objects always are.
fn merge_flow_control(live: &mut Value, wanted: &Value) {
    let mandatory = matches!(wanted.name(), "exempt" | "catch-all");
    if !mandatory && live.annotation(flowcontrol::AUTOUPDATE_ANNOTATION) != Some("true") {
        return;
    }
    // `exempt` may be tuned: its numbers are the user's.
    if wanted.name() == "exempt" && wanted.at(&["spec", "type"]).is_some() {
        return;
    }
    live["spec"] = wanted["spec"].clone();
}

fn merge_metadata(live: &mut Value, wanted: &Value) {
    for field in ["labels", "annotations"] {
        if let Some(Value::Object(entries)) = wanted.at(&["metadata", field]) {
            let own = live.metadata_mut().entry(field).or_insert_with(|| Value::Object(Map::new()));
            for (key, value) in entries {
                own[key] = value.clone();
            }
        }
    }
}

fn merge_field(live: &mut Value, wanted: &Value, field: &str) {
    if let Some(Value::Object(entries)) = wanted.get(field) {
        for (key, value) in entries {
            live[field][key] = value.clone();
        }
    }
}

fn add_missing(list: &mut Value, items: &[Value]) {
    if !list.is_array() {
        *list = json!([]);
    }
    if let Value::Array(list) = list {
        for item in items {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;

    fn options() -> BootstrapOptions {
        BootstrapOptions {
            service_ip: "10.96.0.1".parse().unwrap(),
            service_cidrs: vec!["10.96.0.0/12".to_owned()],
            advertise_address: "192.0.2.2".parse().unwrap(),
            port: 6443,
            client_ca: Some("CA".to_owned()),
            request_header: Some(("PROXY".to_owned(), RequestHeaderOptions::default())),
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn role(name: &str) -> (GroupResource, String) {
        (GroupResource::new(rbac::GROUP, "clusterroles"), name.to_owned())
    }

    #[tokio::test]
    async fn a_second_start_writes_nothing() {
        let store = FakeObjects::with(&[]);
        reconcile(&options(), store.as_ref(), store.as_ref()).await.unwrap();
        assert_eq!(store.writes(), u64::try_from(objects(&options()).len()).unwrap());
        let writes = store.writes();
        reconcile(&options(), store.as_ref(), store.as_ref()).await.unwrap();
        assert_eq!(store.writes(), writes);
    }

    #[tokio::test]
    async fn drifted_policy_is_put_right_and_additions_stay() {
        let store = FakeObjects::with(&[]);
        let (roles, name) = role("system:kube-dns");
        store.put(
            "clusterroles.rbac.authorization.k8s.io",
            json!({
                "metadata": {"name": name, "labels": {"mine": "x"}},
                "rules": [{"verbs": ["get"], "apiGroups": ["x"], "resources": ["y"]}],
            }),
        );
        store.put(
            "clusterrolebindings.rbac.authorization.k8s.io",
            json!({
                "metadata": {"name": "cluster-admin"},
                "roleRef": {"apiGroup": rbac::GROUP, "kind": "ClusterRole", "name": "view"},
            }),
        );
        store.put(
            "clusterroles.rbac.authorization.k8s.io",
            json!({"metadata": {"name": "system:basic-user", "annotations": {AUTOUPDATE_ANNOTATION: "false"}}, "rules": []}),
        );
        reconcile(&options(), store.as_ref(), store.as_ref()).await.unwrap();
        let dns = store.get(&roles, "", &name).unwrap();
        assert_eq!(dns["rules"].as_array().unwrap().len(), 2);
        assert_eq!(dns["metadata"]["labels"]["mine"], "x");
        assert_eq!(dns["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
        let bindings = GroupResource::new(rbac::GROUP, "clusterrolebindings");
        let admin = store.get(&bindings, "", "cluster-admin").unwrap();
        assert_eq!(admin["roleRef"]["name"], "cluster-admin");
        assert_eq!(store.get(&roles, "", "system:basic-user").unwrap()["rules"], json!([]));
    }

    #[tokio::test]
    async fn a_new_address_moves_the_endpoints() {
        let store = FakeObjects::with(&[]);
        reconcile(&options(), store.as_ref(), store.as_ref()).await.unwrap();
        let moved = BootstrapOptions { advertise_address: "192.0.2.9".parse().unwrap(), ..options() };
        reconcile(&moved, store.as_ref(), store.as_ref()).await.unwrap();
        let endpoints = store.get(&GroupResource::new("", "endpoints"), "default", "kubernetes").unwrap();
        assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "192.0.2.9");
    }
}
