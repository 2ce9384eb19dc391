//! The rules of structural schemas: every part has a type outside of `allOf`, `anyOf`, `oneOf` and `not`, and what
//! stands inside those only narrows what stands outside.

use meta::field::{FieldError, FieldPath};
use serde_json::{Value, json};

use super::{Props, children, flag, list, object, text};
use crate::validate::pattern;

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// All errors, sorted by their text.
pub(super) fn check(props: &Props, path: &FieldPath) -> Vec<FieldError> {
    let mut checker = Checker::default();
    checker.invariants(props, Level::Root, path);
    checker.completeness(Some(props), props, path, path);
    checker.errors.sort_by_cached_key(FieldError::to_string);
    checker.errors
}

#[derive(Default)]
struct Checker {
    errors: Vec<FieldError>,
}

impl Checker {
    fn required(&mut self, path: &FieldPath, detail: &str) {
        self.errors.push(FieldError::required(path, detail));
    }

    fn forbidden(&mut self, path: &FieldPath, detail: &str) {
        self.errors.push(FieldError::forbidden(path, detail));
    }

    fn invalid(&mut self, path: &FieldPath, value: impl Into<Value>, detail: &str) {
        self.errors.push(FieldError::invalid(path, value, detail));
    }

    fn invariants(&mut self, props: &Props, level: Level, path: &FieldPath) {
        if text(props, "type") == "array" && !props.contains_key("items") {
            self.required(&path.child("items"), "must be specified");
        }
        if level == Level::Root && props.get("additionalProperties").is_some_and(|p| !p.is_null()) {
            self.forbidden(&path.child("additionalProperties"), "must not be used at the root");
        }
        for (child_path, child) in children(props, path) {
            let is_item = object(props, "items").is_some_and(|items| std::ptr::eq(items, child));
            self.invariants(child, if is_item { Level::Item } else { Level::Field }, &child_path);
        }
        self.int_or_string(props, path);
        let first_all_of = list(props, "allOf").first().and_then(Value::as_object);
        let skip_any_of = is_int_or_string(list(props, "anyOf"));
        let skip_first = first_all_of.is_some_and(|first| is_int_or_string(list(first, "anyOf")));
        self.value_validation(props, skip_any_of, skip_first, path);
        self.types(props, level, path);
        self.type_meta(props, level, path);
    }

    fn int_or_string(&mut self, props: &Props, path: &FieldPath) {
        if !flag(props, "x-kubernetes-int-or-string") {
            return;
        }
        for name in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
            if flag(props, name) {
                let detail = "must be false if x-kubernetes-int-or-string is true";
                self.invalid(&path.child(name), true, detail);
            }
        }
    }

    fn types(&mut self, props: &Props, level: Level, path: &FieldPath) {
        let r#type = text(props, "type");
        let embedded = flag(props, "x-kubernetes-embedded-resource");
        let preserve = flag(props, "x-kubernetes-preserve-unknown-fields");
        if embedded && r#type != "object" {
            let detail = "must be object if x-kubernetes-embedded-resource is true";
            match r#type {
                "" => self.required(&path.child("type"), detail),
                other => self.invalid(&path.child("type"), other, detail),
            }
        } else if r#type.is_empty() && !flag(props, "x-kubernetes-int-or-string") && !preserve {
            self.required(
                &path.child("type"),
                match level {
                    Level::Root => "must not be empty at the root",
                    Level::Item => "must not be empty for specified array items",
                    Level::Field => "must not be empty for specified object fields",
                },
            );
        }
        if embedded && props.contains_key("additionalProperties") {
            let detail = "must not be used if x-kubernetes-embedded-resource is set";
            self.forbidden(&path.child("additionalProperties"), detail);
        }
        if level == Level::Root && !r#type.is_empty() && r#type != "object" {
            self.invalid(&path.child("type"), r#type, "must be object at the root");
        }
        if embedded && !preserve && object(props, "properties").is_none_or(Props::is_empty) {
            let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                          x-kubernetes-preserve-unknown-fields";
            self.required(&path.child("properties"), detail);
        }
    }

    /// What a schema may say of `kind`, `apiVersion` and `metadata`.
    fn type_meta(&mut self, props: &Props, level: Level, path: &FieldPath) {
        let Some(properties) = object(props, "properties") else { return };
        let resource = level == Level::Root || flag(props, "x-kubernetes-embedded-resource");
        for name in ["kind", "apiVersion"] {
            let found = object(properties, name).filter(|_| resource).map(|props| text(props, "type"));
            if let Some(found) = found.filter(|found| *found != "string") {
                self.invalid(&path.child("properties").key(name).child("type"), found, "must be string");
            }
        }
        let Some(metadata) = object(properties, "metadata") else { return };
        let path = path.child("properties").key("metadata");
        if resource && text(metadata, "type") != "object" {
            self.invalid(&path.child("type"), text(metadata, "type"), "must be object");
        }
        if level != Level::Root {
            return;
        }
        let named = |properties: &Props| {
            properties.keys().all(|name| matches!(name.as_str(), "name" | "generateName"))
        };
        let other = metadata.iter().any(|(name, value)| match name.as_str() {
            "type" | "default" => false,
            "properties" => !value.as_object().is_some_and(named),
            _ => true,
        });
        if other {
            let detail = "must not specify anything other than name and generateName, but metadata is \
                          implicitly specified";
            self.forbidden(&path, detail);
        }
    }

    fn value_validation(&mut self, props: &Props, skip_any_of: bool, skip_first: bool, path: &FieldPath) {
        for name in ["anyOf", "allOf", "oneOf"] {
            if name == "anyOf" && skip_any_of {
                continue;
            }
            for (index, nested) in list(props, name).iter().enumerate() {
                let Some(nested) = nested.as_object() else { continue };
                let skip = name == "allOf" && index == 0 && skip_first;
                self.nested(nested, skip, &path.child(name).index(index));
            }
        }
        if let Some(not) = object(props, "not") {
            self.nested(not, false, &path.child("not"));
        }
        let expression = text(props, "pattern");
        if let Err(error) = pattern::compile(expression) {
            let detail = format!("must be a valid regular expression, but isn't: {error}");
            self.invalid(&path.child("pattern"), expression, &detail);
        }
    }

    /// A schema under `anyOf` and the like.
    fn nested(&mut self, props: &Props, skip_any_of: bool, path: &FieldPath) {
        self.value_validation(props, skip_any_of, false, path);
        if let Some(items) = object(props, "items") {
            self.nested(items, false, &path.child("items"));
        }
        for (name, nested) in object(props, "properties").into_iter().flatten() {
            if let Some(nested) = nested.as_object() {
                self.nested(nested, false, &path.child("properties").key(name));
            }
        }
        const EMPTY: &str = "must be empty to be structural";
        const FALSE: &str = "must be false to be structural";
        const UNDEFINED: &str = "must be undefined to be structural";
        for (name, detail) in [
            ("type", EMPTY),
            ("additionalProperties", UNDEFINED),
            ("default", UNDEFINED),
            ("title", EMPTY),
            ("description", EMPTY),
            ("nullable", FALSE),
            ("x-kubernetes-preserve-unknown-fields", FALSE),
            ("x-kubernetes-embedded-resource", FALSE),
            ("x-kubernetes-int-or-string", FALSE),
            ("x-kubernetes-list-map-keys", EMPTY),
            ("x-kubernetes-list-type", UNDEFINED),
            ("x-kubernetes-map-type", UNDEFINED),
            ("x-kubernetes-validations", EMPTY),
        ] {
            if props.get(name).is_some_and(is_set) {
                self.forbidden(&path.child(name), detail);
            }
        }
        if object(props, "properties").is_some_and(|properties| properties.contains_key("metadata")) {
            let detail = "must not be specified in a nested context";
            self.forbidden(&path.child("properties").key("metadata"), detail);
        }
    }

    /// What value validations speak of must be declared outside of them.
    fn completeness(
        &mut self,
        declared: Option<&Props>,
        validation: &Props,
        path: &FieldPath,
        validation_path: &FieldPath,
    ) {
        let Some(declared) = declared else {
            return self.required(path, &format!("because it is defined in {validation_path}"));
        };
        let not = object(validation, "not").map(|not| (validation_path.child("not"), not));
        let lists = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|name| {
            let nested = list(validation, name).iter().enumerate();
            nested.filter_map(move |(index, nested)| {
                Some((validation_path.child(name).index(index), nested.as_object()?))
            })
        });
        for (nested_path, nested) in not.into_iter().chain(lists) {
            self.nested_completeness(declared, nested, path, &nested_path);
        }
    }

    fn nested_completeness(
        &mut self,
        declared: &Props,
        validation: &Props,
        path: &FieldPath,
        validation_path: &FieldPath,
    ) {
        self.completeness(Some(declared), validation, path, validation_path);
        let mut step =
            |declared: Option<&Props>, validation: &Props, path: FieldPath, from: FieldPath| match declared {
                Some(declared) => self.nested_completeness(declared, validation, &path, &from),
                None => self.required(&path, &format!("because it is defined in {from}")),
            };
        if let Some(items) = object(validation, "items") {
            step(object(declared, "items"), items, path.child("items"), validation_path.child("items"));
        }
        for (name, nested) in object(validation, "properties").into_iter().flatten() {
            let Some(nested) = nested.as_object() else { continue };
            let known = object(declared, "properties").and_then(|properties| object(properties, name));
            let at = |path: &FieldPath| path.child("properties").key(name);
            step(known, nested, at(path), at(validation_path));
        }
    }
}

/// `anyOf` of just the types integer and string.
fn is_int_or_string(any_of: &[Value]) -> bool {
    matches!(any_of, [a, b] if *a == json!({"type": "integer"}) && *b == json!({"type": "string"}))
}

/// True for what Go does not consider a zero value.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}
