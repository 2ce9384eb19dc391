//! The CRI services: checks and conversions, nothing more.

mod image;
mod runtime;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use cri::image_service_server::ImageServiceServer;
use cri::runtime_service_server::RuntimeServiceServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::info;

use crate::Config;
use crate::error::RuntimeError;
use crate::runtime::Runtime;
use crate::streaming::{self, Tokens};

/// Serves one runtime until told to stop.
pub(crate) async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), RuntimeError> {
    let (stream_listener, address) = streaming::bind(config.streaming_address).await?;
    let socket = config.socket.clone();
    let runtime = Arc::new(Runtime::open(config, Tokens::new(address), shutdown.clone())?);
    runtime.recover().await?;
    let listener = bind(&socket)?;
    info!(socket = %socket.display(), "container runtime serves CRI");
    let streams = streaming::serve(Arc::clone(&runtime), stream_listener, shutdown.clone());
    let limit = cri::MAX_MESSAGE_BYTES;
    let server = Server::builder()
        .add_service(
            RuntimeServiceServer::new(runtime::Service::new(Arc::clone(&runtime)))
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        )
        .add_service(
            ImageServiceServer::new(image::Service::new(Arc::clone(&runtime)))
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.clone().cancelled_owned());
    let (result, ()) = tokio::join!(server, streams);
    runtime.tasks.close();
    result.map_err(RuntimeError::Serve)
}

fn bind(socket: &std::path::Path) -> Result<UnixListener, RuntimeError> {
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent).map_err(RuntimeError::file("create", parent))?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(RuntimeError::file("remove", socket)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(RuntimeError::file("listen on", socket))?;
    fs::set_permissions(socket, PermissionsExt::from_mode(0o660))
        .map_err(RuntimeError::file("protect", socket))?;
    Ok(listener)
}
