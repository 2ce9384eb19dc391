//! Upstream's kubelet flags. Deprecated ones set the same fields as the configuration file, and win over it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Taint;

use super::duration::parse_duration;
use super::{Config, ConfigError, KubeletConfiguration};

type Setter = fn(&mut Config, &str) -> Result<(), String>;

enum Kind {
    Text,
    Bool,
}

struct Flag {
    name: &'static str,
    kind: Kind,
    set: Setter,
}

const fn text(name: &'static str, set: Setter) -> Flag {
    Flag { name, kind: Kind::Text, set }
}

const fn switch(name: &'static str, set: Setter) -> Flag {
    Flag { name, kind: Kind::Bool, set }
}

const FLAGS: &[Flag] = &[
    text("hostname-override", |c, v| {
        c.node_name = v.trim().to_lowercase();
        Ok(())
    }),
    text("root-dir", |c, v| {
        c.root_dir = v.into();
        Ok(())
    }),
    text("cert-dir", |c, v| {
        c.cert_dir = v.into();
        Ok(())
    }),
    text("kubeconfig", |c, v| {
        c.kubeconfig = path(v);
        Ok(())
    }),
    text("bootstrap-kubeconfig", |c, v| {
        c.bootstrap_kubeconfig = path(v);
        Ok(())
    }),
    text("provider-id", |c, v| {
        c.provider_id = v.into();
        Ok(())
    }),
    text("node-ip", |c, v| parse_list(v).map(|ips| c.node_ips = ips)),
    text("node-labels", |c, v| map(v).map(|labels| c.node_labels = labels)),
    text("register-with-taints", |c, v| taints(v).map(|t| c.kubelet.register_with_taints = t)),
    switch("register-node", |c, v| boolean(v).map(|b| c.kubelet.register_node = b)),
    text("container-runtime-endpoint", |c, v| {
        c.kubelet.container_runtime_endpoint = v.into();
        Ok(())
    }),
    text("image-service-endpoint", |c, v| {
        c.kubelet.image_service_endpoint = v.into();
        Ok(())
    }),
    text("pod-manifest-path", |c, v| {
        c.kubelet.static_pod_path = path(v);
        Ok(())
    }),
    text("manifest-url", |c, v| {
        c.kubelet.static_pod_url = Some(v.to_owned()).filter(|v| !v.is_empty());
        Ok(())
    }),
    text("file-check-frequency", |c, v| time(v).map(|d| c.kubelet.file_check_frequency = d)),
    text("http-check-frequency", |c, v| time(v).map(|d| c.kubelet.http_check_frequency = d)),
    text("address", |c, v| {
        c.kubelet.address = v.into();
        Ok(())
    }),
    text("port", |c, v| number(v).map(|n| c.kubelet.port = n)),
    text("read-only-port", |c, v| number(v).map(|n| c.kubelet.read_only_port = n)),
    text("tls-cert-file", |c, v| {
        c.kubelet.tls_cert_file = path(v);
        Ok(())
    }),
    text("tls-private-key-file", |c, v| {
        c.kubelet.tls_private_key_file = path(v);
        Ok(())
    }),
    text("client-ca-file", |c, v| {
        c.kubelet.authentication.x509.client_ca_file = path(v);
        Ok(())
    }),
    switch("anonymous-auth", |c, v| boolean(v).map(|b| c.kubelet.authentication.anonymous.enabled = b)),
    switch("authentication-token-webhook", |c, v| {
        boolean(v).map(|b| c.kubelet.authentication.webhook.enabled = b)
    }),
    text("authorization-mode", |c, v| {
        c.kubelet.authorization.mode = v.into();
        Ok(())
    }),
    text("cluster-dns", |c, v| {
        c.kubelet.cluster_dns = list(v);
        Ok(())
    }),
    text("cluster-domain", |c, v| {
        c.kubelet.cluster_domain = v.into();
        Ok(())
    }),
    text("resolv-conf", |c, v| {
        c.kubelet.resolv_conf = v.into();
        Ok(())
    }),
    text("cgroup-root", |c, v| {
        c.kubelet.cgroup_root = v.into();
        Ok(())
    }),
    text("cgroup-driver", |c, v| {
        c.kubelet.cgroup_driver = v.into();
        Ok(())
    }),
    switch("cgroups-per-qos", |c, v| boolean(v).map(|b| c.kubelet.cgroups_per_qos = b)),
    text("enforce-node-allocatable", |c, v| {
        c.kubelet.enforce_node_allocatable = list(v);
        Ok(())
    }),
    text("max-pods", |c, v| number(v).map(|n| c.kubelet.max_pods = n)),
    text("pod-cidr", |c, v| {
        c.kubelet.pod_cidr = v.into();
        Ok(())
    }),
    text("pod-max-pids", |c, v| number(v).map(|n| c.kubelet.pod_pids_limit = n)),
    switch("cpu-cfs-quota", |c, v| boolean(v).map(|b| c.kubelet.cpu_cfs_quota = b)),
    switch("serialize-image-pulls", |c, v| boolean(v).map(|b| c.kubelet.serialize_image_pulls = Some(b))),
    text("image-gc-high-threshold", |c, v| number(v).map(|n| c.kubelet.image_gc_high_threshold_percent = n)),
    text("image-gc-low-threshold", |c, v| number(v).map(|n| c.kubelet.image_gc_low_threshold_percent = n)),
    text("eviction-hard", |c, v| signals(v).map(|s| c.kubelet.eviction_hard = s)),
    text("eviction-soft", |c, v| signals(v).map(|s| c.kubelet.eviction_soft = s)),
    text("eviction-soft-grace-period", |c, v| map(v).map(|s| c.kubelet.eviction_soft_grace_period = s)),
    text("eviction-pressure-transition-period", |c, v| {
        time(v).map(|d| c.kubelet.eviction_pressure_transition_period = d)
    }),
    text("eviction-max-pod-grace-period", |c, v| {
        number(v).map(|n| c.kubelet.eviction_max_pod_grace_period = n)
    }),
    text("allowed-unsafe-sysctls", |c, v| {
        c.kubelet.allowed_unsafe_sysctls = list(v);
        Ok(())
    }),
    text("system-reserved", |c, v| map(v).map(|m| c.kubelet.system_reserved = m)),
    text("kube-reserved", |c, v| map(v).map(|m| c.kubelet.kube_reserved = m)),
    switch("fail-swap-on", |c, v| boolean(v).map(|b| c.kubelet.fail_swap_on = b)),
    text("container-log-max-size", |c, v| {
        c.kubelet.container_log_max_size = v.into();
        Ok(())
    }),
    text("container-log-max-files", |c, v| number(v).map(|n| c.kubelet.container_log_max_files = n)),
    switch("seccomp-default", |c, v| boolean(v).map(|b| c.kubelet.seccomp_default = b)),
    switch("rotate-certificates", |c, v| boolean(v).map(|b| c.kubelet.rotate_certificates = b)),
    switch("rotate-server-certificates", |c, v| boolean(v).map(|b| c.kubelet.server_tls_bootstrap = b)),
    switch("enable-server", |c, v| boolean(v).map(|b| c.kubelet.enable_server = b)),
    switch("enable-debugging-handlers", |c, v| boolean(v).map(|b| c.kubelet.enable_debugging_handlers = b)),
    text("node-status-update-frequency", |_, v| time(v).map(|_| ())),
    text("streaming-connection-idle-timeout", |c, v| {
        time(v).map(|d| c.kubelet.streaming_connection_idle_timeout = d)
    }),
    text("feature-gates", |c, v| gates(v).map(|g| c.kubelet.feature_gates.extend(g))),
];

/// Known to upstream, without effect here: client limits, systemd and cAdvisor details, experiments.
const IGNORED: &[&str] = &[
    "cloud-config",
    "cloud-provider",
    "contention-profiling",
    "cpu-cfs-quota-period",
    "cpu-manager-policy",
    "cpu-manager-reconcile-period",
    "enable-controller-attach-detach",
    "event-burst",
    "event-qps",
    "exit-on-lock-contention",
    "experimental-mounter-path",
    "hairpin-mode",
    "healthz-bind-address",
    "healthz-port",
    "image-credential-provider-bin-dir",
    "image-credential-provider-config",
    "kernel-memcg-notification",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "kube-reserved-cgroup",
    "kubelet-cgroups",
    "local-storage-capacity-isolation",
    "lock-file",
    "log-flush-frequency",
    "logging-format",
    "make-iptables-util-chains",
    "manifest-url-header",
    "max-open-files",
    "memory-manager-policy",
    "minimum-container-ttl-duration",
    "minimum-image-ttl-duration",
    "node-status-max-images",
    "oom-score-adj",
    "pod-infra-container-image",
    "pods-per-core",
    "protect-kernel-defaults",
    "registry-burst",
    "registry-qps",
    "runonce",
    "runtime-cgroups",
    "runtime-request-timeout",
    "sync-frequency",
    "system-cgroups",
    "system-reserved-cgroup",
    "tls-cipher-suites",
    "tls-min-version",
    "topology-manager-policy",
    "v",
    "vmodule",
    "volume-plugin-dir",
    "volume-stats-agg-period",
];

pub(super) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Config, ConfigError> {
    let pairs = pairs(arguments)?;
    let last = |name: &str| pairs.iter().rev().find(|(n, _)| n == name).map(|(_, v)| PathBuf::from(v));
    let mut config = Config::new(hostname()?, "/var/lib/kubelet");
    config.kubelet = KubeletConfiguration::load(last("config").as_deref(), last("config-dir").as_deref())?;
    for (name, value) in pairs {
        if let Some(flag) = FLAGS.iter().find(|f| f.name == name) {
            (flag.set)(&mut config, &value).map_err(|reason| ConfigError::InvalidValue {
                name,
                value,
                reason,
            })?;
        } else if name != "config" && name != "config-dir" {
            config.ignored_flags.push(name);
        }
    }
    Ok(config)
}

/// Splits `--a=b`, `--a b` and `--switch` into names and values.
fn pairs(arguments: impl IntoIterator<Item = String>) -> Result<Vec<(String, String)>, ConfigError> {
    let mut arguments = arguments.into_iter().peekable();
    let mut pairs = Vec::new();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            return Err(ConfigError::UnexpectedArgument { argument });
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (flag.to_owned(), None),
        };
        let known = FLAGS.iter().find(|f| f.name == name);
        if known.is_none()
            && !IGNORED.contains(&name.as_str())
            && !matches!(name.as_str(), "config" | "config-dir")
        {
            return Err(ConfigError::UnknownFlag { name });
        }
        let value = match (value, known.map(|f| &f.kind)) {
            (Some(value), _) => value,
            (None, Some(Kind::Bool)) => "true".to_owned(),
            (None, None) if IGNORED.contains(&name.as_str()) => {
                arguments.next_if(|next| !next.starts_with('-')).unwrap_or_default()
            }
            (None, _) => arguments.next().ok_or_else(|| ConfigError::MissingValue { name: name.clone() })?,
        };
        pairs.push((name, value));
    }
    Ok(pairs)
}

fn hostname() -> Result<String, ConfigError> {
    let name = nix::unistd::gethostname().map_err(|e| ConfigError::Hostname { source: e.into() })?;
    Ok(name.to_string_lossy().trim().to_lowercase())
}

fn path(value: &str) -> Option<PathBuf> {
    Some(PathBuf::from(value)).filter(|p| !p.as_os_str().is_empty())
}

fn boolean(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "want true or false".to_owned())
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| "want a number".to_owned())
}

fn time(value: &str) -> Result<std::time::Duration, String> {
    parse_duration(value).ok_or_else(|| "want a duration such as 10s".to_owned())
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|v| !v.is_empty()).map(str::to_owned).collect()
}

fn parse_list<T: std::str::FromStr>(value: &str) -> Result<Vec<T>, String> {
    list(value).iter().map(|v| v.parse().map_err(|_| format!("cannot parse {v:?}"))).collect()
}

fn map(value: &str) -> Result<BTreeMap<String, String>, String> {
    let pair = |item: String| {
        let (key, value) = item.split_once('=').ok_or_else(|| format!("{item:?} is not key=value"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    list(value).into_iter().map(pair).collect()
}

fn signals(value: &str) -> Result<BTreeMap<String, String>, String> {
    let pair = |item: String| {
        let (key, value) = item.split_once('<').ok_or_else(|| format!("{item:?} is not signal<value"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    list(value).into_iter().map(pair).collect()
}

fn gates(value: &str) -> Result<BTreeMap<String, bool>, String> {
    map(value)?.into_iter().map(|(key, value)| Ok((key, boolean(&value)?))).collect()
}

/// `key=value:effect,...`; the value may be missing.
fn taints(value: &str) -> Result<Vec<Taint>, String> {
    let parse = |item: String| {
        let (head, effect) = item.rsplit_once(':').ok_or_else(|| format!("{item:?} has no effect"))?;
        let (key, value) = head.split_once('=').unwrap_or((head, ""));
        Ok(Taint {
            key: key.to_owned(),
            value: Some(value.to_owned()).filter(|v| !v.is_empty()),
            effect: effect.to_owned(),
            time_added: None,
        })
    };
    list(value).into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_win_over_the_file_and_drop_ins_come_between() {
        let dir = std::env::temp_dir().join(format!("cot-kubelet-flags-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("conf.d")).unwrap();
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        std::fs::write(dir.join("kubelet.yaml"), format!("{head}maxPods: 10\nport: 1\nclusterDomain: a\n"))
            .unwrap();
        std::fs::write(dir.join("conf.d/10.conf"), format!("{head}maxPods: 20\nport: 2\n")).unwrap();
        let line = format!(
            "--config {0}/kubelet.yaml --config-dir={0}/conf.d --max-pods=30 --register-node=false --v 4 \
             --node-ip=10.0.0.1,::1 --register-with-taints=a=b:NoSchedule,c:NoExecute --hostname-override NODE",
            dir.display()
        );
        let config = Config::parse(arguments(&line));
        std::fs::remove_dir_all(&dir).unwrap();
        let config = config.unwrap();
        let file = &config.kubelet;
        assert_eq!((file.max_pods, file.port, file.cluster_domain.as_str()), (30, 2, "a"));
        assert_eq!(
            (config.node_name.as_str(), file.register_node, config.node_ips.len()),
            ("node", false, 2)
        );
        assert_eq!(file.register_with_taints[1].effect, "NoExecute");
        assert_eq!(config.ignored_flags, ["v"]);
    }

    #[test]
    fn bad_flags_are_refused_by_name() {
        for (line, message) in [
            ("--nonsense=1", "unknown flag: --nonsense"),
            ("--max-pods", "flag needs an argument: --max-pods"),
            ("--max-pods=x", "invalid argument \"x\" for --max-pods: want a number"),
            ("stray", "unexpected argument \"stray\""),
        ] {
            assert_eq!(Config::parse(arguments(line)).unwrap_err().to_string(), message);
        }
    }
}
