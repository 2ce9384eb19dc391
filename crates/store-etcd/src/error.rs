//! What etcd's errors mean. etcd tells them apart by their text only.

use std::error::Error;

use store::{LeaseId, Revision, StoreError};
use tonic::{Code, ConnectError};

/// etcd's own limit, unless it was told otherwise.
const REQUEST_BYTES: usize = 3 << 19;

/// What a failed call leaves to be done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It did not reach etcd, or etcd did not take it on: it may be sent again.
    NotDone(etcd_client::Error),
    /// Nobody knows; a read may be sent again.
    Unknown(etcd_client::Error),
    Refused(StoreError),
}

/// What the call was about, to be named in its error.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Subject {
    pub(crate) revision: Revision,
    pub(crate) lease: LeaseId,
    pub(crate) bytes: usize,
}

const NOT_DONE: [&str; 4] = [
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: too many requests",
    "etcdserver: server stopped",
];

pub(crate) fn classify(error: etcd_client::Error, subject: Subject) -> Failure {
    let etcd_client::Error::GRpcStatus(status) = &error else {
        return match error {
            etcd_client::Error::LeaseKeepAliveError(_) => {
                Failure::Refused(StoreError::LeaseNotFound(subject.lease))
            }
            error => Failure::Unknown(error),
        };
    };
    if was_not_sent(status) {
        return Failure::NotDone(error);
    }
    let message = status.message();
    let says = |text: &str| message.contains(text);
    if NOT_DONE.iter().any(|text| says(text)) {
        return Failure::NotDone(error);
    }
    let Subject { revision, lease, bytes } = subject;
    Failure::Refused(if says("revision has been compacted") {
        // etcd does not say what is left; it is no less than this.
        StoreError::Compacted { requested: revision, oldest: revision + 1 }
    } else if says("is a future revision") {
        StoreError::Future { requested: revision, newest: revision.saturating_sub(1) }
    } else if says("lease not found") {
        StoreError::LeaseNotFound(lease)
    } else if says("lease already exists") {
        StoreError::LeaseExists(lease)
    } else if says("request is too large") {
        StoreError::TooLarge { size: bytes, limit: REQUEST_BYTES }
    } else if says("duplicate key given") {
        StoreError::InvalidTxn("a key is written twice")
    } else if says("too many operations") {
        StoreError::InvalidTxn("there are too many operations")
    } else if says("database space exceeded") {
        StoreError::NoSpace
    } else if is_transient(status.code()) {
        return Failure::Unknown(error);
    } else {
        StoreError::Unavailable(Box::new(error))
    })
}

fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown | Code::Aborted
    )
}

/// Whether no connection could be made.
fn was_not_sent(status: &tonic::Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
