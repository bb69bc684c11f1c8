//! `causeway trace`: where a message is and how it came there, from the tracking files. Works without the daemon.
//!
//! One block a message: what it is, then what happened to it, with the reasons of each decision, on every relay whose
//! files are at hand (`--also`), then its reports. Times are UTC, as in the files: two relays' events stand side by
//! side. `--json` has the same; `--format exchange` is Exchange's message tracking log.
//!
//! Not here: how messages are found (`outcome::tracking::search`).

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use super::{WRONG, page};
use crate::config::{self, Config};
use crate::message::MessageId;
use crate::outcome::tracking::search::{self, COUNTED, Query, Relay, Story, Told, Traced};

mod exchange;
mod text;

/// What is asked.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("filter").required(true).multiple(true)))]
pub struct Args {
    /// The message with this number, as `250 queued as` and the log say it
    #[arg(long, value_name = "I", group = "filter", value_parser = id)]
    id: Option<MessageId>,
    /// The message with this Message-ID
    #[arg(long, value_name = "M", group = "filter")]
    message_id: Option<String>,
    /// Messages of this sender; "<>" for reports
    #[arg(long, value_name = "A", group = "filter")]
    from: Option<String>,
    /// Messages to this recipient, under the address it was sent to or the one it became
    #[arg(long, value_name = "B", group = "filter")]
    to: Option<String>,
    /// With an event since then: 2h (ago), today, yesterday, 2026-11-20, "2026-11-20 14:30", or RFC 3339; all UTC
    #[arg(long, value_name = "T", group = "filter", value_parser = |text: &str| moment(text, Timestamp::now(), false))]
    since: Option<Timestamp>,
    /// With an event until then; a day is meant to its end
    #[arg(long, value_name = "T", group = "filter", value_parser = |text: &str| moment(text, Timestamp::now(), true))]
    until: Option<Timestamp>,
    /// Another relay's tracking files, a folder or one of them; may be repeated; NAME=PATH gives the relay a name
    #[arg(long, value_name = "PATH")]
    also: Vec<String>,
    /// So many messages at most: those with the latest events
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// One JSON object rather than text
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// The form: text, or Exchange's message tracking log
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Exchange,
}

/// Prints what is known of the messages. Exit status: 0 something, 1 nothing, 2 the question, the configuration or
/// its folder is wrong.
pub fn run(path: &Path, args: &Args) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            eprint!("{problems}");
            return wrong("the configuration cannot be used");
        }
    };
    let relays = match relays(&config, &args.also) {
        Ok(relays) => relays,
        Err(why) => return wrong(&why),
    };
    let query = Query {
        id: args.id,
        message_id: args.message_id.clone(),
        from: args.from.clone(),
        to: args.to.clone(),
        since: args.since,
        until: args.until,
        limit: args.limit as usize,
    };
    let traced = search::trace(&relays, &query);
    for remark in &traced.remarks {
        eprintln!("causeway: {remark}");
    }
    let names: Vec<&str> = relays.iter().map(|relay| relay.name.as_str()).collect();
    let mut out = io::BufWriter::new(anstream::stdout());
    let written = match args.format {
        _ if args.json => writeln!(out, "{:#}", as_json(&traced, &names)),
        Format::Exchange => exchange::write(&mut out, &traced, &names, &config, Timestamp::now()),
        Format::Text => text::write(&mut out, &traced, &names, page::columns().unwrap_or(text::WIDTH)),
    };
    match written.and_then(|()| out.flush()) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("causeway: {error}");
            return ExitCode::FAILURE;
        }
        _ => {}
    }
    if traced.stories.is_empty() {
        eprintln!("causeway: nothing found in {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    // The text says it itself, at its head.
    if args.format == Format::Exchange && traced.more > 0 {
        eprintln!("causeway: {}", more(&traced));
    }
    ExitCode::SUCCESS
}

fn wrong(why: &str) -> ExitCode {
    eprintln!("causeway: {why}");
    ExitCode::from(WRONG)
}

/// The files of this relay and of the others. This one's folder may be missing where others are named: logs are read
/// on other machines too.
fn relays(config: &Config, also: &[String]) -> Result<Vec<Relay>, String> {
    let mut relays = Vec::new();
    match &config.tracking {
        None if also.is_empty() => {
            return Err("the configuration says [tracking] path = \"\": no events are written".to_owned());
        }
        None => {}
        Some(tracking) => match Relay::open(config.hostname.as_str(), &tracking.path) {
            Ok(relay) => relays.push(relay),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !also.is_empty() => {}
            Err(error) => return Err(format!("{}: {error}", tracking.path.display())),
        },
    }
    for also in also {
        let (name, path) = named(also);
        let relay = Relay::open(&name, &path).map_err(|error| format!("{}: {error}", path.display()))?;
        if relay.is_empty() {
            return Err(format!("{}: there are no tracking files (tracking-2026-11-20.jsonl)", path.display()));
        }
        relays.push(relay);
    }
    Ok(relays)
}

/// `NAME=PATH`, or a path, which then is the name.
fn named(also: &str) -> (String, PathBuf) {
    match also.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') && !Path::new(also).exists() => {
            (name.to_owned(), path.into())
        }
        _ => (also.trim_end_matches('/').to_owned(), also.into()),
    }
}

fn id(text: &str) -> Result<MessageId, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
        .map(MessageId)
        .ok_or_else(|| "expected a number such as 00000000002A".to_owned())
}

/// A moment in the past, as people say it. `end`: of a day its end is meant.
fn moment(text: &str, now: Timestamp, end: bool) -> Result<Timestamp, String> {
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

/// `12 more match, all of them earlier; …`
fn more(traced: &Traced) -> String {
    let count = match traced.more {
        COUNTED => "a million or more others".to_owned(),
        1 => "1 more".to_owned(),
        many => format!("{many} more"),
    };
    let verb = if traced.more == 1 { "matches" } else { "match" };
    format!("{count} {verb}, with earlier events; --limit shows more of them, --until goes further back")
}

fn as_json(traced: &Traced, relays: &[&str]) -> Value {
    json!({
        "messages": traced.stories.iter().map(|story| story_json(story, relays)).collect::<Vec<_>>(),
        "more": traced.more,
    })
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

    #[test]
    fn another_relay_may_have_a_name() {
        for (text, name, path) in [
            ("/logs/cloud", "/logs/cloud", "/logs/cloud"),
            ("/logs/cloud/", "/logs/cloud", "/logs/cloud/"),
            ("cloud=/logs/a", "cloud", "/logs/a"),
            ("/logs/a=b", "/logs/a=b", "/logs/a=b"),
        ] {
            assert_eq!(named(text), (name.to_owned(), PathBuf::from(path)), "{text}");
        }
    }
}
