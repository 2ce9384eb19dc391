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
