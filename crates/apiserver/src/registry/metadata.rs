//! `metadata`: what the server sets, keeps and checks on every object (upstream's ValidateObjectMeta).

use jiff::Timestamp;
use meta::content;
use meta::field::{FieldError, FieldPath};
use serde_json::{Map, Value};

use super::strategy::{Generation, Strategy};
use crate::objects::ObjectExt;

/// Bytes of all annotations together.
const ANNOTATIONS_BYTES: usize = 256 << 10;
/// Characters of `generateName` that survive when the name would be too long.
const GENERATED_BASE: usize = 58;
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_SUFFIX: usize = 5;

/// Fields that a client cannot set at creation.
const SERVER_OWNED: [&str; 6] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"];

/// Sets what the server decides when an object comes to be.
pub(super) fn fill_new(object: &mut Value, strategy: &dyn Strategy, now: Timestamp) {
    let metadata = object.metadata_mut();
    for field in SERVER_OWNED {
        metadata.remove(field);
    }
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".to_owned(), meta::time::format(now).into());
    if strategy.generation() == Generation::Spec {
        metadata.insert("generation".to_owned(), 1.into());
    }
    if object.name().is_empty() && !object.meta_str("generateName").is_empty() {
        let name = generate_name(object.meta_str("generateName"));
        object.metadata_mut().insert("name".to_owned(), name.into());
    }
}

/// Puts back what an update cannot change.
pub(super) fn keep_old(object: &mut Value, old: &Value) {
    let metadata = object.metadata_mut();
    let before = old.metadata();
    for field in SERVER_OWNED.into_iter().chain(["name", "namespace"]) {
        match before.and_then(|before| before.get(field)) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

/// One more if anything but `metadata` and `status` differs.
pub(super) fn bump_generation(object: &mut Value, old: &Value) {
    if without_status(object).eq(without_status(old)) {
        return;
    }
    let generation = old.at(&["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0) + 1;
    object.metadata_mut().insert("generation".to_owned(), generation.into());
}

fn without_status(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
}

fn generate_name(base: &str) -> String {
    let mut name: String = base.chars().take(GENERATED_BASE).collect();
    for _ in 0..NAME_SUFFIX {
        let index = usize::from(rand::random::<u16>()) % NAME_ALPHABET.len();
        name.push(char::from(NAME_ALPHABET[index]));
    }
    name
}

/// Every error of an object's metadata.
pub(super) fn validate(object: &Value, namespaced: bool, strategy: &dyn Strategy) -> Vec<FieldError> {
    let path = FieldPath::root("metadata");
    let mut errors = Vec::new();
    let generate_name = object.meta_str("generateName");
    if !generate_name.is_empty() {
        let probe = format!("{}a", generate_name.trim_end_matches('-'));
        for text in strategy.name_errors(&probe) {
            errors.push(FieldError::invalid(&path.child("generateName"), generate_name, text));
        }
    }
    let name = object.name();
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), "name or generateName is required"));
    } else {
        for text in strategy.name_errors(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, text));
        }
    }
    let namespace = object.namespace();
    if namespaced && namespace.is_empty() {
        errors.push(FieldError::required(&path.child("namespace"), ""));
    } else if namespaced {
        for text in content::dns1123_label(namespace) {
            errors.push(FieldError::invalid(&path.child("namespace"), namespace, text));
        }
    } else if !namespace.is_empty() {
        errors.push(FieldError::forbidden(&path.child("namespace"), "not allowed on this type"));
    }
    errors.extend(validate_labels(object.labels(), &path.child("labels")));
    errors.extend(validate_annotations(object, &path.child("annotations")));
    errors.extend(validate_owners(object, &path.child("ownerReferences")));
    errors.extend(validate_finalizers(object, &path.child("finalizers")));
    errors
}

/// As [`validate`], plus what an update may not change.
pub(super) fn validate_update(
    object: &Value,
    old: &Value,
    namespaced: bool,
    strategy: &dyn Strategy,
) -> Vec<FieldError> {
    let mut errors = validate(object, namespaced, strategy);
    if !old.is_terminating() {
        return errors;
    }
    let before = finalizers(old);
    let added: Vec<&str> =
        finalizers(object).into_iter().filter(|finalizer| !before.contains(finalizer)).collect();
    if !added.is_empty() {
        let list = added.iter().map(|own| format!("\"{own}\"")).collect::<Vec<_>>().join(", ");
        errors.push(FieldError::forbidden(
            &FieldPath::root("metadata").child("finalizers"),
            format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"),
        ));
    }
    errors
}

pub(super) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.at(&["metadata", "finalizers"]).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Labels, wherever they stand (`metadata.labels`, a template's, a selector's).
pub(super) fn validate_labels(labels: Option<&Map<String, Value>>, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.into_iter().flatten() {
        for text in content::label_key(key) {
            errors.push(FieldError::invalid(path, key.as_str(), text));
        }
        let value = value.as_str().unwrap_or_default();
        for text in content::label_value(value) {
            errors.push(FieldError::invalid(path, value, text));
        }
    }
    errors
}

fn validate_annotations(object: &Value, path: &FieldPath) -> Vec<FieldError> {
    let annotations = object.at(&["metadata", "annotations"]).and_then(Value::as_object);
    let (mut errors, mut bytes) = (Vec::new(), 0);
    for (key, value) in annotations.into_iter().flatten() {
        for text in content::label_key(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, key.as_str(), text));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES {
        errors.push(FieldError::too_long(path, ANNOTATIONS_BYTES));
    }
    errors
}

fn validate_owners(object: &Value, path: &FieldPath) -> Vec<FieldError> {
    let owners = object.at(&["metadata", "ownerReferences"]).and_then(Value::as_array);
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for owner in owners.into_iter().flatten() {
        let api_version = owner.str_at(&["apiVersion"]);
        let version = api_version.rsplit_once('/').map_or(api_version, |(_, version)| version);
        if version.is_empty() {
            let path = path.child("apiVersion");
            errors.push(FieldError::invalid(&path, api_version, "version must not be empty"));
        }
        for (field, detail) in
            [("kind", "must not be empty"), ("name", "must not be empty"), ("uid", "must not be empty")]
        {
            if owner.str_at(&[field]).is_empty() {
                errors.push(FieldError::invalid(&path.child(field), "", detail));
            }
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            let described = format!("{}/{}", owner.str_at(&["kind"]), owner.str_at(&["name"]));
            match &controller {
                Some(first) => errors.push(FieldError::invalid(
                    path,
                    Value::Array(owners.cloned().unwrap_or_default()),
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {described}"),
                )),
                None => controller = Some(described),
            }
        }
    }
    errors
}

fn validate_finalizers(object: &Value, path: &FieldPath) -> Vec<FieldError> {
    let finalizers = finalizers(object);
    let mut errors = Vec::new();
    for &finalizer in &finalizers {
        for text in content::label_key(finalizer) {
            errors.push(FieldError::invalid(path, finalizer, text));
        }
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        errors.push(FieldError::invalid(
            path,
            Value::from(finalizers),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errors
}
