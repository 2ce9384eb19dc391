//! From a request to its answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::answer::{Answer, json as as_json, text};
use super::auth::{Auth, Peer};
use super::{logs, metrics, stats, stream};
use crate::context::Context;
use crate::pod::handle::PodView;
use crate::runtime;

const RUN_TIMEOUT: Duration = Duration::from_secs(600);

/// Query parameters in order; names may repeat.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let decode = |part: &str| percent_decode(&part.replace('+', " "));
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Self(pairs.collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value.clone()).collect()
    }

    /// Go's notion of a set flag: `1`, `true` and the like.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| matches!(v, "1" | "true" | "TRUE" | "True" | "t" | "T"))
    }
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail
            .get(..2)
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) async fn answer(request: Request<Incoming>, peer: &Peer, auth: &Arc<Auth>) -> Answer {
    let path = request.uri().path().to_owned();
    if let Some(refusal) = auth.refuse(peer, request.method(), &path, request.headers()).await {
        return refusal;
    }
    let context = &auth.context;
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<String> =
        path.trim_matches('/').split('/').map(percent_decode).filter(|p| !p.is_empty()).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads && let Some(answer) = read(context, &parts).await {
        return answer;
    }
    if auth.read_only || !context.config.kubelet.enable_debugging_handlers {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    match parts.as_slice() {
        ["containerLogs", namespace, pod, container] if reads => {
            logs::answer(context, namespace, pod, container, &query)
        }
        ["exec" | "attach" | "portForward", ..] => stream::answer(context, request, &parts, &query).await,
        ["run", namespace, pod, container] | ["run", namespace, pod, _, container]
            if *request.method() == Method::POST =>
        {
            run(context, namespace, pod, container, &query).await
        }
        ["configz"] if reads => as_json(&json!({"kubeletconfig": configz(context)})),
        ["runningpods"] if reads => as_json(&pods(context, true)),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// What the read-only port serves too.
async fn read(context: &Arc<Context>, parts: &[&str]) -> Option<Answer> {
    Some(match parts {
        ["healthz", ..] => text(StatusCode::OK, "ok"),
        ["pods"] => as_json(&pods(context, false)),
        ["stats", "summary"] => as_json(&stats::summary(context).await),
        ["metrics"] => metrics::kubelet(context),
        ["metrics", "resource"] => metrics::resource(&stats::summary(context).await),
        ["metrics", "probes"] => metrics::probes(context),
        ["metrics", "cadvisor"] => metrics::cadvisor(&stats::summary(context).await),
        _ => return None,
    })
}

fn pods(context: &Context, running_only: bool) -> List<Pod> {
    let views = context.pods.all().into_iter().map(|handle| handle.view());
    let items = views.filter(|v| !running_only || v.observed.any_alive()).map(|view| {
        let mut pod = (*view.model.pod).clone();
        pod.status = Some((*view.status).clone());
        pod
    });
    List { items: items.collect(), ..List::default() }
}

fn configz(context: &Context) -> BTreeMap<&'static str, serde_json::Value> {
    let kubelet = &context.config.kubelet;
    BTreeMap::from([
        ("address", json!(kubelet.address)),
        ("port", json!(kubelet.port)),
        ("clusterDomain", json!(kubelet.cluster_domain)),
        ("clusterDNS", json!(kubelet.cluster_dns)),
        ("cgroupDriver", json!(kubelet.cgroup_driver)),
        ("cgroupRoot", json!(kubelet.cgroup_root)),
        ("maxPods", json!(kubelet.max_pods)),
        ("evictionHard", json!(kubelet.eviction_hard)),
        ("containerRuntimeEndpoint", json!(kubelet.container_runtime_endpoint)),
        ("nodeLeaseDurationSeconds", json!(kubelet.node_lease_duration_seconds)),
        ("failSwapOn", json!(kubelet.fail_swap_on)),
    ])
}

async fn run(context: &Context, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
    let id = match running_container(context, namespace, pod, container) {
        Ok(id) => id,
        Err(answer) => return *answer,
    };
    let command = query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
    match context.runtime.exec_sync(&id, command, RUN_TIMEOUT).await {
        Ok(output) => {
            let mut data = output.stdout;
            data.extend(output.stderr);
            super::answer::with_type(StatusCode::OK, "text/plain; charset=utf-8", data)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, runtime::message(&error)),
    }
}

pub(super) fn find(context: &Context, namespace: &str, pod: &str) -> Result<PodView, Box<Answer>> {
    let missing = || Box::new(text(StatusCode::NOT_FOUND, format!("pod \"{pod}\" does not exist")));
    context.pods.named(namespace, pod).ok_or_else(missing)
}

pub(super) fn running_container(
    context: &Context,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<String, Box<Answer>> {
    let view = find(context, namespace, pod)?;
    let running = view.observed.latest(container).filter(|c| c.is_alive()).map(|c| c.id.clone());
    running.ok_or_else(|| {
        let message = format!("unable to upgrade connection: container not found (\"{container}\")");
        Box::new(text(StatusCode::NOT_FOUND, message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_may_repeat() {
        let query = Query::parse("command=sh&command=-c&command=echo%20%22a%2Bb%22+c&input=1&tty=0");
        assert_eq!(query.all("command"), ["sh", "-c", "echo \"a+b\" c"]);
        assert!(query.flag("input") && !query.flag("tty") && !query.flag("none"));
    }
}
