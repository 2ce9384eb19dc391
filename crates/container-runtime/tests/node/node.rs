//! One runtime in a process of its own, and everything it made taken away again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use container_runtime::{Config, ImageStore, LoopbackNetwork, SupervisorCommand};
use cri::CriClient;
use cri::v1 as pb;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::image;

pub(crate) const SUPERVISOR: &str = "container-supervisor";
pub(crate) const SERVE: &str = "serve";

/// How long anything that should happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Serves the state directory given.
pub(crate) fn serve(args: &[String]) -> ExitCode {
    let [root] = args else { return ExitCode::FAILURE };
    let root = Path::new(root);
    tracing_subscriber::fmt().with_env_filter("info").with_writer(std::io::stderr).init();
    let config = Config {
        state_dir: root.join("state"),
        socket: root.join("cri.sock"),
        cgroup_root: format!("/{}", cgroup_name(root)),
        registry_config_dir: Some(root.join("certs.d")),
        supervisor: SupervisorCommand { program: "/proc/self/exe".into(), args: vec![SUPERVISOR.into()] },
        network: Arc::new(LoopbackNetwork),
        streaming_address: ([127, 0, 0, 1], 0).into(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let result = runtime.block_on(container_runtime::run(config, CancellationToken::new()));
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A group nobody else has.
fn cgroup_name(root: &Path) -> String {
    format!("cot-{}", root.file_name().unwrap().to_string_lossy().replace('.', ""))
}

/// A runtime and its client.
pub(crate) struct Node {
    pub(crate) root: TempDir,
    pub(crate) client: CriClient,
    child: Child,
}

impl Node {
    /// Starts a runtime that has the busybox image.
    pub(crate) async fn start() -> Self {
        let root = tempfile::Builder::new().prefix("cot-").tempdir().unwrap();
        // Users of pods have to get through to their files.
        fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let layout = root.path().join("layout");
        image::write_layout(&layout);
        ImageStore::open(&root.path().join("state")).unwrap().import(&layout).unwrap();
        let child = spawn(root.path());
        let client = connect(root.path()).await;
        Self { root, client, child }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// Kills the runtime as a crash would, and starts another.
    pub(crate) async fn crash(&mut self) {
        self.kill();
        self.child = spawn(self.root.path());
        self.client = connect(self.root.path()).await;
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.path().join("logs")
    }

    pub(crate) fn pod(&self, name: &str) -> pb::PodSandboxConfig {
        pb::PodSandboxConfig {
            metadata: Some(pb::PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "cot".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.logs().to_string_lossy().into_owned(),
            ..pb::PodSandboxConfig::default()
        }
    }

    pub(crate) async fn run_pod(&mut self, config: pb::PodSandboxConfig) -> String {
        let request = pb::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        self.client.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    pub(crate) async fn create(
        &mut self,
        pod: &str,
        config: pb::ContainerConfig,
    ) -> Result<String, cri::Status> {
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        Ok(self.client.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start_container(&mut self, id: &str) -> Result<(), cri::Status> {
        let request = pb::StartContainerRequest { container_id: id.to_owned() };
        self.client.runtime.start_container(request).await.map(drop)
    }

    /// Creates and starts.
    pub(crate) async fn launch(&mut self, pod: &str, config: pb::ContainerConfig) -> String {
        let id = self.create(pod, config).await.unwrap();
        self.start_container(&id).await.unwrap();
        id
    }

    pub(crate) async fn status(&mut self, id: &str) -> pb::ContainerStatus {
        let request = pb::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.client.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Waits for the end of a container.
    pub(crate) async fn ended(&mut self, id: &str) -> pb::ContainerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await;
            if status.state() == pb::ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "{id} still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs a shell script as a container's first process and answers how it ended and its log.
    pub(crate) async fn outcome(
        &mut self,
        pod: &str,
        config: pb::ContainerConfig,
    ) -> (pb::ContainerStatus, String) {
        let id = self.launch(pod, config).await;
        let status = self.ended(&id).await;
        let log = fs::read_to_string(&status.log_path).unwrap_or_default();
        (status, messages(&log))
    }

    pub(crate) async fn exec(&mut self, id: &str, script: &str) -> (i32, String) {
        let request = pb::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: ["sh", "-c", script].map(str::to_owned).into(),
            timeout: 10,
        };
        let response = self.client.runtime.exec_sync(request).await.unwrap().into_inner();
        let text = [response.stdout, response.stderr].concat();
        (response.exit_code, String::from_utf8(text).unwrap())
    }

    pub(crate) async fn stop_container(&mut self, id: &str, timeout: i64) {
        let request = pb::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.client.runtime.stop_container(request).await.unwrap();
    }

    pub(crate) async fn remove_pod(&mut self, id: &str) {
        let request = pb::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.client.runtime.stop_pod_sandbox(request).await.unwrap();
        let request = pb::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.client.runtime.remove_pod_sandbox(request).await.unwrap();
    }

    /// What is left on the machine of this runtime's pods: mounts, groups, processes.
    pub(crate) fn traces(&self) -> Vec<String> {
        let state = self.state();
        let state = state.to_string_lossy();
        let mut found = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let own = format!("{state}/mounts");
        found.extend(mounts.lines().filter(|l| l.contains(&*state) && !l.contains(&own)).map(str::to_owned));
        found.extend(
            self.cgroups().iter().flat_map(|directory| fs::read_dir(directory).unwrap()).filter_map(
                |entry| {
                    let path = entry.unwrap().path();
                    path.is_dir().then(|| path.display().to_string())
                },
            ),
        );
        for pid in self.supervisors() {
            found.push(format!("supervisor {pid}"));
        }
        for kind in ["sandboxes", "containers", "mounts"] {
            let entries = fs::read_dir(self.state().join(kind)).unwrap();
            found.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
        }
        found
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let name = cgroup_name(self.root.path());
        let roots = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path().join(&name));
        roots.chain([Path::new("/sys/fs/cgroup").join(&name)]).filter(|path| path.is_dir()).collect()
    }

    pub(crate) fn supervisors(&self) -> Vec<i32> {
        let state = self.state();
        let state = state.to_string_lossy();
        let pids = fs::read_dir("/proc").unwrap();
        let pids = pids.filter_map(|entry| entry.unwrap().file_name().to_string_lossy().parse::<i32>().ok());
        pids.filter(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.contains(SUPERVISOR) && command.contains(&*state)
        })
        .collect()
    }
}

impl Drop for Node {
    /// Also after a failed assertion nothing may stay.
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
        for directory in self.cgroups() {
            kill_below(&directory);
        }
        for pid in self.supervisors() {
            Command::new("kill").args(["-9", &pid.to_string()]).status().map(drop).unwrap_or_default();
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let state = self.state();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)).rev() {
            if Path::new(point).starts_with(&state) {
                Command::new("umount").args(["-l", point]).status().map(drop).unwrap_or_default();
            }
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        for directory in self.cgroups() {
            while !remove_groups(&directory) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn kill_below(directory: &Path) {
    let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines() {
        Command::new("kill").args(["-9", pid]).status().map(drop).unwrap_or_default();
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            kill_below(&entry.path());
        }
    }
}

fn remove_groups(directory: &Path) -> bool {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    fs::remove_dir(directory).is_ok() || !directory.exists()
}

fn spawn(root: &Path) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(root.join("runtime.log")).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .arg(SERVE)
        .arg(root)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

async fn connect(root: &Path) -> CriClient {
    let endpoint = format!("unix://{}", root.join("cri.sock").display());
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(mut client) = cri::connect(&endpoint).await
            && client.runtime.version(pb::VersionRequest::default()).await.is_ok()
        {
            return client;
        }
        assert!(Instant::now() < deadline, "the runtime does not serve");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A container that runs a shell script.
pub(crate) fn shell(name: &str, script: &str) -> pb::ContainerConfig {
    pb::ContainerConfig {
        metadata: Some(pb::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(pb::ImageSpec { image: image::BUSYBOX.into(), ..pb::ImageSpec::default() }),
        command: ["sh", "-c", script].map(str::to_owned).into(),
        log_path: format!("{name}.log"),
        linux: Some(pb::LinuxContainerConfig {
            security_context: Some(security()),
            ..pb::LinuxContainerConfig::default()
        }),
        ..pb::ContainerConfig::default()
    }
}

/// What kubelets say by default: processes are a container's own.
fn security() -> pb::LinuxContainerSecurityContext {
    pb::LinuxContainerSecurityContext {
        namespace_options: Some(pb::NamespaceOption {
            pid: pb::NamespaceMode::Container.into(),
            ..pb::NamespaceOption::default()
        }),
        ..pb::LinuxContainerSecurityContext::default()
    }
}

/// The messages of a log, streams and times left out.
pub(crate) fn messages(log: &str) -> String {
    let message = |line: &str| line.splitn(4, ' ').nth(3).map(str::to_owned);
    log.lines().filter_map(message).collect::<Vec<_>>().join("\n")
}
