//! What the store holds at one revision, and how one command changes it. Pure: no disk, no clock, no locks. A
//! state is a few persistent maps, so that a clone costs nothing and undoing a failed batch is forgetting a clone.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};
use store::{
    Compare, CompareOperator, CompareTarget, Event, KeyRange, KeyValue, LeaseId, Op, OpResult, RangeResult,
    Revision, StoreError, Txn, TxnResult,
};

use crate::record::{self, Change, Record};

/// The revision of a store nothing was written to.
pub(crate) const EMPTY_REVISION: Revision = 1;

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    pub(crate) keys: OrdMap<Bytes, Arc<KeyValue>>,
    pub(crate) leases: OrdMap<LeaseId, Lease>,
    /// The greatest lease id this store chose itself: ids are not used twice.
    pub(crate) last_lease: LeaseId,
    /// Keys and values together.
    pub(crate) live_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) ttl_seconds: i64,
    pub(crate) keys: OrdSet<Bytes>,
}

/// What a client asks the committer for.
#[derive(Debug)]
pub(crate) enum Command {
    Txn(Txn),
    Grant {
        id: LeaseId,
        ttl_seconds: i64,
    },
    Revoke {
        id: LeaseId,
    },
    /// As `Revoke` for many; those that are gone already are no error.
    Expire {
        ids: Vec<LeaseId>,
    },
}

#[derive(Debug)]
pub(crate) enum Answer {
    Txn(TxnResult),
    Granted { id: LeaseId, ttl_seconds: i64 },
    Revoked(Vec<LeaseId>),
}

/// The changes of one revision.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) revision: Revision,
    pub(crate) events: Vec<Event>,
}

/// Where a command leaves what it did: commits for watchers, records for the disk.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) commits: Vec<Commit>,
    pub(crate) records: Vec<u8>,
}

impl State {
    pub(crate) fn empty() -> Self {
        Self {
            revision: EMPTY_REVISION,
            keys: OrdMap::new(),
            leases: OrdMap::new(),
            last_lease: 0,
            live_bytes: 0,
        }
    }

    /// Runs a command. An error leaves the state as it was.
    pub(crate) fn apply(&mut self, command: Command, outcome: &mut Outcome) -> Result<Answer, StoreError> {
        match command {
            Command::Txn(txn) => self.apply_txn(txn, outcome).map(Answer::Txn),
            Command::Grant { id, ttl_seconds } => self.grant(id, ttl_seconds, outcome),
            Command::Revoke { id } => {
                if !self.leases.contains_key(&id) {
                    return Err(StoreError::LeaseNotFound(id));
                }
                self.revoke(id, outcome);
                Ok(Answer::Revoked(vec![id]))
            }
            Command::Expire { ids } => {
                ids.iter().for_each(|id| self.revoke(*id, outcome));
                Ok(Answer::Revoked(ids))
            }
        }
    }

    /// Runs a transaction that writes nothing.
    pub(crate) fn read(&self, txn: &Txn) -> TxnResult {
        let (succeeded, ops) = self.branch(txn);
        let results = ops.iter().filter_map(|op| self.get(op)).collect();
        TxnResult { succeeded, revision: self.revision, results }
    }

    pub(crate) fn range(&self, range: &KeyRange, limit: usize) -> RangeResult {
        let mut items = Vec::new();
        let mut count = 0;
        for (_, item) in entries(&self.keys, range) {
            count += 1;
            if limit == 0 || items.len() < limit {
                items.push(Arc::clone(item));
            }
        }
        RangeResult { more: count > items.len() as u64, items, count, revision: self.revision }
    }

    /// Repeats a change read back from disk.
    pub(crate) fn replay(&mut self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::Txn { revision, changes } => {
                if revision != self.revision + 1 {
                    return Err("a revision is missing");
                }
                self.revision = revision;
                for change in changes {
                    match change {
                        Change::Put { key, value, lease } => drop(self.put(key, value, lease)),
                        Change::Delete { key } => drop(self.delete(&key)),
                    }
                }
            }
            Record::Grant { id, ttl_seconds, chosen } => self.insert_lease(id, ttl_seconds, chosen),
            Record::Revoke { id } => drop(self.leases.remove(&id)),
        }
        Ok(())
    }

    /// Takes over a key read back from a snapshot.
    pub(crate) fn restore(&mut self, item: KeyValue) {
        self.attach(item.lease, &item.key);
        self.live_bytes += size(&item);
        self.keys.insert(item.key.clone(), Arc::new(item));
    }

    pub(crate) fn insert_lease(&mut self, id: LeaseId, ttl_seconds: i64, chosen: bool) {
        if chosen {
            self.last_lease = self.last_lease.max(id);
        }
        self.leases.insert(id, Lease { ttl_seconds, keys: OrdSet::new() });
    }

    fn apply_txn(&mut self, txn: Txn, outcome: &mut Outcome) -> Result<TxnResult, StoreError> {
        let (succeeded, _) = self.branch(&txn);
        let ops = if succeeded { txn.success } else { txn.failure };
        self.check(&ops)?;
        let before = self.revision;
        self.revision += 1;
        let mut events = Vec::with_capacity(ops.len());
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    let (current, previous) = self.put(key, value, lease);
                    results.push(OpResult::Put { previous: previous.clone() });
                    events.push(Event::Put { current, previous });
                }
                Op::Delete { range } => {
                    let deleted = self.delete_range(&range, &mut events);
                    results.push(OpResult::Delete { deleted });
                }
                get @ Op::Get { .. } => results.extend(self.get(&get)),
            }
        }
        if events.is_empty() {
            self.revision = before;
        } else {
            record::encode_txn(&mut outcome.records, self.revision, &events);
            outcome.commits.push(Commit { revision: self.revision, events });
        }
        Ok(TxnResult { succeeded, revision: self.revision, results })
    }

    /// Which branch of a transaction runs now.
    fn branch<'a>(&self, txn: &'a Txn) -> (bool, &'a [Op]) {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        (succeeded, if succeeded { &txn.success } else { &txn.failure })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let item = self.keys.get(&compare.key[..]);
        let ordering = match &compare.target {
            CompareTarget::ModRevision(want) => item.map_or(0, |item| item.mod_revision).cmp(want),
            CompareTarget::CreateRevision(want) => item.map_or(0, |item| item.create_revision).cmp(want),
            CompareTarget::Version(want) => item.map_or(0, |item| item.version).cmp(want),
            CompareTarget::Lease(want) => item.map_or(0, |item| item.lease).cmp(want),
            // A key that is not there has no value to compare, not even an empty one.
            CompareTarget::Value(want) => match item {
                Some(item) => item.value.cmp(want),
                None => return false,
            },
        };
        match compare.operator {
            CompareOperator::Equal => ordering.is_eq(),
            CompareOperator::NotEqual => ordering.is_ne(),
            CompareOperator::Greater => ordering.is_gt(),
            CompareOperator::Less => ordering.is_lt(),
        }
    }

    /// Refuses what would leave a transaction half done.
    fn check(&self, ops: &[Op]) -> Result<(), StoreError> {
        check_overlap(ops)?;
        for op in ops {
            if let Op::Put { lease, .. } = op
                && *lease != 0
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::LeaseNotFound(*lease));
            }
        }
        Ok(())
    }

    fn get(&self, op: &Op) -> Option<OpResult> {
        let Op::Get { range, limit } = op else { return None };
        let RangeResult { items, more, count, .. } = self.range(range, *limit);
        Some(OpResult::Get { items, more, count })
    }

    fn put(&mut self, key: Bytes, value: Bytes, lease: LeaseId) -> (Arc<KeyValue>, Option<Arc<KeyValue>>) {
        let previous = self.keys.get(&key[..]).cloned();
        let (create_revision, version) = match &previous {
            Some(previous) => {
                self.live_bytes -= size(previous);
                if previous.lease != lease {
                    self.detach(previous.lease, &key);
                }
                (previous.create_revision, previous.version + 1)
            }
            None => (self.revision, 1),
        };
        let current = KeyValue {
            key: key.clone(),
            value,
            create_revision,
            mod_revision: self.revision,
            version,
            lease,
        };
        self.live_bytes += size(&current);
        self.attach(lease, &key);
        let current = Arc::new(current);
        self.keys.insert(key, Arc::clone(&current));
        (current, previous)
    }

    fn delete(&mut self, key: &[u8]) -> Option<Arc<KeyValue>> {
        let previous = self.keys.remove(key)?;
        self.live_bytes -= size(&previous);
        self.detach(previous.lease, &previous.key);
        Some(previous)
    }

    fn delete_range(&mut self, range: &KeyRange, events: &mut Vec<Event>) -> Vec<Arc<KeyValue>> {
        let keys: Vec<Bytes> = entries(&self.keys, range).map(|(key, _)| key.clone()).collect();
        let deleted: Vec<_> = keys.iter().filter_map(|key| self.delete(key)).collect();
        events.extend(deleted.iter().map(|item| Event::Delete {
            key: item.key.clone(),
            revision: self.revision,
            previous: Some(Arc::clone(item)),
        }));
        deleted
    }

    fn grant(&mut self, id: LeaseId, ttl_seconds: i64, outcome: &mut Outcome) -> Result<Answer, StoreError> {
        let chosen = id == 0;
        let id = if chosen { self.free_lease_id() } else { id };
        if self.leases.contains_key(&id) {
            return Err(StoreError::LeaseExists(id));
        }
        self.insert_lease(id, ttl_seconds, chosen);
        record::encode_grant(&mut outcome.records, id, ttl_seconds, chosen);
        Ok(Answer::Granted { id, ttl_seconds })
    }

    fn free_lease_id(&self) -> LeaseId {
        let mut id = self.last_lease + 1;
        while self.leases.contains_key(&id) {
            id += 1;
        }
        id
    }

    fn revoke(&mut self, id: LeaseId, outcome: &mut Outcome) {
        let Some(lease) = self.leases.remove(&id) else { return };
        record::encode_revoke(&mut outcome.records, id);
        if lease.keys.is_empty() {
            return;
        }
        self.revision += 1;
        let mut events = Vec::with_capacity(lease.keys.len());
        for key in &lease.keys {
            if let Some(previous) = self.delete(key) {
                events.push(Event::Delete {
                    key: key.clone(),
                    revision: self.revision,
                    previous: Some(previous),
                });
            }
        }
        record::encode_txn(&mut outcome.records, self.revision, &events);
        outcome.commits.push(Commit { revision: self.revision, events });
    }

    fn attach(&mut self, lease: LeaseId, key: &Bytes) {
        if lease != 0
            && let Some(lease) = self.leases.get_mut(&lease)
        {
            lease.keys.insert(key.clone());
        }
    }

    fn detach(&mut self, lease: LeaseId, key: &Bytes) {
        if lease != 0
            && let Some(lease) = self.leases.get_mut(&lease)
        {
            lease.keys.remove(key);
        }
    }
}

/// The keys of `range`, ascending.
pub(crate) fn entries<'a>(
    keys: &'a OrdMap<Bytes, Arc<KeyValue>>,
    range: &'a KeyRange,
) -> impl Iterator<Item = (&'a Bytes, &'a Arc<KeyValue>)> {
    keys.range::<_, [u8]>((Bound::Included(&range.start[..]), Bound::Unbounded))
        .take_while(|(key, _)| range.contains(key))
}

/// What a key-value counts for in memory and on disk.
pub(crate) fn size(item: &KeyValue) -> u64 {
    (item.key.len() + item.value.len()) as u64
}

/// Whether a transaction can change anything, whichever branch runs.
pub(crate) fn writes(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| !matches!(op, Op::Get { .. }))
}

/// What a transaction adds to the log at most, roughly.
pub(crate) fn weight(txn: &Txn) -> usize {
    let op = |op: &Op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { .. } | Op::Get { .. } => 0,
    };
    txn.success.iter().chain(&txn.failure).map(op).sum()
}

fn check_overlap(ops: &[Op]) -> Result<(), StoreError> {
    let [_, _, ..] = ops else { return Ok(()) };
    let mut puts: Vec<&Bytes> = ops.iter().filter_map(put_key).collect();
    puts.sort_unstable();
    if puts.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(StoreError::InvalidTxn("a key is put twice"));
    }
    let deleted =
        |key: &&Bytes| ops.iter().any(|op| matches!(op, Op::Delete { range } if range.contains(key)));
    if puts.iter().any(deleted) {
        return Err(StoreError::InvalidTxn("a key is both put and deleted"));
    }
    Ok(())
}

fn put_key(op: &Op) -> Option<&Bytes> {
    match op {
        Op::Put { key, .. } => Some(key),
        Op::Delete { .. } | Op::Get { .. } => None,
    }
}
