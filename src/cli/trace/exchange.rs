//! The same events as Exchange's message tracking log, for the tools that read those.
//!
//! Fields and their order, and the names of events and sources, are Exchange's. What the relay does not know is empty:
//! it keeps no subjects and has no network-message-id. The reasons stand in custom-data, as `S:Because=…`. Exchange has no
//! event of its own for a rule or a journal report: these are an agent's.

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::IpAddr;

use jiff::Timestamp;

use super::{Story, Told, Traced};
use crate::config::{ConnectorName, Origin};

const FIELDS: [&str; 30] = [
    "date-time",
    "client-ip",
    "client-hostname",
    "server-ip",
    "server-hostname",
    "source-context",
    "connector-id",
    "source",
    "event-id",
    "internal-message-id",
    "message-id",
    "network-message-id",
    "recipient-address",
    "recipient-status",
    "total-bytes",
    "recipient-count",
    "related-recipient-address",
    "reference",
    "message-subject",
    "sender-address",
    "return-path",
    "message-info",
    "directionality",
    "tenant-id",
    "original-client-ip",
    "original-server-ip",
    "custom-data",
    "transport-traffic-type",
    "log-id",
    "schema-version",
];

/// Writes every event of every message, in the order of time, as Exchange's logs have them.
pub(super) fn write(
    out: &mut impl Write,
    traced: &Traced,
    relays: &[&str],
    origins: &[(ConnectorName, Origin)],
    now: Timestamp,
) -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    write!(out, "#Software: Causeway\r\n#Version: {version}\r\n#Log-Type: Message Tracking Log\r\n")?;
    write!(out, "#Date: {now:.3}\r\n#Fields: {}\r\n", FIELDS.join(","))?;
    let mut all = Vec::new();
    let mut stories: Vec<&Story> = traced.stories.iter().collect();
    while let Some(story) = stories.pop() {
        stories.extend(&story.reports);
        all.extend(story.events.iter().map(|told| (story, told)));
    }
    all.sort_by_key(|(_, told)| told.time);
    for (story, told) in all {
        let row = row(story, told, relays[told.relay], origins);
        let row: Vec<_> = FIELDS.iter().map(|field| quoted(row.get(field))).collect();
        write!(out, "{}\r\n", row.join(","))?;
    }
    Ok(())
}

/// The values of a row, by the name of their field.
struct Row(Vec<(&'static str, String)>);

impl Row {
    fn get(&self, field: &str) -> &str {
        self.0.iter().find(|(name, _)| *name == field).map_or("", |(_, value)| value)
    }
}

fn row(story: &Story, told: &Told, relay: &str, origins: &[(ConnectorName, Origin)]) -> Row {
    let record = &told.record;
    let (event, source) = names(&record.event, record.peer.is_some());
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (host, ip) = record.peer.as_deref().map(peer).unwrap_or_default();
    // Mail comes in from the client; in all else the relay is the client of the next hop.
    let (client, server) = if event == "RECEIVE" {
        ((host, ip), (relay.to_owned(), String::new()))
    } else {
        ((relay.to_owned(), String::new()), (host, ip))
    };
    let null = |from: &Option<String>| from.clone().unwrap_or_default();
    let detail = text(&record.detail);
    let reply = match (&record.status, detail.is_empty()) {
        (Some(_), false) => detail.replace(';', ","),
        (Some(status), true) => status.clone(),
        (None, _) => String::new(),
    };
    let related = match event {
        "EXPAND" | "REDIRECT" => detail.split(' ').next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let received = story.events.iter().find(|other| other.relay == told.relay && other.record.event == "RECEIVE");
    let arrival = received.map(|told| &told.record);
    let origin = arrival.and_then(|arrival| {
        let name = arrival.connector.as_deref()?;
        origins.iter().find(|(known, _)| *known.0 == *name).map(|(_, origin)| *origin)
    });
    let directionality = match origin {
        Some(Origin::Internet | Origin::Partner) => "Incoming",
        Some(Origin::OnPremises | Origin::Cloud | Origin::Client) => "Originating",
        None => "Undefined",
    };
    let number = record.id.as_deref().and_then(|id| u64::from_str_radix(id, 16).ok());
    let custom: Vec<String> =
        record.because.iter().map(|reason| format!("S:Because={}", reason.replace(';', ","))).collect();
    let context = [text(&record.id), text(&record.tls), detail];
    let context: Vec<_> = context.into_iter().filter(|part| !part.is_empty()).collect();
    let size = record.size.or_else(|| story.size());
    Row(vec![
        ("date-time", format!("{:.3}", told.time)),
        ("client-ip", client.1),
        ("client-hostname", client.0),
        ("server-ip", server.1),
        ("server-hostname", server.0),
        ("source-context", context.join(";")),
        ("connector-id", text(&record.connector)),
        ("source", source.to_owned()),
        ("event-id", event.to_owned()),
        ("internal-message-id", number.map(|number| number.to_string()).unwrap_or_default()),
        ("message-id", text(&record.message_id)),
        ("recipient-address", record.to.join(";")),
        ("recipient-status", vec![reply; record.to.len()].join(";").trim_matches(';').to_owned()),
        ("total-bytes", size.map(|size| size.to_string()).unwrap_or_default()),
        ("recipient-count", record.to.len().to_string()),
        ("related-recipient-address", related),
        ("reference", if event == "DSN" { text(&record.message_id) } else { String::new() }),
        ("sender-address", null(&record.from)),
        ("return-path", null(&record.from)),
        (
            "message-info",
            if event == "SEND" {
                story.begin().map(|begin| format!("{begin:.3}")).unwrap_or_default()
            } else {
                String::new()
            },
        ),
        ("directionality", directionality.to_owned()),
        (
            "original-client-ip",
            arrival.and_then(|arrival| arrival.peer.as_deref()).map(|text| peer(text).1).unwrap_or_default(),
        ),
        ("custom-data", custom.join(";")),
        ("transport-traffic-type", "Email".to_owned()),
        ("schema-version", env!("CARGO_PKG_VERSION").to_owned()),
    ])
}

/// Exchange's name of an event, and what did it.
fn names(event: &str, peer: bool) -> (&str, &'static str) {
    match event {
        "RECEIVE" | "SEND" => (event, "SMTP"),
        "DEFER" | "FAIL" if peer => (event, "SMTP"),
        "DEFER" | "FAIL" | "RESOLVE" | "REDIRECT" | "EXPAND" | "TRANSFER" => (event, "ROUTING"),
        "DSN" | "DROP" => (event, "DSN"),
        "POISON" => ("POISONMESSAGE", "POISONMESSAGE"),
        "JOURNAL" => ("RECEIVE", "AGENT"),
        "RULE" => ("AGENTINFO", "AGENT"),
        // A newer relay's.
        other => (other, "ADMIN"),
    }
}

/// Name and address of `mx1.example.net [192.0.2.1]:25`, or of one of them alone.
fn peer(text: &str) -> (String, String) {
    let is_ip = |text: &str| text.parse::<IpAddr>().is_ok();
    match text.split_once('[').and_then(|(name, rest)| Some((name.trim(), rest.split_once(']')?.0))) {
        Some((name, ip)) if is_ip(ip) => (name.to_owned(), ip.to_owned()),
        _ if is_ip(text) => (String::new(), text.to_owned()),
        _ => match text.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && is_ip(host) => {
                (String::new(), host.to_owned())
            }
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host.to_owned(), String::new()),
            _ => (text.to_owned(), String::new()),
        },
    }
}

/// RFC 4180. A line end within a value would be a record to tools that read line by line.
fn quoted(value: &str) -> Cow<'_, str> {
    if !value.contains([',', '"', '\r', '\n']) {
        return Cow::Borrowed(value);
    }
    let one_line = value.replace('\r', "").replace('\n', " ");
    Cow::Owned(format!("\"{}\"", one_line.replace('"', "\"\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_addresses() {
        for (text, host, ip) in [
            ("mx1.example.net [192.0.2.1]:25", "mx1.example.net", "192.0.2.1"),
            ("mx1.example.net [2001:db8::1]:25", "mx1.example.net", "2001:db8::1"),
            ("192.0.2.7", "", "192.0.2.7"),
            ("2001:db8::7", "", "2001:db8::7"),
            ("[192.0.2.7]:25", "", "192.0.2.7"),
            ("192.0.2.7:25", "", "192.0.2.7"),
            ("mx1.example.net:25", "mx1.example.net", ""),
            ("mx1.example.net", "mx1.example.net", ""),
        ] {
            assert_eq!(peer(text), (host.to_owned(), ip.to_owned()), "{text}");
        }
    }

    #[test]
    fn every_event_has_a_name_that_exchange_knows() {
        for (event, peer, expected) in [
            ("RECEIVE", true, ("RECEIVE", "SMTP")),
            ("RESOLVE", false, ("RESOLVE", "ROUTING")),
            ("REDIRECT", false, ("REDIRECT", "ROUTING")),
            ("EXPAND", false, ("EXPAND", "ROUTING")),
            ("TRANSFER", false, ("TRANSFER", "ROUTING")),
            ("SEND", true, ("SEND", "SMTP")),
            ("DEFER", true, ("DEFER", "SMTP")),
            ("FAIL", true, ("FAIL", "SMTP")),
            ("FAIL", false, ("FAIL", "ROUTING")),
            ("DSN", false, ("DSN", "DSN")),
            ("JOURNAL", false, ("RECEIVE", "AGENT")),
            ("RULE", false, ("AGENTINFO", "AGENT")),
            ("DROP", false, ("DROP", "DSN")),
            ("POISON", false, ("POISONMESSAGE", "POISONMESSAGE")),
        ] {
            assert_eq!(names(event, peer), expected, "{event}");
        }
    }

    #[test]
    fn values_stay_in_their_column_and_line() {
        for (value, expected) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("a\r\nb", "\"a b\""),
            ("", ""),
        ] {
            assert_eq!(quoted(value), expected);
        }
    }
}
