//! Traces: spans, their propagation in W3C's headers, which are sampled.
//!
//! `traceparent` is rewritten for the next hop only where there is a [`Tracer`]; `tracestate` and `baggage` pass as
//! they are.

pub mod sampler;

#[cfg(feature = "otlp")]
mod recording;
#[cfg(not(feature = "otlp"))]
mod silent;

#[cfg(feature = "otlp")]
pub(crate) use recording::key_value;
#[cfg(feature = "otlp")]
pub use recording::{Span, Tracer};
#[cfg(not(feature = "otlp"))]
pub use silent::{Span, Tracer};

use crate::otlp::Destination;

/// What a span stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request that was received.
    Server,
    /// A request that was sent.
    Client,
    /// Work in between.
    Internal,
}

/// Where spans go, and which.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where.
    pub destination: Destination,
    /// The share of traces that are recorded, 0 to 1.
    pub sampling_rate: f64,
    /// The instrumentation of spans between server and client.
    pub scope: &'static str,
}
