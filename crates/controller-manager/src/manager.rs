//! Starts the chosen controllers and keeps them running.

use std::sync::Arc;

use kube::Client;
use reconcile::events::EventBroadcaster;
use reconcile::queue::QueueMetrics;
use reconcile::supervisor::Supervisor;
use reconcile::{Informers, SharedClock};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::Config;
use crate::context::{ClientFor, Context};
use crate::controllers::{CONTROLLERS, ControllerSpec};

const MANAGER: &str = "system:kube-controller-manager";

/// What the controllers of a process share with its other components.
#[derive(Debug, Clone)]
pub struct Shared {
    pub informers: Informers,
    pub clock: SharedClock,
    pub metrics: QueueMetrics,
    /// The name events are reported under: the host's.
    pub host: String,
}

/// Runs the controllers until `shutdown`. `client_for` makes the client of a user; it is asked for
/// `system:kube-controller-manager` and for `system:serviceaccount:kube-system:<name>`.
pub async fn run(
    config: Config,
    shared: Shared,
    client_for: impl Fn(&str) -> Client + Send + Sync + 'static,
    shutdown: CancellationToken,
) {
    let config = Arc::new(config);
    let client_for: ClientFor = Arc::new(client_for);
    for entry in unknown(&config.controllers) {
        warn!(controller = entry, "--controllers names an unknown controller");
    }
    let events = EventBroadcaster::new(client_for(MANAGER), shared.clock.clone(), &shared.host);
    let events = Arc::new(events);
    let mut supervisor = Supervisor::new(shared.clock.clone(), shutdown);
    supervisor.spawn("events", {
        let events = Arc::clone(&events);
        move |token| {
            let events = Arc::clone(&events);
            async move { events.run(token).await }
        }
    });
    for spec in CONTROLLERS.iter().filter(|spec| is_enabled(spec, &config.controllers)) {
        let user = if config.use_service_account_credentials {
            format!("system:serviceaccount:kube-system:{}", spec.service_account)
        } else {
            MANAGER.to_owned()
        };
        let (config, shared, events) = (Arc::clone(&config), shared.clone(), Arc::clone(&events));
        let client_for = Arc::clone(&client_for);
        supervisor.spawn(spec.name, move |shutdown| {
            (spec.run)(Context {
                config: Arc::clone(&config),
                client: client_for(&user),
                informers: shared.informers.clone(),
                clock: shared.clock.clone(),
                metrics: shared.metrics.clone(),
                events: Arc::clone(&events),
                shutdown,
            })
        });
    }
    supervisor.run().await;
}

/// The first entry that names the controller decides; then `*`; controllers that are off by default must be named.
fn is_enabled(spec: &ControllerSpec, selection: &[String]) -> bool {
    for entry in selection {
        let (enabled, name) = match entry.strip_prefix('-') {
            Some(name) => (false, name),
            None => (true, entry.as_str()),
        };
        if name == spec.name || spec.aliases.contains(&name) {
            return enabled;
        }
    }
    spec.on_by_default && selection.iter().any(|entry| entry == "*")
}

fn unknown(selection: &[String]) -> impl Iterator<Item = &str> {
    let name = |entry: &'_ str| entry.strip_prefix('-').unwrap_or(entry).to_owned();
    let known = move |entry: &&str| {
        let name = name(entry);
        name == "*"
            || CONTROLLERS.iter().any(|spec| spec.name == name || spec.aliases.contains(&name.as_str()))
    };
    selection.iter().map(String::as_str).filter(move |entry| !known(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled(selection: &[&str], name: &str) -> bool {
        let selection: Vec<String> = selection.iter().map(|entry| (*entry).to_owned()).collect();
        is_enabled(CONTROLLERS.iter().find(|spec| spec.name == name).unwrap(), &selection)
    }

    #[test]
    fn controllers_are_chosen_as_upstream_chooses_them() {
        assert!(enabled(&["*"], "deployment-controller"));
        assert!(!enabled(&["*", "-deployment-controller"], "deployment-controller"));
        assert!(!enabled(&["*", "-deployment"], "deployment-controller"), "by its older name");
        assert!(enabled(&["deployment"], "deployment-controller"));
        assert!(!enabled(&["deployment"], "replicaset-controller"));
        let selection = ["-nonesuch".to_owned(), "replicaset".to_owned()];
        assert_eq!(unknown(&selection).collect::<Vec<_>>(), ["-nonesuch"]);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> =
            CONTROLLERS.iter().flat_map(|spec| spec.aliases.iter().chain([&spec.name])).copied().collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}
