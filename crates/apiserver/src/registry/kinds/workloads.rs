//! Kinds that make pods from a template.

use serde_json::{Value, json};

use super::pod_template::default_spec;
use super::{default_field, default_text};
use crate::objects::ObjectExt;
use crate::registry::strategy::{Generation, Propagation, Strategy, WriteContext};

#[derive(Debug)]
pub(super) struct DeploymentStrategy;
#[derive(Debug)]
pub(super) struct ReplicaSetStrategy;
#[derive(Debug)]
pub(super) struct StatefulSetStrategy;
#[derive(Debug)]
pub(super) struct DaemonSetStrategy;
#[derive(Debug)]
pub(super) struct ReplicationControllerStrategy;
#[derive(Debug)]
pub(super) struct JobStrategy;
#[derive(Debug)]
pub(super) struct CronJobStrategy;

impl Strategy for DeploymentStrategy {
    fn default(&self, deployment: &mut Value) {
        let spec = &mut deployment["spec"];
        default_field(spec, "replicas", 1);
        default_field(spec, "revisionHistoryLimit", 10);
        default_field(spec, "progressDeadlineSeconds", 600);
        let strategy = &mut spec["strategy"];
        default_text(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            default_field(&mut strategy["rollingUpdate"], "maxUnavailable", "25%");
            default_field(&mut strategy["rollingUpdate"], "maxSurge", "25%");
        }
        default_spec(&mut spec["template"]["spec"]);
    }

    fn generation(&self) -> Generation {
        Generation::Spec
    }
}

impl Strategy for ReplicaSetStrategy {
    fn default(&self, set: &mut Value) {
        let spec = &mut set["spec"];
        default_field(spec, "replicas", 1);
        default_spec(&mut spec["template"]["spec"]);
    }

    fn prepare_for_create(&self, _cx: &WriteContext<'_>, set: &mut Value) {
        set["status"] = json!({ "replicas": 0 });
    }

    fn generation(&self) -> Generation {
        Generation::Spec
    }
}

impl Strategy for ReplicationControllerStrategy {
    fn default(&self, controller: &mut Value) {
        let labels = controller.at(&["spec", "template", "metadata", "labels"]).cloned();
        if let Some(labels) = labels {
            default_field(&mut controller["spec"], "selector", labels.clone());
            default_field(&mut controller["metadata"], "labels", labels);
        }
        let spec = &mut controller["spec"];
        default_field(spec, "replicas", 1);
        if spec.get("template").is_some() {
            default_spec(&mut spec["template"]["spec"]);
        }
    }

    fn prepare_for_create(&self, _cx: &WriteContext<'_>, controller: &mut Value) {
        controller["status"] = json!({ "replicas": 0 });
    }

    fn generation(&self) -> Generation {
        Generation::Spec
    }

    fn default_propagation(&self) -> Propagation {
        Propagation::Orphan
    }
}

impl Strategy for StatefulSetStrategy {
    fn default(&self, set: &mut Value) {
        let spec = &mut set["spec"];
        default_field(spec, "replicas", 1);
        default_field(spec, "revisionHistoryLimit", 10);
        default_text(spec, "podManagementPolicy", "OrderedReady");
        let strategy = &mut spec["updateStrategy"];
        default_text(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            default_field(&mut strategy["rollingUpdate"], "partition", 0);
        }
        let retention = &mut spec["persistentVolumeClaimRetentionPolicy"];
        default_text(retention, "whenDeleted", "Retain");
        default_text(retention, "whenScaled", "Retain");
        for claim in super::items(spec, "volumeClaimTemplates") {
            default_text(&mut claim["spec"], "volumeMode", "Filesystem");
            default_field(claim, "status", json!({ "phase": "Pending" }));
        }
        default_spec(&mut spec["template"]["spec"]);
    }

    fn prepare_for_create(&self, _cx: &WriteContext<'_>, set: &mut Value) {
        set["status"] = json!({ "replicas": 0 });
    }

    fn generation(&self) -> Generation {
        Generation::Spec
    }
}

impl Strategy for DaemonSetStrategy {
    fn default(&self, set: &mut Value) {
        let spec = &mut set["spec"];
        default_field(spec, "revisionHistoryLimit", 10);
        let strategy = &mut spec["updateStrategy"];
        default_text(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            default_field(&mut strategy["rollingUpdate"], "maxUnavailable", 1);
            default_field(&mut strategy["rollingUpdate"], "maxSurge", 0);
        }
        default_spec(&mut spec["template"]["spec"]);
    }

    fn generation(&self) -> Generation {
        Generation::Spec
    }
}

impl Strategy for JobStrategy {
    fn default(&self, job: &mut Value) {
        default_job_spec(&mut job["spec"]);
    }

    /// Unless the client brings its own selector, the job selects its pods by its uid.
    fn prepare_for_create(&self, _cx: &WriteContext<'_>, job: &mut Value) {
        if job.at(&["spec", "manualSelector"]) == Some(&Value::Bool(true)) {
            return;
        }
        let (uid, name) = (job.uid().to_owned(), job.name().to_owned());
        let labels = &mut job["spec"]["template"]["metadata"]["labels"];
        for (key, value) in [
            ("controller-uid", &uid),
            ("job-name", &name),
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
        ] {
            default_field(labels, key, value.as_str());
        }
        job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] = uid.into();
    }

    fn generation(&self) -> Generation {
        Generation::Spec
    }

    fn default_propagation(&self) -> Propagation {
        Propagation::Orphan
    }
}

fn default_job_spec(spec: &mut Value) {
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        default_field(spec, "completions", 1);
    }
    default_field(spec, "parallelism", 1);
    if spec.get("backoffLimitPerIndex").is_some() {
        default_field(spec, "backoffLimit", i32::MAX);
    }
    default_field(spec, "backoffLimit", 6);
    default_text(spec, "completionMode", "NonIndexed");
    default_field(spec, "suspend", false);
    let replacement = if spec.get("podFailurePolicy").is_some() { "Failed" } else { "TerminatingOrFailed" };
    default_text(spec, "podReplacementPolicy", replacement);
    default_spec(&mut spec["template"]["spec"]);
}

impl Strategy for CronJobStrategy {
    fn default(&self, job: &mut Value) {
        let spec = &mut job["spec"];
        default_text(spec, "concurrencyPolicy", "Allow");
        default_field(spec, "suspend", false);
        default_field(spec, "successfulJobsHistoryLimit", 3);
        default_field(spec, "failedJobsHistoryLimit", 1);
        default_spec(&mut spec["jobTemplate"]["spec"]["template"]["spec"]);
    }

    fn generation(&self) -> Generation {
        Generation::Spec
    }
}
