//! Events about pods and the node, by upstream's reasons.

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use reconcile::events::{EventRecorder, EventType, Note};

use crate::pod::model::{ContainerKind, ContainerModel, PodModel};

#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    events: EventRecorder,
    node_name: String,
}

impl Recorder {
    pub(crate) fn new(events: EventRecorder, node_name: &str) -> Self {
        Self { events, node_name: node_name.to_owned() }
    }

    pub(crate) fn pod(
        &self,
        model: &PodModel,
        event_type: EventType,
        reason: &'static str,
        note: impl Into<String>,
    ) {
        self.record(pod_reference(model, None), event_type, reason, note.into());
    }

    /// Rejection reasons name the resource that lacks; events have a reason for the common ones.
    pub(crate) fn rejection(&self, model: &PodModel, event_type: EventType, reason: &str, note: String) {
        const KNOWN: [&str; 9] = [
            "OutOfcpu",
            "OutOfmemory",
            "OutOfpods",
            "OutOfephemeral-storage",
            "NodeAffinity",
            "NodePorts",
            "TaintToleration",
            "PodOSNotSupported",
            "Evicted",
        ];
        let reason = KNOWN.into_iter().find(|known| *known == reason).unwrap_or("UnexpectedAdmissionError");
        self.pod(model, event_type, reason, note);
    }

    pub(crate) fn container(
        &self,
        model: &PodModel,
        container: &ContainerModel,
        event_type: EventType,
        reason: &'static str,
        note: impl Into<String>,
    ) {
        let list = match container.kind {
            ContainerKind::Init | ContainerKind::Sidecar => "initContainers",
            ContainerKind::Regular => "containers",
            ContainerKind::Ephemeral => "ephemeralContainers",
        };
        let path = format!("spec.{list}{{{}}}", container.name());
        self.record(pod_reference(model, Some(path)), event_type, reason, note.into());
    }

    pub(crate) fn node(&self, event_type: EventType, reason: &'static str, note: impl Into<String>) {
        let regarding = ObjectReference {
            kind: Some(<Node as k8s_openapi::Resource>::KIND.to_owned()),
            name: Some(self.node_name.clone()),
            // Upstream refers to the node by its name, so that events survive a node made anew.
            uid: Some(self.node_name.clone()),
            ..ObjectReference::default()
        };
        self.record(regarding, event_type, reason, note.into());
    }

    fn record(&self, regarding: ObjectReference, event_type: EventType, reason: &'static str, note: String) {
        self.events.record(Note { regarding, related: None, event_type, reason, action: reason, note });
    }
}

fn pod_reference(model: &PodModel, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(model.namespace.clone()),
        name: Some(model.name.clone()),
        uid: Some(model.uid.clone()),
        resource_version: model.pod.metadata.resource_version.clone(),
        field_path,
    }
}
