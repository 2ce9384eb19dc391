//! The KV service.

use std::pin::Pin;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnOpResponse, PbTxnRequest,
    PbTxnResponse,
};
use store::{Compare, KeyRange, Op, Revision, Store, Txn};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, async_trait};

use crate::convert::{self, Shape, Shapes, View, status, unsigned};
use crate::member::Member;

/// How often a put that keeps part of the old value is tried against other writers.
const KEEP_ATTEMPTS: usize = 100;

impl Member {
    async fn run(&self, request: convert::Request) -> Result<(PbTxnResponse, Revision), Status> {
        let (txn, shapes): (Txn, Shapes) = request.into_parts();
        let result = self.store().txn(txn).await.map_err(|error| status(&error))?;
        let revision = result.revision;
        Ok((shapes.response(result), revision))
    }

    /// Runs one operation and answers what it did.
    async fn run_one(&self, op: (Op, Shape)) -> Result<(PbTxnOpResponse, Revision), Status> {
        let (mut response, revision) = self.run(convert::Request::single(op)).await?;
        let answer = response.responses.pop().and_then(|response| response.response);
        Ok((answer.ok_or_else(|| Status::internal("an operation has no answer"))?, revision))
    }

    /// A put that leaves the value or the lease as it is: read, then write if nobody else did.
    async fn put_keeping(&self, request: PbPutRequest) -> Result<(PbPutResponse, Revision), Status> {
        if request.key.is_empty() {
            return Err(Status::invalid_argument("etcdserver: key is not provided"));
        }
        for _ in 0..KEEP_ATTEMPTS {
            let found = self.store().range(KeyRange::key(request.key.clone()), 0, 0).await;
            let found = found.map_err(|error| status(&error))?.items;
            let Some(current) = found.first() else {
                return Err(Status::invalid_argument("etcdserver: key not found"));
            };
            let value =
                if request.ignore_value { current.value.clone() } else { request.value.clone().into() };
            let lease = if request.ignore_lease { current.lease } else { request.lease };
            let txn = Txn {
                compares: vec![Compare::mod_revision(current.key.clone(), current.mod_revision)],
                success: vec![Op::Put { key: current.key.clone(), value, lease }],
                failure: vec![],
            };
            let result = self.store().txn(txn).await.map_err(|error| status(&error))?;
            if result.succeeded {
                let prev_kv = request.prev_kv.then(|| convert::key_value(current));
                return Ok((PbPutResponse { header: None, prev_kv }, result.revision));
            }
        }
        Err(Status::unavailable("etcdserver: too many requests"))
    }
}

#[async_trait]
impl PbKvService for Member {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<PbRangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let request = request.into_inner();
        let view = View::new(&request);
        let revision = unsigned(request.revision);
        let range = convert::range(request.key, request.range_end)?;
        let found = self.store().range(range, revision, view.store_limit()).await;
        let found = found.map_err(|error| status(&error))?;
        let mut response = view.apply(found.items, found.more, found.count);
        response.header = self.header(found.revision);
        Ok(Response::new(response))
    }

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("ranges are answered whole"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let request = request.into_inner();
        let (mut response, revision) = if request.ignore_value || request.ignore_lease {
            self.put_keeping(request).await?
        } else {
            match self.run_one(convert::put(request)?).await? {
                (PbTxnOpResponse::ResponsePut(response), revision) => (response, revision),
                _ => return Err(Status::internal("a put has another answer")),
            }
        };
        response.header = self.header(revision);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        match self.run_one(convert::delete(request.into_inner())?).await? {
            (PbTxnOpResponse::ResponseDeleteRange(mut response), revision) => {
                response.header = self.header(revision);
                Ok(Response::new(response))
            }
            _ => Err(Status::internal("a delete has another answer")),
        }
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let (mut response, revision) = self.run(convert::Request::new(request.into_inner())?).await?;
        response.header = self.header(revision);
        for answer in &mut response.responses {
            match &mut answer.response {
                Some(PbTxnOpResponse::ResponseRange(range)) => range.header = self.header(revision),
                Some(PbTxnOpResponse::ResponsePut(put)) => put.header = self.header(revision),
                Some(PbTxnOpResponse::ResponseDeleteRange(delete)) => delete.header = self.header(revision),
                Some(PbTxnOpResponse::ResponseTxn(_)) | None => {}
            }
        }
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        let revision = unsigned(request.into_inner().revision);
        self.store().compact(revision).await.map_err(|error| status(&error))?;
        Ok(Response::new(PbCompactionResponse { header: self.header_now() }))
    }
}
