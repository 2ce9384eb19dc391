//! The store's terms in etcd's protocol and back.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse,
    PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use store::{
    Compare, CompareOperator, CompareTarget, Event, KeyRange, KeyValue, Op, OpResult, StoreError, Txn,
    TxnResult,
};
use tonic::{Code, Status};

/// Operations in a transaction, as etcd's default.
const TXN_OPS: usize = 128;

pub(crate) fn status(error: &StoreError) -> Status {
    let (code, message) = match error {
        StoreError::Compacted { .. } => {
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
        }
        StoreError::Future { .. } => {
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        }
        StoreError::LeaseNotFound(_) => (Code::NotFound, "etcdserver: requested lease not found"),
        StoreError::LeaseExists(_) => (Code::FailedPrecondition, "etcdserver: lease already exists"),
        StoreError::TooLarge { .. } => (Code::InvalidArgument, "etcdserver: request is too large"),
        StoreError::InvalidTxn(_) => {
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request")
        }
        StoreError::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        StoreError::Timeout => (Code::Unavailable, "etcdserver: request timed out"),
        StoreError::Closed => (Code::Unavailable, "etcdserver: server stopped"),
        StoreError::Corrupt(_) => (Code::DataLoss, "etcdserver: corrupt cluster"),
        _ => (Code::Unavailable, "etcdserver: the disk does not take writes"),
    };
    Status::new(code, message)
}

/// A number of the store as the protocol has it: none reaches the sign.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number of the protocol that must not be negative.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// `[key, range_end)`; no end is one key, and an end of zero is no end.
pub(crate) fn range(key: Vec<u8>, range_end: Vec<u8>) -> Result<KeyRange, Status> {
    if key.is_empty() {
        return Err(Status::invalid_argument("etcdserver: key is not provided"));
    }
    // There is no empty key: the range from zero on is everything.
    let start = if key == [0] && !range_end.is_empty() { Bytes::new() } else { key.into() };
    Ok(match &range_end[..] {
        [] => KeyRange::key(start),
        [0] => KeyRange { start, end: Bound::Unbounded },
        _ => KeyRange { start, end: Bound::Excluded(range_end.into()) },
    })
}

pub(crate) fn key_value(item: &KeyValue) -> PbKeyValue {
    PbKeyValue {
        key: item.key.to_vec(),
        create_revision: signed(item.create_revision),
        mod_revision: signed(item.mod_revision),
        version: signed(item.version),
        value: item.value.to_vec(),
        lease: item.lease,
    }
}

pub(crate) fn event(event: &Event, with_previous: bool) -> PbEvent {
    const PUT: i32 = 0;
    const DELETE: i32 = 1;
    let (kind, current, previous) = match event {
        Event::Put { current, previous } => (PUT, key_value(current), previous),
        Event::Delete { key, revision, previous } => {
            let tombstone =
                PbKeyValue { key: key.to_vec(), mod_revision: signed(*revision), ..PbKeyValue::default() };
            (DELETE, tombstone, previous)
        }
    };
    let prev_kv = previous.as_ref().filter(|_| with_previous).map(|previous| key_value(previous));
    PbEvent { r#type: kind, kv: Some(current), prev_kv }
}

/// What a range request wants beyond keys in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    limit: usize,
    descending: bool,
    target: i32,
    keys_only: bool,
    count_only: bool,
    mod_revisions: (u64, u64),
    create_revisions: (u64, u64),
}

const BY_KEY: i32 = 0;

impl View {
    pub(crate) fn new(request: &PbRangeRequest) -> Self {
        const DESCENDING: i32 = 2;
        let bounds = |min: i64, max: i64| (unsigned(min), if max <= 0 { u64::MAX } else { unsigned(max) });
        Self {
            limit: usize::try_from(request.limit).unwrap_or(0),
            descending: request.sort_order == DESCENDING,
            target: request.sort_target,
            keys_only: request.keys_only,
            count_only: request.count_only,
            mod_revisions: bounds(request.min_mod_revision, request.max_mod_revision),
            create_revisions: bounds(request.min_create_revision, request.max_create_revision),
        }
    }

    /// The limit the store may apply before anything else is done.
    pub(crate) fn store_limit(&self) -> usize {
        match self {
            Self { count_only: true, .. } => 1,
            _ if self.is_plain() => self.limit,
            _ => 0,
        }
    }

    pub(crate) fn apply(&self, mut items: Vec<Arc<KeyValue>>, mut more: bool, count: u64) -> PbRangeResponse {
        if self.count_only {
            return PbRangeResponse { count: signed(count), ..PbRangeResponse::default() };
        }
        if !self.is_plain() {
            items.retain(|item| self.wants(item));
            self.sort(&mut items);
            if self.limit > 0 && items.len() > self.limit {
                items.truncate(self.limit);
                more = true;
            }
        }
        let mut kvs: Vec<_> = items.iter().map(|item| key_value(item)).collect();
        if self.keys_only {
            kvs.iter_mut().for_each(|item| item.value = Vec::new());
        }
        PbRangeResponse { header: None, kvs, more, count: signed(count) }
    }

    fn is_plain(&self) -> bool {
        let any = (0, u64::MAX);
        !self.descending && self.target == BY_KEY && self.mod_revisions == any && self.create_revisions == any
    }

    fn wants(&self, item: &KeyValue) -> bool {
        let within = |(min, max): (u64, u64), revision| min <= revision && revision <= max;
        within(self.mod_revisions, item.mod_revision) && within(self.create_revisions, item.create_revision)
    }

    fn sort(&self, items: &mut [Arc<KeyValue>]) {
        match self.target {
            1 => items.sort_by_key(|item| item.version),
            2 => items.sort_by_key(|item| item.create_revision),
            3 => items.sort_by_key(|item| item.mod_revision),
            4 => items.sort_by(|one, other| one.value.cmp(&other.value)),
            _ => {}
        }
        if self.descending {
            items.reverse();
        }
    }
}

/// What to leave out of the answer to an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    Range(View),
    Put { prev_kv: bool },
    Delete { prev_kv: bool },
}

/// A transaction, and the shapes of the answers in each branch.
pub(crate) struct Request {
    pub(crate) txn: Txn,
    success: Vec<Shape>,
    failure: Vec<Shape>,
}

impl Request {
    pub(crate) fn new(request: PbTxnRequest) -> Result<Self, Status> {
        let lengths = [request.compare.len(), request.success.len(), request.failure.len()];
        if lengths.iter().any(|length| *length > TXN_OPS) {
            return Err(Status::invalid_argument("etcdserver: too many operations in txn request"));
        }
        let compares = request.compare.into_iter().map(compare).collect::<Result<_, _>>()?;
        let (success, success_shapes) = branch(request.success)?;
        let (failure, failure_shapes) = branch(request.failure)?;
        let txn = Txn { compares, success, failure };
        Ok(Self { txn, success: success_shapes, failure: failure_shapes })
    }

    /// One operation that is always done.
    pub(crate) fn single(op: (Op, Shape)) -> Self {
        let txn = Txn { success: vec![op.0], ..Txn::default() };
        Self { txn, success: vec![op.1], failure: vec![] }
    }

    pub(crate) fn into_parts(self) -> (Txn, Shapes) {
        (self.txn, Shapes { success: self.success, failure: self.failure })
    }
}

pub(crate) struct Shapes {
    success: Vec<Shape>,
    failure: Vec<Shape>,
}

impl Shapes {
    pub(crate) fn response(self, result: TxnResult) -> PbTxnResponse {
        let shapes = if result.succeeded { self.success } else { self.failure };
        let responses =
            result.results.into_iter().zip(shapes).map(|(result, shape)| op_response(result, shape));
        let responses = responses.map(|response| PbResponseOp { response: Some(response) }).collect();
        PbTxnResponse { header: None, succeeded: result.succeeded, responses }
    }
}

pub(crate) fn put(request: PbPutRequest) -> Result<(Op, Shape), Status> {
    if request.key.is_empty() {
        return Err(Status::invalid_argument("etcdserver: key is not provided"));
    }
    let op = Op::Put { key: request.key.into(), value: request.value.into(), lease: request.lease };
    Ok((op, Shape::Put { prev_kv: request.prev_kv }))
}

pub(crate) fn delete(request: PbDeleteRequest) -> Result<(Op, Shape), Status> {
    let op = Op::Delete { range: range(request.key, request.range_end)? };
    Ok((op, Shape::Delete { prev_kv: request.prev_kv }))
}

fn branch(ops: Vec<PbTxnRequestOp>) -> Result<(Vec<Op>, Vec<Shape>), Status> {
    let ops = ops.into_iter().map(op).collect::<Result<Vec<_>, _>>()?;
    Ok(ops.into_iter().unzip())
}

fn op(op: PbTxnRequestOp) -> Result<(Op, Shape), Status> {
    match op.request {
        Some(PbTxnOpRequest::RequestPut(request)) if request.ignore_value || request.ignore_lease => {
            Err(Status::unimplemented("a put in a transaction gives its value and its lease"))
        }
        Some(PbTxnOpRequest::RequestPut(request)) => put(request),
        Some(PbTxnOpRequest::RequestDeleteRange(request)) => delete(request),
        Some(PbTxnOpRequest::RequestRange(request)) if request.revision > 0 => {
            Err(Status::unimplemented("a range in a transaction is of the transaction's revision"))
        }
        Some(PbTxnOpRequest::RequestRange(request)) => {
            let view = View::new(&request);
            let op = Op::Get { range: range(request.key, request.range_end)?, limit: view.store_limit() };
            Ok((op, Shape::Range(view)))
        }
        Some(PbTxnOpRequest::RequestTxn(_)) => {
            Err(Status::unimplemented("a transaction holds no other transaction"))
        }
        None => Err(Status::invalid_argument("etcdserver: key not found")),
    }
}

fn op_response(result: OpResult, shape: Shape) -> PbTxnOpResponse {
    match result {
        OpResult::Put { previous } => {
            let wanted = matches!(shape, Shape::Put { prev_kv: true });
            let prev_kv = previous.filter(|_| wanted).map(|item| key_value(&item));
            PbTxnOpResponse::ResponsePut(PbPutResponse { header: None, prev_kv })
        }
        OpResult::Delete { deleted } => {
            let wanted = matches!(shape, Shape::Delete { prev_kv: true });
            let prev_kvs =
                if wanted { deleted.iter().map(|item| key_value(item)).collect() } else { Vec::new() };
            let deleted = signed(deleted.len() as u64);
            PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse { header: None, deleted, prev_kvs })
        }
        OpResult::Get { items, more, count } => PbTxnOpResponse::ResponseRange(match shape {
            Shape::Range(view) => view.apply(items, more, count),
            Shape::Put { .. } | Shape::Delete { .. } => PbRangeResponse::default(),
        }),
    }
}

fn compare(compare: PbCompare) -> Result<Compare, Status> {
    if !compare.range_end.is_empty() {
        return Err(Status::unimplemented("a compare is of one key"));
    }
    let operator = match compare.result {
        0 => CompareOperator::Equal,
        1 => CompareOperator::Greater,
        2 => CompareOperator::Less,
        3 => CompareOperator::NotEqual,
        _ => return Err(Status::invalid_argument("a compare has an unknown result")),
    };
    let target = match (compare.target_union, compare.target) {
        (Some(PbTargetUnion::Version(version)), _) => CompareTarget::Version(unsigned(version)),
        (Some(PbTargetUnion::CreateRevision(revision)), _) => {
            CompareTarget::CreateRevision(unsigned(revision))
        }
        (Some(PbTargetUnion::ModRevision(revision)), _) => CompareTarget::ModRevision(unsigned(revision)),
        (Some(PbTargetUnion::Value(value)), _) => CompareTarget::Value(value.into()),
        (Some(PbTargetUnion::Lease(lease)), _) => CompareTarget::Lease(lease),
        // What is not said is zero.
        (None, 0) => CompareTarget::Version(0),
        (None, 1) => CompareTarget::CreateRevision(0),
        (None, 2) => CompareTarget::ModRevision(0),
        (None, 3) => CompareTarget::Value(Bytes::new()),
        (None, 4) => CompareTarget::Lease(0),
        _ => return Err(Status::invalid_argument("a compare has an unknown target")),
    };
    Ok(Compare { key: compare.key.into(), target, operator })
}
