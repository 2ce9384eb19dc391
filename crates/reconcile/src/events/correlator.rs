//! Which events to write: repeats count up one event, similar ones are combined, floods are dropped. The
//! thresholds are upstream's.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;

use crate::events::{EventType, Note};

/// More different notes than this in [`SIMILAR_WINDOW`] are combined.
const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// Events an object may have at once from one controller, and how long it takes to earn one more.
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
/// Keys remembered of each sort; the least recently seen half goes when there are more.
const REMEMBERED: usize = 4_096;
const COMBINED: &str = "(combined from similar events): ";

#[derive(Default)]
pub(super) struct Correlator {
    sequence: u32,
    written: HashMap<Exact, Seen<Written>>,
    similar: HashMap<Similar, Seen<HashSet<String>>>,
    spam: HashMap<Source, Seen<Bucket>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    New { note: String },
    Repeat { name: String, count: i32 },
    Drop,
}

type Object = (Option<String>, Option<String>, Option<String>, Option<String>, Option<String>);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Source {
    controller: &'static str,
    object: Object,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Similar {
    source: Source,
    event_type: EventType,
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Exact {
    similar: Similar,
    /// `None` for what was combined.
    note: Option<String>,
}

struct Seen<T> {
    at: Duration,
    value: T,
}

struct Written {
    name: String,
    count: i32,
}

struct Bucket {
    tokens: f64,
}

impl Correlator {
    /// A number that differs from one call to the next.
    pub(super) fn sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    pub(super) fn decide(&mut self, controller: &'static str, note: &Note, now: Duration) -> Decision {
        let similar = similar_key(controller, note);
        let combined = self.is_combined(&similar, &note.note, now);
        let allowed = self.take_token(&similar.source, now);
        let exact = Exact { similar, note: (!combined).then(|| note.note.clone()) };
        if !allowed {
            return Decision::Drop;
        }
        if let Some(seen) = self.written.get_mut(&exact) {
            seen.at = now;
            seen.value.count = seen.value.count.saturating_add(1);
            return Decision::Repeat { name: seen.value.name.clone(), count: seen.value.count };
        }
        let note = if combined { format!("{COMBINED}{}", note.note) } else { note.note.clone() };
        Decision::New { note }
    }

    /// Notes that an event was written under `name`, so that a repeat can find it.
    pub(super) fn created(&mut self, controller: &'static str, note: &Note, name: String) {
        let exact = exact_key(controller, note);
        let at = self.spam.get(&exact.similar.source).map_or(Duration::ZERO, |seen| seen.at);
        self.written.insert(exact, Seen { at, value: Written { name, count: 1 } });
        trim(&mut self.written);
    }

    /// Forgets an event that the API server no longer has.
    pub(super) fn forget(&mut self, controller: &'static str, note: &Note) {
        self.written.remove(&exact_key(controller, note));
        self.written.remove(&Exact { similar: similar_key(controller, note), note: None });
    }

    fn is_combined(&mut self, key: &Similar, note: &str, now: Duration) -> bool {
        let fresh = || Seen { at: now, value: HashSet::new() };
        let seen = self.similar.entry(key.clone()).or_insert_with(fresh);
        if now.saturating_sub(seen.at) > SIMILAR_WINDOW {
            seen.value.clear();
        }
        seen.at = now;
        if seen.value.len() < SIMILAR_MAX {
            seen.value.insert(note.to_owned());
            trim(&mut self.similar);
            return false;
        }
        !seen.value.contains(note)
    }

    fn take_token(&mut self, key: &Source, now: Duration) -> bool {
        let fresh = || Seen { at: now, value: Bucket { tokens: BURST } };
        let seen = self.spam.entry(key.clone()).or_insert_with(fresh);
        let earned = now.saturating_sub(seen.at).as_secs_f64() / REFILL_SECONDS;
        seen.at = now;
        seen.value.tokens = (seen.value.tokens + earned).min(BURST);
        let allowed = seen.value.tokens >= 1.0;
        if allowed {
            seen.value.tokens -= 1.0;
        }
        trim(&mut self.spam);
        allowed
    }
}

fn similar_key(controller: &'static str, note: &Note) -> Similar {
    let source = Source { controller, object: object_key(&note.regarding) };
    Similar { source, event_type: note.event_type, reason: note.reason }
}

fn exact_key(controller: &'static str, note: &Note) -> Exact {
    let text = (!note.note.starts_with(COMBINED)).then(|| note.note.clone());
    Exact { similar: similar_key(controller, note), note: text }
}

fn object_key(object: &ObjectReference) -> Object {
    let ObjectReference { kind, namespace, name, uid, field_path, .. } = object.clone();
    (kind, namespace, name, uid, field_path)
}

fn trim<K: Clone + Eq + Hash, T>(seen: &mut HashMap<K, Seen<T>>) {
    if seen.len() > REMEMBERED {
        let mut times: Vec<Duration> = seen.values().map(|entry| entry.at).collect();
        times.sort_unstable();
        let median = times[times.len() / 2];
        seen.retain(|_, entry| entry.at > median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(object: &str, text: &str) -> Note {
        Note {
            regarding: ObjectReference { name: Some(object.to_owned()), ..ObjectReference::default() },
            related: None,
            event_type: EventType::Normal,
            reason: "Tested",
            action: "Test",
            note: text.to_owned(),
        }
    }

    fn write(correlator: &mut Correlator, object: &str, text: &str, second: u64) -> String {
        let mut note = note(object, text);
        match correlator.decide("c", &note, Duration::from_secs(second)) {
            Decision::New { note: text } => {
                note.note.clone_from(&text);
                correlator.created("c", &note, format!("{object}.{second}"));
                format!("new {text}")
            }
            Decision::Repeat { name, count } => format!("{name} x{count}"),
            Decision::Drop => "drop".to_owned(),
        }
    }

    #[test]
    fn repeats_count_up_the_first_event() {
        let mut correlator = Correlator::default();
        assert_eq!(write(&mut correlator, "a", "hello", 1), "new hello");
        assert_eq!(write(&mut correlator, "a", "hello", 2), "a.1 x2");
        assert_eq!(write(&mut correlator, "b", "hello", 3), "new hello");
        assert_eq!(write(&mut correlator, "a", "hello", 4), "a.1 x3");
    }

    #[test]
    fn the_eleventh_different_note_is_combined() {
        let mut correlator = Correlator::default();
        for n in 0..10 {
            assert_eq!(write(&mut correlator, "a", &format!("note {n}"), n), format!("new note {n}"));
        }
        let combined = "new (combined from similar events): note 10";
        assert_eq!(write(&mut correlator, "a", "note 10", 10), combined);
        assert_eq!(write(&mut correlator, "a", "note 11", 11), "a.10 x2");
        assert_eq!(write(&mut correlator, "a", "note 3", 12), "a.3 x2");
    }

    #[test]
    fn a_flood_is_dropped_and_earns_one_event_every_five_minutes() {
        let mut correlator = Correlator::default();
        for _ in 0..25 {
            assert_ne!(write(&mut correlator, "a", "hello", 1), "drop");
        }
        assert_eq!(write(&mut correlator, "a", "hello", 1), "drop");
        assert_ne!(write(&mut correlator, "b", "hello", 1), "drop");
        assert_ne!(write(&mut correlator, "a", "hello", 302), "drop");
        assert_eq!(write(&mut correlator, "a", "hello", 303), "drop");
    }
}
