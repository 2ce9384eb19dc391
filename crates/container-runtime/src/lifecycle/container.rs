//! Containers.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::v1::security_profile::ProfileType;
use cri::v1::{
    ContainerConfig, ContainerEventType, LinuxContainerResources, LinuxContainerSecurityContext,
    NamespaceMode,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tracing::{info, warn};

use super::sandbox::{nodename, remove_directory, root_of};
use super::{KILL_TIMEOUT, blocking};
use crate::container::{Container, ContainerRecord, FILE, Phase, write_json};
use crate::error::{RuntimeError, chain};
use crate::image::ImageConfig;
use crate::machine;
use crate::runtime::{Runtime, now};
use crate::sandbox::{Sandbox, SandboxRecord};
use crate::spec::{self, DeviceNode, SpecInput, container_spec, has_user_namespace};
use crate::supervisor::protocol::{OverlayMount, Reply, Request, StartRequest};
use crate::{seccomp, user};

/// The largest `/etc/passwd` or `/etc/group` that is looked into.
const MAX_ACCOUNTS_BYTES: u64 = 4 << 20;

/// Where the images a container mounts will be, by destination, and the layers of each.
type ImageMounts = (BTreeMap<String, PathBuf>, Vec<Vec<String>>);

/// What a container to be is made of.
struct Plan {
    record: ContainerRecord,
    spec: Value,
    /// The node's ids of the container's root.
    owner: Option<(u32, u32)>,
}

impl Runtime {
    /// Makes a container; nothing of it runs yet. Answers its id.
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<String, RuntimeError> {
        let sandbox = self.find_sandbox(sandbox)?;
        if !sandbox.is_ready() {
            let message = format!("sandbox {:?} is not ready", sandbox.id());
            return Err(RuntimeError::Precondition { message });
        }
        let metadata =
            config.metadata.clone().ok_or_else(|| RuntimeError::invalid("container metadata is missing"))?;
        let name = format!("{}_{}_{}", metadata.name, sandbox.id(), metadata.attempt);
        let _reservation = self.reserve(format!("container {name}"))?;
        let taken = |other: &Arc<Container>| other.record().config.metadata.as_ref() == Some(&metadata);
        if let Some(other) = self.containers_of(&sandbox.id()).iter().find(|other| taken(other)) {
            let message = format!("name {name:?} is reserved for {:?}", other.id());
            return Err(RuntimeError::AlreadyExists { message });
        }
        let runtime = Arc::clone(self);
        let record = blocking(move || runtime.make_container(&sandbox, config)).await?;
        let id = record.id.clone();
        let container = Arc::new(Container::new(record));
        self.insert_container(id.clone(), Arc::clone(&container));
        self.publish(ContainerEventType::ContainerCreatedEvent, &container);
        Ok(id)
    }

    fn make_container(
        &self,
        sandbox: &Sandbox,
        config: ContainerConfig,
    ) -> Result<ContainerRecord, RuntimeError> {
        let plan = self.plan_container(&sandbox.record(), config)?;
        let directory = self.layout.container(&plan.record.id);
        let write = || -> Result<(), RuntimeError> {
            fs::create_dir_all(&directory).map_err(RuntimeError::file("create", &directory))?;
            for name in ["upper", "work"] {
                let path = directory.join(name);
                fs::create_dir(&path).map_err(RuntimeError::file("create", &path))?;
                fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
                    .map_err(RuntimeError::file("open up", &path))?;
                if let Some((uid, gid)) = plan.owner {
                    chown(&path, Some(uid), Some(gid))
                        .map_err(RuntimeError::file("change the owner of", &path))?;
                }
            }
            write_json(&directory.join("config.json"), &plan.spec)?;
            write_json(&directory.join(FILE), &plan.record)
        };
        if let Err(error) = write() {
            if let Err(error) = remove_directory(&directory) {
                warn!(error = %chain(&error), "a failed container is not wholly removed");
            }
            return Err(error);
        }
        Ok(plan.record)
    }

    fn plan_container(&self, sandbox: &SandboxRecord, config: ContainerConfig) -> Result<Plan, RuntimeError> {
        let id = machine::new_id();
        let image_name = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        let image = self.images.find(&image_name)?;
        let image_config = self.images.config(&image)?;
        let security = security_of(&config);
        let options = security.namespace_options.clone().unwrap_or_default();
        if has_user_namespace(&options) != has_user_namespace(&sandbox.namespace_options()) {
            return Err(RuntimeError::invalid("container and sandbox differ in user namespaces"));
        }
        let read = |path| self.images.read_file(&image.layers, path, MAX_ACCOUNTS_BYTES).unwrap_or_default();
        let user =
            user::resolve(&security, &image_config.config.user, &read("etc/passwd"), &read("etc/group"))?;
        let target = match options.pid() {
            NamespaceMode::Target => self.target_process(&options.target_id, &sandbox.id)?,
            _ => None,
        };
        let (image_mounts, mounted_layers) = self.image_mounts(&id, &config)?;
        let cgroup = format!("{}/{id}", sandbox.cgroup);
        let directory = self.layout.sandbox(&sandbox.id);
        let files =
            [("/etc/hostname", "hostname"), ("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf")]
                .map(|(destination, name)| (destination, directory.join(name)));
        let shm = match options.ipc() {
            NamespaceMode::Node => PathBuf::from("/dev/shm"),
            _ => self.layout.shm(&sandbox.id),
        };
        let hostname = if sandbox.uses_host_network() { nodename() } else { sandbox.config.hostname.clone() };
        let capabilities = spec::capabilities(&self.machine, &security)?;
        let spec = container_spec(&SpecInput {
            machine: &self.machine,
            config: &config,
            image: &image_config,
            user: &user,
            holder: sandbox.live.holder,
            target,
            hostname: &hostname,
            rootfs: &self.layout.rootfs(&id),
            cgroup: &cgroup,
            files: &files,
            shm: &shm,
            image_mounts: &image_mounts,
            seccomp: seccomp_profile(&security, &capabilities)?,
            apparmor: apparmor_profile(&security)?,
            devices: &devices(&config, &security)?,
        })?;
        let record = ContainerRecord {
            sandbox: sandbox.id.clone(),
            image_id: image.id.clone(),
            image_ref: image.digests.first().unwrap_or(&image.id).clone(),
            layers: image.layers,
            image_mounts: mounted_layers,
            created_at: now(),
            cgroup,
            user,
            log_path: log_path(&sandbox.config.log_directory, &config.log_path),
            stop_signal: stop_signal(&image_config),
            resources: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
            phase: Phase::Created,
            config,
            id,
        };
        Ok(Plan { record, spec, owner: root_of(&options).filter(|_| has_user_namespace(&options)) })
    }

    fn target_process(&self, target: &str, sandbox: &str) -> Result<Option<i32>, RuntimeError> {
        let target = self.find_container(target)?;
        if target.sandbox() != sandbox {
            return Err(RuntimeError::invalid("the target container is in another sandbox"));
        }
        Ok(match target.phase() {
            Phase::Running { pid, .. } => Some(pid),
            _ => None,
        })
    }

    /// Where the images among the mounts will be, by destination, and their layers.
    fn image_mounts(&self, id: &str, config: &ContainerConfig) -> Result<ImageMounts, RuntimeError> {
        let (mut mounts, mut layers) = (BTreeMap::new(), Vec::new());
        for mount in &config.mounts {
            let Some(image) = mount.image.as_ref().filter(|image| !image.image.is_empty()) else { continue };
            let target = self.layout.image_mount(id, layers.len());
            layers.push(self.images.find(&image.image)?.layers);
            mounts.insert(mount.container_path.clone(), target);
        }
        Ok((mounts, layers))
    }

    /// Starts a container's first process.
    pub(crate) async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let container = self.find_container(id)?;
        let directory = self.layout.container(&container.id());
        let created = |phase: &Phase| *phase == Phase::Created;
        if !container.advance(&directory, Phase::Starting, created)? {
            let message = format!("container {:?} is not in created state", container.id());
            return Err(RuntimeError::Precondition { message });
        }
        let starting = |phase: &Phase| *phase == Phase::Starting;
        match self.launch(&container).await {
            Ok((pid, started_at)) => {
                // It may have ended already.
                container.advance(&directory, Phase::Running { pid, started_at }, starting)?;
                self.publish(ContainerEventType::ContainerStartedEvent, &container);
                Ok(())
            }
            Err(error) => {
                let failed = Phase::start_failed(now(), chain(&error));
                container.advance(&directory, failed, starting)?;
                self.publish(ContainerEventType::ContainerStoppedEvent, &container);
                Err(error)
            }
        }
    }

    async fn launch(&self, container: &Container) -> Result<(i32, i64), RuntimeError> {
        let record = container.record();
        let sandbox = self.find_sandbox(&record.sandbox)?;
        let request = self.start_request(&record, &sandbox.record());
        if let Some(parent) = request.log_path.as_deref().and_then(Path::parent) {
            tokio::fs::create_dir_all(parent).await.map_err(RuntimeError::file("create", parent))?;
        }
        match sandbox.client.call(&Request::Start(Box::new(request))).await? {
            Reply::Started { pid, started_at } => Ok((pid, started_at)),
            _ => {
                Err(RuntimeError::Supervisor { message: "the supervisor answered something else".to_owned() })
            }
        }
    }

    fn start_request(&self, record: &ContainerRecord, sandbox: &SandboxRecord) -> StartRequest {
        let directory = self.layout.container(&record.id);
        let options = sandbox.namespace_options();
        let user_namespace =
            has_user_namespace(&options).then(|| format!("/proc/{}/ns/user", sandbox.live.holder).into());
        let overlay = |target, layers: &[String], upper| OverlayMount {
            target,
            lowers: layers.iter().rev().cloned().collect(),
            devices: security_of(&record.config).privileged,
            upper,
            user_namespace: user_namespace.clone(),
        };
        let upper = Some((directory.join("upper"), directory.join("work")));
        let mut mounts = vec![overlay(self.layout.rootfs(&record.id), &record.layers, upper)];
        for (index, layers) in record.image_mounts.iter().enumerate() {
            mounts.push(overlay(self.layout.image_mount(&record.id, index), layers, None));
        }
        StartRequest {
            container: record.id.clone(),
            bundle: directory,
            layers: self.images.layers_dir(),
            mounts,
            log_path: Some(record.log_path.clone()).filter(|path| !path.is_empty()).map(PathBuf::from),
            tty: record.config.tty,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            cgroup: self.cgroups.files(&record.cgroup),
        }
    }

    /// Stops a container: its signal first, death after `timeout`. One that does not exist is stopped.
    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        id: &str,
        timeout: Duration,
    ) -> Result<(), RuntimeError> {
        match self.find_container(id) {
            Err(RuntimeError::NotFound { .. }) => Ok(()),
            container => self.stop(&*container?, timeout).await,
        }
    }

    pub(super) async fn stop(&self, container: &Container, timeout: Duration) -> Result<(), RuntimeError> {
        let mut phase = container.watch();
        let settled = phase.wait_for(|phase| *phase != Phase::Starting);
        if settled.await.is_ok_and(|phase| !matches!(*phase, Phase::Running { .. })) {
            return Ok(());
        }
        if !timeout.is_zero() {
            self.signal(container, container.record().stop_signal, false).await?;
            if tokio::time::timeout(timeout, phase.wait_for(Phase::is_exited)).await.is_ok() {
                return Ok(());
            }
        }
        self.signal(container, Signal::SIGKILL as i32, true).await?;
        let gone = tokio::time::timeout(KILL_TIMEOUT, phase.wait_for(Phase::is_exited)).await;
        gone.map(drop).map_err(|_| RuntimeError::Timeout {
            what: "the death of a killed container",
            seconds: KILL_TIMEOUT.as_secs(),
        })
    }

    async fn signal(&self, container: &Container, signal: i32, all: bool) -> Result<(), RuntimeError> {
        let sandbox = self.find_sandbox(&container.sandbox())?;
        let request = Request::Signal { container: container.id(), signal, all };
        match sandbox.client.call(&request).await {
            // It ended on its own, and whoever waits for that will hear of it.
            Err(_) if container.phase().is_exited() || !sandbox.is_ready() => Ok(()),
            Err(crate::supervisor::client::ClientError::Refused { .. }) => Ok(()),
            result => result.map(drop).map_err(RuntimeError::from),
        }
    }

    /// Removes a container, killing it first if need be. One that does not exist is removed.
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        match self.find_container(id) {
            Err(RuntimeError::NotFound { .. }) => Ok(()),
            container => self.remove(&container?).await,
        }
    }

    pub(super) async fn remove(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), RuntimeError> {
        self.stop(container, Duration::ZERO).await?;
        let record = container.record();
        let id = record.id.clone();
        if let Ok(sandbox) = self.find_sandbox(&record.sandbox)
            && sandbox.is_ready()
            && let Err(error) = sandbox.client.call(&Request::Forget { container: id.clone() }).await
        {
            warn!(container = %id, error = %chain(&error), "the supervisor keeps a removed container");
        }
        self.remove_cgroup(&record.cgroup).await?;
        let (directory, mounts) = (self.layout.container(&id), self.layout.mounts().join(&id));
        blocking(move || remove_directory(&mounts).and_then(|()| remove_directory(&directory))).await?;
        self.forget_container(&id);
        info!(container = %id, "container removed");
        self.publish(ContainerEventType::ContainerDeletedEvent, container);
        let orphaned = self.images.find(&record.image_id).is_err();
        if orphaned {
            let runtime = Arc::clone(self);
            blocking(move || runtime.images.collect_garbage(&runtime.layers_in_use())).await?;
        }
        Ok(())
    }

    /// Changes the limits of a container.
    pub(crate) async fn update_resources(
        self: &Arc<Self>,
        id: &str,
        resources: LinuxContainerResources,
    ) -> Result<(), RuntimeError> {
        let container = self.find_container(id)?;
        if container.phase().is_exited() {
            let message = format!("container {:?} is not running", container.id());
            return Err(RuntimeError::Precondition { message });
        }
        let record = container.record();
        if matches!(container.phase(), Phase::Running { .. }) {
            let (cgroups, cgroup, resources) =
                (self.cgroups.clone(), record.cgroup.clone(), resources.clone());
            blocking(move || cgroups.update(&cgroup, &resources)).await?;
        }
        let merged = merge_resources(record.resources.unwrap_or_default(), resources);
        container.set_resources(&self.layout.container(&record.id), merged)
    }
}

/// What is not said does not change.
fn merge_resources(
    mut old: LinuxContainerResources,
    new: LinuxContainerResources,
) -> LinuxContainerResources {
    let number = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    number(&mut old.cpu_period, new.cpu_period);
    number(&mut old.cpu_quota, new.cpu_quota);
    number(&mut old.cpu_shares, new.cpu_shares);
    number(&mut old.memory_limit_in_bytes, new.memory_limit_in_bytes);
    number(&mut old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes);
    number(&mut old.oom_score_adj, new.oom_score_adj);
    for (old, new) in [(&mut old.cpuset_cpus, new.cpuset_cpus), (&mut old.cpuset_mems, new.cpuset_mems)] {
        if !new.is_empty() {
            *old = new;
        }
    }
    old.unified.extend(new.unified);
    if !new.hugepage_limits.is_empty() {
        old.hugepage_limits = new.hugepage_limits;
    }
    old
}

fn security_of(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn log_path(directory: &str, path: &str) -> String {
    if directory.is_empty() || path.is_empty() {
        return String::new();
    }
    Path::new(directory).join(path).to_string_lossy().into_owned()
}

/// The signal an image wants to be stopped by: a number, or a name with or without `SIG`.
fn stop_signal(image: &ImageConfig) -> i32 {
    let wanted = image.config.stop_signal.to_uppercase();
    let by_name = || {
        let name = if wanted.starts_with("SIG") { wanted.clone() } else { format!("SIG{wanted}") };
        name.parse::<Signal>().ok().map(|signal| signal as i32)
    };
    wanted.parse().ok().or_else(by_name).unwrap_or(Signal::SIGTERM as i32)
}

fn seccomp_profile(
    security: &LinuxContainerSecurityContext,
    capabilities: &std::collections::BTreeSet<String>,
) -> Result<Option<Value>, RuntimeError> {
    let Some(profile) = security.seccomp.as_ref().filter(|_| !security.privileged) else { return Ok(None) };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(seccomp::default_profile(capabilities))),
        ProfileType::Localhost => {
            let path = profile.localhost_ref.trim_start_matches("localhost/");
            seccomp::local_profile(Path::new(path), capabilities).map(Some)
        }
    }
}

/// A profile of the node, where the kernel knows such; the default one is no more than what else is in place.
fn apparmor_profile(security: &LinuxContainerSecurityContext) -> Result<Option<String>, RuntimeError> {
    let Some(profile) = &security.apparmor else { return Ok(None) };
    if profile.profile_type() != ProfileType::Localhost || security.privileged {
        return Ok(None);
    }
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|text| text.trim() == "Y") {
        return Err(RuntimeError::invalid("apparmor is not supported by this node"));
    }
    Ok(Some(profile.localhost_ref.trim_start_matches("localhost/").to_owned()))
}

fn devices(
    config: &ContainerConfig,
    security: &LinuxContainerSecurityContext,
) -> Result<Vec<DeviceNode>, RuntimeError> {
    if !config.cdi_devices.is_empty() {
        return Err(RuntimeError::Unsupported { what: "a CDI device" });
    }
    let mut found = Vec::new();
    if security.privileged {
        found = machine::all_devices()?;
    }
    for device in &config.devices {
        found.extend(machine::devices(
            Path::new(&device.host_path),
            &device.container_path,
            &device.permissions,
        )?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_have_names_and_numbers() {
        for (text, expected) in [("", 15), ("SIGINT", 2), ("quit", 3), ("9", 9), ("NOSUCH", 15)] {
            let mut image = ImageConfig::default();
            image.config.stop_signal = text.to_owned();
            assert_eq!(stop_signal(&image), expected, "{text}");
        }
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let old = LinuxContainerResources { cpu_shares: 10, memory_limit_in_bytes: 7, ..Default::default() };
        let new = LinuxContainerResources { cpu_shares: 20, ..Default::default() };
        let merged = merge_resources(old, new);
        assert_eq!((merged.cpu_shares, merged.memory_limit_in_bytes), (20, 7));
    }
}
