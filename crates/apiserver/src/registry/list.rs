//! Lists: a snapshot, a selection, a page.

use std::ops::Bound;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use store::Revision;

use super::catalog::Target;
use super::selection::Selection;
use super::{Registry, parse_version, stored_kind};
use crate::front::options::Options;
use crate::mirror::head::Stored;
use crate::mirror::resource::{ResourceMirror, Snapshot};
use crate::status::ApiError;

const EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    pub items: Vec<Arc<Stored>>,
    pub revision: Revision,
    pub continue_token: String,
    pub remaining: Option<u64>,
}

/// Where a paged list goes on. The form is upstream's, base64 of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct ContinueToken {
    v: String,
    /// The revision of the first page, or -1 to go on at whatever is newest.
    rv: i64,
    start: String,
}

/// Which state a list shows.
enum At {
    Newest,
    Exactly(Revision),
}

impl Registry {
    pub async fn list(
        &self,
        target: &Target,
        selection: &Selection,
        options: &Options,
    ) -> Result<Page, ApiError> {
        check_match(options)?;
        let mirror = stored_kind(target)?;
        let (at, start) = if options.continue_token.is_empty() {
            (self.state_for(options).await?, None)
        } else {
            let token = ContinueToken::parse(&options.continue_token)?;
            let at = u64::try_from(token.rv).map_or(At::Newest, At::Exactly);
            (at, Some(token.start))
        };
        let (snapshot, revision) = match at {
            At::Newest => {
                let (snapshot, newest) = mirror.snapshot();
                (snapshot, newest.max(self.mirror.revision()))
            }
            At::Exactly(revision) => {
                self.reach(revision).await?;
                (state_at(mirror, revision, start.as_deref())?, revision)
            }
        };
        Ok(page(&snapshot, revision, selection, options.limit, start.as_deref()))
    }

    async fn state_for(&self, options: &Options) -> Result<At, ApiError> {
        let version = parse_version(&options.resource_version)?;
        self.freshen(&options.resource_version).await?;
        let legacy_exact = options.resource_version_match.is_empty() && options.limit > 0;
        match version {
            Some(revision) if revision > 0 && (options.resource_version_match == "Exact" || legacy_exact) => {
                Ok(At::Exactly(revision))
            }
            _ => Ok(At::Newest),
        }
    }
}

/// The matching objects from `start` on, at most `limit` (0: all).
fn page(
    snapshot: &Snapshot,
    revision: Revision,
    selection: &Selection,
    limit: usize,
    start: Option<&str>,
) -> Page {
    let from = match (start, selection.namespace()) {
        (Some(start), _) => Bound::Included(Bytes::from(start.to_owned())),
        (None, "") => Bound::Unbounded,
        (None, namespace) => Bound::Included(Bytes::from(format!("{namespace}/"))),
    };
    let namespace = format!("{}/", selection.namespace());
    let in_namespace =
        |key: &Bytes| selection.namespace().is_empty() || key.starts_with(namespace.as_bytes());
    let mut candidates = snapshot.range((from, Bound::Unbounded)).take_while(|(key, _)| in_namespace(key));
    let mut items = Vec::new();
    let mut more = None;
    for (key, object) in candidates.by_ref() {
        if !selection.matches(object) {
            continue;
        }
        if limit > 0 && items.len() == limit {
            more = Some(key);
            break;
        }
        items.push(Arc::clone(object));
    }
    let continue_token = more.map_or_else(String::new, |key| ContinueToken::at(revision, key).print());
    let remaining = (more.is_some() && !selection.has_selectors()).then(|| 1 + candidates.count() as u64);
    Page { items, revision, continue_token, remaining }
}

fn state_at(mirror: &ResourceMirror, revision: Revision, start: Option<&str>) -> Result<Snapshot, ApiError> {
    mirror.snapshot_at(revision).map_err(|_| match start {
        None => ApiError::expired("The resourceVersion for the provided list is too old."),
        Some(start) => {
            let token = ContinueToken { v: "meta.k8s.io/v1".to_owned(), rv: -1, start: start.to_owned() };
            let mut error = ApiError::expired(EXPIRED);
            error.0.metadata.continue_token = token.print();
            error
        }
    })
}

impl ContinueToken {
    fn at(revision: Revision, key: &Bytes) -> Self {
        Self {
            v: "meta.k8s.io/v1".to_owned(),
            rv: i64::try_from(revision).unwrap_or(i64::MAX),
            start: String::from_utf8_lossy(key).into_owned(),
        }
    }

    fn print(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self, ApiError> {
        let invalid = |why: &str| ApiError::bad_request(format!("continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|error| invalid(&error.to_string()))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|error| invalid(&error.to_string()))?;
        if token.v != "meta.k8s.io/v1" {
            return Err(invalid("server does not recognize this encoded version"));
        }
        if token.rv == 0 {
            return Err(invalid("incorrect encoded start resourceVersion"));
        }
        if token.start.is_empty() || token.start.starts_with('/') || token.start.contains("..") {
            return Err(invalid("continueToken has invalid path"));
        }
        Ok(token)
    }
}

/// The combinations of `resourceVersion`, `resourceVersionMatch` and `continue` that make no sense.
fn check_match(options: &Options) -> Result<(), ApiError> {
    let refuse = |detail: &str| {
        Err(ApiError::new(
            422,
            "Invalid",
            format!("ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {detail}"),
            None,
        ))
    };
    let version = options.resource_version.as_str();
    if !options.continue_token.is_empty() && !matches!(version, "" | "0") {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    match options.resource_version_match.as_str() {
        "" => Ok(()),
        _ if !options.continue_token.is_empty() => {
            refuse("resourceVersionMatch is forbidden when continue is provided")
        }
        _ if version.is_empty() => {
            refuse("resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        "Exact" if version == "0" => {
            refuse("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        "Exact" | "NotOlderThan" => Ok(()),
        other => Err(ApiError::new(
            422,
            "Invalid",
            format!(
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\""
            ),
            None,
        )),
    }
}
