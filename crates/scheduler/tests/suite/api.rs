//! As much of an API server as a scheduler needs, in memory: lists, watches, and the writes it makes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    revision: u64,
    /// By collection, namespace and name.
    objects: BTreeMap<Key, Value>,
    log: Vec<(u64, String, Value)>,
    pub(crate) bindings: Vec<String>,
    /// How many bindings are still to fail.
    pub(crate) failing_bindings: u32,
}

type Key = (String, String, String);
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Where a request points: `("/api/v1/pods", "default", "web", "binding")`.
struct Target {
    collection: String,
    namespace: String,
    name: String,
    subresource: String,
}

/// Puts the fields of `over` over those of `base`, objects into objects.
pub(crate) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

impl Target {
    fn parse(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (prefix, mut rest) = parts.split_at(if parts[0] == "api" { 2 } else { 3 });
        let mut namespace = "";
        if rest[0] == "namespaces" && rest.len() > 2 {
            (namespace, rest) = (rest[1], &rest[2..]);
        }
        let part = |at: usize| rest.get(at).copied().unwrap_or_default().to_owned();
        Self {
            collection: format!("/{}/{}", prefix.join("/"), rest[0]),
            namespace: namespace.to_owned(),
            name: part(1),
            subresource: part(2),
        }
    }

    fn key(&self) -> Key {
        (self.collection.clone(), self.namespace.clone(), self.name.clone())
    }
}

impl State {
    pub(crate) fn get(&self, collection: &str, name: &str) -> Option<&Value> {
        let mut found =
            self.objects.iter().filter(|((own, _, own_name), _)| own == collection && own_name == name);
        found.next().map(|(_, object)| object)
    }

    pub(crate) fn pod(&self, name: &str) -> &Value {
        self.get("/api/v1/pods", name).unwrap_or(&Value::Null)
    }

    /// The notes of the events about an object, by reason.
    pub(crate) fn notes(&self, name: &str, reason: &str) -> Vec<&str> {
        let events = self.objects.iter().filter(|((own, ..), _)| own == "/apis/events.k8s.io/v1/events");
        events
            .filter(|(_, event)| event["regarding"]["name"] == name && event["reason"] == reason)
            .filter_map(|(_, event)| event["note"].as_str())
            .collect()
    }

    fn write(&mut self, key: Key, kind: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.log.push((self.revision, key.0.clone(), json!({"type": kind, "object": object})));
        if kind == "DELETED" {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, object.clone());
        }
        object
    }

    fn handle(&mut self, method: &Method, target: &Target, body: Value) -> (StatusCode, Value) {
        let key = target.key();
        let existing = self.objects.get(&key).cloned();
        match (method, target.subresource.as_str(), existing) {
            (&Method::GET, _, _) if target.name.is_empty() => {
                let items: Vec<&Value> = self
                    .objects
                    .iter()
                    .filter(|((own, ..), _)| *own == target.collection)
                    .map(|(_, o)| o)
                    .collect();
                (
                    StatusCode::OK,
                    json!({"metadata": {"resourceVersion": self.revision.to_string()}, "items": items}),
                )
            }
            (&Method::POST, "binding", Some(mut pod)) => {
                if self.failing_bindings > 0 {
                    self.failing_bindings -= 1;
                    return failure(500, "InternalError");
                }
                if pod["spec"]["nodeName"].is_string() {
                    return failure(409, "Conflict");
                }
                self.bindings.push(target.name.clone());
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                pod["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "True"}]);
                self.write(key, "MODIFIED", pod);
                (StatusCode::CREATED, json!({"kind": "Status", "status": "Success"}))
            }
            (&Method::POST, _, _) => {
                let mut body = body;
                if body["metadata"]["uid"].is_null() {
                    body["metadata"]["uid"] = format!("uid-{}", self.revision).into();
                }
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                (StatusCode::CREATED, self.write((key.0, key.1, name), "ADDED", body))
            }
            (&Method::PATCH, _, Some(mut object)) => {
                merge(&mut object, &body);
                (StatusCode::OK, self.write(key, "MODIFIED", object))
            }
            (&Method::DELETE, _, Some(object)) => (StatusCode::OK, self.write(key, "DELETED", object)),
            _ => failure(404, "NotFound"),
        }
    }
}

fn failure(code: u16, reason: &str) -> (StatusCode, Value) {
    let status =
        json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": reason});
    (StatusCode::from_u16(code).expect("a status"), status)
}

impl Api {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), revision: watch::Sender::new(0) }
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        Client::new(service, "default")
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        self.revision.send_replace(state.revision);
        result
    }

    /// Puts an object there, or changes the one that is.
    pub(crate) fn put(&self, collection: &str, object: &Value) {
        let meta = &object["metadata"];
        let part = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
        let key = (collection.to_owned(), part("namespace"), part("name"));
        self.change(|state| {
            let old = state.objects.get(&key).cloned();
            let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
            let mut new = old.unwrap_or(Value::Null);
            merge(&mut new, object);
            state.write(key, kind, new);
        });
    }

    /// Waits until the state is as wanted, or fails with what it is instead.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&State) -> bool) {
        let mut changes = self.revision.subscribe();
        let reached = async {
            while !wanted(&self.state.lock().unwrap_or_else(PoisonError::into_inner)) {
                changes.changed().await.expect("the API lives");
            }
        };
        if tokio::time::timeout(PATIENCE, reached).await.is_err() {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let objects: Vec<String> = state.objects.values().map(Value::to_string).collect();
            panic!("{what}: not reached; there is\n{}", objects.join("\n"));
        }
    }

    async fn serve(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let target = Target::parse(parts.uri.path());
        let query = parts.uri.query().unwrap_or_default();
        if query.contains("watch=true") {
            let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
            return self.watch(&target.collection, from.and_then(|text| text.parse().ok()).unwrap_or(0));
        }
        let bytes = body.collect().await.expect("a body").to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let (status, answer) = self.change(|state| state.handle(&parts.method, &target, body));
        let body = Full::new(Bytes::from(answer.to_string())).boxed_unsync();
        Response::builder().status(status).body(body).expect("a response")
    }

    fn watch(&self, collection: &str, from: u64) -> Answer {
        let start = (self.clone(), self.revision.subscribe(), collection.to_owned(), from);
        let events = stream::unfold(start, |(api, mut changes, collection, mut from)| async move {
            loop {
                changes.borrow_and_update();
                let next = {
                    let state = api.state.lock().unwrap_or_else(PoisonError::into_inner);
                    state.log.iter().find(|(at, own, _)| *at > from && *own == collection).cloned()
                };
                if let Some((at, _, event)) = next {
                    from = at;
                    let frame = Frame::data(Bytes::from(format!("{event}\n")));
                    return Some((Ok::<_, Infallible>(frame), (api, changes, collection, from)));
                }
                changes.changed().await.ok()?;
            }
        });
        Response::new(StreamBody::new(events).boxed_unsync())
    }
}
