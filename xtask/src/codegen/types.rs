//! From Go types to the shapes of the tables: resolves names, flattens embedded structs, joins in OpenAPI.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::resources::Resource;
use super::sources::{GoField, GoType, Sources};

const META: &str = "apimachinery/pkg/apis/meta/v1";
const CORE: &str = "api/core/v1";
const APIEXTENSIONS: &str = "apiextensions-apiserver/pkg/apis/apiextensions/v1";

/// A Go type by package and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TypeName {
    pub(super) package: String,
    pub(super) name: String,
}

/// A struct, flattened.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) fields: Vec<Field>,
    pub(super) atomic: bool,
    /// Field indices by protobuf path, when that differs from the order of fields.
    pub(super) wire_order: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) omit: Omit,
    pub(super) pointer: bool,
    pub(super) required: bool,
    pub(super) number: u32,
    pub(super) via: Vec<u32>,
    /// JSON text.
    pub(super) default: String,
    pub(super) patch_strategy: String,
    pub(super) patch_merge_key: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Omit {
    Never,
    Empty,
    Zero,
}

/// What a value looks like.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    /// The name of a constant in `crates/kinds/src/table.rs`.
    Scalar(&'static str),
    Enum(TypeName),
    /// `granular` undoes the type's own atomicity for this field.
    Object {
        name: TypeName,
        granular: bool,
    },
    List {
        item: Box<Shape>,
        kind: ListKind,
        wrapped: bool,
    },
    Map {
        value: Box<Shape>,
        atomic: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ListKind {
    Atomic,
    Set,
    Map(Vec<String>),
}

/// Every definition and enum the tables need.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    pub(super) structs: BTreeMap<TypeName, Definition>,
    pub(super) enums: BTreeMap<TypeName, Vec<String>>,
}

impl TypeName {
    fn new(package: &str, name: &str) -> Self {
        Self { package: package.to_owned(), name: name.to_owned() }
    }

    /// From an OpenAPI definition name.
    pub(super) fn from_definition(definition: &str) -> Result<Self> {
        let path = definition.strip_prefix("io.k8s.").context("a definition outside io.k8s")?;
        let (package, name) = path.rsplit_once('.').context("a definition without a package")?;
        Ok(Self { package: package.replace('.', "/"), name: name.to_owned() })
    }

    /// The OpenAPI definition name.
    pub(super) fn definition(&self) -> String {
        format!("io.k8s.{}.{}", self.package.replace('/', "."), self.name)
    }

    /// The generated module: group and version.
    pub(super) fn module(&self) -> String {
        let mut parts = self.package.rsplit('/');
        let version = parts.next().unwrap_or_default();
        format!("{}_{version}", parts.next().unwrap_or_default())
    }
}

/// Works out every type reachable from the served resources and from the list in `kinds.toml`.
pub(super) fn collect(sources: &Sources, resources: &[Resource]) -> Result<Definitions> {
    let mut collector =
        Collector { sources, found: Definitions::default(), queue: Vec::new(), seen: BTreeSet::new() };
    for resource in resources {
        for version in &resource.versions {
            collector.want(version.definition.clone());
            for subresource in &version.subresources {
                subresource.definition.iter().for_each(|definition| collector.want(definition.clone()));
            }
        }
    }
    for (package, names) in &sources.kinds.types {
        names.iter().for_each(|name| collector.want(TypeName::new(package, name)));
    }
    while let Some(name) = collector.queue.pop() {
        let definition = collector.define(&name).with_context(|| format!("type {}", name.definition()))?;
        collector.found.structs.insert(name, definition);
    }
    Ok(collector.found)
}

struct Collector<'a> {
    sources: &'a Sources,
    found: Definitions,
    queue: Vec<TypeName>,
    seen: BTreeSet<TypeName>,
}

impl Collector<'_> {
    fn want(&mut self, name: TypeName) {
        if self.seen.insert(name.clone()) {
            self.queue.push(name);
        }
    }

    fn define(&mut self, name: &TypeName) -> Result<Definition> {
        let openapi = self.sources.definition(&name.definition()).cloned().unwrap_or(Value::Null);
        let mut fields = Vec::new();
        self.flatten(name, &openapi, &[], &mut fields)?;
        let path = |index: &usize| {
            let field: &Field = &fields[*index];
            field.via.iter().copied().chain([field.number]).collect::<Vec<u32>>()
        };
        let mut wire_order: Vec<usize> = (0..fields.len()).collect();
        wire_order.sort_by_key(path);
        if wire_order.is_sorted() {
            wire_order.clear();
        }
        let atomic = openapi["x-kubernetes-map-type"] == "atomic";
        self.check_apply_atomic(name, atomic)?;
        Ok(Definition { fields, atomic, wire_order })
    }

    fn flatten(
        &mut self,
        name: &TypeName,
        openapi: &Value,
        via: &[u32],
        fields: &mut Vec<Field>,
    ) -> Result<()> {
        let sources = self.sources;
        let Some(go) = sources.types.get(&name.package).and_then(|package| package.get(&name.name)) else {
            // Go structs without fields are not in the types; OpenAPI knows that they exist.
            ensure!(!openapi.is_null() && openapi["properties"].is_null(), "unknown type");
            return Ok(());
        };
        for field in &go.fields {
            if !field.inline {
                let field = self.field(name, field, openapi, via)?;
                fields.extend(field);
                continue;
            }
            let embedded = self.resolve(&name.package, &field.r#type)?;
            if embedded.name == "TypeMeta" {
                fields.extend(type_meta());
                continue;
            }
            let mut path = via.to_vec();
            path.extend(field.proto.as_deref().map(number).transpose()?);
            self.flatten(&embedded, openapi, &path, fields)?;
        }
        Ok(())
    }

    fn field(
        &mut self,
        owner: &TypeName,
        field: &GoField,
        openapi: &Value,
        via: &[u32],
    ) -> Result<Option<Field>> {
        if field.name == "-" {
            return Ok(None);
        }
        ensure!(!field.name.is_empty(), "a field without a name: {}", field.r#type);
        let property = &openapi["properties"][&field.name];
        ensure!(openapi.is_null() || !property.is_null(), "OpenAPI lacks {}", field.name);
        let pointer = field.r#type.starts_with('*');
        let number = self.number(owner, field)?;
        let shape = self
            .shape(&owner.package, field.r#type.trim_start_matches('*'), property, field)
            .with_context(|| format!("field {} {}", field.name, field.r#type))?;
        let omit = match field.omit.as_deref() {
            None => Omit::Never,
            Some("omitempty") => Omit::Empty,
            Some("omitzero") => Omit::Zero,
            Some(other) => bail!("unknown omission {other}"),
        };
        let required = match openapi["required"].as_array() {
            Some(required) => required.iter().any(|name| name == field.name.as_str()),
            None if openapi.is_null() => {
                omit == Omit::Never && !field.markers.iter().any(|m| m == "+optional")
            }
            None => false,
        };
        let default = self.default(owner, field)?;
        self.check_reference(owner, field, property, &shape)?;
        Ok(Some(Field {
            name: field.name.clone(),
            shape,
            omit,
            pointer,
            required,
            number,
            via: if number == 0 { Vec::new() } else { via.to_vec() },
            default,
            patch_strategy: field.patch_strategy.clone(),
            patch_merge_key: field.patch_merge_key.clone(),
        }))
    }

    /// The number the Go tag and the proto agree on; 0 when protobuf does not carry the field.
    fn number(&self, owner: &TypeName, field: &GoField) -> Result<u32> {
        let Some(tag) = &field.proto else { return Ok(0) };
        let number = number(tag)?;
        let proto_name = field.name.trim_start_matches('$');
        if let Some(proto) = self.sources.protos.field(&owner.package, &owner.name, proto_name) {
            ensure!(proto.number == number, "{} is {number} in Go and {} in proto", field.name, proto.number);
            let scalar = field.r#type.trim_start_matches('*');
            let matches = match proto.r#type.as_str() {
                "int32" | "int64" | "bool" | "string" | "bytes" | "double" | "uint32" | "uint64"
                | "float" => proto_scalar(scalar).is_none_or(|expected| expected == proto.r#type),
                _ => true,
            };
            ensure!(matches, "{} is {scalar} in Go and {} in proto", field.name, proto.r#type);
        }
        Ok(number)
    }

    fn shape(&mut self, package: &str, go: &str, property: &Value, field: &GoField) -> Result<Shape> {
        if let Some(scalar) = scalar(go) {
            return Ok(Shape::Scalar(scalar));
        }
        if let Some(item) = go.strip_prefix("[]") {
            let item = self.shape(package, item.trim_start_matches('*'), &Value::Null, field)?;
            return Ok(Shape::List {
                item: Box::new(item),
                kind: list_kind(property, field),
                wrapped: false,
            });
        }
        if let Some(rest) = go.strip_prefix("map[") {
            let (_, value) = rest.split_once(']').context("a map without a key type")?;
            let value = self.shape(package, value, &Value::Null, field)?;
            let atomic = property["x-kubernetes-map-type"] == "atomic";
            return Ok(Shape::Map { value: Box::new(value), atomic });
        }
        if go.strip_prefix("types.").is_some() {
            return Ok(Shape::Scalar("STRING"));
        }
        let name = self.resolve(package, go)?;
        if let Some(special) = special(&name) {
            return Ok(Shape::Scalar(special));
        }
        let go_type = self.sources.types.get(&name.package).and_then(|package| package.get(&name.name));
        match go_type.and_then(|go_type| Some((go_type, go_type.alias.as_deref()?))) {
            Some((go_type, alias)) => self.alias(&name, go_type, alias, property, field),
            None => {
                let granular = property["x-kubernetes-map-type"] == "granular"
                    || field.markers.iter().any(|marker| marker == "+structType=granular");
                self.want(name.clone());
                Ok(Shape::Object { name, granular })
            }
        }
    }

    fn alias(
        &mut self,
        name: &TypeName,
        go: &GoType,
        alias: &str,
        property: &Value,
        field: &GoField,
    ) -> Result<Shape> {
        if alias == "string" && go.markers.iter().any(|marker| marker == "+enum") && !go.values.is_empty() {
            let values = go.values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            self.found.enums.insert(name.clone(), values);
            return Ok(Shape::Enum(name.clone()));
        }
        let shape = self.shape(&name.package, alias, property, field)?;
        let nullable = go.markers.iter().any(|marker| marker == "+protobuf.nullable=true");
        match shape {
            Shape::List { item, kind, .. } if nullable => Ok(Shape::List { item, kind, wrapped: true }),
            shape => Ok(shape),
        }
    }

    /// The package and name of a Go type as a package writes it.
    fn resolve(&self, package: &str, go: &str) -> Result<TypeName> {
        let Some((qualifier, name)) = go.split_once('.') else { return Ok(TypeName::new(package, go)) };
        let known =
            |package: &str| self.sources.types.get(package).is_some_and(|types| types.contains_key(name));
        let package = match qualifier {
            "metav1" => META.to_owned(),
            "corev1" | "apiv1" => CORE.to_owned(),
            "batchv1" => "api/batch/v1".to_owned(),
            "authenticationv1" => "api/authentication/v1".to_owned(),
            "authorizationv1" => "api/authorization/v1".to_owned(),
            "runtime" => "apimachinery/pkg/runtime".to_owned(),
            "resource" => "apimachinery/pkg/api/resource".to_owned(),
            "intstr" => "apimachinery/pkg/util/intstr".to_owned(),
            "v1" => {
                let own =
                    package.rsplit_once('/').map(|(group, _)| format!("{group}/v1")).unwrap_or_default();
                let candidates = [META.to_owned(), CORE.to_owned(), own];
                candidates.into_iter().find(|package| known(package)).context("no package has it")?
            }
            _ => bail!("unknown qualifier {qualifier}"),
        };
        Ok(TypeName { package, name: name.to_owned() })
    }

    /// JSON text of the default that the type itself declares.
    fn default(&self, owner: &TypeName, field: &GoField) -> Result<String> {
        let Some(default) = field.markers.iter().find_map(|marker| marker.strip_prefix("+default=")) else {
            return Ok(String::new());
        };
        let Some(constant) = default.strip_prefix("ref(").and_then(|rest| rest.strip_suffix(')')) else {
            serde_json::from_str::<Value>(default)?;
            return Ok(default.to_owned());
        };
        let name = self.resolve(&owner.package, field.r#type.trim_start_matches('*'))?;
        let values = &self.sources.types[&name.package][&name.name].values;
        let value = values.iter().filter_map(Value::as_str).find(|value| constant.contains(value));
        Ok(Value::from(value.context("a default that is not among the values")?).to_string())
    }

    /// OpenAPI must name the same type.
    fn check_reference(
        &self,
        owner: &TypeName,
        field: &GoField,
        property: &Value,
        shape: &Shape,
    ) -> Result<()> {
        let innermost = match shape {
            Shape::List { item, .. } => item,
            Shape::Map { value, .. } => value,
            other => other,
        };
        let Shape::Object { name, .. } = innermost else { return Ok(()) };
        let reference = [property, &property["items"], &property["additionalProperties"]]
            .into_iter()
            .find_map(|schema| schema["$ref"].as_str());
        if let Some(reference) = reference {
            let expected = format!("#/definitions/{}", name.definition());
            ensure!(reference == expected, "{}.{}: {reference}, not {expected}", owner.name, field.name);
        }
        Ok(())
    }

    /// Server-side apply's own schema must agree on what is owned as a whole.
    fn check_apply_atomic(&self, name: &TypeName, atomic: bool) -> Result<()> {
        let Some(schema) = self.sources.apply.get(&name.definition()) else { return Ok(()) };
        let Some(map) = schema.get("map") else { return Ok(()) };
        let applied = map["elementRelationship"] == "atomic";
        ensure!(
            applied == atomic || map["fields"].is_null(),
            "apply says atomic {applied}, OpenAPI {atomic}"
        );
        Ok(())
    }
}

fn number(tag: &str) -> Result<u32> {
    Ok(tag.split_whitespace().next().unwrap_or_default().parse()?)
}

fn type_meta() -> [Field; 2] {
    ["kind", "apiVersion"].map(|name| Field {
        name: name.to_owned(),
        shape: Shape::Scalar("STRING"),
        omit: Omit::Empty,
        pointer: false,
        required: false,
        number: 0,
        via: Vec::new(),
        default: String::new(),
        patch_strategy: String::new(),
        patch_merge_key: String::new(),
    })
}

fn scalar(go: &str) -> Option<&'static str> {
    Some(match go {
        "string" => "STRING",
        "bool" => "BOOL",
        "int32" => "INT32",
        "int" | "int64" => "INT64",
        "uint32" => "UINT32",
        "uint64" => "UINT64",
        "float64" => "FLOAT64",
        "[]byte" => "BYTES",
        "interface{}" => "ANY",
        _ => return None,
    })
}

fn proto_scalar(go: &str) -> Option<&'static str> {
    Some(match scalar(go)? {
        "STRING" => "string",
        "BOOL" => "bool",
        "INT32" => "int32",
        "INT64" => "int64",
        "UINT32" => "uint32",
        "UINT64" => "uint64",
        "FLOAT64" => "double",
        "BYTES" => "bytes",
        _ => return None,
    })
}

/// Types with a JSON or protobuf form of their own.
fn special(name: &TypeName) -> Option<&'static str> {
    Some(match (name.package.as_str(), name.name.as_str()) {
        (META, "Time") => "TIME",
        (META, "MicroTime") => "MICRO_TIME",
        (META, "Duration") => "DURATION",
        (META, "FieldsV1") | (APIEXTENSIONS, "JSON") => "JSON",
        ("apimachinery/pkg/api/resource", "Quantity") => "QUANTITY",
        ("apimachinery/pkg/util/intstr", "IntOrString") => "INT_OR_STRING",
        ("apimachinery/pkg/runtime", "RawExtension") => "RAW_EXTENSION",
        (APIEXTENSIONS, "JSONSchemaPropsOrBool") => "SCHEMA_OR_BOOL",
        (APIEXTENSIONS, "JSONSchemaPropsOrArray") => "SCHEMA_OR_ARRAY",
        (APIEXTENSIONS, "JSONSchemaPropsOrStringArray") => "SCHEMA_OR_STRING_ARRAY",
        _ => return None,
    })
}

/// As upstream's schema for server-side apply has it: the list type, else the patch strategy, else atomic.
fn list_kind(property: &Value, field: &GoField) -> ListKind {
    let marked = field.markers.iter().find_map(|marker| marker.strip_prefix("+listType="));
    match property["x-kubernetes-list-type"].as_str().or(marked) {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = field.markers.iter().filter_map(|marker| marker.strip_prefix("+listMapKey="));
            ListKind::Map(keys.map(str::to_owned).collect())
        }
        Some(_) => ListKind::Atomic,
        None if !field.patch_strategy.starts_with("merge") => ListKind::Atomic,
        None if field.patch_merge_key.is_empty() => ListKind::Set,
        None => ListKind::Map(vec![field.patch_merge_key.clone()]),
    }
}
