//! The container runtime by CRI v1: one method per call, each with a deadline.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use cri::v1::{self, ContainerConfig, PodSandboxConfig};
use cri::{CriClient, CriError, Status};

use crate::container::labels;
use crate::pod::observed::{ContainerObs, Observed, SandboxObs};

const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Pulls are watched by the runtime itself; this only bounds a runtime that hangs.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    client: CriClient,
    images: CriClient,
    /// The scheme of container ids, such as `containerd`.
    pub(crate) name: String,
    pub(crate) version: String,
}

/// An image and the user it wants to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) uid: Option<i64>,
    pub(crate) username: String,
    pub(crate) size: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct ExecOutput {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit_code: i32,
}

async fn call<T>(
    name: &'static str,
    limit: Duration,
    future: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CriError> {
    match tokio::time::timeout(limit, future).await {
        Ok(answer) => answer.map(tonic::Response::into_inner).map_err(CriError::call(name)),
        Err(_) => Err(CriError::call(name)(Status::deadline_exceeded("context deadline exceeded"))),
    }
}

impl Runtime {
    pub(crate) async fn connect(endpoint: &str, image_endpoint: &str) -> Result<Self, CriError> {
        let client = cri::connect(endpoint).await?;
        let images = match image_endpoint {
            "" => client.clone(),
            other if other == endpoint => client.clone(),
            other => cri::connect(other).await?,
        };
        let request = v1::VersionRequest { version: cri::API_VERSION.to_owned() };
        let version = call("Version", CALL_TIMEOUT, client.runtime.clone().version(request)).await?;
        Ok(Self { client, images, name: version.runtime_name, version: version.runtime_version })
    }

    pub(crate) async fn status(&self) -> Result<v1::StatusResponse, CriError> {
        let request = v1::StatusRequest { verbose: false };
        call("Status", CALL_TIMEOUT, self.client.runtime.clone().status(request)).await
    }

    pub(crate) async fn update_pod_cidr(&self, pod_cidr: &str) -> Result<(), CriError> {
        let network_config = Some(v1::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let runtime_config = Some(v1::RuntimeConfig { network_config });
        let request = v1::UpdateRuntimeConfigRequest { runtime_config };
        call("UpdateRuntimeConfig", CALL_TIMEOUT, self.client.runtime.clone().update_runtime_config(request))
            .await
            .map(|_| ())
    }

    /// Every sandbox and container of one pod.
    pub(crate) async fn observe(&self, uid: &str) -> Result<Observed, CriError> {
        let label_selector = [(labels::POD_UID.to_owned(), uid.to_owned())];
        let (sandboxes, containers) = tokio::try_join!(
            self.list_sandboxes(label_selector.clone().into()),
            self.list_containers(label_selector.into())
        )?;
        let sandboxes = sandboxes.into_iter().map(|s| self.observe_sandbox(s.id));
        let containers = containers.into_iter().map(|c| self.observe_container(c.id, c.pod_sandbox_id));
        let (sandboxes, containers) = tokio::try_join!(
            futures::future::try_join_all(sandboxes),
            futures::future::try_join_all(containers)
        )?;
        Ok(Observed::new(
            sandboxes.into_iter().flatten().collect(),
            containers.into_iter().flatten().collect(),
        ))
    }

    async fn observe_sandbox(&self, id: String) -> Result<Option<SandboxObs>, CriError> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id, verbose: false };
        let mut client = self.client.runtime.clone();
        let answer = call("PodSandboxStatus", CALL_TIMEOUT, client.pod_sandbox_status(request));
        match answer.await {
            Ok(answer) => Ok(answer.status.map(SandboxObs::from_cri)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn observe_container(&self, id: String, sandbox: String) -> Result<Option<ContainerObs>, CriError> {
        match self.container_status(&id).await {
            Ok(status) => Ok(status.map(|status| ContainerObs::from_cri(status, &sandbox))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn container_status(&self, id: &str) -> Result<Option<v1::ContainerStatus>, CriError> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let mut client = self.client.runtime.clone();
        let answer = call("ContainerStatus", CALL_TIMEOUT, client.container_status(request));
        Ok(answer.await?.status)
    }

    pub(crate) async fn list_sandboxes(
        &self,
        label_selector: BTreeMap<String, String>,
    ) -> Result<Vec<v1::PodSandbox>, CriError> {
        let label_selector = label_selector.into_iter().collect();
        let filter = Some(v1::PodSandboxFilter { label_selector, ..Default::default() });
        let request = v1::ListPodSandboxRequest { filter };
        let mut client = self.client.runtime.clone();
        let answer = call("ListPodSandbox", CALL_TIMEOUT, client.list_pod_sandbox(request));
        Ok(answer.await?.items)
    }

    pub(crate) async fn list_containers(
        &self,
        label_selector: BTreeMap<String, String>,
    ) -> Result<Vec<v1::Container>, CriError> {
        let label_selector = label_selector.into_iter().collect();
        let filter = Some(v1::ContainerFilter { label_selector, ..Default::default() });
        let request = v1::ListContainersRequest { filter };
        let mut client = self.client.runtime.clone();
        let answer = call("ListContainers", CALL_TIMEOUT, client.list_containers(request));
        Ok(answer.await?.containers)
    }

    pub(crate) async fn run_sandbox(
        &self,
        config: PodSandboxConfig,
        handler: String,
    ) -> Result<String, CriError> {
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        let mut client = self.client.runtime.clone();
        let answer = call("RunPodSandbox", CALL_TIMEOUT * 2, client.run_pod_sandbox(request));
        Ok(answer.await?.pod_sandbox_id)
    }

    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut client = self.client.runtime.clone();
        let answer = call("StopPodSandbox", CALL_TIMEOUT, client.stop_pod_sandbox(request));
        ignore_missing(answer.await)
    }

    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut client = self.client.runtime.clone();
        let answer = call("RemovePodSandbox", CALL_TIMEOUT, client.remove_pod_sandbox(request));
        ignore_missing(answer.await)
    }

    pub(crate) async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let mut client = self.client.runtime.clone();
        let answer = call("CreateContainer", CALL_TIMEOUT, client.create_container(request));
        Ok(answer.await?.container_id)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        call("StartContainer", CALL_TIMEOUT, self.client.runtime.clone().start_container(request))
            .await
            .map(|_| ())
    }

    pub(crate) async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        let mut client = self.client.runtime.clone();
        let answer = call("StopContainer", grace + CALL_TIMEOUT, client.stop_container(request));
        ignore_missing(answer.await)
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        let mut client = self.client.runtime.clone();
        let answer = call("RemoveContainer", CALL_TIMEOUT, client.remove_container(request));
        ignore_missing(answer.await)
    }

    pub(crate) async fn update_resources(
        &self,
        id: &str,
        linux: v1::LinuxContainerResources,
    ) -> Result<(), CriError> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        let mut client = self.client.runtime.clone();
        call("UpdateContainerResources", CALL_TIMEOUT, client.update_container_resources(request))
            .await
            .map(|_| ())
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        let mut client = self.client.runtime.clone();
        let answer = call("ReopenContainerLog", CALL_TIMEOUT, client.reopen_container_log(request));
        answer.await.map(|_| ())
    }

    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, CriError> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: seconds };
        let limit = if timeout.is_zero() { PULL_TIMEOUT } else { timeout + Duration::from_secs(5) };
        let answer = call("ExecSync", limit, self.client.runtime.clone().exec_sync(request)).await?;
        Ok(ExecOutput { stdout: answer.stdout, stderr: answer.stderr, exit_code: answer.exit_code })
    }

    pub(crate) async fn exec_url(&self, request: v1::ExecRequest) -> Result<String, CriError> {
        Ok(call("Exec", CALL_TIMEOUT, self.client.runtime.clone().exec(request)).await?.url)
    }

    pub(crate) async fn attach_url(&self, request: v1::AttachRequest) -> Result<String, CriError> {
        Ok(call("Attach", CALL_TIMEOUT, self.client.runtime.clone().attach(request)).await?.url)
    }

    pub(crate) async fn port_forward_url(&self, request: v1::PortForwardRequest) -> Result<String, CriError> {
        Ok(call("PortForward", CALL_TIMEOUT, self.client.runtime.clone().port_forward(request)).await?.url)
    }

    pub(crate) async fn image(&self, image: &str) -> Result<Option<Image>, CriError> {
        let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = v1::ImageStatusRequest { image: Some(spec), verbose: false };
        let answer =
            call("ImageStatus", CALL_TIMEOUT, self.images.image.clone().image_status(request)).await?;
        Ok(answer.image.map(|image| Image {
            id: image.id,
            uid: image.uid.map(|uid| uid.value),
            username: image.username,
            size: image.size,
        }))
    }

    pub(crate) async fn pull_image(
        &self,
        image: &str,
        auth: Option<v1::AuthConfig>,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let spec = v1::ImageSpec {
            image: image.to_owned(),
            user_specified_image: image.to_owned(),
            ..Default::default()
        };
        let request = v1::PullImageRequest { image: Some(spec), auth, sandbox_config: Some(sandbox_config) };
        Ok(call("PullImage", PULL_TIMEOUT, self.images.image.clone().pull_image(request)).await?.image_ref)
    }

    pub(crate) async fn list_images(&self) -> Result<Vec<v1::Image>, CriError> {
        let request = v1::ListImagesRequest { filter: None };
        Ok(call("ListImages", CALL_TIMEOUT, self.images.image.clone().list_images(request)).await?.images)
    }

    pub(crate) async fn remove_image(&self, id: &str) -> Result<(), CriError> {
        let image = Some(v1::ImageSpec { image: id.to_owned(), ..Default::default() });
        let request = v1::RemoveImageRequest { image };
        ignore_missing(
            call("RemoveImage", CALL_TIMEOUT, self.images.image.clone().remove_image(request)).await,
        )
    }

    pub(crate) async fn image_filesystems(&self) -> Result<v1::ImageFsInfoResponse, CriError> {
        let request = v1::ImageFsInfoRequest {};
        call("ImageFsInfo", CALL_TIMEOUT, self.images.image.clone().image_fs_info(request)).await
    }

    pub(crate) async fn container_stats(&self) -> Result<Vec<v1::ContainerStats>, CriError> {
        let request = v1::ListContainerStatsRequest { filter: None };
        let mut client = self.client.runtime.clone();
        let answer = call("ListContainerStats", CALL_TIMEOUT, client.list_container_stats(request));
        Ok(answer.await?.stats)
    }

    pub(crate) async fn sandbox_stats(&self) -> Result<Vec<v1::PodSandboxStats>, CriError> {
        let request = v1::ListPodSandboxStatsRequest { filter: None };
        let mut client = self.client.runtime.clone();
        let answer = call("ListPodSandboxStats", CALL_TIMEOUT, client.list_pod_sandbox_stats(request));
        Ok(answer.await?.stats)
    }

    pub(crate) async fn events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>, CriError> {
        let mut client = self.client.runtime.clone();
        let answer = client.get_container_events(v1::GetEventsRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(CriError::call("GetContainerEvents"))
    }
}

fn ignore_missing<T>(answer: Result<T, CriError>) -> Result<(), CriError> {
    match answer {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A runtime error as upstream shows it on pods.
pub(crate) fn message(error: &CriError) -> String {
    match error {
        CriError::Call { source, .. } => {
            format!("rpc error: code = {:?} desc = {}", source.code(), source.message())
        }
        other => crate::api::chain(other),
    }
}
