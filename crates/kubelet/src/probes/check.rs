//! One probe, once.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::net::TcpStream;

use super::{Target, grpc};
use crate::hooks::{http_check, port};
use crate::runtime;

const AGENT: &str = "kube-probe/1.36";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed(String),
    Unknown(String),
}

pub(super) async fn probe(target: &Target, probe: &Probe, timeout: Duration) -> Verdict {
    if let Some(exec) = &probe.exec {
        return run_exec(target, exec.command.clone().unwrap_or_default(), timeout).await;
    }
    let container = &target.container.spec;
    if let Some(action) = &probe.http_get {
        let check = match http_check(action, container, &target.pod_ip) {
            Ok(check) => check,
            Err(message) => return Verdict::Unknown(message),
        };
        return match check.get(AGENT, timeout).await {
            Ok(answer) if (200..400).contains(&answer.status.as_u16()) => Verdict::Passed,
            Ok(answer) => {
                Verdict::Failed(format!("HTTP probe failed with statuscode: {}", answer.status.as_u16()))
            }
            Err(message) => Verdict::Failed(message),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.pod_ip);
        return match port(&action.port, container) {
            Ok(port) => tcp(host, port, timeout).await,
            Err(message) => Verdict::Unknown(message),
        };
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.as_deref().unwrap_or_default();
        return grpc::check(&target.pod_ip, action.port, service, timeout).await;
    }
    Verdict::Unknown("missing probe handler".to_owned())
}

async fn run_exec(target: &Target, command: Vec<String>, timeout: Duration) -> Verdict {
    let container = &target.container.spec;
    let expanded = command.iter().map(|word| {
        let lookup = |name: &str| {
            let variable = container.env.iter().flatten().find(|e| e.name == name);
            variable.and_then(|e| e.value.clone())
        };
        crate::container::env::expand(word, lookup)
    });
    match target.context.runtime.exec_sync(&target.id, expanded.collect(), timeout).await {
        Ok(output) if output.exit_code == 0 => Verdict::Passed,
        Ok(output) => {
            let mut text = output.stdout;
            text.extend(output.stderr);
            Verdict::Failed(String::from_utf8_lossy(&text).into_owned())
        }
        Err(error) if error.code() == cri::Code::DeadlineExceeded => {
            let words = format!("{command:?}");
            Verdict::Failed(format!("command timed out: {words} timed out after {}s", timeout.as_secs()))
        }
        Err(error) => Verdict::Unknown(runtime::message(&error)),
    }
}

async fn tcp(host: &str, port: u16, timeout: Duration) -> Verdict {
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Verdict::Passed,
        Ok(Err(error)) => Verdict::Failed(format!("dial tcp {address}: {error}")),
        Err(_) => Verdict::Failed(format!("dial tcp {address}: i/o timeout")),
    }
}
