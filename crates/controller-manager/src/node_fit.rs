//! Whether a pod may be on a node: selectors, affinity and taints.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use crate::pods::{label, name};

/// True if the node is one the pod's selector, affinity and node name allow.
pub(crate) fn selects(spec: &PodSpec, node: &Node) -> bool {
    let by_name =
        spec.node_name.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == name(&node.metadata));
    let mut labels = spec.node_selector.iter().flatten();
    let by_labels = labels.all(|(key, value)| label(&node.metadata, key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    by_name && by_labels && required.is_none_or(|selector| selector_matches(selector, node))
}

/// Terms are alternatives; an empty term matches nothing.
pub(crate) fn selector_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let by_label = |requirement| requirement_matches(requirement, |key| label(&node.metadata, key));
    let by_field = |requirement| {
        requirement_matches(requirement, |key| (key == "metadata.name").then(|| name(&node.metadata)))
    };
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(by_label)
        && fields.iter().all(by_field)
}

fn requirement_matches<'a>(
    requirement: &NodeSelectorRequirement,
    value_of: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    let value = value_of(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let within = |value: &str| values.iter().any(|wanted| wanted == value);
    let number = || -> Option<(i64, i64)> { Some((value?.parse().ok()?, values.first()?.parse().ok()?)) };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(within),
        "NotIn" => value.is_none_or(|value| !within(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number().is_some_and(|(value, bound)| value > bound),
        "Lt" => number().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let value =
        || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or_default() {
            "Exists" => true,
            "" | "Equal" => value(),
            _ => false,
        }
}

/// The first taint of these effects that nothing tolerates.
pub(crate) fn untolerated<'a>(
    tolerations: &[Toleration],
    taints: impl IntoIterator<Item = &'a Taint>,
    effects: &[&str],
) -> Option<&'a Taint> {
    let matters = |taint: &&Taint| effects.contains(&taint.effect.as_str());
    let bare = |taint: &&Taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint));
    taints.into_iter().filter(matters).find(bare)
}

pub(crate) fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}
