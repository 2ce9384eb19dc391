//! How others reach a pod worker, and what they may see of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::Notify;

use super::memory::Failure;
use super::model::PodModel;
use super::observed::Observed;
use crate::probes::ProbeReport;
use crate::volumes::PodVolumes;

/// News for a worker. Repeated news of one sort is one piece of news, so this never grows.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(crate) pod: Option<Arc<Pod>>,
    /// A static pod's mirror as the API has it; inner nothing when it is not there.
    pub(crate) mirror: Option<Option<Arc<Pod>>>,
    /// The source no longer has the pod.
    pub(crate) removed: bool,
    pub(crate) runtime_changed: bool,
    pub(crate) objects_changed: bool,
    pub(crate) probes: Vec<ProbeReport>,
    pub(crate) eviction: Option<(Failure, Duration)>,
}

/// What the server and the node agent read: a snapshot, replaced whole.
#[derive(Debug, Clone)]
pub(crate) struct PodView {
    pub(crate) model: Arc<PodModel>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) status: Arc<PodStatus>,
    pub(crate) volumes: Arc<PodVolumes>,
    pub(crate) ending: bool,
    /// Nothing of it runs or holds resources any more.
    pub(crate) ended: bool,
}

#[derive(Debug)]
pub(crate) struct PodHandle {
    inbox: Mutex<Inbox>,
    notify: Notify,
    view: Mutex<PodView>,
}

impl PodHandle {
    pub(crate) fn new(view: PodView) -> Self {
        Self { inbox: Mutex::default(), notify: Notify::new(), view: Mutex::new(view) }
    }

    pub(crate) fn tell(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.inbox.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }

    pub(crate) fn take(&self) -> Inbox {
        std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) async fn notified(&self) {
        self.notify.notified().await;
    }

    pub(crate) fn view(&self) -> PodView {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn publish(&self, view: PodView) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

/// Every pod this kubelet works on, by uid.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodTable(Arc<RwLock<BTreeMap<String, Arc<PodHandle>>>>);

impl PodTable {
    pub(crate) fn get(&self, uid: &str) -> Option<Arc<PodHandle>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<PodHandle>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn insert(&self, uid: String, handle: Arc<PodHandle>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(uid, handle);
    }

    pub(crate) fn remove(&self, uid: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// By namespace and name; of several incarnations the one that is not ending.
    pub(crate) fn named(&self, namespace: &str, name: &str) -> Option<PodView> {
        let mut found: Vec<PodView> = self.all().iter().map(|h| h.view()).collect();
        found.retain(|view| view.model.namespace == namespace && view.model.name == name);
        found.sort_by_key(|view| view.ending);
        found.into_iter().next()
    }
}
