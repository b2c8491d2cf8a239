//! Traces that are recorded and exported.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan};

use super::{Kind, Settings};
use crate::otlp::{Attribute, ExportError, Value, exporter};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The instrumentation of spans that stand for requests, under the name dashboards know it by.
const HTTP: &str = "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp";

/// Makes spans. Cheap to clone. The default makes none.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    provider: SdkTracerProvider,
    requests: SdkTracer,
    internal: SdkTracer,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // On a thread of its own: it may wait for this one.
        let provider = self.provider.clone();
        std::thread::spawn(move || provider.shutdown());
    }
}

impl Tracer {
    /// Makes spans and exports them. To be called in a tokio runtime, which carries the export.
    ///
    /// # Errors
    /// The destination is none.
    pub fn start(settings: &Settings) -> Result<Self, ExportError> {
        let provider = exporter::traces(settings)?;
        let scope = |name| InstrumentationScope::builder(name).build();
        let requests = provider.tracer_with_scope(scope(HTTP));
        let internal = provider.tracer_with_scope(scope(settings.scope));
        Ok(Self(Some(Arc::new(Inner { provider, requests, internal }))))
    }

    /// A span of a request, under the caller's span that `headers` tell of. Nothing, if traces are off.
    #[must_use]
    pub fn server(&self, name: impl Into<Cow<'static, str>>, headers: &HeaderMap) -> Option<Span> {
        let inner = self.0.as_ref()?;
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let follows = parent.span().span_context().is_valid();
        Some(Span::build(inner, Kind::Server, name.into(), &parent, follows))
    }

    /// Exports what is left, and no longer than `within`.
    pub async fn finish(&self, within: Duration) {
        let Some(inner) = &self.0 else { return };
        let provider = inner.provider.clone();
        exporter::finish("traces", within, move || provider.shutdown_with_timeout(within)).await;
    }
}

/// A span; it ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    inner: Arc<Inner>,
    span: SdkSpan,
    /// Whether the trace is the caller's.
    follows: bool,
}

impl Span {
    fn build(
        inner: &Arc<Inner>,
        kind: Kind,
        name: Cow<'static, str>,
        parent: &Context,
        follows: bool,
    ) -> Self {
        let (tracer, kind) = match kind {
            Kind::Server => (&inner.requests, SpanKind::Server),
            Kind::Client => (&inner.requests, SpanKind::Client),
            Kind::Internal => (&inner.internal, SpanKind::Internal),
        };
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let span = tracer.build_with_context(builder, parent);
        Self { inner: Arc::clone(inner), span, follows }
    }

    /// A span under this one.
    #[must_use]
    pub fn child(&self, kind: Kind, name: impl Into<Cow<'static, str>>) -> Self {
        let context = self.context().clone();
        let parent = Context::new().with_remote_span_context(context);
        Self::build(&self.inner, kind, name.into(), &parent, self.follows)
    }

    fn context(&self) -> &SpanContext {
        self.span.span_context()
    }

    /// Whether attributes are of use to anybody.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.span.is_recording()
    }

    /// Adds an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.span.set_attribute(key_value((name, value.into())));
    }

    /// Adds attributes.
    pub fn extend(&mut self, attributes: impl IntoIterator<Item = Attribute>) {
        self.span.set_attributes(attributes.into_iter().map(key_value));
    }

    /// What it stands for has failed.
    pub fn fail(&mut self, description: impl Into<Cow<'static, str>>) {
        self.span.set_status(Status::error(description));
    }

    /// Ends it now. It may still be the parent of others.
    pub fn end(&mut self) {
        self.span.end();
    }

    /// Makes it the parent of the next hop's.
    pub fn inject(&self, headers: &mut HeaderMap) {
        let context = self.context();
        if !context.is_valid() {
            return;
        }
        let parent =
            format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8());
        if let Ok(parent) = HeaderValue::try_from(parent) {
            headers.insert(TRACEPARENT, parent);
        }
        if !self.follows {
            // What is left of a trace that could not be followed.
            headers.remove(TRACESTATE);
        }
    }
}

pub(crate) fn key_value((name, value): Attribute) -> KeyValue {
    match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Number(number) => KeyValue::new(name, number),
    }
}
