//! What several plugins do with tolerations.

use serde_json::Value;

use super::list_mut;
use crate::objects::ObjectExt as _;

/// Adds a toleration to a pod, unless an equal one is there. One that differs in nothing but its seconds takes the
/// place of the old one.
pub(super) fn add(pod: &mut Value, toleration: Value) {
    let own = list_mut(pod, &["spec", "tolerations"]);
    match own.iter_mut().find(|known| matches(known, &toleration)) {
        Some(known) => *known = toleration,
        None => own.push(toleration),
    }
}

/// Same key, operator, value and effect.
fn matches(a: &Value, b: &Value) -> bool {
    let operator = |toleration: &Value| match toleration.str_at(&["operator"]) {
        "" => "Equal".to_owned(),
        operator => operator.to_owned(),
    };
    ["key", "value", "effect"].iter().all(|field| a.str_at(&[field]) == b.str_at(&[field]))
        && operator(a) == operator(b)
}

/// Whether `outer` tolerates all that `inner` does.
pub(super) fn is_superset(outer: &Value, inner: &Value) -> bool {
    let (key, effect) = (outer.str_at(&["key"]), outer.str_at(&["effect"]));
    let exists = outer.str_at(&["operator"]) == "Exists";
    if matches(outer, inner) && outer.get("tolerationSeconds") == inner.get("tolerationSeconds") {
        return true;
    }
    if (!key.is_empty() && key != inner.str_at(&["key"])) || (key.is_empty() && !exists) {
        return false;
    }
    if !effect.is_empty() && effect != inner.str_at(&["effect"]) {
        return false;
    }
    if effect == "NoExecute"
        && let Some(limit) = outer.get("tolerationSeconds").and_then(Value::as_i64)
        && inner.get("tolerationSeconds").and_then(Value::as_i64).is_none_or(|seconds| seconds > limit)
    {
        return false;
    }
    exists
        || (inner.str_at(&["operator"]) != "Exists" && outer.str_at(&["value"]) == inner.str_at(&["value"]))
}
