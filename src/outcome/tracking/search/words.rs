//! Questions as people write them, and the answer as JSON: for the command line and the admin interface alike.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde_json::{Value, json};

use super::{Story, Told, Traced};
use crate::config;
use crate::message::MessageId;

/// The number of a message, as the log and `250 queued as` say it.
///
/// # Errors
/// It is none.
pub fn id(text: &str) -> Result<MessageId, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
        .map(MessageId)
        .ok_or_else(|| "expected a number such as 00000000002A".to_owned())
}

/// A moment in the past, as people say it. `end`: of a day its end is meant.
///
/// # Errors
/// It is none; what would be.
pub fn moment(text: &str, now: Timestamp, end: bool) -> Result<Timestamp, String> {
    let utc = |at: DateTime| at.to_zoned(TimeZone::UTC).map(|at| at.timestamp()).map_err(|error| error.to_string());
    let day = |date: Date| utc(date.to_datetime(if end { Time::MAX } else { Time::MIN }));
    let today = now.to_zoned(TimeZone::UTC).date();
    match text {
        "now" => return Ok(now),
        "today" => return day(today),
        "yesterday" => return day(today.saturating_sub(1.days())),
        _ => {}
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(ago) = config::value::duration(text) {
        return now.checked_sub(ago).map_err(|error| error.to_string());
    }
    if text.len() == "2026-11-20".len()
        && let Ok(date) = text.parse::<Date>()
    {
        return day(date);
    }
    text.parse::<DateTime>()
        .map_err(|_| {
            "expected a time such as 2h (ago), today, 2026-11-20, \"2026-11-20 14:30\" or 2026-11-20T14:30:00Z"
                .to_owned()
        })
        .and_then(utc)
}

impl Traced {
    /// All of it; `relays` are the names of those that were asked.
    pub fn json(&self, relays: &[&str]) -> Value {
        json!({
            "messages": self.stories.iter().map(|story| story_json(story, relays)).collect::<Vec<_>>(),
            "more": self.more,
        })
    }
}

fn story_json(story: &Story, relays: &[&str]) -> Value {
    let event = |told: &Told| {
        let mut event = json!({ "relay": relays[told.relay] });
        if let (Some(event), Ok(Value::Object(fields))) = (event.as_object_mut(), serde_json::to_value(&told.record)) {
            // As in the files: what is not said is not there.
            event.extend(fields.into_iter().filter(|(_, value)| !value.is_null() && *value != json!([])));
        }
        event
    };
    json!({
        "message_id": story.message_id(),
        "from": story.from(),
        "to": story.to(),
        "size": story.size(),
        "ids": story.ids().into_iter().map(|(relay, id)| json!({ "relay": relays[relay], "id": id })).collect::<Vec<_>>(),
        "events": story.events.iter().map(event).collect::<Vec<_>>(),
        "omitted": story.omitted,
        "reports": story.reports.iter().map(|report| story_json(report, relays)).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_as_people_say_them() {
        let now: Timestamp = "2026-11-20T14:30:15Z".parse().unwrap();
        for (text, since, until) in [
            ("2h", "2026-11-20T12:30:15Z", "2026-11-20T12:30:15Z"),
            ("90s", "2026-11-20T14:28:45Z", "2026-11-20T14:28:45Z"),
            ("2d", "2026-11-18T14:30:15Z", "2026-11-18T14:30:15Z"),
            ("now", "2026-11-20T14:30:15Z", "2026-11-20T14:30:15Z"),
            ("today", "2026-11-20T00:00:00Z", "2026-11-20T23:59:59.999999999Z"),
            ("yesterday", "2026-11-19T00:00:00Z", "2026-11-19T23:59:59.999999999Z"),
            ("2026-11-18", "2026-11-18T00:00:00Z", "2026-11-18T23:59:59.999999999Z"),
            ("2026-11-18 07:05", "2026-11-18T07:05:00Z", "2026-11-18T07:05:00Z"),
            ("2026-11-18T07:05:01", "2026-11-18T07:05:01Z", "2026-11-18T07:05:01Z"),
            ("2026-11-18T07:05:00+01:00", "2026-11-18T06:05:00Z", "2026-11-18T06:05:00Z"),
        ] {
            assert_eq!(moment(text, now, false).unwrap().to_string(), since, "since {text}");
            assert_eq!(moment(text, now, true).unwrap().to_string(), until, "until {text}");
        }
        for text in ["", "soon", "2026-13-01", "12", "-2h", "2026-11-18T"] {
            assert!(moment(text, now, false).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_read_as_they_are_shown() {
        for (text, expected) in [
            ("00000000002A", Some(42)),
            ("2a", Some(42)),
            ("", None),
            ("+2A", None),
            ("xyz", None),
            ("11112222333344445", None),
        ] {
            assert_eq!(id(text).ok(), expected.map(MessageId), "{text}");
        }
    }
}
