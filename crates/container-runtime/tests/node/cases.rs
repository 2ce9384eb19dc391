//! The cases.

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use cri::v1 as pb;

use crate::node::{Node, PATIENCE, messages, shell};

type Case = fn() -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// Every case and its name.
        pub(crate) fn all() -> Vec<(&'static str, Case)> {
            vec![$((stringify!($name), || Box::pin($name()))),*]
        }
    };
}

cases! {
    a_container_runs_logs_and_ends,
    nothing_stays_of_a_removed_pod,
    containers_survive_the_runtime,
    security_contexts_are_enforced,
    limits_are_set_changed_and_counted,
    a_container_without_memory_is_oom_killed,
    bad_commands_fail_to_start,
    processes_are_shared_when_asked,
    pods_may_have_user_namespaces,
    pods_may_be_on_the_nodes_own_namespaces,
    mounts_are_what_was_asked_for,
    terminals_and_input_reach_the_container,
    streams_go_over_websocket,
    a_killed_supervisor_takes_its_pod,
    logs_are_reopened_and_events_told,
    images_are_removed_and_exported,
    images_are_pulled_through_mirrors,
    a_reset_leaves_nothing,
    starting_is_quick_and_supervisors_are_small,
}

fn security_of(config: &mut pb::ContainerConfig) -> &mut pb::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

async fn security_contexts_are_enforced() {
    let mut node = Node::start().await;
    let mut config = node.pod("secure");
    config.linux = Some(pb::LinuxPodSandboxConfig {
        sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned())].into(),
        ..pb::LinuxPodSandboxConfig::default()
    });
    let pod = node.run_pod(config).await;
    let script = "id -u; id -g; id -G; grep CapBnd /proc/self/status; grep NoNewPrivs /proc/self/status; \
        grep Seccomp: /proc/self/status; touch /x 2>&1; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
        unshare -m true 2>&1; mount -t tmpfs x /tmp 2>&1; cat /proc/keys | wc -c";
    let mut container = shell("main", script);
    let security = security_of(&mut container);
    security.run_as_user = Some(pb::Int64Value { value: 1000 });
    security.supplemental_groups = vec![77];
    security.readonly_rootfs = true;
    security.no_new_privs = true;
    security.masked_paths = vec!["/proc/keys".into(), "/proc/scsi".into()];
    security.readonly_paths = vec!["/proc/sys".into()];
    security.capabilities =
        Some(pb::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    security.seccomp = Some(pb::SecurityProfile::default());
    let (status, log) = node.outcome(&pod, container).await;
    let expected = "1000\n1000\n1000 77 2000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
        touch: /x: Read-only file system\n77\nunshare: unshare(0x20000): Operation not permitted\n\
        mount: permission denied (are you root?)\n0";
    assert_eq!(log, expected);
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1000, vec![77, 1000, 2000]));

    // What is executed later is as confined, with no_new_privs or without.
    let mut container = shell("later", "sleep 1000");
    security_of(&mut container).seccomp = Some(pb::SecurityProfile::default());
    let later = node.launch(&pod, container).await;
    let (code, text) = node
        .exec(&later, "grep Seccomp: /proc/self/status; unshare -m true; grep CapEff /proc/self/status")
        .await;
    assert_eq!(code, 0);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.contains(&"Seccomp:\t2") && text.contains("Operation not permitted"), "{text}");
    assert!(text.contains("CapEff:\t00000000a80425fb"), "{text}");

    let mut container = shell("lost", "true");
    security_of(&mut container).seccomp = Some(pb::SecurityProfile {
        profile_type: pb::security_profile::ProfileType::Localhost.into(),
        localhost_ref: "/nonexistent/profile.json".into(),
    });
    assert!(node.create(&pod, container).await.is_err(), "a missing profile is ignored");

    let mut container = shell("privileged", "mount -t tmpfs x /tmp && grep Seccomp: /proc/self/status");
    security_of(&mut container).privileged = true;
    let (status, log) = node.outcome(&pod, container).await;
    assert_eq!((status.exit_code, log.as_str()), (0, "Seccomp:\t0"));
    node.remove_pod(&pod).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

async fn limits_are_set_changed_and_counted() {
    let mut node = Node::start().await;
    let config = node.pod("small");
    let pod = node.run_pod(config).await;
    let mut container = shell("main", "while true; do sleep 0.1; done");
    container.linux.as_mut().unwrap().resources = Some(pb::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: -998,
        ..pb::LinuxContainerResources::default()
    });
    let id = node.launch(&pod, container).await;
    let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; \
        cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max";
    let (_, text) = node.exec(&id, limits).await;
    assert!(text.contains("67108864") && text.contains("50000"), "{text}");
    let linux = pb::LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
    let request = pb::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..pb::UpdateContainerResourcesRequest::default()
    };
    node.client.runtime.update_container_resources(request).await.unwrap();
    let (_, text) = node.exec(&id, limits).await;
    assert!(text.contains("134217728"), "{text}");
    let resources = node.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!((resources.memory_limit_in_bytes, resources.cpu_shares), (128 << 20, 512));
    let request = pb::ContainerStatsRequest { container_id: id };
    let stats = node.client.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    let request = pb::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let stats = node.client.runtime.pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert_eq!(stats.linux.unwrap().containers.len(), 1);
    node.remove_pod(&pod).await;
}

async fn a_container_without_memory_is_oom_killed() {
    let mut node = Node::start().await;
    let config = node.pod("small");
    let pod = node.run_pod(config).await;
    let mut container = shell("main", "exec tail /dev/zero");
    container.linux.as_mut().unwrap().resources =
        Some(pb::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    let (status, _) = node.outcome(&pod, container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.remove_pod(&pod).await;
}

async fn bad_commands_fail_to_start() {
    let mut node = Node::start().await;
    let config = node.pod("bad");
    let pod = node.run_pod(config).await;
    for (name, command, complaint) in [
        ("missing", "nosuch", "not found"),
        ("plain", "/etc/passwd", "permission"),
        ("directory", "/etc", "permission"),
    ] {
        let mut container = shell(name, "");
        container.command = vec![command.into()];
        let id = node.create(&pod, container).await.unwrap();
        let error = node.start_container(&id).await.unwrap_err();
        assert!(error.message().contains(complaint), "{}", error.message());
        let status = node.status(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    }
    let mut container = shell("image", "true");
    container.image = Some(pb::ImageSpec { image: "nosuch:1".into(), ..pb::ImageSpec::default() });
    assert_eq!(node.create(&pod, container).await.unwrap_err().code(), cri::Code::NotFound);
    let id = node.launch(&pod, shell("good", "sleep 1000")).await;
    let request = |cmd: &[&str], timeout| pb::ExecSyncRequest {
        container_id: id.clone(),
        cmd: cmd.iter().map(|part| (*part).to_owned()).collect(),
        timeout,
    };
    let error = node.client.runtime.exec_sync(request(&["nosuch"], 5)).await.unwrap_err();
    assert!(error.message().contains("executable file not found in $PATH"), "{}", error.message());
    let error = node.client.runtime.exec_sync(request(&["sleep", "100"], 1)).await.unwrap_err();
    assert_eq!(error.code(), cri::Code::DeadlineExceeded);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, processes) = node.exec(&id, "ps -o args").await;
        if !processes.lines().any(|line| line.trim() == "sleep 100") {
            break;
        }
        assert!(Instant::now() < deadline, "a command outlives its timeout: {processes}");
    }
    node.remove_pod(&pod).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

async fn processes_are_shared_when_asked() {
    let mut node = Node::start().await;
    let mut config = node.pod("shared");
    let options = pb::NamespaceOption { pid: pb::NamespaceMode::Pod.into(), ..Default::default() };
    config.linux = Some(pb::LinuxPodSandboxConfig {
        security_context: Some(pb::LinuxSandboxSecurityContext {
            namespace_options: Some(options.clone()),
            ..Default::default()
        }),
        ..pb::LinuxPodSandboxConfig::default()
    });
    let pod = node.run_pod(config).await;
    let mut first = shell("first", "exec sleep 1234");
    security_of(&mut first).namespace_options = Some(options.clone());
    let first = node.launch(&pod, first).await;
    let mut second =
        shell("second", "until ps -o args | grep -qx 'sleep 1234'; do sleep 0.05; done; echo $$");
    security_of(&mut second).namespace_options = Some(options);
    let (status, log) = node.outcome(&pod, second).await;
    assert_eq!(status.exit_code, 0, "{log}");
    assert_ne!(log, "1");
    // A debugger sees the processes of the container it is for.
    let mut target = shell("target", "ps -o args | grep -qx 'sleep 1234'");
    security_of(&mut target).namespace_options = Some(pb::NamespaceOption {
        pid: pb::NamespaceMode::Target.into(),
        target_id: first.clone(),
        ..pb::NamespaceOption::default()
    });
    assert_eq!(node.outcome(&pod, target).await.0.exit_code, 0);
    node.stop_container(&first, 0).await;
    node.remove_pod(&pod).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

async fn pods_may_have_user_namespaces() {
    let mut node = Node::start().await;
    let mut config = node.pod("users");
    let map = pb::IdMapping { host_id: 700_000, container_id: 0, length: 65_536 };
    let options = pb::NamespaceOption {
        pid: pb::NamespaceMode::Container.into(),
        userns_options: Some(pb::UserNamespace {
            mode: pb::NamespaceMode::Pod.into(),
            uids: vec![map],
            gids: vec![map],
        }),
        ..pb::NamespaceOption::default()
    };
    config.linux = Some(pb::LinuxPodSandboxConfig {
        security_context: Some(pb::LinuxSandboxSecurityContext {
            namespace_options: Some(options.clone()),
            ..Default::default()
        }),
        ..pb::LinuxPodSandboxConfig::default()
    });
    let pod = node.run_pod(config).await;
    let script = "cat /proc/self/uid_map; stat -c %u /bin/busybox; touch /new && stat -c %u /new; sleep 1000";
    let mut container = shell("main", script);
    security_of(&mut container).namespace_options = Some(options);
    let id = node.launch(&pod, container).await;
    let (code, text) = node
        .exec(&id, "until [ -e /new ]; do sleep 0.02; done; id -u; cat /new && head -c 10 /proc/self/uid_map")
        .await;
    assert_eq!((code, text.as_str()), (0, "0\n         0"));
    let log = messages(&fs::read_to_string(node.status(&id).await.log_path).unwrap());
    let log: Vec<String> =
        log.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(log, ["0 700000 65536", "0", "0"]);
    node.remove_pod(&pod).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

async fn pods_may_be_on_the_nodes_own_namespaces() {
    let mut node = Node::start().await;
    let mut config = node.pod("host");
    let options = pb::NamespaceOption {
        network: pb::NamespaceMode::Node.into(),
        pid: pb::NamespaceMode::Node.into(),
        ipc: pb::NamespaceMode::Node.into(),
        ..pb::NamespaceOption::default()
    };
    config.linux = Some(pb::LinuxPodSandboxConfig {
        security_context: Some(pb::LinuxSandboxSecurityContext {
            namespace_options: Some(options.clone()),
            ..Default::default()
        }),
        ..pb::LinuxPodSandboxConfig::default()
    });
    let pod = node.run_pod(config).await;
    let script = "for n in net pid ipc uts mnt; do readlink /proc/self/ns/$n; done; sleep 1234 & sleep 0.1";
    let mut container = shell("main", script);
    security_of(&mut container).namespace_options = Some(options);
    let (status, log) = node.outcome(&pod, container).await;
    assert_eq!(status.exit_code, 0, "{log}");
    let ours = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    let log: Vec<&str> = log.lines().collect();
    let names = ["net", "pid", "ipc", "uts", "mnt"].map(ours);
    assert_eq!(log[..4], names[..4]);
    assert_ne!(log[4], names[4]);
    // What its first process left behind went with it.
    node.remove_pod(&pod).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

async fn mounts_are_what_was_asked_for() {
    let mut node = Node::start().await;
    let mut config = node.pod("mounts");
    config.dns_config = Some(pb::DnsConfig { servers: vec!["10.0.0.10".into()], ..pb::DnsConfig::default() });
    let pod = node.run_pod(config).await;
    let volume = node.root.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("f"), "data").unwrap();
    let mount = |path: &str, readonly| pb::Mount {
        container_path: path.into(),
        host_path: volume.to_string_lossy().into_owned(),
        readonly,
        ..pb::Mount::default()
    };
    let image = pb::Mount {
        container_path: "/image".into(),
        image: Some(pb::ImageSpec { image: crate::image::BUSYBOX.into(), ..pb::ImageSpec::default() }),
        ..pb::Mount::default()
    };
    let script = "cat /rw/f /ro/f; echo; echo more > /rw/g; touch /ro/h 2>&1; cat /image/etc/added; echo; \
        touch /image/x 2>&1; cat /etc/resolv.conf /etc/hostname; echo x > /dev/shm/x && df -h /dev/shm | grep -c shm";
    let mut container = shell("main", script);
    container.mounts = vec![
        mount("/rw", false),
        mount("/ro", true),
        pb::Mount { recursive_read_only: true, ..mount("/rro", true) },
        image,
    ];
    let (_, log) = node.outcome(&pod, container).await;
    let expected = "datadata\ntouch: /ro/h: Read-only file system\nabove\ntouch: /image/x: Read-only file system\n\
        nameserver 10.0.0.10\nmounts\n1";
    assert_eq!(log, expected);
    assert_eq!(fs::read_to_string(volume.join("g")).unwrap(), "more\n");
    // Shared memory is the pod's.
    let (_, log) = node.outcome(&pod, shell("other", "cat /dev/shm/x")).await;
    assert_eq!(log, "x");
    node.remove_pod(&pod).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

async fn a_container_runs_logs_and_ends() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let pod = node.run_pod(config).await;
    let script = "hostname; cat /etc/added; echo $FROM_IMAGE; ls /etc/gone 2>/dev/null; echo oops >&2; printf part; exit 3";
    let (status, log) = node.outcome(&pod, shell("main", script)).await;
    assert_eq!(log, "web\naboveyes\noops\npart");
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at);
    let text = fs::read_to_string(&status.log_path).unwrap();
    assert!(text.contains(" stderr F oops\n") && text.ends_with(" stdout P part\n"), "{text}");
    node.remove_pod(&pod).await;
}

async fn nothing_stays_of_a_removed_pod() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let pod = node.run_pod(config).await;
    let first = node.launch(&pod, shell("first", "trap 'exit 0' TERM; sleep 1000 & wait")).await;
    node.launch(&pod, shell("second", "trap '' TERM; sleep 1000 & wait; sleep 1000")).await;
    node.create(&pod, shell("third", "true")).await.unwrap();
    let (code, _) = node.exec(&first, "exit 5").await;
    assert_eq!(code, 5);
    let began = Instant::now();
    node.stop_container(&first, 30).await;
    assert!(began.elapsed() < Duration::from_secs(29));
    node.remove_pod(&pod).await;
    assert_eq!(node.traces(), Vec::<String>::new());
    // Both are done already, and said to be.
    node.remove_pod(&pod).await;
}

async fn containers_survive_the_runtime() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let pod = node.run_pod(config).await;
    let steady =
        node.launch(&pod, shell("steady", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done")).await;
    let brief = node.launch(&pod, shell("brief", "until [ -e /tmp/go ]; do sleep 0.05; done; exit 7")).await;
    let before = node.status(&steady).await;
    node.exec(&brief, "touch /tmp/go").await;
    node.crash().await;
    assert_eq!(node.ended(&brief).await.exit_code, 7);
    let after = node.status(&steady).await;
    assert_eq!((after.state(), after.started_at), (pb::ContainerState::ContainerRunning, before.started_at));
    let (_, text) = node.exec(&steady, "echo there").await;
    assert_eq!(text, "there\n");
    let deadline = Instant::now() + PATIENCE;
    let mut lines = Vec::new();
    while lines.len() < 100 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let log = fs::read_to_string(&after.log_path).unwrap();
        lines = messages(&log).lines().map(|line| line.parse::<usize>().unwrap()).collect();
    }
    assert!(lines.iter().enumerate().all(|(index, line)| index == *line), "lines are lost");
    node.remove_pod(&pod).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

async fn terminals_and_input_reach_the_container() {
    let mut node = Node::start().await;
    let config = node.pod("tty");
    let pod = node.run_pod(config).await;
    let mut container = shell("tty", "tty; read line; echo got $line");
    container.tty = true;
    container.stdin = true;
    let id = node.launch(&pod, container).await;
    let request =
        pb::AttachRequest { container_id: id.clone(), stdin: true, stdout: true, tty: true, stderr: false };
    let url = node.client.runtime.attach(request).await.unwrap().into_inner().url;
    let mut stream = crate::stream::Stream::connect(&url).await;
    stream.send(0, b"hello\n").await;
    let (_, status) = stream.finish().await;
    assert!(status.contains("Success"), "{status}");
    assert_eq!(node.ended(&id).await.exit_code, 0);
    let log = messages(&fs::read_to_string(node.status(&id).await.log_path).unwrap());
    let log = log.replace('\r', "");
    assert!(log.contains("/dev/") && log.contains("hello\n") && log.ends_with("got hello"), "{log}");

    let mut container = shell("once", "cat; echo end");
    container.stdin = true;
    container.stdin_once = true;
    let id = node.launch(&pod, container).await;
    let request =
        pb::AttachRequest { container_id: id.clone(), stdin: true, stdout: true, tty: false, stderr: true };
    let url = node.client.runtime.attach(request).await.unwrap().into_inner().url;
    let mut stream = crate::stream::Stream::connect(&url).await;
    stream.send(0, b"in").await;
    stream.send(255, &[0]).await;
    let (output, _) = stream.finish().await;
    assert_eq!(output, "inend\n");
    node.remove_pod(&pod).await;
}

async fn streams_go_over_websocket() {
    let mut node = Node::start().await;
    let config = node.pod("streams");
    let pod = node.run_pod(config).await;
    let server = "while true; do echo from the pod | nc -l -p 8080 127.0.0.1; done";
    let id = node.launch(&pod, shell("main", server)).await;
    let exec = |script: &str, tty, stdin| pb::ExecRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).into(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    for (request, input, output, status) in [
        (exec("cat; echo err >&2; exit 3", false, true), Some("data"), "dataerr\n", "\"message\":\"3\""),
        (exec("tty", true, false), None, "/dev/pts/0\r\n", "Success"),
        (exec("head -c 1000000 /dev/zero | tr '\\0' x", false, false), None, "x", "Success"),
    ] {
        let url = node.client.runtime.exec(request).await.unwrap().into_inner().url;
        let mut stream = crate::stream::Stream::connect(&url).await;
        if let Some(input) = input {
            stream.send(0, input.as_bytes()).await;
            stream.send(255, &[0]).await;
        }
        let (text, end) = stream.finish().await;
        assert!(end.contains(status), "{end}");
        let expected = if output == "x" { "x".repeat(1_000_000) } else { output.to_owned() };
        assert!(text == expected, "{} bytes", text.len());
    }
    let request = pb::PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![8080] };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let url = node.client.runtime.port_forward(request.clone()).await.unwrap().into_inner().url;
        let (data, _) = crate::stream::Stream::connect(&url).await.forwarded().await;
        if data == "from the pod\n" {
            break;
        }
        assert!(Instant::now() < deadline, "{data:?}");
    }
    node.remove_pod(&pod).await;
}

async fn a_killed_supervisor_takes_its_pod() {
    let mut node = Node::start().await;
    let config = node.pod("doomed");
    let pod = node.run_pod(config).await;
    let id = node.launch(&pod, shell("main", "sleep 1000")).await;
    for pid in node.supervisors() {
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    }
    let status = node.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    let request = pb::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
    let answer = node.client.runtime.pod_sandbox_status(request).await.unwrap().into_inner();
    assert_eq!(answer.status.unwrap().state(), pb::PodSandboxState::SandboxNotready);
    node.remove_pod(&pod).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

async fn logs_are_reopened_and_events_told() {
    let mut node = Node::start().await;
    let mut events =
        node.client.runtime.get_container_events(pb::GetEventsRequest {}).await.unwrap().into_inner();
    let config = node.pod("logs");
    let pod = node.run_pod(config).await;
    let id =
        node.launch(&pod, shell("main", "echo one; until [ -e /go ]; do sleep 0.02; done; echo two")).await;
    let log = node.status(&id).await.log_path;
    let deadline = Instant::now() + PATIENCE;
    while messages(&fs::read_to_string(&log).unwrap()) != "one" {
        assert!(Instant::now() < deadline);
    }
    fs::rename(&log, format!("{log}.1")).unwrap();
    let request = pb::ReopenContainerLogRequest { container_id: id.clone() };
    node.client.runtime.reopen_container_log(request).await.unwrap();
    node.exec(&id, "touch /go").await;
    node.ended(&id).await;
    assert_eq!(messages(&fs::read_to_string(&log).unwrap()), "two");
    let mut kinds = Vec::new();
    while kinds.last() != Some(&pb::ContainerEventType::ContainerStoppedEvent) {
        let event = tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap();
        if event.container_id == id {
            kinds.push(event.container_event_type());
        }
    }
    use pb::ContainerEventType::{ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent};
    assert_eq!(kinds, [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent]);
    node.remove_pod(&pod).await;
}

async fn images_are_removed_and_exported() {
    let mut node = Node::start().await;
    let store = container_runtime::ImageStore::open(&node.state()).unwrap();
    let archive = node.root.path().join("image.tar");
    store.export(&[crate::image::BUSYBOX.to_owned()], &archive).unwrap();
    let spec = pb::ImageSpec { image: crate::image::BUSYBOX.into(), ..pb::ImageSpec::default() };
    let config = node.pod("user");
    let pod = node.run_pod(config).await;
    let id = node.launch(&pod, shell("main", "sleep 1000")).await;
    node.client.image.remove_image(pb::RemoveImageRequest { image: Some(spec.clone()) }).await.unwrap();
    let request = pb::ImageStatusRequest { image: Some(spec), verbose: false };
    let status = node.client.image.image_status(request.clone()).await.unwrap().into_inner();
    assert!(status.image.is_none());
    // Who runs from it still does.
    assert_eq!(node.exec(&id, "cat /etc/added").await.1, "above");
    node.remove_pod(&pod).await;
    assert_eq!(fs::read_dir(node.state().join("layers")).unwrap().count(), 1, "layers stay");
    // Another process imports; the runtime sees it at once.
    store.import(&archive).unwrap();
    let status = node.client.image.image_status(request).await.unwrap().into_inner();
    assert_eq!(status.image.unwrap().repo_tags, [format!("docker.io/library/{}", crate::image::BUSYBOX)]);
}

async fn images_are_pulled_through_mirrors() {
    let mut node = Node::start().await;
    let registry = crate::registry::Registry::start(node.root.path().join("layout")).await;
    let hosts = node.root.path().join("certs.d/example.test");
    fs::create_dir_all(&hosts).unwrap();
    let mirror = format!("[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n", registry.address);
    fs::write(hosts.join("hosts.toml"), mirror).unwrap();
    let store = container_runtime::ImageStore::open(&node.state()).unwrap();
    let id = store.find(crate::image::BUSYBOX).unwrap().id;
    let pull = |image: &str, user: &str| pb::PullImageRequest {
        image: Some(pb::ImageSpec { image: image.into(), ..pb::ImageSpec::default() }),
        auth: Some(pb::AuthConfig { username: user.into(), password: "secret".into(), ..Default::default() }),
        sandbox_config: None,
    };
    let image = &mut node.client.image;
    image.remove_image(pb::RemoveImageRequest { image: pull(&id, "").image }).await.unwrap();
    let answer = image.pull_image(pull("example.test/cot/busybox:1", "cot")).await.unwrap().into_inner();
    assert_eq!(answer.image_ref, id);
    let record = store.find("example.test/cot/busybox:1").unwrap();
    let by_digest = record.digests.first().unwrap().clone();
    assert!(by_digest.starts_with("example.test/cot/busybox@sha256:"));
    image.pull_image(pull(&by_digest, "cot")).await.unwrap();
    let error = image.pull_image(pull("example.test/cot/busybox:none", "cot")).await.unwrap_err();
    assert!(error.message().contains("failed to pull and unpack image"), "{}", error.message());
    let error = image.pull_image(pull("example.test/cot/busybox:1", "mallory")).await.unwrap_err();
    assert_ne!(error.code(), cri::Code::NotFound);
    let wrong = by_digest.replace(&by_digest[by_digest.len() - 4..], "0000");
    assert!(image.pull_image(pull(&wrong, "cot")).await.is_err());
}

async fn a_reset_leaves_nothing() {
    let mut node = Node::start().await;
    let config = node.pod("left");
    let pod = node.run_pod(config).await;
    node.launch(&pod, shell("main", "sleep 1000")).await;
    node.kill();
    container_runtime::reset(&node.state()).unwrap();
    let mut traces = node.traces();
    traces.retain(|trace| !trace.starts_with(&*node.state().to_string_lossy()));
    assert_eq!(traces, Vec::<String>::new());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*node.state().to_string_lossy()));
}

async fn starting_is_quick_and_supervisors_are_small() {
    let mut node = Node::start().await;
    let mut times = Vec::new();
    for number in 0..5 {
        let began = Instant::now();
        let config = node.pod(&format!("quick{number}"));
        let pod = node.run_pod(config).await;
        let id = node.create(&pod, shell("main", "sleep 1000")).await.unwrap();
        node.start_container(&id).await.unwrap();
        times.push(began.elapsed());
    }
    times.sort();
    let memory = node.supervisors().into_iter().map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        format!("rss {} pss {} dirty {}", line("Rss:"), line("Pss:"), line("Private_Dirty:"))
    });
    let memory: Vec<String> = memory.collect();
    // Unoptimized and on a shared machine; the figures are for the reader.
    println!("pod and container: {times:?}; supervisors: {memory:?}");
    assert!(times[0] < Duration::from_secs(1), "{times:?}");
}
