//! The Prometheus endpoint of a component.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::body::Body;
use crate::error::http_error;
use crate::server::{Conn, Handler};

/// Serves a registry on `/metrics`; 404 elsewhere.
#[derive(Debug, Clone)]
pub struct Exposition(Arc<Registry>);

impl Exposition {
    /// The registry is complete: metrics are registered before.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Self {
        Self(registry)
    }
}

impl Handler for Exposition {
    async fn handle(&self, request: Request<Body>, _: &Arc<Conn>) -> Response<Body> {
        if request.uri().path() == "/metrics" {
            expose(&self.0)
        } else {
            http_error(StatusCode::NOT_FOUND, "404 page not found")
        }
    }
}

/// The registry as OpenMetrics text.
#[must_use]
pub fn expose(registry: &Registry) -> Response<Body> {
    let mut text = String::new();
    if let Err(error) = encode(&mut text, registry) {
        return http_error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string());
    }
    let mut response = Response::new(Body::full(text));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    );
    response
}
