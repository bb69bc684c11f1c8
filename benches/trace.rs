//! How long `trace` takes over a great many events: a finished day by its index, the day under way by reading it.
//!
//! Goals: an answer within a second over 10 million events of finished days; a gigabyte a second of the file of today.
//! `CAUSEWAY_EVENTS=10000000 cargo bench --bench trace` makes a day of so many (3 GB in TMPDIR, removed afterwards);
//! without it, it is a million.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use causeway::message::{Address, MessageId};
use causeway::outcome::tracking::search::{Query, Relay, trace};
use causeway::outcome::tracking::{Event, EventKind, file_name, finish_before};
use causeway::smtp::Status;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::civil::{Date, date};
use jiff::{Timestamp, ToSpan};

const A_MESSAGE: u64 = 4;

/// Four events a message, among a hundred thousand senders and as many recipients; what a hybrid relay says of each.
fn write(folder: &Path, day: Date, events: u64) -> u64 {
    let path = folder.join(file_name(day));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).expect("a file"));
    let begin: Timestamp = format!("{day}T00:00:00Z").parse().expect("a time");
    let messages = events / A_MESSAGE;
    for number in 0..messages {
        let time = begin + ((number * 86_000 / messages.max(1)).cast_signed()).seconds();
        let address =
            |name: &str, number: u64| Address::parse(&format!("{name}{number}@contoso.com")).expect("an address");
        let (from, to) = (address("sender", number * 7919 % 100_000), address("reader", number * 104_729 % 100_003));
        let message_id =
            format!("<{:016x}.{number}@mail.fabrikam.example>", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for event in [EventKind::Receive, EventKind::Resolve, EventKind::Transfer, EventKind::Send] {
            let line = Event {
                message_id: Some(&message_id),
                from: Some(&from),
                to: &[&to],
                size: Some(20_000 + number % 9000),
                connector: Some("to-cloud"),
                peer: Some(&"contoso-com.mail.protection.outlook.com [192.0.2.1]:25"),
                status: Some(Status(2, 0, 0)),
                because: &[&"found in recipients.csv: cloud mailbox"],
                ..Event::new(time, event, MessageId(number + 1))
            };
            writeln!(out, "{}", line.to_json()).expect("room for it");
        }
    }
    out.into_inner().expect("room for it").sync_all().expect("room for it");
    std::fs::metadata(path).expect("it was written").len()
}

fn traces(criterion: &mut Criterion) {
    let events = std::env::var("CAUSEWAY_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let folder = tempfile::tempdir().expect("a folder");
    let (yesterday, today) = (date(2026, 11, 19), date(2026, 11, 20));
    let length = write(folder.path(), yesterday, events);
    let begun = Instant::now();
    finish_before(folder.path(), today).expect("a folder");
    // It rests three quarters of the time, so that mail has the processor.
    eprintln!("{events} events, {} MB: finished in {:?}", length / 1_000_000, begun.elapsed());
    for entry in std::fs::read_dir(folder.path()).expect("a folder").flatten() {
        let length = entry.metadata().map_or(0, |metadata| metadata.len());
        eprintln!("    {}: {} MB", entry.file_name().display(), length / 1_000_000);
    }

    let middle = events / A_MESSAGE / 2;
    let queries = [
        ("id", Query { id: Some(MessageId(middle)), ..Query::default() }),
        ("sender", Query { from: Some(format!("sender{}@contoso.com", middle * 7919 % 100_000)), ..Query::default() }),
        (
            "recipient",
            Query { to: Some(format!("READER{}@contoso.com", middle * 104_729 % 100_003)), ..Query::default() },
        ),
        ("nobody", Query { to: Some("nobody@contoso.com".into()), ..Query::default() }),
    ];
    let mut measure = |what: &str, throughput: Option<u64>, expect_some: bool| {
        let mut group = criterion.benchmark_group(what);
        group.sample_size(10).measurement_time(Duration::from_secs(10));
        if let Some(bytes) = throughput {
            group.throughput(Throughput::Bytes(bytes));
        }
        for (name, query) in &queries {
            let query = Query { limit: 100, ..query.clone() };
            let ask = || {
                let relays = [Relay::open("here", folder.path()).expect("a folder")];
                trace(&relays, black_box(&query))
            };
            assert_eq!(!ask().stories.is_empty(), expect_some && *name != "nobody", "{what} {name}");
            group.bench_function(*name, |bencher| bencher.iter(ask));
        }
        group.finish();
    };
    measure("trace, a finished day", None, true);
    for file in std::fs::read_dir(folder.path()).expect("a folder").flatten() {
        std::fs::remove_file(file.path()).expect("it is ours");
    }
    let length = write(folder.path(), today, events);
    measure("trace, today", Some(length), true);
}

criterion_group!(benches, traces);
criterion_main!(benches);
