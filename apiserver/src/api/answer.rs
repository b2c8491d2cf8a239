//! The forms of answers.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, Version, header};
use serde_json::{Value, json};

use super::Api;
use crate::body::Body;
use crate::object::Object;
use crate::request::{Format, Target};
use crate::status::ApiError;
use crate::table::{self, Include};

impl Api {
    pub(super) fn one(
        &self,
        status: StatusCode,
        target: &Target,
        object: &Arc<Object>,
        format: Format,
        include: Include,
    ) -> Response<Body> {
        let body = match format {
            Format::Json => object.json().clone(),
            Format::Partial => table::partial_json(object),
            Format::Table => {
                let metadata = json!({ "resourceVersion": object.version().to_string() });
                let rows = std::iter::once(object.value());
                Bytes::from(self.table(target.resource, rows, include, &metadata).to_string())
            }
        };
        json_answer(status, body)
    }

    fn table(
        &self,
        resource: usize,
        objects: impl Iterator<Item = Value>,
        include: Include,
        metadata: &Value,
    ) -> Value {
        table::render(self.kinds.columns(resource), objects, include, metadata, jiff::Timestamp::now())
    }

    pub(super) fn many(
        &self,
        target: &Target,
        objects: &[Arc<Object>],
        metadata: &Value,
        format: Format,
        include: Include,
    ) -> Response<Body> {
        let resource = target.resource();
        let body = match format {
            Format::Json => {
                let size: usize = objects.iter().map(|o| o.json().len() + 1).sum();
                let mut out = BytesMut::with_capacity(size + 200);
                let head = format!(
                    "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                    resource.kind,
                    resource.api_version()
                );
                out.extend_from_slice(head.as_bytes());
                for (index, object) in objects.iter().enumerate() {
                    if index > 0 {
                        out.extend_from_slice(b",");
                    }
                    out.extend_from_slice(object.json());
                }
                out.extend_from_slice(b"]}");
                out.freeze()
            }
            Format::Partial => {
                let items: Vec<Value> = objects.iter().map(|o| table::partial(o.metadata())).collect();
                let list = json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                                   "metadata": metadata, "items": items });
                Bytes::from(list.to_string())
            }
            Format::Table => {
                let rows = objects.iter().map(|o| o.value());
                Bytes::from(self.table(target.resource, rows, include, metadata).to_string())
            }
        };
        json_answer(StatusCode::OK, body)
    }
}

pub(super) fn json_answer(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer that tells a failure.
pub(crate) fn failure(error: &ApiError) -> Response<Body> {
    json_answer(error.code(), Bytes::from(error.to_status().to_string()))
}

/// An answer to a request whose body was not read to its end. In HTTP/1 the connection is of no more use, and who keeps
/// connections has to know.
pub(crate) fn last(mut response: Response<Body>, version: Version) -> Response<Body> {
    if version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// RFC 7234's warn-text: quoted, on one line.
pub(super) fn warning_text(warning: &str) -> String {
    let mut text = String::with_capacity(warning.len() + 10);
    text.push_str("299 - \"");
    for c in warning.chars() {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}
