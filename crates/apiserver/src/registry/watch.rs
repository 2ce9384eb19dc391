//! Watches: what was (if asked for), then what changes, until the client or the time limit ends it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use store::Revision;
use tokio::time::Instant;

use super::catalog::Target;
use super::render::Renderer;
use super::selection::Selection;
use super::{Registry, parse_version, stored_kind, wire};
use crate::front::negotiate::{Encoding, Form};
use crate::front::options::Options;
use crate::mirror::Mirror;
use crate::mirror::head::Stored;
use crate::mirror::resource::Change;
use crate::mirror::watcher::{Ended, Watcher};
use crate::status::ApiError;

/// Changes looked at between two writes to the connection.
const BATCH: usize = 512;
/// Bytes of events written at a time.
const CHUNK: usize = 64 << 10;
/// How often a client that wants bookmarks gets one when nothing happens.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Upstream's `--min-request-timeout`: watches without a limit of their own end after one to two of these.
const MIN_TIMEOUT: Duration = Duration::from_secs(1800);

/// A running watch.
struct Running {
    mirror: Arc<Mirror>,
    watcher: Watcher,
    selection: Selection,
    renderer: Renderer,
    /// Objects to be announced as ADDED before any change.
    initial: VecDeque<Arc<Stored>>,
    /// Revision of the bookmark that ends the initial objects, if one was asked for.
    initial_end: Option<Revision>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    /// Changes up to here are known to the client.
    after: Revision,
    changes: Vec<Arc<Change>>,
    first: bool,
    over: bool,
}

impl Registry {
    /// Starts a watch. The stream's items are whole frames.
    pub async fn watch(
        &self,
        target: &Target,
        selection: Selection,
        options: &Options,
        renderer: Renderer,
    ) -> Result<impl Stream<Item = Bytes> + Send + use<>, ApiError> {
        check_initial_events(options)?;
        if renderer.accepted.encoding == Encoding::Yaml {
            return Err(ApiError::not_acceptable(&["application/json;stream=watch"]));
        }
        let mirror = stored_kind(target)?;
        let version = parse_version(&options.resource_version)?;
        let wants_state = options.send_initial_events.unwrap_or(matches!(version, None | Some(0)));
        if wants_state || version.is_none() {
            self.freshen(&options.resource_version).await?;
        }
        let (initial, after) = if wants_state {
            let (snapshot, newest) = mirror.snapshot();
            let matching = snapshot.values().filter(|object| selection.matches(object)).cloned().collect();
            (matching, newest.max(self.mirror.revision()))
        } else {
            (VecDeque::new(), version.filter(|&own| own > 0).unwrap_or_else(|| self.mirror.revision()))
        };
        let watcher = mirror.watch(after, selection.topic()).map_err(|gone| {
            ApiError::expired(format!("too old resource version: {after} ({})", gone.oldest))
        })?;
        let now = Instant::now();
        let timeout = options
            .timeout_seconds
            .map_or_else(|| MIN_TIMEOUT.mul_f64(1.0 + rand::random::<f64>()), Duration::from_secs);
        let running = Running {
            mirror: Arc::clone(&self.mirror),
            watcher,
            selection,
            renderer,
            initial,
            initial_end: (options.send_initial_events == Some(true) && options.allow_watch_bookmarks)
                .then_some(after),
            bookmarks: options.allow_watch_bookmarks,
            next_bookmark: now + BOOKMARK_EVERY,
            deadline: now + timeout,
            after,
            changes: Vec::new(),
            first: true,
            over: false,
        };
        Ok(futures::stream::unfold(running, |mut running| async move {
            let bytes = running.next().await?;
            Some((bytes, running))
        }))
    }
}

impl Running {
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while !self.over {
            self.announce_initial(&mut out);
            if !out.is_empty() {
                return Some(out.into());
            }
            // Read before the changes are: everything up to it is then in them.
            let caught_up = self.mirror.revision();
            match self.watcher.take(BATCH, &mut self.changes) {
                Ok(()) if self.changes.is_empty() => {}
                Ok(()) => {
                    self.write_changes(&mut out);
                    if out.is_empty() {
                        continue;
                    }
                    return Some(out.into());
                }
                Err(Ended::Closed) => return None,
                Err(Ended::TooSlow) => {
                    self.over = true;
                    self.error(
                        &ApiError::expired("too old resource version: the watch fell behind"),
                        &mut out,
                    );
                    return Some(out.into());
                }
            }
            tokio::select! {
                () = self.watcher.changed() => {}
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    self.bookmark(caught_up, false, &mut out);
                    return Some(out.into());
                }
                () = tokio::time::sleep_until(self.deadline) => {
                    self.over = true;
                    if self.bookmarks {
                        self.bookmark(caught_up, false, &mut out);
                        return Some(out.into());
                    }
                }
            }
        }
        None
    }

    fn announce_initial(&mut self, out: &mut Vec<u8>) {
        while out.len() < CHUNK {
            let Some(object) = self.initial.pop_front() else { break };
            self.event("ADDED", &object, out);
        }
        if self.initial.is_empty()
            && let Some(revision) = self.initial_end.take()
        {
            self.bookmark(revision, true, out);
        }
    }

    fn write_changes(&mut self, out: &mut Vec<u8>) {
        let mut changes = std::mem::take(&mut self.changes);
        for change in changes.drain(..) {
            if change.revision <= self.after {
                continue;
            }
            self.after = change.revision;
            let before = change.previous.as_ref().filter(|previous| self.selection.matches(previous));
            let matches = !change.deleted && self.selection.matches(&change.object);
            match (before, matches) {
                (None, true) => self.event("ADDED", &change.object, out),
                (Some(_), true) => self.event("MODIFIED", &change.object, out),
                (Some(_), false) if change.deleted => self.event("DELETED", &change.object, out),
                (Some(previous), false) => {
                    self.event("DELETED", &previous.deleted_at(change.revision), out);
                }
                (None, false) => {}
            }
        }
        self.changes = changes;
    }

    fn event(&mut self, kind: &str, object: &Stored, out: &mut Vec<u8>) {
        let first = std::mem::take(&mut self.first);
        let start = out.len();
        let result = match self.renderer.accepted.encoding {
            Encoding::Protobuf => wire::protobuf_event(&self.renderer, kind, object, out),
            Encoding::Json | Encoding::Yaml => {
                out.extend_from_slice(b"{\"type\":\"");
                out.extend_from_slice(kind.as_bytes());
                out.extend_from_slice(b"\",\"object\":");
                let result = self.renderer.event_object(object, first, out);
                out.extend_from_slice(b"}\n");
                result
            }
        };
        if let Err(error) = result {
            out.truncate(start);
            self.over = true;
            self.error(&error, out);
        }
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool, out: &mut Vec<u8>) {
        let target = &self.renderer.target;
        let mut metadata = json!({ "resourceVersion": revision.max(self.after).to_string() });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.renderer.accepted.form {
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": { "resourceVersion": metadata["resourceVersion"] },
                "columnDefinitions": null,
                "rows": [{ "cells": [], "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                }}],
            }),
            Form::Object => {
                let mut object = json!({
                    "kind": &*target.spec().kind, "apiVersion": target.api_version(), "metadata": metadata,
                });
                if !target.resource.custom {
                    schema::canonical::normalize(&mut object, target.schema());
                }
                object
            }
        };
        self.plain_event("BOOKMARK", &object, out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        let status = serde_json::to_value(&error.0).unwrap_or_default();
        self.plain_event("ERROR", &status, out);
    }

    fn plain_event(&mut self, kind: &str, object: &Value, out: &mut Vec<u8>) {
        if self.renderer.accepted.encoding == Encoding::Protobuf {
            if let Err(error) = wire::protobuf_plain_event(&self.renderer.target, kind, object, out) {
                tracing::error!(%error, "a watch event did not encode");
                self.over = true;
            }
            return;
        }
        out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").as_bytes());
    }
}

fn check_initial_events(options: &Options) -> Result<(), ApiError> {
    let refuse = |text: &str| {
        Err(ApiError::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {text}"), None))
    };
    let matching = options.resource_version_match.as_str();
    match options.send_initial_events {
        None if !matching.is_empty() => refuse(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        Some(_) if matching != "NotOlderThan" => refuse(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        _ => Ok(()),
    }
}
