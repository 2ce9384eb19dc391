//! A status change as the smallest strategic merge patch that leaves other components' conditions alone.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

use super::status::is_owned;

/// Lists merged by key upstream, replaced whole here: the kubelet is their only writer.
const REPLACED: [(&str, &str); 2] = [("podIPs", "ip"), ("hostIPs", "ip")];

/// Nothing when the two do not differ.
pub(crate) fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (Ok(Value::Object(old)), Ok(Value::Object(new))) =
        (serde_json::to_value(old), serde_json::to_value(new))
    else {
        return None;
    };
    let mut status = Map::new();
    for (key, value) in &new {
        if key == "conditions" {
            let changed = changed_conditions(old.get(key), value);
            if !changed.is_empty() {
                status.insert(key.clone(), Value::Array(changed));
            }
        } else if old.get(key) != Some(value) {
            status.insert(key.clone(), replaced(key, old.get(key), value));
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        status.insert(key.clone(), Value::Null);
    }
    if status.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"uid": uid}, "status": status}))
}

fn changed_conditions(old: Option<&Value>, new: &Value) -> Vec<Value> {
    let kind = |c: &Value| c.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let old = old.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut changed = Vec::new();
    for condition in new.as_array().into_iter().flatten().filter(|c| is_owned(&kind(c))) {
        let before = old.iter().find(|o| kind(o) == kind(condition));
        if before == Some(condition) {
            continue;
        }
        let mut condition = condition.clone();
        // What is merged by key keeps fields that are not named, so gone ones are named as null.
        if let (Some(fields), Some(before)) = (condition.as_object_mut(), before.and_then(Value::as_object)) {
            for key in before.keys() {
                fields.entry(key.clone()).or_insert(Value::Null);
            }
        }
        changed.push(condition);
    }
    changed
}

fn replaced(key: &str, old: Option<&Value>, new: &Value) -> Value {
    let Some((_, merge_key)) = REPLACED.iter().find(|(name, _)| *name == key) else { return new.clone() };
    let mut list = new.as_array().cloned().unwrap_or_default();
    for item in old.and_then(Value::as_array).into_iter().flatten() {
        if !list.contains(item) {
            list.push(json!({ "$patch": "delete", *merge_key: item.get(*merge_key) }));
        }
    }
    Value::Array(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_what_changed_is_sent() {
        let old = json!({"phase": "Pending", "reason": "x", "podIPs": [{"ip": "1"}], "conditions": [
            {"type": "Ready", "status": "False", "reason": "r"}, {"type": "mine", "status": "True"},
            {"type": "Initialized", "status": "True"}]});
        let new = json!({"phase": "Running", "podIPs": [{"ip": "2"}], "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "mine", "status": "False"},
            {"type": "Initialized", "status": "True"}]});
        let expected = json!({"metadata": {"uid": "u"}, "status": {
            "phase": "Running", "reason": null,
            "podIPs": [{"ip": "2"}, {"$patch": "delete", "ip": "1"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": null}]}});
        assert_eq!(patch("u", &status(old.clone()), &status(new)), Some(expected));
        assert_eq!(patch("u", &status(old.clone()), &status(old)), None);
    }
}
