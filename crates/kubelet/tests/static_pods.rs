//! Static pods on a real containerd, watched through the read-only port.
#![expect(clippy::unwrap_used, reason = "a step that cannot be taken fails the test")]

mod support;

use std::time::Instant;

use serde_json::Value;
use support::Node;

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}

fn manifest(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{a: b}}}}\nspec: {spec}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_restart_end_and_go() {
    let mut node = Node::start("life").await;
    runs_and_shows_itself(&node).await;
    ends_and_stays(&node).await;
    backs_off(&node).await;
    waits_for_its_image(&node).await;
    starts_init_and_sidecars_in_order(&node).await;
    probes_decide(&node).await;
    survives_the_kubelet(&mut node).await;
    goes_gracefully(&node).await;
    node.stop_kubelet().await;
}

async fn runs_and_shows_itself(node: &Node) {
    let spec = r#"{hostname: h, terminationGracePeriodSeconds: 5, containers: [{name: c, image: "bb:1",
      command: [sh, -c, 'echo $(GREETING) $NAME $CPU; cat /etc/hosts; hostname; ls -l /m; id -u; trap "exit 0" TERM; while :; do sleep 0.1; done'],
      env: [{name: GREETING, value: hello}, {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}},
            {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}],
      securityContext: {runAsUser: 1000}, resources: {requests: {cpu: 100m}, limits: {memory: 64Mi}},
      volumeMounts: [{name: d, mountPath: /m/downward}, {name: e, mountPath: /m/memory}]}],
      volumes: [{name: d, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}},
                {name: e, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]}"#;
    node.write("web.yaml", &manifest("web", spec));
    let pod = node.pod_until("web-node", "ready", |p| condition(p, "Ready") == "True").await;
    let status = &pod["status"];
    assert_eq!((phase(&pod), status["qosClass"].as_str()), ("Running", Some("Burstable")));
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(&pod, kind), "True", "{kind}");
    }
    let container = &status["containerStatuses"][0];
    assert_eq!((container["ready"].as_bool(), container["started"].as_bool()), (Some(true), Some(true)));
    assert_eq!(container["restartCount"], 0);
    let ip = status["podIP"].as_str().unwrap();
    assert!(ip.starts_with("10.88.0."), "{status}");
    node.until("the log is whole", || async { node.log(&pod, "c", 0).contains("\n1000\n") }).await;
    let log = node.log(&pod, "c", 0);
    assert!(log.starts_with("hello web-node 100\n"), "{log}");
    assert!(log.contains(&format!("{ip}\th\n")) && log.contains("\nh\n"), "{log}");
    let summary: Value = serde_json::from_str(&node.get("/stats/summary").await.unwrap()).unwrap();
    assert_eq!(summary["pods"][0]["podRef"]["name"], "web-node");
}

async fn ends_and_stays(node: &Node) {
    let spec = r#"{restartPolicy: Never, containers: [
      {name: good, image: "bb:1", command: [sh, -c, "echo bye > /dev/termination-log"]},
      {name: bad, image: "bb:1", command: [sh, -c, "echo trouble; exit 3"], terminationMessagePolicy: FallbackToLogsOnError}]}"#;
    node.write("job.yaml", &manifest("job", spec));
    let pod = node.pod_until("job-node", "failed", |p| phase(p) == "Failed").await;
    let ended = |index: usize| pod["status"]["containerStatuses"][index]["state"]["terminated"].clone();
    let (good, bad) = (ended(0), ended(1));
    assert_eq!((good["exitCode"].as_i64(), good["reason"].as_str()), (Some(0), Some("Completed")));
    assert_eq!(good["message"], "bye\n");
    assert_eq!((bad["exitCode"].as_i64(), bad["reason"].as_str()), (Some(3), Some("Error")));
    assert_eq!(bad["message"], "trouble\n");
    assert_eq!(condition(&pod, "Ready"), "False");
    node.remove("job.yaml");
    node.until("the job is gone", || async { node.pod("job-node").await.is_none() }).await;
}

async fn backs_off(node: &Node) {
    let spec = r#"{containers: [{name: c, image: "bb:1", command: ["false"]}]}"#;
    node.write("crash.yaml", &manifest("crash", spec));
    let waits =
        |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = node.pod_until("crash-node", "backing off", waits).await;
    let container = &pod["status"]["containerStatuses"][0];
    assert_eq!(container["restartCount"], 1);
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert!(
        container["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .starts_with("back-off 10s restarting failed container=c pod=crash-node_default(")
    );
    assert_eq!(phase(&pod), "Running");
    node.remove("crash.yaml");
    node.until("the crasher is gone", || async { node.pod("crash-node").await.is_none() }).await;
}

async fn waits_for_its_image(node: &Node) {
    let spec = r#"{terminationGracePeriodSeconds: 0, containers: [
      {name: never, image: "none:1", imagePullPolicy: Never}, {name: bad, image: "BAD:1"}]}"#;
    node.write("image.yaml", &manifest("image", spec));
    let reason = |p: &Value, index: usize| {
        p["status"]["containerStatuses"][index]["state"]["waiting"]["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let both = |p: &Value| reason(p, 0) == "ErrImageNeverPull" && reason(p, 1) == "InvalidImageName";
    let pod = node.pod_until("image-node", "waiting for its images", both).await;
    assert_eq!(phase(&pod), "Pending");
    node.remove("image.yaml");
    node.until("the imageless pod is gone", || async { node.pod("image-node").await.is_none() }).await;
}

async fn starts_init_and_sidecars_in_order(node: &Node) {
    let spec = r#"{restartPolicy: Never, terminationGracePeriodSeconds: 2, volumes: [{name: v, emptyDir: {}}],
      initContainers: [
        {name: one, image: "bb:1", command: [sh, -c, "echo one >> /v/order"], volumeMounts: [{name: v, mountPath: /v}]},
        {name: side, image: "bb:1", restartPolicy: Always, command: [sh, -c, "echo side >> /v/order; exec sleep 1000"],
         volumeMounts: [{name: v, mountPath: /v}], startupProbe: {exec: {command: [test, -s, /v/order]}, periodSeconds: 1}},
        {name: two, image: "bb:1", command: [sh, -c, "echo two >> /v/order"], volumeMounts: [{name: v, mountPath: /v}]}],
      containers: [{name: main, image: "bb:1", command: [cat, /v/order], volumeMounts: [{name: v, mountPath: /v}]}]}"#;
    node.write("init.yaml", &manifest("init", spec));
    let pod = node.pod_until("init-node", "succeeded", |p| phase(p) == "Succeeded").await;
    assert_eq!(node.log(&pod, "main", 0), "one\nside\ntwo\n");
    assert!(
        pod["status"]["initContainerStatuses"][1]["state"]["terminated"].is_object(),
        "the sidecar ended"
    );
    node.remove("init.yaml");
}

async fn probes_decide(node: &Node) {
    let spec = r#"{terminationGracePeriodSeconds: 0, containers: [
      {name: slow, image: "bb:1", command: [sh, -c, "sleep 1; touch /tmp/ok; exec sleep 1000"],
       readinessProbe: {exec: {command: [test, -e, /tmp/ok]}, periodSeconds: 1}},
      {name: sick, image: "bb:1", command: [sleep, "1000"],
       livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}}]}"#;
    node.write("probe.yaml", &manifest("probe", spec));
    let status = |p: &Value, index: usize| p["status"]["containerStatuses"][index].clone();
    let first =
        node.pod_until("probe-node", "running", |p| status(p, 0)["state"]["running"].is_object()).await;
    assert_eq!(status(&first, 0)["ready"], false);
    node.pod_until("probe-node", "ready and restarted", |p| {
        status(p, 0)["ready"] == true && status(p, 1)["restartCount"].as_i64() >= Some(1)
    })
    .await;
    node.remove("probe.yaml");
}

async fn survives_the_kubelet(node: &mut Node) {
    let before = node.pod("web-node").await.unwrap();
    node.stop_kubelet().await;
    node.start_kubelet();
    let after = node.pod_until("web-node", "ready again", |p| condition(p, "Ready") == "True").await;
    let id = |p: &Value| p["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&before), id(&after));
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
}

async fn goes_gracefully(node: &Node) {
    let uid = node.pod("web-node").await.unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let begun = Instant::now();
    node.remove("web.yaml");
    node.until("the pod is gone", || async { node.pod("web-node").await.is_none() }).await;
    assert!(begun.elapsed().as_secs() < 5, "the process heeded SIGTERM");
    assert!(!node.directory.join("kubelet/pods").join(&uid).exists(), "its directory went with it");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&uid), "its mounts went with it");
}
