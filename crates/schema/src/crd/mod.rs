//! Schemas of custom resources: from `JSONSchemaProps` as it stands in a CRD to the [`Schema`] that drives decoding,
//! defaulting, pruning, validation and apply. [`check`] says first whether the schema may be used at all.

mod openapi;
mod structural;

use meta::field::{FieldError, FieldPath};
use serde_json::{Map, Value};

use crate::decode;
use crate::types::{
    AnyKind, Field, ListKind, ListShape, MapShape, ObjectShape, Ptr, Schema, Shape, Text, Validation,
    ValidationRule,
};
use crate::{canonical, validate};

/// Schemas nested deeper, counted in JSON, are refused: every walk along a schema recurses. A property counts two.
pub const MAX_DEPTH: usize = 200;

/// `JSONSchemaProps` as JSON.
type Props = Map<String, Value>;

/// Builds the schema of a custom resource from `openAPIV3Schema`; `metadata` is the schema of `ObjectMeta`.
///
/// Expects what [`check`] found no fault with; what it would have refused is ignored.
pub fn schema(props: &Value, metadata: &Ptr<Schema>) -> Schema {
    let empty = Props::new();
    let props = props.as_object().filter(|_| is_shallow(props, MAX_DEPTH)).unwrap_or(&empty);
    let mut schema = Builder { metadata }.schema(props);
    if let Shape::Object(object) = &mut schema.shape {
        Builder { metadata }.add_type_meta(object);
    }
    schema
}

/// Everything that is wrong with `openAPIV3Schema` at `path`, the rules in CEL aside.
pub fn check(props: &Value, metadata: &Ptr<Schema>, path: &FieldPath) -> Vec<FieldError> {
    let Some(object) = props.as_object() else { return Vec::new() };
    if !is_shallow(props, MAX_DEPTH) {
        return vec![FieldError::forbidden(
            path,
            format!("must not be nested deeper than {MAX_DEPTH} levels"),
        )];
    }
    let mut errors = Vec::new();
    if flag(object, "nullable") {
        errors.push(FieldError::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    let found = structural::check(object, path);
    if found.is_empty() {
        check_defaults(object, metadata, path, &mut errors);
    }
    errors.extend(found);
    errors.extend(openapi::check(object, path));
    errors
}

/// What a root schema may hold when the status subresource is on, by the names upstream's message gives.
const ROOT_WITH_STATUS: [(&str, &str); 22] = [
    ("Description", "description"),
    ("Type", "type"),
    ("Format", "format"),
    ("Title", "title"),
    ("Maximum", "maximum"),
    ("ExclusiveMaximum", "exclusiveMaximum"),
    ("Minimum", "minimum"),
    ("ExclusiveMinimum", "exclusiveMinimum"),
    ("MaxLength", "maxLength"),
    ("MinLength", "minLength"),
    ("Pattern", "pattern"),
    ("MaxItems", "maxItems"),
    ("MinItems", "minItems"),
    ("UniqueItems", "uniqueItems"),
    ("MultipleOf", "multipleOf"),
    ("Required", "required"),
    ("Items", "items"),
    ("Properties", "properties"),
    ("ExternalDocs", "externalDocs"),
    ("Example", "example"),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields"),
    ("XValidations", "x-kubernetes-validations"),
];

/// What is wrong with `openAPIV3Schema` for a kind whose status is a subresource.
pub fn check_with_status(props: &Value, path: &FieldPath) -> Option<FieldError> {
    let object = props.as_object()?;
    let r#type = text(object, "type");
    if !r#type.is_empty() && r#type != "object" {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return Some(FieldError::invalid(&path.child("type"), r#type, detail));
    }
    let allowed = |name: &str| ROOT_WITH_STATUS.iter().any(|(_, known)| *known == name);
    let set = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
    object.iter().find(|(name, value)| set(value) && !allowed(name))?;
    let names = ROOT_WITH_STATUS.map(|(name, _)| name).join(" ");
    let detail = format!(
        "only [{names}] fields are allowed at the root of the schema if the status subresource is enabled"
    );
    Some(FieldError::invalid(path, props.clone(), detail))
}

/// Defaults must hold nothing unknown and be valid themselves.
fn check_defaults(props: &Props, metadata: &Ptr<Schema>, path: &FieldPath, errors: &mut Vec<FieldError>) {
    if let Some(default) = props.get("default").filter(|default| !default.is_null()) {
        let path = path.child("default");
        let schema = Builder { metadata }.schema(props);
        let pruned = decode::prune(default.clone(), &schema).map(|pruned| pruned.value);
        if pruned.as_ref() != Ok(default) {
            errors.push(FieldError::invalid(&path, default.clone(), "must not have unknown fields"));
        }
        errors.extend(validate::validate_at(default, None, &schema, Some(&path)));
    }
    for (path, props) in children(props, path) {
        check_defaults(props, metadata, &path, errors);
    }
}

fn is_shallow(value: &Value, levels: usize) -> bool {
    match value {
        Value::Object(object) => levels > 0 && object.values().all(|value| is_shallow(value, levels - 1)),
        Value::Array(items) => levels > 0 && items.iter().all(|value| is_shallow(value, levels - 1)),
        _ => true,
    }
}

/// The schemas of items, properties and additional properties, with their paths.
fn children<'a>(props: &'a Props, path: &FieldPath) -> Vec<(FieldPath, &'a Props)> {
    let mut children = Vec::new();
    for name in ["items", "additionalProperties"] {
        children.extend(props.get(name).and_then(Value::as_object).map(|props| (path.child(name), props)));
    }
    for (name, props) in object(props, "properties").into_iter().flatten() {
        children.extend(props.as_object().map(|props| (path.child("properties").key(name), props)));
    }
    children
}

fn object<'a>(props: &'a Props, name: &str) -> Option<&'a Props> {
    props.get(name).and_then(Value::as_object)
}

fn list<'a>(props: &'a Props, name: &str) -> &'a [Value] {
    props.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(props: &'a Props, name: &str) -> &'a str {
    props.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn flag(props: &Props, name: &str) -> bool {
    props.get(name).and_then(Value::as_bool).unwrap_or_default()
}

static BOOL: Schema = Schema::of(Shape::Bool);
static INT64: Schema = Schema::of(Shape::Int64);
static FLOAT64: Schema = Schema::of(Shape::Float64);
static STRING: Schema = Schema::of(Shape::String);
static INT_OR_STRING: Schema = Schema::of(Shape::IntOrString);
static ANY: Schema = Schema::of(Shape::Any(AnyKind::Unknown));

struct Builder<'a> {
    metadata: &'a Ptr<Schema>,
}

impl Builder<'_> {
    fn schema(&self, props: &Props) -> Schema {
        let validation = self.validation(props);
        Schema {
            shape: self.shape(props),
            nullable: flag(props, "nullable"),
            validation: validation.map(|validation| Ptr::Shared(validation.into())),
            ..Schema::of(Shape::Bool)
        }
    }

    /// Most properties are plain scalars, which all share one schema.
    fn shared(&self, props: &Props) -> Ptr<Schema> {
        let schema = self.schema(props);
        if schema.nullable || schema.validation.is_some() {
            return Ptr::Shared(schema.into());
        }
        match schema.shape {
            Shape::Bool => Ptr::Static(&BOOL),
            Shape::Int64 => Ptr::Static(&INT64),
            Shape::Float64 => Ptr::Static(&FLOAT64),
            Shape::String => Ptr::Static(&STRING),
            Shape::IntOrString => Ptr::Static(&INT_OR_STRING),
            Shape::Any(_) => Ptr::Static(&ANY),
            _ => Ptr::Shared(schema.into()),
        }
    }

    fn shape(&self, props: &Props) -> Shape {
        if flag(props, "x-kubernetes-int-or-string") {
            return Shape::IntOrString;
        }
        match text(props, "type") {
            "boolean" => Shape::Bool,
            "integer" => Shape::Int64,
            "number" => Shape::Float64,
            "string" => Shape::String,
            "array" => self.list(props),
            "object" => self.object(props),
            _ if props.contains_key("properties") || props.contains_key("additionalProperties") => {
                self.object(props)
            }
            _ if props.contains_key("items") => self.list(props),
            _ => Shape::Any(AnyKind::Unknown),
        }
    }

    fn list(&self, props: &Props) -> Shape {
        let item = match object(props, "items") {
            Some(items) => self.shared(items),
            None => Ptr::Static(&ANY),
        };
        let kind = match text(props, "x-kubernetes-list-type") {
            "set" => ListKind::Set,
            "map" => {
                let keys = list(props, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str);
                ListKind::Map(keys.map(|key| Text::from(key.to_owned())).collect())
            }
            _ => ListKind::Atomic,
        };
        Shape::List(ListShape::of(item, kind))
    }

    fn object(&self, props: &Props) -> Shape {
        let atomic = text(props, "x-kubernetes-map-type") == "atomic";
        let preserve_unknown = flag(props, "x-kubernetes-preserve-unknown-fields");
        let embedded_resource = flag(props, "x-kubernetes-embedded-resource");
        let properties = object(props, "properties");
        let additional = match props.get("additionalProperties") {
            Some(Value::Object(additional)) => Some(self.shared(additional)),
            // Members may be there; pruning empties those that are objects.
            Some(Value::Bool(true)) => Some(self.hollow()),
            _ => None,
        };
        if let Some(value) = &additional
            && properties.is_none_or(Map::is_empty)
            && !preserve_unknown
            && !embedded_resource
        {
            return Shape::Map(MapShape { value: value.clone(), atomic });
        }
        let required: Vec<&str> = list(props, "required").iter().filter_map(Value::as_str).collect();
        let fields = properties.into_iter().flatten().filter_map(|(name, props)| {
            let props = props.as_object()?;
            let default = props.get("default").filter(|default| !default.is_null());
            Some(Field {
                required: required.contains(&name.as_str()),
                default: default.map(|default| {
                    let mut text = Vec::new();
                    canonical::write_any(default, &mut text);
                    Text::from(String::from_utf8_lossy(&text).into_owned())
                }),
                ..Field::optional(Text::from(name.clone()), self.shared(props))
            })
        });
        let mut shape = ObjectShape {
            atomic,
            preserve_unknown,
            embedded_resource,
            additional,
            ..ObjectShape::of(fields.collect())
        };
        if embedded_resource {
            self.add_type_meta(&mut shape);
        }
        Shape::Object(shape)
    }

    fn hollow(&self) -> Ptr<Schema> {
        let validation = Validation { untyped: true, ..Validation::default() };
        let shape = Shape::Object(ObjectShape::of(std::iter::empty().collect()));
        let schema = Schema { validation: Some(Ptr::Shared(validation.into())), ..Schema::of(shape) };
        Ptr::Shared(schema.into())
    }

    /// `apiVersion`, `kind` and the real `metadata`, whatever the schema says of them.
    fn add_type_meta(&self, object: &mut ObjectShape) {
        let known = |name: &str| object.field(name).map(|field| field.schema.clone());
        let type_meta = [
            ("apiVersion", known("apiVersion").unwrap_or(Ptr::Static(&STRING))),
            ("kind", known("kind").unwrap_or(Ptr::Static(&STRING))),
            ("metadata", self.metadata.clone()),
        ];
        let type_meta = type_meta.map(|(name, schema)| Field::optional(Text::Static(name), schema));
        let others = object.fields.iter();
        let others = others.filter(|field| !type_meta.iter().any(|meta| meta.name == field.name)).cloned();
        object.fields = type_meta.iter().cloned().chain(others).collect();
    }

    /// `None` when there is nothing to check beyond the shape.
    fn validation(&self, props: &Props) -> Option<Validation> {
        let number = |name: &str| props.get(name).and_then(Value::as_f64);
        let count = |name: &str| props.get(name).and_then(Value::as_u64);
        let schemas = |name: &str| -> Vec<Schema> {
            list(props, name).iter().filter_map(Value::as_object).map(|props| self.schema(props)).collect()
        };
        let mut validation = Validation {
            untyped: text(props, "type").is_empty() && !flag(props, "x-kubernetes-int-or-string"),
            required: texts(props, "required"),
            format: Some(text(props, "format"))
                .filter(|format| is_checked_format(format, text(props, "type")))
                .map(|format| Text::from(format.to_owned())),
            minimum: number("minimum"),
            exclusive_minimum: flag(props, "exclusiveMinimum"),
            maximum: number("maximum"),
            exclusive_maximum: flag(props, "exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            pattern: props.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty()).map(own),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: flag(props, "uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            enum_values: list(props, "enum").to_vec(),
            all_of: schemas("allOf"),
            any_of: schemas("anyOf"),
            one_of: schemas("oneOf"),
            not: object(props, "not").map(|not| Box::new(self.schema(not))),
            rules: list(props, "x-kubernetes-validations").iter().filter_map(rule).collect(),
            ..Validation::default()
        };
        // A value validation may speak of both members and items; a shape can be only one of them.
        if validation.untyped && props.contains_key("items") && props.contains_key("properties") {
            let items = Props::from_iter([("items".to_owned(), props["items"].clone())]);
            validation.all_of.push(self.schema(&items));
        }
        let shapes = ["properties", "additionalProperties", "items"];
        let plain = shapes.iter().all(|name| !props.contains_key(*name));
        (!is_trivial(&validation, plain)).then_some(validation)
    }
}

/// True when there is nothing to check. `plain` shapes need not be told that they have no type.
fn is_trivial(v: &Validation, plain: bool) -> bool {
    let numbers = [v.minimum, v.maximum, v.multiple_of].iter().all(Option::is_none);
    let counts = [v.min_length, v.max_length, v.min_items, v.max_items, v.min_properties, v.max_properties];
    (plain || !v.untyped)
        && numbers
        && counts.iter().all(Option::is_none)
        && [&v.all_of, &v.any_of, &v.one_of].iter().all(|schemas| schemas.is_empty())
        && v.required.is_empty()
        && v.format.is_none()
        && v.pattern.is_none()
        && v.not.is_none()
        && v.rules.is_empty()
        && v.enum_values.is_empty()
        && !v.unique_items
}

/// Formats apply to strings only; those of numbers are not enforced upstream.
fn is_checked_format(format: &str, r#type: &str) -> bool {
    matches!(r#type, "" | "string") && validate::is_supported_format(format)
}

fn own(text: &str) -> Text {
    Text::from(text.to_owned())
}

fn texts(props: &Props, name: &str) -> Vec<Text> {
    list(props, name).iter().filter_map(Value::as_str).map(own).collect()
}

fn rule(rule: &Value) -> Option<ValidationRule> {
    let rule = rule.as_object()?;
    let own = |name: &str| text(rule, name).to_owned();
    Some(ValidationRule {
        rule: own("rule"),
        message: own("message"),
        message_expression: own("messageExpression"),
        reason: own("reason"),
        field_path: own("fieldPath"),
        optional_old_self: flag(rule, "optionalOldSelf"),
    })
}
