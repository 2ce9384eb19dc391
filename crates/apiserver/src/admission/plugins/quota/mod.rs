//! `ResourceQuota`: a namespace uses no more than its quotas allow.
//!
//! Usage is charged to `status.used` by compare-and-swap before the object is stored, one request of a namespace at
//! a time, so that concurrent creates cannot share the last of a quota. The quota controller gives back what is
//! deleted.

mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use meta::names::GroupResource;
use meta::quantity::Quantity;
use serde_json::{Map, Value};

use self::usage::{Evaluator, Usage};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

/// Somebody else may be charging the same quota; each conflict means that one of them got through.
const ATTEMPTS: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(5);
/// Namespaces whose locks are kept.
const LOCKS_CAPACITY: usize = 4_096;

struct ResourceQuota {
    context: Context,
    locks: std::sync::Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(ResourceQuota { context: context.clone(), locks: std::sync::Mutex::default() }))
}

#[async_trait]
impl AdmissionPlugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        super::creates_or_updates(operation) && Evaluator::of(resource).handles(operation, subresource)
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.namespace.is_empty() || self.quotas(request).is_empty() {
            return Ok(());
        }
        let lock = self.lock(&request.namespace);
        let _charging = lock.lock().await;
        // Quotas charged in an earlier attempt are not charged again.
        let mut charged: Vec<String> = Vec::new();
        let mut attempt = 0;
        loop {
            let changes = check(&self.quotas(request), request)?;
            if request.dry_run {
                return Ok(());
            }
            let mut conflict = None;
            for quota in changes {
                let name = quota.name().to_owned();
                if charged.contains(&name) {
                    continue;
                }
                let quotas = GroupResource::new("", "resourcequotas");
                match self.context.writer.update_status(&quotas, quota).await {
                    Ok(_) => charged.push(name),
                    // A quota deleted meanwhile limits nothing.
                    Err(error) if error.reason() == "NotFound" => {}
                    Err(error) if error.reason() == "Conflict" => conflict = Some(error),
                    Err(error) => return Err(error),
                }
            }
            let Some(error) = conflict else { return Ok(()) };
            attempt += 1;
            if attempt == ATTEMPTS {
                return Err(error);
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
}

impl ResourceQuota {
    fn quotas(&self, request: &AdmissionRequest) -> Vec<Arc<Value>> {
        self.context.objects.list(&GroupResource::new("", "resourcequotas"), Some(&request.namespace))
    }

    fn lock(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.len() >= LOCKS_CAPACITY {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        locks.entry(namespace.to_owned()).or_default().clone()
    }
}

/// The quotas as they will be when the request is charged to them; only those that change.
fn check(quotas: &[Arc<Value>], request: &AdmissionRequest) -> Result<Vec<Value>, ApiError> {
    let evaluator = Evaluator::of(&request.group_resource());
    let mut changes = Vec::new();
    let usage = evaluator.usage(&request.object);
    for quota in quotas {
        let hard = amounts(quota, "hard");
        let limited: Vec<String> = hard.keys().filter(|name| evaluator.counts(name)).cloned().collect();
        if limited.is_empty() || !evaluator.matches_scopes(quota, &request.object) {
            continue;
        }
        let name = quota.name();
        evaluator
            .check_constraints(&limited, &request.object)
            .map_err(|why| request.forbidden(&format!("failed quota: {name}: {why}")))?;
        let used = amounts(quota, "used");
        if limited.iter().any(|resource| !used.contains_key(resource)) {
            let why = format!("status unknown for quota: {name}, resources: {}", limited.join(","));
            return Err(request.forbidden(&why));
        }
        let mut delta = usage.clone();
        if request.operation == Operation::Update && evaluator.matches_scopes(quota, &request.old_object) {
            subtract(&mut delta, &evaluator.usage(&request.old_object));
        }
        delta.retain(|resource, amount| hard.contains_key(resource) && !amount.is_zero());
        if delta.is_empty() {
            continue;
        }
        let mut total = used.clone();
        for (resource, amount) in &delta {
            total.entry(resource.clone()).or_default().add(amount);
        }
        let exceeded: Vec<&String> =
            delta.keys().filter(|resource| total.get(*resource) > hard.get(*resource)).collect();
        if !exceeded.is_empty() {
            let print = |amounts: &Usage| {
                let parts =
                    exceeded.iter().filter_map(|name| Some(format!("{name}={}", amounts.get(*name)?)));
                parts.collect::<Vec<_>>().join(",")
            };
            return Err(request.forbidden(&format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                print(&delta),
                print(&used),
                print(&hard)
            )));
        }
        let mut changed = Value::clone(quota);
        let texts: Map<String, Value> =
            total.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect();
        changed["status"]["used"] = Value::Object(texts);
        changes.push(changed);
    }
    Ok(changes)
}

fn amounts(quota: &Value, field: &str) -> Usage {
    let map = quota.at(&["status", field]).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.parse().ok()?)))
        .collect()
}

/// What an update gives back is left to the quota controller.
fn subtract(usage: &mut Usage, old: &BTreeMap<String, Quantity>) {
    for (name, amount) in usage.iter_mut() {
        if let Some(old) = old.get(name) {
            amount.sub(old);
            if amount.is_negative() {
                *amount = Quantity::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context_of, create};
    use super::*;
    use crate::objects::Objects as _;
    use crate::testing::FakeObjects;

    fn quota(hard: Value, used: Value, spec: Value) -> Value {
        json!({"metadata": {"namespace": "a", "name": "q"}, "spec": spec, "status": {"hard": hard, "used": used}})
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    async fn check_pod(quota: Value, pod: Value) -> Result<Value, String> {
        let store = FakeObjects::with(&[("resourcequotas", quota)]);
        create(&context_of(&store), "ResourceQuota", "pods", pod).await?;
        let stored = store.get(&GroupResource::new("", "resourcequotas"), "a", "q").unwrap();
        Ok(stored["status"]["used"].clone())
    }

    #[tokio::test]
    async fn usage_is_charged_and_bounded() {
        let hard = json!({"pods": "2", "requests.cpu": "1", "cpu": "1"});
        let used = json!({"pods": "1", "requests.cpu": "500m", "cpu": "500m"});
        let half = pod(json!({"requests": {"cpu": "500m"}}));
        assert_eq!(
            check_pod(quota(hard.clone(), used.clone(), json!({})), half).await,
            Ok(json!({"pods": "2", "requests.cpu": "1", "cpu": "1"}))
        );
        let more = pod(json!({"requests": {"cpu": "600m"}}));
        assert_eq!(
            check_pod(quota(hard.clone(), used.clone(), json!({})), more).await.unwrap_err(),
            "pods \"p\" is forbidden: exceeded quota: q, requested: cpu=600m,requests.cpu=600m, used: cpu=500m,requests.cpu=500m, limited: cpu=1,requests.cpu=1"
        );
        assert_eq!(
            check_pod(quota(hard.clone(), used, json!({})), pod(json!({}))).await.unwrap_err(),
            "pods \"p\" is forbidden: failed quota: q: must specify cpu for: c; requests.cpu for: c"
        );
        assert_eq!(
            check_pod(quota(json!({"pods": "2"}), json!({}), json!({})), pod(json!({}))).await.unwrap_err(),
            "pods \"p\" is forbidden: status unknown for quota: q, resources: pods"
        );
    }

    #[tokio::test]
    async fn scopes_select_pods() {
        let best_effort = json!({"scopes": ["BestEffort"]});
        let full = |spec: Value| quota(json!({"pods": "1"}), json!({"pods": "1"}), spec);
        assert!(check_pod(full(best_effort.clone()), pod(json!({}))).await.is_err());
        assert!(check_pod(full(best_effort), pod(json!({"limits": {"cpu": "1"}}))).await.is_ok());
        let high = json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}});
        assert!(check_pod(full(high.clone()), pod(json!({}))).await.is_ok());
        let mut important = pod(json!({}));
        important["spec"]["priorityClassName"] = "high".into();
        assert!(check_pod(full(high), important).await.is_err());
    }

    #[tokio::test]
    async fn objects_are_counted() {
        let store = FakeObjects::with(&[(
            "resourcequotas",
            quota(
                json!({"configmaps": "1", "count/jobs.batch": "0"}),
                json!({"configmaps": "0", "count/jobs.batch": "0"}),
                json!({}),
            ),
        )]);
        let context = context_of(&store);
        let object = |name: &str| json!({"metadata": {"namespace": "a", "name": name}});
        assert!(create(&context, "ResourceQuota", "configmaps", object("one")).await.is_ok());
        assert_eq!(
            create(&context, "ResourceQuota", "configmaps", object("two")).await.unwrap_err(),
            "configmaps \"two\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1"
        );
        assert!(create(&context, "ResourceQuota", "jobs.batch", object("j")).await.is_err());
        assert!(create(&context, "ResourceQuota", "secrets", object("s")).await.is_ok());
    }

    #[tokio::test]
    async fn concurrent_creates_cannot_share_the_last_of_a_quota() {
        let store = FakeObjects::with(&[(
            "resourcequotas",
            quota(json!({"pods": "5"}), json!({"pods": "0"}), json!({})),
        )]);
        // Two plugins, as two servers would have: only the compare-and-swap is between them.
        let contexts = [context_of(&store), context_of(&store)];
        let creates = (0..20).map(|n| create(&contexts[n % 2], "ResourceQuota", "pods", pod(json!({}))));
        let results = futures::future::join_all(creates).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 5);
    }
}
