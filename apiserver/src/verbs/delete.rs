//! Objects that go.

use std::sync::Arc;

use serde_json::Value;

use super::{ATTEMPTS, Call, key, settle, storage};
use crate::api::Api;
use crate::decode;
use crate::object::{Key, Object};
use crate::request::Query;
use crate::resource::{NAMESPACES, RESOURCES};
use crate::selector::Selector;
use crate::status::{ApiError, Cause};
use crate::store::{Found, Write, Written};
use crate::strategy::{self, DeleteOptions, Deletion};

/// What a machine cannot be without: those of a cluster, and the one with Knative's configuration.
const LASTING_NAMESPACES: [&str; 4] = ["default", "kube-public", "kube-system", "knative-serving"];

/// What became of a deleted object.
pub(crate) enum Deleted {
    Gone(Arc<Object>),
    Marked(Arc<Object>),
}

/// The options of a deletion, from the body and the query.
///
/// # Errors
/// 400 when they cannot be read, 422 when they do not go together.
pub(crate) fn delete_options(call: &Call<'_>, query: &Query) -> Result<DeleteOptions, ApiError> {
    let mut options = DeleteOptions {
        grace: query.number("gracePeriodSeconds")?,
        propagation: query.get("propagationPolicy").map(str::to_owned),
        dry_run: call.dry_run,
        ..DeleteOptions::default()
    };
    let mut orphan = query.get("orphanDependents").map(|_| query.flag("orphanDependents"));
    if !call.body.is_empty() {
        let (body, _) = decode::parse(call.body, decode::encoding(call.headers)?)?;
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).map(str::to_owned);
        options.grace = body.get("gracePeriodSeconds").and_then(Value::as_i64).or(options.grace);
        options.propagation = text("/propagationPolicy").or(options.propagation);
        orphan = body.get("orphanDependents").and_then(Value::as_bool).or(orphan);
        options.uid = text("/preconditions/uid");
        options.version = text("/preconditions/resourceVersion");
        let dry = body.get("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        options.dry_run |= dry;
    }
    let cause = match (options.propagation.as_deref(), orphan) {
        (None, Some(true)) => {
            options.propagation = Some("Orphan".into());
            return Ok(options);
        }
        (Some(policy), Some(_)) => Cause::invalid(
            "propagationPolicy",
            &policy.into(),
            "orphanDependents and deletionPropagation cannot be both set",
        ),
        (None | Some("Background" | "Foreground" | "Orphan"), _) => return Ok(options),
        (Some(policy), None) => Cause::unsupported(
            "propagationPolicy",
            &policy.into(),
            &["Foreground", "Background", "Orphan", "nil"].map(Into::into),
        ),
    };
    Err(ApiError::invalid_options("DeleteOptions", &[cause]))
}

/// DELETE of one object.
pub(crate) async fn delete(api: &Api, call: &Call<'_>, options: &DeleteOptions) -> Result<Deleted, ApiError> {
    let target = call.target;
    remove(api, target.resource, &key(target), options).await
}

async fn remove(api: &Api, index: usize, key: &Key, options: &DeleteOptions) -> Result<Deleted, ApiError> {
    let resource = &RESOURCES[index];
    if index == NAMESPACES && LASTING_NAMESPACES.contains(&key.1.as_str()) {
        return Err(ApiError::forbidden(resource, &key.1, "this namespace may not be deleted", None));
    }
    for _ in 0..ATTEMPTS {
        let old = match api.store.find(index, key) {
            Found::Object(old) => old,
            Found::Absent => return Err(ApiError::not_found(resource, &key.1)),
            Found::Busy(wait) => {
                let _ = wait.await;
                continue;
            }
        };
        let (write, gone) = match strategy::delete(resource, &old.value(), options, jiff::Timestamp::now())? {
            Deletion::Nothing => return Ok(Deleted::Marked(old)),
            Deletion::Remove(_) if options.dry_run => return Ok(Deleted::Gone(old)),
            Deletion::Mark(value) if options.dry_run => {
                return Ok(Deleted::Marked(Object::new(value, old.version())));
            }
            Deletion::Remove(value) => (Write::Remove(value), true),
            Deletion::Mark(value) => (Write::Put(value), false),
        };
        let written = api.store.write(index, key, Some(old.version()), write, true);
        match written.map_err(|e| storage(&e))? {
            Written::Raced => {}
            written => {
                let object = settle(written).await?;
                return Ok(if gone { Deleted::Gone(object) } else { Deleted::Marked(object) });
            }
        }
    }
    Err(ApiError::modified(resource, &key.1))
}

/// DELETE of everything that is selected, or of the first `limit` of it; returns what was.
pub(crate) async fn delete_collection(
    api: &Api,
    call: &Call<'_>,
    selector: &Selector,
    limit: Option<usize>,
    options: &DeleteOptions,
) -> Result<Vec<Arc<Object>>, ApiError> {
    let target = call.target;
    if target.resource == NAMESPACES {
        return Err(ApiError::method_not_allowed());
    }
    let objects = api.store.list(target.resource, target.namespace.as_deref()).objects;
    let selected: Vec<_> =
        objects.into_iter().filter(|o| selector.matches(o)).take(limit.unwrap_or(usize::MAX)).collect();
    // Together, so that the deletions share commits.
    let removals = selected.iter().map(|object| async move {
        match remove(api, target.resource, object.key(), options).await {
            Ok(Deleted::Gone(object) | Deleted::Marked(object)) => Ok(Some(object)),
            Err(error) if error.code() == http::StatusCode::NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    });
    let results: Vec<_> = futures::future::try_join_all(removals).await?;
    Ok(results.into_iter().flatten().collect())
}
