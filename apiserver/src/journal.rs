//! What of the store survives the process: one redb file, one writer thread, group commit.
//!
//! Declared intent waits here for its commit; everything else that is kept is only marked dirty and follows
//! within [`Options::flush_interval`]. Nobody but the writer thread touches the disk.

use std::collections::HashMap;
use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::object::{Key, Object};
use crate::resource::{Durability, RESOURCES};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Highest resourceVersion that may have been handed out.
const RESERVED: &str = "reserved-resource-version";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
/// Bytes of the digest in front of every record.
const DIGEST: usize = 8;
/// After a failed commit the next attempt for what is logged behind waits this long.
const RETRY: Duration = Duration::from_secs(1);
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
    #[error(
        "{} is in use by {}; stop it, or choose another data directory",
        path.display(),
        holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The process, as far as it has said so.
        holder: Option<u32>,
    },
    /// The store is damaged. It is left as it is.
    #[error(
        "the store {} is damaged ({reason}) and was left untouched; restore it from a backup, or move it away \
         (mv {} {}.damaged) to start empty and apply your manifests again (ember apply -f FILE)",
        path.display(), path.display(), path.display()
    )]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a version this one does not understand.
    #[error(
        "the store {} has format {found}, this version reads format {FORMAT_VERSION}; it was left untouched: start \
         the version that wrote it, or name another data directory",
        path.display()
    )]
    Format {
        /// The store's file.
        path: PathBuf,
        /// The format found.
        found: u64,
    },
}

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

/// What a sound store holds.
struct Found {
    objects: Vec<(usize, Key, Arc<Object>)>,
    used: u64,
}

/// A store that is read and not yet written by a thread.
pub(crate) struct Opened {
    path: PathBuf,
    database: Database,
}

/// A new store appears under its name only when it is complete, so that an empty or half-written file is
/// known to be damage and not a first start.
fn create_if_absent(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    if path.try_exists().map_err(io)? {
        return Ok(());
    }
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let made = (|| -> Result<(), redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(&fresh)?;
        let transaction = begin(&database)?;
        transaction.open_table(META)?.insert(FORMAT, FORMAT_VERSION)?;
        transaction.open_table(OBJECTS)?;
        transaction.commit()?;
        Ok(())
    })();
    made.map_err(|e| io(system_error(e)))?;
    set_private(&fresh).map_err(io)?;
    fs::rename(&fresh, path).map_err(io)?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io)?;
    }
    Ok(())
}

/// Owner only.
pub(crate) fn set_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

/// The system's error, where that is what an error of the store is.
fn system_error(error: redb::Error) -> std::io::Error {
    match error {
        redb::Error::Io(error) => error,
        other => std::io::Error::other(other),
    }
}

/// Starts a transaction whose commit is on disk before it counts. Were it in one step, a damaged last commit could not
/// be told from one that a crash has cut short, and would be rolled back although it was acknowledged.
fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// Reads the store in a copy in memory: opening the file itself may repair it, and one that is refused stays as it is.
fn inspect(path: &Path) -> Result<Found, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let damaged = |reason: String| OpenError::Damaged { path: path.to_owned(), reason };
    let broken = |e: &dyn std::fmt::Display| damaged(e.to_string());
    let content = fs::read(path).map_err(io)?;
    if content.is_empty() {
        return Err(damaged("the file is empty".into()));
    }
    let copy = InMemoryBackend::new();
    copy.set_len(content.len() as u64).and_then(|()| copy.write(0, &content)).map_err(io)?;
    drop(content);
    let mut database =
        Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(copy).map_err(|e| broken(&e))?;
    database.check_integrity().map_err(|e| broken(&e))?;

    let (objects, used) = (|| -> Result<_, redb::Error> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let format = meta.get(FORMAT)?.map(|v| v.value());
        let used = meta.get(RESERVED)?.map_or(0, |v| v.value());
        let mut objects = Vec::new();
        for entry in transaction.open_table(OBJECTS)?.iter()? {
            let (key, record) = entry?;
            objects.push((key.value().to_owned(), Bytes::copy_from_slice(record.value())));
        }
        Ok(((objects, format), used))
    })()
    .map_err(|e| broken(&e))?;
    let (records, format) = objects;
    match format {
        Some(FORMAT_VERSION) => {}
        Some(found) => return Err(OpenError::Format { path: path.to_owned(), found }),
        None => return Err(damaged("it has no format number".into())),
    }

    let mut objects = Vec::with_capacity(records.len());
    for (key, record) in records {
        let wrong = |what: &str| damaged(format!("record {key:?} {what}"));
        if record.len() < DIGEST || record[..DIGEST] != digest(&key, &record[DIGEST..]) {
            return Err(wrong("does not match its checksum"));
        }
        let json = record.slice(DIGEST..);
        let value = serde_json::from_slice(&json).map_err(|e| wrong(&format!("is not JSON: {e}")))?;
        let Some((resource, key)) = parse_key(&key) else {
            tracing::warn!(record = %key, "the store holds a resource this version does not serve; it is kept");
            continue;
        };
        let object = Object::stored(value, json).ok_or_else(|| wrong("has no resourceVersion"))?;
        if object.version() > used {
            return Err(damaged("an object is newer than the last reserved resourceVersion".into()));
        }
        objects.push((resource, key, object));
    }

    Ok(Found { objects, used })
}

fn recover(path: &Path, options: &Options) -> Result<(Opened, Recovered), OpenError> {
    let Found { objects, used } = inspect(path)?;
    let database = match Database::builder().set_cache_size(CACHE_BYTES).open(path) {
        Ok(database) => database,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            return Err(OpenError::Locked { path: path.parent().unwrap_or(path).to_owned(), holder: None });
        }
        Err(e) => return Err(OpenError::Io { path: path.to_owned(), source: system_error(e.into()) }),
    };
    let reserved = used.saturating_add(options.version_block);
    let reserve = || -> Result<(), redb::Error> {
        let transaction = begin(&database)?;
        transaction.open_table(META)?.insert(RESERVED, reserved)?;
        transaction.commit()?;
        Ok(())
    };
    reserve().map_err(|e| OpenError::Io { path: path.to_owned(), source: system_error(e) })?;
    Ok((Opened { path: path.to_owned(), database }, Recovered { objects, used, reserved }))
}

fn record_key(resource: usize, key: &Key) -> String {
    let resource = &RESOURCES[resource];
    format!("{}/{}/{}/{}", resource.group, resource.plural, key.0, key.1)
}

fn parse_key(text: &str) -> Option<(usize, Key)> {
    let mut parts = text.splitn(4, '/');
    let (group, plural) = (parts.next()?, parts.next()?);
    let key = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let resource =
        RESOURCES.iter().position(|r| r.is(group, plural) && r.durability != Durability::Memory)?;
    Some((resource, key))
}

fn digest(key: &str, json: &[u8]) -> [u8; DIGEST] {
    let mut hasher = Sha256::new();
    hasher.update(key.as_bytes());
    hasher.update([0]);
    hasher.update(json);
    let whole = hasher.finalize();
    let mut short = [0; DIGEST];
    short.copy_from_slice(&whole[..DIGEST]);
    short
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
