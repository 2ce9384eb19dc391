//! The one writer. Everything that waits when it looks is one batch: checked in order against a copy of the state,
//! made durable by one sync, published, and only then answered. If the disk fails the copy is dropped, and with it
//! the whole batch: no revision is spent on it.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use store::StoreError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::hub::Hub;
use crate::journal::Journal;
use crate::lease::Deadlines;
use crate::record;
use crate::state::{Answer, Command, Outcome, State};

/// What may wait for the disk; who comes later waits before the queue.
const QUEUE_KIB: usize = 64 << 10;

/// What the buffer of a batch keeps for the next one: most are small, and idle memory counts.
const KEPT_RECORD_BYTES: usize = 256 << 10;

/// Where commands go in.
#[derive(Debug)]
pub(crate) enum Committer {
    /// Without a disk there is nothing to wait for: the caller does the work.
    Inline(Box<Mutex<Writer>>),
    Thread {
        queue: Arc<Queue>,
        budget: Arc<Semaphore>,
        thread: Mutex<Option<JoinHandle<()>>>,
    },
}

#[derive(Debug)]
pub(crate) struct Writer {
    state: State,
    hub: Arc<Hub>,
    deadlines: Arc<Deadlines>,
    journal: Option<Journal>,
    outcome: Outcome,
    failing: bool,
}

#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Waiting>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: Vec<Request>,
    asleep: bool,
    closed: bool,
}

#[derive(Debug)]
struct Request {
    command: Command,
    reply: oneshot::Sender<Result<Answer, StoreError>>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// One failure of the disk, told to everyone in the batch.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the log cannot be written")]
struct WriteFailed(#[source] Arc<io::Error>);

impl Committer {
    pub(crate) fn inline(writer: Writer) -> Self {
        Self::Inline(Box::new(Mutex::new(writer)))
    }

    pub(crate) fn thread(writer: Writer) -> io::Result<Self> {
        let queue = Arc::new(Queue { inner: Mutex::default(), ready: Condvar::new() });
        let served = Arc::clone(&queue);
        let thread =
            thread::Builder::new().name("store-committer".into()).spawn(move || serve(writer, &served))?;
        let budget = Arc::new(Semaphore::new(QUEUE_KIB));
        Ok(Self::Thread { queue, budget, thread: Mutex::new(Some(thread)) })
    }

    /// Runs a command that adds about `bytes` to the log, and answers when it is durable.
    pub(crate) async fn run(&self, command: Command, bytes: usize) -> Result<Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        match self {
            Self::Inline(writer) => {
                let mut batch = vec![Request { command, reply, _permit: None }];
                lock(writer).commit(&mut batch);
            }
            Self::Thread { queue, budget, .. } => {
                let cost = u32::try_from(1 + (bytes >> 10).min(QUEUE_KIB - 1)).unwrap_or(1);
                let permit =
                    Arc::clone(budget).acquire_many_owned(cost).await.map_err(|_| StoreError::Closed)?;
                queue.push(Request { command, reply, _permit: Some(permit) })?;
            }
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Finishes what waits and releases the disk.
    pub(crate) fn close(&self) {
        match self {
            Self::Inline(writer) => lock(writer).hub.close(),
            Self::Thread { queue, thread, .. } => {
                queue.close();
                if let Some(thread) = lock(thread).take()
                    && thread.join().is_err()
                {
                    tracing::error!("the store's committer panicked");
                }
            }
        }
    }
}

impl Writer {
    pub(crate) fn new(state: State, hub: Arc<Hub>, deadlines: Arc<Deadlines>) -> Self {
        Self { state, hub, deadlines, journal: None, outcome: Outcome::default(), failing: false }
    }

    pub(crate) fn with_journal(self, journal: Journal) -> Self {
        Self { journal: Some(journal), ..self }
    }

    fn commit(&mut self, batch: &mut Vec<Request>) {
        let mut staged = self.state.clone();
        record::begin_frame(&mut self.outcome.records);
        let answers: Vec<_> = batch
            .drain(..)
            .map(|request| (request.reply, staged.apply(request.command, &mut self.outcome)))
            .collect();
        if let Err(error) = self.make_durable() {
            self.outcome.commits.clear();
            let error = Arc::new(error);
            for (reply, _) in answers {
                answer(reply, Err(refusal(&error)));
            }
            return;
        }
        self.state = staged;
        for (_, answer) in &answers {
            self.keep_deadlines(answer);
        }
        let commits = std::mem::take(&mut self.outcome.commits);
        if !commits.is_empty() || !record::frame_is_empty(&self.outcome.records) {
            self.hub.publish(self.state.clone(), commits);
        }
        for (reply, result) in answers {
            answer(reply, result);
        }
        self.outcome.records.clear();
        self.outcome.records.shrink_to(KEPT_RECORD_BYTES);
        if let Some(journal) = &mut self.journal {
            journal.snapshot_if_due(&self.state);
        }
    }

    fn make_durable(&mut self) -> io::Result<()> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        if record::frame_is_empty(&self.outcome.records) {
            return Ok(());
        }
        let result = journal.append(&mut self.outcome.records);
        match &result {
            Err(error) if !self.failing => tracing::error!(%error, "cluster state cannot be written"),
            Ok(()) if self.failing => tracing::info!("cluster state can be written again"),
            _ => {}
        }
        self.failing = result.is_err();
        result
    }

    fn keep_deadlines(&self, answer: &Result<Answer, StoreError>) {
        match answer {
            Ok(Answer::Granted { id, ttl_seconds }) => self.deadlines.insert(*id, *ttl_seconds),
            Ok(Answer::Revoked(ids)) => ids.iter().for_each(|id| self.deadlines.remove(*id)),
            Ok(Answer::Txn(_)) | Err(_) => {}
        }
    }
}

impl Queue {
    fn push(&self, request: Request) -> Result<(), StoreError> {
        let mut inner = lock(&self.inner);
        if inner.closed {
            return Err(StoreError::Closed);
        }
        inner.requests.push(request);
        let wake = std::mem::take(&mut inner.asleep);
        drop(inner);
        if wake {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Waits for requests and takes them all; false once the queue is closed and empty.
    fn drain(&self, batch: &mut Vec<Request>) -> bool {
        let mut inner = lock(&self.inner);
        while inner.requests.is_empty() {
            if inner.closed {
                return false;
            }
            inner.asleep = true;
            inner = self.ready.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.asleep = false;
        std::mem::swap(&mut inner.requests, batch);
        true
    }

    fn close(&self) {
        lock(&self.inner).closed = true;
        self.ready.notify_one();
    }
}

/// Closes the queue however the committer ends: a client must not wait for a thread that is gone.
struct CloseOnExit<'a>(&'a Queue);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        self.0.close();
        lock(&self.0.inner).requests.clear();
    }
}

fn serve(mut writer: Writer, queue: &Queue) {
    let _guard = CloseOnExit(queue);
    let mut batch = Vec::new();
    while queue.drain(&mut batch) {
        writer.commit(&mut batch);
    }
    writer.hub.close();
}

fn refusal(error: &Arc<io::Error>) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::NoSpace
        }
        _ => StoreError::Unavailable(Box::new(WriteFailed(Arc::clone(error)))),
    }
}

fn answer(reply: oneshot::Sender<Result<Answer, StoreError>>, result: Result<Answer, StoreError>) {
    if reply.send(result).is_err() {
        tracing::trace!("the client did not wait for its answer");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
