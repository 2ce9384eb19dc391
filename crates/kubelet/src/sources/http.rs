//! Static pods from a URL, asked for now and then.

use std::time::Duration;

use http::Uri;
use tokio::sync::mpsc;
use tracing::warn;

use super::manifest;
use super::{Source, SourceUpdate};
use crate::http_check::HttpCheck;

const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn run(
    url: String,
    node_name: String,
    every: Duration,
    updates: mpsc::Sender<SourceUpdate>,
) {
    let Some(check) = target(&url) else {
        warn!(url, "manifest URL is not an http URL");
        return;
    };
    loop {
        match check.get("kubelet", TIMEOUT).await {
            Ok(answer) if answer.status.is_success() => {
                match manifest::parse(&answer.body, Source::Http, &url, &node_name) {
                    Ok(pods) => {
                        if updates.send(SourceUpdate::Set { source: Source::Http, pods }).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => warn!(url, error = %reconcile::chain(&error), "manifest refused"),
                }
            }
            Ok(answer) => warn!(url, status = answer.status.as_u16(), "manifest not read"),
            Err(error) => warn!(url, error, "manifest not read"),
        }
        tokio::time::sleep(every.max(Duration::from_secs(1))).await;
    }
}

fn target(url: &str) -> Option<HttpCheck> {
    let uri: Uri = url.parse().ok()?;
    let tls = match uri.scheme_str()? {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let host = uri.host()?.trim_matches(['[', ']']).to_owned();
    Some(HttpCheck { tls, host, port, path, headers: Vec::new() })
}
