//! What the command line decides.

use std::path::PathBuf;
use std::time::Duration;

/// The options of the controller manager, with upstream's defaults.
#[derive(Debug, Clone)]
pub struct Config {
    /// `--controllers`: `*`, `name`, `-name`; earlier entries win.
    pub controllers: Vec<String>,
    /// `--concurrent-*-syncs`: workers of each controller.
    pub workers: usize,
    /// `--use-service-account-credentials`: each controller as its own service account.
    pub use_service_account_credentials: bool,
    /// `--node-monitor-period`.
    pub node_monitor_period: Duration,
    /// `--node-monitor-grace-period`.
    pub node_monitor_grace_period: Duration,
    /// `--node-startup-grace-period`.
    pub node_startup_grace_period: Duration,
    /// `--node-eviction-rate`, in nodes a second.
    pub node_eviction_rate: f64,
    /// `--secondary-node-eviction-rate`.
    pub secondary_node_eviction_rate: f64,
    /// `--unhealthy-zone-threshold`.
    pub unhealthy_zone_threshold: f64,
    /// `--large-cluster-size-threshold`.
    pub large_cluster_size_threshold: usize,
    /// `--terminated-pod-gc-threshold`.
    pub terminated_pod_gc_threshold: usize,
    /// `--root-ca-file`, as PEM.
    pub root_ca: Option<String>,
    /// `--cluster-signing-cert-file` and `--cluster-signing-key-file`.
    pub cluster_signing: Option<SigningFiles>,
    /// `--cluster-signing-duration`.
    pub cluster_signing_duration: Duration,
    /// `--allocate-node-cidrs` with `--cluster-cidr`.
    pub cluster_cidrs: Vec<String>,
    /// `--node-cidr-mask-size` for IPv4 and IPv6.
    pub node_cidr_mask_sizes: (u8, u8),
    /// `--service-cluster-ip-range`: never given to nodes.
    pub service_cidrs: Vec<String>,
    /// `--horizontal-pod-autoscaler-sync-period` and its companions.
    pub autoscaler: AutoscalerConfig,
    /// `--pvclaimbinder-sync-period`.
    pub claim_binder_sync_period: Duration,
    /// `--resource-quota-sync-period`.
    pub resource_quota_sync_period: Duration,
    /// `--legacy-service-account-token-clean-up-period`.
    pub legacy_token_clean_up_period: Duration,
}

/// A certificate authority on disk.
#[derive(Debug, Clone)]
pub struct SigningFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// `--horizontal-pod-autoscaler-*`.
#[derive(Debug, Clone)]
pub struct AutoscalerConfig {
    pub sync_period: Duration,
    pub downscale_stabilization: Duration,
    pub tolerance: f64,
    pub cpu_initialization_period: Duration,
    pub initial_readiness_delay: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controllers: vec!["*".to_owned()],
            workers: 5,
            use_service_account_credentials: true,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(40),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            unhealthy_zone_threshold: 0.55,
            large_cluster_size_threshold: 50,
            terminated_pod_gc_threshold: 12_500,
            root_ca: None,
            cluster_signing: None,
            cluster_signing_duration: Duration::from_secs(365 * 24 * 3_600),
            cluster_cidrs: Vec::new(),
            node_cidr_mask_sizes: (24, 64),
            service_cidrs: Vec::new(),
            autoscaler: AutoscalerConfig::default(),
            claim_binder_sync_period: Duration::from_secs(15),
            resource_quota_sync_period: Duration::from_secs(300),
            legacy_token_clean_up_period: Duration::from_secs(365 * 24 * 3_600),
        }
    }
}

impl Default for AutoscalerConfig {
    fn default() -> Self {
        Self {
            sync_period: Duration::from_secs(15),
            downscale_stabilization: Duration::from_secs(300),
            tolerance: 0.1,
            cpu_initialization_period: Duration::from_secs(300),
            initial_readiness_delay: Duration::from_secs(30),
        }
    }
}
