//! Lifecycle hooks: exec, HTTP and sleep.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::http_check::HttpCheck;
use crate::runtime::{self, Runtime};

const AGENT: &str = "kube-lifecycle/1.36";
/// A hook without a limit of its own still cannot hang for ever.
const HOOK_TIMEOUT: Duration = Duration::from_secs(3600);

pub(crate) async fn run(
    runtime: &Runtime,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    pod_ip: &str,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = runtime.exec_sync(id, command.clone(), Duration::ZERO).await;
        return match output {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => Err(format!(
                "Exec lifecycle hook ({command:?}) failed - error: command '{}' exited with {}: {}, message: \"{}\"",
                command.join(" "),
                output.exit_code,
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout)
            )),
            Err(error) => Err(runtime::message(&error)),
        };
    }
    if let Some(http) = &handler.http_get {
        let check = http_check(http, container, pod_ip)?;
        let answer = check.get(AGENT, HOOK_TIMEOUT).await?;
        return if answer.status.as_u16() < 400 {
            Ok(())
        } else {
            Err(format!("HTTP lifecycle hook ({}) failed with {}", check.path, answer.status))
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
    }
    Ok(())
}

pub(crate) fn http_check(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
) -> Result<HttpCheck, String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
    let headers = action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
    Ok(HttpCheck {
        tls: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host: host.to_owned(),
        port: port(&action.port, container)?,
        path: action.path.clone().unwrap_or_default(),
        headers,
    })
}

/// A port by number, or by the name the container gives it.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => {
                    name.parse().map_err(|_| format!("couldn't find port: {name:?} in {}", container.name))?
                }
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}
