//! What every pod worker shares.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reconcile::SharedClock;

use crate::api::Api;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::container::dns::ClusterDns;
use crate::container::field_ref::PodFacts;
use crate::container::security::SeccompRules;
use crate::images::Images;
use crate::node::facts::NodeState;
use crate::objects::{Notify, ObjectWatches};
use crate::pod::backoff::MAXIMUM;
use crate::pod::handle::PodTable;
use crate::pod::observed::Observed;
use crate::pod::status::NodeFacts;
use crate::probes::ProbeCounts;
use crate::recorder::Recorder;
use crate::runtime::Runtime;
use crate::server::Rates;
use crate::volumes::{ObjectReference, Volumes};

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) runtime: Runtime,
    pub(crate) api: Api,
    pub(crate) clock: SharedClock,
    pub(crate) volumes: Volumes,
    pub(crate) images: Images,
    pub(crate) cgroups: Option<Cgroups>,
    pub(crate) recorder: Recorder,
    pub(crate) seccomp: SeccompRules,
    pub(crate) cluster_dns: ClusterDns,
    pub(crate) lowest_oom_score: i64,
    pub(crate) node: RwLock<Arc<NodeState>>,
    pub(crate) objects: ObjectWatches,
    pub(crate) pods: PodTable,
    pub(crate) rates: Rates,
    pub(crate) probe_counts: ProbeCounts,
}

impl Context {
    /// Follows the objects a pod has mounted, as long as it lives.
    pub(crate) fn watch_objects(self: &Arc<Self>, uid: &str, wanted: &BTreeSet<ObjectReference>) {
        let Some(client) = self.api.client() else { return };
        let pods = self.pods.clone();
        let notify: Notify = Arc::new(move |uids| {
            for handle in uids.iter().filter_map(|uid| pods.get(uid)) {
                handle.tell(|inbox| inbox.objects_changed = true);
            }
        });
        self.objects.set(client, uid, wanted, &notify);
    }

    pub(crate) fn longest_restart_delay(&self) -> Duration {
        let configured = self.config.kubelet.max_container_restart_period_seconds;
        configured.map_or(MAXIMUM, Duration::from_secs)
    }

    pub(crate) fn node(&self) -> Arc<NodeState> {
        self.node.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_node(&self, node: NodeState) {
        *self.node.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(node);
    }

    pub(crate) fn status_facts(&self) -> NodeFacts {
        NodeFacts { ips: self.node().ips.clone(), runtime: self.runtime.name.clone() }
    }

    pub(crate) fn pod_facts(&self, host_network: bool, observed: &Observed) -> PodFacts {
        let node = self.node();
        let pod_ips = if host_network {
            node.ips.clone()
        } else {
            observed.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default()
        };
        PodFacts {
            node_name: self.config.node_name.clone(),
            host_ips: node.ips.clone(),
            pod_ips,
            allocatable: node.allocatable.clone(),
        }
    }

    /// Where the names of containers lead to their logs, for collectors that look there.
    pub(crate) fn container_logs(&self) -> PathBuf {
        let pods = &self.config.kubelet.pod_logs_dir;
        pods.parent().unwrap_or(pods).join("containers")
    }
}
