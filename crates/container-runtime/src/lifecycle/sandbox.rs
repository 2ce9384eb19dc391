//! Sandboxes.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use cri::v1::{
    ContainerEventType, DnsConfig, LinuxPodSandboxConfig, NamespaceMode, NamespaceOption, PodSandboxConfig,
    Protocol,
};
use tracing::{info, warn};

use super::{CGROUP_RETRIES, CGROUP_RETRY_DELAY, blocking};
use crate::container::write_json;
use crate::error::{RuntimeError, chain};
use crate::machine;
use crate::network::{HostPort, PodNetworkRequest, PortProtocol};
use crate::runtime::{Runtime, now};
use crate::sandbox::{FILE, SOCKET, Sandbox, SandboxLive, SandboxRecord};
use crate::spec::has_user_namespace;
use crate::supervisor::client::spawn;
use crate::supervisor::protocol::{IdMappings, Request, SupervisorConfig};

impl Runtime {
    /// Makes a sandbox: namespaces, supervisor, network. Answers its id.
    pub(crate) async fn run_sandbox(
        self: &Arc<Self>,
        config: PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String, RuntimeError> {
        let metadata =
            config.metadata.clone().ok_or_else(|| RuntimeError::invalid("sandbox metadata is missing"))?;
        if !runtime_handler.is_empty() {
            return Err(RuntimeError::invalid(format!("no runtime for {runtime_handler:?} is configured")));
        }
        let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
        let _reservation = self.reserve(format!("sandbox {name}"))?;
        let taken = |sandbox: &Arc<Sandbox>| sandbox.record().config.metadata.as_ref() == Some(&metadata);
        if let Some(other) = self.sandboxes().iter().find(|sandbox| taken(sandbox)) {
            let message = format!("name {name:?} is reserved for {:?}", other.id());
            return Err(RuntimeError::AlreadyExists { message });
        }
        let id = machine::new_id();
        let (cgroup, owns_cgroup) = self.pod_cgroup(&id, config.linux.as_ref())?;
        let live = SandboxLive::default();
        let record = SandboxRecord {
            id: id.clone(),
            config,
            runtime_handler,
            created_at: now(),
            cgroup,
            owns_cgroup,
            live,
        };
        let directory = self.layout.sandbox(&id);
        let sandbox = Arc::new(Sandbox::new(record, &directory));
        self.insert_sandbox(id.clone(), Arc::clone(&sandbox));
        if let Err(error) = self.bring_up(&sandbox, &directory).await {
            if let Err(error) = self.discard_sandbox(&sandbox).await {
                warn!(sandbox = %id, error = %chain(&error), "a failed sandbox is not wholly removed");
            }
            return Err(error);
        }
        info!(sandbox = %id, namespace = %metadata.namespace, name = %metadata.name, "sandbox started");
        self.publish_for(ContainerEventType::ContainerCreatedEvent, id.clone(), &id);
        self.publish_for(ContainerEventType::ContainerStartedEvent, id.clone(), &id);
        Ok(id)
    }

    fn pod_cgroup(
        &self,
        id: &str,
        linux: Option<&LinuxPodSandboxConfig>,
    ) -> Result<(String, bool), RuntimeError> {
        let parent = linux.map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        if parent.ends_with(".slice") {
            return Err(RuntimeError::invalid(format!(
                "cgroup parent {parent:?} is systemd's; this runtime's cgroup driver is cgroupfs"
            )));
        }
        if parent.split('/').any(|part| part == "..") {
            return Err(RuntimeError::invalid(format!("cgroup parent {parent:?} leads out")));
        }
        match parent {
            "" => Ok((format!("{}/{id}", self.config.cgroup_root.trim_end_matches('/')), true)),
            parent => Ok((format!("/{}", parent.trim_matches('/')), false)),
        }
    }

    async fn bring_up(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        directory: &Path,
    ) -> Result<(), RuntimeError> {
        let record = sandbox.record();
        let options = record.namespace_options();
        let config = supervisor_config(&record, &options);
        let (layout, files) = (self.layout.clone(), pod_files(&record));
        let owner = has_user_namespace(&options).then(|| root_of(&options)).flatten();
        let shared_memory = options.ipc() != NamespaceMode::Node;
        let prepare = {
            let (directory, record) = (directory.to_owned(), record.clone());
            move || -> Result<(), RuntimeError> {
                fs::create_dir_all(&directory).map_err(RuntimeError::file("create", &directory))?;
                for (name, text) in files {
                    let path = directory.join(name);
                    fs::write(&path, text).map_err(RuntimeError::file("write", &path))?;
                }
                if shared_memory {
                    machine::mount_shm(&layout.shm(&record.id), owner)?;
                }
                write_json(&directory.join(FILE), &record)
            }
        };
        blocking(prepare).await?;
        let spawned = spawn(&self.config.supervisor, directory, &config).await?;
        sandbox.update(directory, |live| {
            live.supervisor = spawned.supervisor;
            live.holder = spawned.holder;
        })?;
        let mut child = spawned.child;
        // Someone has to take its exit code for as long as it is a child of this process.
        self.tasks.spawn(async move { child.wait().await.map(drop) });
        if !record.uses_host_network() {
            sandbox.update(directory, |live| live.has_network = true)?;
            let request = network_request(&sandbox.record());
            let ips = self.config.network.add(&request).await.map_err(RuntimeError::Network)?;
            sandbox.update(directory, |live| live.ips = ips.iter().map(ToString::to_string).collect())?;
        }
        sandbox.update(directory, |live| live.ready = true)?;
        self.follow(Arc::clone(sandbox));
        Ok(())
    }

    /// Stops everything in a sandbox and takes its network. One that does not exist is stopped.
    pub(crate) async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let sandbox = match self.find_sandbox(id) {
            Err(RuntimeError::NotFound { .. }) => return Ok(()),
            sandbox => sandbox?,
        };
        let _stopping = sandbox.stopping.lock().await;
        self.halt_sandbox(&sandbox).await
    }

    async fn halt_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), RuntimeError> {
        let record = sandbox.record();
        let (id, directory) = (&record.id, self.layout.sandbox(&record.id));
        for container in self.containers_of(id) {
            self.stop(&container, std::time::Duration::ZERO).await?;
        }
        if record.live.has_network {
            self.config.network.del(&network_request(&record)).await.map_err(RuntimeError::Network)?;
        }
        let was_ready = record.live.ready;
        sandbox.update(&directory, |live| {
            live.ready = false;
            live.has_network = false;
        })?;
        // One that is gone already is as good as one that obeys.
        if let Ok(mut talk) = sandbox.client.open(&Request::Shutdown).await {
            while talk.reader.next().await.is_ok() {}
        }
        sandbox.update(&directory, |live| {
            live.supervisor = 0;
            live.holder = 0;
        })?;
        let shm = self.layout.shm(id);
        blocking(move || machine::unmount(&shm)).await?;
        if record.owns_cgroup {
            self.remove_cgroup(&record.cgroup).await?;
        }
        if was_ready {
            info!(sandbox = %id, "sandbox stopped");
            self.publish_for(ContainerEventType::ContainerStoppedEvent, id.clone(), id);
        }
        Ok(())
    }

    /// Removes a sandbox and everything in it. One that does not exist is removed.
    pub(crate) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let sandbox = match self.find_sandbox(id) {
            Err(RuntimeError::NotFound { .. }) => return Ok(()),
            sandbox => sandbox?,
        };
        self.discard_sandbox(&sandbox).await?;
        let id = sandbox.id();
        self.publish_for(ContainerEventType::ContainerDeletedEvent, id.clone(), &id);
        Ok(())
    }

    async fn discard_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), RuntimeError> {
        let _stopping = sandbox.stopping.lock().await;
        let id = sandbox.id();
        let directory = self.layout.sandbox(&id);
        if !directory.exists() {
            self.forget_sandbox(&id);
            return Ok(());
        }
        self.halt_sandbox(sandbox).await?;
        for container in self.containers_of(&id) {
            self.remove(&container).await?;
        }
        blocking(move || remove_directory(&directory)).await?;
        self.forget_sandbox(&id);
        Ok(())
    }

    /// Removes a group once the last of its processes is gone.
    pub(super) async fn remove_cgroup(&self, cgroup: &str) -> Result<(), RuntimeError> {
        let mut tries = 0;
        loop {
            let (cgroups, path) = (self.cgroups.clone(), cgroup.to_owned());
            match blocking(move || cgroups.remove(&path)).await {
                Err(RuntimeError::File { source, .. })
                    if source.kind() == ErrorKind::ResourceBusy && tries < CGROUP_RETRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(CGROUP_RETRY_DELAY).await;
                }
                result => return result,
            }
        }
    }
}

/// Removes a directory that may be gone.
pub(super) fn remove_directory(directory: &Path) -> Result<(), RuntimeError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.map_err(RuntimeError::file("remove", directory)),
    }
}

fn supervisor_config(record: &SandboxRecord, options: &NamespaceOption) -> SupervisorConfig {
    let host_network = options.network() == NamespaceMode::Node;
    let hostname =
        Some(record.config.hostname.clone()).filter(|hostname| !host_network && !hostname.is_empty());
    let sysctls = record.config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    let lines = |list: &[cri::v1::IdMapping]| {
        list.iter().fold(String::new(), |mut text, map| {
            text.push_str(&format!("{} {} {}\n", map.container_id, map.host_id, map.length));
            text
        })
    };
    let users = options.userns_options.as_ref().filter(|_| has_user_namespace(options));
    SupervisorConfig {
        socket: SOCKET.into(),
        hostname,
        host_network,
        host_ipc: options.ipc() == NamespaceMode::Node,
        share_processes: options.pid() == NamespaceMode::Pod,
        user_namespace: users.map(|users| IdMappings { uids: lines(&users.uids), gids: lines(&users.gids) }),
        sysctls: sysctls.into_iter().collect(),
    }
}

/// The node's ids for user and group 0 of a pod with ids of its own.
pub(super) fn root_of(options: &NamespaceOption) -> Option<(u32, u32)> {
    let users = options.userns_options.as_ref()?;
    let host =
        |list: &[cri::v1::IdMapping]| list.iter().find(|map| map.container_id == 0).map(|map| map.host_id);
    Some((host(&users.uids)?, host(&users.gids)?))
}

/// The files a pod's containers share: name and text.
fn pod_files(record: &SandboxRecord) -> Vec<(&'static str, String)> {
    let host = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let hostname = record.config.hostname.clone();
    let (hostname, hosts) = match record.uses_host_network() {
        true => (nodename(), host("/etc/hosts")),
        false => (hostname, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned()),
    };
    let resolv = match &record.config.dns_config {
        Some(dns) => resolv_conf(dns),
        None => host("/etc/resolv.conf"),
    };
    vec![("hostname", format!("{hostname}\n")), ("hosts", hosts), ("resolv.conf", resolv)]
}

/// The node's own hostname.
pub(super) fn nodename() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

fn network_request(record: &SandboxRecord) -> PodNetworkRequest {
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let netns = match record.live.holder {
        0 => String::new(),
        holder => format!("/proc/{holder}/ns/net"),
    };
    let port = |port: i32| u16::try_from(port).ok().filter(|&port| port > 0);
    let host_ports = record.config.port_mappings.iter().filter_map(|mapping| {
        Some(HostPort {
            protocol: match mapping.protocol() {
                Protocol::Tcp => PortProtocol::Tcp,
                Protocol::Udp => PortProtocol::Udp,
                Protocol::Sctp => PortProtocol::Sctp,
            },
            container_port: port(mapping.container_port)?,
            host_port: port(mapping.host_port)?,
            host_ip: mapping.host_ip.clone(),
        })
    });
    PodNetworkRequest {
        sandbox_id: record.id.clone(),
        netns: netns.into(),
        pod_namespace: metadata.namespace,
        pod_name: metadata.name,
        pod_uid: metadata.uid,
        host_ports: host_ports.collect(),
        annotations: record.config.annotations.clone().into_iter().collect::<BTreeMap<_, _>>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_file_follows_the_pods_dns_configuration() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into(), "1.1.1.1".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }
}
