//! Rules for every part of a schema, structural or not: supported keywords, list and map types, rules.

use meta::field::{FieldError, FieldPath};
use serde_json::Value;

use super::{Props, flag, list, object, text};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// All errors of a root schema.
pub(super) fn check(props: &Props, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(props, path, &Place { root: true, ..Place::default() }, &mut errors);
    errors
}

/// What the surroundings forbid.
#[derive(Default, Clone)]
struct Place {
    root: bool,
    no_defaults: Option<String>,
    in_metadata: bool,
}

fn walk(props: &Props, path: &FieldPath, place: &Place, errors: &mut Vec<FieldError>) {
    keywords(props, path, place, errors);
    let inner = Place { root: false, ..place.clone() };
    let properties = object(props, "properties").filter(|properties| !properties.is_empty());
    if let Some(additional) = props.get("additionalProperties").filter(|value| !value.is_null()) {
        let path = path.child("additionalProperties");
        if properties.is_some() && *additional != Value::Bool(true) {
            let detail = "additionalProperties and properties are mutual exclusive";
            errors.push(FieldError::forbidden(&path, detail));
        }
        if let Some(additional) = additional.as_object() {
            let mut inner = inner.clone();
            if place.in_metadata {
                let reason = "inside additionalProperties applying to object metadata";
                inner.no_defaults = Some(reason.to_owned());
            }
            walk(additional, &path, &inner, errors);
        }
    }
    let resource = place.root || flag(props, "x-kubernetes-embedded-resource");
    for (name, property) in properties.into_iter().flatten() {
        let Some(property) = property.as_object() else { continue };
        let mut inner = inner.clone();
        if resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            inner.in_metadata = true;
            if place.root {
                inner.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        walk(property, &path.child("properties").key(name), &inner, errors);
    }
    if let Some(not) = object(props, "not") {
        walk(not, &path.child("not"), &inner, errors);
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        for (index, nested) in list(props, name).iter().enumerate() {
            if let Some(nested) = nested.as_object() {
                walk(nested, &path.child(name).index(index), &inner, errors);
            }
        }
    }
    if let Some(items) = object(props, "items") {
        walk(items, &path.child("items"), &inner, errors);
    }
    extensions(props, path, errors);
    list_type(props, path, errors);
    map_keys(props, path, errors);
    rules(props, path, errors);
}

fn keywords(props: &Props, path: &FieldPath, place: &Place, errors: &mut Vec<FieldError>) {
    let mut forbid = |name: &str, detail: &str| errors.push(FieldError::forbidden(&path.child(name), detail));
    if props.get("default").is_some_and(|default| !default.is_null())
        && let Some(reason) = &place.no_defaults
    {
        forbid("default", &format!("must not be set {reason}"));
    }
    for name in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        if props.get(name).is_some_and(|value| !value.is_null()) {
            forbid(name, &format!("{name} is not supported"));
        }
    }
    let r#type = text(props, "type");
    if r#type == "null" {
        forbid("type", "type cannot be set to null, use nullable as an alternative");
    }
    if props.get("items").is_some_and(Value::is_array) {
        forbid("items", "items must be a schema object and not an array");
    }
    if place.in_metadata && flag(props, "x-kubernetes-embedded-resource") {
        forbid("x-kubernetes-embedded-resource", "must not be used inside of resource meta");
    }
    if flag(props, "uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        forbid("uniqueItems", detail);
    }
    if !r#type.is_empty() && !TYPES.contains(&r#type) {
        errors.push(FieldError::not_supported(&path.child("type"), r#type, &TYPES));
    }
}

fn extensions(props: &Props, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let preserve = "x-kubernetes-preserve-unknown-fields";
    if props.get(preserve).and_then(Value::as_bool) == Some(false) {
        errors.push(FieldError::invalid(&path.child(preserve), false, "must be true or undefined"));
    }
    let r#type = text(props, "type");
    for (name, wanted, known) in [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
        ("x-kubernetes-list-type", "array", &["atomic", "set", "map"][..]),
    ] {
        let Some(value) = props.get(name).and_then(Value::as_str) else { continue };
        let detail = format!("must be {wanted} if {name} is specified");
        match r#type {
            found if found == wanted => {}
            "" => errors.push(FieldError::required(&path.child("type"), detail)),
            other => errors.push(FieldError::invalid(&path.child("type"), other, detail)),
        }
        if !known.contains(&value) {
            errors.push(FieldError::not_supported(&path.child(name), value, known));
        }
    }
}

/// Items of sets must be atomic, items of sets and maps never null.
fn list_type(props: &Props, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let kind = text(props, "x-kubernetes-list-type");
    let Some(items) = object(props, "items").filter(|_| matches!(kind, "set" | "map")) else { return };
    let path = path.child("items");
    if kind == "set" {
        let extension = match text(items, "type") {
            "array" => {
                Some("x-kubernetes-list-type").filter(|name| !matches!(text(items, name), "" | "atomic"))
            }
            "object" => Some("x-kubernetes-map-type").filter(|name| text(items, name) != "atomic"),
            _ => None,
        };
        if let Some(name) = extension {
            let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let value = items.get(name).cloned().unwrap_or_default();
            errors.push(FieldError::invalid(&path.child(name), value, detail));
        }
    }
    if flag(items, "nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
        errors.push(FieldError::forbidden(&path.child("nullable"), detail));
    }
}

fn map_keys(props: &Props, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let kind = props.get("x-kubernetes-list-type").and_then(Value::as_str);
    let keys: Vec<&str> =
        list(props, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).collect();
    let keys_path = path.child("x-kubernetes-list-map-keys");
    let type_path = path.child("x-kubernetes-list-type");
    let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
    match kind {
        Some("map") => {}
        None if !keys.is_empty() => return errors.push(FieldError::required(&type_path, detail)),
        Some(other) if !keys.is_empty() => {
            return errors.push(FieldError::invalid(&type_path, other, detail));
        }
        _ => return,
    }
    if keys.is_empty() {
        let detail = "must not be empty if x-kubernetes-list-type is map";
        errors.push(FieldError::required(&keys_path, detail));
    }
    let path = path.child("items");
    let Some(items) = object(props, "items") else {
        let detail = "must have a schema if x-kubernetes-list-type is map";
        return errors.push(FieldError::required(&path, detail));
    };
    if text(items, "type") != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        return errors.push(FieldError::invalid(&path.child("type"), text(items, "type"), detail));
    }
    for (index, key) in keys.iter().enumerate() {
        map_key(items, key, &keys, &keys_path, &path, errors);
        if keys[..index].contains(key) {
            let all = Value::from(keys.clone());
            errors.push(FieldError::invalid(&keys_path, all, "must not contain duplicate entries"));
        }
    }
}

fn map_key(
    items: &Props,
    key: &str,
    keys: &[&str],
    keys_path: &FieldPath,
    items_path: &FieldPath,
    errors: &mut Vec<FieldError>,
) {
    let Some(property) = object(items, "properties").and_then(|properties| object(properties, key)) else {
        let all = Value::from(keys.to_vec());
        return errors.push(FieldError::invalid(
            keys_path,
            all,
            "entries must all be names of item properties",
        ));
    };
    let path = items_path.child("properties").key(key);
    if matches!(text(property, "type"), "array" | "object") {
        let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(&path.child("type"), text(items, "type"), detail));
    }
    let required = list(items, "required").iter().any(|name| name.as_str() == Some(key));
    if !required && property.get("default").is_none_or(Value::is_null) {
        let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                      property";
        errors.push(FieldError::required(&path.child("default"), detail));
    }
    if flag(property, "nullable") {
        let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
        errors.push(FieldError::forbidden(&path.child("nullable"), detail));
    }
}

/// The form of `x-kubernetes-validations`; what the rules say is compiled elsewhere.
fn rules(props: &Props, path: &FieldPath, errors: &mut Vec<FieldError>) {
    for (index, rule) in list(props, "x-kubernetes-validations").iter().enumerate() {
        let Some(rule) = rule.as_object() else { continue };
        let path = path.child("x-kubernetes-validations").index(index);
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        let given = |name: &str| !text(rule, name).is_empty();
        let blank = |name: &str| given(name) && text(rule, name).trim().is_empty();
        let broken = |text: &str| text.contains(['\n', '\r']);
        if expression.is_empty() {
            errors.push(FieldError::required(&path.child("rule"), "rule is not specified"));
        } else if blank("message") {
            let detail = "must be non-empty if specified";
            errors.push(FieldError::invalid(&path.child("message"), message, detail));
        } else if broken(message.trim()) {
            errors.push(FieldError::invalid(&path.child("message"), message, "must not contain line breaks"));
        } else if broken(expression) && message.trim().is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(&path.child("message"), detail));
        }
        if blank("messageExpression") {
            let detail = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(&path.child("messageExpression"), detail));
        }
        if given("reason") && !REASONS.contains(&text(rule, "reason")) {
            errors.push(FieldError::not_supported(&path.child("reason"), text(rule, "reason"), &REASONS));
        }
        let field_path = text(rule, "fieldPath");
        for (wrong, detail) in [
            (blank("fieldPath"), "must be non-empty if specified"),
            (broken(field_path), "must not contain line breaks"),
            (given("fieldPath") && !leads_somewhere(props, field_path), "must be a valid path"),
        ] {
            if wrong {
                errors.push(FieldError::invalid(&path.child("fieldPath"), field_path, detail));
            }
        }
    }
}

/// True when a path such as `.spec.a['b']` names declared properties all the way.
fn leads_somewhere(props: &Props, path: &str) -> bool {
    let mut props = props;
    let mut rest = path.trim();
    if !rest.starts_with(['.', '[']) {
        return false;
    }
    while !rest.is_empty() {
        let (name, after) = if let Some(after) = rest.strip_prefix("['") {
            let Some((name, after)) = after.split_once("']") else { return false };
            (name, after)
        } else if let Some(after) = rest.strip_prefix('.') {
            after.split_at(after.find(['.', '[']).unwrap_or(after.len()))
        } else {
            return false;
        };
        let property = object(props, "properties").and_then(|properties| object(properties, name));
        match property.or_else(|| object(props, "additionalProperties")) {
            Some(inner) => props = inner,
            None => return false,
        }
        rest = after;
    }
    true
}
