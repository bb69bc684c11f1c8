//! Traces of messages to an OpenTelemetry collector (OTLP over HTTP), in builds with the feature `otlp`.
//!
//! Asked for by the variables that every OpenTelemetry program knows: `OTEL_EXPORTER_OTLP_ENDPOINT` or
//! `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`; without one of them nothing is started. A thread of its own takes what the stages
//! tell (`outcome::spans`) and sends it, some hundred at a time. What the collector does not take is dropped and counted;
//! the log says when that begins and ends, once each. The only file that names `opentelemetry`.
//!
//! A message is one trace, whose spans hang on its `receive`. The identifiers follow from the message, so nothing is kept
//! for them and an attempt after a restart belongs to the same trace.
//!
//! Not yet: collectors that ask for TLS; one beside the relay passes on what it gets.

/// Either of them asks for traces.
const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// The variable by which somebody asks for traces.
fn asked_for() -> Option<&'static str> {
    VARIABLES.into_iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

#[cfg(feature = "otlp")]
pub(super) use with::start;

/// What sends traces; nothing in this build.
#[cfg(not(feature = "otlp"))]
pub(super) struct Exporter;

/// Says that this build cannot, where traces are asked for.
#[cfg(not(feature = "otlp"))]
pub(super) fn start() -> Option<Exporter> {
    if let Some(variable) = asked_for() {
        tracing::warn!("{variable} is set, but this build has no OTLP (cargo feature \"otlp\"): no traces are sent");
    }
    None
}

#[cfg(feature = "otlp")]
mod with {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
    use std::task::{Context, Poll, Waker};
    use std::time::{Duration, Instant};

    use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceFlags, TraceState};
    use opentelemetry::{InstrumentationScope, KeyValue, SpanId, TraceId};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
    use tracing::{error, info, warn};

    use crate::outcome::spans::{self, Span};

    /// Spans that wait at one time: a second of a busy relay, and some megabytes.
    const WAITING: usize = 8192;
    /// So many are sent together.
    const BATCH: usize = 512;
    /// Nobody minds a trace that is this late.
    const LINGER: Duration = Duration::from_millis(500);
    /// A collector that does not answer within this has what it gets; `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
    const PATIENCE: Duration = Duration::from_secs(3);
    /// How often it is said that spans were dropped.
    const TELL: Duration = Duration::from_secs(60);

    /// Sends what is left when it is dropped, for a moment.
    pub(in super::super) struct Exporter {
        stop: Arc<AtomicBool>,
        ended: Receiver<()>,
    }

    impl Drop for Exporter {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Release);
            // The end is not to wait for a collector that hangs.
            let _ = self.ended.recv_timeout(PATIENCE);
        }
    }

    /// Starts to send traces, if somebody asked for them.
    pub(in super::super) fn start() -> Option<Exporter> {
        let variable = super::asked_for()?;
        if std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let spans = spans::watch(WAITING)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (end, ended) = channel();
        let stopping = Arc::clone(&stop);
        let spawned = std::thread::Builder::new().name("otlp".into()).spawn(move || {
            match exporter() {
                Ok(exporter) => {
                    info!("traces go to the collector that {variable} names");
                    Sending { exporter, lost: 0, fails: false, told: None }.run(&spans, &stopping);
                }
                Err(why) => error!("{variable}: no traces can be sent: {why}"),
            }
            let _ = end.send(());
        });
        spawned.map_err(|error| error!(%error, "no traces can be sent")).ok()?;
        Some(Exporter { stop, ended })
    }

    fn exporter() -> Result<opentelemetry_otlp::SpanExporter, String> {
        use opentelemetry_otlp::WithExportConfig as _;
        let builder = opentelemetry_otlp::SpanExporter::builder().with_http();
        let timed = ["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"];
        let builder = match timed.iter().any(|name| std::env::var_os(name).is_some()) {
            true => builder,
            false => builder.with_timeout(PATIENCE),
        };
        let mut exporter = builder.build().map_err(|error| error.to_string())?;
        // The builder itself looks at OTEL_RESOURCE_ATTRIBUTES.
        let resource = Resource::builder();
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => resource,
            None => resource.with_service_name("causeway"),
        };
        exporter.set_resource(&resource.with_attribute(version()).build());
        Ok(exporter)
    }

    fn version() -> KeyValue {
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))
    }

    struct Sending {
        exporter: opentelemetry_otlp::SpanExporter,
        /// Spans that nobody got since that was told.
        lost: u64,
        fails: bool,
        told: Option<Instant>,
    }

    impl Sending {
        fn run(&mut self, spans: &Receiver<Span>, stop: &AtomicBool) {
            let mut batch = Vec::new();
            loop {
                let stops = stop.load(Ordering::Acquire);
                let until = Instant::now() + if stops { Duration::ZERO } else { LINGER };
                while batch.len() < BATCH {
                    match spans.recv_timeout(until.saturating_duration_since(Instant::now())) {
                        Ok(span) => batch.push(data(span)),
                        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                    }
                }
                let is_last = stops && batch.len() < BATCH;
                if !batch.is_empty() {
                    self.send(std::mem::take(&mut batch));
                }
                self.tell_losses();
                if is_last {
                    return;
                }
            }
        }

        fn send(&mut self, batch: Vec<SpanData>) {
            let count = batch.len() as u64;
            // The client blocks, so its future is ready at the first look.
            let polled = pin!(self.exporter.export(batch)).poll(&mut Context::from_waker(Waker::noop()));
            let failure = match polled {
                Poll::Ready(Ok(())) => None,
                Poll::Ready(Err(error)) => Some(error.to_string()),
                Poll::Pending => Some("the client did not end".to_owned()),
            };
            match failure {
                None if self.fails => {
                    self.fails = false;
                    info!("the collector takes traces again");
                }
                None => {}
                Some(why) => {
                    self.lost += count;
                    if !std::mem::replace(&mut self.fails, true) {
                        warn!("the collector takes no traces, they are dropped; mail goes on: {why}");
                    }
                }
            }
        }

        fn tell_losses(&mut self) {
            self.lost += spans::drain_dropped();
            if self.lost > 0 && self.told.is_none_or(|told| told.elapsed() >= TELL) {
                warn!(spans = self.lost, "spans of traces were dropped");
                self.lost = 0;
                self.told = Some(Instant::now());
            }
        }
    }

    fn data(span: Span) -> SpanData {
        let Span { name, trace, id, begun, ended, facts } = span;
        let trace_id = TraceId::from_bytes(trace.to_be_bytes());
        // The same for all spans of a message here; the other premises has a number of its own, and a root of its own.
        let root = SpanId::from_bytes(((trace as u64) ^ id.0.rotate_left(32)).max(1).to_be_bytes());
        let (span_id, parent_span_id) = match name {
            "receive" => (root, SpanId::INVALID),
            _ => (SpanId::from_bytes(fastrand::u64(1..).to_be_bytes()), root),
        };
        let mut attributes = vec![KeyValue::new("causeway.id", id.to_string())];
        attributes.extend(facts.attributes.into_iter().map(|(name, value)| KeyValue::new(name, value)));
        SpanData {
            span_context: SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id,
            parent_span_is_remote: false,
            span_kind: match name {
                "receive" => SpanKind::Server,
                "attempt" => SpanKind::Client,
                _ => SpanKind::Internal,
            },
            name: name.into(),
            start_time: begun,
            end_time: ended,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: if facts.failed { Status::error("") } else { Status::Unset },
            instrumentation_scope: InstrumentationScope::builder("causeway").build(),
        }
    }
}
