//! Fills cluster roles that are made of others, chosen by label.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::Api;
use kube::api::PostParams;
use kube::core::Selector;
use meta::names::NamespacedName;
use reconcile::{Action, Informer, InformerEvent, ReconcileError, Reconciler};

use crate::context::Context;
use crate::{claims, pods};

struct Aggregation {
    client: kube::Client,
    roles: Informer<ClusterRole>,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("ClusterRoleAggregator");
    let controller = Arc::new(Aggregation { client: context.client.clone(), roles: context.informer() });
    if !context.synced(&[&controller.roles]).await {
        return;
    }
    // Any role may be part of any other.
    let _roles = controller.roles.subscribe({
        let (queue, roles) = (queue.clone(), controller.roles.clone());
        move |event| {
            if matches!(event, InformerEvent::Updated { old, new } if old.rules == new.rules && old.metadata.labels == new.metadata.labels && old.aggregation_rule == new.aggregation_rule)
            {
                return;
            }
            let aggregated = roles.list().into_iter().filter(|role| role.aggregation_rule.is_some());
            aggregated.for_each(|role| queue.add(pods::key(&role.metadata)));
        }
    });
    context.run("ClusterRoleAggregator", controller, queue, 1).await;
}

/// The rules of all chosen roles, in order of name, each once.
fn rules(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let aggregation = role.aggregation_rule.as_ref();
    let selectors = aggregation.and_then(|rule| rule.cluster_role_selectors.as_deref()).unwrap_or_default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        let Ok(selector) = Selector::try_from(selector.clone()) else { continue };
        for other in all {
            let chosen =
                other.metadata.name != role.metadata.name && claims::matches(&selector, &other.metadata);
            for rule in other.rules.iter().flatten().filter(|_| chosen) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    rules
}

#[async_trait]
impl Reconciler for Aggregation {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(role) = self.roles.get(key).filter(|role| role.aggregation_rule.is_some()) else {
            return Ok(Action::Done);
        };
        let wanted = rules(&role, &self.roles.list());
        if role.rules.as_deref().unwrap_or_default() == wanted {
            return Ok(Action::Done);
        }
        let updated = ClusterRole { rules: Some(wanted), ..(*role).clone() };
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        roles.replace(&key.name, &PostParams::default(), &updated).await?;
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn rules_of_chosen_roles_are_joined_once_and_in_order() {
        let role = |name: &str, label: &str, verb: &str| -> Arc<ClusterRole> {
            let rules = json!([{"verbs": [verb], "resources": ["pods"]}]);
            let role: Value = json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": rules});
            Arc::new(serde_json::from_value(role).unwrap())
        };
        let whole: ClusterRole = serde_json::from_value(json!({
            "metadata": {"name": "z", "labels": {"to": "view"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]},
        }))
        .unwrap();
        let all = [
            role("a", "view", "get"),
            role("b", "edit", "create"),
            role("c", "view", "list"),
            role("d", "view", "get"),
        ];
        let verbs: Vec<String> = rules(&whole, &all).into_iter().flat_map(|rule| rule.verbs).collect();
        assert_eq!(verbs, ["get", "list"]);
    }
}
