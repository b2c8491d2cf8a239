//! The thread that writes.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::Database;
use tokio::sync::oneshot;

use super::file::{digest, record_key};
use super::{CACHE_BYTES, Change, DIGEST, META, OBJECTS, Outcome, RESERVED, Shared, StorageError};
use crate::object::{Key, Object};

/// After a failed commit the next attempt for what is logged behind waits this long.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    pub(super) path: PathBuf,
    /// None after a failed commit: redb refuses to go on with a file that gave an error.
    pub(super) database: Option<Database>,
    pub(super) outcome: Arc<dyn Outcome>,
    pub(super) shared: Arc<Shared>,
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
    pub(super) fn run(mut self) {
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
        let failed = |e: &dyn std::fmt::Display| StorageError(Arc::from(e.to_string()));
        let written = catch_unwind(AssertUnwindSafe(|| -> Result<(), redb::Error> {
            if self.database.is_none() {
                self.database = Some(Database::builder().set_cache_size(CACHE_BYTES).open(&self.path)?);
            }
            let Some(database) = &self.database else { unreachable!("opened above") };
            let transaction = database.begin_write()?;
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
                Err(failed(&e))
            }
            Err(_) => {
                self.database = None;
                Err(failed(&"the store panicked"))
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
