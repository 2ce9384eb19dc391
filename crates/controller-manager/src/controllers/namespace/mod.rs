//! Empties namespaces that are being deleted, then lets them go.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use meta::names::NamespacedName;
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock, chain};

use self::plan::Progress;
use crate::context::Context;
use crate::discovery::{self, Discovered};
use crate::enqueue;

const FINALIZER: &str = "kubernetes";
/// Namespaces emptied at once, as upstream.
const WORKERS: usize = 10;
/// Resources of one namespace emptied at once.
const CONCURRENT_RESOURCES: usize = 8;
/// Content that is on its way out is looked at again after this long, doubling.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(5);
const PAGE: u32 = 500;

struct Namespaces {
    client: Client,
    namespaces: Informer<Namespace>,
    looks: std::sync::Mutex<BTreeMap<String, u32>>,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("namespace");
    let controller = Arc::new(Namespaces {
        client: context.client.clone(),
        namespaces: context.informer(),
        looks: std::sync::Mutex::default(),
        clock: context.clock.clone(),
    });
    let _namespaces = enqueue::itself(&controller.namespaces, &queue);
    if context.synced(&[&controller.namespaces]).await {
        context.run("namespace", controller, queue, WORKERS).await;
    }
}

#[async_trait]
impl Reconciler for Namespaces {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let going =
            self.namespaces.get(key).filter(|namespace| namespace.metadata.deletion_timestamp.is_some());
        let Some(namespace) = going.filter(|namespace| has_finalizer(namespace)) else {
            self.lock().remove(&key.name);
            return Ok(Action::Done);
        };
        let namespace = self.mark_terminating(&namespace).await?;
        let mut progress = self.delete_content(&key.name).await?;
        progress.settle();
        let namespace = self.write_conditions(namespace, &progress).await?;
        if progress.is_empty() {
            self.finalize(namespace).await?;
            self.lock().remove(&key.name);
            return Ok(Action::Done);
        }
        if !progress.failures.is_empty() {
            return Err(ReconcileError::failed("some content could not be deleted"));
        }
        Ok(Action::RequeueAfter(self.next_look(&key.name)))
    }
}

fn has_finalizer(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten());
    finalizers.into_iter().any(|finalizer| finalizer == FINALIZER)
}

impl Namespaces {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u32>> {
        self.looks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn next_look(&self, name: &str) -> Duration {
        let mut looks = self.lock();
        let look = looks.entry(name.to_owned()).or_insert(0);
        *look += 1;
        reconcile::backoff::Backoff { base: FIRST_LOOK, max: LAST_LOOK }.delay(*look - 1)
    }

    async fn mark_terminating(&self, namespace: &Namespace) -> Result<Namespace, ReconcileError> {
        let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase == Some("Terminating") {
            return Ok(namespace.clone());
        }
        let mut going = namespace.clone();
        going.status.get_or_insert_default().phase = Some("Terminating".to_owned());
        Ok(self.api().replace_status(&name(&going), &PostParams::default(), &going).await?)
    }

    async fn write_conditions(
        &self,
        namespace: Namespace,
        progress: &Progress,
    ) -> Result<Namespace, ReconcileError> {
        let Some(changed) = plan::with_conditions(&namespace, progress, self.clock.now()) else {
            return Ok(namespace);
        };
        Ok(self.api().replace_status(&name(&changed), &PostParams::default(), &changed).await?)
    }

    async fn finalize(&self, mut namespace: Namespace) -> Result<(), ReconcileError> {
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let name = name(&namespace);
        let result: Result<Namespace, kube::Error> =
            self.api().replace_subresource("finalize", &name, &PostParams::default(), &namespace).await;
        match result {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Pods go first, and everything else only when they are gone (KEP-5080).
    async fn delete_content(&self, namespace: &str) -> Result<Progress, ReconcileError> {
        let mut progress = Progress::default();
        let found = discovery::discover(&self.client).await?;
        progress.discovery_failures =
            found.failures.iter().map(|(group, error)| format!("{group}: {}", chain(error))).collect();
        let (pods, others): (Vec<Discovered>, Vec<Discovered>) = found
            .resources
            .into_iter()
            .filter(|resource| resource.namespaced && resource.can("delete") && resource.can("list"))
            .partition(|resource| resource.resource.group.is_empty() && resource.resource.plural == "pods");
        for wave in [pods, others] {
            let work = wave.into_iter().map(|resource| self.empty(namespace, resource));
            let outcomes: Vec<Progress> = futures::StreamExt::collect(futures::StreamExt::buffer_unordered(
                futures::stream::iter(work),
                CONCURRENT_RESOURCES,
            ))
            .await;
            outcomes.into_iter().for_each(|outcome| progress.merge(outcome));
            if !progress.remaining.is_empty() {
                break;
            }
        }
        Ok(progress)
    }

    async fn empty(&self, namespace: &str, resource: Discovered) -> Progress {
        let mut progress = Progress::default();
        let kind = plan::resource_name(&resource.resource);
        if let Err(error) = self.try_empty(namespace, &resource, &kind, &mut progress).await {
            progress.failures.push(format!("{kind}: {}", chain(&error)));
        }
        progress
    }

    async fn try_empty(
        &self,
        namespace: &str,
        resource: &Discovered,
        kind: &str,
        progress: &mut Progress,
    ) -> Result<(), kube::Error> {
        let api = resource.api(&self.client, namespace);
        let mut list = ListParams::default().limit(PAGE);
        let first = match api.list(&list).await {
            // No such resource any more, or one that cannot be listed.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => return Ok(()),
            first => first?,
        };
        if first.items.is_empty() {
            return Ok(());
        }
        if resource.can("deletecollection") {
            api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
        } else {
            for object in &first.items {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                match api.delete(name, &DeleteParams::background()).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        loop {
            let page = api.list(&list).await?;
            for object in &page.items {
                progress.remains(kind, object.metadata.finalizers.as_deref().unwrap_or_default());
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => list = list.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    fn api(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }
}

fn name(namespace: &Namespace) -> String {
    namespace.metadata.name.clone().unwrap_or_default()
}
