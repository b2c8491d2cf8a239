//! The exporters, and the providers that feed them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, Status};
use opentelemetry::{KeyValue, Value};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    MetricExporter, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::{Instrument, PeriodicReader, SdkMeterProvider, Stream};
use opentelemetry_sdk::trace::{Sampler as SdkSampler, SdkTracerProvider, SpanData};
use serde_json::{Map, json};
use tokio::sync::oneshot;

use super::client::Sender;
use super::{Destination, ExportError, Protocol, Signal};
use crate::traces::sampler::{Root, Sampler};
use crate::{meters, traces};

/// Label sets of a metric; further ones are counted together. Some labels are the clients' to choose.
const MOST_SERIES: usize = 320;

pub(crate) fn traces(settings: &traces::Settings) -> Result<SdkTracerProvider, ExportError> {
    let destination = &settings.destination;
    let sampler = Sampler::choose(destination.protocol, settings.sampling_rate, &destination.environment);
    let builder =
        SdkTracerProvider::builder().with_resource(resource(destination)).with_sampler(sdk(sampler));
    let target = Target::of(destination, Signal::Traces);
    let exporter = match destination.protocol {
        Protocol::Stdout => return Ok(builder.with_batch_exporter(Printer).build()),
        Protocol::Grpc => {
            let exporter = SpanExporter::builder().with_tonic().with_endpoint(&target.endpoint);
            if target.tls { exporter.with_tls_config(trust()).build() } else { exporter.build() }
        }
        Protocol::HttpProtobuf => {
            let client = target.client()?;
            SpanExporter::builder()
                .with_http()
                .with_http_client(client)
                .with_endpoint(&target.endpoint)
                .build()
        }
    };
    let exporter = exporter.map_err(|error| target.error(&error))?;
    Ok(builder.with_batch_exporter(exporter).build())
}

pub(crate) fn metrics(settings: &meters::Settings) -> Result<SdkMeterProvider, ExportError> {
    let destination = &settings.destination;
    let target = Target::of(destination, Signal::Metrics);
    let exporter = match destination.protocol {
        Protocol::Stdout => return Err(target.error(&"metrics are not printed")),
        Protocol::Grpc => {
            let exporter = MetricExporter::builder().with_tonic().with_endpoint(&target.endpoint);
            if target.tls { exporter.with_tls_config(trust()).build() } else { exporter.build() }
        }
        Protocol::HttpProtobuf => {
            let client = target.client()?;
            MetricExporter::builder()
                .with_http()
                .with_http_client(client)
                .with_endpoint(&target.endpoint)
                .build()
        }
    };
    let exporter = exporter.map_err(|error| target.error(&error))?;
    let interval = destination.environment.interval(settings.interval);
    let reader = PeriodicReader::builder(exporter).with_interval(interval).build();
    let bounded = |_: &Instrument| Stream::builder().with_cardinality_limit(MOST_SERIES).build().ok();
    let provider = SdkMeterProvider::builder().with_resource(resource(destination)).with_view(bounded);
    Ok(provider.with_reader(reader).build())
}

/// Runs what flushes and may block, no longer than `within`.
pub(crate) async fn finish(
    what: &'static str,
    within: Duration,
    shut_down: impl FnOnce() -> OTelSdkResult + Send + 'static,
) {
    let (done, finished) = oneshot::channel();
    // Not a blocking task of the runtime: that would be waited for without a bound, and it may need the runtime.
    std::thread::spawn(move || {
        // Nobody waits any more after the bound.
        let _ = done.send(shut_down());
    });
    match tokio::time::timeout(within, finished).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!(%error, "the last {what} were not exported"),
        Ok(Err(_)) | Err(_) => tracing::warn!("the last {what} were not exported in {within:?}"),
    }
}

struct Target {
    endpoint: String,
    tls: bool,
}

impl Target {
    fn of(destination: &Destination, signal: Signal) -> Self {
        let endpoint = destination.environment.endpoint(signal, destination.protocol, &destination.endpoint);
        let tls = endpoint.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        Self { endpoint, tls }
    }

    fn client(&self) -> Result<Sender, ExportError> {
        Sender::new(self.tls).map_err(|error| self.error(&error))
    }

    fn error(&self, reason: &impl ToString) -> ExportError {
        ExportError::Destination { endpoint: self.endpoint.clone(), reason: reason.to_string() }
    }
}

/// The system's roots.
fn trust() -> ClientTlsConfig {
    ClientTlsConfig::new().with_enabled_roots()
}

/// The SDK's attributes, those of the environment, ours.
fn resource(destination: &Destination) -> Resource {
    let attributes = destination.environment.resource_attributes();
    let all = attributes.into_iter().chain(destination.resource.iter().cloned());
    Resource::builder().with_attributes(all.map(|(key, value)| KeyValue::new(key, value))).build()
}

fn sdk(sampler: Sampler) -> SdkSampler {
    let root = match sampler.root {
        Root::Always => SdkSampler::AlwaysOn,
        Root::Never => SdkSampler::AlwaysOff,
        Root::Ratio(ratio) => SdkSampler::TraceIdRatioBased(ratio),
    };
    if sampler.parent_based { SdkSampler::ParentBased(Box::new(root)) } else { root }
}

/// Prints spans on standard output, one JSON object a line.
#[derive(Debug)]
struct Printer;

impl opentelemetry_sdk::trace::SpanExporter for Printer {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut lines = String::new();
        for span in &batch {
            // Writing to a string does not fail.
            let _ = writeln!(lines, "{}", line(span));
        }
        // Who closes standard output does not want the spans.
        let _ = std::io::stdout().lock().write_all(lines.as_bytes());
        Ok(())
    }
}

fn line(span: &SpanData) -> serde_json::Value {
    let nanos = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
    let attributes: Map<String, serde_json::Value> = span
        .attributes
        .iter()
        .map(|attribute| {
            let value = match &attribute.value {
                Value::I64(number) => json!(number),
                Value::Bool(yes) => json!(yes),
                other => json!(other.as_str()),
            };
            (attribute.key.as_str().to_owned(), value)
        })
        .collect();
    let (status, description) = match &span.status {
        Status::Unset => ("Unset", ""),
        Status::Ok => ("Ok", ""),
        Status::Error { description } => ("Error", &**description),
    };
    let parent = (span.parent_span_id != SpanId::INVALID).then(|| span.parent_span_id.to_string());
    json!({
        "name": span.name,
        "kind": format!("{:?}", span.span_kind),
        "traceId": span.span_context.trace_id().to_string(),
        "spanId": span.span_context.span_id().to_string(),
        "parentSpanId": parent,
        "startTimeUnixNano": nanos(span.start_time),
        "endTimeUnixNano": nanos(span.end_time),
        "attributes": attributes,
        "status": { "code": status, "message": description },
        "scope": span.instrumentation_scope.name(),
    })
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanKind, TraceFlags, TraceId, TraceState};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};

    use super::*;

    #[test]
    fn a_printed_span_is_a_line_of_json() {
        let context = SpanContext::new(
            TraceId::from_bytes([1; 16]),
            SpanId::from_bytes([2; 8]),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        );
        let second = Duration::from_secs(1);
        let span = SpanData {
            span_context: context,
            parent_span_id: SpanId::from_bytes([3; 8]),
            parent_span_is_remote: true,
            span_kind: SpanKind::Server,
            name: "GET".into(),
            start_time: UNIX_EPOCH + second,
            end_time: UNIX_EPOCH + 2 * second,
            attributes: vec![
                KeyValue::new("http.response.status_code", 503),
                KeyValue::new("url.path", "/a\nb"),
            ],
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::error("why"),
            instrumentation_scope: opentelemetry::InstrumentationScope::builder("s").build(),
        };
        let text = line(&span).to_string();
        assert!(!text.contains('\n'), "{text}");
        let expected = json!({
            "name": "GET",
            "kind": "Server",
            "traceId": "01010101010101010101010101010101",
            "spanId": "0202020202020202",
            "parentSpanId": "0303030303030303",
            "startTimeUnixNano": "1000000000",
            "endTimeUnixNano": "2000000000",
            "attributes": { "http.response.status_code": 503, "url.path": "/a\nb" },
            "status": { "code": "Error", "message": "why" },
            "scope": "s",
        });
        assert_eq!(line(&span), expected);
    }
}
