//! Transactions and key-values in etcd's terms and back.

use std::sync::Arc;

use bytes::Bytes;
use etcd_client::{CompareOp, DeleteOptions, EventType, GetOptions, GetResponse, PutOptions, TxnOpResponse};
use store::{
    Compare, CompareOperator, CompareTarget, Event, KeyRange, KeyValue, Op, OpResult, Revision, Txn,
    TxnResult,
};

use crate::keys::Prefix;

pub(crate) fn txn(prefix: &Prefix, txn: Txn) -> etcd_client::Txn {
    let compares: Vec<_> = txn.compares.into_iter().map(|compare| self::compare(prefix, compare)).collect();
    let ops = |ops: Vec<Op>| -> Vec<_> { ops.into_iter().map(|op| self::op(prefix, op)).collect() };
    etcd_client::Txn::new().when(compares).and_then(ops(txn.success)).or_else(ops(txn.failure))
}

pub(crate) fn txn_result(prefix: &Prefix, response: &etcd_client::TxnResponse) -> TxnResult {
    let results =
        response.op_responses().into_iter().filter_map(|result| op_result(prefix, result)).collect();
    TxnResult { succeeded: response.succeeded(), revision: header_revision(response.header()), results }
}

/// The items of a range, its `more` and its `count`.
pub(crate) fn items(prefix: &Prefix, mut response: GetResponse) -> (Vec<Arc<KeyValue>>, bool, u64) {
    let (more, count) = (response.more(), response.count().unsigned_abs());
    let kvs = response.take_kvs();
    let found = kvs.len();
    let items: Vec<_> = kvs.into_iter().filter_map(|item| key_value(prefix, item)).collect();
    let hidden = (found - items.len()) as u64;
    (items, more, count - hidden)
}

pub(crate) fn event(prefix: &Prefix, range: &KeyRange, event: &etcd_client::Event) -> Option<Event> {
    let current = event.kv()?;
    let revision = revision(current.mod_revision());
    let previous = event.prev_kv().and_then(|previous| key_value(prefix, previous.clone()));
    let key = prefix.strip(current.key().to_vec()).filter(|key| range.contains(key))?;
    match event.event_type() {
        EventType::Delete => Some(Event::Delete { key, revision, previous }),
        EventType::Put => {
            let value = Bytes::copy_from_slice(current.value());
            Some(Event::Put { current: Arc::new(counted(current, key, value)), previous })
        }
    }
}

pub(crate) fn revision(number: i64) -> Revision {
    number.unsigned_abs()
}

/// A revision as etcd writes it: none reaches the sign.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    header.map_or(0, |header| revision(header.revision()))
}

fn key_value(prefix: &Prefix, item: etcd_client::KeyValue) -> Option<Arc<KeyValue>> {
    let counters = counted(&item, Bytes::new(), Bytes::new());
    let (key, value) = item.into_key_value();
    let key = prefix.strip(key)?;
    Some(Arc::new(KeyValue { key, value: value.into(), ..counters }))
}

fn counted(item: &etcd_client::KeyValue, key: Bytes, value: Bytes) -> KeyValue {
    KeyValue {
        key,
        value,
        create_revision: revision(item.create_revision()),
        mod_revision: revision(item.mod_revision()),
        version: item.version().unsigned_abs(),
        lease: item.lease(),
    }
}

fn compare(prefix: &Prefix, compare: Compare) -> etcd_client::Compare {
    use etcd_client::Compare as To;
    let key = prefix.key(&compare.key);
    let operator = match compare.operator {
        CompareOperator::Equal => CompareOp::Equal,
        CompareOperator::NotEqual => CompareOp::NotEqual,
        CompareOperator::Greater => CompareOp::Greater,
        CompareOperator::Less => CompareOp::Less,
    };
    match compare.target {
        CompareTarget::ModRevision(revision) => To::mod_revision(key, operator, signed(revision)),
        CompareTarget::CreateRevision(revision) => To::create_revision(key, operator, signed(revision)),
        CompareTarget::Version(version) => To::version(key, operator, signed(version)),
        CompareTarget::Value(value) => To::value(key, operator, value),
        CompareTarget::Lease(lease) => To::lease(key, operator, lease),
    }
}

fn op(prefix: &Prefix, op: Op) -> etcd_client::TxnOp {
    use etcd_client::TxnOp as To;
    match op {
        Op::Put { key, value, lease } => {
            let options = PutOptions::new().with_prev_key().with_lease(lease);
            To::put(prefix.key(&key), value, Some(options))
        }
        Op::Delete { range } => {
            let (start, end) = prefix.range(&range);
            To::delete(start, Some(DeleteOptions::new().with_range(end).with_prev_key()))
        }
        Op::Get { range, limit } => {
            let (start, end) = prefix.range(&range);
            To::get(start, Some(GetOptions::new().with_range(end).with_limit(signed(limit as u64))))
        }
    }
}

fn op_result(prefix: &Prefix, result: TxnOpResponse) -> Option<OpResult> {
    match result {
        TxnOpResponse::Put(mut put) => {
            Some(OpResult::Put { previous: put.take_prev_key().and_then(|item| key_value(prefix, item)) })
        }
        TxnOpResponse::Delete(mut delete) => {
            let deleted = delete.take_prev_kvs();
            Some(OpResult::Delete {
                deleted: deleted.into_iter().filter_map(|item| key_value(prefix, item)).collect(),
            })
        }
        TxnOpResponse::Get(get) => {
            let (items, more, count) = items(prefix, get);
            Some(OpResult::Get { items, more, count })
        }
        // Only a transaction in a transaction is answered by one, and we send none.
        TxnOpResponse::Txn(_) => None,
    }
}
