//! The objects of every resource, in memory, with their watch history.
//!
//! Each resource is a table with a short-held lock of its own; versions are global. A table publishes its writes
//! in the order of their versions, and a write is visible (to get, list and watch) exactly when it is
//! acknowledged: for declared intent that is after its commit, for everything else at once. Where a resource
//! holds both, a status write waits for the commits ahead of it in the same table. Readers wait for nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::journal::{Journal, Options, Outcome, StorageError};
use crate::object::{Key, Object};
use crate::resource::{Durability, RESOURCES};
use crate::store_file::{OpenError, Opened, Recovered};

/// One published write. Its version is that of `object`.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub object: Arc<Object>,
    /// What it replaced.
    pub previous: Option<Arc<Object>>,
    pub deleted: bool,
}

impl Event {
    pub(crate) fn version(&self) -> u64 {
        self.object.version()
    }

    /// Bytes of the objects that nobody but the history holds once this is published.
    fn past(&self) -> usize {
        let size = |object: &Object| object.json().len();
        self.previous.as_deref().map_or(0, size) + if self.deleted { size(&self.object) } else { 0 }
    }
}

enum Settlement {
    Waiting,
    Stored,
    Failed(StorageError),
}

/// A write with a version that is not published yet.
struct Pending {
    object: Arc<Object>,
    deleted: bool,
    settlement: Settlement,
    waiters: Vec<oneshot::Sender<Result<(), StorageError>>>,
}

struct Table {
    state: Mutex<TableState>,
    /// Version of the last published write; changes wake the watchers.
    published: watch::Sender<u64>,
}

#[derive(Default)]
struct TableState {
    /// By the keys of the objects.
    objects: BTreeMap<Arc<Key>, Arc<Object>>,
    pending: VecDeque<Pending>,
    history: VecDeque<Event>,
    /// Bytes of the objects that only history holds.
    past: usize,
    /// History reaches back to just after this version.
    floor: u64,
}

struct Versions {
    last: AtomicU64,
    limit: AtomicU64,
    block: u64,
}

struct Shared {
    tables: Vec<Table>,
    versions: Versions,
    history: History,
}

/// How much a table keeps of its past.
#[derive(Debug, Clone, Copy)]
pub(crate) struct History {
    /// At most so many writes.
    pub writes: usize,
    /// At most so many bytes of objects that are not there any more, or not like that.
    pub bytes: usize,
    /// So many writes whatever their size.
    pub least: usize,
}

/// See the module.
pub(crate) struct Store {
    shared: Arc<Shared>,
    journal: Journal,
}

/// What a write does to its object.
pub(crate) enum Write {
    Put(Value),
    /// Removes the object; the value is its last state.
    Remove(Value),
}

/// Where a write got to without waiting.
pub(crate) enum Written {
    /// Visible and acknowledged.
    Done(Arc<Object>),
    /// Visible and acknowledged when the receiver says so.
    Later(Arc<Object>, oneshot::Receiver<Result<(), StorageError>>),
    /// The object is no longer what the caller expected.
    Raced,
}

/// What a writer finds.
pub(crate) enum Found {
    Object(Arc<Object>),
    Absent,
    /// Another write of the same object is on its way to the disk.
    Busy(oneshot::Receiver<Result<(), StorageError>>),
}

/// Objects of one resource at one version.
pub(crate) struct Snapshot {
    pub objects: Vec<Arc<Object>>,
    pub version: u64,
}

/// The asked-for version is older than the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooOld {
    pub oldest: u64,
}

impl Store {
    /// Takes over what the journal held.
    ///
    /// # Errors
    /// When the writer thread cannot be started.
    pub(crate) fn start(
        opened: Opened,
        recovered: Recovered,
        options: &Options,
        history: History,
    ) -> Result<Self, OpenError> {
        // A status may have been seen that a crash has lost: what may have one is at a version of its own from here
        // on, so that none that a client knows goes back. Versions above the last that was reserved are new.
        let start = recovered.used.max(1) + 1;
        let tables = RESOURCES
            .iter()
            .map(|_| Table {
                state: Mutex::new(TableState { floor: start, ..TableState::default() }),
                published: watch::Sender::new(start),
            })
            .collect::<Vec<_>>();
        for (resource, object) in recovered.objects {
            let served = &RESOURCES[resource];
            let complete = served.durability == Durability::Intent && !served.status;
            let object = if complete { object } else { Object::new(object.value(), start) };
            tables[resource].state.lock().objects.insert(object.key().clone(), object);
        }
        let shared = Arc::new(Shared {
            tables,
            versions: Versions {
                // Versions start above every one that was ever handed out, and 0 means "any" to clients.
                last: AtomicU64::new(start),
                limit: AtomicU64::new(recovered.reserved),
                block: options.version_block,
            },
            history,
        });
        let journal = Journal::start(opened, options, shared.clone())
            .map_err(|source| OpenError::Io { path: "the journal's thread".into(), source })?;
        Ok(Self { shared, journal })
    }

    /// The published object.
    pub(crate) fn get(&self, resource: usize, key: &Key) -> Option<Arc<Object>> {
        self.shared.tables[resource].state.lock().objects.get(key).cloned()
    }

    /// The objects of a namespace, or of all of them.
    pub(crate) fn list(&self, resource: usize, namespace: Option<&str>) -> Snapshot {
        let state = self.shared.tables[resource].state.lock();
        let objects = match namespace {
            None => state.objects.values().cloned().collect(),
            Some(namespace) => state
                .objects
                .range::<Key, _>((namespace.to_owned(), String::new())..)
                .take_while(|(key, _)| key.0 == namespace)
                .map(|(_, object)| object.clone())
                .collect(),
        };
        Snapshot { objects, version: self.shared.visible(&state) }
    }

    /// The objects as they were at `version`, worked out from the history.
    ///
    /// # Errors
    /// [`TooOld`] when history no longer reaches back that far.
    pub(crate) fn list_at(
        &self,
        resource: usize,
        namespace: Option<&str>,
        version: u64,
    ) -> Result<Snapshot, TooOld> {
        let state = self.shared.tables[resource].state.lock();
        if version < state.floor {
            return Err(TooOld { oldest: state.floor });
        }
        let mut objects: BTreeMap<&Key, &Arc<Object>> =
            state.objects.iter().map(|(k, o)| (&**k, o)).collect();
        for event in state.history.iter().rev().take_while(|event| event.version() > version) {
            match &event.previous {
                Some(previous) => objects.insert(previous.key(), previous),
                None => objects.remove(&**event.object.key()),
            };
        }
        let of_namespace = |key: &Key| namespace.is_none_or(|namespace| key.0 == namespace);
        let objects =
            objects.into_iter().filter(|(key, _)| of_namespace(key)).map(|(_, o)| o.clone()).collect();
        Ok(Snapshot { objects, version })
    }

    /// Version of the last published write of the resource: changes when anything in it does.
    pub(crate) fn published(&self, resource: usize) -> u64 {
        *self.shared.tables[resource].published.borrow()
    }

    /// The last version handed out.
    pub(crate) fn last_version(&self) -> u64 {
        self.shared.versions.last.load(Ordering::Acquire)
    }

    /// What a write of `key` would replace.
    pub(crate) fn find(&self, resource: usize, key: &Key) -> Found {
        let mut state = self.shared.tables[resource].state.lock();
        if let Some(pending) = state.pending.iter_mut().find(|p| **p.object.key() == *key) {
            let (done, wait) = oneshot::channel();
            pending.waiters.push(done);
            return Found::Busy(wait);
        }
        state.objects.get(key).cloned().map_or(Found::Absent, Found::Object)
    }

    /// Writes if the object is still the one of version `expected` (`None`: still absent).
    /// `durable` asks for the disk before the acknowledgement.
    ///
    /// # Errors
    /// When the journal is closed or the reserved versions are used up, which takes a disk that stays full.
    pub(crate) fn write(
        &self,
        resource: usize,
        key: &Key,
        expected: Option<u64>,
        write: Write,
        durable: bool,
    ) -> Result<Written, StorageError> {
        let table = &self.shared.tables[resource];
        let durability = RESOURCES[resource].durability;
        let mut state = table.state.lock();
        let current = state.objects.get(key).map(|o| o.version());
        if current != expected || state.pending.iter().any(|p| **p.object.key() == *key) {
            return Ok(Written::Raced);
        }
        let version = self.next_version()?;
        let (value, deleted) = match write {
            Write::Put(value) => (value, false),
            Write::Remove(value) => (value, true),
        };
        let object = Object::new(value, version);
        let kept = (!deleted).then(|| object.clone());
        if durable && durability == Durability::Intent {
            let (done, wait) = oneshot::channel();
            if !self.journal.submit(version, resource, key, kept) {
                return Err(StorageError::failed("the server is shutting down"));
            }
            state.pending.push_back(Pending {
                object: object.clone(),
                deleted,
                settlement: Settlement::Waiting,
                waiters: vec![done],
            });
            return Ok(Written::Later(object, wait));
        }
        if durability != Durability::Memory {
            self.journal.mark(resource, key, kept);
        }
        if state.pending.is_empty() {
            state.publish(object.clone(), deleted, &self.shared.history);
            table.published.send_replace(version);
            return Ok(Written::Done(object));
        }
        let (done, wait) = oneshot::channel();
        state.pending.push_back(Pending {
            object: object.clone(),
            deleted,
            settlement: Settlement::Stored,
            waiters: vec![done],
        });
        Ok(Written::Later(object, wait))
    }

    fn next_version(&self) -> Result<u64, StorageError> {
        let versions = &self.shared.versions;
        let limit = versions.limit.load(Ordering::Acquire);
        let taken = versions
            .last
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| (last < limit).then_some(last + 1));
        let version = match taken {
            Ok(last) => last + 1,
            Err(_) => {
                self.journal.reserve(limit + versions.block);
                return Err(StorageError::failed("no resourceVersion could be reserved on disk"));
            }
        };
        // Asked for again every few versions, should the first attempt fail.
        if limit - version < versions.block / 2 && version.is_multiple_of(64) {
            self.journal.reserve(limit + versions.block);
        }
        Ok(version)
    }

    /// A cursor on the writes after `after`.
    ///
    /// # Errors
    /// [`TooOld`] when history no longer reaches back that far.
    pub(crate) fn watch(&self, resource: usize, after: u64) -> Result<Cursor, TooOld> {
        let table = &self.shared.tables[resource];
        let changed = table.published.subscribe();
        let floor = table.state.lock().floor;
        if after < floor {
            return Err(TooOld { oldest: floor });
        }
        Ok(Cursor { shared: self.shared.clone(), resource, position: after, changed })
    }

    /// Waits until everything written so far is on disk.
    ///
    /// # Errors
    /// The commit's error.
    pub(crate) async fn flush(&self) -> Result<(), StorageError> {
        match self.journal.flush().await {
            Ok(result) => result,
            Err(_) => Err(StorageError::failed("the store is closed")),
        }
    }

    /// Writes what is left and closes the file.
    pub(crate) fn close(&self) {
        self.journal.close();
    }
}

impl Shared {
    fn visible(&self, state: &TableState) -> u64 {
        // Versions are handed out under the table's lock, so with nothing pending every version up to now
        // that concerns this table is published.
        state.pending.front().map_or_else(
            || self.versions.last.load(Ordering::Acquire),
            |pending| pending.object.version() - 1,
        )
    }
}

impl Outcome for Shared {
    fn settled(&self, intents: &[(usize, u64)], result: &Result<(), StorageError>) {
        for (index, table) in self.tables.iter().enumerate() {
            let mine = |version: u64| intents.iter().any(|(r, v)| *r == index && *v == version);
            if !intents.iter().any(|(resource, _)| *resource == index) {
                continue;
            }
            let mut done = Vec::new();
            let mut published = None;
            let mut state = table.state.lock();
            for pending in &mut state.pending {
                if mine(pending.object.version()) {
                    pending.settlement = match result {
                        Ok(()) => Settlement::Stored,
                        Err(error) => Settlement::Failed(error.clone()),
                    };
                }
            }
            while let Some(front) = state.pending.pop_front() {
                let result = match front.settlement {
                    Settlement::Waiting => {
                        state.pending.push_front(front);
                        break;
                    }
                    Settlement::Stored => {
                        published = Some(front.object.version());
                        state.publish(front.object, front.deleted, &self.history);
                        Ok(())
                    }
                    Settlement::Failed(error) => Err(error),
                };
                done.push((front.waiters, result));
            }
            if let Some(version) = published {
                table.published.send_replace(version);
            }
            drop(state);
            for (waiters, result) in done {
                for waiter in waiters {
                    let _ = waiter.send(result.clone());
                }
            }
        }
    }

    fn reserved(&self, limit: u64) {
        self.versions.limit.fetch_max(limit, Ordering::AcqRel);
    }

    fn current(&self, resource: usize, key: &Key) -> Option<Arc<Object>> {
        self.tables[resource].state.lock().objects.get(key).cloned()
    }
}

impl TableState {
    fn publish(&mut self, object: Arc<Object>, deleted: bool, keep: &History) {
        // An insertion would keep the key of what was there.
        let previous = self.objects.remove(&**object.key());
        if !deleted {
            self.objects.insert(object.key().clone(), object.clone());
        }
        let event = Event { object, previous, deleted };
        self.past += event.past();
        self.history.push_back(event);
        while self.history.len() > keep.writes || (self.past > keep.bytes && self.history.len() > keep.least)
        {
            let Some(dropped) = self.history.pop_front() else { return };
            self.floor = dropped.version();
            self.past -= dropped.past();
        }
    }
}

/// A reader's place in the history of one resource. It holds nothing back: a reader that falls behind the
/// history is told so.
pub(crate) struct Cursor {
    shared: Arc<Shared>,
    resource: usize,
    position: u64,
    changed: watch::Receiver<u64>,
}

impl Cursor {
    /// The next published writes, at most `limit`.
    ///
    /// # Errors
    /// [`TooOld`] when the reader fell behind.
    pub(crate) fn take(&mut self, limit: usize) -> Result<Vec<Event>, TooOld> {
        self.changed.mark_unchanged();
        let state = self.shared.tables[self.resource].state.lock();
        if self.position < state.floor {
            return Err(TooOld { oldest: state.floor });
        }
        let first = state.history.partition_point(|event| event.version() <= self.position);
        let events: Vec<Event> = state.history.range(first..).take(limit).cloned().collect();
        if let Some(last) = events.last() {
            self.position = last.version();
        } else {
            self.position = self.position.max(self.shared.visible(&state));
        }
        Ok(events)
    }

    /// Everything up to here has been taken.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Resolves when something was published since the last [`Cursor::take`].
    pub(crate) async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            // The store is gone; the stream's own end is decided elsewhere.
            std::future::pending::<()>().await;
        }
    }
}
