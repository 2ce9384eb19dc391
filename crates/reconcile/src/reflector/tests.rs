//! The reflector against scripted answers of an API server.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::InformerEvent;
use crate::clock::RealClock;
use crate::informer::Informers;

/// A part of the request that is expected, and the answer.
type Exchange = (&'static str, u16, String);

/// A client whose requests get these answers, in order; after the last, requests wait for ever.
fn scripted(script: Vec<Exchange>) -> Client {
    let script = Arc::new(Mutex::new(VecDeque::from(script)));
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let next = script.lock().unwrap().pop_front();
        async move {
            let Some((expected, code, body)) = next else { return std::future::pending().await };
            let uri = request.uri().to_string();
            assert!(uri.contains(expected), "{uri} has no {expected}");
            let response =
                http::Response::builder().status(code).body(Body::from(body.into_bytes())).unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    Client::new(service, "default")
}

fn object(name: &str, version: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
           "metadata": {"name": name, "namespace": "d", "uid": name, "resourceVersion": version.to_string()}})
}

fn page(version: u64, next: &str, objects: &[Value]) -> String {
    json!({"kind": "ConfigMapList", "apiVersion": "v1", "items": objects,
           "metadata": {"resourceVersion": version.to_string(), "continue": next}})
    .to_string()
}

fn events(events: &[(&str, Value)]) -> String {
    let line = |(type_, object): &(&str, Value)| format!("{}\n", json!({"type": type_, "object": object}));
    events.iter().map(line).collect()
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "no", "code": code})
}

/// Runs the script and waits until the log of changes ends with `last`.
async fn check(script: Vec<Exchange>, expected: &[&str]) -> Informer<ConfigMap> {
    let shutdown = CancellationToken::new();
    let informers = Informers::new(scripted(script), RealClock::shared(), shutdown.clone());
    let informer = informers.of::<ConfigMap>();
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let _subscription = informer.subscribe(move |event| {
        let describe = |object: &ConfigMap| {
            let version = object.metadata.resource_version.clone().unwrap();
            format!("{}@{version}", object.metadata.name.clone().unwrap())
        };
        let line = match event {
            InformerEvent::Added(new) => format!("+{}", describe(new)),
            InformerEvent::Updated { new, .. } => format!("~{}", describe(new)),
            InformerEvent::Deleted(old) => format!("-{}", describe(old)),
        };
        sender.send(line).unwrap();
    });
    let mut log = Vec::new();
    while log.len() < expected.len() {
        let line = tokio::time::timeout(Duration::from_secs(30), receiver.recv()).await;
        log.push(line.unwrap_or_else(|_| panic!("only {log:?}")).unwrap());
    }
    assert_eq!(log, expected);
    informer.synced().await;
    shutdown.cancel();
    informers.ended().await;
    informer
}

#[tokio::test]
async fn pages_are_listed_and_changes_watched_from_where_the_last_watch_ended() {
    let bookmark = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "20"}});
    let script = vec![
        ("configmaps?limit=500", 200, page(5, "next/page", &[object("a", 1), object("b", 2)])),
        ("continue=next%2Fpage", 200, page(5, "", &[object("c", 3)])),
        (
            "resourceVersion=5",
            200,
            events(&[("ADDED", object("d", 6)), ("MODIFIED", object("a", 7)), ("BOOKMARK", bookmark)]),
        ),
        ("resourceVersion=20", 200, events(&[("DELETED", object("b", 21))])),
    ];
    let informer = check(script, &["+a@1", "+b@2", "+c@3", "+d@6", "~a@7", "-b@21"]).await;
    assert_eq!((informer.len(), informer.resource_version()), (3, 21));
}

#[tokio::test]
async fn an_expired_watch_is_followed_by_a_list_that_shows_as_the_changes_it_brought() {
    let script = vec![
        ("limit=500", 200, page(5, "", &[object("a", 1), object("b", 2), object("c", 3)])),
        ("resourceVersion=5", 200, events(&[("ERROR", status(410, "Expired"))])),
        ("limit=500", 200, page(30, "", &[object("a", 1), object("c", 25), object("e", 26)])),
        ("resourceVersion=30", 410, status(410, "Gone").to_string()),
        ("limit=500", 200, page(40, "", &[object("a", 1), object("c", 25)])),
    ];
    check(script, &["+a@1", "+b@2", "+c@3", "~c@25", "+e@26", "-b@2", "-e@26"]).await;
}

#[tokio::test]
async fn errors_are_retried_and_an_expired_page_begins_the_list_again() {
    let script = vec![
        ("limit=500", 403, status(403, "Forbidden").to_string()),
        ("limit=500", 200, page(5, "more", &[object("a", 1)])),
        ("continue=more", 410, status(410, "Expired").to_string()),
        ("limit=500", 200, page(9, "", &[object("b", 8)])),
        ("resourceVersion=9", 500, status(500, "InternalError").to_string()),
        ("resourceVersion=9", 200, events(&[("ADDED", object("c", 10))])),
    ];
    check(script, &["+a@1", "+b@8", "-a@1", "+c@10"]).await;
}

#[test]
fn query_values_are_escaped() {
    let mut query = "limit=1".to_owned();
    push(&mut query, "fieldSelector", "spec.nodeName=a&b c");
    assert_eq!(query, "limit=1&fieldSelector=spec.nodeName%3Da%26b%20c");
}
