//! `KubeletConfiguration` v1beta1, with upstream's names and defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::ConfigError;
use super::duration::parse_duration;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeletConfiguration {
    pub api_version: String,
    pub kind: String,
    pub enable_server: bool,
    pub static_pod_path: Option<PathBuf>,
    #[serde(rename = "staticPodURL")]
    pub static_pod_url: Option<String>,
    #[serde(deserialize_with = "duration")]
    pub http_check_frequency: Duration,
    #[serde(deserialize_with = "duration")]
    pub file_check_frequency: Duration,
    pub address: String,
    pub port: u16,
    pub read_only_port: u16,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    pub rotate_certificates: bool,
    pub authentication: Authentication,
    pub authorization: Authorization,
    pub cluster_domain: String,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    pub resolv_conf: String,
    #[serde(deserialize_with = "duration")]
    pub streaming_connection_idle_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub node_status_report_frequency: Duration,
    pub node_lease_duration_seconds: u32,
    pub cgroup_root: String,
    pub cgroup_driver: String,
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    pub enforce_node_allocatable: Vec<String>,
    pub max_pods: u32,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    pub pod_pids_limit: i64,
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    pub serialize_image_pulls: Option<bool>,
    pub max_parallel_image_pulls: Option<usize>,
    pub image_minimum_gc_age: String,
    pub image_gc_high_threshold_percent: u8,
    pub image_gc_low_threshold_percent: u8,
    pub eviction_hard: BTreeMap<String, String>,
    pub eviction_soft: BTreeMap<String, String>,
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    #[serde(deserialize_with = "duration")]
    pub eviction_pressure_transition_period: Duration,
    pub eviction_max_pod_grace_period: i64,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub fail_swap_on: bool,
    pub container_log_max_size: String,
    pub container_log_max_files: usize,
    pub make_iptables_util_chains: bool,
    pub protect_kernel_defaults: bool,
    pub register_node: bool,
    pub register_with_taints: Vec<k8s_openapi::api::core::v1::Taint>,
    pub container_runtime_endpoint: String,
    pub image_service_endpoint: String,
    pub pod_logs_dir: PathBuf,
    pub enable_debugging_handlers: bool,
    pub seccomp_default: bool,
    pub local_storage_capacity_isolation: bool,
    pub max_container_restart_period_seconds: Option<u64>,
    #[serde(deserialize_with = "duration")]
    pub shutdown_grace_period: Duration,
    #[serde(deserialize_with = "duration")]
    pub shutdown_grace_period_critical_pods: Duration,
    pub feature_gates: BTreeMap<String, bool>,
    /// Known to upstream or mistyped; named once in the log.
    #[serde(flatten)]
    pub unused: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Authentication {
    pub x509: X509,
    pub webhook: Webhook,
    pub anonymous: Anonymous,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Webhook {
    pub enabled: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Anonymous {
    pub enabled: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Authorization {
    pub mode: String,
}

impl Default for Webhook {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for Authorization {
    fn default() -> Self {
        Self { mode: "Webhook".to_owned() }
    }
}

impl Default for KubeletConfiguration {
    fn default() -> Self {
        let eviction = [
            ("memory.available", "100Mi"),
            ("nodefs.available", "10%"),
            ("nodefs.inodesFree", "5%"),
            ("imagefs.available", "15%"),
            ("imagefs.inodesFree", "5%"),
        ];
        Self {
            api_version: String::new(),
            kind: String::new(),
            enable_server: true,
            static_pod_path: None,
            static_pod_url: None,
            http_check_frequency: Duration::from_secs(20),
            file_check_frequency: Duration::from_secs(20),
            address: "0.0.0.0".to_owned(),
            port: 10250,
            read_only_port: 0,
            tls_cert_file: None,
            tls_private_key_file: None,
            server_tls_bootstrap: false,
            rotate_certificates: false,
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            cluster_domain: String::new(),
            cluster_dns: Vec::new(),
            resolv_conf: "/etc/resolv.conf".to_owned(),
            streaming_connection_idle_timeout: Duration::from_secs(4 * 3600),
            node_status_report_frequency: Duration::from_secs(300),
            node_lease_duration_seconds: 40,
            cgroup_root: String::new(),
            cgroup_driver: "cgroupfs".to_owned(),
            cgroups_per_qos: true,
            enforce_node_allocatable: vec!["pods".to_owned()],
            max_pods: 110,
            pod_cidr: String::new(),
            pod_pids_limit: -1,
            cpu_cfs_quota: true,
            serialize_image_pulls: None,
            max_parallel_image_pulls: None,
            image_minimum_gc_age: "2m".to_owned(),
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            eviction_hard: eviction.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_pressure_transition_period: Duration::from_secs(300),
            eviction_max_pod_grace_period: 0,
            allowed_unsafe_sysctls: Vec::new(),
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            fail_swap_on: true,
            container_log_max_size: "10Mi".to_owned(),
            container_log_max_files: 5,
            make_iptables_util_chains: true,
            protect_kernel_defaults: false,
            register_node: true,
            register_with_taints: Vec::new(),
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            image_service_endpoint: String::new(),
            pod_logs_dir: PathBuf::from("/var/log/pods"),
            enable_debugging_handlers: true,
            seccomp_default: false,
            local_storage_capacity_isolation: true,
            max_container_restart_period_seconds: None,
            shutdown_grace_period: Duration::ZERO,
            shutdown_grace_period_critical_pods: Duration::ZERO,
            feature_gates: BTreeMap::new(),
            unused: BTreeMap::new(),
        }
    }
}

impl KubeletConfiguration {
    /// Reads the file and then, in the order of their names, the `*.conf` drop-ins of a directory.
    pub(crate) fn load(file: Option<&Path>, drop_ins: Option<&Path>) -> Result<Self, ConfigError> {
        let mut merged = Value::Object(serde_json::Map::new());
        let mut sources: Vec<PathBuf> = file.map(Path::to_owned).into_iter().collect();
        if let Some(directory) = drop_ins {
            let read = |source| ConfigError::Read { path: directory.to_owned(), source };
            let mut found = Vec::new();
            for entry in std::fs::read_dir(directory).map_err(read)? {
                found.push(entry.map_err(read)?.path());
            }
            found.retain(|path| path.extension().is_some_and(|e| e == "conf"));
            found.sort();
            sources.extend(found);
        }
        for path in sources {
            let text = std::fs::read_to_string(&path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            let value: Value = serde_saphyr::from_str(&text)
                .map_err(|error| ConfigError::Parse { path: path.clone(), message: error.to_string() })?;
            check_kind(&path, &value)?;
            merge(&mut merged, value);
        }
        serde_json::from_value(merged).map_err(|source| ConfigError::Decode { source })
    }
}

fn check_kind(path: &Path, value: &Value) -> Result<(), ConfigError> {
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    if field("kind") == "KubeletConfiguration" && field("apiVersion") == "kubelet.config.k8s.io/v1beta1" {
        return Ok(());
    }
    Err(ConfigError::Parse {
        path: path.to_owned(),
        message: format!(
            "want kind KubeletConfiguration of kubelet.config.k8s.io/v1beta1, found {:?} of {:?}",
            field("kind"),
            field("apiVersion")
        ),
    })
}

/// Drop-ins replace lists and scalars and merge into maps.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a duration")))
}
