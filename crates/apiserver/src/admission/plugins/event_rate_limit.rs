//! `EventRateLimit`: a component gone wild does not drown the server in events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use meta::names::GroupResource;
use serde_json::Value;

use super::{creates_or_updates, is};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authn::Clock;
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

/// Buckets kept of one limit when the configuration does not say.
const DEFAULT_CACHE_SIZE: u64 = 4_096;
const RETRY_AFTER_SECONDS: i32 = 1;

struct EventRateLimit {
    limits: Vec<Limit>,
    clock: Clock,
}

struct Limit {
    kind: Kind,
    per_second: f64,
    burst: f64,
    capacity: usize,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Server,
    Namespace,
    User,
    SourceAndObject,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Timestamp,
}

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    let configuration = context.configuration.get("EventRateLimit").unwrap_or(&Value::Null);
    let limits = list(configuration, &["limits"]).iter().map(limit_of).collect::<Result<Vec<_>, String>>();
    let limits = limits.and_then(|limits| {
        if limits.is_empty() {
            Err("limits: Required value: must not be empty".to_owned())
        } else {
            Ok(limits)
        }
    });
    let limits = limits.map_err(|why| ChainError::Configuration { plugin: "EventRateLimit", why })?;
    Ok(Arc::new(EventRateLimit { limits, clock: context.clock.clone() }))
}

fn limit_of(value: &Value) -> Result<Limit, String> {
    let kind = match value.str_at(&["type"]) {
        "Server" => Kind::Server,
        "Namespace" => Kind::Namespace,
        "User" => Kind::User,
        "SourceAndObject" => Kind::SourceAndObject,
        other => return Err(format!("limits.type: Unsupported value: {other:?}")),
    };
    let positive = |field: &str| {
        let number = value.get(field).and_then(Value::as_f64).filter(|number| *number > 0.0);
        number.ok_or_else(|| format!("limits.{field}: Invalid value: must be positive"))
    };
    let capacity = value.get("cacheSize").and_then(Value::as_u64).filter(|size| *size > 0);
    Ok(Limit {
        kind,
        per_second: positive("qps")?,
        burst: positive("burst")?,
        capacity: usize::try_from(capacity.unwrap_or(DEFAULT_CACHE_SIZE)).unwrap_or(usize::MAX),
        buckets: Mutex::default(),
    })
}

#[async_trait]
impl AdmissionPlugin for EventRateLimit {
    fn name(&self) -> &'static str {
        "EventRateLimit"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation)
            && (is(("", "events"), resource, subresource)
                || is(("events.k8s.io", "events"), resource, subresource))
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.dry_run {
            return Ok(());
        }
        let now = (self.clock)();
        // Every limit is charged, also when another one already refuses.
        let mut refusals = Vec::new();
        for limit in &self.limits {
            let key = limit.kind.key(request);
            if !limit.take(&key, now) {
                refusals.push(format!("limit reached on type {:?} for key {key}", limit.kind));
            }
        }
        match refusals.as_slice() {
            [] => Ok(()),
            many => Err(ApiError::too_many_requests(many.join(", "), RETRY_AFTER_SECONDS)),
        }
    }
}

impl Limit {
    fn take(&self, key: &str, now: Timestamp) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= self.capacity && !buckets.contains_key(key) {
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.filled).map(|(key, _)| key.clone());
            oldest.map(|key| buckets.remove(&key));
        }
        let bucket = buckets.entry(key.to_owned()).or_insert(Bucket { tokens: self.burst, filled: now });
        let elapsed = now.duration_since(bucket.filled).as_secs_f64().max(0.0);
        bucket.tokens = elapsed.mul_add(self.per_second, bucket.tokens).min(self.burst);
        bucket.filled = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }
}

impl Kind {
    fn key(self, request: &AdmissionRequest) -> String {
        let event = &request.object;
        match self {
            Self::Server => String::new(),
            Self::Namespace => request.namespace.clone(),
            Self::User => request.user.username.clone(),
            Self::SourceAndObject => [
                ["source", "component"],
                ["source", "host"],
                ["involvedObject", "kind"],
                ["involvedObject", "namespace"],
                ["involvedObject", "name"],
                ["involvedObject", "uid"],
                ["involvedObject", "apiVersion"],
            ]
            .iter()
            .map(|path| event.str_at(path))
            .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, request, run};
    use super::*;
    use crate::admission::chain::Chain;

    #[tokio::test]
    async fn a_burst_is_allowed_and_no_more() {
        let mut context = context(&[]);
        let limits = json!({"limits": [{"type": "Namespace", "qps": 1, "burst": 2}]});
        context.configuration.insert("EventRateLimit".to_owned(), limits);
        let time = Arc::new(Mutex::new(Timestamp::UNIX_EPOCH));
        let shared = time.clone();
        context.clock = Arc::new(move || *shared.lock().unwrap());
        let others: Vec<String> = super::super::PLUGINS
            .iter()
            .map(|row| row.name.to_owned())
            .filter(|name| name != "EventRateLimit")
            .collect();
        let chain = Chain::new(&context, &["EventRateLimit".to_owned()], &others, &[]).unwrap();
        let mut codes = Vec::new();
        for namespace in ["a", "a", "a", "b"] {
            let event = json!({"metadata": {"namespace": namespace, "name": "e"}});
            let mut request = request(Operation::Create, "events", event, Value::Null);
            codes.push(chain.validate(&mut request).await.map_or_else(|error| error.code(), |()| 200));
        }
        assert_eq!(codes, [200, 200, 429, 200]);
        *time.lock().unwrap() = Timestamp::from_second(1).unwrap();
        let mut later =
            request(Operation::Create, "events", json!({"metadata": {"namespace": "a"}}), Value::Null);
        assert!(chain.validate(&mut later).await.is_ok());
    }

    #[tokio::test]
    async fn limits_must_be_given() {
        let mut ask = request(Operation::Create, "events", json!({}), Value::Null);
        assert!(
            run(&context(&[]), "EventRateLimit", &mut ask).await.unwrap_err().contains("must not be empty")
        );
    }
}
