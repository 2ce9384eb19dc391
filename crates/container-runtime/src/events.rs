//! What happens to containers, for whoever listens: a kubelet that does not want to poll.

use cri::v1::{ContainerEventResponse, ContainerEventType};
use tokio::sync::broadcast;

use crate::container::Container;
use crate::runtime::{Runtime, now};

/// A listener this far behind misses events, and is told so by the end of its stream.
pub(crate) const BUFFER: usize = 1024;

impl Runtime {
    /// Tells the listeners what became of a container.
    pub(crate) fn publish(&self, kind: ContainerEventType, container: &Container) {
        self.publish_for(kind, container.id(), &container.sandbox());
    }

    /// Tells the listeners what became of a container or, under its own id, of a sandbox.
    pub(crate) fn publish_for(&self, kind: ContainerEventType, container_id: String, sandbox: &str) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let pod_sandbox_status = self.find_sandbox(sandbox).ok().map(|sandbox| sandbox.record().status());
        let containers_statuses =
            self.containers_of(sandbox).iter().map(|container| container.record().status()).collect();
        let event = ContainerEventResponse {
            container_id,
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status,
            containers_statuses,
        };
        // Nobody may be left to hear it.
        drop(self.events.send(event));
    }

    pub(crate) fn listen(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.events.subscribe()
    }
}
