//! What goes wrong in the runtime, and the gRPC code for it.

use std::error::Error;
use std::path::PathBuf;

/// An error with all its causes, for people.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Why the runtime refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// There is no such thing.
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// `sandbox`, `container` or `image`.
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// The request makes no sense.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
    },
    /// The request makes no sense now.
    #[error("{message}")]
    Precondition {
        /// What is in the way.
        message: String,
    },
    /// Someone else is there already.
    #[error("{message}")]
    AlreadyExists {
        /// What is there.
        message: String,
    },
    /// Not something this runtime does.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// A file could not be read, written or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file of ours is damaged.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        #[source]
        source: serde_json::Error,
    },
    /// A pod's supervisor refused or is gone.
    #[error("{message}")]
    Supervisor {
        /// What it said.
        message: String,
    },
    /// It took too long.
    #[error("{what} took longer than {seconds} s")]
    Timeout {
        /// What did.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The pod's network could not be set up.
    #[error("cannot set up the network of the pod")]
    Network(#[source] crate::network::NetworkError),
    /// Something is wrong with an image.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    /// The socket could not be served.
    #[error("cannot serve the runtime's socket")]
    Serve(#[source] tonic::transport::Error),
}

impl RuntimeError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into() }
    }
}

impl From<RuntimeError> for cri::Status {
    fn from(error: RuntimeError) -> Self {
        use cri::Code;
        let code = match &error {
            RuntimeError::NotFound { .. } => Code::NotFound,
            RuntimeError::Invalid { .. } => Code::InvalidArgument,
            RuntimeError::Precondition { .. } => Code::FailedPrecondition,
            RuntimeError::AlreadyExists { .. } => Code::AlreadyExists,
            RuntimeError::Unsupported { .. } => Code::Unimplemented,
            RuntimeError::Timeout { .. } => Code::DeadlineExceeded,
            RuntimeError::Image(error) if error.is_not_found() => Code::NotFound,
            RuntimeError::Image(error) if error.is_invalid() => Code::InvalidArgument,
            _ => Code::Unknown,
        };
        Self::new(code, chain(&error))
    }
}
