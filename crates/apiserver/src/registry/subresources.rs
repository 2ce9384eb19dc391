//! Subresources that exchange another kind than their object's: scale, binding, eviction, token.

use bytes::Bytes;
use http::{Response, StatusCode};
use meta::names::GroupResource;
use schema::decode::{self, Strictness};
use serde_json::{Value, json};

use super::delete::{Deleted, Preconditions};
use super::patch::PatchType;
use super::render::encode_plain;
use super::write::{Outcome, Write, Written};
use crate::front::body::Body;
use crate::front::decode::typed;
use crate::objects::ObjectExt;
use crate::server::Exchange;
use crate::status::{ApiError, success};

const SCALE: &str = "scale";

pub(crate) async fn get(exchange: &Exchange<'_>) -> Result<Response<Body>, ApiError> {
    let write = exchange.write();
    let version = &exchange.call.options.resource_version;
    let registry = &exchange.server.registry;
    let object = registry.get(&exchange.target, &write.namespace, &write.name, version).await?;
    if write.subresource == SCALE {
        return respond_scale(exchange, &object.to_value(), StatusCode::OK);
    }
    Ok(exchange.respond(StatusCode::OK, exchange.renderer().object(&object)?))
}

pub(crate) async fn create(exchange: &Exchange<'_>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let subresource = exchange.call.path.subresource.as_str();
    match (&*exchange.target.name().resource, subresource) {
        ("pods", "binding") => bind(exchange, body).await,
        ("pods", "eviction") => evict(exchange, body).await,
        ("serviceaccounts", "token") => {
            let request = read(exchange, &body)?;
            let answer = exchange.server.extensions.token(exchange, request)?;
            let bytes = encode_foreign(exchange, &answer)?;
            Ok(exchange.respond(StatusCode::CREATED, bytes))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

pub(crate) async fn update(exchange: &Exchange<'_>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let scale = read(exchange, &body)?;
    let registry = &exchange.server.registry;
    let write = exchange.write();
    let written = registry.change(&write, |current: &Value| scaled(&write, current, &scale)).await?;
    respond_scaled(exchange, written)
}

pub(crate) async fn patch(
    exchange: &Exchange<'_>,
    patch_type: PatchType,
    patch: Value,
) -> Result<Response<Body>, ApiError> {
    let schema = subresource_schema(exchange)?;
    let registry = &exchange.server.registry;
    let write = exchange.write();
    let change = |current: &Value| {
        let mut scale = scale_of(exchange, current)?;
        let patch = patch.clone();
        match patch_type {
            PatchType::Json => schema::patch::json_patch(&mut scale, patch),
            PatchType::Merge | PatchType::Apply => schema::patch::merge_patch(&mut scale, patch),
            PatchType::Strategic => schema::patch::strategic(&mut scale, patch, schema),
        }
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
        let decoded = decode::value(scale, schema, Strictness::Warn)
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        scaled(&write, current, &decoded.value)
    };
    let written = registry.change(&write, change).await?;
    respond_scaled(exchange, written)
}

fn read(exchange: &Exchange<'_>, body: &Bytes) -> Result<Value, ApiError> {
    let name = &exchange.call.path.subresource;
    let subresource = exchange.target.subresource(name).ok_or_else(ApiError::path_not_found)?;
    let api_version = if subresource.version.is_empty() {
        // Of the resource's own group and version.
        exchange.target.api_version()
    } else if subresource.group.is_empty() {
        subresource.version.to_string()
    } else {
        format!("{}/{}", subresource.group, subresource.version)
    };
    let headers = &exchange.call.parts.headers;
    let schema = subresource_schema(exchange)?;
    typed(headers, body, schema, Strictness::Warn, &api_version, &subresource.kind).map(|(value, _)| value)
}

fn subresource_schema<'a>(exchange: &'a Exchange<'_>) -> Result<&'a schema::types::Schema, ApiError> {
    let subresource = exchange.target.subresource(&exchange.call.path.subresource);
    subresource.and_then(|own| own.schema.as_deref()).ok_or_else(ApiError::path_not_found)
}

/// The object with the replicas of a scale.
fn scaled(write: &Write, current: &Value, scale: &Value) -> Result<Value, ApiError> {
    let replicas = scale.at(&["spec", "replicas"]).and_then(Value::as_i64).unwrap_or(0);
    if replicas < 0 {
        let path = meta::field::FieldPath::root("spec").child("replicas");
        let error = meta::field::FieldError::invalid(&path, replicas, "must be greater than or equal to 0");
        let kind = meta::names::GroupVersionKind::new("autoscaling", "v1", "Scale");
        return Err(ApiError::invalid(&kind, &write.name, &[error]));
    }
    let mut object = current.clone();
    let version = scale.resource_version();
    if !version.is_empty() {
        object.metadata_mut().insert("resourceVersion".to_owned(), version.into());
    }
    object["spec"]["replicas"] = replicas.into();
    Ok(object)
}

fn scale_of(exchange: &Exchange<'_>, object: &Value) -> Result<Value, ApiError> {
    let mut metadata = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.at(&["metadata", field]) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let replicas = |part: &str| object.at(&[part, "replicas"]).cloned().unwrap_or(json!(0));
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": { "replicas": replicas("spec") }, "status": { "replicas": replicas("status") },
    });
    if let Some(selector) = selector_text(object.at(&["spec", "selector"])) {
        scale["status"]["selector"] = selector.into();
    }
    schema::canonical::normalize(&mut scale, subresource_schema(exchange)?);
    Ok(scale)
}

/// A selector (or a replication controller's plain map) in its text form.
fn selector_text(selector: Option<&Value>) -> Option<String> {
    let selector = selector?.as_object()?;
    if selector.contains_key("matchLabels") || selector.contains_key("matchExpressions") {
        let parsed = meta::selector::LabelSelector::from_value(&Value::Object(selector.clone()));
        return parsed.ok().flatten().map(|parsed| parsed.to_string());
    }
    let pairs = selector.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    Some(pairs.collect::<Vec<_>>().join(","))
}

fn respond_scaled(exchange: &Exchange<'_>, written: Written) -> Result<Response<Body>, ApiError> {
    let object = match written.object {
        Outcome::Stored(object) => object.to_value(),
        Outcome::Value(object) => object,
    };
    respond_scale(exchange, &object, StatusCode::OK)
}

fn respond_scale(
    exchange: &Exchange<'_>,
    object: &Value,
    status: StatusCode,
) -> Result<Response<Body>, ApiError> {
    let scale = scale_of(exchange, object)?;
    Ok(exchange.respond(status, encode_foreign(exchange, &scale)?))
}

/// An object of the subresource's kind.
fn encode_foreign(exchange: &Exchange<'_>, value: &Value) -> Result<Bytes, ApiError> {
    super::render::encode(value, subresource_schema(exchange)?, exchange.accepted.encoding)
}

async fn bind(exchange: &Exchange<'_>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let binding = read(exchange, &body)?;
    let write = exchange.write();
    let resource = GroupResource::new("", "pods/binding");
    let now = exchange.server.registry.now();
    let change = |pod: &Value| bound(&resource, &write, pod, &binding, now);
    exchange.server.registry.change(&write, change).await?;
    respond_success(exchange)
}

/// The pod with its node; the only way a pod gets one after it was created.
fn bound(
    resource: &GroupResource,
    write: &Write,
    pod: &Value,
    binding: &Value,
    now: jiff::Timestamp,
) -> Result<Value, ApiError> {
    let name = &write.name;
    let node = binding.str_at(&["target", "name"]);
    let refuse = |why: String| Err(ApiError::conflict(resource, name, &why));
    let uid = binding.uid();
    if !uid.is_empty() && uid != pod.uid() {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", pod.uid());
        return refuse(why);
    }
    if pod.is_terminating() {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let assigned = pod.str_at(&["spec", "nodeName"]);
    if !assigned.is_empty() {
        return refuse(format!("pod {name} is already assigned to node \"{assigned}\""));
    }
    if pod.at(&["spec", "schedulingGates"]).and_then(Value::as_array).is_some_and(|gates| !gates.is_empty()) {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        for (key, value) in binding.at(&["metadata", field]).and_then(Value::as_object).into_iter().flatten()
        {
            pod["metadata"][field][key] = value.clone();
        }
    }
    let conditions = &mut pod["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let list = conditions.as_array_mut().expect("made an array just above");
    let observed = pod_generation(binding);
    list.retain(|condition| condition["type"] != "PodScheduled");
    list.push(json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": meta::time::format(now),
    }));
    if let (Some(generation), Some(last)) = (observed, list.last_mut()) {
        last["observedGeneration"] = generation.into();
    }
    Ok(pod)
}

fn pod_generation(binding: &Value) -> Option<i64> {
    binding.at(&["metadata", "generation"]).and_then(Value::as_i64).filter(|generation| *generation > 0)
}

/// Deletes a pod if its disruption budget allows.
async fn evict(exchange: &Exchange<'_>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let eviction = read(exchange, &body)?;
    let registry = &exchange.server.registry;
    let mut write = exchange.write();
    write.subresource.clear();
    let pod = registry.get(&exchange.target, &write.namespace, &write.name, "").await?.to_value();
    let options = eviction.get("deleteOptions").cloned().unwrap_or_default();
    write.options.merge_delete_body(&options);
    let finished = matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed" | "Pending");
    if !finished && !pod.is_terminating() {
        super::disruption::take_allowance(registry, &write, &pod).await?;
    }
    match registry.delete(&write, &Preconditions::of(&options)).await? {
        Deleted::Object(_) | Deleted::Status(_) => respond_success(exchange),
    }
}

fn respond_success(exchange: &Exchange<'_>) -> Result<Response<Body>, ApiError> {
    let mut status = success(None);
    status.code = 201;
    let value = serde_json::to_value(&status).unwrap_or_default();
    Ok(exchange.respond(StatusCode::CREATED, encode_plain(&value, exchange.accepted.encoding)?))
}
