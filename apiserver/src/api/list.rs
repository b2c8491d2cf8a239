//! Lists, their pages, and watches.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};

use super::parameters::{check_list, selector, version_parameter};
use super::{Answer, Api, Caller};
use crate::body::Body;
use crate::object::{Key, Object};
use crate::request::{Format, Query, Target};
use crate::status::ApiError;
use crate::table::Include;
use crate::watch::Watch;

impl Api {
    pub(super) fn list(&self, query: &Query, target: &Target, format: Format, include: Include) -> Answer {
        check_list(query, false)?;
        let selector = selector(query, target)?;
        let asked: Option<u64> = version_parameter(query)?;
        let page = query.get("continue").map(Page::parse).transpose()?;
        if page.is_some() && asked.is_some_and(|asked| asked > 0) {
            let text = "specifying resource version is not allowed when using continue";
            return Err(ApiError::bad_request(text));
        }
        let namespace = target.namespace.as_deref();
        let snapshot = match &page {
            // All pages are of the version of the first.
            Some(page) => self.store.list_at(target.resource, namespace, page.version).map_err(|_| {
                ApiError::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a \
                     new list without the continue parameter.",
                )
            })?,
            None => self.store.list(target.resource, namespace),
        };
        if let Some(asked) = asked.filter(|_| page.is_none()) {
            if asked > self.store.last_version() {
                return Err(ApiError::version_from_the_future(asked, self.store.last_version()));
            }
            if query.get("resourceVersionMatch") == Some("Exact") && asked != snapshot.version {
                return Err(ApiError::expired("the provided resource version is no longer available"));
            }
        }
        let version = snapshot.version;
        let mut objects: Vec<Arc<Object>> = snapshot
            .objects
            .into_iter()
            .filter(|o| page.as_ref().is_none_or(|p| **o.key() > p.after))
            .filter(|o| selector.matches(o))
            .collect();
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        let limit = query.number::<usize>("limit")?.filter(|limit| *limit > 0);
        if let Some(limit) = limit.filter(|limit| objects.len() > *limit) {
            let left = objects.len() - limit;
            objects.truncate(limit);
            if let Some(last) = objects.last() {
                metadata["continue"] = Page { version, after: Key::clone(last.key()) }.token().into();
            }
            if selector.is_empty() {
                metadata["remainingItemCount"] = left.into();
            }
        }
        Ok(self.many(target, &objects, &metadata, format, include))
    }

    pub(super) fn watch(
        self: &Arc<Self>,
        query: &Query,
        target: &Target,
        caller: &Caller,
        format: Format,
        include: Include,
    ) -> Answer {
        check_list(query, true)?;
        let mut selector = selector(query, target)?;
        if let Some(name) = &target.name {
            selector = selector.and_name(name);
        }
        let asked = version_parameter(query)?;
        let initial_events = query.flag("sendInitialEvents");
        if let Some(asked) = asked
            && asked > self.store.last_version()
        {
            return Err(ApiError::version_from_the_future(asked, self.store.last_version()));
        }
        let (after, initial) = match asked {
            Some(after) if after > 0 && !initial_events => (after, Vec::new()),
            _ => {
                let snapshot = self.store.list(target.resource, target.namespace.as_deref());
                let mut objects = snapshot.objects;
                let wanted = query.get("sendInitialEvents").is_none() || initial_events;
                objects.retain(|o| wanted && selector.matches(o));
                (snapshot.version, objects)
            }
        };
        let stream = match self.store.watch(target.resource, after) {
            // As on a cluster the watch starts and its first event says that the version is gone.
            Err(too_old) => Watch::gone(&ApiError::too_old(after, too_old.oldest)),
            Ok(cursor) => Watch {
                api: self.clone(),
                resource: target.resource,
                namespace: target.namespace.clone(),
                selector,
                format,
                include,
                bookmarks: query.flag("allowWatchBookmarks"),
                mark_initial: initial_events && query.flag("allowWatchBookmarks"),
                timeout: query.number::<u64>("timeoutSeconds")?.filter(|t| *t > 0).map(Duration::from_secs),
                stop: caller.stop.clone(),
            }
            .start(cursor, initial),
        };
        let mut response = Response::new(Body::Stream(stream));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

/// Where the next page of a list begins.
struct Page {
    version: u64,
    after: Key,
}

impl Page {
    fn parse(token: &str) -> Result<Self, ApiError> {
        let read = || -> Option<Self> {
            let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
            let text = |field: &str| value[field].as_str().map(str::to_owned);
            Some(Self { version: value["rv"].as_u64()?, after: (text("namespace")?, text("name")?) })
        };
        read().ok_or_else(|| ApiError::bad_request("continue key is not valid"))
    }

    fn token(&self) -> String {
        let value = json!({ "rv": self.version, "namespace": self.after.0, "name": self.after.1 });
        URL_SAFE_NO_PAD.encode(value.to_string())
    }
}
