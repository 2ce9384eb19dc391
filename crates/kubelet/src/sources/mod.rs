//! Where pods come from: the API server, a directory, a URL. Each tells the same things over one channel.

pub(crate) mod api;
pub(crate) mod file;
pub(crate) mod http;
pub(crate) mod manifest;

use k8s_openapi::api::core::v1::Pod;

/// Updates under way to the manager; a source waits when it is full.
pub(crate) const UPDATES: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Api,
    File,
    Http,
}

impl Source {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::File => "file",
            Self::Http => "http",
        }
    }
}

#[derive(Debug)]
pub(crate) enum SourceUpdate {
    /// Everything the source has.
    Set {
        source: Source,
        pods: Vec<Pod>,
    },
    Upsert {
        source: Source,
        pod: Box<Pod>,
    },
    Remove {
        source: Source,
        pod: Box<Pod>,
    },
}
