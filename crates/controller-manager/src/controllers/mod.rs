//! The table of controllers. To add one: a module, a row here, and its role in the bootstrap policy.

mod autoscaler;
mod certificates;
mod clusterrole_aggregation;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod garbagecollector;
mod job;
mod namespace;
mod nodeipam;
mod nodelifecycle;
mod podgc;
mod replicaset;
mod resourcequota;
mod root_ca_publisher;
mod serviceaccount;
mod servicelb;
mod statefulset;
mod tainteviction;
mod tokencleaner;
mod ttl_after_finished;
mod volumes;

use std::fmt;
use std::future::Future;

use futures::future::BoxFuture;

use crate::context::Context;

/// A controller by upstream's names.
pub struct ControllerSpec {
    pub name: &'static str,
    /// Older names that `--controllers` still takes.
    pub aliases: &'static [&'static str],
    /// Whose rights it uses, in `kube-system`.
    pub service_account: &'static str,
    pub on_by_default: bool,
    pub(crate) run: Run,
}

type Run = fn(Context) -> BoxFuture<'static, ()>;

/// Every controller there is.
pub static CONTROLLERS: &[ControllerSpec] = &[
    row("deployment-controller", &["deployment"], "deployment-controller", |c| boxed(deployment::run(c))),
    row("replicaset-controller", &["replicaset"], "replicaset-controller", |c| {
        boxed(replicaset::run_replica_sets(c))
    }),
    row("replicationcontroller-controller", &["replicationcontroller"], "replication-controller", |c| {
        boxed(replicaset::run_replication_controllers(c))
    }),
    row("endpointslice-controller", &["endpointslice"], "endpointslice-controller", |c| {
        boxed(endpointslice::run(c))
    }),
    row("endpoints-controller", &["endpoint"], "endpoint-controller", |c| boxed(endpoints::run(c))),
    row("serviceaccount-controller", &["serviceaccount"], "service-account-controller", |c| {
        boxed(serviceaccount::run(c))
    }),
    row(
        "root-ca-certificate-publisher-controller",
        &["root-ca-cert-publisher"],
        "root-ca-cert-publisher",
        |c| boxed(root_ca_publisher::run(c)),
    ),
    row("namespace-controller", &["namespace"], "namespace-controller", |c| boxed(namespace::run(c))),
    row("garbage-collector-controller", &["garbagecollector"], "generic-garbage-collector", |c| {
        boxed(garbagecollector::run(c))
    }),
    row("statefulset-controller", &["statefulset"], "statefulset-controller", |c| boxed(statefulset::run(c))),
    row("daemonset-controller", &["daemonset"], "daemon-set-controller", |c| boxed(daemonset::run(c))),
    row("cronjob-controller", &["cronjob"], "cronjob-controller", |c| boxed(cronjob::run(c))),
    row("job-controller", &["job"], "job-controller", |c| boxed(job::run(c))),
    row("node-lifecycle-controller", &["nodelifecycle"], "node-controller", |c| boxed(nodelifecycle::run(c))),
    row("taint-eviction-controller", &[], "node-controller", |c| boxed(tainteviction::run(c))),
    row("pod-garbage-collector-controller", &["podgc"], "pod-garbage-collector", |c| boxed(podgc::run(c))),
    row("ttl-after-finished-controller", &["ttl-after-finished"], "ttl-after-finished-controller", |c| {
        boxed(ttl_after_finished::run(c))
    }),
    row(
        "clusterrole-aggregation-controller",
        &["clusterrole-aggregation"],
        "clusterrole-aggregation-controller",
        |c| boxed(clusterrole_aggregation::run(c)),
    ),
    row("disruption-controller", &["disruption"], "disruption-controller", |c| boxed(disruption::run(c))),
    row("resourcequota-controller", &["resourcequota"], "resourcequota-controller", |c| {
        boxed(resourcequota::run(c))
    }),
    row(
        "persistentvolume-binder-controller",
        &["persistentvolume-binder"],
        "persistent-volume-binder",
        |c| boxed(volumes::binder::run(c)),
    ),
    row(
        "persistentvolumeclaim-protection-controller",
        &["pvc-protection"],
        "pvc-protection-controller",
        |c| boxed(volumes::protection::run_for_claims(c)),
    ),
    row("persistentvolume-protection-controller", &["pv-protection"], "pv-protection-controller", |c| {
        boxed(volumes::protection::run_for_volumes(c))
    }),
    row("ephemeral-volume-controller", &["ephemeral-volume"], "ephemeral-volume-controller", |c| {
        boxed(volumes::ephemeral::run(c))
    }),
    row(
        "endpointslice-mirroring-controller",
        &["endpointslicemirroring"],
        "endpointslicemirroring-controller",
        |c| boxed(endpointslice_mirroring::run(c)),
    ),
    row("certificatesigningrequest-approving-controller", &["csrapproving"], "certificate-controller", |c| {
        boxed(certificates::run_approver(c))
    }),
    row("certificatesigningrequest-signing-controller", &["csrsigning"], "certificate-controller", |c| {
        boxed(certificates::run_signer(c))
    }),
    row("certificatesigningrequest-cleaner-controller", &["csrcleaner"], "certificate-controller", |c| {
        boxed(certificates::run_cleaner(c))
    }),
    row("node-ipam-controller", &["nodeipam"], "node-controller", |c| boxed(nodeipam::run(c))),
    row("service-lb-controller", &["service"], "service-controller", |c| boxed(servicelb::run(c))),
    ControllerSpec {
        on_by_default: false,
        ..row("token-cleaner-controller", &["tokencleaner"], "token-cleaner", |c| boxed(tokencleaner::run(c)))
    },
    row(
        "horizontal-pod-autoscaler-controller",
        &["horizontalpodautoscaling"],
        "horizontal-pod-autoscaler",
        |c| boxed(autoscaler::run(c)),
    ),
];

impl fmt::Debug for ControllerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerSpec").field("name", &self.name).finish_non_exhaustive()
    }
}

const fn row(
    name: &'static str,
    aliases: &'static [&'static str],
    service_account: &'static str,
    run: Run,
) -> ControllerSpec {
    ControllerSpec { name, aliases, service_account, on_by_default: true, run }
}

fn boxed(run: impl Future<Output = ()> + Send + 'static) -> BoxFuture<'static, ()> {
    Box::pin(run)
}
