//! Watches on the config maps and secrets that running pods have mounted: one per object, shared by its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tracing::debug;

use crate::volumes::{ObjectKind, ObjectReference};

/// Told the uids of the pods to which something happened.
pub(crate) type Notify = Arc<dyn Fn(&BTreeSet<String>) + Send + Sync>;

#[derive(Default)]
pub(crate) struct ObjectWatches {
    watches: Mutex<BTreeMap<ObjectReference, Watch>>,
}

struct Watch {
    pods: Arc<Mutex<BTreeSet<String>>>,
    task: JoinHandle<()>,
}

impl Debug for ObjectWatches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectWatches").finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ObjectWatches {
    /// Makes `wanted` what this pod is told about; an empty set ends its interest.
    pub(crate) fn set(
        &self,
        client: &Client,
        uid: &str,
        wanted: &BTreeSet<ObjectReference>,
        notify: &Notify,
    ) {
        let mut watches = lock(&self.watches);
        watches.retain(|object, watch| {
            let mut pods = lock(&watch.pods);
            if !wanted.contains(object) {
                pods.remove(uid);
            }
            !pods.is_empty()
        });
        for object in wanted {
            if let Some(watch) = watches.get(object) {
                lock(&watch.pods).insert(uid.to_owned());
                continue;
            }
            let pods = Arc::new(Mutex::new(BTreeSet::from([uid.to_owned()])));
            let task = match object.kind {
                ObjectKind::ConfigMap => tokio::spawn(follow::<ConfigMap>(
                    client.clone(),
                    object.clone(),
                    pods.clone(),
                    notify.clone(),
                )),
                ObjectKind::Secret => tokio::spawn(follow::<Secret>(
                    client.clone(),
                    object.clone(),
                    pods.clone(),
                    notify.clone(),
                )),
            };
            watches.insert(object.clone(), Watch { pods, task });
        }
    }
}

/// Tells of every change after the first look, which the mount itself has seen.
async fn follow<K>(
    client: Client,
    object: ObjectReference,
    pods: Arc<Mutex<BTreeSet<String>>>,
    notify: Notify,
) where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let api: kube::Api<K> = kube::Api::namespaced(client, &object.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", object.name));
    let mut events = std::pin::pin!(watch(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(_) | Event::Delete(_)) => notify(&lock(&pods).clone()),
            Ok(_) => {}
            Err(error) => debug!(?object, error = %reconcile::chain(&error), "object watch interrupted"),
        }
    }
}
