//! A registry that serves one OCI layout to those who know the password.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

/// `cot:secret` in base64.
const CREDENTIALS: &str = "Basic Y290OnNlY3JldA==";

/// One registry on loopback.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub(crate) async fn start(layout: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let layout = layout.clone();
                let service = service_fn(move |request| {
                    let response = answer(&layout, &request);
                    async move { Ok::<_, Infallible>(response) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, task }
    }
}

fn answer(layout: &Path, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let allowed = request.headers().get("authorization").is_some_and(|value| value == CREDENTIALS);
    if !allowed {
        let response = Response::builder().status(StatusCode::UNAUTHORIZED);
        return response.header("www-authenticate", "Basic realm=\"cot\"").body(Full::default()).unwrap();
    }
    let path = request.uri().path();
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let (digest, kind) = match path.strip_prefix("/v2/cot/busybox/").and_then(|rest| rest.split_once('/')) {
        Some(("manifests", "1")) => (manifest, "application/vnd.oci.image.manifest.v1+json"),
        Some(("manifests", digest)) => (digest.to_owned(), "application/vnd.oci.image.manifest.v1+json"),
        Some(("blobs", digest)) => (digest.to_owned(), "application/octet-stream"),
        _ if path == "/v2/" => return Response::new(Full::default()),
        _ => return missing(),
    };
    match fs::read(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))) {
        Ok(text) => Response::builder().header("content-type", kind).body(Full::new(text.into())).unwrap(),
        Err(_) => missing(),
    }
}

fn missing() -> Response<Full<Bytes>> {
    let text = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#;
    Response::builder().status(StatusCode::NOT_FOUND).body(Full::new(text.into())).unwrap()
}
