//! What each message costs in the parts that every message passes: header facts, the `Received:` field, tracking
//! events, the schedule. Together they are held to a few microseconds.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway::config::{ConnectorName, Tracking};
use causeway::message::received::Received;
use causeway::message::{Address, Domain, MessageId, header};
use causeway::outcome::tracking::{Event, EventKind, Tracker};
use causeway::relay::schedule::{Feedback, Schedule};
use causeway::route::Hop;
use causeway::smtp::Status;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;

fn address(text: &str) -> Address {
    Address::parse(text).expect("an address")
}

fn header_facts(c: &mut Criterion) {
    let mut head = String::new();
    for hop in 0..6 {
        head += &format!(
            "Received: from host{hop}.example.net (host{hop}.example.net [192.0.2.{hop}])\r\n\tby mx{hop}.example.net \
             with ESMTPS id abc{hop}\r\n\tfor <anna@contoso.com>; Tue, 1 Jul 2025 12:34:56 +0000\r\n"
        );
    }
    for field in 0..20 {
        head += &format!("X-Field-{field}: {}\r\n", "value ".repeat(12));
    }
    head += "Message-ID: <abcdef@example.net>\r\nSubject: hello\r\nFrom: a@b.example\r\n\r\n";
    let mut group = c.benchmark_group("header");
    group.throughput(Throughput::Bytes(head.len() as u64));
    group.bench_function("facts of 30 fields", |b| b.iter(|| header::facts(black_box(head.as_bytes()))));
    group.finish();
}

fn received(c: &mut Criterion) {
    let by = Domain::parse("mail.contoso.com").expect("a domain");
    let to = address("anna@contoso.com");
    let field = Received {
        hello: "client.example.org",
        peer: IpAddr::from([192, 0, 2, 1]),
        by: &by,
        extended: true,
        tls: Some("TLSv1.3 TLS_AES_256_GCM_SHA384"),
        authenticated: false,
        utf8: false,
        id: MessageId(42),
        only_recipient: Some(&to),
        at: Timestamp::now(),
    };
    c.bench_function("received field", |b| b.iter(|| black_box(&field).to_field()));
}

fn tracking(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = Tracking { path: folder.path().into(), keep: Duration::from_secs(86_400) };
    let tracker = Tracker::open(&settings).expect("a tracker");
    let (from, to) = (address("anna@contoso.com"), address("bob@example.net"));
    let to = [&to];
    c.bench_function("four events of a message", |b| {
        b.iter(|| {
            let now = Timestamp::now();
            for event in [EventKind::Receive, EventKind::Resolve, EventKind::Transfer, EventKind::Send] {
                tracker.write(&Event {
                    message_id: Some("<abcdef@example.net>"),
                    from: Some(&from),
                    to: &to,
                    size: Some(1024),
                    connector: Some("to-internet"),
                    peer: Some(&"mx1.example.net [192.0.2.1]:25"),
                    tls: Some(&"TLSv1.3 TLS_AES_256_GCM_SHA384"),
                    status: Some(Status(2, 0, 0)),
                    because: &[&"not an accepted domain", &"address space * of to-internet"],
                    detail: Some(&"250 2.0.0 queued"),
                    ..Event::new(now, event, MessageId(42))
                });
            }
        });
    });
    eprintln!("{} events dropped: faster than the disk takes them", tracker.dropped());
}

fn schedule(c: &mut Criterion) {
    let (via, hop) = (ConnectorName(Arc::from("to-internet")), Hop::SmartHosts);
    let mut schedule = Schedule::new(vec![Duration::from_secs(60)]);
    let now = Instant::now();
    c.bench_function("schedule: ready, take, feedback, take", |b| {
        b.iter(|| {
            let lane = schedule.lane(&via, &hop, 20);
            assert!(schedule.ready(lane, 7u64));
            black_box(schedule.take(lane, now));
            assert_eq!(schedule.feedback(lane, now, Feedback::Ok, 0.5), 0);
            schedule.take(lane, now)
        });
    });
    let lane = schedule.lane(&via, &hop, 20);
    for item in 0..1_000_000u32 {
        schedule.later(now + Duration::from_secs(3600) + Duration::from_millis(u64::from(item)), lane, 7u64);
    }
    c.bench_function("schedule: nothing due among a million", |b| b.iter(|| (schedule.due(now), schedule.next_due())));
}

criterion_group!(parts, header_facts, received, tracking, schedule);
criterion_main!(parts);
