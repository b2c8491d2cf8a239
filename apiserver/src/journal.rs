//! What of the store survives the process: one redb file, one writer thread, group commit.
//!
//! Declared intent waits here for its commit; everything else that is kept is only marked dirty and follows
//! within [`Options::flush_interval`]. Nobody but the writer thread touches the disk.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use redb::Database;
use tokio::sync::oneshot;

use crate::object::{Key, Object};
use crate::store_file::{CACHE_BYTES, DIGEST, META, OBJECTS, Opened, RESERVED, begin, digest, record_key};

/// After a failed commit the next attempt for what is logged behind waits this long.
const RETRY: Duration = Duration::from_secs(1);

/// A write that did not reach the disk.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StorageError {
    /// There is no room for it. Later writes are tried anew, so that room is all it takes.
    #[error("the disk is full: {0}")]
    Full(Arc<str>),
    /// Anything else.
    #[error("the write could not be stored: {0}")]
    Failed(Arc<str>),
}

impl StorageError {
    pub(crate) fn failed(reason: &str) -> Self {
        Self::Failed(Arc::from(reason))
    }

    fn of(path: &Path, error: &redb::Error) -> Self {
        let text = Arc::from(format!("{}: {error}", path.display()));
        match error {
            redb::Error::Io(error) if is_full(error) => Self::Full(text),
            _ => Self::Failed(text),
        }
    }
}

/// Whether a file system, a quota or a limit on files has no room left.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

pub(crate) struct Options {
    /// How long a dirty object may wait before its write starts.
    pub flush_interval: Duration,
    /// How many resourceVersions are reserved at once.
    pub version_block: u64,
}

/// The state of one object after a write: `None` when it is gone.
type Change = (usize, Key, Option<Arc<Object>>);

/// Told what became of writes; called on the writer thread.
pub(crate) trait Outcome: Send + Sync + 'static {
    /// The intents `(resource, version)` of one commit.
    fn settled(&self, intents: &[(usize, u64)], result: &Result<(), StorageError>);
    /// Versions up to `limit` may be handed out.
    fn reserved(&self, limit: u64);
    /// The state of an object now, to write over what a failed commit may have left.
    fn current(&self, resource: usize, key: &Key) -> Option<Arc<Object>>;
}

#[derive(Default)]
struct Queue {
    intents: Vec<(u64, Change)>,
    dirty: HashMap<(usize, Key), Option<Arc<Object>>>,
    /// When the dirty objects are due.
    due: Option<Instant>,
    reserve: Option<u64>,
    flushes: Vec<oneshot::Sender<Result<(), StorageError>>>,
    closing: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    flush_interval: Duration,
}

/// Handle on the writer thread.
pub(crate) struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Starts the writer thread on an opened store.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(
        opened: Opened,
        options: &Options,
        outcome: Arc<dyn Outcome>,
    ) -> Result<Self, std::io::Error> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            flush_interval: options.flush_interval,
        });
        let writer =
            Writer { path: opened.path, database: Some(opened.database), outcome, shared: shared.clone() };
        let thread =
            std::thread::Builder::new().name("apiserver-journal".into()).spawn(move || writer.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a write of declared intent; [`Outcome::settled`] is called with `version` once it is known.
    /// Returns false when the journal is closed.
    pub(crate) fn submit(
        &self,
        version: u64,
        resource: usize,
        key: &Key,
        object: Option<Arc<Object>>,
    ) -> bool {
        let mut queue = self.shared.queue.lock();
        if queue.closing {
            return false;
        }
        // The intent carries the whole object, so an older state of it need not be written.
        queue.dirty.remove(&(resource, key.clone()));
        queue.intents.push((version, (resource, key.clone(), object)));
        drop(queue);
        self.shared.wake.notify_one();
        true
    }

    /// Notes a state to be written behind. Only the last state of an object is.
    pub(crate) fn mark(&self, resource: usize, key: &Key, object: Option<Arc<Object>>) {
        let mut queue = self.shared.queue.lock();
        queue.dirty.insert((resource, key.clone()), object);
        if queue.due.is_none() {
            queue.due = Some(Instant::now() + self.shared.flush_interval);
            drop(queue);
            self.shared.wake.notify_one();
        }
    }

    /// Asks for versions up to `limit`.
    pub(crate) fn reserve(&self, limit: u64) {
        self.shared.queue.lock().reserve = Some(limit);
        self.shared.wake.notify_one();
    }

    /// Resolves when everything written so far is on disk.
    pub(crate) fn flush(&self) -> oneshot::Receiver<Result<(), StorageError>> {
        let (done, wait) = oneshot::channel();
        self.shared.queue.lock().flushes.push(done);
        self.shared.wake.notify_one();
        wait
    }

    /// Writes what is left, closes the file and ends the thread. Later writes of intent are refused.
    pub(crate) fn close(&self) {
        self.shared.queue.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the journal's writer thread panicked");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writer {
    path: PathBuf,
    /// None after a failed commit: redb refuses to go on with a file that gave an error.
    database: Option<Database>,
    outcome: Arc<dyn Outcome>,
    shared: Arc<Shared>,
}

/// What one commit writes.
struct Batch {
    intents: Vec<(u64, Change)>,
    dirty: HashMap<(usize, Key), Option<Arc<Object>>>,
    reserve: Option<u64>,
    flushes: Vec<oneshot::Sender<Result<(), StorageError>>>,
    closing: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let batch = self.next_batch();
            let closing = batch.closing;
            let empty = batch.intents.is_empty() && batch.dirty.is_empty() && batch.reserve.is_none();
            let result = if empty { Ok(()) } else { self.commit(&batch) };
            self.settle(batch, &result);
            if closing {
                if let Err(e) = result {
                    tracing::error!(error = %e, "the last writes could not be stored");
                }
                return;
            }
        }
    }

    fn next_batch(&self) -> Batch {
        let mut queue = self.shared.queue.lock();
        loop {
            let now = Instant::now();
            let urgent = !queue.intents.is_empty()
                || !queue.flushes.is_empty()
                || queue.reserve.is_some()
                || queue.closing
                || queue.due.is_some_and(|due| due <= now);
            if urgent {
                break;
            }
            match queue.due {
                Some(due) => {
                    self.shared.wake.wait_until(&mut queue, due);
                }
                None => self.shared.wake.wait(&mut queue),
            }
        }
        queue.due = None;
        Batch {
            intents: std::mem::take(&mut queue.intents),
            dirty: std::mem::take(&mut queue.dirty),
            reserve: queue.reserve.take(),
            flushes: std::mem::take(&mut queue.flushes),
            closing: queue.closing,
        }
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StorageError> {
        let written = catch_unwind(AssertUnwindSafe(|| -> Result<(), redb::Error> {
            if self.database.is_none() {
                self.database = Some(Database::builder().set_cache_size(CACHE_BYTES).open(&self.path)?);
            }
            let Some(database) = &self.database else { unreachable!("opened above") };
            let transaction = begin(database)?;
            {
                let mut objects = transaction.open_table(OBJECTS)?;
                let mut put = |resource: usize, key: &Key, object: Option<&Arc<Object>>| {
                    let name = record_key(resource, key);
                    match object {
                        Some(object) => {
                            let json = object.json();
                            let mut record = Vec::with_capacity(DIGEST + json.len());
                            record.extend_from_slice(&digest(&name, json));
                            record.extend_from_slice(json);
                            objects.insert(name.as_str(), record.as_slice()).map(drop)
                        }
                        None => objects.remove(name.as_str()).map(drop),
                    }
                };
                for (_, (resource, key, object)) in &batch.intents {
                    put(*resource, key, object.as_ref())?;
                }
                // What is dirty was marked after the intents taken with it, see `submit`.
                for ((resource, key), object) in &batch.dirty {
                    put(*resource, key, object.as_ref())?;
                }
            }
            if let Some(limit) = batch.reserve {
                transaction.open_table(META)?.insert(RESERVED, limit)?;
            }
            transaction.commit()?;
            Ok(())
        }));
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => {
                self.database = None;
                Err(StorageError::of(&self.path, &e))
            }
            Err(_) => {
                self.database = None;
                Err(StorageError::failed("the store panicked"))
            }
        }
    }

    fn settle(&self, batch: Batch, result: &Result<(), StorageError>) {
        let versions: Vec<(usize, u64)> =
            batch.intents.iter().map(|(version, (resource, ..))| (*resource, *version)).collect();
        if !versions.is_empty() {
            self.outcome.settled(&versions, result);
        }
        match result {
            Ok(()) => {
                if let Some(limit) = batch.reserve {
                    self.outcome.reserved(limit);
                }
            }
            Err(error) => {
                let (intents, behind) = (batch.intents.len(), batch.dirty.len());
                tracing::error!(%error, intents, behind, "commit failed");
                // It may have reached the file all the same: what is true now is written over it.
                let restored: Vec<_> = batch
                    .intents
                    .into_iter()
                    .map(|(_, (resource, key, _))| {
                        let current = self.outcome.current(resource, &key);
                        ((resource, key), current)
                    })
                    .collect();
                let mut queue = self.shared.queue.lock();
                for (key, object) in restored.into_iter().chain(batch.dirty) {
                    // A newer intent on the same object carries everything.
                    let superseded = queue.intents.iter().any(|(_, (r, k, _))| *r == key.0 && *k == key.1);
                    if !superseded {
                        queue.dirty.entry(key).or_insert(object);
                    }
                }
                if !queue.dirty.is_empty() {
                    queue.due = Some(Instant::now() + RETRY);
                }
            }
        }
        for flush in batch.flushes {
            let _ = flush.send(result.clone());
        }
    }
}
