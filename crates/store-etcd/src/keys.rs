//! How keys and ranges of the store look in etcd: under the store's prefix, with etcd's way to write a range's end.

use std::ops::Bound;

use bytes::Bytes;
use store::KeyRange;

/// Ends the name of a key that exists for a moment to make a quiet watch move on; no reader is shown one.
const MARKER: &[u8] = b"\0coracle/progress";
/// The end of a range that has none.
const NO_END: &[u8] = b"\0";

/// What the keys of one store begin with.
#[derive(Debug, Clone)]
pub(crate) struct Prefix(Bytes);

impl Prefix {
    pub(crate) fn new(prefix: String) -> Self {
        Self(prefix.into())
    }

    pub(crate) fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.0[..], key].concat()
    }

    /// A key of ours; `None` if it is not one to be seen.
    pub(crate) fn strip(&self, key: Vec<u8>) -> Option<Bytes> {
        let seen = key.starts_with(&self.0) && !key.ends_with(MARKER);
        seen.then(|| Bytes::from(key).slice(self.0.len()..))
    }

    /// The first key and the end of a range, in etcd's form.
    pub(crate) fn range(&self, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
        (self.start(range), self.end(range))
    }

    /// As `range`, and wide enough for its marker.
    pub(crate) fn watched(&self, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
        let (start, end) = self.range(range);
        let after_marker = after(self.marker(range));
        let end = if end == NO_END { end } else { end.max(after_marker) };
        (start, end)
    }

    pub(crate) fn marker(&self, range: &KeyRange) -> Vec<u8> {
        [&self.0[..], &range.start, MARKER].concat()
    }

    pub(crate) fn is_marker(key: &[u8]) -> bool {
        key.ends_with(MARKER)
    }

    fn start(&self, range: &KeyRange) -> Vec<u8> {
        let start = self.key(&range.start);
        // etcd has no empty key, and no range that begins with one.
        if start.is_empty() { NO_END.to_vec() } else { start }
    }

    fn end(&self, range: &KeyRange) -> Vec<u8> {
        match &range.end {
            Bound::Included(end) => after(self.key(end)),
            Bound::Excluded(end) => self.key(end),
            Bound::Unbounded => match KeyRange::prefix(self.0.clone()).end {
                Bound::Excluded(end) if !self.0.is_empty() => end.to_vec(),
                _ => NO_END.to_vec(),
            },
        }
    }
}

/// The first key after `key`.
pub(crate) fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_take_etcds_form() {
        let exclusive = |start: &'static str, end: &'static str| KeyRange {
            start: start.into(),
            end: Bound::Excluded(end.into()),
        };
        let from = |start: &'static str| KeyRange { start: start.into(), end: Bound::Unbounded };
        let table = [
            ("", KeyRange::key("a"), "a", "a\0"),
            ("", KeyRange::prefix("a/"), "a/", "a0"),
            ("", exclusive("a", "c"), "a", "c"),
            ("", from("a"), "a", "\0"),
            ("", KeyRange::prefix(""), "\0", "\0"),
            ("/p", KeyRange::key("a"), "/pa", "/pa\0"),
            ("/p", KeyRange::prefix("a/"), "/pa/", "/pa0"),
            ("/p", from("a"), "/pa", "/q"),
            ("/p", KeyRange::prefix(""), "/p", "/q"),
        ];
        for (prefix, range, start, end) in table {
            let found = Prefix::new(prefix.to_owned()).range(&range);
            assert_eq!(found, (start.into(), end.into()), "{prefix:?} {range:?}");
        }
    }

    #[test]
    fn a_watch_is_wide_enough_for_its_marker() {
        let prefix = Prefix::new("/p".to_owned());
        for range in [KeyRange::key("a"), KeyRange::prefix("a"), KeyRange::prefix("")] {
            let (start, end) = prefix.watched(&range);
            let marker = prefix.marker(&range);
            assert!(start <= marker && marker < end, "{range:?}");
            assert_eq!(prefix.strip(marker), None);
        }
        assert_eq!(prefix.strip(b"/pkey".to_vec()), Some(Bytes::from("key")));
        assert_eq!(prefix.strip(b"/other".to_vec()), None);
    }
}
