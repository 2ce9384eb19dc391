//! The executor: each planned action as one future that ends in an `Outcome`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use cri::v1::PodSandboxConfig;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use reconcile::events::EventType::{Normal, Warning};

use super::memory::Waiting;
use super::model::{ContainerModel, PodModel};
use super::observed::Observed;
use super::resources::pod_cgroup;
use crate::api::{ApiError, chain};
use crate::container::config::{self, ContainerInputs};
use crate::container::env::{self, EnvSources};
use crate::container::sandbox::{self, SandboxInputs};
use crate::container::{dns, hosts, security};
use crate::context::Context;
use crate::hooks;
use crate::runtime;
use crate::volumes::container_mounts::{self, MountInputs};
use crate::volumes::{PodVolumes, VolumeError, VolumePath};

/// The pod as an operation sees it: a snapshot, so that nothing is locked while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) context: Arc<Context>,
    pub(crate) model: Arc<PodModel>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) volumes: Arc<PodVolumes>,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Volumes(Result<PodVolumes, VolumeError>),
    Refreshed(Result<PodVolumes, VolumeError>),
    Sandbox(Result<(), Waiting>),
    Pulled { container: String, result: Result<String, Waiting> },
    Started { container: String, after: Option<Timestamp>, result: Result<(), Waiting> },
    Hooked { container: String, id: String, result: Result<(), String> },
    Killed { container: String, id: String, result: Result<(), String> },
    Resized { container: String, result: Result<(), String> },
    Removed,
    TornDown(Result<(), String>),
    StatusSent(super::sink::Sent),
    Deleted(Result<(), ApiError>),
}

fn waiting(reason: &str, message: impl Into<String>) -> Waiting {
    Waiting { reason: reason.to_owned(), message: message.into() }
}

impl Job {
    pub(crate) async fn set_up_volumes(self) -> Outcome {
        Outcome::Volumes(self.volumes_now().await)
    }

    pub(crate) async fn refresh_volumes(self) -> Outcome {
        Outcome::Refreshed(self.volumes_now().await)
    }

    async fn volumes_now(&self) -> Result<PodVolumes, VolumeError> {
        let facts = self.context.pod_facts(self.model.host_network(), &self.observed);
        let result = self.context.volumes.set_up(&self.model, &facts, self.context.clock.now()).await;
        if let Err(error) = &result {
            self.context.recorder.pod(&self.model, Warning, "FailedMount", chain(error));
        }
        result
    }

    /// The configuration is the same for the sandbox and for every container in it.
    fn sandbox_config(&self, attempt: u32) -> Result<PodSandboxConfig, hosts::FqdnTooLong> {
        let context = &self.context;
        let hostname = hosts::pod_hostname(&self.model, &context.config.kubelet.cluster_domain)?;
        let parent = match &context.cgroups {
            Some(cgroups) => cgroups.parent(self.model.qos, &self.model.uid),
            None => String::new(),
        };
        let inputs = SandboxInputs {
            attempt,
            hostname: &hostname.kernel,
            resolver: dns::resolver(&self.model, &context.cluster_dns),
            logs: &context.config.kubelet.pod_logs_dir,
            cgroup_parent: &parent,
            seccomp: &context.seccomp,
        };
        Ok(sandbox::config(&self.model, inputs))
    }

    pub(crate) async fn create_sandbox(self, attempt: u32, stop: Vec<String>) -> Outcome {
        let result = self.sandbox(attempt, stop).await;
        if let Err(failure) = &result {
            let note = format!("Failed to create pod sandbox: {}", failure.message);
            self.context.recorder.pod(&self.model, Warning, "FailedCreatePodSandBox", note);
        }
        Outcome::Sandbox(result)
    }

    async fn sandbox(&self, attempt: u32, stop: Vec<String>) -> Result<(), Waiting> {
        let failed = |message: String| waiting("ContainerCreating", message);
        let runtime = &self.context.runtime;
        if !stop.is_empty() {
            let note = "Pod sandbox changed, it will be killed and re-created.";
            self.context.recorder.pod(&self.model, Normal, "SandboxChanged", note);
        }
        for id in stop {
            runtime.stop_sandbox(&id).await.map_err(|e| failed(runtime::message(&e)))?;
        }
        let config = self.sandbox_config(attempt).map_err(|e| failed(e.to_string()))?;
        fs::create_dir_all(&config.log_directory)
            .map_err(|e| failed(format!("{}: {e}", config.log_directory)))?;
        if let Some(cgroups) = &self.context.cgroups {
            let pids = self.context.config.kubelet.pod_pids_limit;
            let limits = pod_cgroup(&self.model.spec);
            cgroups.apply(self.model.qos, &self.model.uid, &limits, pids).map_err(|e| failed(chain(&e)))?;
        }
        let handler = self.runtime_handler().await.map_err(|e| failed(chain(&e)))?;
        runtime.run_sandbox(config, handler).await.map(drop).map_err(|e| failed(runtime::message(&e)))
    }

    async fn runtime_handler(&self) -> Result<String, ApiError> {
        use k8s_openapi::api::node::v1::RuntimeClass;
        match self.model.spec.runtime_class_name.as_deref() {
            None | Some("") => Ok(String::new()),
            Some(name) => Ok(self.context.api.get::<RuntimeClass>("runtimeclass", name).await?.handler),
        }
    }

    pub(crate) async fn pull_image(self, container: ContainerModel) -> Outcome {
        let name = container.name().to_owned();
        let result = match self.sandbox_config(0) {
            Ok(config) => self.context.images.ensure(&self.model, &container, config).await,
            Err(error) => Err(waiting("ErrImagePull", error.to_string())),
        };
        Outcome::Pulled { container: name, result }
    }

    pub(crate) async fn start_container(
        self,
        container: ContainerModel,
        image_ref: String,
        attempt: i32,
        after: Option<Timestamp>,
    ) -> Outcome {
        let name = container.name().to_owned();
        let result = self.start(&container, image_ref, attempt).await;
        if let Err(failure) = &result {
            let note = format!("Error: {}", failure.message);
            self.context.recorder.container(&self.model, &container, Warning, "Failed", note);
        }
        Outcome::Started { container: name, after, result }
    }

    async fn start(
        &self,
        container: &ContainerModel,
        image_ref: String,
        attempt: i32,
    ) -> Result<(), Waiting> {
        let config_error = |message: String| waiting("CreateContainerConfigError", message);
        let create_error = |message: String| waiting("CreateContainerError", message);
        let runtime = &self.context.runtime;
        let sandbox =
            self.observed.ready_sandbox().ok_or_else(|| create_error("pod sandbox is gone".to_owned()))?;
        let sandbox_config = self.sandbox_config(sandbox.attempt).map_err(|e| config_error(e.to_string()))?;
        let (image, environment) = tokio::join!(runtime.image(&image_ref), self.environment(container));
        let environment = environment.map_err(config_error)?;
        let image = image.map_err(|e| create_error(runtime::message(&e)))?;
        let image = image.ok_or_else(|| create_error(format!("image {image_ref} is gone")))?;
        security::verify_non_root(&self.model, &container.spec, &image)
            .map_err(|e| config_error(e.to_string()))?;
        self.pull_image_volumes(container, &sandbox_config).await?;
        let mounts = self.mounts(container, &environment, attempt).map_err(|e| config_error(chain(&e)))?;
        let devices =
            container_mounts::devices(&container.spec, &self.volumes).map_err(|e| config_error(chain(&e)))?;
        let target = container.target.as_ref().and_then(|t| self.observed.latest(t)).map(|c| c.id.clone());
        let inputs = ContainerInputs {
            attempt,
            environment,
            mounts,
            devices,
            image: &image,
            image_ref,
            target_id: target,
            seccomp: &self.context.seccomp,
            node_memory: self.context.node().memory_bytes,
            lowest_oom_score: self.context.lowest_oom_score,
            cfs_quota: self.context.config.kubelet.cpu_cfs_quota,
        };
        let config = config::config(&self.model, container, inputs);
        let logs = std::path::Path::new(&sandbox_config.log_directory).join(container.name());
        fs::create_dir_all(&logs).map_err(|e| create_error(format!("{}: {e}", logs.display())))?;
        let log_path = std::path::Path::new(&sandbox_config.log_directory).join(&config.log_path);
        let id = runtime.create_container(&sandbox.id, config, sandbox_config).await;
        let id = id.map_err(|e| create_error(runtime::message(&e)))?;
        self.context.recorder.container(&self.model, container, Normal, "Created", "Container created");
        let started = runtime.start_container(&id).await;
        started.map_err(|e| waiting("RunContainerError", runtime::message(&e)))?;
        self.context.recorder.container(&self.model, container, Normal, "Started", "Container started");
        self.link_log(container.name(), &id, &log_path);
        Ok(())
    }

    async fn pull_image_volumes(
        &self,
        container: &ContainerModel,
        config: &PodSandboxConfig,
    ) -> Result<(), Waiting> {
        for mount in container.spec.volume_mounts.iter().flatten() {
            let Some(VolumePath::Image { reference, pull_policy }) = self.volumes.paths.get(&mount.name)
            else {
                continue;
            };
            let mut source = container.clone();
            source.spec.image = Some(reference.clone());
            source.spec.image_pull_policy.clone_from(pull_policy);
            self.context.images.ensure(&self.model, &source, config.clone()).await?;
        }
        Ok(())
    }

    fn mounts(
        &self,
        container: &ContainerModel,
        environment: &[(String, String)],
        attempt: i32,
    ) -> Result<Vec<cri::v1::Mount>, container_mounts::MountError> {
        let aliases = self.model.spec.host_aliases.clone().unwrap_or_default();
        let hosts = if self.model.host_network() {
            let node = fs::read_to_string("/etc/hosts").unwrap_or_default();
            Some(hosts::from_node(&node, &aliases))
        } else {
            let ips = self.observed.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default();
            let hostname = hosts::pod_hostname(&self.model, &self.context.config.kubelet.cluster_domain).ok();
            hostname.filter(|_| !ips.is_empty()).map(|h| hosts::managed(&ips, &h, &aliases))
        };
        container_mounts::mounts(&MountInputs {
            pod_directory: &self.context.volumes.pod_directory(&self.model.uid),
            container: &container.spec,
            volumes: &self.volumes,
            environment,
            attempt,
            hosts,
        })
    }

    /// Collectors find logs by pod and container name; without the link the log is still there.
    fn link_log(&self, container: &str, id: &str, log: &std::path::Path) {
        let directory = self.context.container_logs();
        let link =
            directory.join(format!("{}_{}_{container}-{id}.log", self.model.name, self.model.namespace));
        let make = || -> io::Result<()> {
            fs::create_dir_all(&directory)?;
            std::os::unix::fs::symlink(log, &link)
        };
        if let Err(error) = make() {
            tracing::debug!(link = %link.display(), %error, "container log not linked");
        }
    }

    async fn environment(&self, container: &ContainerModel) -> Result<Vec<(String, String)>, String> {
        let (maps, secrets) = env::references(&container.spec);
        let (config_maps, secrets, services) =
            tokio::try_join!(
                collect(maps, |name| async move {
                    self.context.api.config_map(&self.model.namespace, &name).await
                }),
                collect(secrets, |name| async move {
                    self.context.api.secret(&self.model.namespace, &name).await
                }),
                self.services()
            )
            .map_err(|e| chain(&e))?;
        let sources = EnvSources { config_maps, secrets, services };
        let facts = self.context.pod_facts(self.model.host_network(), &self.observed);
        env::build(&self.model, &container.spec, &sources, &facts).map_err(|e| e.to_string())
    }

    async fn services(&self) -> Result<Vec<Service>, ApiError> {
        if self.context.api.client().is_none() {
            return Ok(Vec::new());
        }
        let failed = |e| ApiError::call("list", "services", e);
        let master = async {
            let api = self.context.api.namespaced::<Service>("default")?;
            api.get_opt("kubernetes").await.map_err(failed)
        };
        let own = async {
            if self.model.spec.enable_service_links == Some(false) {
                return Ok(Vec::new());
            }
            let api = self.context.api.namespaced::<Service>(&self.model.namespace)?;
            Ok(api.list(&ListParams::default()).await.map_err(failed)?.items)
        };
        let (master, mut services) = tokio::try_join!(master, own)?;
        services.extend(master);
        Ok(services)
    }

    pub(crate) async fn post_start(self, container: ContainerModel, id: String) -> Outcome {
        let name = container.name().to_owned();
        let ip = self.pod_ip();
        let result = match container.spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            Some(handler) => hooks::run(&self.context.runtime, handler, &container.spec, &id, &ip).await,
            None => Ok(()),
        };
        if let Err(error) = &result {
            let note = format!("PostStartHook failed: {error}");
            self.context.recorder.container(&self.model, &container, Warning, "FailedPostStartHook", note);
        }
        Outcome::Hooked { container: name, id, result }
    }

    fn pod_ip(&self) -> String {
        let facts = self.context.pod_facts(self.model.host_network(), &self.observed);
        facts.pod_ips.into_iter().next().unwrap_or_default()
    }

    pub(crate) async fn kill_container(
        self,
        container: String,
        id: String,
        grace: Duration,
        message: String,
        terminating: bool,
    ) -> Outcome {
        let begun = self.context.clock.monotonic();
        let known = self.model.container(&container);
        if let Some(model) = known {
            self.context.recorder.container(&self.model, model, Normal, "Killing", message);
            let hook = model.spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
            if let Some(hook) = hook.filter(|_| !grace.is_zero()) {
                let ip = self.pod_ip();
                let run = hooks::run(&self.context.runtime, hook, &model.spec, &id, &ip);
                if let Ok(Err(error)) = tokio::time::timeout(grace, run).await {
                    let note = format!("PreStopHook failed: {error}");
                    self.context.recorder.container(&self.model, model, Warning, "FailedPreStopHook", note);
                }
            }
        }
        // A process gets a moment even when the hook used the whole grace period.
        let least = Duration::from_secs(if terminating { 1 } else { 2 });
        let used = self.context.clock.monotonic().saturating_sub(begun);
        let left = grace.saturating_sub(used).max(least);
        let result = self.context.runtime.stop_container(&id, left).await.map_err(|e| runtime::message(&e));
        if let (Err(error), Some(model)) = (&result, known) {
            let note = format!("error killing container: {error}");
            self.context.recorder.container(&self.model, model, Warning, "FailedKillPod", note);
        }
        Outcome::Killed { container, id, result }
    }

    pub(crate) async fn resize(self, container: ContainerModel, id: String) -> Outcome {
        let result = self.resize_now(&container, &id).await;
        Outcome::Resized { container: container.name().to_owned(), result }
    }

    async fn resize_now(&self, container: &ContainerModel, id: &str) -> Result<(), String> {
        if let Some(cgroups) = &self.context.cgroups {
            let pids = self.context.config.kubelet.pod_pids_limit;
            let limits = pod_cgroup(&self.model.spec);
            cgroups.apply(self.model.qos, &self.model.uid, &limits, pids).map_err(|e| chain(&e))?;
        }
        let limits = super::resources::container_cgroup(&container.spec);
        let mut resources = sandbox::linux_resources(&limits);
        if limits.cpu_quota.is_none() {
            resources.cpu_quota = -1;
        }
        if limits.memory_bytes.is_none() {
            resources.memory_limit_in_bytes = -1;
        }
        self.context.runtime.update_resources(id, resources).await.map_err(|e| runtime::message(&e))
    }

    pub(crate) async fn remove_container(self, id: String) -> Outcome {
        if let Some(log) = self.observed.container(&id).map(|c| c.log_path.clone()).filter(|p| !p.is_empty())
        {
            // Rotated files go with the log; a missing one is what was wanted.
            fs::remove_file(log).ok();
        }
        if let Err(error) = self.context.runtime.remove_container(&id).await {
            tracing::warn!(container_id = id, error = %reconcile::chain(&error), "dead container not removed");
        }
        Outcome::Removed
    }

    /// Stops the sandboxes and releases volumes and cgroup; logs and dead containers stay.
    pub(crate) async fn tear_down(self) -> Outcome {
        Outcome::TornDown(self.tear_down_now().await)
    }

    async fn tear_down_now(&self) -> Result<(), String> {
        for sandbox in &self.observed.sandboxes {
            self.context.runtime.stop_sandbox(&sandbox.id).await.map_err(|e| runtime::message(&e))?;
        }
        self.context.volumes.tear_down(&self.model.uid).await.map_err(|e| chain(&e))?;
        if let Some(cgroups) = &self.context.cgroups {
            cgroups.remove(self.model.qos, &self.model.uid).map_err(|e| chain(&e))?;
        }
        Ok(())
    }

    /// Removes the last traces of a pod that is gone from its source.
    pub(crate) async fn purge(self) {
        for sandbox in &self.observed.sandboxes {
            if let Err(error) = self.context.runtime.remove_sandbox(&sandbox.id).await {
                tracing::warn!(sandbox = sandbox.id, error = %reconcile::chain(&error), "sandbox not removed");
            }
        }
        let (name, namespace) = (&self.model.name, &self.model.namespace);
        self.context.probe_counts.forget(namespace, name);
        let prefix = format!("{name}_{namespace}_");
        for entry in fs::read_dir(self.context.container_logs()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_file(entry.path()).ok();
            }
        }
        let logs = &self.context.config.kubelet.pod_logs_dir;
        // Already gone is as good.
        fs::remove_dir_all(sandbox::log_directory(logs, namespace, name, &self.model.uid)).ok();
    }
}

/// The named objects that exist.
async fn collect<K, F>(
    names: BTreeSet<String>,
    get: impl Fn(String) -> F,
) -> Result<BTreeMap<String, K>, ApiError>
where
    F: Future<Output = Result<K, ApiError>>,
{
    let mut found = BTreeMap::new();
    for name in names {
        match get(name.clone()).await {
            Ok(object) => {
                found.insert(name, object);
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
