//! Figures in the Prometheus text format, each with what it means and in which unit.
//!
//! Labels are names of the configuration, words of our own and certificates' files, so nobody who sends mail can make
//! their number grow.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;

use super::{Admin, Error, Shared};
use crate::config::Config;
use crate::relay::meter::{BOUNDS, Meter};

/// Prometheus text format 0.0.4.
const FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

pub(super) async fn metrics(State(admin): State<Shared>) -> Result<Response, Error> {
    Ok(([(CONTENT_TYPE, FORMAT)], write(&admin, Timestamp::now())).into_response())
}

/// The text so far.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a figure; its values follow.
    pub(super) fn figure(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value.
    pub(super) fn value(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (number, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{}\"", if number == 0 { '{' } else { ',' }, escaped(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.figure(name, "gauge", help);
        self.value(name, &[], value);
    }
}

/// As a label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn write(admin: &Admin, now: Timestamp) -> String {
    let relay = &admin.relay;
    let snapshot = relay.snapshot();
    let mut text = Text::default();
    text.figure("causeway_build_info", "gauge", "The version that runs; always 1.");
    text.value("causeway_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let ready = f64::from(u8::from(relay.check_ready().is_ok()));
    text.gauge("causeway_ready", "1 if the doors are open and the spool takes mail.", ready);
    let open = admin.connections.open() as f64;
    text.gauge("causeway_connections_open", "SMTP connections of clients that are open.", open);
    text.gauge("causeway_queue_messages", "Messages in the spool.", relay.waiting() as f64);

    let depths = relay.depths();
    for (name, help, of) in [
        ("causeway_queue_ready", "Copies that could be tried now.", 0),
        ("causeway_queue_active", "Copies that are being tried.", 1),
        ("causeway_queue_deferred", "Copies that wait for their next attempt.", 2),
        ("causeway_hops_resting", "Next hops that are left alone for a while because they are down or slow.", 3),
    ] {
        text.figure(name, "gauge", help);
        // Every connector of the configuration, also where nothing waits: an alert needs the zero.
        for connector in &snapshot.config.send_connectors {
            let sum = depths.get(&*connector.name.0).copied().unwrap_or_default();
            let value = [sum.ready, sum.active, sum.later, sum.resting][of];
            text.value(name, &[("connector", &connector.name.0)], value as f64);
        }
    }

    text.gauge("causeway_queue_held", "Copies that an operator holds.", relay.held() as f64);
    counters(&mut text, relay.meter(), &snapshot.config);

    let (spool, free) = relay.spool_bytes();
    text.gauge("causeway_spool_log_bytes", "Bytes of records in the spool's log.", spool.log as f64);
    text.gauge("causeway_spool_live_bytes", "Bytes of records of messages that wait.", spool.live as f64);
    text.gauge("causeway_spool_large_bytes", "Bytes of the files of large messages that wait.", spool.large as f64);
    if let Some(free) = free {
        text.gauge("causeway_spool_free_bytes", "Bytes free on the spool's disk.", free as f64);
    }
    text.gauge(
        "causeway_directory_recipients",
        "Recipients that the directory knows.",
        snapshot.directory.len() as f64,
    );
    text.gauge(
        "causeway_directory_faulty",
        "Files of recipients that are refused as they are: an older one serves, or none.",
        snapshot.directory.refused().count() as f64,
    );
    text.figure("causeway_tracking_lost_total", "counter", "Tracking events that could not be written.");
    text.value("causeway_tracking_lost_total", &[], relay.lost_events() as f64);

    let name = "causeway_certificate_expiry_seconds";
    text.figure(name, "gauge", "Seconds until the certificate ends; negative: it has.");
    let mut seen = Vec::new();
    for identity in snapshot.config.identities() {
        let file = identity.files().first().map(|file| file.display().to_string()).unwrap_or_default();
        if !seen.contains(&file) {
            text.value(name, &[("file", &file)], identity.expiry().duration_since(now).as_secs_f64());
            seen.push(file);
        }
    }
    text.0
}

/// What was counted since the start.
fn counters(text: &mut Text, meter: &Meter, config: &Config) {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    text.gauge("causeway_uptime_seconds", "Seconds since the start.", meter.uptime().as_secs_f64());
    for (name, help, counter) in [
        ("causeway_accepted_messages_total", "Messages that were acknowledged to their clients.", &meter.accepted),
        ("causeway_accepted_bytes_total", "Bytes of these.", &meter.accepted_bytes),
        ("causeway_reports_total", "Reports written to senders (DSN).", &meter.reports),
        ("causeway_failed_logins_total", "Logins of clients that did not succeed.", &meter.failed_logins),
    ] {
        text.figure(name, "counter", help);
        text.value(name, &[], get(counter));
    }
    let name = "causeway_refused_total";
    text.figure(name, "counter", "Senders, recipients and messages that were refused, by the class of the reply.");
    text.value(name, &[("class", "4")], get(&meter.refused_for_now));
    text.value(name, &[("class", "5")], get(&meter.refused_for_good));

    let counted = meter.connectors();
    for (name, help, of) in [
        ("causeway_delivered_recipients_total", "Recipients whose next hop took the message.", 0),
        ("causeway_deferred_recipients_total", "Attempts for a recipient that were in vain and are made again.", 1),
        ("causeway_failed_recipients_total", "Recipients that never will be delivered.", 2),
    ] {
        text.figure(name, "counter", help);
        for connector in &config.send_connectors {
            let via = counted.iter().find(|(known, _)| **known == *connector.name.0);
            let value = via.map_or(0.0, |(_, via)| get([&via.delivered, &via.deferred, &via.failed][of]));
            text.value(name, &[("connector", &connector.name.0)], value);
        }
    }
    for (name, help, histogram) in [
        ("causeway_commit_seconds", "From the end of a message's data to stable storage.", &meter.commit),
        ("causeway_delivery_seconds", "From the acceptance of a copy to its next hop's 250.", &meter.delivery),
    ] {
        text.figure(name, "histogram", help);
        let counts = histogram.counts();
        let bucket = format!("{name}_bucket");
        for (bound, count) in BOUNDS.iter().zip(counts) {
            text.value(&bucket, &[("le", &(*bound as f64 / 1e3).to_string())], count as f64);
        }
        let all = counts[BOUNDS.len()] as f64;
        text.value(&bucket, &[("le", "+Inf")], all);
        text.value(&format!("{name}_sum"), &[], histogram.seconds());
        text.value(&format!("{name}_count"), &[], all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.figure("a_total", "counter", "Of a.");
        text.value("a_total", &[("file", "C:\\x\"y\n"), ("class", "b")], 2.0);
        let expected =
            "# HELP a_total Of a.\n# TYPE a_total counter\na_total{file=\"C:\\\\x\\\"y\\n\",class=\"b\"} 2\n";
        assert_eq!(text.0, expected);
    }
}
