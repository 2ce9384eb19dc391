//! The table of controllers. To add one: a module, a row here, and its role in the bootstrap policy.

mod cronjob;
mod daemonset;
mod deployment;
mod endpoints;
mod endpointslice;
mod garbagecollector;
mod namespace;
mod replicaset;
mod root_ca_publisher;
mod serviceaccount;
mod statefulset;

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
