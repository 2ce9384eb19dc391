//! Stable short hashes that end up in names and labels.

use serde::Serialize;
use serde_json::Value;

/// Letters that form no words and digits that look like none.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a pod template, FNV-32a over its canonical JSON, changed by the number of collisions so far.
pub(crate) fn template_hash(template: &impl Serialize, collisions: Option<i32>) -> String {
    let mut hash = fnv32a(0x811c_9dc5, canonical(template).to_string().as_bytes());
    if let Some(count) = collisions {
        hash = fnv32a(hash, &i64::from(count).to_le_bytes());
    }
    safe_encode(&hash.to_string())
}

/// The hash of a revision's data.
pub(crate) fn revision_hash(data: &Value, collisions: Option<i32>) -> String {
    let mut hash = fnv32a(0x811c_9dc5, data.to_string().as_bytes());
    if let Some(count) = collisions {
        hash = fnv32a(hash, count.to_string().as_bytes());
    }
    safe_encode(&hash.to_string())
}

/// The value as JSON with sorted keys and without empty members, so that unset and empty are equal.
pub(crate) fn canonical(value: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(value).unwrap_or(Value::Null);
    prune(&mut value);
    value
}

/// True if the API server would store the same status for both: it leaves out zeros as it leaves out what is unset.
pub(crate) fn same_status<T: Serialize>(old: Option<&T>, new: &T) -> bool {
    let stored = |status: &T| {
        let mut value = serde_json::to_value(status).unwrap_or(Value::Null);
        prune_zeros(&mut value);
        value
    };
    old.is_some_and(|old| stored(old) == stored(new))
}

fn prune_zeros(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(prune_zeros);
            members.retain(|_, member| !is_zero(member));
        }
        Value::Array(items) => items.iter_mut().for_each(prune_zeros),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Object(_) | Value::Array(_) => is_empty(value),
    }
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(prune);
            members.retain(|_, member| !is_empty(member));
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn fnv32a(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn safe_encode(text: &str) -> String {
    text.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_content_hashes_equally_and_collisions_change_it() {
        let one = json!({"spec": {"a": 1, "b": [], "c": {}}, "metadata": {"labels": {}}});
        let two = json!({"spec": {"a": 1}});
        assert_eq!(template_hash(&one, None), template_hash(&two, None));
        assert_ne!(template_hash(&one, None), template_hash(&one, Some(1)));
        assert_ne!(template_hash(&one, None), template_hash(&json!({"spec": {"a": 2}}), None));
        assert!(template_hash(&one, None).bytes().all(|byte| ALPHABET.contains(&byte)));
        assert!(same_status(Some(&json!({"active": 0, "list": []})), &json!({"list": null})));
        assert!(!same_status(Some(&json!({"active": 1})), &json!({})));
        assert!(!same_status(None, &json!({})), "a status that was never written is written");
        // Known answer: hashes are names of objects and must not change between versions.
        assert_eq!(fnv32a(0x811c_9dc5, b"foobar"), 0xbf9c_f968);
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
    }
}
