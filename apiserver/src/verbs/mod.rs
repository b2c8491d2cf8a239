//! The verbs: read the stored object, decide (see [`crate::strategy`]), write, and start over when raced.

mod apply;
mod check;
mod create;
mod delete;
mod modify;
mod ownership;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;

use crate::admission::Denied;
use crate::api::{Api, Caller};
use crate::decode::FieldValidation;
use crate::journal::StorageError;
use crate::object::{Key, Object};
use crate::request::Target;
use crate::resource::{NAMESPACES, RESOURCES};
use crate::status::ApiError;
use crate::store::{Write, Written};
use crate::strategy::{self, Birth};

pub(crate) use create::create;
pub(crate) use delete::{Deleted, delete, delete_collection, delete_options};
pub(crate) use modify::modify;

/// A write that keeps being overtaken is given up after so many attempts.
const ATTEMPTS: usize = 100;

/// A call on a resource.
pub(crate) struct Call<'a> {
    pub target: &'a Target,
    pub headers: &'a HeaderMap,
    pub body: &'a Bytes,
    pub caller: &'a Caller,
    pub dry_run: bool,
    pub validation: FieldValidation,
    /// The `fieldManager` parameter.
    pub field_manager: Option<&'a str>,
    /// The `force` parameter.
    pub force: Option<bool>,
}

/// Makes a namespace if there is none, as a cluster's API server does at its start.
pub(crate) fn seed_namespace(api: &Api, name: &str) {
    let birth =
        Birth { uid: uuid::Uuid::new_v4().to_string(), now: strategy::timestamp(jiff::Timestamp::now()) };
    let mut value = json!({ "metadata": { "name": name } });
    strategy::prepare_create(&RESOURCES[NAMESPACES], &mut value, &birth);
    // Nobody waits for it, so it is logged behind; an existing one stays as it is.
    let _ = api.store.write(NAMESPACES, &(String::new(), name.to_owned()), None, Write::Put(value), false);
}

fn storage(error: &StorageError) -> ApiError {
    match error {
        StorageError::Full(_) => ApiError::insufficient_storage(error),
        StorageError::Failed(_) => ApiError::internal(error),
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        Self::bad_request(denied.to_string())
    }
}

fn key(target: &Target) -> Key {
    let name = target.name.clone().unwrap_or_default();
    (target.namespace.clone().unwrap_or_default(), name)
}

/// The stored object.
///
/// # Errors
/// 404.
pub(crate) fn get(api: &Api, target: &Target) -> Result<Arc<Object>, ApiError> {
    let key = key(target);
    api.store.get(target.resource, &key).ok_or_else(|| ApiError::not_found(target.resource(), &key.1))
}

/// Waits for the acknowledgement.
async fn settle(written: Written) -> Result<Arc<Object>, ApiError> {
    match written {
        Written::Done(object) => Ok(object),
        Written::Later(object, wait) => match wait.await {
            Ok(Ok(())) => Ok(object),
            Ok(Err(error)) => Err(storage(&error)),
            Err(_) => Err(ApiError::unavailable("the server is shutting down")),
        },
        Written::Raced => unreachable!("raced writes are tried again by their callers"),
    }
}
