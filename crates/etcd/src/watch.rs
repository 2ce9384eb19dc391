//! The Watch service: one stream carries many watches. A task for each watch forwards its events; the task of the
//! stream owns them all and ends with the client.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::proto::{PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService};
use store::{Event, KeyRange, Revision, Store, StoreError, Watch, WatchBatch};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::convert::{self, signed, unsigned};
use crate::member::Member;

/// Responses that wait for the client; behind them, watches fall back to the store's history.
const RESPONSES_AHEAD: usize = 64;
/// A watch that asked for it hears of its progress this often when nothing happens, as in etcd.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// The id under which progress of all watches is told.
const ALL_WATCHES: i64 = -1;

type Sender = mpsc::Sender<Result<PbWatchResponse, Status>>;

/// The task of one stream.
struct Session {
    member: Member,
    sender: Sender,
    watches: HashMap<i64, AbortHandle>,
    tasks: JoinSet<()>,
    progress: Arc<Progress>,
    next_id: i64,
}

/// The task of one watch.
struct Forwarder {
    member: Member,
    sender: Sender,
    id: i64,
    view: View,
    progress: Arc<Progress>,
}

/// What a client wants to see of a watch.
#[derive(Debug, Clone, Copy)]
struct View {
    previous: bool,
    puts: bool,
    deletes: bool,
    progress: bool,
}

/// How far the watches of a stream have come, and how far the client wants to know them.
#[derive(Debug, Default)]
struct Progress(Mutex<Reached>);

#[derive(Debug, Default)]
struct Reached {
    wanted: Option<Revision>,
    watches: HashMap<i64, Revision>,
}

#[async_trait]
impl PbWatchService for Member {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<PbWatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, responses) = mpsc::channel(RESPONSES_AHEAD);
        let session = Session {
            member: self.clone(),
            sender,
            watches: HashMap::new(),
            tasks: JoinSet::new(),
            progress: Arc::default(),
            next_id: 0,
        };
        // Ends when the client hangs up, and its watches with it.
        tokio::spawn(session.serve(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

impl Session {
    async fn serve(mut self, mut requests: Streaming<PbWatchRequest>) {
        let closed = self.sender.clone();
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                () = closed.closed() => return,
                Some(ended) = self.tasks.join_next() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        tracing::error!("a watch panicked");
                    }
                    continue;
                }
            };
            let Ok(Some(request)) = request else { return };
            let answered = match request.request_union {
                Some(PbWatchRequestUnion::CreateRequest(create)) => {
                    let view = View {
                        previous: create.prev_kv,
                        puts: !create.filters.contains(&0),
                        deletes: !create.filters.contains(&1),
                        progress: create.progress_notify,
                    };
                    let range = convert::range(create.key, create.range_end);
                    self.create(create.watch_id, range, unsigned(create.start_revision), view).await
                }
                Some(PbWatchRequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
                Some(PbWatchRequestUnion::ProgressRequest(_)) => self.tell_progress().await,
                None => true,
            };
            if !answered {
                return;
            }
        }
    }

    /// Whether the client is still there.
    async fn create(
        &mut self,
        wanted_id: i64,
        range: Result<KeyRange, Status>,
        start: Revision,
        view: View,
    ) -> bool {
        let header = self.member.header_now();
        let Ok(range) = range else {
            return self.refuse("etcdserver: key is not provided").await;
        };
        let Some(id) = self.free_id(wanted_id) else {
            return self.refuse("mvcc: duplicate watch ID provided on the WatchStream").await;
        };
        let created = PbWatchResponse { header, watch_id: id, created: true, ..PbWatchResponse::default() };
        let member = self.member.clone();
        match member.store().watch(range, start).await {
            Ok(watch) => {
                let newest = member.store().newest();
                self.progress.add(id, if start == 0 { newest } else { start - 1 });
                if self.sender.send(Ok(created)).await.is_err() {
                    return false;
                }
                let forwarder = Forwarder {
                    member,
                    sender: self.sender.clone(),
                    id,
                    view,
                    progress: Arc::clone(&self.progress),
                };
                let task = self.tasks.spawn(forwarder.run(watch));
                self.watches.insert(id, task);
                true
            }
            Err(error) => {
                let canceled = canceled(&member, id, &error);
                self.sender.send(Ok(created)).await.is_ok() && self.sender.send(Ok(canceled)).await.is_ok()
            }
        }
    }

    async fn refuse(&self, reason: &str) -> bool {
        let refused = PbWatchResponse {
            header: self.member.header_now(),
            watch_id: ALL_WATCHES,
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..PbWatchResponse::default()
        };
        self.sender.send(Ok(refused)).await.is_ok()
    }

    fn free_id(&mut self, wanted: i64) -> Option<i64> {
        self.watches.retain(|_, task| !task.is_finished());
        if wanted != 0 {
            return (!self.watches.contains_key(&wanted)).then_some(wanted);
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    async fn cancel(&mut self, id: i64) -> bool {
        let Some(task) = self.watches.remove(&id) else { return true };
        task.abort();
        self.progress.remove(id);
        let header = self.member.header_now();
        let canceled = PbWatchResponse { header, watch_id: id, canceled: true, ..PbWatchResponse::default() };
        self.sender.send(Ok(canceled)).await.is_ok()
    }

    /// Tells how far all watches are, once they are.
    async fn tell_progress(&self) -> bool {
        let newest = self.member.store().newest();
        if self.progress.want(newest) {
            return self.sender.send(Ok(progress(&self.member, ALL_WATCHES, newest))).await.is_ok();
        }
        if let Err(error) = self.member.store().request_progress().await {
            tracing::warn!(%error, "progress of watches cannot be asked for");
        }
        true
    }
}

impl Forwarder {
    async fn run(self, mut watch: Box<dyn Watch>) {
        let mut due = false;
        loop {
            let batch = match timeout(PROGRESS_INTERVAL, watch.next()).await {
                Ok(Ok(batch)) => batch,
                Ok(Err(error)) => {
                    self.end(&error).await;
                    return;
                }
                Err(_) => {
                    due = self.view.progress;
                    if due && self.member.store().request_progress().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let tell = due && batch.events.is_empty();
            due = due && !tell;
            if !self.forward(batch, tell).await {
                return;
            }
        }
    }

    /// Whether the client is still there.
    async fn forward(&self, batch: WatchBatch, tell_progress: bool) -> bool {
        let events: Vec<_> = batch
            .events
            .iter()
            .filter(|event| self.view.shows(event))
            .map(|event| convert::event(event, self.view.previous))
            .collect();
        let response = PbWatchResponse {
            header: self.member.header(batch.revision),
            watch_id: self.id,
            events,
            ..PbWatchResponse::default()
        };
        if (tell_progress || !response.events.is_empty()) && self.sender.send(Ok(response)).await.is_err() {
            return false;
        }
        match self.progress.reach(self.id, batch.revision) {
            Some(all) => self.sender.send(Ok(progress(&self.member, ALL_WATCHES, all))).await.is_ok(),
            None => true,
        }
    }

    async fn end(&self, error: &StoreError) {
        self.progress.remove(self.id);
        if self.sender.send(Ok(canceled(&self.member, self.id, error))).await.is_err() {
            tracing::trace!("the client of a watch is gone");
        }
    }
}

impl View {
    fn shows(&self, event: &Event) -> bool {
        match event {
            Event::Put { .. } => self.puts,
            Event::Delete { .. } => self.deletes,
        }
    }
}

impl Progress {
    fn add(&self, id: i64, revision: Revision) {
        self.lock().watches.insert(id, revision);
    }

    fn remove(&self, id: i64) {
        self.lock().watches.remove(&id);
    }

    /// Whether all watches are at `revision` already; if not, `reach` will tell.
    fn want(&self, revision: Revision) -> bool {
        let mut reached = self.lock();
        if reached.watches.values().all(|other| *other >= revision) {
            return true;
        }
        reached.wanted = Some(revision);
        false
    }

    /// The revision that was wanted, if now all watches are there.
    fn reach(&self, id: i64, revision: Revision) -> Option<Revision> {
        let mut reached = self.lock();
        if let Some(watch) = reached.watches.get_mut(&id) {
            *watch = revision.max(*watch);
        }
        let wanted = reached.wanted?;
        if reached.watches.values().any(|other| *other < wanted) {
            return None;
        }
        reached.wanted.take()
    }

    fn lock(&self) -> MutexGuard<'_, Reached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn progress(member: &Member, id: i64, revision: Revision) -> PbWatchResponse {
    PbWatchResponse { header: member.header(revision), watch_id: id, ..PbWatchResponse::default() }
}

fn canceled(member: &Member, id: i64, error: &StoreError) -> PbWatchResponse {
    let (compact_revision, cancel_reason) = match error {
        StoreError::Compacted { .. } | StoreError::Lagged => {
            (signed(member.store().compacted()), String::new())
        }
        error => (0, convert::status(error).message().to_owned()),
    };
    PbWatchResponse {
        header: member.header_now(),
        watch_id: id,
        canceled: true,
        compact_revision,
        cancel_reason,
        ..PbWatchResponse::default()
    }
}
