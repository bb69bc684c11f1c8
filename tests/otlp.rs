//! Traces: what a collector gets in a build with the feature `otlp`, and what a build without it says.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

mod common;

use std::net::SocketAddr;

use common::{Client, Daemon, IN, Scratch, Sink, out, relay};

const MESSAGE: &[u8] =
    b"From: erin@fabrikam.com\r\nSubject: a secret\r\nMessage-ID: <one@fabrikam.com>\r\n\r\nhello\r\n";

fn config(sink: SocketAddr) -> String {
    relay(&format!("{IN}tls = \"off\"\n\n{}", out(sink)))
}

fn deliver(daemon: &Daemon, to: &[&str]) {
    let reply = Client::hello(daemon.address()).deliver("erin@fabrikam.com", to, MESSAGE).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
}

/// The variables are the same for every program of a host: that this one cannot is said once, and all else is as ever.
#[cfg(not(feature = "otlp"))]
#[test]
fn a_build_without_it_says_so_once() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let variable = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")];
    let daemon = Daemon::spawn_with(scratch.path(), &config(sink.address), &variable);
    deliver(&daemon, &["julie@contoso.com"]);
    sink.wait_for(1);
    daemon.logs_times("this build has no OTLP", 1);
    drop(daemon);
    let daemon = Daemon::spawn(scratch.path(), &config(sink.address));
    assert!(!daemon.has_logged("OTLP"), "{}", daemon.log_text());
}

#[cfg(feature = "otlp")]
mod with {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use super::common::{At, PATIENCE, Reaction, SinkPlan, wait_until};
    use super::*;

    /// One span, as the collector reads it.
    #[derive(Debug, Clone, Default)]
    struct Span {
        trace: Vec<u8>,
        id: Vec<u8>,
        parent: Vec<u8>,
        name: String,
        begun: u64,
        ended: u64,
        attributes: Vec<(String, String)>,
    }

    impl Span {
        fn get(&self, name: &str) -> &str {
            self.attributes.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
        }
    }

    enum Value<'a> {
        Number(u64),
        Bytes(&'a [u8]),
    }

    /// The fields of a protobuf message.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Value<'_>)> {
        fn number(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let (first, rest) = bytes.split_first().unwrap();
                *bytes = rest;
                value |= u64::from(first & 0x7f) << shift;
                shift += 7;
                if first & 0x80 == 0 {
                    return value;
                }
            }
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = number(&mut bytes);
            let value = match key & 7 {
                0 => Value::Number(number(&mut bytes)),
                1 | 5 => {
                    let (value, rest) = bytes.split_at(if key & 7 == 1 { 8 } else { 4 });
                    bytes = rest;
                    let mut whole = [0; 8];
                    whole[..value.len()].copy_from_slice(value);
                    Value::Number(u64::from_le_bytes(whole))
                }
                2 => {
                    let len = number(&mut bytes) as usize;
                    let (value, rest) = bytes.split_at(len);
                    bytes = rest;
                    Value::Bytes(value)
                }
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, value));
        }
        found
    }

    fn inner(bytes: &[u8], wanted: u64) -> Vec<&[u8]> {
        let of = |(field, value)| match value {
            Value::Bytes(bytes) if field == wanted => Some(bytes),
            _ => None,
        };
        fields(bytes).into_iter().filter_map(of).collect()
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    /// `ExportTraceServiceRequest`: resources, their scopes, their spans. opentelemetry-proto 1.x, trace.proto.
    fn spans(request: &[u8]) -> Vec<Span> {
        let mut found = Vec::new();
        for span in inner(request, 1).into_iter().flat_map(|one| inner(one, 2)).flat_map(|one| inner(one, 2)) {
            let mut read = Span::default();
            for (field, value) in fields(span) {
                match (field, value) {
                    (1, Value::Bytes(bytes)) => read.trace = bytes.to_vec(),
                    (2, Value::Bytes(bytes)) => read.id = bytes.to_vec(),
                    (4, Value::Bytes(bytes)) => read.parent = bytes.to_vec(),
                    (5, Value::Bytes(bytes)) => read.name = text(bytes),
                    (7, Value::Number(at)) => read.begun = at,
                    (8, Value::Number(at)) => read.ended = at,
                    (9, Value::Bytes(pair)) => {
                        let value = inner(pair, 2).into_iter().flat_map(|value| inner(value, 1)).map(text).collect();
                        read.attributes.push((text(inner(pair, 1)[0]), value));
                    }
                    _ => {}
                }
            }
            found.push(read);
        }
        found
    }

    /// Every text in a request, by the schema: looked for among raw octets, an "@" is in a random span id as often as not.
    /// A field that is none of these is refused, so that no text goes unread. opentelemetry-proto 1.x: trace.proto,
    /// common.proto, resource.proto.
    fn texts(request: &[u8]) -> Vec<String> {
        /// What the fields of a message are: by number, texts and messages. All other fields are numbers or ids.
        struct Schema {
            texts: &'static [u64],
            messages: &'static [(u64, &'static Schema)],
            ids: &'static [u64],
        }
        const TEXT: Schema = Schema { texts: &[1], messages: &[], ids: &[] };
        const PAIR: Schema = Schema { texts: &[1], messages: &[(2, &TEXT)], ids: &[] };
        const RESOURCE: Schema = Schema { texts: &[], messages: &[(1, &PAIR)], ids: &[] };
        const SCOPE: Schema = Schema { texts: &[1, 2], messages: &[(3, &PAIR)], ids: &[] };
        const EVENT: Schema = Schema { texts: &[2], messages: &[(3, &PAIR)], ids: &[] };
        const LINK: Schema = Schema { texts: &[3], messages: &[(4, &PAIR)], ids: &[1, 2] };
        const STATUS: Schema = Schema { texts: &[2], messages: &[], ids: &[] };
        const SPAN: Schema = Schema {
            texts: &[3, 5],
            messages: &[(9, &PAIR), (11, &EVENT), (13, &LINK), (15, &STATUS)],
            ids: &[1, 2, 4],
        };
        const SCOPE_SPANS: Schema = Schema { texts: &[3], messages: &[(1, &SCOPE), (2, &SPAN)], ids: &[] };
        const RESOURCE_SPANS: Schema = Schema { texts: &[3], messages: &[(1, &RESOURCE), (2, &SCOPE_SPANS)], ids: &[] };
        const REQUEST: Schema = Schema { texts: &[], messages: &[(1, &RESOURCE_SPANS)], ids: &[] };

        fn read(bytes: &[u8], schema: &Schema, found: &mut Vec<String>) {
            for (field, value) in fields(bytes) {
                let Value::Bytes(bytes) = value else { continue };
                if let Some((_, inner)) = schema.messages.iter().find(|(number, _)| *number == field) {
                    read(bytes, inner, found);
                } else if schema.texts.contains(&field) {
                    found.push(text(bytes));
                } else {
                    assert!(
                        schema.ids.contains(&field),
                        "field {field} is not in the schema: {}",
                        bytes.escape_ascii()
                    );
                }
            }
        }
        let mut found = Vec::new();
        read(request, &REQUEST, &mut found);
        found
    }

    /// How the collector behaves.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Temper {
        Takes,
        Refuses,
        Hangs,
    }

    /// A small OTLP/HTTP collector.
    struct Collector {
        address: SocketAddr,
        bodies: Arc<Mutex<Vec<Vec<u8>>>>,
        temper: Arc<Mutex<Temper>>,
    }

    impl Collector {
        fn start(temper: Temper) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (bodies, temper) = (Arc::<Mutex<Vec<Vec<u8>>>>::default(), Arc::new(Mutex::new(temper)));
            let (taken, mood) = (Arc::clone(&bodies), Arc::clone(&temper));
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let (taken, mood) = (Arc::clone(&taken), Arc::clone(&mood));
                    std::thread::spawn(move || serve(&stream, &taken, &mood));
                }
            });
            Self { address, bodies, temper }
        }

        fn variable(&self) -> (String, String) {
            ("OTEL_EXPORTER_OTLP_ENDPOINT".into(), format!("http://{}", self.address))
        }

        fn spans(&self) -> Vec<Span> {
            self.bodies.lock().unwrap().iter().flat_map(|body| spans(body)).collect()
        }
    }

    /// One connection, request after request; ends with it.
    fn serve(stream: &TcpStream, taken: &Mutex<Vec<Vec<u8>>>, mood: &Mutex<Temper>) -> Option<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let (mut path, mut length) = (String::new(), 0);
            reader.read_line(&mut path).ok().filter(|read| *read > 0)?;
            assert!(path.starts_with("POST /v1/traces "), "{path}");
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
                if line == "\r\n" {
                    break;
                }
                if let Some((_, value)) = line.to_ascii_lowercase().split_once("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            let temper = *mood.lock().unwrap();
            let answer = match temper {
                Temper::Takes => {
                    taken.lock().unwrap().push(body);
                    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
                }
                Temper::Refuses => "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
                Temper::Hangs => {
                    // Until the client has had enough.
                    let _ = reader.read(&mut [0]);
                    return None;
                }
            };
            (&mut &*stream).write_all(answer.as_bytes()).ok()?;
        }
    }

    fn spawn(scratch: &Scratch, sink: &Sink, collector: &Collector) -> Daemon {
        let (name, value) = collector.variable();
        Daemon::spawn_with(scratch.path(), &config(sink.address), &[(&name, &value)])
    }

    /// One message is one trace: its stages hang on its arrival, every attempt with host, TLS and answer; and nothing that
    /// was written is in it.
    #[test]
    fn a_message_is_one_trace_from_its_arrival_to_its_last_attempt() {
        let (scratch, collector) = (Scratch::new(), Collector::start(Temper::Takes));
        let once = Mutex::new(true);
        let sink = Sink::with(SinkPlan::new().reacting(move |at| match at {
            At::Rcpt(_) if std::mem::take(&mut *once.lock().unwrap()) => {
                Reaction::Say("450 4.2.0 julie@contoso.com has a secret, later".into())
            }
            _ => Reaction::Go,
        }));
        let mut daemon = spawn(&scratch, &sink, &collector);
        deliver(&daemon, &["julie@contoso.com"]);
        sink.wait_for(1);
        wait_until("all spans have come", PATIENCE, || collector.spans().len() >= 5);
        let found = collector.spans();
        let names: Vec<&str> = found.iter().map(|span| &*span.name).collect();
        let of = |name: &str| found.iter().filter(|span| span.name == name).collect::<Vec<_>>();
        let [receive] = of("receive")[..] else { panic!("{names:?}") };
        assert_eq!(
            (of("resolve").len(), of("commit").len(), of("attempt").len(), found.len()),
            (1, 1, 2, 5),
            "{names:?}"
        );
        assert!(receive.parent.is_empty() || receive.parent.iter().all(|byte| *byte == 0));
        for span in &found {
            assert_eq!((span.trace.len(), &span.trace, span.id.len()), (16, &receive.trace, 8), "{span:?}");
            assert!(span.name == "receive" || span.parent == receive.id, "{span:?}");
            assert!(span.begun > 0 && span.begun <= span.ended, "{span:?}");
        }
        let replies: Vec<&str> = of("attempt").iter().map(|span| span.get("causeway.reply")).collect();
        assert_eq!(replies, ["RCPT: 450 4.2.0", "250 2.0.0"]);
        for (number, attempt) in of("attempt").into_iter().enumerate() {
            assert_eq!(attempt.get("causeway.attempt"), (number + 1).to_string());
            assert_eq!(attempt.get("causeway.connector"), "out");
            assert!(attempt.get("server.address").contains("127.0.0.1"), "{attempt:?}");
        }
        assert!(of("attempt")[1].get("causeway.tls").contains("clear"), "{:?}", of("attempt")[1]);
        for body in collector.bodies.lock().unwrap().iter() {
            let texts = texts(body);
            for secret in ["secret", "julie", "erin", "fabrikam", "@", "hello"] {
                assert!(!texts.iter().any(|text| text.contains(secret)), "{secret} is in a trace: {texts:?}");
            }
            for told in ["service.name", "causeway"] {
                assert!(texts.iter().any(|text| text == told), "{told} is not in a trace: {texts:?}");
            }
        }
        // What is told at the end still leaves.
        deliver(&daemon, &["david@contoso.com"]);
        sink.wait_for(2);
        assert!(daemon.terminate().success());
        assert!(collector.spans().len() >= 9, "{}", collector.spans().len());
    }

    /// A collector that refuses, hangs or is not there costs no mail and no time; the log says so once.
    #[test]
    fn a_collector_that_fails_hurts_nobody() {
        for temper in [Temper::Refuses, Temper::Hangs] {
            let (scratch, sink, collector) = (Scratch::new(), Sink::start(), Collector::start(temper));
            let daemon = spawn(&scratch, &sink, &collector);
            let begun = Instant::now();
            for _ in 0..50 {
                deliver(&daemon, &["julie@contoso.com"]);
            }
            sink.wait_for(50);
            // The exporter waits ten seconds for a collector: for each message it would be minutes.
            assert!(begun.elapsed() < PATIENCE, "{temper:?}: {:?}", begun.elapsed());
            daemon.wait_for_log("the collector takes no traces");
            *collector.temper.lock().unwrap() = Temper::Takes;
            deliver(&daemon, &["julie@contoso.com"]);
            sink.wait_for(51);
            daemon.wait_for_log("the collector takes traces again");
            daemon.logs_times("the collector takes no traces", 1);
        }
    }
}
