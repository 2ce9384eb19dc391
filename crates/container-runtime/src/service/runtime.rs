//! CRI's runtime service.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cri::Status;
use cri::runtime_service_server::RuntimeService;
use cri::v1 as pb;
use futures::{Stream, StreamExt};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response};

use crate::container::{Container, Phase};
use crate::error::RuntimeError;
use crate::runtime::Runtime;
use crate::sandbox::{Sandbox, SandboxRecord};
use crate::streaming::{Io, StreamRequest, exec_sync};
use crate::supervisor::protocol::Request as SupervisorRequest;

const RUNTIME_NAME: &str = "coracle";

type Answer<T> = Result<Response<T>, Status>;

#[derive(Debug)]
pub(super) struct Service {
    runtime: Arc<Runtime>,
}

impl Service {
    pub(super) fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }

    fn running(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        let container = self.runtime.find_container(id)?;
        match container.phase() {
            Phase::Running { .. } => Ok(container),
            _ => {
                let message = format!("container {:?} is not running", container.id());
                Err(RuntimeError::Precondition { message })
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Runtime) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let runtime = Arc::clone(&self.runtime);
        let result = tokio::task::spawn_blocking(move || work(&runtime)).await;
        result.map_err(|error| Status::internal(error.to_string()))
    }

    fn chosen_containers(
        &self,
        id: &str,
        sandbox: &str,
        labels: &HashMap<String, String>,
    ) -> Vec<Arc<Container>> {
        let mut containers = self.runtime.containers();
        containers.retain(|container| {
            let record = container.record();
            record.id.starts_with(id)
                && record.sandbox.starts_with(sandbox)
                && has_labels(&record.config.labels, labels)
        });
        containers
    }

    fn chosen_sandboxes(&self, id: &str, labels: &HashMap<String, String>) -> Vec<Arc<Sandbox>> {
        let mut sandboxes = self.runtime.sandboxes();
        sandboxes.retain(|sandbox| {
            let record = sandbox.record();
            record.id.starts_with(id) && has_labels(&record.config.labels, labels)
        });
        sandboxes
    }
}

fn has_labels(labels: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

fn seconds(timeout: i64) -> Duration {
    Duration::from_secs(u64::try_from(timeout).unwrap_or(0))
}

fn missing(what: &str) -> Status {
    Status::invalid_argument(format!("{what} is missing"))
}

fn condition(kind: &str, problem: Option<String>) -> pb::RuntimeCondition {
    let reason = if problem.is_some() { format!("{kind}False") } else { String::new() };
    pb::RuntimeCondition {
        r#type: kind.to_owned(),
        status: problem.is_none(),
        reason: reason.replace("ReadyFalse", "NotReady"),
        message: problem.unwrap_or_default(),
    }
}

/// What only people read, as JSON.
fn sandbox_info(record: &SandboxRecord) -> HashMap<String, String> {
    let netns = format!("/proc/{}/ns/net", record.live.holder);
    let info = serde_json::json!({
        "pid": record.live.holder,
        "supervisorPid": record.live.supervisor,
        "cgroupPath": record.cgroup,
        "runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": netns}]}},
        "config": record.config,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

type Events = Pin<Box<dyn Stream<Item = Result<pb::ContainerEventResponse, Status>> + Send>>;

#[async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<pb::VersionRequest>) -> Answer<pb::VersionResponse> {
        Ok(Response::new(pb::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: RUNTIME_NAME.to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: cri::API_VERSION.to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<pb::RunPodSandboxRequest>,
    ) -> Answer<pb::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| missing("sandbox config"))?;
        let runtime = Arc::clone(&self.runtime);
        // A client that gives up must not leave half a sandbox.
        let work = async move { runtime.run_sandbox(config, request.runtime_handler).await };
        let pod_sandbox_id = self.detached(work).await?;
        Ok(Response::new(pb::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<pb::StopPodSandboxRequest>,
    ) -> Answer<pb::StopPodSandboxResponse> {
        let (runtime, id) = (Arc::clone(&self.runtime), request.into_inner().pod_sandbox_id);
        self.detached(async move { runtime.stop_sandbox(&id).await }).await?;
        Ok(Response::new(pb::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<pb::RemovePodSandboxRequest>,
    ) -> Answer<pb::RemovePodSandboxResponse> {
        let (runtime, id) = (Arc::clone(&self.runtime), request.into_inner().pod_sandbox_id);
        self.detached(async move { runtime.remove_sandbox(&id).await }).await?;
        Ok(Response::new(pb::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<pb::PodSandboxStatusRequest>,
    ) -> Answer<pb::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let record = self.runtime.find_sandbox(&request.pod_sandbox_id)?.record();
        let containers = self.runtime.containers_of(&record.id);
        Ok(Response::new(pb::PodSandboxStatusResponse {
            status: Some(record.status()),
            info: if request.verbose { sandbox_info(&record) } else { HashMap::new() },
            containers_statuses: containers.iter().map(|container| container.record().status()).collect(),
            timestamp: crate::runtime::now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<pb::ListPodSandboxRequest>,
    ) -> Answer<pb::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let sandboxes = self.chosen_sandboxes(&filter.id, &filter.label_selector);
        let mut items: Vec<_> = sandboxes.iter().map(|sandbox| sandbox.record().summary()).collect();
        if let Some(state) = filter.state {
            items.retain(|item| item.state == state.state);
        }
        Ok(Response::new(pb::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<pb::CreateContainerRequest>,
    ) -> Answer<pb::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| missing("container config"))?;
        let runtime = Arc::clone(&self.runtime);
        let work = async move { runtime.create_container(&request.pod_sandbox_id, config).await };
        let container_id = self.detached(work).await?;
        Ok(Response::new(pb::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<pb::StartContainerRequest>,
    ) -> Answer<pb::StartContainerResponse> {
        let (runtime, id) = (Arc::clone(&self.runtime), request.into_inner().container_id);
        self.detached(async move { runtime.start_container(&id).await }).await?;
        Ok(Response::new(pb::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<pb::StopContainerRequest>,
    ) -> Answer<pb::StopContainerResponse> {
        let request = request.into_inner();
        self.runtime.stop_container(&request.container_id, seconds(request.timeout)).await?;
        Ok(Response::new(pb::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<pb::RemoveContainerRequest>,
    ) -> Answer<pb::RemoveContainerResponse> {
        let (runtime, id) = (Arc::clone(&self.runtime), request.into_inner().container_id);
        self.detached(async move { runtime.remove_container(&id).await }).await?;
        Ok(Response::new(pb::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<pb::ListContainersRequest>,
    ) -> Answer<pb::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let chosen = self.chosen_containers(&filter.id, &filter.pod_sandbox_id, &filter.label_selector);
        let mut containers: Vec<_> = chosen.iter().map(|container| container.record().summary()).collect();
        if let Some(state) = filter.state {
            containers.retain(|container| container.state == state.state);
        }
        Ok(Response::new(pb::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<pb::ContainerStatusRequest>,
    ) -> Answer<pb::ContainerStatusResponse> {
        let request = request.into_inner();
        let record = self.runtime.find_container(&request.container_id)?.record();
        let info = match request.verbose {
            true => {
                let info =
                    serde_json::to_string(&record).map_err(|error| Status::internal(error.to_string()))?;
                HashMap::from([("info".to_owned(), info)])
            }
            false => HashMap::new(),
        };
        Ok(Response::new(pb::ContainerStatusResponse { status: Some(record.status()), info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<pb::UpdateContainerResourcesRequest>,
    ) -> Answer<pb::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let resources = request.linux.ok_or_else(|| missing("linux resources"))?;
        self.runtime.update_resources(&request.container_id, resources).await?;
        Ok(Response::new(pb::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<pb::ReopenContainerLogRequest>,
    ) -> Answer<pb::ReopenContainerLogResponse> {
        let container = self.running(&request.into_inner().container_id)?;
        let sandbox = self.runtime.find_sandbox(&container.sandbox())?;
        let reopen = SupervisorRequest::ReopenLog { container: container.id() };
        sandbox.client.call(&reopen).await.map_err(RuntimeError::from)?;
        Ok(Response::new(pb::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<pb::ExecSyncRequest>) -> Answer<pb::ExecSyncResponse> {
        let request = request.into_inner();
        let container = self.running(&request.container_id)?.id();
        let response = exec_sync(&self.runtime, container, request.cmd, seconds(request.timeout)).await?;
        Ok(Response::new(response))
    }

    async fn exec(&self, request: Request<pb::ExecRequest>) -> Answer<pb::ExecResponse> {
        let request = request.into_inner();
        let container = self.running(&request.container_id)?.id();
        let io =
            Io { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
        if io.tty && io.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        if !(io.stdin || io.stdout || io.stderr) {
            return Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set"));
        }
        let url = self.runtime.streaming.issue(StreamRequest::Exec { container, args: request.cmd, io })?;
        Ok(Response::new(pb::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<pb::AttachRequest>) -> Answer<pb::AttachResponse> {
        let request = request.into_inner();
        let container = self.running(&request.container_id)?;
        let tty = container.record().config.tty;
        let io = Io { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty };
        if tty && io.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        let request = StreamRequest::Attach { container: container.id(), io };
        Ok(Response::new(pb::AttachResponse { url: self.runtime.streaming.issue(request)? }))
    }

    async fn port_forward(
        &self,
        request: Request<pb::PortForwardRequest>,
    ) -> Answer<pb::PortForwardResponse> {
        let request = request.into_inner();
        let sandbox = self.runtime.find_sandbox(&request.pod_sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(Status::failed_precondition("sandbox is not running"));
        }
        let ports = request.port.iter().map(|&port| u16::try_from(port));
        let ports = ports
            .collect::<Result<_, _>>()
            .map_err(|_| Status::invalid_argument("a port is out of range"))?;
        let request = StreamRequest::PortForward { sandbox: sandbox.id(), ports };
        Ok(Response::new(pb::PortForwardResponse { url: self.runtime.streaming.issue(request)? }))
    }

    async fn container_stats(
        &self,
        request: Request<pb::ContainerStatsRequest>,
    ) -> Answer<pb::ContainerStatsResponse> {
        let container = self.runtime.find_container(&request.into_inner().container_id)?;
        let stats = self.blocking(move |runtime| runtime.container_stats(&container)).await?;
        Ok(Response::new(pb::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<pb::ListContainerStatsRequest>,
    ) -> Answer<pb::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut chosen = self.chosen_containers(&filter.id, &filter.pod_sandbox_id, &filter.label_selector);
        chosen.retain(|container| matches!(container.phase(), Phase::Running { .. }));
        let work = move |runtime: &Runtime| chosen.iter().map(|one| runtime.container_stats(one)).collect();
        let stats = self.blocking(work).await?;
        Ok(Response::new(pb::ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<pb::PodSandboxStatsRequest>,
    ) -> Answer<pb::PodSandboxStatsResponse> {
        let sandbox = self.runtime.find_sandbox(&request.into_inner().pod_sandbox_id)?;
        let stats = self.blocking(move |runtime| runtime.sandbox_stats(&sandbox)).await?;
        Ok(Response::new(pb::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<pb::ListPodSandboxStatsRequest>,
    ) -> Answer<pb::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut chosen = self.chosen_sandboxes(&filter.id, &filter.label_selector);
        chosen.retain(|sandbox| sandbox.is_ready());
        let work = move |runtime: &Runtime| chosen.iter().map(|one| runtime.sandbox_stats(one)).collect();
        let stats = self.blocking(work).await?;
        Ok(Response::new(pb::ListPodSandboxStatsResponse { stats }))
    }

    async fn update_runtime_config(
        &self,
        _: Request<pb::UpdateRuntimeConfigRequest>,
    ) -> Answer<pb::UpdateRuntimeConfigResponse> {
        // Addresses are the network provider's business.
        Ok(Response::new(pb::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        let conditions = vec![
            condition("RuntimeReady", None),
            condition("NetworkReady", self.runtime.config.network.not_ready()),
        ];
        let info = match request.into_inner().verbose {
            true => {
                let config = serde_json::json!({
                    "stateDir": self.runtime.layout.root,
                    "cgroupRoot": self.runtime.config.cgroup_root,
                    "capabilities": self.runtime.machine.capabilities,
                });
                HashMap::from([("config".to_owned(), config.to_string())])
            }
            false => HashMap::new(),
        };
        let features = pb::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true };
        Ok(Response::new(pb::StatusResponse {
            status: Some(pb::RuntimeStatus { conditions }),
            info,
            runtime_handlers: vec![pb::RuntimeHandler { name: String::new(), features: Some(features) }],
            features: Some(pb::RuntimeFeatures { supplemental_groups_policy: true }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<pb::CheckpointContainerRequest>,
    ) -> Answer<pb::CheckpointContainerResponse> {
        Err(RuntimeError::Unsupported { what: "checkpointing a container" }.into())
    }

    type GetContainerEventsStream = Events;

    async fn get_container_events(&self, _: Request<pb::GetEventsRequest>) -> Answer<Events> {
        let events = BroadcastStream::new(self.runtime.listen());
        let events = events.map(|event| {
            // The listener has to look at everything anew.
            event.map_err(|_| Status::data_loss("events were missed"))
        });
        let until = self.runtime.shutdown.clone().cancelled_owned();
        Ok(Response::new(Box::pin(events.take_until(until))))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<pb::ListMetricDescriptorsRequest>,
    ) -> Answer<pb::ListMetricDescriptorsResponse> {
        Err(RuntimeError::Unsupported { what: "listing metric descriptors" }.into())
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<pb::ListPodSandboxMetricsRequest>,
    ) -> Answer<pb::ListPodSandboxMetricsResponse> {
        Err(RuntimeError::Unsupported { what: "listing pod sandbox metrics" }.into())
    }

    async fn runtime_config(
        &self,
        _: Request<pb::RuntimeConfigRequest>,
    ) -> Answer<pb::RuntimeConfigResponse> {
        let linux = pb::LinuxRuntimeConfiguration { cgroup_driver: pb::CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(pb::RuntimeConfigResponse { linux: Some(linux) }))
    }
}

impl Service {
    /// Runs to the end, even when the client gives up.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
    ) -> Result<T, Status> {
        let result = self.runtime.tasks.spawn(work).await;
        result.map_err(|error| Status::internal(error.to_string()))?.map_err(Status::from)
    }
}
