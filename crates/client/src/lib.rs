//! How components reach the API server: a `kube::Client` over TCP, made from a kubeconfig, or over the server's own
//! service in this process, which skips the socket and nothing else. It must never decide who a component is: in
//! one process its caller says so, on the network the server does.
//!
//! Start reading at [`in_process`] and [`from_kubeconfig`]; [`kubeconfig`] reads and writes the files.

pub mod kubeconfig;

use std::path::{Path, PathBuf};

use http::header::{HeaderValue, USER_AGENT};
use http::{Request, Response};
use kube::client::{Body, Client};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tower::{BoxError, Service, ServiceExt};

const DEFAULT_NAMESPACE: &str = "default";

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    #[error("cannot read the kubeconfig {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: kube::config::KubeconfigError,
    },
    #[error("the kubeconfig {} has no usable context", path.display())]
    Context {
        path: PathBuf,
        #[source]
        source: kube::config::KubeconfigError,
    },
    #[error("{0:?} is not a user agent")]
    UserAgent(String),
    #[error("the client cannot be set up")]
    Setup(#[source] Box<kube::Error>),
}

/// A client of a service in this process. Every request carries `identity` as an extension, which is how the service
/// knows the sender: none that comes from the network can have one. `user_agent` is what a component of that name
/// sends, `kube-scheduler` for example; field managers are named after it.
pub fn in_process<S, B, I>(service: S, identity: I, user_agent: &str) -> Result<Client, ClientError>
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    I: Clone + Send + Sync + 'static,
{
    let user_agent = header(user_agent)?;
    let service = service.map_request(move |mut request: Request<Body>| {
        request.extensions_mut().insert(identity.clone());
        request.headers_mut().entry(USER_AGENT).or_insert_with(|| user_agent.clone());
        request
    });
    Ok(Client::new(service, DEFAULT_NAMESPACE))
}

/// A client of the server that a kubeconfig names, in the given context or in the current one.
pub async fn from_kubeconfig(
    path: &Path,
    context: Option<&str>,
    user_agent: &str,
) -> Result<Client, ClientError> {
    let config = config(path, context, user_agent).await?;
    Client::try_from(config).map_err(|source| ClientError::Setup(Box::new(source)))
}

/// What [`from_kubeconfig`] connects with.
pub async fn config(path: &Path, context: Option<&str>, user_agent: &str) -> Result<Config, ClientError> {
    let kubeconfig =
        Kubeconfig::read_from(path).map_err(|source| ClientError::Read { path: path.to_owned(), source })?;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|source| ClientError::Context { path: path.to_owned(), source })?;
    config.headers.push((USER_AGENT, header(user_agent)?));
    Ok(config)
}

fn header(user_agent: &str) -> Result<HeaderValue, ClientError> {
    HeaderValue::from_str(user_agent).map_err(|_| ClientError::UserAgent(user_agent.to_owned()))
}
