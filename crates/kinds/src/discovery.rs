//! The discovery documents: which groups, versions and resources there are.
//!
//! Pure functions over rows, so that custom resources and aggregated groups take part like built-in ones. The
//! documents are in canonical form; [`schema::canonical::to_vec`] writes them in Go's field order.

use std::cmp::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schema::types::Text;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::groups;
use crate::spec::{KindSpec, SubresourceSpec, VersionSpec};

/// Priorities that custom resources get.
const CUSTOM_GROUP_PRIORITY: i32 = 1_000;
const CUSTOM_VERSION_PRIORITY: i32 = 100;

/// A group and its versions, with the priorities that order them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupEntry {
    /// Empty for the core group.
    pub name: String,
    pub priority: i32,
    pub versions: Vec<VersionEntry>,
}

/// A version of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionEntry {
    pub name: String,
    pub priority: i32,
}

/// The groups of these rows, in discovery's order.
pub fn group_entries(specs: &[&KindSpec]) -> Vec<GroupEntry> {
    let mut entries: Vec<GroupEntry> = Vec::new();
    for spec in specs {
        let known = groups().iter().find(|group| *group.name == *spec.group);
        let index = entries.iter().position(|entry| *entry.name == *spec.group).unwrap_or_else(|| {
            let priority = known.map_or(CUSTOM_GROUP_PRIORITY, |group| group.priority);
            entries.push(GroupEntry { name: spec.group.to_string(), priority, versions: Vec::new() });
            entries.len() - 1
        });
        for version in spec.versions.iter() {
            if entries[index].versions.iter().any(|entry| *entry.name == *version.version) {
                continue;
            }
            let known =
                known.and_then(|group| group.versions.iter().find(|(name, _)| *name == &*version.version));
            let priority = known.map_or(CUSTOM_VERSION_PRIORITY, |(_, priority)| *priority);
            entries[index].versions.push(VersionEntry { name: version.version.to_string(), priority });
        }
    }
    sort_groups(&mut entries);
    entries
}

/// Puts groups and their versions into discovery's order: by priority, then groups by name and versions by age.
pub fn sort_groups(entries: &mut [GroupEntry]) {
    entries.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
    for entry in entries {
        entry
            .versions
            .sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| compare_versions(&b.name, &a.name)));
    }
}

/// Orders versions as upstream does, the older or less stable first: `v1alpha1 < v1beta1 < v1 < v2`, and names
/// of any other form before all of them.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

/// Stability (alpha, beta, stable), major, minor.
fn parse_version(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let number = |text: &str| (!text.starts_with('0')).then(|| text.parse().ok()).flatten();
    for (stability, word) in [(1, "beta"), (0, "alpha")] {
        if let Some((major, minor)) = rest.split_once(word) {
            return Some((stability, number(major)?, number(minor)?));
        }
    }
    Some((2, number(rest)?, 0))
}

/// `/api`
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `/apis`: every group but core.
pub fn api_group_list(entries: &[GroupEntry]) -> Value {
    let groups: Vec<Value> =
        entries.iter().filter(|entry| !entry.name.is_empty()).map(group_fields).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`
pub fn api_group(entry: &GroupEntry) -> Value {
    let mut group = group_fields(entry);
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    group
}

fn group_fields(entry: &GroupEntry) -> Value {
    let version = |version: &VersionEntry| json!({"groupVersion": group_version(&entry.name, &version.name), "version": version.name});
    let versions: Vec<Value> = entry.versions.iter().map(version).collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": entry.name, "versions": versions, "preferredVersion": preferred})
}

/// `/api/v1` and `/apis/GROUP/VERSION`; `None` when no row has the version.
pub fn resource_list(specs: &[&KindSpec], group: &str, version: &str) -> Option<Value> {
    let rows = rows(specs, group, version);
    if rows.is_empty() {
        return None;
    }
    let mut resources = Vec::new();
    for (spec, row) in rows {
        resources.push(resource(specs, spec, row));
        resources.extend(row.subresources.iter().map(|subresource| {
            let mut object = Map::new();
            object.insert("name".to_owned(), json!(format!("{}/{}", spec.resource, subresource.name)));
            object.insert("singularName".to_owned(), json!(""));
            object.insert("namespaced".to_owned(), json!(spec.namespaced));
            if !subresource.version.is_empty() {
                object.insert("group".to_owned(), json!(&*subresource.group));
                object.insert("version".to_owned(), json!(&*subresource.version));
            }
            object.insert("kind".to_owned(), json!(&*subresource.kind));
            object.insert("verbs".to_owned(), strings(&subresource.verbs));
            Value::Object(object)
        }));
    }
    let mut list = json!({
        "kind": "APIResourceList",
        "groupVersion": group_version(group, version),
        "resources": resources,
    });
    // The core group's list is from before lists named their version.
    if !group.is_empty() {
        list["apiVersion"] = json!("v1");
    }
    Some(list)
}

fn resource(specs: &[&KindSpec], spec: &KindSpec, row: &VersionSpec) -> Value {
    let mut object = json!({
        "name": &*spec.resource,
        "singularName": &*spec.singular,
        "namespaced": spec.namespaced,
        "kind": &*spec.kind,
        "verbs": strings(&row.verbs),
    });
    if !spec.short_names.is_empty() {
        object["shortNames"] = strings(&spec.short_names);
    }
    if !spec.categories.is_empty() {
        object["categories"] = strings(&spec.categories);
    }
    if let Some(hash) = storage_version_hash(specs, spec) {
        object["storageVersionHash"] = json!(hash);
    }
    object
}

/// Tells clients when the version that objects are stored in changes; `None` when nothing is stored.
pub fn storage_version_hash(specs: &[&KindSpec], spec: &KindSpec) -> Option<String> {
    let stored = match &spec.stored_as {
        Some((group, resource)) => {
            specs.iter().find(|other| other.group == *group && other.resource == *resource)?
        }
        None => spec,
    };
    let storage = stored.versions.get(stored.storage_version)?;
    if !storage.verbs.iter().any(|verb| *verb == *"watch") {
        return None;
    }
    let text = format!("{}/{}/{}", stored.group, storage.version, stored.kind);
    Some(STANDARD.encode(&Sha256::digest(text.as_bytes())[..8]))
}

/// The document of aggregated discovery at `/api` (core only) or `/apis` (all others), from its items.
pub fn aggregated_list(api_version: &str, items: Vec<Value>) -> Value {
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}, "items": items})
}

/// One group of aggregated discovery.
pub fn aggregated_group(specs: &[&KindSpec], entry: &GroupEntry) -> Value {
    let version = |version: &VersionEntry| {
        let resources = rows(specs, &entry.name, &version.name).into_iter();
        let resources: Vec<Value> = resources.map(|(spec, row)| aggregated_resource(spec, row)).collect();
        json!({"version": version.name, "resources": resources, "freshness": "Current"})
    };
    let versions: Vec<Value> = entry.versions.iter().map(version).collect();
    let metadata = if entry.name.is_empty() { json!({}) } else { json!({"name": entry.name}) };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(spec: &KindSpec, row: &VersionSpec) -> Value {
    let mut object = json!({
        "resource": &*spec.resource,
        "responseKind": {"group": &*spec.group, "version": &*row.version, "kind": &*spec.kind},
        "scope": if spec.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": &*spec.singular,
        "verbs": strings(&row.verbs),
    });
    if !spec.short_names.is_empty() {
        object["shortNames"] = strings(&spec.short_names);
    }
    if !spec.categories.is_empty() {
        object["categories"] = strings(&spec.categories);
    }
    if !row.subresources.is_empty() {
        let subresource = |subresource: &SubresourceSpec| {
            let own = subresource.version.is_empty();
            let group = if own { &spec.group } else { &subresource.group };
            let version = if own { &row.version } else { &subresource.version };
            json!({
                "subresource": &*subresource.name,
                "responseKind": {"group": &**group, "version": &**version, "kind": &*subresource.kind},
                "verbs": strings(&subresource.verbs),
            })
        };
        object["subresources"] = row.subresources.iter().map(subresource).collect();
    }
    object
}

/// The rows of a group version, by plural.
fn rows<'a>(specs: &[&'a KindSpec], group: &str, version: &str) -> Vec<(&'a KindSpec, &'a VersionSpec)> {
    let of_group = specs.iter().filter(|spec| *spec.group == *group);
    let mut rows: Vec<_> = of_group.filter_map(|spec| Some((*spec, spec.version(version)?))).collect();
    rows.sort_by(|(a, _), (b, _)| a.resource.as_str().cmp(b.resource.as_str()));
    rows
}

/// `v1` or `apps/v1`.
pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn strings(texts: &[Text]) -> Value {
    texts.iter().map(|text| Value::from(text.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;

    fn all() -> Vec<&'static KindSpec> {
        builtin().iter().collect()
    }

    #[test]
    fn groups_stand_in_upstreams_order() {
        let names: Vec<String> = group_entries(&all()).into_iter().map(|entry| entry.name).collect();
        assert_eq!(
            names[..5],
            ["apiregistration.k8s.io", "", "apps", "events.k8s.io", "authentication.k8s.io"]
        );
        assert_eq!(names.last().map(String::as_str), Some("resource.k8s.io"));
        let autoscaling = group_entries(&all()).into_iter().find(|entry| entry.name == "autoscaling");
        let group = api_group(&autoscaling.expect("autoscaling"));
        assert_eq!(group["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(group["versions"][1]["version"], "v1");
    }

    #[test]
    fn versions_order_by_stability_then_number() {
        let mut versions = ["foo10", "v1", "v3beta1", "v12alpha1", "v11alpha2", "v10", "foo1", "v2", "v01"];
        versions.sort_by(|a, b| compare_versions(b, a));
        assert_eq!(
            versions,
            ["v10", "v2", "v1", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10", "v01"]
        );
    }

    #[test]
    fn storage_version_hashes_are_upstreams() {
        let known = [
            ("", "pods", Some("xPOwRZ+Yhw8=")),
            ("", "bindings", None),
            ("", "componentstatuses", None),
            ("apps", "deployments", Some("8aSe+NMegvE=")),
            ("autoscaling", "horizontalpodautoscalers", Some("qwQve8ut294=")),
            ("events.k8s.io", "events", Some("r2yiGXH7wu8=")),
            ("discovery.k8s.io", "endpointslices", Some("qgS0xkrxYAI=")),
            ("policy", "poddisruptionbudgets", Some("EVWiDmWqyJw=")),
            ("flowcontrol.apiserver.k8s.io", "flowschemas", Some("GJVAJZSZBIw=")),
            ("authorization.k8s.io", "subjectaccessreviews", None),
        ];
        for (group, resource, hash) in known {
            let spec = crate::find(group, resource).expect(resource);
            assert_eq!(storage_version_hash(&all(), spec).as_deref(), hash, "{group}/{resource}");
        }
    }

    #[test]
    fn a_resource_list_names_resources_and_subresources() {
        let list = resource_list(&all(), "apps", "v1").expect("apps/v1");
        let resources = list["resources"].as_array().expect("resources");
        let names: Vec<&str> = resources.iter().filter_map(|resource| resource["name"].as_str()).collect();
        assert_eq!(names[..4], ["controllerrevisions", "daemonsets", "daemonsets/status", "deployments"]);
        let deployments = &resources[3];
        assert_eq!(deployments["shortNames"], json!(["deploy"]));
        assert_eq!(deployments["singularName"], "deployment");
        let scale = resources.iter().find(|resource| resource["name"] == "deployments/scale").expect("scale");
        let expected = json!({
            "name": "deployments/scale", "singularName": "", "namespaced": true, "group": "autoscaling",
            "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"],
        });
        assert_eq!(*scale, expected);
        assert_eq!(resource_list(&all(), "apps", "v2"), None);
    }

    #[test]
    fn aggregated_discovery_matches_its_schema() {
        let specs = all();
        let items: Vec<Value> =
            group_entries(&specs).iter().map(|entry| aggregated_group(&specs, entry)).collect();
        let list = aggregated_list("apidiscovery.k8s.io/v2", items);
        let schema = crate::schema_of("io.k8s.api.apidiscovery.v2.APIGroupDiscoveryList").expect("a schema");
        let mut normal = list.clone();
        schema::canonical::normalize(&mut normal, schema);
        assert_eq!(normal, list);
        let core = &list["items"][1]["versions"][0]["resources"];
        let pods = core.as_array().expect("core").iter().find(|resource| resource["resource"] == "pods");
        let eviction = pods.expect("pods")["subresources"].as_array().expect("subresources");
        let eviction = eviction.iter().find(|subresource| subresource["subresource"] == "eviction");
        let kind = json!({"group": "policy", "version": "v1", "kind": "Eviction"});
        assert_eq!(eviction.expect("eviction")["responseKind"], kind);
    }
}
