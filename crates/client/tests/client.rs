//! Requests as they arrive, over a socket and in one process.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use client::kubeconfig::{Credentials, Entry, write};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use tokio::net::TcpListener;
use tower::service_fn;

#[derive(Debug, Clone, PartialEq)]
struct Identity(&'static str);

/// What a server saw of each request.
type Seen = Arc<Mutex<Vec<String>>>;

/// Answers a request with what it was sent.
async fn echo<B>(seen: Seen, request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (head, body) = request.into_parts();
    let header =
        |name: &str| head.headers.get(name).map_or("", |value| value.to_str().expect("a text")).to_owned();
    let identity = head.extensions.get::<Identity>();
    seen.lock().expect("no panic").push(format!(
        "{} {} agent={} auth={} {identity:?}",
        head.method,
        head.uri.path(),
        header("user-agent"),
        header("authorization")
    ));
    let body = body.collect().await.expect("the body is read").to_bytes();
    let json = Response::builder().header("content-type", "application/json");
    Ok(json.body(Full::new(body)).expect("a response"))
}

async fn create(client: kube::Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client, "team");
    let map = ConfigMap { data: Some([("a".to_owned(), "1".to_owned())].into()), ..ConfigMap::default() };
    let created = maps.create(&PostParams::default(), &map).await.expect("it is created");
    assert_eq!(created.data, map.data);
}

#[tokio::test]
async fn a_request_in_process_carries_its_identity() {
    let seen = Seen::default();
    let service = service_fn({
        let seen = Arc::clone(&seen);
        move |request: Request<kube::client::Body>| echo(Arc::clone(&seen), request)
    });
    let client =
        client::in_process(service, Identity("system:kube-scheduler"), "kube-scheduler").expect("a client");
    create(client.clone()).await;
    create(client).await;
    let expected = "POST /api/v1/namespaces/team/configmaps agent=kube-scheduler auth= \
        Some(Identity(\"system:kube-scheduler\"))";
    assert_eq!(*seen.lock().expect("no panic"), [expected, expected]);
}

#[tokio::test]
async fn a_kubeconfig_names_server_and_user() {
    let seen = Seen::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn({
        let seen = Arc::clone(&seen);
        async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let service = hyper::service::service_fn(move |request| echo(Arc::clone(&seen), request));
            let stream = hyper_util::rt::TokioIo::new(stream);
            hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
        }
    });
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config");
    let entry = Entry {
        name: "here".to_owned(),
        server: format!("http://{address}"),
        certificate_authority: Vec::new(),
        credentials: Credentials::Token("secret".to_owned()),
        namespace: None,
    };
    write(&path, &entry).expect("it is written");
    let client = client::from_kubeconfig(&path, Some("here"), "kubelet").await.expect("a client");
    create(client).await;
    server.abort();
    let expected = "POST /api/v1/namespaces/team/configmaps agent=kubelet auth=Bearer secret None";
    assert_eq!(*seen.lock().expect("no panic"), [expected]);
    let nowhere = client::from_kubeconfig(&path, Some("nowhere"), "kubelet").await;
    assert!(matches!(nowhere, Err(client::ClientError::Context { .. })));
    let missing = client::from_kubeconfig(&dir.path().join("missing"), None, "kubelet").await;
    assert!(matches!(missing, Err(client::ClientError::Read { .. })));
}
