//! Pods bound to this node, by watch.

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tracing::warn;

use super::{Source, SourceUpdate};

pub(crate) async fn run(client: Client, node_name: String, updates: mpsc::Sender<SourceUpdate>) {
    let config = Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut events = std::pin::pin!(watcher(Api::<Pod>::all(client), config).default_backoff());
    let mut listed = Vec::new();
    let source = Source::Api;
    while let Some(event) = events.next().await {
        let update = match event {
            Ok(Event::Init) => {
                listed = Vec::new();
                continue;
            }
            Ok(Event::InitApply(pod)) => {
                listed.push(pod);
                continue;
            }
            Ok(Event::InitDone) => SourceUpdate::Set { source, pods: std::mem::take(&mut listed) },
            Ok(Event::Apply(pod)) => SourceUpdate::Upsert { source, pod: Box::new(pod) },
            Ok(Event::Delete(pod)) => SourceUpdate::Remove { source, pod: Box::new(pod) },
            Err(error) => {
                warn!(error = %reconcile::chain(&error), "pod watch interrupted");
                continue;
            }
        };
        if updates.send(update).await.is_err() {
            return;
        }
    }
}
