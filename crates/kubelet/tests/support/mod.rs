//! A kubelet with a private containerd below it, in a network namespace of its own; all of it goes when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kubelet::Config;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) struct Node {
    pub(crate) directory: PathBuf,
    pub(crate) config: Config,
    containerd: Child,
    stop: CancellationToken,
    kubelet: Option<JoinHandle<Result<(), kubelet::KubeletError>>>,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e} (is it installed?)"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An image of nothing but busybox, in the form `docker save` writes.
fn image(directory: &Path, name: &str, entrypoint: &[&str]) -> PathBuf {
    let root = directory.join("root");
    for path in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for applet in [
        "sh", "sleep", "cat", "echo", "touch", "test", "ls", "stat", "id", "env", "hostname", "wget",
        "httpd", "true", "false",
    ] {
        if !root.join("bin").join(applet).exists() {
            fs::hard_link(root.join("bin/busybox"), root.join("bin").join(applet)).unwrap();
        }
    }
    let archive = directory.join("archive");
    fs::create_dir_all(&archive).unwrap();
    run(Command::new("tar")
        .args(["-C", root.to_str().unwrap(), "-cf"])
        .arg(archive.join("layer.tar"))
        .arg("."));
    let sum = Command::new("sha256sum").arg(archive.join("layer.tar")).output().unwrap();
    let digest = String::from_utf8(sum.stdout).unwrap().split(' ').next().unwrap().to_owned();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}});
    fs::write(archive.join("config.json"), config.to_string()).unwrap();
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(archive.join("manifest.json"), manifest.to_string()).unwrap();
    let path = directory.join("image.tar");
    run(Command::new("tar").args(["-C", archive.to_str().unwrap(), "-cf"]).arg(&path).arg("."));
    fs::remove_dir_all(archive).unwrap();
    path
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

const CONTAINERD: &str = r#"
version = 2
root = "@/root"
state = "@/state"
oom_score = 0
[grpc]
  address = "@/containerd.sock"
[ttrpc]
  address = "@/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "@/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#;

const CNI: &str = r#"{"cniVersion":"0.4.0","name":"cot","plugins":[{"type":"bridge","bridge":"cot0",
 "ipam":{"type":"host-local","dataDir":"@/ipam","ranges":[[{"subnet":"10.88.0.0/24"}]]}}]}"#;

impl Node {
    pub(crate) async fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("cot-kubelet-{name}-{}", std::process::id()));
        let text = directory.to_str().unwrap();
        for path in ["cni", "manifests", "image"] {
            fs::create_dir_all(directory.join(path)).unwrap();
        }
        fs::write(directory.join("containerd.toml"), CONTAINERD.replace('@', text)).unwrap();
        fs::write(directory.join("cni/10-cot.conflist"), CNI.replace('@', text)).unwrap();
        let log = fs::File::create(directory.join("containerd.log")).unwrap();
        let script = format!("ip link set lo up; exec containerd -c {text}/containerd.toml");
        // A network namespace of its own: bridges and addresses vanish with it.
        let containerd = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("unshare runs");
        let mut config = Config::new("node", directory.join("kubelet"));
        let kubelet = &mut config.kubelet;
        kubelet.container_runtime_endpoint = format!("unix://{text}/containerd.sock");
        kubelet.static_pod_path = Some(directory.join("manifests"));
        kubelet.address = "127.0.0.1".to_owned();
        kubelet.read_only_port = free_port();
        kubelet.port = free_port();
        kubelet.cgroup_root = format!("/cot-kubelet-{name}-{}", std::process::id());
        kubelet.pod_logs_dir = directory.join("logs/pods");
        kubelet.fail_swap_on = false;
        let mut node = Self { directory, config, containerd, stop: CancellationToken::new(), kubelet: None };
        node.until("containerd serves", || async { node.directory.join("containerd.sock").exists() }).await;
        node.import("registry.k8s.io/pause:3.9", &["/bin/sleep", "2147483647"]);
        node.import("docker.io/library/bb:1", &[]);
        node.start_kubelet();
        node
    }

    fn import(&self, name: &str, entrypoint: &[&str]) {
        let archive = image(&self.directory.join("image"), name, entrypoint);
        let socket = self.directory.join("containerd.sock");
        run(Command::new("ctr")
            .arg("-a")
            .arg(socket)
            .args(["-n", "k8s.io", "images", "import"])
            .arg(archive));
    }

    pub(crate) fn start_kubelet(&mut self) {
        self.stop = CancellationToken::new();
        self.kubelet = Some(tokio::spawn(kubelet::run(self.config.clone(), None, self.stop.clone())));
    }

    pub(crate) async fn stop_kubelet(&mut self) {
        self.stop.cancel();
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.await.unwrap().unwrap();
        }
    }

    pub(crate) fn write(&self, name: &str, manifest: &str) {
        let temporary = self.directory.join(name);
        fs::write(&temporary, manifest).unwrap();
        fs::rename(temporary, self.directory.join("manifests").join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.directory.join("manifests").join(name)).unwrap();
    }

    /// The pod as the kubelet shows it.
    pub(crate) async fn pod(&self, name: &str) -> Option<Value> {
        let list: Value = serde_json::from_str(&self.get("/pods").await?).ok()?;
        list["items"].as_array()?.iter().find(|p| p["metadata"]["name"] == name).cloned()
    }

    pub(crate) async fn get(&self, path: &str) -> Option<String> {
        let address = ("127.0.0.1", self.config.kubelet.read_only_port);
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }

    /// Waits until the pod is as wanted and returns it.
    pub(crate) async fn pod_until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let pod = self.pod(name).await;
            if let Some(pod) = pod.as_ref().filter(|p| wanted(p)) {
                return pod.clone();
            }
            assert!(Instant::now() < deadline, "{name}: not {what}: {pod:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn until<F: Future<Output = bool>>(&self, what: &str, holds: impl Fn() -> F) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds().await {
            assert!(Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The text of a container's log, without times.
    pub(crate) fn log(&self, pod: &Value, container: &str, attempt: u32) -> String {
        let metadata = &pod["metadata"];
        let text = |name: &str| metadata[name].as_str().unwrap().to_owned();
        let directory = format!("{}_{}_{}", text("namespace"), text("name"), text("uid"));
        let path =
            self.directory.join("logs/pods").join(directory).join(container).join(format!("{attempt}.log"));
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).fold(String::new(), |all, l| all + l + "\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        let socket = self.directory.join("containerd.sock");
        let ctr = |arguments: &[&str]| {
            let output =
                Command::new("ctr").arg("-a").arg(&socket).args(["-n", "k8s.io"]).args(arguments).output();
            output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
        };
        for task in ctr(&["task", "ls", "-q"]).lines() {
            ctr(&["task", "rm", "-f", task]);
        }
        for container in ctr(&["container", "ls", "-q"]).lines() {
            ctr(&["container", "rm", container]);
        }
        self.containerd.kill().ok();
        self.containerd.wait().ok();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = table
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|p| Path::new(p).starts_with(&self.directory));
        for point in below.collect::<Vec<_>>().into_iter().rev() {
            Command::new("umount").args(["-l", point]).output().ok();
        }
        let root = self.config.kubelet.cgroup_root.trim_start_matches('/').to_owned();
        // Killed processes leave their cgroups a moment later.
        for _ in 0..50 {
            let mut left = false;
            for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
                let path = hierarchy.path().join(&root);
                Command::new("find")
                    .arg(&path)
                    .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                    .output()
                    .ok();
                left |= path.exists();
            }
            if !left {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        fs::remove_dir_all(&self.directory).ok();
    }
}
