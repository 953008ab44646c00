//! Traces: where the time of a request went, for collectors that speak OpenTelemetry's protocol (OTLP over HTTP). No
//! content is in them.

use std::time::{Duration, SystemTime};

use opentelemetry::{
    Context, KeyValue,
    trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use tracing::warn;

use super::{Entry, Outcome, Timing};

/// How long a collector may take to take spans.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of its answer.
const MOST_ANSWER: u64 = 1 << 20;

/// Where spans go. A thread of its own sends them, many at once; where the collector is too slow, spans are lost, and no
/// request waits.
#[derive(Debug)]
pub struct Traces {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

impl Traces {
    /// To a collector's address, such as `http://localhost:4318`.
    ///
    /// # Errors
    /// When the address is none.
    pub fn open(collector: &str) -> Result<Self, ExporterBuildError> {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client(config.build().into()))
            .with_endpoint(format!("{}/v1/traces", collector.trim_end_matches('/')))
            .build()?;
        // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say otherwise.
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => Resource::builder(),
            None => Resource::builder().with_service_name("percept"),
        };
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = resource.with_attribute(version).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        Ok(Self { tracer: provider.tracer("percept"), provider })
    }

    /// Tells of a request that has ended, and of the stages that it had, as a part of the trace that `parent` is of.
    pub fn request(&self, parent: &Context, entry: &Entry, timing: &Timing) {
        let began = SystemTime::from(entry.time);
        let text = |name: &'static str, value: &Option<String>| {
            value.as_ref().map(|value| KeyValue::new(name, value.clone()))
        };
        let (method, route) = entry.endpoint.split_once(' ').unwrap_or(("", &entry.endpoint));
        let used = &entry.used;
        let number = |name: &'static str, value: u64| KeyValue::new(name, value.cast_signed());
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("http.response.status_code", i64::from(entry.status)),
            KeyValue::new("percept.request.id", entry.id.clone()),
            KeyValue::new("percept.outcome", entry.outcome.name()),
            number("gen_ai.usage.input_tokens", used.prompt_tokens),
            number("gen_ai.usage.output_tokens", used.completion_tokens),
            number("percept.cached_tokens", used.cached_tokens),
            number("percept.images", used.images),
            KeyValue::new("percept.audio_seconds", used.audio_seconds),
            KeyValue::new("percept.compute_seconds", used.compute_seconds),
            KeyValue::new("percept.cost", used.cost),
        ];
        attributes.extend(text("gen_ai.request.model", &entry.model));
        attributes.extend(text("percept.tenant", &entry.tenant));
        attributes.extend(text("percept.key", &entry.key));
        attributes.extend(text("error.type", &entry.error));
        let builder = self
            .tracer
            .span_builder(entry.endpoint.clone())
            .with_kind(SpanKind::Server)
            .with_start_time(began)
            .with_attributes(attributes);
        let mut span = self.tracer.build_with_context(builder, parent);
        if entry.outcome == Outcome::Failed {
            span.set_status(Status::error(entry.error.clone().unwrap_or_default()));
        }
        let within = Context::new().with_remote_span_context(span.span_context().clone());
        for (name, from, to) in stages(timing) {
            let builder = self.tracer.span_builder(name).with_start_time(began + from);
            self.tracer.build_with_context(builder, &within).end_with_timestamp(began + to);
        }
        span.end_with_timestamp(began + timing.total);
    }

    /// Sends what there is. Blocks.
    pub fn flush(&self) {
        if let Err(error) = self.provider.force_flush() {
            warn!(%error, "spans were not sent");
        }
    }
}

/// When the stages began and ended, from the first byte of the request on: those in front of the first token end with it,
/// one after another.
fn stages(timing: &Timing) -> Vec<(&'static str, Duration, Duration)> {
    let stages = timing.stages();
    let (before, [decode]) = stages.split_at(stages.len() - 1) else { return Vec::new() };
    let sum: Duration = before.iter().map(|(_, took)| *took).sum();
    let first = timing.first_token.unwrap_or(sum);
    let mut at = first.saturating_sub(sum);
    let mut spans = Vec::new();
    for &(name, took) in before.iter().chain([decode]) {
        if took > Duration::ZERO {
            spans.push((name, at, at + took));
        }
        at += took;
    }
    spans
}

/// What sends, from the thread that does nothing else.
#[derive(Debug)]
struct Client(ureq::Agent);

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, mut body) = self.0.run(request.map(|body| body.to_vec()))?.into_parts();
        let bytes = body.with_config().limit(MOST_ANSWER).read_to_vec()?;
        Ok(Response::from_parts(parts, bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_end_at_the_first_token() {
        let seconds = Duration::from_secs;
        let timing = Timing {
            media: seconds(1),
            queue: seconds(2),
            prefill: seconds(4),
            decode: seconds(8),
            first_token: Some(seconds(10)),
            total: seconds(20),
            ..Timing::default()
        };
        let expected = [
            ("media", seconds(3), seconds(4)),
            ("queue", seconds(4), seconds(6)),
            ("prefill", seconds(6), seconds(10)),
            ("decode", seconds(10), seconds(18)),
        ];
        assert_eq!(stages(&timing), expected);
        assert_eq!(stages(&Timing::default()), []);
    }
}
