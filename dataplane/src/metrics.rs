//! Metrics: counted on the way of a request without a lock that others hold, exposed for Prometheus.
//!
//! [`family::Families`] are histograms that share their labels, [`http`] knows those of HTTP servers and clients, and
//! [`Exposition`] is the endpoint. Names are OpenTelemetry's; the exposition turns them into Prometheus'.

pub mod family;
pub mod histogram;
pub mod http;
pub mod prometheus;
pub mod text;

use std::sync::Arc;

use ::http::header::{CONTENT_TYPE, HeaderValue};
use ::http::{Request, Response, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::body::Body;
use crate::error::http_error;
use crate::server::{Conn, Handler};
use text::Text;

/// The format of an exposition.
pub const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// What has metrics to expose.
pub trait Expose: Send + Sync + 'static {
    /// Writes all families.
    fn expose(&self, text: &mut Text);
}

impl Expose for Registry {
    fn expose(&self, text: &mut Text) {
        let mut encoded = String::new();
        // Writing to a string does not fail.
        if encode(&mut encoded, self).is_ok() {
            text.append(&encoded);
        }
    }
}

/// Serves metrics on `/metrics`; 404 elsewhere.
#[derive(Debug)]
pub struct Exposition<E>(Arc<E>);

impl<E> Clone for Exposition<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Expose> Exposition<E> {
    /// Serves `metrics`.
    #[must_use]
    pub fn new(metrics: Arc<E>) -> Self {
        Self(metrics)
    }
}

impl<E: Expose> Handler for Exposition<E> {
    async fn handle(&self, request: Request<Body>, _: &Arc<Conn>) -> Response<Body> {
        if request.uri().path() == "/metrics" {
            expose(&*self.0)
        } else {
            http_error(StatusCode::NOT_FOUND, "404 page not found")
        }
    }
}

/// The metrics as Prometheus' text.
#[must_use]
pub fn expose(metrics: &impl Expose) -> Response<Body> {
    let mut text = Text::default();
    metrics.expose(&mut text);
    let mut response = Response::new(Body::full(text.into_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
    response
}
