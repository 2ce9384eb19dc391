//! Tells pod workers when the runtime did something to them: by its events, or by looking every second.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cri::Code;
use futures::StreamExt;
use tracing::{info, warn};

use crate::container::labels;
use crate::context::Context;

const RELIST: Duration = Duration::from_secs(1);
const RECONNECT: Duration = Duration::from_secs(1);

pub(crate) async fn run(context: Arc<Context>) {
    loop {
        match context.runtime.events().await {
            Ok(mut events) => {
                // What happened before the stream began is seen by looking once.
                tell_all(&context);
                while let Some(Ok(event)) = events.next().await {
                    let status = event.pod_sandbox_status.and_then(|s| s.metadata).map(|m| m.uid);
                    match status.or_else(|| owner(&context, &event.container_id)) {
                        Some(uid) => tell(&context, &uid),
                        None => tell_all(&context),
                    }
                }
                info!("the runtime ended its events; connecting again");
            }
            Err(error) if error.code() == Code::Unimplemented => return relist(context).await,
            Err(error) => warn!(error = %reconcile::chain(&error), "no events from the runtime"),
        }
        context.clock.sleep(RECONNECT).await;
    }
}

fn tell(context: &Context, uid: &str) {
    if let Some(handle) = context.pods.get(uid) {
        handle.tell(|inbox| inbox.runtime_changed = true);
    }
}

fn tell_all(context: &Context) {
    for handle in context.pods.all() {
        handle.tell(|inbox| inbox.runtime_changed = true);
    }
}

fn owner(context: &Context, id: &str) -> Option<String> {
    let views = context.pods.all().into_iter().map(|h| h.view());
    let mut owners = views
        .filter(|v| v.observed.container(id).is_some() || v.observed.sandboxes.iter().any(|s| s.id == id));
    owners.next().map(|v| v.model.uid.clone())
}

/// Everything the runtime holds: id, owner and state.
type Snapshot = BTreeMap<String, (String, i32)>;

async fn relist(context: Arc<Context>) {
    let mut before = Snapshot::new();
    loop {
        match snapshot(&context).await {
            Ok(now) => {
                for uid in changed(&before, &now) {
                    tell(&context, &uid);
                }
                before = now;
            }
            Err(error) => warn!(error = %reconcile::chain(&error), "runtime not looked at"),
        }
        context.clock.sleep(RELIST).await;
    }
}

async fn snapshot(context: &Context) -> Result<Snapshot, cri::CriError> {
    let (sandboxes, containers) = tokio::try_join!(
        context.runtime.list_sandboxes(BTreeMap::new()),
        context.runtime.list_containers(BTreeMap::new())
    )?;
    let owner = |labels: &std::collections::HashMap<String, String>| {
        labels.get(labels::POD_UID).cloned().unwrap_or_default()
    };
    let sandboxes = sandboxes.into_iter().map(|s| (s.id, (owner(&s.labels), s.state)));
    let containers = containers.into_iter().map(|c| (c.id, (owner(&c.labels), c.state)));
    Ok(sandboxes.chain(containers).collect())
}

fn changed(before: &Snapshot, now: &Snapshot) -> BTreeSet<String> {
    let gone = before.iter().filter(|(id, _)| !now.contains_key(*id));
    let different = now.iter().filter(|(id, state)| before.get(*id) != Some(*state));
    gone.chain(different).map(|(_, (uid, _))| uid.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_that_changed_are_told() {
        let snapshot = |items: &[(&str, &str, i32)]| -> Snapshot {
            items.iter().map(|(id, uid, state)| ((*id).to_owned(), ((*uid).to_owned(), *state))).collect()
        };
        let before = snapshot(&[("a", "p1", 0), ("b", "p2", 0), ("c", "p3", 0)]);
        let now = snapshot(&[("a", "p1", 0), ("b", "p2", 1), ("d", "p4", 0)]);
        let told: Vec<String> = changed(&before, &now).into_iter().collect();
        assert_eq!(told, ["p2", "p3", "p4"]);
    }
}
