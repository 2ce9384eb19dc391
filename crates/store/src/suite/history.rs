use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use super::{collect, describe_all, watch};
use crate::{Compare, KeyRange, Op, Revision, Store, Txn};

const CASES: usize = 24;
const KEYS: u8 = 6;

/// One transaction of a history.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    /// Writes only if the key is as the model says, or, if `false`, only if it is not.
    Update(u8, u8, bool),
    Delete(u8),
    DeleteFrom(u8),
    PutTwo(u8, u8, u8),
}

/// Everything a store with one history should answer.
#[derive(Debug, Default)]
struct Model {
    live: BTreeMap<String, (String, Revision)>,
    past: BTreeMap<Revision, Vec<String>>,
    events: Vec<String>,
}

/// Random histories, each checked against a map: what every revision held, and what a watch of it all saw.
pub async fn histories_agree_with_the_model(store: &dyn Store) {
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(Default::default()),
    );
    let strategy = vec(step(), 1..40);
    for case in 0..CASES {
        let steps = strategy.new_tree(&mut runner).expect("histories can be made").current();
        check(store, &format!("case-{case:03}/"), &steps).await;
    }
}

async fn check(store: &dyn Store, prefix: &str, steps: &[Step]) {
    let first = store.revision().await.expect("there is a revision");
    let mut revision = first;
    let mut model = Model::default();
    let mut live = watch(store, KeyRange::prefix(prefix.to_owned()), first + 1).await;
    for step in steps {
        let (txn, succeeds) = model.transaction(prefix, step);
        let result = store.txn(txn).await.expect("the transaction runs");
        assert_eq!(result.succeeded, succeeds, "{step:?} in {steps:?}");
        if model.apply(prefix, step, revision + 1) {
            revision += 1;
        }
        assert_eq!(result.revision, revision, "{step:?} in {steps:?}");
        model.past.insert(revision, model.items());
    }
    for (revision, expected) in &model.past {
        let found =
            store.range(KeyRange::prefix(prefix.to_owned()), *revision, 0).await.expect("the past is read");
        let found: Vec<_> = found
            .items
            .iter()
            .map(|item| {
                let (key, value) = (String::from_utf8_lossy(&item.key), String::from_utf8_lossy(&item.value));
                format!("{key}={value}@{}", item.mod_revision)
            })
            .collect();
        assert_eq!(&found, expected, "at {revision} of {steps:?}");
    }
    let mut late = watch(store, KeyRange::prefix(prefix.to_owned()), first + 1).await;
    for watch in [&mut live, &mut late] {
        let seen = collect(&mut **watch, model.events.len()).await;
        assert_eq!(describe_all(&seen), model.events, "a watch of {steps:?}");
        let more = pin!(watch.next()).as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(
            matches!(&more, Poll::Pending)
                || matches!(&more, Poll::Ready(Ok(batch)) if batch.events.is_empty()),
            "nothing more of {steps:?}"
        );
    }
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS;
    prop_oneof![
        4 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        3 => (key.clone(), any::<u8>(), any::<bool>()).prop_map(|(key, value, right)| Step::Update(key, value, right)),
        2 => key.clone().prop_map(Step::Delete),
        1 => key.clone().prop_map(Step::DeleteFrom),
        1 => (key.clone(), 1..KEYS, any::<u8>()).prop_map(|(key, step, value)| Step::PutTwo(key, (key + step) % KEYS, value)),
    ]
}

impl Model {
    fn transaction(&self, prefix: &str, step: &Step) -> (Txn, bool) {
        let name = |key: &u8| format!("{prefix}{key}");
        let put = |key: &u8, value: &u8| Op::Put {
            key: name(key).into(),
            value: value.to_string().into(),
            lease: 0,
        };
        match step {
            Step::Put(key, value) => (Txn { success: vec![put(key, value)], ..Txn::default() }, true),
            Step::Update(key, value, right) => {
                let revision = self.live.get(&name(key)).map_or(0, |(_, revision)| *revision);
                let compare = Compare::mod_revision(name(key), revision + u64::from(!right));
                (Txn { compares: vec![compare], success: vec![put(key, value)], failure: vec![] }, *right)
            }
            Step::Delete(key) => (
                Txn { success: vec![Op::Delete { range: KeyRange::key(name(key)) }], ..Txn::default() },
                true,
            ),
            Step::DeleteFrom(key) => {
                let range = KeyRange { start: name(key).into(), ..KeyRange::prefix(prefix.to_owned()) };
                (Txn { success: vec![Op::Delete { range }], ..Txn::default() }, true)
            }
            Step::PutTwo(first, second, value) => {
                (Txn { success: vec![put(first, value), put(second, value)], ..Txn::default() }, true)
            }
        }
    }

    /// Whether the step spends a revision.
    fn apply(&mut self, prefix: &str, step: &Step, revision: Revision) -> bool {
        let name = |key: &u8| format!("{prefix}{key}");
        let before = self.events.len();
        match step {
            Step::Put(key, value) | Step::Update(key, value, true) => self.put(name(key), value, revision),
            Step::Update(_, _, false) => {}
            Step::Delete(key) => self.delete(&name(key), revision),
            Step::DeleteFrom(key) => {
                let keys: Vec<_> = self.live.range(name(key)..).map(|(key, _)| key.clone()).collect();
                keys.iter().for_each(|key| self.delete(key, revision));
            }
            Step::PutTwo(first, second, value) => {
                self.put(name(first), value, revision);
                self.put(name(second), value, revision);
            }
        }
        self.events.len() > before
    }

    fn put(&mut self, key: String, value: &u8, revision: Revision) {
        let old = self.live.insert(key.clone(), (value.to_string(), revision));
        let old = old.map_or(String::new(), |(value, _)| format!("<{value}"));
        self.events.push(format!("+{key}={value}@{revision}{old}"));
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        if let Some((value, _)) = self.live.remove(key) {
            self.events.push(format!("-{key}@{revision}<{value}"));
        }
    }

    fn items(&self) -> Vec<String> {
        self.live.iter().map(|(key, (value, revision))| format!("{key}={value}@{revision}")).collect()
    }
}
