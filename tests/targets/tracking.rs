//! Tracking files as `trace` reads them. A case is a file; the questions follow from what a slow reader finds in it.

use std::collections::BTreeSet;
use std::io::Write as _;

use causeway::message::MessageId;
use causeway::outcome::tracking::Record;
use causeway::outcome::tracking::search::{Query, Relay, Story, trace as search};
use jiff::Timestamp;
use tempfile::NamedTempFile;

/// The lines that say something, read by nothing but a JSON parser.
fn records(data: &[u8]) -> Vec<Record> {
    let lines = data.split(|&octet| octet == b'\n');
    let parsed = lines.filter_map(|line| Record::parse(std::str::from_utf8(line).ok()?).ok());
    parsed.filter_map(known).collect()
}

/// As `trace` shows it: times in UTC and to the microsecond. `None` of what has no time, or a number that is none.
fn known(record: Record) -> Option<Record> {
    let time: Timestamp = record.time.parse().ok()?;
    let id = record.id.as_deref().map(|id| number(id).ok_or(())).transpose().ok()?;
    // Values are cut at 4 KiB where they are written, so longer ones are not ours to compare.
    let micros = Timestamp::from_microsecond(time.as_microsecond()).ok()?;
    Some(Record { time: micros.to_string(), id: id.map(|id| id.to_string()), ..record })
}

fn number(text: &str) -> Option<MessageId> {
    u64::from_str_radix(text, 16).ok().filter(|_| !text.starts_with('+')).map(MessageId)
}

fn told(story: &Story, all: &mut Vec<Record>) {
    all.extend(
        story.events.iter().map(|told| known(told.record.clone()).expect("what is shown has a time and a number")),
    );
    assert!(story.events.is_sorted_by_key(|told| (told.time, told.relay)), "out of order");
    assert!(!story.events.is_empty() && story.omitted == 0);
    story.reports.iter().for_each(|report| told(report, all));
    // What is shown of it can be asked for.
    let _ = (story.begin(), story.message_id(), story.from(), story.size(), story.to(), story.ids());
}

pub fn trace(data: &[u8]) {
    let mut file = NamedTempFile::new_in(folder()).expect("there is a folder for files that come and go");
    file.write_all(data).unwrap();
    let relays = [Relay::open("mail.contoso.com", file.path()).unwrap()];
    let records = records(data);
    // Compressed files are unpacked; a slow reader of theirs would be the same code.
    let is_packed = data.starts_with(&[0x1f, 0x8b]);

    let all = Query { limit: 10_000, ..Query::default() };
    let traced = search(&relays, &all);
    let mut found = Vec::new();
    traced.stories.iter().for_each(|story| told(story, &mut found));
    assert_eq!(traced.more, 0);
    if is_packed {
        return;
    }
    let key = |record: &Record| format!("{record:?}");
    let found: BTreeSet<String> = found.iter().map(key).collect();
    for record in &records {
        assert!(found.contains(&key(record)), "missed: {record:?}");
    }
    let known: BTreeSet<String> = records.iter().map(key).collect();
    for one in &found {
        assert!(known.contains(one), "made up: {one}");
    }

    let lines = data.split(|&octet| octet == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
    let torn = lines != records.len();
    // Each question finds what the slow reader finds, and nothing that does not match.
    for record in records.iter().take(6) {
        if let Some(id) = record.id.as_deref().and_then(number) {
            let query = Query { id: Some(id), limit: 100, ..Query::default() };
            ask(&relays, &query, record, (&records, torn), |other| other.id.as_deref().and_then(number) == Some(id));
        }
        if let Some(message_id) = record.message_id.as_deref().filter(|id| id.starts_with('<') && id.ends_with('>')) {
            let query = Query { message_id: Some(message_id.to_owned()), limit: 100, ..Query::default() };
            ask(&relays, &query, record, (&records, torn), |other| other.message_id.as_deref() == Some(message_id));
        }
        if let Some(to) = record.to.first().filter(|to| !to.starts_with('<') && !to.is_empty()) {
            let query = Query { to: Some(to.to_lowercase()), limit: 100, ..Query::default() };
            let low = to.to_lowercase();
            ask(&relays, &query, record, (&records, torn), |other| other.to.iter().any(|to| to.to_lowercase() == low));
        }
    }
}

/// The record is found; and every story is of a message of which an event matches, by its number or its Message-ID.
///
/// Unless the file has a torn line, which may say what nobody else reads in it.
fn ask(
    relays: &[Relay],
    query: &Query,
    record: &Record,
    (records, torn): (&[Record], bool),
    matches: impl Fn(&Record) -> bool,
) {
    let traced = search(relays, query);
    let mut found = Vec::new();
    traced.stories.iter().for_each(|story| told(story, &mut found));
    assert!(found.contains(record), "{query:?} misses {record:?}");
    for story in traced.stories.iter().filter(|_| !torn) {
        let mut events = Vec::new();
        told(story, &mut events);
        let same = |one: &Record, other: &Record| {
            (one.id.is_some() && one.id == other.id) || (one.message_id.is_some() && one.message_id == other.message_id)
        };
        let about = |record: &Record| {
            matches(record) || record.event == "DSN" || records.iter().any(|one| matches(one) && same(one, record))
        };
        assert!(events.iter().any(about), "{query:?} finds {events:?}");
    }
}

/// In memory where the machine has a folder there: a case is written and read thousands of times.
fn folder() -> std::path::PathBuf {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { memory.into() } else { std::env::temp_dir() }
}
