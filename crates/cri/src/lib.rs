//! The Container Runtime Interface (CRI) v1: messages, services and a client over a Unix socket.
//!
//! This crate holds no behaviour: what a kubelet asks for and what a runtime answers live in theirs.
//! Start with [`connect`], or with [`runtime_service_server`] to serve the interface.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

pub use k8s_cri::v1;
pub use k8s_cri::v1::image_service_client::ImageServiceClient;
pub use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
pub use k8s_cri::v1::{image_service_server, runtime_service_server};
pub use tonic::{Code, Status};

/// The largest message either side accepts: lists of thousands of containers pass, as upstream's 16 MiB does.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The only API version spoken.
pub const API_VERSION: &str = "v1";

/// Both services of one runtime, over one connection. Clones share it; calls may run side by side.
#[derive(Clone, Debug)]
pub struct CriClient {
    /// Sandboxes and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub image: ImageServiceClient<Channel>,
}

/// Why a runtime could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CriError {
    /// The endpoint is no Unix socket.
    #[error("runtime endpoint {endpoint:?} is not a Unix socket (want unix:///path or /path)")]
    InvalidEndpoint {
        /// What was given.
        endpoint: String,
    },
    /// Nothing serves the socket.
    #[error("cannot connect to the runtime at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The runtime refused a call.
    #[error("the runtime refused {call}")]
    Call {
        /// The method, as in `RunPodSandbox`.
        call: &'static str,
        /// What it answered.
        #[source]
        source: Box<Status>,
    },
}

impl CriError {
    /// Names the call a status came from.
    pub fn call(call: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self::Call { call, source: Box::new(status) }
    }

    /// The gRPC code of the answer; `Unavailable` where there was none.
    pub fn code(&self) -> Code {
        match self {
            Self::InvalidEndpoint { .. } => Code::InvalidArgument,
            Self::Connect { .. } => Code::Unavailable,
            Self::Call { source, .. } => source.code(),
        }
    }

    /// The runtime knows no such sandbox, container or image.
    pub fn is_not_found(&self) -> bool {
        self.code() == Code::NotFound
    }

    /// Trying again may help.
    pub fn is_retriable(&self) -> bool {
        matches!(
            self.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::ResourceExhausted
        )
    }
}

/// The socket behind an endpoint: `unix:///run/x.sock`, `unix:/run/x.sock` or a bare absolute path.
pub fn socket_path(endpoint: &str) -> Result<PathBuf, CriError> {
    let path =
        endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(CriError::InvalidEndpoint { endpoint: endpoint.to_owned() })
}

/// Connects to the runtime at `endpoint`; the connection is made again by itself when the runtime restarts.
pub async fn connect(endpoint: &str) -> Result<CriClient, CriError> {
    let path = socket_path(endpoint)?;
    let socket = path.clone();
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|source| CriError::Connect { path, source })?;
    Ok(client(channel))
}

fn client(channel: Channel) -> CriClient {
    CriClient {
        runtime: RuntimeServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
        image: ImageServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        for (endpoint, path) in [
            ("unix:///run/containerd/containerd.sock", Some("/run/containerd/containerd.sock")),
            ("unix:/run/x.sock", Some("/run/x.sock")),
            ("/run/x.sock", Some("/run/x.sock")),
            ("tcp://127.0.0.1:1", None),
            ("run/x.sock", None),
            ("unix://", None),
            ("", None),
        ] {
            assert_eq!(socket_path(endpoint).ok(), path.map(PathBuf::from), "{endpoint}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_a_retriable_error() {
        let error = connect("unix:///nonexistent/cri.sock").await.unwrap_err();
        assert!(error.is_retriable() && !error.is_not_found(), "{error}");
    }
}
