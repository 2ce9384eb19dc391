//! Events for people: written in the background, correlated so that a busy controller cannot flood the cluster.

mod correlator;

use std::fmt;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::clock::SharedClock;
use crate::events::correlator::{Correlator, Decision};
use crate::object::chain;

/// Events waiting to be written; more than this are dropped.
const BUFFER: usize = 1_000;
const NOTE_BYTES: usize = 1_024;

/// Whether an event is good or bad news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

/// What to tell about an object.
#[derive(Debug, Clone)]
pub struct Note {
    pub regarding: ObjectReference,
    pub related: Option<ObjectReference>,
    pub event_type: EventType,
    /// Why, in one word: `ScalingReplicaSet`.
    pub reason: &'static str,
    /// What was done, in one word: `Scale`.
    pub action: &'static str,
    pub note: String,
}

/// Takes events in the name of one controller. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct EventRecorder {
    controller: &'static str,
    sender: mpsc::Sender<(&'static str, Note)>,
}

/// Writes the events of its recorders.
pub struct EventBroadcaster {
    client: Client,
    clock: SharedClock,
    instance: String,
    sender: mpsc::Sender<(&'static str, Note)>,
    receiver: Mutex<mpsc::Receiver<(&'static str, Note)>>,
}

impl EventType {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

impl EventRecorder {
    /// A recorder whose events go nowhere, for tests of what records them.
    #[must_use]
    pub fn discarding() -> Self {
        Self { controller: "test", sender: mpsc::channel(1).0 }
    }

    /// Records good news about `object`.
    pub fn normal<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &'static str,
        action: &'static str,
        note: impl Into<String>,
    ) {
        let event_type = EventType::Normal;
        let regarding = object.object_ref(&());
        self.record(Note { regarding, related: None, event_type, reason, action, note: note.into() });
    }

    /// Records bad news about `object`.
    pub fn warning<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &'static str,
        action: &'static str,
        note: impl Into<String>,
    ) {
        let event_type = EventType::Warning;
        let regarding = object.object_ref(&());
        self.record(Note { regarding, related: None, event_type, reason, action, note: note.into() });
    }

    /// Records an event; it is dropped when too many wait already, since events are advisory.
    pub fn record(&self, note: Note) {
        if let Err(error) = self.sender.try_send((self.controller, note)) {
            debug!(controller = self.controller, error = %error, "event dropped");
        }
    }
}

impl fmt::Debug for EventBroadcaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventBroadcaster").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl EventBroadcaster {
    /// `instance` says which process reports: upstream uses the host's name.
    #[must_use]
    pub fn new(client: Client, clock: SharedClock, instance: &str) -> Self {
        let (sender, receiver) = mpsc::channel(BUFFER);
        Self { client, clock, instance: instance.to_owned(), sender, receiver: Mutex::new(receiver) }
    }

    /// A recorder for `controller`, for example `deployment-controller`.
    #[must_use]
    pub fn recorder(&self, controller: &'static str) -> EventRecorder {
        EventRecorder { controller, sender: self.sender.clone() }
    }

    /// Writes events until shutdown.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut receiver = self.receiver.lock().await;
        let mut correlator = Correlator::default();
        while let Some(Some((controller, note))) = shutdown.run_until_cancelled(receiver.recv()).await {
            // An event is advisory; losing one must not fail anything.
            if let Err(error) = self.write(&mut correlator, controller, note).await {
                warn!(controller, error = %chain(&error), "event not recorded");
            }
        }
    }

    async fn write(
        &self,
        correlator: &mut Correlator,
        controller: &'static str,
        mut note: Note,
    ) -> Result<(), kube::Error> {
        truncate(&mut note.note);
        let namespace = match note.regarding.namespace.as_deref() {
            None | Some("") => "default",
            Some(namespace) => namespace,
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let now = self.clock.now();
        match correlator.decide(controller, &note, self.clock.monotonic()) {
            Decision::Drop => Ok(()),
            Decision::Repeat { name, count } => {
                let patch = json!({"series": {"count": count, "lastObservedTime": MicroTime(now)}});
                match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => {
                        correlator.forget(controller, &note);
                        self.create(&api, correlator, controller, &note).await
                    }
                    patched => patched.map(drop),
                }
            }
            Decision::New { note: text } => {
                note.note = text;
                self.create(&api, correlator, controller, &note).await
            }
        }
    }

    async fn create(
        &self,
        api: &Api<Event>,
        correlator: &mut Correlator,
        controller: &'static str,
        note: &Note,
    ) -> Result<(), kube::Error> {
        let now = self.clock.now();
        let regarding = note.regarding.name.as_deref().unwrap_or_default();
        let name = format!("{regarding}.{:x}", now.as_nanosecond() + i128::from(correlator.sequence()));
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: api.namespace().map(str::to_owned),
                ..ObjectMeta::default()
            },
            action: Some(note.action.to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(note.note.clone()),
            reason: Some(note.reason.to_owned()),
            regarding: Some(note.regarding.clone()),
            related: note.related.clone(),
            reporting_controller: Some(controller.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(note.event_type.as_str().to_owned()),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                correlator.created(controller, note, name);
                Ok(())
            }
            // The namespace is going or gone: nobody will read its events.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_forbidden() => {
                debug!(controller, reason = note.reason, error = %status, "event refused");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

fn truncate(note: &mut String) {
    if note.len() > NOTE_BYTES {
        let end = (0..=NOTE_BYTES).rev().find(|at| note.is_char_boundary(*at)).unwrap_or(0);
        note.truncate(end);
    }
}
