//! A watch that outlives the member it is connected to: it is opened again, anywhere, after the last revision that
//! was delivered.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{WatchClient, WatchOptions, WatchResponse, WatchStream};
use store::{KeyRange, Revision, StoreError, Watch, WatchBatch};
use tokio::time::sleep;

use crate::Markers;
use crate::convert::{self, signed};
use crate::keys::Prefix;

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(2);

pub(crate) struct EtcdWatch {
    client: WatchClient,
    prefix: Prefix,
    range: KeyRange,
    markers: Arc<Markers>,
    /// Everything up to here was delivered.
    cursor: Revision,
    stream: Option<WatchStream>,
    retry: Duration,
}

impl EtcdWatch {
    pub(crate) fn new(
        client: WatchClient,
        prefix: Prefix,
        range: KeyRange,
        markers: Arc<Markers>,
        start: Revision,
    ) -> Self {
        markers.add(prefix.marker(&range));
        Self {
            client,
            prefix,
            range,
            markers,
            cursor: start.saturating_sub(1),
            stream: None,
            retry: FIRST_RETRY,
        }
    }

    /// Waits for a stream. Returns `None` after a failure, when it is time to try again.
    async fn opened(&mut self) -> Option<&mut WatchStream> {
        if self.stream.is_none() {
            let (start, end) = self.prefix.watched(&self.range);
            let options = WatchOptions::new()
                .with_range(end)
                .with_start_revision(signed(self.cursor + 1))
                .with_prev_key()
                .with_progress_notify();
            match self.client.watch(start, Some(options)).await {
                Ok(stream) => self.stream = Some(stream),
                Err(error) => self.failed(&error).await,
            }
        }
        self.stream.as_mut()
    }

    async fn failed(&mut self, cause: &(dyn std::error::Error + Sync)) {
        tracing::debug!(error = %cause, revision = self.cursor, "watch of etcd interrupted");
        self.stream = None;
        let wait = self.retry;
        self.retry = (wait * 2).min(LAST_RETRY);
        sleep(wait).await;
    }

    /// What a response tells; `None` if nothing.
    fn take(&mut self, response: &WatchResponse) -> Option<WatchBatch> {
        let newest = match response.events().last().and_then(|event| event.kv()) {
            Some(last) => convert::revision(last.mod_revision()),
            None if response.created() => return None,
            None => convert::header_revision(response.header()),
        };
        self.retry = FIRST_RETRY;
        if newest <= self.cursor {
            return None;
        }
        self.cursor = newest;
        let events: Vec<_> = response
            .events()
            .iter()
            .filter_map(|event| convert::event(&self.prefix, &self.range, event))
            .collect();
        let marked = || {
            response.events().iter().filter_map(|event| event.kv()).any(|item| Prefix::is_marker(item.key()))
        };
        let told = !events.is_empty() || response.events().is_empty() || marked();
        told.then_some(WatchBatch { revision: newest, events })
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            let Some(stream) = self.opened().await else { continue };
            match stream.message().await {
                Ok(Some(response)) if response.canceled() => {
                    if response.compact_revision() > 0 {
                        let oldest = convert::revision(response.compact_revision());
                        return Err(StoreError::Compacted { requested: self.cursor + 1, oldest });
                    }
                    let reason = etcd_client::Error::WatchError(response.cancel_reason().to_owned());
                    self.failed(&reason).await;
                }
                Ok(Some(response)) => {
                    if let Some(batch) = self.take(&response) {
                        return Ok(batch);
                    }
                }
                Ok(None) => self.failed(&etcd_client::Error::WatchError("the stream ended".to_owned())).await,
                Err(error) => self.failed(&error).await,
            }
        }
    }
}

impl Drop for EtcdWatch {
    fn drop(&mut self) {
        self.markers.remove(&self.prefix.marker(&self.range));
    }
}
