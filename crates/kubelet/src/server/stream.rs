//! exec, attach and port-forward: the runtime serves the stream, we carry its bytes.

use std::sync::Arc;

use bytes::Bytes;
use cri::v1;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::debug;

use super::answer::{Answer, Body, full, text};
use super::route::{Query, find, running_container};
use crate::context::Context;
use crate::runtime;

pub(super) async fn answer(
    context: &Arc<Context>,
    request: Request<Incoming>,
    parts: &[&str],
    query: &Query,
) -> Answer {
    let url = match url(context, parts, query).await {
        Ok(url) => url,
        Err(answer) => return *answer,
    };
    match proxy(request, &url).await {
        Ok(answer) => answer,
        Err(error) => {
            text(StatusCode::INTERNAL_SERVER_ERROR, format!("unable to upgrade connection: {error}"))
        }
    }
}

async fn url(context: &Context, parts: &[&str], query: &Query) -> Result<String, Box<Answer>> {
    let failed =
        |error: cri::CriError| Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, runtime::message(&error)));
    let on = |long: &str, short: &str| query.flag(long) || query.flag(short);
    let (stdin, stdout, stderr) = (on("stdin", "input"), on("stdout", "output"), on("stderr", "error"));
    let tty = query.flag("tty");
    match parts {
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            let container_id = running_container(context, namespace, pod, container)?;
            let cmd = query.all("command");
            if !stdin && !stdout && !stderr {
                let message = "you must specify at least 1 of stdin, stdout, stderr";
                return Err(Box::new(text(StatusCode::BAD_REQUEST, message)));
            }
            // A terminal has one output stream.
            let request = v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr: stderr && !tty };
            context.runtime.exec_url(request).await.map_err(failed)
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            let container_id = running_container(context, namespace, pod, container)?;
            let tty = find(context, namespace, pod)?
                .model
                .container(container)
                .is_some_and(|c| c.spec.tty == Some(true));
            let request = v1::AttachRequest { container_id, stdin, tty, stdout, stderr: stderr && !tty };
            context.runtime.attach_url(request).await.map_err(failed)
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            let view = find(context, namespace, pod)?;
            let sandbox = view.observed.ready_sandbox().map(|s| s.id.clone());
            let missing =
                || Box::new(text(StatusCode::NOT_FOUND, format!("pod not found (\"{pod}_{namespace}\")")));
            let ports =
                query.all("port").iter().chain(&query.all("ports")).filter_map(|p| p.parse().ok()).collect();
            let request =
                v1::PortForwardRequest { pod_sandbox_id: sandbox.ok_or_else(missing)?, port: ports };
            context.runtime.port_forward_url(request).await.map_err(failed)
        }
        _ => Err(Box::new(text(StatusCode::NOT_FOUND, "404 page not found\n"))),
    }
}

/// Repeats the request at the runtime's streaming server, and joins the two connections if it upgrades.
async fn proxy(mut request: Request<Incoming>, url: &str) -> Result<Answer, String> {
    let target: Uri = url.parse().map_err(|e| format!("bad streaming URL: {e}"))?;
    let host = target.host().ok_or("streaming URL has no host")?;
    let port = target.port_u16().unwrap_or(80);
    let stream =
        TcpStream::connect((host.trim_matches(['[', ']']), port)).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).ok();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "streaming connection ended badly");
        }
    });
    let path = target.path_and_query().map_or("/", |p| p.as_str());
    let mut onward = Request::builder().method(request.method().clone()).uri(path);
    if let Some(headers) = onward.headers_mut() {
        copy_headers(request.headers(), headers);
        let authority = target.authority().map_or("localhost", |a| a.as_str());
        headers.insert(header::HOST, authority.parse().map_err(|_| "bad streaming host")?);
    }
    let onward = onward.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let mut response = sender.send_request(onward).await.map_err(|e| e.to_string())?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response.map(|body| -> Body { body.map_err(std::io::Error::other).boxed() }));
    }
    let mut answer = Answer::new(full(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    copy_headers(response.headers(), answer.headers_mut());
    let (ours, theirs) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut response));
    tokio::spawn(async move {
        let (ours, theirs) = match tokio::try_join!(ours, theirs) {
            Ok(both) => both,
            Err(error) => return debug!(%error, "stream not upgraded"),
        };
        let copied = tokio::io::copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
        if let Err(error) = copied {
            debug!(%error, "stream ended badly");
        }
    });
    Ok(answer)
}

/// Credentials end here: the runtime's URL carries its own secret.
fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in
        from.iter().filter(|(name, _)| **name != header::AUTHORIZATION && **name != header::HOST)
    {
        to.append(name.clone(), value.clone());
    }
}
