//! Flags by etcd's names.

use std::path::PathBuf;

/// The flags of `coracle etcd`.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "etcd", about = "Serve the embedded store through etcd's API")]
pub struct Flags {
    #[arg(long, default_value = "default")]
    pub name: String,
    #[arg(long, default_value = "default.etcd")]
    pub data_dir: PathBuf,
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2379")]
    pub listen_client_urls: Vec<String>,
    /// Where to answer /health, /livez, /readyz and /version only.
    #[arg(long, value_delimiter = ',')]
    pub listen_metrics_urls: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2379")]
    pub advertise_client_urls: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2380")]
    pub initial_advertise_peer_urls: Vec<String>,
    #[arg(long)]
    pub cert_file: Option<PathBuf>,
    #[arg(long)]
    pub key_file: Option<PathBuf>,
    #[arg(long)]
    pub trusted_ca_file: Option<PathBuf>,
    /// Refuse clients without a certificate of the trusted CA.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(action = clap::ArgAction::Set)]
    pub client_cert_auth: bool,
    /// Do not wait for the disk: a crash of the machine loses data.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(action = clap::ArgAction::Set)]
    pub unsafe_no_fsync: bool,
    #[arg(long, default_value_t = 3 << 19)]
    pub max_request_bytes: usize,
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Flags of etcd that mean nothing to one member with a store that keeps itself small.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Ignored {
    #[arg(long, hide = true)]
    pub listen_peer_urls: Option<String>,
    #[arg(long, hide = true)]
    pub initial_cluster: Option<String>,
    #[arg(long, hide = true)]
    pub initial_cluster_state: Option<String>,
    #[arg(long, hide = true)]
    pub initial_cluster_token: Option<String>,
    #[arg(long, hide = true)]
    pub snapshot_count: Option<String>,
    #[arg(long, hide = true)]
    pub quota_backend_bytes: Option<String>,
    #[arg(long, hide = true)]
    pub auto_compaction_mode: Option<String>,
    #[arg(long, hide = true)]
    pub auto_compaction_retention: Option<String>,
    #[arg(long, hide = true)]
    pub peer_cert_file: Option<String>,
    #[arg(long, hide = true)]
    pub peer_key_file: Option<String>,
    #[arg(long, hide = true)]
    pub peer_trusted_ca_file: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub peer_client_cert_auth: Option<String>,
    #[arg(long, hide = true)]
    pub feature_gates: Option<String>,
    #[arg(long, hide = true, alias = "experimental-watch-progress-notify-interval")]
    pub watch_progress_notify_interval: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub experimental_initial_corrupt_check: Option<String>,
}

impl Flags {
    /// Names what was given and does nothing, once.
    pub(crate) fn log_ignored(&self) {
        let Ignored {
            listen_peer_urls,
            initial_cluster,
            initial_cluster_state,
            initial_cluster_token,
            snapshot_count,
            quota_backend_bytes,
            auto_compaction_mode,
            auto_compaction_retention,
            peer_cert_file,
            peer_key_file,
            peer_trusted_ca_file,
            peer_client_cert_auth,
            feature_gates,
            watch_progress_notify_interval,
            experimental_initial_corrupt_check,
        } = &self.ignored;
        let given: Vec<_> = [
            ("listen-peer-urls", listen_peer_urls),
            ("initial-cluster", initial_cluster),
            ("initial-cluster-state", initial_cluster_state),
            ("initial-cluster-token", initial_cluster_token),
            ("snapshot-count", snapshot_count),
            ("quota-backend-bytes", quota_backend_bytes),
            ("auto-compaction-mode", auto_compaction_mode),
            ("auto-compaction-retention", auto_compaction_retention),
            ("peer-cert-file", peer_cert_file),
            ("peer-key-file", peer_key_file),
            ("peer-trusted-ca-file", peer_trusted_ca_file),
            ("peer-client-cert-auth", peer_client_cert_auth),
            ("feature-gates", feature_gates),
            ("watch-progress-notify-interval", watch_progress_notify_interval),
            ("experimental-initial-corrupt-check", experimental_initial_corrupt_check),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.as_ref().map(|_| name))
        .collect();
        if !given.is_empty() {
            tracing::info!(flags = given.join(","), "flags without a meaning here");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_kubeadm_manifest_is_understood() {
        let flags = Flags::parse_from([
            "etcd",
            "--advertise-client-urls=https://10.0.0.1:2379",
            "--cert-file=/pki/server.crt",
            "--client-cert-auth=true",
            "--data-dir=/var/lib/etcd",
            "--feature-gates=InitialCorruptCheck=true",
            "--initial-advertise-peer-urls=https://10.0.0.1:2380",
            "--initial-cluster=one=https://10.0.0.1:2380",
            "--key-file=/pki/server.key",
            "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379",
            "--listen-metrics-urls=http://127.0.0.1:2381",
            "--listen-peer-urls=https://10.0.0.1:2380",
            "--name=one",
            "--peer-client-cert-auth=true",
            "--snapshot-count=10000",
            "--trusted-ca-file=/pki/ca.crt",
            "--watch-progress-notify-interval=5s",
        ]);
        assert!(flags.client_cert_auth);
        assert_eq!(flags.listen_client_urls, ["https://127.0.0.1:2379", "https://10.0.0.1:2379"]);
        assert_eq!(flags.ignored.snapshot_count.as_deref(), Some("10000"));
        assert!(Flags::try_parse_from(["etcd", "--no-such-flag"]).is_err());
        assert!(Flags::parse_from(["etcd", "--client-cert-auth"]).client_cert_auth);
    }
}
