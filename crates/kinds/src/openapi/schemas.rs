//! Definitions: what objects look like.

use std::collections::{BTreeMap, BTreeSet};

use schema::types::{AnyKind, Field, ListKind, ListShape, ObjectShape, Omit, Ptr, Schema, Shape};
use serde_json::{Map, Value, json};

use super::Flavor;
use crate::spec::{KindSpec, SubresourceSpec, VersionSpec};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";

/// The definitions of one kind: of the object and of its list.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) object: String,
    pub(super) list: String,
}

/// Definitions gathered so far.
pub(super) struct Schemas {
    flavor: Flavor,
    found: BTreeMap<String, Value>,
    /// Definition name to its group, version and kind.
    kinds: BTreeMap<String, BTreeSet<(String, String, String)>>,
    queue: Vec<Ptr<Schema>>,
}

impl Schemas {
    pub(super) fn new(flavor: Flavor) -> Self {
        Self { flavor, found: BTreeMap::new(), kinds: BTreeMap::new(), queue: Vec::new() }
    }

    /// A built-in kind and its list.
    pub(super) fn built_in(&mut self, spec: &KindSpec, row: &VersionSpec) -> Names {
        self.want(&row.schema);
        let object = name_of(&row.schema);
        let mut list = object.clone();
        list.truncate(list.len() - spec.kind.len());
        list.push_str(&spec.list_kind);
        let gvk = |kind: &str| (spec.group.to_string(), row.version.to_string(), kind.to_owned());
        self.kinds.entry(object.clone()).or_default().insert(gvk(&spec.kind));
        if row.verbs.iter().any(|verb| *verb == *"list") {
            self.kinds.entry(list.clone()).or_default().insert(gvk(&spec.list_kind));
            self.list_of(&object, list.clone());
        }
        Names { object, list }
    }

    /// A custom resource and its list, from the schema its author wrote.
    pub(super) fn custom(&mut self, spec: &KindSpec, row: &VersionSpec, raw: &Value) -> Names {
        let reversed: Vec<&str> = spec.group.rsplit('.').collect();
        let package = format!("{}.{}", reversed.join("."), row.version);
        let object = format!("{package}.{}", spec.kind);
        let list = format!("{package}.{}", spec.list_kind);
        let mut schema = match self.flavor {
            Flavor::V3 => raw.clone(),
            Flavor::V2 => structural_v2(raw),
        };
        let preserves = raw["x-kubernetes-preserve-unknown-fields"] == true && self.flavor == Flavor::V2;
        if !preserves && let Some(map) = schema.as_object_mut() {
            let properties = map.entry("properties").or_insert_with(|| json!({}));
            properties["apiVersion"] = json!({"type": "string"});
            properties["kind"] = json!({"type": "string"});
            properties["metadata"] = self.reference(&format!("{META}.ObjectMeta"));
            map.insert("type".to_owned(), json!("object"));
        }
        self.want(&Ptr::Static(crate::META_OBJECT_META));
        self.list_of(&object, list.clone());
        self.found.insert(object.clone(), schema);
        for (name, kind) in [(&object, &spec.kind), (&list, &spec.list_kind)] {
            let gvk = (spec.group.to_string(), row.version.to_string(), kind.to_string());
            self.kinds.entry(name.clone()).or_default().insert(gvk);
        }
        Names { object, list }
    }

    fn list_of(&mut self, object: &str, list: String) {
        self.want(&Ptr::Static(crate::META_LIST_META));
        let definition = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": self.reference(&format!("{META}.ListMeta")),
                "items": {"type": "array", "items": self.reference(object)},
            },
        });
        self.found.insert(list, definition);
    }

    /// Makes sure that the definition is in the document.
    pub(super) fn want(&mut self, schema: &Ptr<Schema>) {
        self.queue.push(schema.clone());
    }

    /// Notes which kind a subresource's definition is.
    pub(super) fn kind(
        &mut self,
        schema: &Schema,
        spec: &KindSpec,
        row: &VersionSpec,
        subresource: &SubresourceSpec,
    ) {
        let own = subresource.version.is_empty();
        let group = if own { &spec.group } else { &subresource.group };
        let version = if own { &row.version } else { &subresource.version };
        let gvk = (group.to_string(), version.to_string(), subresource.kind.to_string());
        self.kinds.entry(name_of(schema)).or_default().insert(gvk);
    }

    /// All definitions that those asked for need.
    pub(super) fn finish<'a>(mut self, versions: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
        while let Some(schema) = self.queue.pop() {
            let name = name_of(&schema);
            if self.found.contains_key(&name) {
                continue;
            }
            if let Some(object) = schema.object() {
                self.found.insert(name.clone(), Value::Null);
                let definition = self.object(object);
                self.found.insert(name, definition);
            }
        }
        // Options and events of a watch belong to every group version.
        let all: BTreeSet<(&str, &str)> = versions.chain([("", "v1")]).collect();
        for kind in ["DeleteOptions", "WatchEvent"] {
            let gvks = self.kinds.entry(format!("{META}.{kind}")).or_default();
            gvks.extend(
                all.iter()
                    .map(|(group, version)| ((*group).to_owned(), (*version).to_owned(), kind.to_owned())),
            );
        }
        let status = (String::new(), "v1".to_owned(), "Status".to_owned());
        self.kinds.entry(format!("{META}.Status")).or_default().insert(status);
        self.found.insert(format!("{META}.Patch"), json!({"type": "object"}));
        for (name, gvks) in &self.kinds {
            let Some(Value::Object(definition)) = self.found.get_mut(name) else { continue };
            let gvks = gvks
                .iter()
                .map(|(group, version, kind)| json!({"group": group, "version": version, "kind": kind}));
            definition.insert("x-kubernetes-group-version-kind".to_owned(), gvks.collect());
        }
        #[cfg(feature = "descriptions")]
        {
            let descriptions = super::descriptions::Descriptions::unpack();
            let wrap = self.flavor == Flavor::V3;
            self.found.iter_mut().for_each(|(name, definition)| descriptions.add(name, definition, wrap));
        }
        Value::Object(self.found.into_iter().collect())
    }

    fn reference(&self, name: &str) -> Value {
        match self.flavor {
            Flavor::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Flavor::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    fn object(&mut self, object: &ObjectShape) -> Value {
        let mut definition = Map::from_iter([("type".to_owned(), json!("object"))]);
        let mut properties = Map::new();
        for field in object.fields.iter() {
            properties.insert(field.name.to_string(), self.field(field, object));
        }
        if !properties.is_empty() {
            definition.insert("properties".to_owned(), Value::Object(properties));
        }
        let required: Vec<&str> =
            object.fields.iter().filter(|field| field.required).map(|field| &*field.name).collect();
        if !required.is_empty() {
            definition.insert("required".to_owned(), json!(required));
        }
        if object.atomic {
            definition.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
        }
        Value::Object(definition)
    }

    fn field(&mut self, field: &Field, parent: &ObjectShape) -> Value {
        let mut extras = Map::new();
        if let Shape::Object(own) = &field.schema.shape
            && !own.atomic
            && crate::schema_of(&own.name).and_then(Schema::object).is_some_and(|object| object.atomic)
        {
            extras.insert("x-kubernetes-map-type".to_owned(), json!("granular"));
        }
        let strategies = [
            ("merge", field.patch.merge),
            ("retainKeys", field.patch.retain_keys),
            ("replace", field.patch.replace),
        ];
        let strategies: Vec<&str> =
            strategies.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
        if !strategies.is_empty() {
            extras.insert("x-kubernetes-patch-strategy".to_owned(), json!(strategies.join(",")));
        }
        if !field.patch_merge_key.is_empty() {
            extras.insert("x-kubernetes-patch-merge-key".to_owned(), json!(&*field.patch_merge_key));
        }
        if self.flavor == Flavor::V3
            && let Some(default) = default_of(field)
        {
            extras.insert("default".to_owned(), default);
        }
        let value = self.value(&field.schema, parent);
        self.with(value, extras)
    }

    /// A reference cannot have siblings in v3.
    fn with(&self, value: Value, extras: Map<String, Value>) -> Value {
        if extras.is_empty() {
            return value;
        }
        let mut value = match value {
            Value::Object(map) if map.contains_key("$ref") && self.flavor == Flavor::V3 => {
                Map::from_iter([("allOf".to_owned(), json!([map]))])
            }
            Value::Object(map) => map,
            _ => Map::new(),
        };
        value.extend(extras);
        Value::Object(value)
    }

    fn value(&mut self, schema: &Ptr<Schema>, parent: &ObjectShape) -> Value {
        match &schema.shape {
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 | Shape::Uint32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 | Shape::Uint64 => json!({"type": "integer", "format": "int64"}),
            Shape::Float64 => json!({"type": "number", "format": "double"}),
            Shape::String if schema.enum_values.is_empty() => json!({"type": "string"}),
            Shape::String => {
                let values: Vec<&str> = schema.enum_values.iter().map(|value| value.as_str()).collect();
                json!({"type": "string", "enum": values})
            }
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Quantity => match self.flavor {
                Flavor::V2 => self.leaf(QUANTITY, json!({"type": "string"})),
                Flavor::V3 => self.leaf(QUANTITY, json!({"oneOf": [{"type": "string"}, {"type": "number"}]})),
            },
            Shape::IntOrString => match self.flavor {
                Flavor::V2 => self.leaf(INT_OR_STRING, json!({"type": "string", "format": "int-or-string"})),
                Flavor::V3 => {
                    let either = json!([{"type": "integer"}, {"type": "string"}]);
                    self.leaf(INT_OR_STRING, json!({"format": "int-or-string", "oneOf": either}))
                }
            },
            Shape::Time => {
                self.leaf(&format!("{META}.Time"), json!({"type": "string", "format": "date-time"}))
            }
            Shape::MicroTime => {
                self.leaf(&format!("{META}.MicroTime"), json!({"type": "string", "format": "date-time"}))
            }
            Shape::Duration => self.leaf(&format!("{META}.Duration"), json!({"type": "string"})),
            Shape::Any(kind) => self.any(*kind, parent),
            Shape::Object(object) if object.name.is_empty() => self.object(object),
            Shape::Object(object) => {
                // A field may loosen a type's atomicity; the definition is the type's own.
                match crate::schema_of(&object.name) {
                    Some(own) => self.want(&Ptr::Static(own)),
                    None => self.want(schema),
                }
                self.reference(&object.name)
            }
            Shape::Map(map) => {
                let value = self.item(&map.value, parent);
                let mut object = json!({"type": "object", "additionalProperties": value});
                if map.atomic {
                    object["x-kubernetes-map-type"] = json!("atomic");
                }
                object
            }
            Shape::List(list) => self.list(list, parent),
        }
    }

    fn list(&mut self, list: &ListShape, parent: &ObjectShape) -> Value {
        let items = self.item(&list.item, parent);
        let mut array = json!({"type": "array", "items": items});
        match &list.kind {
            ListKind::Atomic => array["x-kubernetes-list-type"] = json!("atomic"),
            ListKind::Set => array["x-kubernetes-list-type"] = json!("set"),
            ListKind::Map(keys) => {
                array["x-kubernetes-list-type"] = json!("map");
                array["x-kubernetes-list-map-keys"] = keys.iter().map(|key| json!(&**key)).collect();
            }
        }
        array
    }

    /// An item of a list or map: never absent, so v3 gives it its zero as a default.
    fn item(&mut self, schema: &Ptr<Schema>, parent: &ObjectShape) -> Value {
        let value = self.value(schema, parent);
        let default = match schema.shape {
            _ if self.flavor == Flavor::V2 => None,
            Shape::Object(_) => Some(json!({})),
            Shape::String => Some(json!("")),
            Shape::Int32 | Shape::Int64 => Some(json!(0)),
            _ => None,
        };
        self.with(value, default.map(|default| ("default".to_owned(), default)).into_iter().collect())
    }

    fn any(&mut self, kind: AnyKind, parent: &ObjectShape) -> Value {
        match kind {
            AnyKind::RawExtension => self.leaf(RAW_EXTENSION, json!({"type": "object"})),
            AnyKind::Json if parent.name.ends_with(".ManagedFieldsEntry") => {
                self.leaf(&format!("{META}.FieldsV1"), json!({"type": "object"}))
            }
            AnyKind::Json => self.leaf(&format!("{APIEXTENSIONS}.JSON"), json!({})),
            AnyKind::SchemaOrBool => self.leaf(&format!("{APIEXTENSIONS}.JSONSchemaPropsOrBool"), json!({})),
            AnyKind::SchemaOrArray => {
                self.leaf(&format!("{APIEXTENSIONS}.JSONSchemaPropsOrArray"), json!({}))
            }
            AnyKind::SchemaOrStringArray => {
                self.leaf(&format!("{APIEXTENSIONS}.JSONSchemaPropsOrStringArray"), json!({}))
            }
            AnyKind::Unknown => json!({"type": "object"}),
        }
    }

    fn leaf(&mut self, name: &str, definition: Value) -> Value {
        self.found.entry(name.to_owned()).or_insert(definition);
        self.reference(name)
    }
}

fn name_of(schema: &Schema) -> String {
    schema.object().map(|object| object.name.to_string()).unwrap_or_default()
}

/// The declared default; else the zero of a struct, or of a scalar that is always written.
fn default_of(field: &Field) -> Option<Value> {
    if let Some(default) = &field.default {
        return serde_json::from_str(default).ok();
    }
    match field.schema.shape {
        _ if field.pointer => None,
        Shape::Object(_) => Some(json!({})),
        Shape::Bool if field.omit == Omit::Never => Some(json!(false)),
        Shape::String if field.omit == Omit::Never => Some(json!("")),
        Shape::Int32 | Shape::Int64 | Shape::Float64 if field.omit == Omit::Never => Some(json!(0)),
        _ => None,
    }
}

/// What v2 can say of a structural schema: no nullable, no alternatives, nothing below what keeps unknown fields.
fn structural_v2(schema: &Value) -> Value {
    let Some(source) = schema.as_object() else { return json!({}) };
    let preserves = source.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    let nullable = source.get("nullable") == Some(&Value::Bool(true));
    let either = source.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    let mut result = Map::new();
    for (key, value) in source {
        let value = match key.as_str() {
            "nullable" | "oneOf" | "anyOf" | "allOf" | "not" => continue,
            "type" if nullable || either => continue,
            "properties" | "items" | "additionalProperties" if preserves => continue,
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                properties.map(|(name, value)| (name.clone(), structural_v2(value))).collect()
            }
            "items" | "additionalProperties" if value.is_object() => structural_v2(value),
            _ => value.clone(),
        };
        result.insert(key.clone(), value);
    }
    Value::Object(result)
}
