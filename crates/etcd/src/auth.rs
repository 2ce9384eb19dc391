//! The Auth service: there are no users, and every call says so.

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

#[derive(Debug, Clone)]
pub(crate) struct AuthDisabled;

impl NamedService for AuthDisabled {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl Service<Request<Body>> for AuthDisabled {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let status = Status::failed_precondition("etcdserver: authentication is not enabled");
        std::future::ready(Ok(status.into_http()))
    }
}
