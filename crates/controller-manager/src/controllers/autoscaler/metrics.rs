//! Reads a metric over the pods of a target, from `metrics.k8s.io`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use kube::Client;
use meta::quantity::{Format, Quantity};
use meta::selector::LabelSelector;
use reconcile::{Informer, chain};
use serde::Deserialize;

use super::plan::{Sample, Target, replicas_for};
use crate::config::AutoscalerConfig;
use crate::pods::{self, name};

pub(super) struct Reader<'a> {
    pub(super) client: &'a Client,
    pub(super) config: &'a AutoscalerConfig,
    pub(super) pods: &'a Informer<Pod>,
    pub(super) namespace: &'a str,
    pub(super) selector: &'a str,
    pub(super) now: Timestamp,
}

pub(super) struct Reading {
    pub(super) replicas: i32,
    pub(super) reason: String,
    pub(super) status: MetricStatus,
}

/// The reason of the condition, and the message.
type Failure = (&'static str, String);

#[derive(Deserialize)]
struct PodMetricsList {
    #[serde(default)]
    items: Vec<PodMetrics>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Named,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: BTreeMap<String, String>,
}

impl Reader<'_> {
    pub(super) async fn read(&self, spec: &MetricSpec, current: i32) -> Result<Reading, Failure> {
        if let Some(source) = &spec.resource {
            let reading = self.resource(&source.name, None, &source.target, current).await;
            return reading.map_err(|message| ("FailedGetResourceMetric", message));
        }
        if let Some(source) = &spec.container_resource {
            let reading = self.resource(&source.name, Some(&source.container), &source.target, current).await;
            return reading.map_err(|message| ("FailedGetContainerResourceMetric", message));
        }
        let reason = match spec.type_.as_str() {
            "Pods" => "FailedGetPodsMetric",
            "Object" => "FailedGetObjectMetric",
            "External" => "FailedGetExternalMetric",
            _ => {
                return Err((
                    "InvalidMetricSourceType",
                    format!("unknown metric source type {:?}", spec.type_),
                ));
            }
        };
        Err((reason, "no custom or external metrics API is served".to_owned()))
    }

    async fn resource(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
        current: i32,
    ) -> Result<Reading, String> {
        let wanted = match (target.average_utilization, &target.average_value) {
            (Some(percent), _) => Target::Utilization(percent),
            (None, Some(average)) => Target::Average(milli(average).unwrap_or(0)),
            (None, None) => {
                return Err(
                    "invalid resource metric source: neither a utilization target nor a value".to_owned()
                );
            }
        };
        let used = self.usage(resource, container).await?;
        let sample = self.sample(resource, container, &used, matches!(wanted, Target::Utilization(_)))?;
        let (replicas, value) = replicas_for(current, &sample, wanted, self.config.tolerance)
            .ok_or_else(|| "did not receive metrics for targeted pods (pods might be unready)".to_owned())?;
        let total: i64 = sample.ready.values().map(|(used, _)| used).sum();
        let average = total.checked_div(i64::try_from(sample.ready.len()).unwrap_or(1)).unwrap_or(0);
        let current = MetricValueStatus {
            average_utilization: matches!(wanted, Target::Utilization(_))
                .then(|| i32::try_from(value).unwrap_or(i32::MAX)),
            average_value: Some(WireQuantity(Quantity::from_milli(average, Format::DecimalSi).to_string())),
            value: None,
        };
        let what = if matches!(wanted, Target::Utilization(_)) {
            format!("{resource} resource utilization (percentage of request)")
        } else {
            format!("{resource} resource")
        };
        let status = match container {
            None => MetricStatus {
                type_: "Resource".to_owned(),
                resource: Some(ResourceMetricStatus { name: resource.to_owned(), current }),
                ..MetricStatus::default()
            },
            Some(container) => MetricStatus {
                type_: "ContainerResource".to_owned(),
                container_resource: Some(ContainerResourceMetricStatus {
                    name: resource.to_owned(),
                    container: container.to_owned(),
                    current,
                }),
                ..MetricStatus::default()
            },
        };
        Ok(Reading { replicas, reason: what, status })
    }

    /// What each pod uses, in thousandths.
    async fn usage(&self, resource: &str, container: Option<&str>) -> Result<BTreeMap<String, i64>, String> {
        let encoded = self
            .selector
            .replace('%', "%25")
            .replace('=', "%3D")
            .replace(',', "%2C")
            .replace(' ', "%20")
            .replace('!', "%21");
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods?labelSelector={encoded}",
            self.namespace
        );
        let failed = |error: &dyn std::error::Error| {
            format!(
                "unable to get metrics for resource {resource}: unable to fetch metrics from resource metrics API: {error}"
            )
        };
        let request = http::Request::get(path).body(Vec::new()).map_err(|error| failed(&error))?;
        let list: PodMetricsList = self.client.request(request).await.map_err(|error| {
            format!("unable to get metrics for resource {resource}: unable to fetch metrics from resource metrics API: {}", chain(&error))
        })?;
        if list.items.is_empty() {
            return Err(format!(
                "unable to get metrics for resource {resource}: no metrics returned from resource metrics API"
            ));
        }
        let of_pod = |pod: PodMetrics| {
            let containers =
                pod.containers.iter().filter(|each| container.is_none_or(|name| name == each.name));
            let used: Option<i64> = containers
                .map(|each| each.usage.get(resource)?.parse().ok().map(|q: Quantity| q.milli_value()))
                .sum();
            Some((pod.metadata.name, used?))
        };
        Ok(list.items.into_iter().filter_map(of_pod).collect())
    }

    fn sample(
        &self,
        resource: &str,
        container: Option<&str>,
        used: &BTreeMap<String, i64>,
        needs_requests: bool,
    ) -> Result<Sample, String> {
        let selected = self.selected()?;
        let mut sample = Sample::default();
        for pod in selected {
            if pods::is_terminating(&pod) || pods::phase(&pod) == "Failed" {
                continue;
            }
            let request = match request_of(&pod, resource, container) {
                Ok(request) => request,
                Err(message) if needs_requests => return Err(message),
                Err(_) => 0,
            };
            let pod_name = name(&pod.metadata).to_owned();
            let starting = pods::phase(&pod) == "Pending" || (resource == "cpu" && self.is_starting(&pod));
            if let Some(used) = used.get(&pod_name).filter(|_| !starting) {
                sample.ready.insert(pod_name, (*used, request));
            } else if starting && (pods::phase(&pod) == "Pending" || used.contains_key(&pod_name)) {
                sample.unready.insert(pod_name, request);
            } else {
                sample.missing.insert(pod_name, request);
            }
        }
        Ok(sample)
    }

    fn selected(&self) -> Result<Vec<Arc<Pod>>, String> {
        let parsed = LabelSelector::parse(self.selector)
            .map_err(|error| format!("invalid selector {:?}: {error}", self.selector))?;
        let pods = self.pods.in_namespace(self.namespace).into_iter();
        Ok(pods.filter(|pod| parsed.matches(|key| pods::label(&pod.metadata, key))).collect())
    }

    /// The first seconds of a pod say little about what it will use.
    fn is_starting(&self, pod: &Pod) -> bool {
        let Some(start) = pod.status.as_ref().and_then(|status| status.start_time.as_ref()) else {
            return true;
        };
        let Some(ready) = pods::condition(pod, "Ready") else { return true };
        let age = self.now.duration_since(start.0);
        let seconds =
            |duration: std::time::Duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        if age < seconds(self.config.cpu_initialization_period) {
            return ready.status != "True";
        }
        let changed = ready.last_transition_time.as_ref().map_or(start.0, |time| time.0);
        ready.status == "False"
            && changed.duration_since(start.0) < seconds(self.config.initial_readiness_delay)
    }
}

fn milli(quantity: &WireQuantity) -> Option<i64> {
    quantity.0.parse().ok().map(|quantity: Quantity| quantity.milli_value())
}

fn request_of(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i64, String> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut sum = 0;
    for each in containers.filter(|each| container.is_none_or(|name| name == each.name)) {
        let request =
            each.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
        sum += request.and_then(milli).ok_or_else(|| {
            format!(
                "missing request for {resource} in container {} of Pod {}",
                each.name,
                name(&pod.metadata)
            )
        })?;
    }
    Ok(sum)
}
