//! The file: how it comes to be, how it is read, and the form of its records.

use std::fs::{self, File};
use std::path::Path;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable};
use sha2::{Digest, Sha256};

use super::{
    CACHE_BYTES, DIGEST, FORMAT, FORMAT_VERSION, META, OBJECTS, OpenError, Opened, Options, RESERVED,
    Recovered, set_private,
};
use crate::object::{Key, Object};
use crate::resource::{Durability, RESOURCES};

/// A new store appears under its name only when it is complete, so that an empty or half-written file is
/// known to be damage and not a first start.
pub(super) fn create_if_absent(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    if path.try_exists().map_err(io)? {
        return Ok(());
    }
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let made = (|| -> Result<(), redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(&fresh)?;
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert(FORMAT, FORMAT_VERSION)?;
        transaction.open_table(OBJECTS)?;
        transaction.commit()?;
        Ok(())
    })();
    made.map_err(|e| io(std::io::Error::other(e)))?;
    set_private(&fresh).map_err(io)?;
    fs::rename(&fresh, path).map_err(io)?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io)?;
    }
    Ok(())
}

pub(super) fn recover(path: &Path, options: &Options) -> Result<(Opened, Recovered), OpenError> {
    let damaged = |reason: String| OpenError::Damaged { path: path.to_owned(), reason };
    let broken = |e: &dyn std::fmt::Display| damaged(e.to_string());
    let length = fs::metadata(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?.len();
    if length == 0 {
        return Err(damaged("the file is empty".into()));
    }
    let mut database = match Database::builder().set_cache_size(CACHE_BYTES).open(path) {
        Ok(database) => database,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            return Err(OpenError::Locked { path: path.parent().unwrap_or(path).to_owned() });
        }
        Err(redb::DatabaseError::Storage(redb::StorageError::Io(source)))
            if !matches!(
                source.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            return Err(OpenError::Io { path: path.to_owned(), source });
        }
        Err(e) => return Err(broken(&e)),
    };
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

    let reserved = used + options.version_block;
    let reserve = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert(RESERVED, reserved)?;
        transaction.commit()?;
        Ok(())
    };
    reserve().map_err(|e| OpenError::Io { path: path.to_owned(), source: std::io::Error::other(e) })?;
    Ok((Opened { path: path.to_owned(), database }, Recovered { objects, used, reserved }))
}

pub(super) fn record_key(resource: usize, key: &Key) -> String {
    let resource = &RESOURCES[resource];
    format!("{}/{}/{}/{}", resource.group, resource.plural, key.0, key.1)
}

pub(super) fn parse_key(text: &str) -> Option<(usize, Key)> {
    let mut parts = text.splitn(4, '/');
    let (group, plural) = (parts.next()?, parts.next()?);
    let key = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let resource =
        RESOURCES.iter().position(|r| r.is(group, plural) && r.durability != Durability::Memory)?;
    Some((resource, key))
}

pub(super) fn digest(key: &str, json: &[u8]) -> [u8; DIGEST] {
    let mut hasher = Sha256::new();
    hasher.update(key.as_bytes());
    hasher.update([0]);
    hasher.update(json);
    let whole = hasher.finalize();
    let mut short = [0; DIGEST];
    short.copy_from_slice(&whole[..DIGEST]);
    short
}
