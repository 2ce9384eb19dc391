//! Connections through the API server: logs, exec, attach and port-forward to a kubelet, and the proxies of
//! pods, services and nodes. Bytes are relayed as they come, whatever protocol both ends speak over them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, UPGRADE};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use meta::names::GroupResource;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use crate::front::body::Body;
use crate::objects::{ObjectExt, Objects};
use crate::registry::catalog::Target;
use crate::server::{Call, Server};
use crate::status::ApiError;

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const KUBELET_PORT: u16 = 10_250;
/// As much of a kubelet's refusal as is shown.
const REFUSAL_BYTES: usize = 64 << 10;
/// The order in which a node's addresses are tried, most certain first.
const ADDRESS_TYPES: [&str; 4] = ["InternalIP", "ExternalIP", "InternalDNS", "Hostname"];

/// How kubelets and proxied endpoints are reached.
pub struct Connector {
    /// With the client certificate that kubelets know.
    pub kubelet_tls: Arc<ClientConfig>,
    /// For `https:` pods and services, whose certificates nobody here can check.
    pub proxy_tls: Arc<ClientConfig>,
    /// Relays in progress.
    pub relays: TaskTracker,
}

/// Where a connection goes.
struct Destination {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    path_and_query: String,
}

pub(crate) fn is_connect(target: &Target, subresource: &str) -> bool {
    let name = &*target.name().resource;
    matches!(
        (name, subresource),
        ("pods", "log" | "exec" | "attach" | "portforward" | "proxy") | ("services" | "nodes", "proxy")
    ) && target.name().group.is_empty()
}

pub(crate) async fn connect<B>(
    server: &Arc<Server>,
    target: &Target,
    call: Call,
    body: B,
) -> Result<Response<Body>, ApiError>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = &call.path;
    let namespace = path.namespace.as_str();
    let speaks_status = path.subresource != "proxy";
    let connector = &server.connector;
    let query = call.parts.uri.query().unwrap_or_default();
    let destination = match (&*target.name().resource, path.subresource.as_str()) {
        ("pods", "proxy") => connector.pod_proxy(server, namespace, &path.name, &call)?,
        ("services", _) => connector.service_proxy(server, namespace, &path.name, &call)?,
        ("nodes", _) => {
            let below = format!("/{}", path.rest);
            connector.kubelet(server, &path.name, with_query(&below, query))?
        }
        (_, subresource) => {
            let pod = server.registry.get(target, namespace, &path.name, "").await?.to_value();
            let node = pod.str_at(&["spec", "nodeName"]);
            if node.is_empty() {
                return Err(ApiError::bad_request(format!(
                    "pod {} does not have a host assigned",
                    path.name
                )));
            }
            let kubelet_path = kubelet_path(&pod, subresource, query)?;
            connector.kubelet(server, node, kubelet_path)?
        }
    };
    let response = connector.relay(destination, call, body).await?;
    if speaks_status && (response.status().is_client_error() || response.status().is_server_error()) {
        return Err(kubelet_refusal(response).await);
    }
    Ok(response)
}

/// A kubelet refuses in plain text; clients of the API expect a `Status`.
async fn kubelet_refusal(response: Response<Body>) -> ApiError {
    let code = response.status();
    let body = http_body_util::Limited::new(response.into_body(), REFUSAL_BYTES).collect().await;
    let text =
        body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        _ => "InternalError",
    };
    ApiError::new(code.as_u16(), reason, text, None)
}

/// The kubelet's path for a subresource of a pod.
fn kubelet_path(pod: &Value, subresource: &str, query: &str) -> Result<String, ApiError> {
    let (namespace, name) = (pod.namespace(), pod.name());
    if subresource == "portforward" {
        return Ok(with_query(&format!("/portForward/{namespace}/{name}"), query));
    }
    let pairs: Vec<(&str, &str)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    let wanted =
        pairs.iter().find(|(key, _)| *key == "container").map(|(_, value)| *value).unwrap_or_default();
    let container = container_of(pod, &crate::front::options::decode(wanted)?)?;
    let mut kept: Vec<String> = Vec::new();
    for (key, value) in pairs.iter().filter(|(key, _)| *key != "container") {
        let on = matches!(*value, "true" | "1" | "");
        match (subresource, *key) {
            ("log", _) => kept.push(format!("{key}={value}")),
            (_, "stdin") if on => kept.push("input=1".to_owned()),
            (_, "stdout") if on => kept.push("output=1".to_owned()),
            (_, "stderr") if on => kept.push("error=1".to_owned()),
            (_, "tty") if on => kept.push("tty=1".to_owned()),
            (_, "command") => kept.push(format!("command={value}")),
            _ => {}
        }
    }
    let verb = if subresource == "log" { "containerLogs" } else { subresource };
    Ok(with_query(&format!("/{verb}/{namespace}/{name}/{container}"), &kept.join("&")))
}

/// The named container, or the only one, or the one an annotation points out.
fn container_of(pod: &Value, wanted: &str) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod.at(&["spec", list]).and_then(Value::as_array);
        containers.into_iter().flatten().map(|own| own.str_at(&["name"]).to_owned()).collect()
    };
    let containers = names("containers");
    if wanted.is_empty() {
        if let Some(default) = pod.annotation("kubectl.kubernetes.io/default-container")
            && containers.iter().any(|own| own == default)
        {
            return Ok(default.to_owned());
        }
        return match containers.as_slice() {
            [one] => Ok(one.clone()),
            many => Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name(),
                many.join(" ")
            ))),
        };
    }
    let known = ["initContainers", "ephemeralContainers"].into_iter().flat_map(names).chain(containers);
    match known.into_iter().find(|own| own == wanted) {
        Some(name) => Ok(name),
        None => Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {}", pod.name()))),
    }
}

impl Connector {
    fn kubelet(&self, server: &Server, node: &str, path_and_query: String) -> Result<Destination, ApiError> {
        let resource = GroupResource::new("", "nodes");
        let (name, port) = node.split_once(':').unwrap_or((node, ""));
        let object = Objects::get(server.registry.as_ref(), &resource, "", name)
            .ok_or_else(|| ApiError::not_found(&resource, name))?;
        let addresses = object.at(&["status", "addresses"]).and_then(Value::as_array);
        let host = ADDRESS_TYPES.iter().find_map(|kind| {
            let address = addresses?.iter().find(|own| own["type"] == *kind)?;
            address["address"].as_str().map(str::to_owned)
        });
        let own_port = object.at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
        let own_port = own_port.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
        Ok(Destination {
            host: host.ok_or_else(|| {
                ApiError::internal(format!(
                    "no preferred addresses found; known addresses: [] of node {name}"
                ))
            })?,
            port: port.parse().ok().or(own_port).unwrap_or(KUBELET_PORT),
            tls: Some(Arc::clone(&self.kubelet_tls)),
            path_and_query,
        })
    }

    fn pod_proxy(
        &self,
        server: &Server,
        namespace: &str,
        name: &str,
        call: &Call,
    ) -> Result<Destination, ApiError> {
        let (scheme, name, port) = split_proxied(name)?;
        let resource = GroupResource::new("", "pods");
        let pod = Objects::get(server.registry.as_ref(), &resource, namespace, name)
            .ok_or_else(|| ApiError::not_found(&resource, name))?;
        let host = pod.str_at(&["status", "podIP"]).to_owned();
        if host.is_empty() {
            return Err(ApiError::bad_request("address not allowed"));
        }
        let port = if port.is_empty() { first_container_port(&pod) } else { port.parse().unwrap_or(0) };
        Ok(self.proxied(scheme, host, port, call))
    }

    fn service_proxy(
        &self,
        server: &Server,
        namespace: &str,
        name: &str,
        call: &Call,
    ) -> Result<Destination, ApiError> {
        let (scheme, name, port) = split_proxied(name)?;
        let registry = server.registry.as_ref();
        let resource = GroupResource::new("", "services");
        let service = Objects::get(registry, &resource, namespace, name)
            .ok_or_else(|| ApiError::not_found(&resource, name))?;
        let unavailable =
            || ApiError::service_unavailable(format!("no endpoints available for service \"{name}\""));
        let ports = service.at(&["spec", "ports"]).and_then(Value::as_array);
        let wanted = ports.into_iter().flatten().find(|own| {
            let number = own["port"].as_u64().map(|number| number.to_string()).unwrap_or_default();
            port.is_empty() || own["name"] == *port || number == port
        });
        let port_name = wanted.ok_or_else(unavailable)?.str_at(&["name"]).to_owned();
        let resource = GroupResource::new("discovery.k8s.io", "endpointslices");
        let slices = Objects::list(registry, &resource, Some(namespace));
        let (host, port) = slices
            .iter()
            .filter(|slice| {
                slice.labels().and_then(|own| own.get("kubernetes.io/service-name"))
                    == Some(&Value::from(name))
            })
            .find_map(|slice| ready_endpoint(slice, &port_name))
            .ok_or_else(unavailable)?;
        Ok(self.proxied(scheme, host, port, call))
    }

    fn proxied(&self, scheme: &str, host: String, port: u16, call: &Call) -> Destination {
        let below = format!("/{}", call.path.rest);
        let query = call.parts.uri.query().unwrap_or_default();
        Destination {
            host,
            port,
            tls: (scheme == "https").then(|| Arc::clone(&self.proxy_tls)),
            path_and_query: with_query(&below, query),
        }
    }

    async fn relay<B>(
        &self,
        destination: Destination,
        call: Call,
        body: B,
    ) -> Result<Response<Body>, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let address = format!("{}:{}", destination.host, destination.port);
        let failed = |error: &dyn std::fmt::Display| {
            ApiError::service_unavailable(format!("error dialing backend: dial tcp {address}: {error}"))
        };
        let mut parts = call.parts;
        let client_side = hyper::upgrade::on(Request::from_parts(parts.clone(), ()));
        let upgrading = parts.headers.contains_key(UPGRADE);
        strip_hop_headers(&mut parts.headers, upgrading);
        parts.headers.remove(http::header::AUTHORIZATION);
        parts.headers.insert(HOST, address.parse().map_err(|error| failed(&error))?);
        parts.uri = Uri::from(
            PathAndQuery::try_from(destination.path_and_query.as_str()).map_err(|error| failed(&error))?,
        );
        parts.version = http::Version::HTTP_11;
        parts.extensions = http::Extensions::new();
        let dialed = tokio::time::timeout(DIAL_TIMEOUT, dial(&destination)).await;
        let stream = dialed.map_err(|_| failed(&"i/o timeout"))?.map_err(|error| failed(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        self.relays.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "relayed connection ended");
            }
        });
        let request = Request::from_parts(parts, body);
        let mut response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let server_side = hyper::upgrade::on(&mut response);
            self.relays.spawn(async move {
                if let Err(error) = splice(client_side, server_side).await {
                    tracing::debug!(%error, "relay ended");
                }
            });
            let (parts, _) = response.into_parts();
            return Ok(Response::from_parts(parts, Body::empty()));
        }
        let (mut parts, body) = response.into_parts();
        strip_hop_headers(&mut parts.headers, false);
        let stream = futures::stream::unfold((body, sender), |(mut body, sender)| async move {
            loop {
                match body.frame().await? {
                    Ok(frame) => {
                        if let Ok(data) = frame.into_data() {
                            return Some((data, (body, sender)));
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "relayed body ended");
                        return None;
                    }
                }
            }
        });
        Ok(Response::from_parts(parts, Body::Stream(Box::pin(stream))))
    }
}

async fn splice(
    client: hyper::upgrade::OnUpgrade,
    server: hyper::upgrade::OnUpgrade,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (client, server) = tokio::try_join!(client, server)?;
    tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await?;
    Ok(())
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

async fn dial(destination: &Destination) -> std::io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect((destination.host.as_str(), destination.port)).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = &destination.tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(destination.host.clone()).map_err(std::io::Error::other)?;
    Ok(Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?))
}

/// Hop-by-hop headers end here, but an upgrade is asked of the far end in the same words.
fn strip_hop_headers(headers: &mut HeaderMap, upgrading: bool) {
    let hop =
        ["keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"];
    for name in hop {
        headers.remove(HeaderName::from_static(name));
    }
    if !upgrading {
        headers.remove(UPGRADE);
        headers.remove(CONNECTION);
    }
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// `scheme:name:port`, `name:port` or `name`.
fn split_proxied(name: &str) -> Result<(&str, &str, &str), ApiError> {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [name] => Ok(("http", name, "")),
        [name, port] => Ok(("http", name, port)),
        [scheme @ ("http" | "https"), name, port] => Ok((scheme, name, port)),
        _ => Err(ApiError::bad_request(format!("invalid proxy request {name:?}"))),
    }
}

fn first_container_port(pod: &Value) -> u16 {
    let containers = pod.at(&["spec", "containers"]).and_then(Value::as_array);
    let port = containers
        .into_iter()
        .flatten()
        .find_map(|own| own.get("ports")?.as_array()?.first()?.get("containerPort")?.as_u64());
    port.and_then(|port| u16::try_from(port).ok()).unwrap_or(80)
}

fn ready_endpoint(slice: &Value, port_name: &str) -> Option<(String, u16)> {
    let ports = slice.get("ports")?.as_array()?;
    let port = ports.iter().find(|own| own.str_at(&["name"]) == port_name)?.get("port")?.as_u64()?;
    let endpoints = slice.get("endpoints")?.as_array()?;
    let ready = endpoints.iter().find(|own| own.at(&["conditions", "ready"]) != Some(&Value::Bool(false)))?;
    let address = ready.get("addresses")?.as_array()?.first()?.as_str()?;
    Some((address.to_owned(), u16::try_from(port).ok()?))
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("relays", &self.relays.len()).finish_non_exhaustive()
    }
}
