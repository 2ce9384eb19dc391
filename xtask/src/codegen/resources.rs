//! From OpenAPI paths to resources: verbs, scope, subresources.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::sources::{ColumnRow, Deprecation, ResourceRow, Sources};
use super::types::TypeName;

/// A resource in all served versions.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) group: String,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) list_kind: String,
    pub(super) namespaced: bool,
    pub(super) returns_deleted: bool,
    pub(super) short_names: Vec<String>,
    pub(super) categories: Vec<String>,
    pub(super) versions: Vec<Version>,
    pub(super) storage_version: usize,
    pub(super) stored_as: Option<(String, String)>,
}

#[derive(Debug)]
pub(super) struct Version {
    pub(super) name: String,
    pub(super) verbs: Vec<String>,
    pub(super) definition: TypeName,
    pub(super) subresources: Vec<Subresource>,
    pub(super) columns: Vec<ColumnRow>,
    pub(super) selectable: Vec<String>,
    pub(super) deprecation: Option<Deprecation>,
}

#[derive(Debug)]
pub(super) struct Subresource {
    pub(super) name: String,
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) verbs: Vec<String>,
    pub(super) definition: Option<TypeName>,
}

/// What the paths say about one resource or subresource of one version.
#[derive(Debug, Default)]
struct Endpoint {
    verbs: Vec<String>,
    gvk: (String, String, String),
    list_kind: String,
    /// The definition it answers with.
    definition: Option<TypeName>,
    namespaced: bool,
    /// Deleting answers with the object.
    returns_deleted: bool,
}

pub(super) fn collect(sources: &Sources) -> Result<Vec<Resource>> {
    let mut resources = Vec::new();
    for group in &sources.kinds.group {
        let mut versions = Vec::new();
        for version in &group.versions {
            versions.push((version.name.as_str(), endpoints(sources, &group.name, &version.name)?));
        }
        let mut names: Vec<&str> =
            versions.iter().flat_map(|(_, endpoints)| endpoints.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        for name in names.into_iter().filter(|name| !name.contains('/')) {
            let resource = resource(sources, &group.name, name, &versions);
            resources.push(resource.with_context(|| format!("resource {name} of group {:?}", group.name))?);
        }
    }
    Ok(resources)
}

fn resource(
    sources: &Sources,
    group: &str,
    name: &str,
    versions: &[(&str, BTreeMap<String, Endpoint>)],
) -> Result<Resource> {
    let key = if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") };
    let empty = ResourceRow::default();
    let row = sources.kinds.resource.get(&key).unwrap_or(&empty);
    let served: Vec<_> = versions.iter().filter(|(_, endpoints)| endpoints.contains_key(name)).collect();
    let first = &served[0].1[name];
    let recorded = recorded(sources, group, name);
    let strings = |value: Option<&Value>| -> Vec<String> {
        let values = value.and_then(Value::as_array).into_iter().flatten();
        values.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut built = Vec::new();
    for (version, endpoints) in &served {
        built.push(build_version(sources, group, version, name, endpoints, row)?);
    }
    let storage_version = match &row.storage {
        Some(storage) => {
            built.iter().position(|version| version.name == *storage).context("no such storage version")?
        }
        None => 0,
    };
    let stored_as = row.stored_as.as_deref().map(|other| match other.split_once('/') {
        Some((group, resource)) => (group.to_owned(), resource.to_owned()),
        None => (String::new(), other.to_owned()),
    });
    Ok(Resource {
        group: group.to_owned(),
        name: name.to_owned(),
        kind: first.gvk.2.clone(),
        list_kind: if first.list_kind.is_empty() {
            format!("{}List", first.gvk.2)
        } else {
            first.list_kind.clone()
        },
        namespaced: first.namespaced,
        returns_deleted: first.returns_deleted,
        short_names: row.short.clone().unwrap_or_else(|| strings(recorded.map(|r| &r["shortNames"]))),
        categories: row.categories.clone().unwrap_or_else(|| strings(recorded.map(|r| &r["categories"]))),
        versions: built,
        storage_version,
        stored_as,
    })
}

fn build_version(
    sources: &Sources,
    group: &str,
    version: &str,
    name: &str,
    endpoints: &BTreeMap<String, Endpoint>,
    row: &ResourceRow,
) -> Result<Version> {
    let endpoint = &endpoints[name];
    let definition = endpoint.definition.clone().context("no path answers with the object")?;
    let mut subresources = Vec::new();
    for (path, endpoint) in endpoints {
        let Some((resource, subresource)) = path.split_once('/') else { continue };
        if resource == name {
            subresources.push(build_subresource(sources, (group, version), path, subresource, endpoint));
        }
    }
    Ok(Version {
        name: version.to_owned(),
        verbs: endpoint.verbs.clone(),
        columns: columns(sources, group, version, name, row),
        definition,
        subresources,
        selectable: row.selectable.clone(),
        deprecation: row.deprecated.clone(),
    })
}

fn build_subresource(
    sources: &Sources,
    (group, version): (&str, &str),
    path: &str,
    name: &str,
    endpoint: &Endpoint,
) -> Subresource {
    let connect = sources.kinds.subresource.get(path);
    let own = endpoint.gvk.0 == group && endpoint.gvk.1 == version;
    Subresource {
        name: name.to_owned(),
        group: if own { String::new() } else { endpoint.gvk.0.clone() },
        version: if own { String::new() } else { endpoint.gvk.1.clone() },
        kind: connect.unwrap_or(&endpoint.gvk.2).clone(),
        verbs: endpoint.verbs.clone(),
        definition: endpoint.definition.clone(),
    }
}

/// Columns from `kinds.toml`, else as recorded for this or any other version, else name and creation time.
fn columns(sources: &Sources, group: &str, version: &str, name: &str, row: &ResourceRow) -> Vec<ColumnRow> {
    if let Some(columns) = &row.columns {
        return columns.clone();
    }
    let base = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
    if let Some(columns) = sources.columns.get(&format!("{base}/{version}/{name}")) {
        return columns.clone();
    }
    let of = |name: &str, kind: &str, format: &str| ColumnRow {
        name: name.to_owned(),
        r#type: kind.to_owned(),
        format: format.to_owned(),
        priority: 0,
    };
    vec![of("Name", "string", "name"), of("Created At", "date", "")]
}

fn recorded<'a>(sources: &'a Sources, group: &str, name: &str) -> Option<&'a Value> {
    let base = if group.is_empty() { "/api/".to_owned() } else { format!("/apis/{group}/") };
    let lists = sources.discovery.iter().filter(|(path, _)| path.starts_with(&base));
    let resources = lists.filter_map(|(_, list)| list["resources"].as_array()).flatten();
    resources.into_iter().find(|resource| resource["name"] == name)
}

/// Resource or `resource/subresource` to what its paths say.
fn endpoints(sources: &Sources, group: &str, version: &str) -> Result<BTreeMap<String, Endpoint>> {
    let base =
        if group.is_empty() { format!("/api/{version}/") } else { format!("/apis/{group}/{version}/") };
    let paths = sources.openapi["paths"].as_object().context("no paths")?;
    let mut found: BTreeMap<String, Endpoint> = BTreeMap::new();
    let mut watched = Vec::new();
    for (path, item) in paths {
        let Some(rest) = path.strip_prefix(&base).filter(|rest| !rest.is_empty()) else { continue };
        let (watch, rest) = match rest.strip_prefix("watch/") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let (namespaced, rest) = match rest.strip_prefix("namespaces/{namespace}/") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let parts: Vec<&str> = rest.split('/').collect();
        let name = match parts.as_slice() {
            [resource] | [resource, "{name}"] => (*resource).to_owned(),
            [resource, "{name}", subresource] => format!("{resource}/{subresource}"),
            [_, "{name}", _, "{path}"] => continue,
            _ => bail!("a path of unknown form: {path}"),
        };
        if watch {
            watched.push(name);
            continue;
        }
        let endpoint = found.entry(name).or_default();
        endpoint.namespaced |= namespaced;
        for (method, operation) in item.as_object().context("a path without operations")? {
            endpoint.read(method, operation).with_context(|| format!("{method} {path}"))?;
        }
    }
    for name in watched {
        found.get_mut(&name).context("a watch without a list")?.verbs.push("watch".to_owned());
    }
    for endpoint in found.values_mut() {
        endpoint.verbs.sort_unstable();
        endpoint.verbs.dedup();
    }
    ensure!(!found.is_empty(), "OpenAPI has no path below {base}");
    Ok(found)
}

impl Endpoint {
    fn read(&mut self, method: &str, operation: &Value) -> Result<()> {
        let Some(action) = operation["x-kubernetes-action"].as_str() else { return Ok(()) };
        let verb = match (action, method) {
            ("post", _) | ("connect", "post") => "create",
            ("put", _) | ("connect", "put") => "update",
            ("connect", "get" | "delete" | "patch") => method,
            ("get" | "list" | "patch" | "delete" | "deletecollection", _) => action,
            ("connect", "head" | "options") => return Ok(()),
            _ => bail!("unknown action {action}"),
        };
        self.verbs.push(verb.to_owned());
        let gvk = &operation["x-kubernetes-group-version-kind"];
        let part = |name: &str| gvk[name].as_str().unwrap_or_default().to_owned();
        self.gvk = (part("group"), part("version"), part("kind"));
        if action == "connect" {
            return Ok(());
        }
        let answer = operation["responses"]["200"]["schema"]["$ref"].as_str();
        let Some(definition) = answer.and_then(|answer| answer.strip_prefix("#/definitions/")) else {
            return Ok(());
        };
        let name = TypeName::from_definition(definition)?;
        match action {
            "list" => self.list_kind = name.name,
            "delete" => self.returns_deleted = name.name != "Status",
            "get" | "post" | "put" => self.definition = Some(name),
            _ => {}
        }
        Ok(())
    }
}
