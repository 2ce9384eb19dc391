//! Lists and watches one kind into an informer's cache, for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::Client;
use kube::core::WatchEvent;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::clock::SharedClock;
use crate::informer::{Informer, Object};
use crate::object::{chain, key_of, parse_resource_version};

const PAGE: u32 = 500;
/// Watches are asked to end after this long, and up to twice that, as upstream's clients do.
const WATCH_SECONDS: u32 = 300;
/// A watch that ended sooner than this without an event counts as failed.
const TOO_SHORT: Duration = Duration::from_secs(1);
const METADATA_ONLY: &str = "as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST_ONLY: &str = "as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// What to list and watch.
pub(crate) struct Source {
    pub(crate) client: Client,
    pub(crate) path: String,
    pub(crate) field_selector: String,
}

#[derive(Deserialize)]
struct Page<K> {
    #[serde(default)]
    metadata: ListMeta,
    items: Option<Vec<K>>,
}

/// Why a watch ended.
enum WatchEnd {
    /// Watch again from where it ended.
    Resume,
    /// The history from there is gone: list again.
    Expired,
}

pub(crate) async fn run<K: Object>(
    informer: Informer<K>,
    source: Source,
    clock: SharedClock,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(follow(&informer, &source, &clock)).await;
}

async fn follow<K: Object>(informer: &Informer<K>, source: &Source, clock: &SharedClock) {
    let mut failures = 0;
    loop {
        let mut version = match list(informer, source).await {
            Ok(version) => version,
            Err(error) => {
                failed(source, clock, &mut failures, &error, "list failed").await;
                continue;
            }
        };
        loop {
            let began = clock.monotonic();
            let before = version.clone();
            match watch(informer, source, &mut version).await {
                Ok(WatchEnd::Resume) => {
                    if version != before || clock.monotonic().saturating_sub(began) > TOO_SHORT {
                        failures = 0;
                    } else {
                        clock.sleep(Backoff::CONNECTION.jittered(failures)).await;
                        failures += 1;
                    }
                }
                Ok(WatchEnd::Expired) => {
                    debug!(path = source.path, resource_version = version, "watch expired");
                    clock.sleep(Backoff::CONNECTION.jittered(failures)).await;
                    failures += 1;
                    break;
                }
                Err(error) if is_expired(&error) => break,
                Err(error) => failed(source, clock, &mut failures, &error, "watch failed").await,
            }
        }
    }
}

async fn failed(
    source: &Source,
    clock: &SharedClock,
    failures: &mut u32,
    error: &kube::Error,
    what: &'static str,
) {
    let delay = Backoff::CONNECTION.jittered(*failures);
    warn!(path = source.path, error = %chain(error), retry_in = ?delay, what, "informer is behind");
    *failures = failures.saturating_add(1);
    clock.sleep(delay).await;
}

/// Brings the cache to the state of a list, page by page, and returns the list's resource version.
async fn list<K: Object>(informer: &Informer<K>, source: &Source) -> Result<String, kube::Error> {
    let mut seen = BTreeSet::new();
    let mut continue_token = String::new();
    loop {
        let page: Page<K> = match source.client.request(list_request::<K>(source, &continue_token)?).await {
            // The snapshot the pages come from is gone: begin again. What was applied stays right.
            Err(error) if is_expired(&error) && !continue_token.is_empty() => {
                continue_token.clear();
                seen.clear();
                continue;
            }
            page => page?,
        };
        for object in page.items.into_iter().flatten() {
            seen.insert(key_of(&object));
            informer.apply(object);
        }
        continue_token = page.metadata.continue_.unwrap_or_default();
        if continue_token.is_empty() {
            for key in informer.keys() {
                if !seen.contains(&*key) {
                    informer.remove(&key, None);
                }
            }
            let version = page.metadata.resource_version.unwrap_or_default();
            informer.set_synced(parse_resource_version(&version));
            return Ok(version);
        }
    }
}

async fn watch<K: Object>(
    informer: &Informer<K>,
    source: &Source,
    version: &mut String,
) -> Result<WatchEnd, kube::Error> {
    let stream = source.client.request_events::<K>(watch_request::<K>(source, version)?).await?;
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        match event? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                note_version(version, &object);
                informer.apply(object);
            }
            WatchEvent::Deleted(object) => {
                note_version(version, &object);
                informer.remove(&key_of(&object), Some(object));
            }
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                informer.advance(parse_resource_version(version));
            }
            WatchEvent::Error(status) if status.code == 410 => return Ok(WatchEnd::Expired),
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        }
    }
    Ok(WatchEnd::Resume)
}

fn note_version<K: Object>(version: &mut String, object: &K) {
    if let Some(new) = &object.meta().resource_version {
        version.clone_from(new);
    }
}

fn is_expired(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

fn list_request<K: Object>(
    source: &Source,
    continue_token: &str,
) -> Result<http::Request<Vec<u8>>, kube::Error> {
    let mut query = format!("limit={PAGE}");
    if !continue_token.is_empty() {
        push(&mut query, "continue", continue_token);
    }
    request::<K>(source, query, METADATA_LIST_ONLY)
}

fn watch_request<K: Object>(source: &Source, version: &str) -> Result<http::Request<Vec<u8>>, kube::Error> {
    let seconds = WATCH_SECONDS + rand::random_range(0..WATCH_SECONDS);
    let mut query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}");
    push(&mut query, "resourceVersion", version);
    request::<K>(source, query, METADATA_ONLY)
}

fn request<K: Object>(
    source: &Source,
    mut query: String,
    metadata_only: &str,
) -> Result<http::Request<Vec<u8>>, kube::Error> {
    if !source.field_selector.is_empty() {
        push(&mut query, "fieldSelector", &source.field_selector);
    }
    let accept = if K::metadata_api() {
        format!("application/json;{metadata_only}")
    } else {
        "application/json".to_owned()
    };
    http::Request::get(format!("{}?{query}", source.path))
        .header(http::header::ACCEPT, accept)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)
}

fn push(query: &mut String, name: &str, value: &str) {
    query.push('&');
    query.push_str(name);
    query.push('=');
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            query.push(char::from(byte));
        } else {
            query.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests;
