//! From sources to workers: which pods this node has, one worker for each, and mirrors for the static ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::admission::admit;
use super::handle::{PodHandle, PodView};
use super::memory::Failure;
use super::model::{PodModel, is_mirror, is_static};
use super::status::is_terminal;
use super::worker::Worker;
use crate::container::labels;
use crate::context::Context;
use crate::mirror;
use crate::sources::{Source, SourceUpdate};

pub(crate) struct Manager {
    context: Arc<Context>,
    updates: mpsc::Receiver<SourceUpdate>,
    /// Sources that have not yet told all they have.
    unsynced: BTreeSet<Source>,
    workers: JoinSet<String>,
    /// What each source last had, by uid.
    desired: BTreeMap<Source, BTreeMap<String, Arc<Pod>>>,
    /// Mirror pods in the API by namespace and name.
    mirrors: BTreeMap<(String, String), Arc<Pod>>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("unsynced", &self.unsynced).finish_non_exhaustive()
    }
}

impl Manager {
    pub(crate) fn new(
        context: Arc<Context>,
        updates: mpsc::Receiver<SourceUpdate>,
        sources: impl IntoIterator<Item = Source>,
    ) -> Self {
        Self {
            context,
            updates,
            unsynced: sources.into_iter().collect(),
            workers: JoinSet::new(),
            desired: BTreeMap::new(),
            mirrors: BTreeMap::new(),
        }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                update = self.updates.recv() => match update {
                    Some(update) => self.handle(update, &shutdown).await,
                    None => break,
                },
                Some(ended) = self.workers.join_next(), if !self.workers.is_empty() => {
                    self.ended(ended, &shutdown);
                }
            }
        }
        while self.workers.join_next().await.is_some() {}
    }

    async fn handle(&mut self, update: SourceUpdate, shutdown: &CancellationToken) {
        match update {
            SourceUpdate::Set { source, pods } => {
                let pods: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
                let uids: BTreeSet<String> = pods.iter().filter_map(|p| p.metadata.uid.clone()).collect();
                let known = self.desired.entry(source).or_default().keys().cloned().collect::<Vec<_>>();
                for uid in known.into_iter().filter(|uid| !uids.contains(uid)) {
                    self.remove(source, &uid);
                }
                if source == Source::Api {
                    self.drop_mirrors(&uids);
                }
                let mut pods = pods;
                pods.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
                for pod in pods {
                    self.upsert(source, pod, shutdown);
                }
                if self.unsynced.remove(&source) && self.unsynced.is_empty() {
                    self.adopt_orphans(shutdown).await;
                }
            }
            SourceUpdate::Upsert { source, pod } => self.upsert(source, Arc::new(*pod), shutdown),
            SourceUpdate::Remove { source, pod } => {
                if is_mirror(&pod) {
                    self.mirror_gone(&pod);
                } else if let Some(uid) = pod.metadata.uid.clone() {
                    self.remove(source, &uid);
                }
            }
        }
    }

    fn upsert(&mut self, source: Source, pod: Arc<Pod>, shutdown: &CancellationToken) {
        if source == Source::Api && is_mirror(&pod) {
            return self.mirror_seen(pod);
        }
        let Some(uid) = pod.metadata.uid.clone() else { return };
        self.desired.entry(source).or_default().insert(uid.clone(), pod.clone());
        if let Some(handle) = self.context.pods.get(&uid) {
            return handle.tell(|inbox| inbox.pod = Some(pod));
        }
        if self.static_twin_lives(&pod) {
            // It starts when the old one of its name has ended.
            return;
        }
        let rejection = self.admit(&pod);
        self.start(pod, rejection, shutdown);
    }

    /// A changed static pod has a new uid; it must not start beside what it replaces.
    fn static_twin_lives(&self, pod: &Pod) -> bool {
        is_static(pod)
            && self.context.pods.all().iter().any(|handle| {
                let view = handle.view();
                let same = view.model.pod.metadata.name == pod.metadata.name
                    && view.model.pod.metadata.namespace == pod.metadata.namespace;
                same && view.model.is_static()
            })
    }

    /// Pods that have run here already are not asked again.
    fn admit(&self, pod: &Arc<Pod>) -> Option<Failure> {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
        let begun = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
        if phase != "Pending" || begun || pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let model = PodModel::new(pod.clone());
        let views: Vec<PodView> = self.context.pods.all().iter().map(|h| h.view()).collect();
        let others: Vec<&PodModel> = views
            .iter()
            .filter(|v| !v.ended && !is_terminal(v.status.phase.as_deref().unwrap_or_default()))
            .map(|v| &*v.model)
            .collect();
        let failure = admit(&model, &others, &self.context.node()).err()?;
        let message = failure.message.trim_start_matches("Pod was rejected: ").to_owned();
        let warning = reconcile::events::EventType::Warning;
        self.context.recorder.rejection(&model, warning, &failure.reason, message);
        Some(failure)
    }

    fn start(&mut self, pod: Arc<Pod>, rejection: Option<Failure>, shutdown: &CancellationToken) {
        let model = Arc::new(PodModel::new(pod.clone()));
        let uid = model.uid.clone();
        let view = PodView {
            status: Arc::new(pod.status.clone().unwrap_or_default()),
            model: model.clone(),
            observed: Arc::default(),
            volumes: Arc::default(),
            ending: false,
            ended: false,
        };
        let handle = Arc::new(PodHandle::new(view));
        self.context.pods.insert(uid.clone(), handle.clone());
        let worker = Worker::new(self.context.clone(), handle.clone(), pod, rejection);
        let shutdown = shutdown.clone();
        self.workers.spawn(async move {
            worker.run(shutdown).await;
            uid
        });
        if model.is_static() {
            let mirror = self.mirrors.get(&(model.namespace.clone(), model.name.clone())).cloned();
            self.offer_mirror(&model, mirror);
        }
    }

    fn remove(&mut self, source: Source, uid: &str) {
        let pod = self.desired.entry(source).or_default().remove(uid);
        if let Some(handle) = self.context.pods.get(uid) {
            handle.tell(|inbox| inbox.removed = true);
        }
        if let Some(pod) = pod.filter(|p| is_static(p)) {
            let key = mirror::key(&pod);
            if let Some(mirror) = self.mirrors.get(&key) {
                self.delete_mirror(mirror.clone());
            }
        }
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>, shutdown: &CancellationToken) {
        let uid = match ended {
            Ok(uid) => uid,
            Err(error) => return warn!(%error, "pod worker ended badly"),
        };
        if shutdown.is_cancelled() {
            return;
        }
        self.context.pods.remove(&uid);
        self.context.watch_objects(&uid, &BTreeSet::new());
        let waiting: Vec<Arc<Pod>> = self
            .desired
            .values()
            .flat_map(BTreeMap::values)
            .filter(|pod| pod.metadata.uid.as_ref().is_some_and(|uid| self.context.pods.get(uid).is_none()))
            .cloned()
            .collect();
        for pod in waiting.into_iter().filter(|pod| is_static(pod)) {
            if !self.static_twin_lives(&pod) {
                let rejection = self.admit(&pod);
                self.start(pod, rejection, shutdown);
            }
        }
    }

    fn mirror_seen(&mut self, pod: Arc<Pod>) {
        let key = mirror::key(&pod);
        self.mirrors.insert(key.clone(), pod.clone());
        let owner = self.static_pod(&key);
        match owner {
            None if self.unsynced.is_empty() => self.delete_mirror(pod),
            None => {}
            Some(owner)
                if !mirror::is_mirror_of(&pod, &owner) || pod.metadata.deletion_timestamp.is_some() =>
            {
                self.delete_mirror(pod);
            }
            Some(owner) => {
                if let Some(handle) = owner.metadata.uid.as_ref().and_then(|uid| self.context.pods.get(uid)) {
                    handle.tell(|inbox| inbox.mirror = Some(Some(pod)));
                }
            }
        }
    }

    fn mirror_gone(&mut self, pod: &Pod) {
        let key = mirror::key(pod);
        self.mirrors.remove(&key);
        if let Some(owner) = self.static_pod(&key) {
            self.offer_mirror(&PodModel::new(owner), None);
        }
    }

    /// Mirrors the API no longer lists went while the watch was down.
    fn drop_mirrors(&mut self, listed: &BTreeSet<String>) {
        let gone: Vec<Arc<Pod>> = self
            .mirrors
            .values()
            .filter(|pod| pod.metadata.uid.as_ref().is_none_or(|uid| !listed.contains(uid)))
            .cloned()
            .collect();
        for pod in gone {
            self.mirror_gone(&pod);
        }
    }

    fn static_pod(&self, key: &(String, String)) -> Option<Arc<Pod>> {
        self.desired
            .values()
            .flat_map(BTreeMap::values)
            .find(|p| is_static(p) && mirror::key(p) == *key)
            .cloned()
    }

    fn offer_mirror(&mut self, model: &PodModel, mirror: Option<Arc<Pod>>) {
        if let Some(pod) = &mirror {
            if let Some(handle) = self.context.pods.get(&model.uid) {
                let pod = pod.clone();
                handle.tell(|inbox| inbox.mirror = Some(Some(pod)));
            }
            if mirror::is_mirror_of(pod, &model.pod) {
                return;
            }
            return self.delete_mirror(pod.clone());
        }
        if let Some(handle) = self.context.pods.get(&model.uid) {
            handle.tell(|inbox| inbox.mirror = Some(None));
        }
        let (context, pod) = (self.context.clone(), model.pod.clone());
        self.workers.spawn(async move {
            mirror::create(&context, &pod).await;
            String::new()
        });
    }

    fn delete_mirror(&mut self, pod: Arc<Pod>) {
        let context = self.context.clone();
        self.workers.spawn(async move {
            mirror::delete(&context, &pod).await;
            String::new()
        });
    }

    /// Pods the runtime still holds though no source has them: they are ended like removed ones.
    async fn adopt_orphans(&mut self, shutdown: &CancellationToken) {
        let sandboxes = match self.context.runtime.list_sandboxes(BTreeMap::new()).await {
            Ok(sandboxes) => sandboxes,
            Err(error) => return warn!(error = %reconcile::chain(&error), "orphaned pods not looked for"),
        };
        let ownerless = self.mirrors.values().filter(|m| self.static_pod(&mirror::key(m)).is_none());
        for mirror in ownerless.cloned().collect::<Vec<_>>() {
            self.delete_mirror(mirror);
        }
        for sandbox in sandboxes {
            let Some(metadata) = sandbox.metadata else { continue };
            if !sandbox.labels.contains_key(labels::POD_UID) || self.context.pods.get(&metadata.uid).is_some()
            {
                continue;
            }
            info!(namespace = metadata.namespace, name = metadata.name, "ending a pod that no source has");
            let mut pod = Pod::default();
            pod.metadata.name = Some(metadata.name);
            pod.metadata.namespace = Some(metadata.namespace);
            pod.metadata.uid = Some(metadata.uid.clone());
            self.start(Arc::new(pod), None, shutdown);
            if let Some(handle) = self.context.pods.get(&metadata.uid) {
                handle.tell(|inbox| inbox.removed = true);
            }
        }
    }
}
