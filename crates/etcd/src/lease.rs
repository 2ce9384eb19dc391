//! The Lease service.

use std::pin::Pin;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService,
    PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use store::{Store, StoreError};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::convert::{signed, status};
use crate::member::Member;

const MAX_TTL_SECONDS: i64 = 9_000_000_000;

impl Member {
    /// A lease that is gone has no time left.
    async fn keep_alive(&self, id: i64) -> Result<PbLeaseKeepAliveResponse, Status> {
        let ttl = match self.store().lease_keep_alive(id).await {
            Ok(ttl) => ttl,
            Err(StoreError::LeaseNotFound(_)) => 0,
            Err(error) => return Err(status(&error)),
        };
        Ok(PbLeaseKeepAliveResponse { header: self.header_now(), id, ttl })
    }
}

#[async_trait]
impl PbLeaseService for Member {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<PbLeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let PbLeaseGrantRequest { ttl, id } = request.into_inner();
        if ttl > MAX_TTL_SECONDS {
            return Err(Status::out_of_range("etcdserver: too large lease TTL"));
        }
        let id = self.store().lease_grant(id, ttl).await.map_err(|error| status(&error))?;
        let ttl = self.store().lease(id).map_or(ttl, |lease| lease.ttl_seconds);
        Ok(Response::new(PbLeaseGrantResponse { header: self.header_now(), id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        self.store().lease_revoke(request.into_inner().id).await.map_err(|error| status(&error))?;
        Ok(Response::new(PbLeaseRevokeResponse { header: self.header_now() }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let member = self.clone();
        let answers = request.into_inner().then(move |request| {
            let member = member.clone();
            async move { member.keep_alive(request?.id).await }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let PbLeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let header = self.header_now();
        let Some(lease) = self.store().lease(id) else {
            let gone =
                PbLeaseTimeToLiveResponse { header, id, ttl: -1, ..PbLeaseTimeToLiveResponse::default() };
            return Ok(Response::new(gone));
        };
        let keys = if keys { lease.keys.iter().map(|key| key.to_vec()).collect() } else { Vec::new() };
        let ttl = signed(lease.remaining.as_secs());
        Ok(Response::new(PbLeaseTimeToLiveResponse { header, id, ttl, granted_ttl: lease.ttl_seconds, keys }))
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let leases = self.store().leases().into_iter().map(|id| PbLeaseStatus { id }).collect();
        Ok(Response::new(PbLeaseLeasesResponse { header: self.header_now(), leases }))
    }
}
