//! Watch streams: history turned into the lines a client asked for.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::object::Object;
use crate::request::Format;
use crate::resource::RESOURCES;
use crate::selector::Selector;
use crate::status::ApiError;
use crate::store::{Cursor, Event};
use crate::table::{self, Include};

/// Events joined into one piece of the body at most.
const CHUNK: usize = 128;
/// A watch without `timeoutSeconds` ends after this long, up to twice of it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// What a client watches, and how it wants to be told.
pub(crate) struct Watch {
    pub api: Arc<Api>,
    pub resource: usize,
    pub namespace: Option<String>,
    pub selector: Selector,
    pub format: Format,
    pub include: Include,
    pub bookmarks: bool,
    /// End the initial events with a bookmark that says so.
    pub mark_initial: bool,
    pub timeout: Option<Duration>,
    /// Ends the stream.
    pub stop: CancellationToken,
}

struct Running {
    watch: Watch,
    cursor: Cursor,
    initial: std::vec::IntoIter<Arc<Object>>,
    initial_done: bool,
    deadline: Instant,
    bookmark_at: Instant,
    ended: bool,
}

impl Watch {
    /// Streams `initial` as additions, then everything after the cursor's place.
    pub(crate) fn start(self, cursor: Cursor, initial: Vec<Arc<Object>>) -> BoxStream<'static, Bytes> {
        let now = Instant::now();
        let timeout = self.timeout.unwrap_or_else(|| DEFAULT_TIMEOUT.mul_f64(1.0 + fastrand::f64()));
        let bookmark_at = now + self.api.bookmark_interval;
        let running = Running {
            initial_done: !self.mark_initial,
            watch: self,
            cursor,
            initial: initial.into_iter(),
            deadline: now + timeout,
            bookmark_at,
            ended: false,
        };
        stream::unfold(
            running,
            |mut running| async move { running.next().await.map(|bytes| (bytes, running)) },
        )
        .boxed()
    }

    /// A stream that says only that the version is gone.
    pub(crate) fn gone(error: &ApiError) -> BoxStream<'static, Bytes> {
        let line = error_line(error);
        stream::once(async move { line }).boxed()
    }

    fn line(&self, out: &mut BytesMut, kind: &str, object: &Object) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        match self.format {
            Format::Json => out.extend_from_slice(object.json()),
            Format::Partial => out.extend_from_slice(&table::partial_json(object)),
            Format::Table => {
                let metadata = json!({ "resourceVersion": object.version().to_string() });
                let columns = self.api.kinds.columns(self.resource);
                let one = std::iter::once(object.value());
                let rendered = table::render(columns, one, self.include, &metadata, jiff::Timestamp::now());
                out.extend_from_slice(rendered.to_string().as_bytes());
            }
        }
        out.extend_from_slice(b"}\n");
    }

    fn bookmark(&self, version: u64, initial_end: bool) -> Bytes {
        let mut metadata = json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let resource = &RESOURCES[self.resource];
        let object = match self.format {
            Format::Json => {
                json!({ "kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata })
            }
            Format::Partial => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
            Format::Table => {
                let columns = self.api.kinds.columns(self.resource);
                let none = std::iter::empty::<Value>();
                table::render(columns, none, self.include, &metadata, jiff::Timestamp::now())
            }
        };
        Bytes::from(format!("{}\n", json!({ "type": "BOOKMARK", "object": object })))
    }

    fn event(&self, out: &mut BytesMut, event: &Event) {
        if self.namespace.as_deref().is_some_and(|namespace| event.object.namespace() != namespace) {
            return;
        }
        let before = event.previous.as_deref().is_some_and(|o| self.selector.matches(o));
        if event.deleted {
            if before {
                self.line(out, "DELETED", &event.object);
            }
            return;
        }
        match (before, self.selector.matches(&event.object)) {
            (false, true) => self.line(out, "ADDED", &event.object),
            (true, true) => self.line(out, "MODIFIED", &event.object),
            (true, false) => {
                // What left the selection is told with its last matching state, at the version it left.
                if let Some(previous) = &event.previous {
                    let last = Object::new(previous.value(), event.version());
                    self.line(out, "DELETED", &last);
                }
            }
            (false, false) => {}
        }
    }
}

fn error_line(error: &ApiError) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "type": "ERROR", "object": error.to_status() })))
}

impl Running {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = BytesMut::new();
        for object in self.initial.by_ref().take(CHUNK) {
            self.watch.line(&mut out, "ADDED", &object);
        }
        if !out.is_empty() {
            return Some(out.freeze());
        }
        if !self.initial_done {
            self.initial_done = true;
            return Some(self.watch.bookmark(self.cursor.position(), true));
        }
        loop {
            match self.cursor.take(CHUNK) {
                Err(too_old) => {
                    self.ended = true;
                    return Some(error_line(&ApiError::too_old(self.cursor.position(), too_old.oldest)));
                }
                Ok(events) if events.is_empty() => {}
                Ok(events) => {
                    for event in &events {
                        self.watch.event(&mut out, event);
                    }
                    if out.is_empty() {
                        continue;
                    }
                    return Some(out.freeze());
                }
            }
            let wake = if self.watch.bookmarks { self.bookmark_at.min(self.deadline) } else { self.deadline };
            tokio::select! {
                () = self.watch.stop.cancelled() => return None,
                () = self.cursor.changed() => {}
                () = tokio::time::sleep_until(wake) => {
                    self.ended = Instant::now() >= self.deadline;
                    if self.watch.bookmarks {
                        self.bookmark_at = Instant::now() + self.watch.api.bookmark_interval;
                        return Some(self.watch.bookmark(self.cursor.position(), false));
                    }
                    if self.ended {
                        return None;
                    }
                }
            }
        }
    }
}
