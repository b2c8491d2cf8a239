//! What of the store survives the process: one redb file, one writer thread, group commit.
//!
//! Declared intent waits here for its commit; everything else that is kept is only marked dirty and follows
//! within [`Options::flush_interval`]. Nobody but the writer thread touches the disk.

mod file;
mod writer;

use std::collections::HashMap;
use std::fs::{self};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use redb::{Database, TableDefinition};
use tokio::sync::oneshot;

use file::{create_if_absent, recover};
use writer::Writer;

use crate::object::{Key, Object};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Highest resourceVersion that may have been handed out.
const RESERVED: &str = "reserved-resource-version";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
/// Bytes of the digest in front of every record.
const DIGEST: usize = 8;
/// Everything is held in memory by the store already.
const CACHE_BYTES: usize = 4 << 20;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory, the lock file or the store cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Another process serves this data directory.
    #[error("{} is in use by another process; stop it, or choose another data directory", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The store is damaged. It is left as it is.
    #[error(
        "the store {} is damaged ({reason}) and was left untouched; restore it from a backup, or move it away \
         (mv {} {}.damaged) to start empty and apply your manifests again",
        path.display(), path.display(), path.display()
    )]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a version this one does not understand.
    #[error("the store {} has format {found}, this version reads format {FORMAT_VERSION}", path.display())]
    Format {
        /// The store's file.
        path: PathBuf,
        /// The format found.
        found: u64,
    },
}

/// A write that did not reach the disk.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the write could not be stored: {0}")]
pub(crate) struct StorageError(pub Arc<str>);

pub(crate) struct Options {
    /// How long a dirty object may wait before its write starts.
    pub flush_interval: Duration,
    /// How many resourceVersions are reserved at once.
    pub version_block: u64,
}

/// What the journal held when it was opened.
pub(crate) struct Recovered {
    pub objects: Vec<(usize, Key, Arc<Object>)>,
    /// No version up to this one may be handed out again.
    pub used: u64,
    /// Versions up to this one may be handed out now.
    pub reserved: u64,
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
    /// Opens the store at `path`, reads it and reserves the first block of versions.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(crate) fn open(path: &Path, options: &Options) -> Result<(Opened, Recovered), OpenError> {
        create_if_absent(path)?;
        let damaged = |reason: String| OpenError::Damaged { path: path.to_owned(), reason };
        // redb asserts on some kinds of damage; a panic is as good an answer as an error here.
        let result = catch_unwind(AssertUnwindSafe(|| recover(path, options)));
        match result {
            Ok(result) => result,
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                    .unwrap_or_else(|| "unreadable".to_owned());
                Err(damaged(text))
            }
        }
    }

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

/// A store that is read and not yet written by a thread.
pub(crate) struct Opened {
    path: PathBuf,
    database: Database,
}

/// Owner only.
pub(crate) fn set_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}
