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

use super::{Asking, admin_client, counted, ourselves, print};
use crate::admin::client::{Client, Failure};
use crate::admin::{Status, Wanted};
use crate::config::{nearest, value};
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
    status: Option<Standing>,
    /// At least so old: "4h", "2d"
    #[arg(long, value_name = "AGE", value_parser = seconds)]
    older_than: Option<u64>,
    /// At most so old
    #[arg(long, value_name = "AGE", value_parser = seconds)]
    younger_than: Option<u64>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Standing {
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
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
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
            Standing::Waiting => State::Waiting,
            Standing::Active => State::Active,
            Standing::Deferred => State::Deferred,
            Standing::Held => State::Held,
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
        Command::Show(args) => show(&client, path, args),
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
        let left = (args.limit as usize).saturating_sub(entries.len());
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
    if !entries.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if !filter.is_empty() {
        return nothing(client, &filter);
    }
    if !args.json {
        print("the queue is empty\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// No copy is meant. Is what is meant something at all?
fn nothing(client: &Client, filter: &Filter) -> Result<ExitCode, Asking> {
    if let Some(wanted) = &filter.connector {
        let status: Status = parse(client.get("/api/v1/status")?)?;
        let names = || status.connectors.iter().map(|connector| connector.name.as_str());
        if !names().any(|name| name.eq_ignore_ascii_case(wanted)) {
            let near = nearest(wanted, names()).map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
            return Err(Asking::Wrong(format!("no send connector is named {wanted:?}{near}")));
        }
    }
    let words = if filter.is_empty() { "the queue is empty" } else { "no copy matches" };
    eprintln!("causeway: {words}");
    Ok(ExitCode::FAILURE)
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
    const ROOM: usize = 240;
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

fn show(client: &Client, path: &Path, args: &Show) -> Result<ExitCode, Asking> {
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
        print(&shown(&parse(value)?, path, Timestamp::now()));
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(message: &Shown, path: &Path, now: Timestamp) -> String {
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
    let more = message.attempts_in.replacen("causeway", &ourselves(path), 1);
    let _ = writeln!(text, "    what else happened to it, and why: {more}");
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
        return nothing(client, &filter);
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
        print(&summary(verb, &done, found.held));
    }
    let has_begun = done.changed > 0 || (verb == "hold" && done.busy > 0);
    let is_whole = done.failed.is_empty() && (done.busy == 0 || verb == "hold");
    Ok(if has_begun && is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `held` of those that were found were held before.
fn summary(verb: &str, done: &Changed, held: usize) -> String {
    let mut lines = Vec::new();
    let (one, many) = match verb {
        "hold" => ("held", "held"),
        "release" => ("released", "released"),
        "retry" => ("to be tried now", "to be tried now"),
        "bounce" => ("returned to its sender", "returned to their senders"),
        _ => ("removed", "removed"),
    };
    if done.changed > 0 {
        lines.push(format!("{} {}", copies(done.changed), if done.changed == 1 { one } else { many }));
    }
    if done.busy > 0 {
        let (are, they, them, come) =
            if done.busy == 1 { ("is", "it is", "it", "it comes") } else { ("are", "they are", "them", "they come") };
        let then = match verb {
            "hold" => format!("{they} held when {come} back"),
            "bounce" | "remove" => format!("left alone; hold {them} first, or try again"),
            _ => "left alone".to_owned(),
        };
        lines.push(format!("{} {are} being tried just now, {then}", copies(done.busy)));
    }
    // What is held is not tried; all else that is passed over has come to its end while we looked.
    let held = if verb == "retry" { done.passed.min(held) } else { 0 };
    let mut pass = |count: usize, one: &str, many: &str| {
        if count > 0 {
            lines.push(format!("{} {}", copies(count), if count == 1 { one } else { many }));
        }
    };
    pass(held, "is held: release it first", "are held: release them first");
    match verb {
        "hold" => pass(done.passed, "is held already", "are held already"),
        "release" => pass(done.passed, "is not held", "are not held"),
        _ => pass(done.passed - held, "is done with meanwhile", "are done with meanwhile"),
    }
    lines.extend(done.failed.iter().map(|why| format!("not done: {why}")));
    if lines.is_empty() {
        lines.push("nothing was changed: what was meant is gone".to_owned());
    }
    lines.join("\n") + "\n"
}

fn copies(count: usize) -> String {
    counted(count, "copy", "copies")
}

/// What a change would touch.
struct Found {
    first: Vec<Entry>,
    count: usize,
    held: usize,
}

/// Counts what is meant, and makes the filter mean no more than that.
fn look(client: &Client, filter: &mut Filter) -> Result<Found, Asking> {
    let mut found = Found { first: Vec::new(), count: 0, held: 0 };
    let mut cursor: Option<String> = None;
    loop {
        let mut more = vec![("limit", PAGE.to_string())];
        more.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page = page(client, &query(filter, &more))?;
        filter.up_to.get_or_insert(page.up_to);
        found.count += page.entries.len();
        found.held += page.entries.iter().filter(|entry| entry.status == State::Held).count();
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
    eprint!("{verb}: {}? [y/N] ", copies(count));
    let _ = io::stderr().flush();
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    Ok(read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Whoever sits there, for the tracking event. What a name is worth stands with the token, not here.
fn who() -> String {
    let said = |name: &&str| std::env::var(name).ok().filter(|user| !user.trim().is_empty());
    let (user, id) = (["SUDO_USER", "USER", "LOGNAME"].iter().find_map(said), nix::unistd::getuid());
    let known = || nix::unistd::User::from_uid(id).ok().flatten().map(|user| user.name);
    let name: String = user.or_else(known).unwrap_or_default().chars().filter(|c| !c.is_control()).take(32).collect();
    if name.is_empty() { format!("user {id}") } else { name }
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
        for (verb, changed, busy, passed, held, expected) in [
            (
                "remove",
                1,
                2,
                0,
                0,
                "1 copy removed|2 copies are being tried just now, left alone; hold them first, or try again",
            ),
            ("bounce", 0, 1, 0, 0, "1 copy is being tried just now, left alone; hold it first, or try again"),
            ("bounce", 1, 0, 0, 1, "1 copy returned to its sender"),
            ("bounce", 2, 0, 1, 0, "2 copies returned to their senders|1 copy is done with meanwhile"),
            (
                "hold",
                0,
                1,
                2,
                2,
                "1 copy is being tried just now, it is held when it comes back|2 copies are held already",
            ),
            ("release", 0, 0, 1, 0, "1 copy is not held"),
            ("retry", 0, 0, 2, 2, "2 copies are held: release them first"),
            (
                "retry",
                3,
                1,
                3,
                1,
                "3 copies to be tried now|1 copy is being tried just now, left alone|\
              1 copy is held: release it first|2 copies are done with meanwhile",
            ),
            ("retry", 0, 0, 0, 0, "nothing was changed: what was meant is gone"),
        ] {
            let done = Changed { changed, busy, passed, ..Changed::default() };
            assert_eq!(summary(verb, &done, held).trim_end().replace('\n', "|"), expected);
        }
        let done = Changed { changed: 1, failed: vec!["X: no".into()], ..Changed::default() };
        assert_eq!(summary("remove", &done, 0), "1 copy removed\nnot done: X: no\n");
    }
}
