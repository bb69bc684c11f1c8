//! What a tracking line says of its message, read without parsing JSON: the fast path of every search.
//!
//! The relay writes its lines in one order and one form, so the places of the fields are known, and a line is told
//! apart from the others in some tens of nanoseconds. A line in another form (written by hand, by another version)
//! is parsed once and put into this form; nothing is missed, it only takes longer.
//!
//! Texts here are as they stand in the JSON, escapes and all. The same text is always escaped in the same way, so
//! equal texts are equal bytes.

use std::borrow::Cow;

use jiff::Timestamp;
use memchr::{memchr, memchr2, memmem};

use super::{Line, Record};
use crate::message::MessageId;

/// The length of a time in a line: RFC 3339 with microseconds, in UTC.
pub(super) const TIME: usize = 27;

/// A moment as lines write it. They are of one length and one zone, so their order is that of their bytes.
pub(super) type Time = [u8; TIME];

/// What a line says of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts<'a> {
    pub time: Time,
    pub event: &'a [u8],
    pub id: Option<MessageId>,
    pub message_id: Option<&'a [u8]>,
    /// `<>` is the null sender.
    pub from: Option<&'a [u8]>,
    /// What stands between the brackets of the list.
    to: &'a [u8],
    /// The line itself.
    pub line: &'a [u8],
}

impl<'a> Facts<'a> {
    /// Those of a line in the relay's own form; `None` for any other.
    pub fn peek(line: &'a [u8]) -> Option<Self> {
        let (time, rest) = line.strip_prefix(b"{\"time\":\"")?.split_first_chunk::<TIME>()?;
        if time[TIME - 1] != b'Z' || time[10] != b'T' {
            return None;
        }
        let rest = rest.strip_prefix(b"\",\"event\":\"")?;
        let (event, mut rest) = rest.split_at_checked(memchr(b'"', rest)?)?;
        rest = &rest[1..];
        let mut facts = Self { time: *time, event, id: None, message_id: None, from: None, to: b"", line };
        if let Some(after) = rest.strip_prefix(b",\"id\":") {
            let (id, after) = string(after)?;
            facts.id = Some(number(id)?);
            rest = after;
        }
        if let Some(after) = rest.strip_prefix(b",\"message_id\":") {
            let (message_id, after) = string(after)?;
            facts.message_id = Some(message_id);
            rest = after;
        }
        if let Some(after) = rest.strip_prefix(b",\"from\":") {
            let (from, after) = string(after)?;
            facts.from = Some(from);
            rest = after;
        }
        if let Some(after) = rest.strip_prefix(b",\"to\":[") {
            let mut list = after;
            loop {
                let (_, after) = string(list)?;
                match after.split_first()? {
                    (b',', next) => list = next,
                    (b']', _) => {
                        facts.to = &rest[b",\"to\":[".len()..rest.len() - after.len()];
                        break;
                    }
                    _ => return None,
                }
            }
            return Some(facts);
        }
        // Without recipients one of the later fields follows, or the end. An earlier one stands in another order.
        let known = [
            b",\"size\"".as_slice(),
            b",\"connector\"",
            b",\"peer\"",
            b",\"tls\"",
            b",\"status\"",
            b",\"because\"",
            b",\"detail\"",
            b"}",
        ];
        known.iter().any(|known| rest.starts_with(known)).then_some(facts)
    }

    /// Those of any line; `None` if it says nothing that can be read. `room` holds the line in the relay's form.
    pub fn of(line: &'a [u8], room: &'a mut Vec<u8>) -> Option<Self> {
        if let Some(facts) = Self::peek(line).filter(|facts| facts.is_plain() && facts.is_all()) {
            return Some(facts);
        }
        let record = Record::parse(std::str::from_utf8(line).ok()?).ok()?;
        *room = canonical(&record)?;
        Self::peek(room)
    }

    /// Are its texts such as are written in one way only? Another program may write an escape where we write none, or
    /// escape another way, and the same text would not be the same bytes.
    fn is_plain(&self) -> bool {
        let texts = [self.event, self.message_id.unwrap_or_default(), self.from.unwrap_or_default(), self.to];
        texts.iter().all(|text| text.is_ascii() && memchr2(b'\\', 0x7f, text).is_none())
    }

    /// Did it say all there is? A field that was not found where we write it may stand elsewhere; within a text its
    /// name would have escapes around it.
    fn is_all(&self) -> bool {
        let elsewhere = |found: bool, name: &[u8]| !found && memmem::find(self.line, name).is_some();
        !elsewhere(self.id.is_some(), b"\"id\"")
            && !elsewhere(self.message_id.is_some(), b"\"message_id\"")
            && !elsewhere(self.from.is_some(), b"\"from\"")
            && !elsewhere(!self.to.is_empty(), b"\"to\"")
    }

    /// The recipients.
    pub fn to(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.to;
        std::iter::from_fn(move || {
            let (one, after) = string(rest)?;
            rest = after.strip_prefix(b",").unwrap_or(b"");
            Some(one)
        })
    }

    /// The report that this event says was written.
    pub fn report(&self) -> Option<MessageId> {
        if self.event != b"DSN" {
            return None;
        }
        let detail = memmem::rfind(self.line, b"\"detail\":")?;
        report_in(string(&self.line[detail + b"\"detail\":".len()..])?.0)
    }
}

/// The number of the report in the detail of a DSN event, `failure report 00000000002B to the sender`.
fn report_in(detail: &[u8]) -> Option<MessageId> {
    let mut words = detail.split(|&byte| byte == b' ');
    words.find(|&word| word == b"report")?;
    number(words.next()?)
}

/// A number of the spool's, as it is shown.
pub(super) fn number(text: &[u8]) -> Option<MessageId> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with('+'))?;
    u64::from_str_radix(text, 16).ok().map(MessageId)
}

/// The content of the JSON string that `text` begins with, and what follows it.
fn string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b"\"")?;
    let mut from = 0;
    loop {
        let end = from + memchr(b'"', &text[from..])?;
        // A quote is the end unless an odd number of backslashes stands before it.
        let slashes = text[..end].iter().rev().take_while(|&&byte| byte == b'\\').count();
        if slashes.is_multiple_of(2) {
            return Some((&text[..end], &text[end + 1..]));
        }
        from = end + 1;
    }
}

/// A line that says the same in the relay's form; `None` if its time is none.
fn canonical(record: &Record) -> Option<Vec<u8>> {
    let mut line = Line(Vec::with_capacity(512));
    line.record(record, record.time.parse().ok()?);
    Some(line.0)
}

/// `text` as lines hold it.
pub(super) fn escaped(text: &str) -> Vec<u8> {
    let mut line = Line(Vec::new());
    line.value(&text);
    line.0[1..line.0.len() - 1].to_vec()
}

/// A moment as lines hold it.
pub(super) fn time(at: Timestamp) -> Time {
    let mut line = Line(Vec::with_capacity(TIME));
    line.time(at);
    let mut time = [0; TIME];
    time.copy_from_slice(&line.0);
    time
}

/// An address for comparisons: without regard to case.
pub(super) fn lowered(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.is_ascii()
        && let Ok(text) = std::str::from_utf8(text)
    {
        return Cow::Owned(text.to_lowercase().into_bytes());
    }
    if text.iter().any(u8::is_ascii_uppercase) { Cow::Owned(text.to_ascii_lowercase()) } else { Cow::Borrowed(text) }
}

/// Are the addresses the same, whatever their case? `low` is in lower case already.
pub(super) fn same(text: &[u8], low: &[u8]) -> bool {
    text.eq_ignore_ascii_case(low) || (!text.is_ascii() && *lowered(text) == *low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Event, EventKind};
    use super::*;
    use crate::message::Address;

    fn noon() -> Timestamp {
        "2026-11-20T12:00:00.000001Z".parse().unwrap()
    }

    /// What `Facts` say, from the whole record.
    fn check(line: &[u8]) {
        let record = Record::parse(std::str::from_utf8(line).unwrap()).unwrap();
        let mut room = Vec::new();
        let facts = Facts::of(line, &mut room).unwrap();
        let text = |raw: &[u8]| -> String {
            serde_json::from_str(&format!("\"{}\"", std::str::from_utf8(raw).unwrap())).unwrap()
        };
        assert_eq!(facts.event, record.event.as_bytes());
        assert_eq!(facts.id.map(|id| id.to_string()), record.id);
        assert_eq!(facts.message_id.map(text), record.message_id);
        assert_eq!(facts.from.map(text), record.from);
        assert_eq!(facts.to().map(text).collect::<Vec<_>>(), record.to);
        let at: Timestamp = record.time.parse().unwrap();
        assert_eq!(facts.time, time(at));
    }

    #[test]
    fn lines_in_any_form_say_the_same() {
        for line in [
            r#"{"time":"2026-11-20T12:00:00.000001Z","event":"FAIL","to":["a@b.example","c@d.example"],"size":1}"#,
            r#"{"time":"2026-11-20T12:00:00.000001Z","event":"FAIL"}"#,
            r#"{"time":"2026-11-20T12:00:00.000001Z","event":"SEND","id":"00000000002A","from":"<>","detail":"\"to\":[\"x\"]"}"#,
            r#"{"event":"SEND","time":"2026-11-20T13:00:00+01:00","to":["a@b.example"],"id":"00000000002A","new":{"a":[1]}}"#,
            r#"{"time":"2026-11-20T12:00:00.000001Z","event":"SEND","detail":"x","id":"00000000002A","from":"<>","to":["a@b.example"]}"#,
            r#"{"time":"2026-11-20T12:00:00.000001Z","event":"SEND","to":["a@b.example"],"id":"00000000002A","message_id":"<a@b>"}"#,
            r#"{"time":"2026-11-20T12:00:00.000001Z","event":"SEND","id":"00000000002A","from":"<>","because":["to"]}"#,
            r#"{"time":"2026-11-20T12:00:00Z","event":"SEND","size":12,"from":"x\"\\@y.example"}"#,
            r#"{"time":"2026-11-20T12:00:00.000001Z","event":"SEND","size":12,"from":"x@y.example"}"#.replace("size\":12,\"from\":\"x@y.example\"", "from\":\"x@y.example\",\"message_id\":\"<a@b>\"").as_str(),
        ] {
            check(line.as_bytes());
        }
        // Escapes that we never write, and letters that we never write without one.
        for text in [r"<\u0061@b>", r"<a\u0040b>", "<a\u{7f}@b>"] {
            let line = format!(r#"{{"time":"2026-11-20T12:00:00.000001Z","event":"SEND","message_id":"{text}"}}"#);
            let (parsed, mut room) = (Record::parse(&line).unwrap(), Vec::new());
            let facts = Facts::of(line.as_bytes(), &mut room).unwrap();
            assert_eq!(facts.message_id.unwrap(), escaped(&parsed.message_id.unwrap()), "{text}");
        }
        for line in ["", "{", "{}", "{\"time\":\"half", "nonsense", "{\"time\":\"yesterday\",\"event\":\"SEND\"}"] {
            assert_eq!(Facts::of(line.as_bytes(), &mut Vec::new()), None, "{line}");
        }
    }

    /// The words are written in `relay::events`.
    #[test]
    fn a_report_is_known_by_the_event_of_what_it_is_about() {
        let id = MessageId(0x2b);
        let detail = format!("failure report {id} to the sender");
        let line = Event { detail: Some(&detail), ..Event::new(noon(), EventKind::Dsn, MessageId(1)) }.to_json();
        assert_eq!(Facts::peek(line.as_bytes()).unwrap().report(), Some(id));
        let line = Event { detail: Some(&detail), ..Event::new(noon(), EventKind::Drop, MessageId(1)) }.to_json();
        assert_eq!(Facts::peek(line.as_bytes()).unwrap().report(), None);
    }

    proptest! {
        #[test]
        fn whatever_an_event_says_is_found(
            message_id in proptest::option::of("<[a-z\"\\\\\u{fc}\\]]{0,9}>"), local in "[a-zA-Z\u{fc}\" \\\\,]{1,9}", detail: String, many in 0_usize..4,
        ) {
            let address = Address::new(&local, crate::message::Domain::parse("contoso.com").unwrap());
            prop_assume!(address.is_ok());
            let address = address.unwrap();
            let to = vec![&address; many];
            let event = Event {
                message_id: message_id.as_deref(), from: Some(&address), to: &to, detail: Some(&detail),
                ..Event::new(noon(), EventKind::Send, MessageId(42))
            };
            let line = event.to_json();
            prop_assert!(Facts::peek(line.as_bytes()).is_some(), "{}", line);
            check(line.as_bytes());
            prop_assert_eq!(Facts::peek(line.as_bytes()).unwrap().from.unwrap(), escaped(&address.to_string()));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, cut in 0_usize..400) {
            let _ = Facts::of(&bytes, &mut Vec::new());
            let line = br#"{"time":"2026-11-20T12:00:00.000001Z","event":"DSN","id":"00000000002A","message_id":"<a@b>","from":"<>","to":["x@y.example"],"detail":"delay report 0000000000FF to the sender"}"#;
            let _ = Facts::of(&line[..cut.min(line.len())], &mut Vec::new()).map(|facts| facts.report());
        }
    }
}
