//! How far the emptying of a namespace has come, and the conditions that tell it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use kube::core::ApiResource;

use crate::pods::whole_seconds;

#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) discovery_failures: Vec<String>,
    pub(super) failures: Vec<String>,
    /// Objects left, by resource.
    pub(super) remaining: BTreeMap<String, usize>,
    /// Objects that have it, by finalizer.
    pub(super) finalizers: BTreeMap<String, usize>,
}

impl Progress {
    pub(super) fn remains(&mut self, resource: &str, finalizers: &[String]) {
        *self.remaining.entry(resource.to_owned()).or_insert(0) += 1;
        for finalizer in finalizers {
            *self.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.discovery_failures.extend(other.discovery_failures);
        self.failures.extend(other.failures);
        for (into, from) in [(&mut self.remaining, other.remaining), (&mut self.finalizers, other.finalizers)]
        {
            for (key, count) in from {
                *into.entry(key).or_insert(0) += count;
            }
        }
    }

    /// Makes the messages independent of the order of answers.
    pub(super) fn settle(&mut self) {
        self.discovery_failures.sort();
        self.failures.sort();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.remaining.is_empty() && self.failures.is_empty() && self.discovery_failures.is_empty()
    }
}

/// `pods.`, `deployments.apps`: as upstream writes resources in these messages.
pub(super) fn resource_name(resource: &ApiResource) -> String {
    format!("{}.{}", resource.plural, resource.group)
}

/// The namespace with its conditions as they should be, unless they are so already.
pub(super) fn with_conditions(
    namespace: &Namespace,
    progress: &Progress,
    now: Timestamp,
) -> Option<Namespace> {
    let mut changed = namespace.clone();
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    for (type_, bad, reason, message) in conditions_of(progress) {
        set(conditions, type_, bad, reason, message, now);
    }
    (changed.status != namespace.status).then_some(changed)
}

type Condition = (&'static str, bool, &'static str, String);

fn conditions_of(progress: &Progress) -> [Condition; 5] {
    let counted = |counts: &BTreeMap<String, usize>, form: fn(&str, usize) -> String| {
        counts.iter().map(|(what, count)| form(what, *count)).collect::<Vec<_>>().join(", ")
    };
    let remaining =
        counted(&progress.remaining, |what, count| format!("{what} has {count} resource instances"));
    let finalizers =
        counted(&progress.finalizers, |what, count| format!("{what} in {count} resource instances"));
    let pick = |type_, bad: bool, when_bad: (&'static str, String), when_good: (&'static str, &str)| {
        let (reason, message) = if bad { when_bad } else { (when_good.0, when_good.1.to_owned()) };
        (type_, bad, reason, message)
    };
    [
        pick(
            "NamespaceDeletionDiscoveryFailure",
            !progress.discovery_failures.is_empty(),
            (
                "DiscoveryFailed",
                format!(
                    "Discovery failed for some groups, {} failing: {}",
                    progress.discovery_failures.len(),
                    progress.discovery_failures.join(", ")
                ),
            ),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        pick(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ("GroupVersionParsingFailed", String::new()),
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        pick(
            "NamespaceDeletionContentFailure",
            !progress.failures.is_empty(),
            (
                "ContentDeletionFailed",
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    progress.failures.len(),
                    progress.failures.join(", ")
                ),
            ),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        pick(
            "NamespaceContentRemaining",
            !progress.remaining.is_empty(),
            ("SomeResourcesRemain", format!("Some resources are remaining: {remaining}")),
            ("ContentRemoved", "All content successfully removed"),
        ),
        pick(
            "NamespaceFinalizersRemaining",
            !progress.finalizers.is_empty(),
            (
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {finalizers}"),
            ),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ]
}

fn set(
    conditions: &mut Vec<NamespaceCondition>,
    type_: &str,
    bad: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let status = if bad { "True" } else { "False" };
    let old = conditions.iter_mut().find(|condition| condition.type_ == type_);
    let new = NamespaceCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(whole_seconds(now)),
    };
    match old {
        None => conditions.push(new),
        Some(old) => {
            let since = old.last_transition_time.clone().filter(|_| old.status == status);
            *old = NamespaceCondition {
                last_transition_time: since.or(new.last_transition_time.clone()),
                ..new
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_remains_and_do_not_flap() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut progress = Progress::default();
        progress.remains("pods.", &[]);
        progress.remains("pods.", &["a.b/c".to_owned()]);
        progress.remains("widgets.example.com", &["a.b/c".to_owned()]);
        let namespace = with_conditions(&Namespace::default(), &progress, now).unwrap();
        let text = |namespace: &Namespace, type_: &str| {
            let conditions = namespace.status.as_ref().unwrap().conditions.as_ref().unwrap();
            let condition = conditions.iter().find(|condition| condition.type_ == type_).unwrap();
            format!("{} {}", condition.status, condition.message.as_deref().unwrap())
        };
        assert_eq!(
            text(&namespace, "NamespaceContentRemaining"),
            "True Some resources are remaining: pods. has 2 resource instances, widgets.example.com has 1 resource instances"
        );
        assert_eq!(
            text(&namespace, "NamespaceFinalizersRemaining"),
            "True Some content in the namespace has finalizers remaining: a.b/c in 2 resource instances"
        );
        assert!(with_conditions(&namespace, &progress, "2026-01-01T00:00:09Z".parse().unwrap()).is_none());
        let empty = with_conditions(&namespace, &Progress::default(), now).unwrap();
        assert_eq!(text(&empty, "NamespaceContentRemaining"), "False All content successfully removed");
    }
}
