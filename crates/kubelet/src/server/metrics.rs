//! The metrics endpoints, in the Prometheus text format.

use std::fmt::Write;

use http::StatusCode;

use super::answer::{Answer, with_type};
use super::stats::Summary;
use crate::context::Context;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Families written one after the other. Writing to a string cannot fail.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.0, "{name}{labels} {value}").ok();
    }

    fn answer(self) -> Answer {
        with_type(StatusCode::OK, TEXT, self.0)
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Nanoseconds of CPU as seconds.
fn cpu_seconds(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

pub(super) fn kubelet(context: &Context) -> Answer {
    let views: Vec<_> = context.pods.all().iter().map(|h| h.view()).collect();
    let alive = views.iter().filter(|v| v.observed.any_alive()).count();
    let containers: usize = views.iter().map(|v| v.observed.alive().count()).sum();
    let mut page = Page::default();
    page.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    page.sample("kubelet_node_name", &[("node", &context.config.node_name)], 1);
    page.family("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    page.sample("kubelet_running_pods", &[], alive);
    page.family("kubelet_running_containers", "gauge", "Number of containers currently running");
    page.sample("kubelet_running_containers", &[("container_state", "running")], containers);
    page.family(
        "kubelet_desired_pods",
        "gauge",
        "The number of pods the kubelet is being instructed to run.",
    );
    page.sample("kubelet_desired_pods", &[], views.len());
    page.answer()
}

pub(super) fn resource(summary: &Summary) -> Answer {
    let mut page = Page::default();
    page.family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    page.sample("node_cpu_usage_seconds_total", &[], cpu_seconds(summary.node.cpu.usage_core_nano_seconds));
    page.family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    page.sample("node_memory_working_set_bytes", &[], summary.node.memory.working_set_bytes);
    let cpu_help = "Cumulative cpu time consumed by the container in core-seconds";
    page.family("container_cpu_usage_seconds_total", "counter", cpu_help);
    each_container(summary, |labels, container| {
        page.sample(
            "container_cpu_usage_seconds_total",
            labels,
            cpu_seconds(container.cpu.usage_core_nano_seconds),
        );
    });
    page.family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
    );
    each_container(summary, |labels, container| {
        page.sample("container_memory_working_set_bytes", labels, container.memory.working_set_bytes);
    });
    page.family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
    );
    for pod in &summary.pods {
        let labels = [("namespace", pod.pod_ref.namespace.as_str()), ("pod", pod.pod_ref.name.as_str())];
        page.sample("pod_cpu_usage_seconds_total", &labels, cpu_seconds(pod.cpu.usage_core_nano_seconds));
    }
    page.family("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes");
    for pod in &summary.pods {
        let labels = [("namespace", pod.pod_ref.namespace.as_str()), ("pod", pod.pod_ref.name.as_str())];
        page.sample("pod_memory_working_set_bytes", &labels, pod.memory.working_set_bytes);
    }
    page.family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    page.sample("resource_scrape_error", &[], 0);
    page.answer()
}

fn each_container(summary: &Summary, mut show: impl FnMut(&[(&str, &str)], &super::stats::ContainerStats)) {
    for pod in &summary.pods {
        for container in &pod.containers {
            let labels = [
                ("container", container.name.as_str()),
                ("namespace", pod.pod_ref.namespace.as_str()),
                ("pod", pod.pod_ref.name.as_str()),
            ];
            show(&labels, container);
        }
    }
}

pub(super) fn cadvisor(summary: &Summary) -> Answer {
    let mut page = Page::default();
    page.family("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.");
    each_container(summary, |labels, container| {
        page.sample(
            "container_cpu_usage_seconds_total",
            labels,
            cpu_seconds(container.cpu.usage_core_nano_seconds),
        );
    });
    page.family("container_memory_working_set_bytes", "gauge", "Current working set in bytes.");
    each_container(summary, |labels, container| {
        page.sample("container_memory_working_set_bytes", labels, container.memory.working_set_bytes);
    });
    for (name, help, received) in [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", true),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", false),
    ] {
        page.family(name, "counter", help);
        for pod in &summary.pods {
            let Some(network) = &pod.network else { continue };
            let labels = [
                ("interface", network.name.as_str()),
                ("namespace", pod.pod_ref.namespace.as_str()),
                ("pod", pod.pod_ref.name.as_str()),
            ];
            page.sample(name, &labels, if received { network.rx_bytes } else { network.tx_bytes });
        }
    }
    page.answer()
}

pub(super) fn probes(context: &Context) -> Answer {
    let mut page = Page::default();
    let help = "Cumulative number of a liveness, readiness or startup probe for a container by result.";
    page.family("prober_probe_total", "counter", help);
    for ((namespace, pod, container, kind, result), count) in context.probe_counts.all() {
        let labels = [
            ("container", container.as_str()),
            ("namespace", namespace.as_str()),
            ("pod", pod.as_str()),
            ("probe_type", kind),
            ("result", result),
        ];
        page.sample("prober_probe_total", &labels, count);
    }
    page.answer()
}
