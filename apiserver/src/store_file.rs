//! The store's file: its format, and how it is made, checked and opened.

use std::any::Any;
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use bytes::Bytes;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};
use sha2::{Digest, Sha256};

use crate::journal::Options;
use crate::object::{Key, Object};
use crate::resource::{Durability, RESOURCES};

pub(crate) const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Highest resourceVersion that may have been handed out.
pub(crate) const RESERVED: &str = "reserved-resource-version";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
/// Bytes of the digest in front of every record.
pub(crate) const DIGEST: usize = 8;
/// Everything is held in memory by the store already.
pub(crate) const CACHE_BYTES: usize = 4 << 20;

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

/// What the journal held when it was opened.
pub(crate) struct Recovered {
    pub objects: Vec<(usize, Arc<Object>)>,
    /// No version up to this one may be handed out again.
    pub used: u64,
    /// Versions up to this one may be handed out now.
    pub reserved: u64,
}

/// Opens the store at `path`, reads it and reserves the first block of versions.
///
/// # Errors
/// See [`OpenError`].
pub(crate) fn open(path: &Path, options: &Options) -> Result<(Opened, Recovered), OpenError> {
    create_if_absent(path)?;
    // redb asserts on some kinds of damage; a panic is as good an answer as an error here.
    quietly(path, || catch_unwind(AssertUnwindSafe(|| recover(path, options))))
        .unwrap_or_else(|panic| Err(contradiction(path, &*panic)))
}

/// The store whose reading ended in a panic.
fn contradiction(path: &Path, panic: &dyn Any) -> OpenError {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unreadable");
    let reason = format!("its pages contradict one another: {text}");
    OpenError::Damaged { path: path.to_owned(), reason }
}

/// What a sound store holds.
struct Found {
    objects: Vec<(usize, Arc<Object>)>,
    used: u64,
}

/// A store that is read and not yet written by a thread.
pub(crate) struct Opened {
    pub path: PathBuf,
    pub database: Database,
}

thread_local! {
    /// The store that this thread reads, whose damage is told otherwise than as a panic.
    static READ: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Does `work` on a store without a word of panics on standard error. Those of other threads are told as before. Where
/// panics cannot be caught, the process ends with the error of a damaged store.
fn quietly<T>(path: &Path, work: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let Some(path) = READ.with_borrow(Clone::clone) else { return told(info) };
            if cfg!(panic = "abort") {
                let error = contradiction(&path, info.payload());
                // Nobody else can be told.
                let _ = writeln!(std::io::stderr(), "error: {error}");
                std::process::exit(1);
            }
        }));
    });
    READ.set(Some(path.to_owned()));
    let done = work();
    READ.set(None);
    done
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
pub(crate) fn system_error(error: redb::Error) -> std::io::Error {
    match error {
        redb::Error::Io(error) => error,
        other => std::io::Error::other(other),
    }
}

/// Starts a transaction whose commit is on disk before it counts. Were it in one step, a damaged last commit could not
/// be told from one that a crash has cut short, and would be rolled back although it was acknowledged.
pub(crate) fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
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
        let object = Object::stored(json).map_err(|e| wrong(&format!("is not JSON: {e}")))?;
        let Some((resource, name)) = parse_key(&key) else {
            tracing::warn!(record = %key, "the store holds a resource this version does not serve; it is kept");
            continue;
        };
        let object = object.ok_or_else(|| wrong("has no resourceVersion"))?;
        if **object.key() != name {
            return Err(wrong("holds an object of another name"));
        }
        if object.version() > used {
            return Err(damaged("an object is newer than the last reserved resourceVersion".into()));
        }
        objects.push((resource, object));
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

pub(crate) fn record_key(resource: usize, key: &Key) -> String {
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

pub(crate) fn digest(key: &str, json: &[u8]) -> [u8; DIGEST] {
    let mut hasher = Sha256::new();
    hasher.update(key.as_bytes());
    hasher.update([0]);
    hasher.update(json);
    let whole = hasher.finalize();
    let mut short = [0; DIGEST];
    short.copy_from_slice(&whole[..DIGEST]);
    short
}
