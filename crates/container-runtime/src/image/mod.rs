//! Images: content by digest, unpacked layers, names. Start reading at [`ImageStore`].
//!
//! Nothing here runs an image. Everything that reads or writes files blocks; callers on an async runtime move it to a
//! blocking thread.

mod archive;
mod config;
mod digest;
mod export;
mod hosts;
mod pull;
mod store;
mod sys;
mod unpack;
mod view;

use std::path::PathBuf;

pub(crate) use config::ImageConfig;
pub use pull::Progress;
pub(crate) use pull::{Credentials, Puller};
pub use store::{ImageRecord, ImageStore};
pub(crate) use view::LayerView;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No such image here.
    #[error("image {name:?} not found")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// Not a name of an image.
    #[error("invalid image name {name:?}: {reason}")]
    InvalidName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a registry's nor an archive's content is what its name says.
    #[error("content of {expected} has digest {actual}")]
    WrongDigest {
        /// The digest asked for.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// Content that cannot be an image.
    #[error("not an image this runtime can use: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// A JSON document of the image does not parse.
    #[error("{what} of the image does not parse")]
    Json {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The image is for another machine.
    #[error("no match for platform in manifest: not found: want {wanted}, have {have}")]
    WrongPlatform {
        /// This machine.
        wanted: String,
        /// What there is.
        have: String,
    },
    /// A file could not be read or written.
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
    /// A layer could not be unpacked.
    #[error("cannot unpack layer {digest}")]
    Unpack {
        /// Which.
        digest: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A registry refused or could not be reached.
    #[error("failed to pull and unpack image {name:?}: {detail}")]
    Pull {
        /// Which image.
        name: String,
        /// What each registry said.
        detail: String,
        /// The registry says that there is none, or that it is not for us.
        not_found: bool,
    },
    /// The hosts.toml of a registry does not parse.
    #[error("invalid registry configuration {}: {reason}", path.display())]
    Hosts {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl ImageError {
    /// The image does not exist, here or there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Pull { not_found: true, .. })
    }

    /// The request can never succeed.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::InvalidName { .. })
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed { reason: reason.into() }
    }
}

/// This machine, in the words of image indexes.
pub(crate) fn platform() -> (&'static str, &'static str) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    ("linux", architecture)
}
