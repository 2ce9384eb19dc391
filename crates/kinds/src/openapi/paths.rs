//! Paths: what can be asked of a resource.

use schema::types::{Field, Schema, Shape};
use serde_json::{Map, Value, json};

use super::Flavor;
use super::schemas::Names;
use crate::discovery::group_version;
use crate::spec::{KindSpec, SubresourceSpec, VersionSpec};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const MEDIA: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAMS: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

const LIST: [(&str, &str); 11] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const DELETE_COLLECTION: [(&str, &str); 14] = [
    ("continue", "string"),
    ("dryRun", "string"),
    ("fieldSelector", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
];
const DELETE: [(&str, &str); 5] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const WRITE: [(&str, &str); 3] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: [(&str, &str); 4] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];

/// A rendered path.
pub(super) struct Path {
    pub(super) url: String,
    pub(super) item: Value,
}

/// A path before it is written in either flavor.
pub(super) struct PathItem {
    url: String,
    parameters: Vec<Parameter>,
    operations: Vec<Operation>,
}

#[derive(Clone)]
struct Parameter {
    name: String,
    kind: &'static str,
    in_path: bool,
}

struct Operation {
    method: &'static str,
    action: &'static str,
    id: String,
    description: String,
    tag: String,
    parameters: &'static [(&'static str, &'static str)],
    /// Definition of the body and whether it must be there.
    body: Option<(String, bool)>,
    codes: &'static [&'static str],
    answer: Answer,
    gvk: Value,
}

enum Answer {
    Definition(String),
    List(String),
    Text,
    Stream,
}

/// What is the same for all paths of a row.
struct Builder<'a> {
    spec: &'a KindSpec,
    row: &'a VersionSpec,
    names: &'a Names,
    /// `CoreV1`
    family: String,
    /// `core_v1`
    tag: String,
}

/// Every path of a resource in a version.
pub(super) fn of_row(spec: &KindSpec, row: &VersionSpec, names: &Names) -> Vec<PathItem> {
    let words = group_words(&spec.group);
    let family = format!("{}{}", words.concat(), title(&row.version));
    let mut tag = words.concat();
    if let Some(first) = words.first() {
        tag.replace_range(..first.len(), &first.to_lowercase());
    }
    let tag = format!("{tag}_{}", row.version);
    let builder = Builder { spec, row, names, family, tag };
    let base = if spec.group.is_empty() { "api" } else { "apis" };
    let root = format!("/{base}/{}", group_version(&spec.group, &row.version));
    let scope = if spec.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() };
    let collection = format!("{scope}/{}", spec.resource);
    let mut items = vec![
        builder.item(&collection, &["list", "create", "deletecollection"], false),
        builder.item(&format!("{collection}/{{name}}"), &["get", "update", "patch", "delete"], true),
    ];
    if spec.namespaced {
        let mut everywhere = builder.item(&format!("{root}/{}", spec.resource), &["list"], false);
        everywhere.parameters.retain(|parameter| parameter.name != "namespace");
        for operation in &mut everywhere.operations {
            operation.id = format!("list{}{}ForAllNamespaces", builder.family, spec.kind);
        }
        items.push(everywhere);
    }
    for subresource in row.subresources.iter() {
        items.push(builder.subresource(
            &format!("{collection}/{{name}}/{}", subresource.name),
            subresource,
            "",
        ));
        if *subresource.name == *"proxy" {
            let url = format!("{collection}/{{name}}/{}/{{path}}", subresource.name);
            items.push(builder.subresource(&url, subresource, "WithPath"));
        }
    }
    items.retain(|item| !item.operations.is_empty());
    items
}

impl Builder<'_> {
    fn item(&self, url: &str, verbs: &[&str], named: bool) -> PathItem {
        let served = |verb: &&&str| self.row.verbs.iter().any(|served| *served == ***verb);
        let scope = if self.spec.namespaced { "Namespaced" } else { "" };
        let what = format!("{scope}{}", self.spec.kind);
        let operations = verbs.iter().filter(served).map(|verb| {
            let gvk = gvk(&self.spec.group, &self.row.version, &self.spec.kind);
            self.operation(verb, &what, &self.names.object, gvk)
        });
        PathItem { url: url.to_owned(), operations: operations.collect(), parameters: self.parameters(named) }
    }

    fn subresource(&self, url: &str, subresource: &SubresourceSpec, suffix: &str) -> PathItem {
        let scope = if self.spec.namespaced { "Namespaced" } else { "" };
        let what = format!("{scope}{}{}{suffix}", self.spec.kind, title(&subresource.name));
        let mut parameters = self.parameters(true);
        let connect = subresource.schema.is_none();
        let options = match &*subresource.name {
            "log" => "PodLogOptions",
            _ if connect => &*subresource.kind,
            _ => "",
        };
        if connect && *subresource.name != *"log" {
            parameters.retain(|parameter| parameter.name != "pretty");
        }
        if let Some(options) = crate::schema_of(&format!("io.k8s.api.core.v1.{options}")) {
            parameters.extend(option_parameters(options));
        }
        if !suffix.is_empty() {
            parameters.push(Parameter { name: "path".to_owned(), kind: "string", in_path: true });
        }
        let own = subresource.version.is_empty() || connect;
        let group = if own { &self.spec.group } else { &subresource.group };
        let version = if own { &self.row.version } else { &subresource.version };
        let kind = if connect { &self.spec.kind } else { &subresource.kind };
        let definition = subresource.schema.as_ref().and_then(|schema| schema.object());
        let definition = definition.map(|object| object.name.to_string()).filter(|name| !name.is_empty());
        let definition = definition.unwrap_or_else(|| self.names.object.clone());
        let operations = subresource.verbs.iter().filter_map(|verb| {
            let gvk = gvk(group, version, kind);
            if connect && *subresource.name != *"log" {
                return self.connect(verb, &what, gvk);
            }
            let mut operation = self.operation(verb, &what, &definition, gvk);
            if connect {
                operation.answer = Answer::Text;
            }
            Some(operation)
        });
        PathItem { url: url.to_owned(), operations: operations.collect(), parameters }
    }

    fn parameters(&self, named: bool) -> Vec<Parameter> {
        let path = |name: &str| Parameter { name: name.to_owned(), kind: "string", in_path: true };
        let mut parameters = Vec::new();
        if named {
            parameters.push(path("name"));
        }
        if self.spec.namespaced {
            parameters.push(path("namespace"));
        }
        parameters.push(Parameter { in_path: false, ..path("pretty") });
        parameters
    }

    fn operation(&self, verb: &str, what: &str, definition: &str, gvk: Value) -> Operation {
        let status = || Answer::Definition(format!("{META}.Status"));
        let object = || Answer::Definition(definition.to_owned());
        let deleted = || if self.spec.returns_deleted { object() } else { status() };
        let body = Some((definition.to_owned(), true));
        let options = Some((format!("{META}.DeleteOptions"), false));
        let patch = Some((format!("{META}.Patch"), true));
        let collection = format!("Collection{what}");
        let kind = &self.spec.kind;
        let (method, action, id, parameters, body, codes, answer): (
            _,
            _,
            _,
            &'static [_],
            _,
            &'static [_],
            _,
        ) = match verb {
            "list" => {
                let list = Answer::List(self.names.list.clone());
                ("get", "list", ("list", what), &LIST, None, &["200"], list)
            }
            "create" => ("post", "post", ("create", what), &WRITE, body, &["200", "201", "202"], object()),
            "update" => ("put", "put", ("replace", what), &WRITE, body, &["200", "201"], object()),
            "patch" => ("patch", "patch", ("patch", what), &PATCH, patch, &["200", "201"], object()),
            "delete" => ("delete", "delete", ("delete", what), &DELETE, options, &["200", "202"], deleted()),
            "deletecollection" => {
                let id = ("delete", collection.as_str());
                ("delete", "deletecollection", id, &DELETE_COLLECTION, options, &["200"], status())
            }
            _ => ("get", "get", ("read", what), &[], None, &["200"], object()),
        };
        let description = match action {
            "list" => format!("list or watch objects of kind {kind}"),
            "deletecollection" => format!("delete collection of {kind}"),
            _ => format!("{} {what}", id.0),
        };
        Operation {
            method,
            action,
            id: format!("{}{}{}", id.0, self.family, id.1),
            description,
            tag: self.tag.clone(),
            parameters,
            body,
            codes,
            answer,
            gvk,
        }
    }

    fn connect(&self, verb: &str, what: &str, gvk: Value) -> Option<Operation> {
        let method = match verb {
            "get" => "get",
            "create" => "post",
            "update" => "put",
            "patch" => "patch",
            "delete" => "delete",
            _ => return None,
        };
        Some(Operation {
            method,
            action: "connect",
            id: format!("connect{}{}{what}", self.family, title(method)),
            description: format!("connect {} requests to {what}", method.to_uppercase()),
            tag: self.tag.clone(),
            parameters: &[],
            body: None,
            codes: &["200"],
            answer: Answer::Stream,
            gvk,
        })
    }
}

impl PathItem {
    pub(super) fn render(self, flavor: Flavor) -> Path {
        let mut item = Map::new();
        for operation in &self.operations {
            item.insert(operation.method.to_owned(), operation.render(flavor));
        }
        let parameters = self.parameters.iter().map(|parameter| parameter.render(flavor));
        item.insert("parameters".to_owned(), parameters.collect());
        Path { url: self.url, item: Value::Object(item) }
    }
}

impl Parameter {
    fn render(&self, flavor: Flavor) -> Value {
        let mut parameter = json!({"name": self.name, "in": if self.in_path { "path" } else { "query" }});
        if self.in_path {
            parameter["required"] = json!(true);
        }
        match flavor {
            Flavor::V2 => {
                parameter["type"] = json!(self.kind);
                parameter["uniqueItems"] = json!(true);
            }
            Flavor::V3 => parameter["schema"] = json!({"type": self.kind, "uniqueItems": true}),
        }
        parameter
    }
}

impl Operation {
    fn render(&self, flavor: Flavor) -> Value {
        let mut parameters: Vec<Value> = self
            .parameters
            .iter()
            .map(|(name, kind)| Parameter { name: (*name).to_owned(), kind, in_path: false }.render(flavor))
            .collect();
        let mut operation = json!({
            "tags": [self.tag],
            "description": self.description,
            "operationId": self.id,
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": self.gvk,
        });
        let consumes: &[&str] = if self.action == "patch" { &PATCHES } else { &["*/*"] };
        match flavor {
            Flavor::V2 => {
                if let Some((body, required)) = &self.body {
                    let mut parameter = json!({
                        "name": "body", "in": "body", "schema": {"$ref": format!("#/definitions/{body}")},
                    });
                    if *required {
                        parameter["required"] = json!(true);
                    }
                    parameters.insert(0, parameter);
                }
                operation["schemes"] = json!(["https"]);
                operation["consumes"] = json!(consumes);
                operation["produces"] = json!(self.answer.media());
            }
            Flavor::V3 => {
                if let Some((body, required)) = &self.body {
                    let schema = json!({"schema": {"$ref": format!("#/components/schemas/{body}")}});
                    let content = consumes.iter().map(|media| ((*media).to_owned(), schema.clone()));
                    operation["requestBody"] = json!({"content": content.collect::<Map<_, _>>()});
                    if *required {
                        operation["requestBody"]["required"] = json!(true);
                    }
                }
            }
        }
        operation["parameters"] = Value::Array(parameters);
        let mut responses = Map::from_iter([("401".to_owned(), json!({"description": "Unauthorized"}))]);
        for code in self.codes {
            responses.insert((*code).to_owned(), self.answer.render(flavor, code));
        }
        operation["responses"] = Value::Object(responses);
        operation
    }
}

impl Answer {
    fn media(&self) -> Vec<&'static str> {
        match self {
            Self::Definition(_) => MEDIA.to_vec(),
            Self::List(_) => [MEDIA.as_slice(), STREAMS.as_slice()].concat(),
            Self::Text => [["text/plain"].as_slice(), MEDIA.as_slice()].concat(),
            Self::Stream => vec!["*/*"],
        }
    }

    fn render(&self, flavor: Flavor, code: &str) -> Value {
        let description = match code {
            "200" => "OK",
            "201" => "Created",
            _ => "Accepted",
        };
        let schema = match (self, flavor) {
            (Self::Definition(name) | Self::List(name), Flavor::V2) => {
                json!({"$ref": format!("#/definitions/{name}")})
            }
            (Self::Definition(name) | Self::List(name), Flavor::V3) => {
                json!({"$ref": format!("#/components/schemas/{name}")})
            }
            (Self::Text | Self::Stream, _) => json!({"type": "string"}),
        };
        if flavor == Flavor::V2 {
            return json!({"description": description, "schema": schema});
        }
        let content = self.media().into_iter().map(|media| (media.to_owned(), json!({"schema": schema})));
        json!({"description": description, "content": content.collect::<Map<_, _>>()})
    }
}

/// Query parameters from the fields of an options kind.
fn option_parameters(options: &'static Schema) -> impl Iterator<Item = Parameter> {
    let fields = options.object().map(|object| &*object.fields).unwrap_or_default().iter();
    fields.filter(|field| !matches!(&*field.name, "kind" | "apiVersion")).map(|field: &Field| {
        let kind = match field.schema.shape {
            Shape::Bool => "boolean",
            Shape::Int32 | Shape::Int64 => "integer",
            _ => "string",
        };
        Parameter { name: field.name.to_string(), kind, in_path: false }
    })
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// `rbac.authorization.k8s.io` to `Rbac`, `Authorization`.
fn group_words(group: &str) -> Vec<String> {
    if group.is_empty() {
        return vec!["Core".to_owned()];
    }
    group.trim_end_matches(".k8s.io").split('.').map(title).collect()
}

fn title(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
