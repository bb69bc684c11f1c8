//! `causeway queue`: what waits in the running daemon, and what an operator does about it.
//!
//! A command that changes something first shows what it would touch, and asks; what comes meanwhile is not touched. Exit
//! status: 0 done, 1 nothing found or not all of it done, 2 the question or the configuration is wrong, 3 the daemon could
//! not be reached.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Asking, admin_client, print};
use crate::admin::Wanted;
use crate::admin::client::{Client, Failure};
use crate::config::value;
use crate::relay::queue::{Attempted, Changed, Entry, Filter, Page, Shown, ShownCopy, State};

/// So many of the copies that a change would touch are shown.
const SHOWN: usize = 10;
/// Entries of one page.
const PAGE: usize = 1000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// What waits, a line for each copy
    List(List),
    /// One message: envelope, copies, recipients, and every attempt with host, TLS and reply
    Show(Show),
    /// Not tried until released, also after a restart
    Hold(Change),
    /// What was held goes on
    Release(Change),
    /// Tried now, also where the hop is left alone for a while
    Retry(Change),
    /// Returned to the sender with a report
    Bounce(Change),
    /// Gone; nobody is told
    Remove(Change),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Of this sender; "<>" for reports
    #[arg(long, value_name = "A")]
    sender: Option<String>,
    /// To this recipient, under the address it was sent to or the one it became
    #[arg(long, value_name = "B")]
    recipient: Option<String>,
    /// To recipients in this domain
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// By this send connector
    #[arg(long, value_name = "NAME")]
    connector: Option<String>,
    /// To this next hop: a domain whose MX it is, or smart-hosts
    #[arg(long, value_name = "HOP")]
    hop: Option<String>,
    /// That stand so
    #[arg(long, value_name = "S", value_enum)]
    status: Option<Status>,
    /// At least so old: "4h", "2d"
    #[arg(long, value_name = "AGE", value_parser = seconds)]
    older_than: Option<u64>,
    /// At most so old
    #[arg(long, value_name = "AGE", value_parser = seconds)]
    younger_than: Option<u64>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Status {
    Waiting,
    Active,
    Deferred,
    Held,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    which: Which,
    /// In this order; without it, about in the order in which they came
    #[arg(long, value_name = "FIELD", value_parser = ["age", "sender", "recipient", "domain", "connector", "hop", "status", "attempts", "next", "size"])]
    sort: Option<String>,
    /// The other way round; needs --sort
    #[arg(long, requires = "sort")]
    reverse: bool,
    /// So many lines at most
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// One JSON object rather than text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// Its number, as `250 queued as`, the log and list say it
    id: String,
    /// One JSON object rather than text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Change {
    /// These messages
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// Everything that waits
    #[arg(long)]
    all: bool,
    /// Why: it stands in the tracking event, and in a report
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// One JSON object rather than text
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    value::duration(text).map(|duration| duration.as_secs())
}

impl Which {
    fn filter(&self) -> Filter {
        let status = self.status.map(|status| match status {
            Status::Waiting => State::Waiting,
            Status::Active => State::Active,
            Status::Deferred => State::Deferred,
            Status::Held => State::Held,
        });
        Filter {
            sender: self.sender.clone(),
            recipient: self.recipient.clone(),
            domain: self.domain.clone(),
            connector: self.connector.clone(),
            hop: self.hop.clone(),
            status,
            older_than: self.older_than,
            younger_than: self.younger_than,
            ..Filter::default()
        }
    }
}

pub(super) fn run(path: &Path, args: &Args) -> ExitCode {
    let client = match admin_client(path) {
        Ok(client) => client,
        Err(status) => return status,
    };
    let done = match &args.command {
        Command::List(args) => list(&client, args),
        Command::Show(args) => show(&client, args),
        Command::Hold(args) => change(&client, "hold", args),
        Command::Release(args) => change(&client, "release", args),
        Command::Retry(args) => change(&client, "retry", args),
        Command::Bounce(args) => change(&client, "bounce", args),
        Command::Remove(args) => change(&client, "remove", args),
    };
    done.unwrap_or_else(|asking| asking.tell())
}

/// The part behind the question mark.
fn query(filter: &Filter, more: &[(&str, String)]) -> String {
    let mut pairs: Vec<(String, String)> = Vec::new();
    if let Ok(Value::Object(map)) = serde_json::to_value(filter) {
        for (key, value) in map {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            pairs.push((key, value));
        }
    }
    pairs.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", escaped(value))).collect();
    format!("/api/v1/queue?{}", pairs.join("&"))
}

/// RFC 3986 section 2.1.
fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn page(client: &Client, path: &str) -> Result<Page, Asking> {
    Ok(parse(client.get(path)?)?)
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value)
        .map_err(|error| Failure::Unreachable(format!("the daemon is of another version: {error}")))
}

fn list(client: &Client, args: &List) -> Result<ExitCode, Asking> {
    let filter = args.which.filter();
    let mut entries: Vec<Entry> = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let left = args.limit.saturating_sub(entries.len());
        if left == 0 {
            break;
        }
        let mut more = vec![("limit", left.min(PAGE).to_string())];
        more.extend(args.sort.clone().map(|sort| ("sort", sort)));
        more.extend(args.reverse.then(|| ("descending", "true".to_owned())));
        more.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page = page(client, &query(&filter, &more))?;
        entries.extend(page.entries);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    if args.json {
        print(&format!("{:#}\n", json!({ "entries": entries, "more": cursor.is_some() })));
    } else {
        print(&table(&entries, Timestamp::now()));
        if cursor.is_some() {
            eprintln!("causeway: there is more; see --limit");
        }
    }
    if entries.is_empty() {
        eprintln!("causeway: nothing waits that is meant");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for each copy, its columns as wide as they need to be.
fn table(entries: &[Entry], now: Timestamp) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let mut rows = vec![["ID", "STATUS", "AGE", "TRIED", "NEXT", "VIA", "FROM", "TO", "WHY"].map(str::to_owned)];
    for entry in entries {
        let to = match (entry.to.first(), entry.recipients) {
            (Some(first), 1) => first.clone(),
            (Some(first), many) => format!("{first} and {} more", many - 1),
            (None, _) => String::new(),
        };
        let via = if entry.hop == "smart-hosts" {
            entry.connector.clone()
        } else {
            format!("{} ({})", entry.connector, entry.hop)
        };
        let from = if entry.from.is_empty() { "<>".to_owned() } else { entry.from.clone() };
        rows.push([
            entry.id.clone(),
            word(entry.status).to_owned(),
            span(entry.accepted, now),
            entry.attempts.to_string(),
            entry.next.map_or_else(|| "-".to_owned(), |next| format!("in {}", span(now, next))),
            via,
            from,
            to,
            entry.last.as_deref().map(in_line).unwrap_or_default(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..9).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// As much of a reason as fits beside the rest; `show` has all of it.
fn in_line(why: &str) -> String {
    const ROOM: usize = 100;
    let mut line: String = why.chars().take(ROOM).map(|one| if one.is_control() { ' ' } else { one }).collect();
    if why.chars().nth(ROOM).is_some() {
        line.push('…');
    }
    line
}

fn word(state: State) -> &'static str {
    match state {
        State::Waiting => "waiting",
        State::Active => "active",
        State::Deferred => "deferred",
        State::Held => "held",
    }
}

/// How long it is from one to the other, in one unit: `42s`, `17m`, `3h`, `2d`.
pub(super) fn span(from: Timestamp, to: Timestamp) -> String {
    in_words(to.duration_since(from).as_secs().max(0).unsigned_abs())
}

pub(super) fn in_words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn show(client: &Client, args: &Show) -> Result<ExitCode, Asking> {
    let value = match client.get(&format!("/api/v1/queue/{}", escaped(&args.id))) {
        Err(Failure::Refused { status: 404, text }) => {
            eprintln!("causeway: {text}");
            return Ok(ExitCode::FAILURE);
        }
        other => other?,
    };
    if args.json {
        print(&format!("{value:#}\n"));
    } else {
        print(&shown(&parse(value)?, Timestamp::now()));
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(message: &Shown, now: Timestamp) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let from = if message.from.is_empty() { "<>" } else { &message.from };
    let by = if message.received_by.is_empty() { "this relay, as a report" } else { &message.received_by };
    let age = span(message.accepted, now);
    let _ = writeln!(text, "{}  {}", message.id, message.message_id.as_deref().unwrap_or("(no Message-ID)"));
    let _ = writeln!(text, "    from {from}, {} bytes, by {by}, {:.0}, {age} ago", message.size, message.accepted);
    if !message.asked_for.is_empty() {
        let _ = writeln!(text, "    {}", message.asked_for.join(" "));
    }
    for copy in &message.copies {
        let ShownCopy { entry, recipients, resting, warned, attempts } = copy;
        let _ = writeln!(
            text,
            "\n    copy {} via {} to {}: {}",
            entry.copy,
            entry.connector,
            entry.hop,
            word(entry.status)
        );
        for recipient in recipients {
            let done = if recipient.open { "" } else { " (done with)" };
            let asked = if recipient.asked == recipient.to {
                String::new()
            } else {
                format!(", asked for as {}", recipient.asked)
            };
            let _ = writeln!(text, "        to {}{asked}{done}", recipient.to);
        }
        let next = entry.next.map_or_else(String::new, |next| format!(", the next in {}", span(now, next)));
        let warned = if *warned { ", the sender was told of the delay" } else { "" };
        let _ = writeln!(text, "        attempts: {}{next}{warned}", entry.attempts);
        if let Some(last) = &entry.last {
            let _ = writeln!(text, "        why it waits: {last}");
        }
        for attempt in attempts {
            let _ = writeln!(text, "          {}", tried(attempt, recipients.len()));
        }
        if let Some(resting) = resting {
            let _ = writeln!(text, "        its hop is left alone for another {}", in_words(*resting));
        }
    }
    text.push('\n');
    for remark in &message.remarks {
        let _ = writeln!(text, "    {remark}");
    }
    let _ = writeln!(text, "    what else happened to it, and why: {}", message.attempts_in);
    text
}

/// `2026-11-20T14:30:15Z  DEFER  mx.example.net [192.0.2.1]:25: …`; for whom, where it was not for all of the copy.
fn tried(attempt: &Attempted, all: usize) -> String {
    // When the next is due stands above them, if it is still to come.
    let Attempted { time, event, to, host, tls, status, reply, attempt, next: _ } = attempt;
    let second = time.split_once('.').map_or_else(|| time.clone(), |(second, _)| format!("{second}Z"));
    let mut text = format!("{second}  {event:5}");
    if let Some(number) = attempt {
        text.push_str(&format!("  attempt {number}"));
    }
    if to.len() < all {
        text.push_str(&format!("  to {}", to.join(" ")));
    }
    let reply = reply.as_deref().or(status.as_deref()).unwrap_or_default();
    // A setback names its host itself.
    match host {
        Some(host) if !reply.contains(host.as_str()) => text.push_str(&format!("  {host}: {reply}")),
        _ => text.push_str(&format!("  {reply}")),
    }
    if let Some(tls) = tls {
        text.push_str(&format!(" ({tls})"));
    }
    text
}

fn change(client: &Client, verb: &str, args: &Change) -> Result<ExitCode, Asking> {
    let mut filter = args.which.filter();
    if !args.ids.is_empty() {
        filter.id = Some(args.ids.join(","));
    }
    if filter.is_empty() != args.all {
        let text = "say which by ID or filter, or --all, and not both";
        return Err(Asking::Wrong(text.to_owned()));
    }
    let found = look(client, &mut filter)?;
    if found.count == 0 {
        if args.json {
            print(&format!("{:#}\n", json!(Changed::default())));
        }
        eprintln!("causeway: nothing waits that is meant");
        return Ok(ExitCode::FAILURE);
    }
    if !args.json || !args.yes {
        let mut text = table(&found.first, Timestamp::now());
        if found.count > found.first.len() {
            text.push_str(&format!("… and {} more\n", found.count - found.first.len()));
        }
        eprint!("{text}");
    }
    if !args.yes && !is_agreed(verb, found.count)? {
        eprintln!("causeway: nothing was changed");
        return Ok(ExitCode::FAILURE);
    }
    let mut wanted = Wanted { filter, all: args.all, by: Some(who()), reason: args.reason.clone(), cursor: None };
    let mut done = Changed::default();
    loop {
        let step: Changed = parse(client.post(&format!("/api/v1/queue/{verb}"), &wanted)?)?;
        done.changed += step.changed;
        done.busy += step.busy;
        done.passed += step.passed;
        done.failed.extend(step.failed);
        progress(&format!("{} of {}", done.changed, found.count));
        match step.next {
            Some(next) => wanted.cursor = Some(next),
            None => break,
        }
    }
    progress("");
    if args.json {
        print(&format!("{:#}\n", json!(done)));
    } else {
        print(&summary(verb, &done));
    }
    let all = done.busy == 0 && done.failed.is_empty();
    Ok(if all || (verb == "hold" && done.failed.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(verb: &str, done: &Changed) -> String {
    use std::fmt::Write as _;
    let past = match verb {
        "hold" => "held",
        "release" => "released",
        "retry" => "to be tried now",
        "bounce" => "returned to their senders",
        _ => "removed",
    };
    let mut text = format!("{} {past}\n", counted(done.changed));
    if done.busy > 0 {
        let then = if verb == "hold" { "they are held when they come back" } else { "hold them first, or try again" };
        let _ = writeln!(text, "{} being tried at this moment: {then}", counted(done.busy));
    }
    if done.passed > 0 {
        let _ = writeln!(text, "{} needed nothing", counted(done.passed));
    }
    for why in &done.failed {
        let _ = writeln!(text, "not done: {why}");
    }
    text
}

fn counted(count: usize) -> String {
    if count == 1 { "1 copy".to_owned() } else { format!("{count} copies") }
}

/// What a change would touch.
struct Found {
    first: Vec<Entry>,
    count: usize,
}

/// Counts what is meant, and makes the filter mean no more than that.
fn look(client: &Client, filter: &mut Filter) -> Result<Found, Asking> {
    let mut found = Found { first: Vec::new(), count: 0 };
    let mut cursor: Option<String> = None;
    loop {
        let mut more = vec![("limit", PAGE.to_string())];
        more.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page = page(client, &query(filter, &more))?;
        filter.up_to.get_or_insert(page.up_to);
        found.count += page.entries.len();
        let room = SHOWN - found.first.len();
        found.first.extend(page.entries.into_iter().take(room));
        progress(&format!("{} found", found.count));
        cursor = page.next;
        if cursor.is_none() {
            progress("");
            return Ok(found);
        }
    }
}

/// On a terminal; silent in a pipe.
fn progress(text: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}

fn is_agreed(verb: &str, count: usize) -> Result<bool, Asking> {
    if !io::stdin().is_terminal() {
        return Err(Asking::Wrong("nobody is there to ask; say --yes".to_owned()));
    }
    eprint!("{verb}: {}? [y/N] ", counted(count));
    let _ = io::stderr().flush();
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    Ok(read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Whoever sits there, for the tracking event. What a name is worth stands with the token, not here.
fn who() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let name: String = named.unwrap_or_default().chars().filter(|c| !c.is_control()).take(32).collect();
    if name.is_empty() { format!("user {}", nix::unistd::getuid()) } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_one_unit() {
        for (seconds, expected) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_799, "47h"), (172_800, "2d")]
        {
            assert_eq!(in_words(seconds), expected);
        }
    }

    #[test]
    fn a_filter_travels_whole() {
        let filter = Filter { sender: Some("a+b@é.example".into()), older_than: Some(60), ..Filter::default() };
        let path = query(&filter, &[("limit", "5".into())]);
        assert_eq!(path, "/api/v1/queue?older_than=60&sender=a%2Bb%40%C3%A9.example&limit=5");
    }

    #[test]
    fn what_came_of_it_in_words() {
        let done = Changed { changed: 1, busy: 2, passed: 0, failed: vec!["X: no".into()], next: None };
        let expected =
            "1 copy removed\n2 copies being tried at this moment: hold them first, or try again\nnot done: X: no\n";
        assert_eq!(summary("remove", &done), expected);
    }
}
