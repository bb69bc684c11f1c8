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

use jiff::Timestamp;

use super::{WRONG, glance, page, unusable};
use crate::config::Tracking;
use crate::message::MessageId;
use crate::outcome::tracking::search::{self, COUNTED, Query, Relay, Story, Told, Traced, id, moment};

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
    let glance = match glance(path) {
        Ok(glance) => glance,
        Err(status) => return status,
    };
    let tracking = match &glance.tracking {
        Ok(tracking) => tracking.as_ref(),
        Err(problems) => return unusable(problems),
    };
    let hostname = glance.hostname.as_deref().unwrap_or("this relay");
    let relays = match relays(hostname, tracking, &args.also) {
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
        ..Query::default()
    };
    let traced = search::trace(&relays, &query);
    for remark in &traced.remarks {
        eprintln!("causeway: {remark}");
    }
    let names: Vec<&str> = relays.iter().map(|relay| relay.name.as_str()).collect();
    let mut out = io::BufWriter::new(anstream::stdout());
    let written = match args.format {
        _ if args.json => writeln!(out, "{:#}", traced.json(&names)),
        Format::Exchange => exchange::write(&mut out, &traced, &names, &glance.origins, Timestamp::now()),
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
fn relays(hostname: &str, tracking: Option<&Tracking>, also: &[String]) -> Result<Vec<Relay>, String> {
    let mut relays = Vec::new();
    match tracking {
        None if also.is_empty() => {
            return Err("the configuration says [tracking] path = \"\": no events are written".to_owned());
        }
        None => {}
        Some(tracking) => match Relay::open(hostname, &tracking.path) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
