//! `LimitRanger`: what a namespace's LimitRanges give by default and allow at most.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use meta::quantity::{Format, Quantity};
use serde_json::{Map, Value};

use super::map_mut;
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Containers as the annotation calls them.
const CONTAINERS: [(&str, &str); 2] = [("containers", "container"), ("initContainers", "init container")];

struct LimitRanger(Context);

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(LimitRanger(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        resource.group.is_empty()
            && match (&*resource.resource, subresource) {
                // The resources of a pod change through `resize` only.
                ("pods", "") => operation == Operation::Create,
                ("pods", "resize") => operation == Operation::Update,
                ("persistentvolumeclaims", "") => super::creates_or_updates(operation),
                _ => false,
            }
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.resource.resource == "pods" && request.subresource.is_empty() {
            for range in self.ranges(request) {
                set_defaults(&range, &mut request.object);
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        // Something on its way out may still lose its finalizers.
        if request.operation == Operation::Update && request.old_object.is_terminating() {
            return Ok(());
        }
        for range in self.ranges(request) {
            let errors = if request.resource.resource == "pods" {
                check_pod(&range, &request.object)
            } else {
                check_claim(&range, &request.object)
            };
            match errors.as_slice() {
                [] => {}
                [one] => return Err(request.forbidden(one)),
                many => return Err(request.forbidden(&format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

impl LimitRanger {
    fn ranges(&self, request: &AdmissionRequest) -> Vec<Arc<Value>> {
        self.0.objects.list(&GroupResource::new("", "limitranges"), Some(&request.namespace))
    }
}

fn limits<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    list(range, &["spec", "limits"]).iter().filter(move |limit| limit.str_at(&["type"]) == kind)
}

fn set_defaults(range: &Value, pod: &mut Value) {
    let mut requests = Map::new();
    let mut maxima = Map::new();
    for limit in limits(range, "Container") {
        requests.extend(quantities(limit, &["defaultRequest"]).cloned().unwrap_or_default());
        maxima.extend(quantities(limit, &["default"]).cloned().unwrap_or_default());
    }
    let mut notes = Vec::new();
    for (field, word) in CONTAINERS {
        let Some(containers) = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut)
        else {
            continue;
        };
        for container in containers {
            let set_limits = fill(container, "limits", &maxima);
            let set_requests = fill(container, "requests", &requests);
            let name = container.str_at(&["name"]);
            for (set, what) in [(set_requests, "request"), (set_limits, "limit")] {
                if !set.is_empty() {
                    notes.push(format!("{} {what} for {word} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        map_mut(pod, &["metadata", "annotations"]).insert(ANNOTATION.to_owned(), text.into());
    }
}

/// Adds what is missing; the names of what was added, in order.
fn fill(container: &mut Value, field: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let known = container.at(&["resources", field]).and_then(Value::as_object);
    let missing: Vec<String> = defaults
        .keys()
        .filter(|name| known.is_none_or(|known| !known.contains_key(*name)))
        .cloned()
        .collect();
    if !missing.is_empty() {
        let own = map_mut(container, &["resources", field]);
        for name in &missing {
            own.insert(name.clone(), defaults[name].clone());
        }
    }
    missing
}

/// Requests and limits under one bound.
struct Usage {
    requests: Map<String, Value>,
    limits: Map<String, Value>,
}

fn check_pod(range: &Value, pod: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let of = |container: &Value| Usage {
        requests: quantities(container, &["resources", "requests"]).cloned().unwrap_or_default(),
        limits: quantities(container, &["resources", "limits"]).cloned().unwrap_or_default(),
    };
    for limit in limits(range, "Container") {
        for (field, _) in CONTAINERS {
            for container in list(pod, &["spec", field]) {
                check_bounds(limit, "Container", &of(container), &mut errors);
            }
        }
    }
    for limit in limits(range, "Pod") {
        let containers: Vec<Usage> = list(pod, &["spec", "containers"]).iter().map(of).collect();
        let initial: Vec<Usage> = list(pod, &["spec", "initContainers"]).iter().map(of).collect();
        let total = Usage {
            requests: pod_total(&containers, &initial, |usage| &usage.requests),
            limits: pod_total(&containers, &initial, |usage| &usage.limits),
        };
        check_bounds(limit, "Pod", &total, &mut errors);
    }
    errors
}

fn check_bounds(limit: &Value, kind: &str, usage: &Usage, errors: &mut Vec<String>) {
    for (name, bound) in entries(limit, "min") {
        errors.extend(below_minimum(kind, name, &bound, usage));
    }
    for (name, bound) in entries(limit, "max") {
        errors.extend(above_maximum(kind, name, &bound, usage));
    }
    for (name, bound) in entries(limit, "maxLimitRequestRatio") {
        errors.extend(above_ratio(kind, name, &bound, usage));
    }
}

fn below_minimum(kind: &str, name: &str, bound: &Quantity, usage: &Usage) -> Option<String> {
    let text = format!("minimum {name} usage per {kind} is {bound}");
    let Some(request) = quantity(&usage.requests, name) else {
        return Some(format!("{text}.  No request is specified"));
    };
    if request < *bound {
        return Some(format!("{text}, but request is {request}"));
    }
    let limit = quantity(&usage.limits, name).filter(|limit| limit < bound)?;
    Some(format!("{text}, but limit is {limit}"))
}

fn above_maximum(kind: &str, name: &str, bound: &Quantity, usage: &Usage) -> Option<String> {
    let text = format!("maximum {name} usage per {kind} is {bound}");
    let Some(limit) = quantity(&usage.limits, name) else {
        return Some(format!("{text}.  No limit is specified"));
    };
    if limit > *bound {
        return Some(format!("{text}, but limit is {limit}"));
    }
    let request = quantity(&usage.requests, name).filter(|request| request > bound)?;
    Some(format!("{text}, but request is {request}"))
}

fn above_ratio(kind: &str, name: &str, bound: &Quantity, usage: &Usage) -> Option<String> {
    let text = format!("{name} max limit to request ratio per {kind} is {bound}");
    let positive = |map| quantity(map, name).filter(|value| !value.is_zero());
    let Some(request) = positive(&usage.requests) else {
        return Some(format!("{text}, but no request is specified or request is 0"));
    };
    let Some(limit) = positive(&usage.limits) else {
        return Some(format!("{text}, but no limit is specified or limit is 0"));
    };
    let ratio = limit.as_f64() / request.as_f64();
    (ratio > bound.as_f64()).then(|| format!("{text}, but provided ratio is {ratio:.6}"))
}

fn check_claim(range: &Value, claim: &Value) -> Vec<String> {
    const KIND: &str = "PersistentVolumeClaim";
    let requests = quantities(claim, &["spec", "resources", "requests"]).cloned().unwrap_or_default();
    let usage = Usage { requests, limits: Map::new() };
    let mut errors = Vec::new();
    for limit in limits(range, KIND) {
        for (name, bound) in entries(limit, "min") {
            errors.extend(below_minimum(KIND, name, &bound, &usage));
        }
        for (name, bound) in entries(limit, "max") {
            let text = format!("maximum {name} usage per {KIND} is {bound}");
            match quantity(&usage.requests, name) {
                None => errors.push(format!("{text}.  No request is specified")),
                Some(request) if request > bound => errors.push(format!("{text}, but request is {request}")),
                Some(_) => {}
            }
        }
    }
    errors
}

/// The sum of the containers, or the largest init container if that is more. A resource that not every container
/// names has no sum.
fn pod_total(
    containers: &[Usage],
    initial: &[Usage],
    of: fn(&Usage) -> &Map<String, Value>,
) -> Map<String, Value> {
    let mut total = Map::new();
    let names: std::collections::BTreeSet<&String> =
        containers.iter().flat_map(|usage| of(usage).keys()).collect();
    for name in names {
        let values: Option<Vec<Quantity>> =
            containers.iter().map(|usage| quantity(of(usage), name)).collect();
        if let Some(values) = values {
            let format = values.first().map_or(Format::DecimalSi, Quantity::format);
            let mut sum = Quantity::new(0, format);
            values.iter().for_each(|value| sum.add(value));
            total.insert(name.clone(), sum.to_string().into());
        }
    }
    for usage in initial {
        for name in of(usage).keys() {
            let value = quantity(of(usage), name);
            if quantity(&total, name) < value {
                total.insert(name.clone(), of(usage)[name].clone());
            }
        }
    }
    total
}

fn entries<'a>(limit: &'a Value, field: &str) -> impl Iterator<Item = (&'a str, Quantity)> {
    let map = limit.get(field).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(name, value)| Some((name.as_str(), parse(value)?)))
}

fn quantities<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Map<String, Value>> {
    value.at(path).and_then(Value::as_object)
}

fn quantity(map: &Map<String, Value>, name: &str) -> Option<Quantity> {
    map.get(name).and_then(parse)
}

fn parse(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, create};
    use super::*;

    async fn check(limit: Value, spec: Value) -> Result<Value, String> {
        let range = json!({"metadata": {"namespace": "a", "name": "r"}, "spec": {"limits": [limit]}});
        let pod = json!({"metadata": {"namespace": "a", "name": "p"}, "spec": spec});
        create(&context(&[("limitranges", range)]), "LimitRanger", "pods", pod).await
    }

    fn container(requests: Value, limits: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]})
    }

    #[tokio::test]
    async fn defaults_are_filled_in_and_noted() {
        let limit = json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m", "memory": "512Mi"}});
        let pod = check(limit, container(json!({"cpu": "100m"}), json!({}))).await.unwrap();
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: memory request for container c; cpu, memory limit for container c"
        );
    }

    #[tokio::test]
    async fn bounds_are_enforced_in_upstreams_words() {
        for (limit, spec, why) in [
            (
                json!({"type": "Container", "max": {"memory": "512Mi"}}),
                container(json!({}), json!({"memory": "2Gi"})),
                "maximum memory usage per Container is 512Mi, but limit is 2Gi",
            ),
            (
                json!({"type": "Container", "max": {"memory": "512Mi"}}),
                container(json!({}), json!({})),
                "maximum memory usage per Container is 512Mi.  No limit is specified",
            ),
            (
                json!({"type": "Container", "min": {"cpu": "100m"}}),
                container(json!({"cpu": "50m"}), json!({})),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                container(json!({"cpu": "1"}), json!({"cpu": "3"})),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (
                json!({"type": "Pod", "max": {"cpu": "1"}}),
                json!({"containers": [
                    {"name": "c", "resources": {"limits": {"cpu": "600m"}}},
                    {"name": "d", "resources": {"limits": {"cpu": "600m"}}},
                ]}),
                "maximum cpu usage per Pod is 1, but limit is 1200m",
            ),
        ] {
            assert_eq!(check(limit, spec).await.unwrap_err(), format!("pods \"p\" is forbidden: {why}"));
        }
        let fits = container(json!({"cpu": "1"}), json!({"cpu": "1"}));
        assert!(check(json!({"type": "Pod", "max": {"cpu": "1"}}), fits).await.is_ok());
    }

    #[tokio::test]
    async fn claims_are_bounded_too() {
        let limit = json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}});
        let range = json!({"metadata": {"namespace": "a", "name": "r"}, "spec": {"limits": [limit]}});
        let claim = json!({"metadata": {"namespace": "a", "name": "c"}, "spec": {"resources": {"requests": {"storage": "2Gi"}}}});
        let result =
            create(&context(&[("limitranges", range)]), "LimitRanger", "persistentvolumeclaims", claim).await;
        assert_eq!(
            result.unwrap_err(),
            "persistentvolumeclaims \"c\" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"
        );
    }
}
