//! Following supervisors, and finding everything again after a restart.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use cri::v1::ContainerEventType;
use tracing::{info, warn};

use crate::container::{Container, ContainerRecord, FILE as CONTAINER_FILE, Phase};
use crate::error::{RuntimeError, chain};
use crate::runtime::{Runtime, now, read_json};
use crate::sandbox::{FILE as SANDBOX_FILE, Sandbox, SandboxRecord};
use crate::supervisor::EXIT_FILE;
use crate::supervisor::client::{ClientError, Event, Talk};
use crate::supervisor::protocol::{ContainerState, Exit, Reply, Request};

impl Runtime {
    /// Loads what is on disk and joins the supervisors that are still there.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<(), RuntimeError> {
        for record in self.load::<SandboxRecord>("sandboxes", SANDBOX_FILE)? {
            let directory = self.layout.sandbox(&record.id);
            self.insert_sandbox(record.id.clone(), Arc::new(Sandbox::new(record, &directory)));
        }
        for record in self.load::<ContainerRecord>("containers", CONTAINER_FILE)? {
            self.insert_container(record.id.clone(), Arc::new(Container::new(record)));
        }
        for sandbox in self.sandboxes() {
            if !sandbox.is_ready() {
                self.abandon(&sandbox)?;
                continue;
            }
            match self.join(&sandbox).await {
                Ok(talk) => {
                    info!(sandbox = %sandbox.id(), "sandbox found again");
                    self.follow_talk(sandbox, talk);
                }
                Err(error) => {
                    warn!(sandbox = %sandbox.id(), error = %chain(&error), "sandbox lost");
                    self.abandon(&sandbox)?;
                }
            }
        }
        self.remove_orphans();
        Ok(())
    }

    /// Reads the records in the directories of `kind`. A directory without one is of something half made.
    fn load<T: serde::de::DeserializeOwned>(&self, kind: &str, file: &str) -> Result<Vec<T>, RuntimeError> {
        let root = self.layout.root.join(kind);
        let mut records = Vec::new();
        for entry in fs::read_dir(&root).map_err(RuntimeError::file("read", &root))? {
            let path = entry.map_err(RuntimeError::file("read", &root))?.path();
            match read_json(&path.join(file)) {
                Ok(record) => records.push(record),
                Err(RuntimeError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    self.remove_leftovers(&path);
                }
                Err(error) => {
                    warn!(path = %path.display(), error = %chain(&error), "a record is not readable")
                }
            }
        }
        Ok(records)
    }

    fn remove_leftovers(&self, path: &Path) {
        let removed = crate::machine::unmount(&path.join("shm"))
            .and_then(|()| fs::remove_dir_all(path).map_err(RuntimeError::file("remove", path)));
        if let Err(error) = removed {
            warn!(path = %path.display(), error = %chain(&error), "leftovers stay");
        }
    }

    /// Ends containers whose sandbox is gone without a trace of their own.
    fn remove_orphans(&self) {
        for container in self.containers() {
            let record = container.record();
            if self.find_sandbox(&record.sandbox).is_ok() {
                continue;
            }
            self.forget_container(&record.id);
            self.remove_leftovers(&self.layout.container(&record.id));
            if let Err(error) = self.cgroups.remove(&record.cgroup) {
                warn!(container = %record.id, error = %chain(&error), "control groups stay");
            }
        }
    }

    async fn join(&self, sandbox: &Sandbox) -> Result<Talk, ClientError> {
        let mut talk = sandbox.client.open(&Request::Watch).await?;
        let Reply::States { containers } = talk.reader.reply().await? else {
            return Err(ClientError::Unexpected);
        };
        if let Err(error) = self.adopt(sandbox, &containers) {
            warn!(sandbox = %sandbox.id(), error = %chain(&error), "states of containers are not kept");
        }
        Ok(talk)
    }

    /// Takes over what a supervisor says of its containers.
    fn adopt(&self, sandbox: &Sandbox, states: &[ContainerState]) -> Result<(), RuntimeError> {
        for container in self.containers_of(&sandbox.id()) {
            let id = container.id();
            let directory = self.layout.container(&id);
            match states.iter().find(|state| state.container == id) {
                Some(ContainerState { exit: Some(exit), started_at, .. }) => {
                    container
                        .advance(&directory, Phase::ended(*started_at, exit), |phase| !phase.is_exited())?;
                }
                Some(state) => {
                    let running = Phase::Running { pid: state.pid, started_at: state.started_at };
                    container.advance(&directory, running, |phase| !phase.is_exited())?;
                }
                None => self.settle(&container, &directory)?,
            }
        }
        Ok(())
    }

    /// Follows the sandbox's supervisor until one of them ends.
    pub(crate) fn follow(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        let runtime = Arc::clone(self);
        self.tasks.spawn(async move {
            match sandbox.client.open(&Request::Watch).await {
                Ok(talk) => runtime.watch(sandbox, talk).await,
                Err(error) => runtime.lose(&sandbox, &error).await,
            }
        });
    }

    fn follow_talk(self: &Arc<Self>, sandbox: Arc<Sandbox>, talk: Talk) {
        let runtime = Arc::clone(self);
        self.tasks.spawn(async move { runtime.watch(sandbox, talk).await });
    }

    async fn watch(self: Arc<Self>, sandbox: Arc<Sandbox>, mut talk: Talk) {
        loop {
            let event = tokio::select! {
                event = talk.reader.next() => event,
                () = self.shutdown.cancelled() => return,
            };
            match event {
                Ok(Event::Reply(Reply::ContainerExited { container, exit })) => self.ended(&container, &exit),
                Ok(_) => {}
                Err(error) => return self.lose(&sandbox, &error).await,
            }
        }
    }

    fn ended(&self, id: &str, exit: &Exit) {
        let Ok(container) = self.find_container(id) else { return };
        let started_at = match container.phase() {
            Phase::Running { started_at, .. } => started_at,
            _ => exit.finished_at,
        };
        let ended = Phase::ended(started_at, exit);
        let kept = container.advance(&self.layout.container(id), ended, |phase| !phase.is_exited());
        if let Err(error) = kept {
            // The supervisor keeps it too.
            warn!(container = %id, error = %chain(&error), "the end of a container is not kept");
        }
        info!(container = %id, code = exit.code, oom_killed = exit.oom_killed, "container ended");
        self.publish(ContainerEventType::ContainerStoppedEvent, &container);
    }

    /// The supervisor is gone. Unless that was wanted, so are its containers.
    async fn lose(self: &Arc<Self>, sandbox: &Arc<Sandbox>, error: &ClientError) {
        let _stopping = sandbox.stopping.lock().await;
        if !sandbox.is_ready() {
            return;
        }
        warn!(sandbox = %sandbox.id(), error = %chain(error), "the supervisor of a pod died");
        if let Err(error) = self.abandon(sandbox) {
            warn!(sandbox = %sandbox.id(), error = %chain(&error), "the end of a pod is not kept");
        }
        for container in self.containers_of(&sandbox.id()) {
            self.publish(ContainerEventType::ContainerStoppedEvent, &container);
        }
        let id = sandbox.id();
        self.publish_for(ContainerEventType::ContainerStoppedEvent, id.clone(), &id);
    }

    /// Settles a sandbox without a supervisor: nothing of it runs on.
    fn abandon(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let id = sandbox.id();
        for container in self.containers_of(&id) {
            let record = container.record();
            if !record.phase.is_exited() {
                self.cgroups.kill(&record.cgroup, &record.id);
            }
            self.settle(&container, &self.layout.container(&record.id))?;
        }
        sandbox.update(&self.layout.sandbox(&id), |live| {
            live.ready = false;
            live.holder = 0;
            live.supervisor = 0;
        })
    }

    /// Gives a container that does not run the end that is on record, or none that anyone saw.
    fn settle(&self, container: &Container, directory: &Path) -> Result<(), RuntimeError> {
        let started_at = match container.phase() {
            Phase::Created | Phase::Exited { .. } => return Ok(()),
            Phase::Starting => 0,
            Phase::Running { started_at, .. } => started_at,
        };
        let ended = match read_json::<Exit>(&directory.join(EXIT_FILE)) {
            Ok(exit) => Phase::ended(started_at, &exit),
            Err(_) => Phase::unknown(started_at, now()),
        };
        container.advance(directory, ended, |phase| !phase.is_exited()).map(drop)
    }
}

/// How long killed processes may take to leave their control groups.
const RESET_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Ends what is left of a state directory's pods.
pub(crate) fn reset(state_dir: &Path) -> Result<(), RuntimeError> {
    let Ok(root) = state_dir.canonicalize() else { return Ok(()) };
    let layout = crate::machine::Layout { root };
    let cgroups = crate::cgroup::Hierarchies::detect()?;
    let mut groups = Vec::new();
    for record in records::<ContainerRecord>(&layout.root.join("containers"), CONTAINER_FILE)? {
        cgroups.kill(&record.cgroup, &record.id);
        groups.push(record.cgroup);
    }
    for record in records::<SandboxRecord>(&layout.root.join("sandboxes"), SANDBOX_FILE)? {
        kill_supervisor(record.live.supervisor, &layout.sandbox(&record.id));
        crate::machine::unmount(&layout.shm(&record.id))?;
        groups.extend(Some(record.cgroup).filter(|_| record.owns_cgroup));
    }
    let deadline = std::time::Instant::now() + RESET_TIMEOUT;
    for group in groups {
        loop {
            match cgroups.remove(&group) {
                Err(RuntimeError::File { source, .. })
                    if source.kind() == ErrorKind::ResourceBusy && std::time::Instant::now() < deadline =>
                {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                result => break result?,
            }
        }
    }
    crate::machine::unmount(&layout.mounts())
}

/// The readable records of one kind.
fn records<T: serde::de::DeserializeOwned>(directory: &Path, file: &str) -> Result<Vec<T>, RuntimeError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(RuntimeError::file("read", directory))?,
    };
    Ok(entries.flatten().filter_map(|entry| read_json(&entry.path().join(file)).ok()).collect())
}

/// Kills a supervisor, if the process is still that.
fn kill_supervisor(pid: i32, directory: &Path) {
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if pid > 1 && command.split('\0').any(|arg| Path::new(arg) == directory) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .unwrap_or_default();
    }
}
