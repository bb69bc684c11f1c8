//! `causeway status` and `causeway top`: how the running daemon does. `top` shows it anew every two seconds until Ctrl-C.
//!
//! `status` breaks long lines at the terminal's width. `top` has a screen of its own (the terminal's alternate one) and
//! cuts: what does not fit into its rows and columns is told by `status`. However it ends, the terminal gets back what
//! stood there before.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use super::page::{self, Folding};
use super::queue::{in_words, span};
use super::{Asking, admin_client, counted, print};
use crate::admin::client::{Client, Failure};
use crate::admin::{ConnectorStatus, Latency, Status};

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const GREEN: Style = AnsiColor::Green.on_default();
const BOLD: Style = Style::new().bold();

/// How often `top` looks.
const AGAIN: Duration = Duration::from_secs(2);
/// Next hops that are shown.
const HOPS: usize = 15;
/// A certificate that ends so soon is a warning, in seconds: 30 days.
const SOON: i64 = 30 * 86_400;

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// One JSON object rather than text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {}

/// Exit status: 0 it takes mail, knows its recipients, no connector is down and no certificate of ours has ended; 1
/// something of that is wrong; 3 it could not be reached.
pub(super) fn status(path: &Path, args: &StatusArgs) -> ExitCode {
    let client = match admin_client(path) {
        Ok(client) => client,
        Err(status) => return status,
    };
    let show = || -> Result<ExitCode, Asking> {
        let value = client.get("/api/v1/status")?;
        let text = format!("{value:#}\n");
        let status = parse(value)?;
        if args.json {
            print(&text);
        } else {
            let mut out = Folding::new(anstream::stdout(), page::columns());
            // Whoever closed the pipe has read enough.
            let _ = out.write_all(page(&status, Timestamp::now()).as_bytes()).and_then(|()| out.flush());
        }
        Ok(if is_well(&status, Timestamp::now()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    };
    show().unwrap_or_else(|asking| asking.tell())
}

/// Until Ctrl-C; in a pipe once.
pub(super) fn top(path: &Path, _: &TopArgs) -> ExitCode {
    let client = match admin_client(path) {
        Ok(client) => client,
        Err(status) => return status,
    };
    let Some(_) = page::screen() else {
        return match look(&client) {
            Ok(status) => {
                print(&page(&status, Timestamp::now()));
                ExitCode::SUCCESS
            }
            Err(asking) => asking.tell(),
        };
    };
    // Whoever cannot be asked at all leaves the terminal as it is.
    let mut status = match look(&client) {
        Ok(status) => status,
        Err(asking) => return asking.tell(),
    };
    let screen = match Screen::enter() {
        Ok(screen) => screen,
        Err(error) => {
            eprintln!("causeway: {error}");
            return ExitCode::FAILURE;
        }
    };
    loop {
        let (rows, columns) = page::screen().unwrap_or((24, 80));
        if screen.draw(&fitted(&status, Timestamp::now(), rows, columns)).is_err() {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(AGAIN);
        status = match look(&client) {
            Ok(status) => status,
            Err(asking) => {
                drop(screen);
                return asking.tell();
            }
        };
    }
}

fn look(client: &Client) -> Result<Status, Asking> {
    Ok(parse(client.get("/api/v1/status")?)?)
}

/// The terminal's alternate screen, without a cursor.
struct Screen {
    /// Not for the pipe, nor where somebody said NO_COLOR.
    coloured: bool,
}

const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

impl Screen {
    /// Enters it; signals that end the program leave it first.
    fn enter() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut interrupt, mut terminate, mut hang_up) = {
            let _guard = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let status = runtime.block_on(async {
                tokio::select! {
                    // So it is meant to end.
                    _ = interrupt.recv() => 0,
                    _ = terminate.recv() => 128 + 15,
                    _ = hang_up.recv() => 128 + 1,
                }
            });
            // Locked until the end: nothing is drawn on the screen that comes back.
            let mut out = io::stdout().lock();
            let _ = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
            std::process::exit(status);
        })?;
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes()).and_then(|()| out.flush())?;
        Ok(Self { coloured: anstream::AutoStream::choice(&out) != anstream::ColorChoice::Never })
    }

    /// One write, from the upper left corner, each line cleared to its end: nothing flickers.
    fn draw(&self, lines: &[String]) -> io::Result<()> {
        let mut text = lines.join("\x1b[K\r\n");
        if !self.coloured {
            text = lines
                .iter()
                .map(|line| anstream::adapter::strip_str(line).to_string())
                .collect::<Vec<_>>()
                .join("\x1b[K\r\n");
        }
        let mut out = io::stdout().lock();
        out.write_all(format!("\x1b[H{text}\x1b[K\x1b[J").as_bytes()).and_then(|()| out.flush())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
    }
}

/// The page for so large a screen. Where there are too many rows, what is known of connectors that are up goes first.
fn fitted(status: &Status, now: Timestamp, rows: usize, columns: usize) -> Vec<String> {
    let lines = |seen| -> Vec<String> {
        let text = [head(status, now), table(status, now, columns, seen), tail(status, now)].concat();
        text.lines().map(|line| page::cut(line, columns)).collect()
    };
    let mut page = lines(true);
    if page.len() > rows {
        page = lines(false);
    }
    if page.len() > rows {
        let more = format!("… {} more lines; causeway status has them", page.len() + 1 - rows);
        page.truncate(rows.saturating_sub(1));
        page.push(page::cut(&more, columns));
    }
    page
}

/// The send connectors, a row each; `seen`: with what was seen last of all of them, not only of those that are down.
fn table(status: &Status, now: Timestamp, columns: usize, seen: bool) -> String {
    let mut text = String::new();
    // The rest of a row has 59 columns, and TLS another 15.
    let with_tls = columns >= 100;
    let longest = status.connectors.iter().map(|one| one.name.chars().count()).max().unwrap_or(0).max(15);
    let width = longest.min(columns.saturating_sub(if with_tls { 74 } else { 59 })).max(8);
    let tls = |tls: &str| if with_tls { format!("{tls:<15}") } else { String::new() };
    let _ = writeln!(
        text,
        "\n{BOLD}{:width$} state    {}  ready active deferred delivered put off  failed{BOLD:#}",
        "send connectors",
        tls("tls")
    );
    for one in &status.connectors {
        let style = style(one);
        let [delivered, deferred, failed] = one.counts;
        let _ = writeln!(
            text,
            "{:width$} {style}{:8}{style:#} {}{:>7}{:>7}{:>9}{delivered:>10}{deferred:>8}{failed:>8}",
            page::cut(&one.name, width),
            one.state,
            tls(&one.tls),
            one.ready,
            one.active,
            one.deferred
        );
        if seen || one.state == "down" {
            for (what, seen) in [("proved", &one.proved), ("fault", &one.fault)] {
                if let Some(seen) = seen {
                    let _ = writeln!(text, "    {what} {} ago: {}", span(seen.at, now), shortened(&seen.what));
                }
            }
        }
    }
    text
}

/// Without the cipher: `TLSv1.3, trusted: mail.contoso.com`.
fn shortened(what: &str) -> String {
    let what = what.replacen(", trusted certificate for ", ", trusted: ", 1);
    match what.find("TLSv1.").and_then(|at| Some((at, at + what[at..].find(' ')?))) {
        Some((_, end)) if what[end + 1..].starts_with("TLS_") => {
            let rest = &what[end + 1..];
            format!("{}{}", &what[..end], &rest[rest.find([',', ' ']).unwrap_or(rest.len())..])
        }
        _ => what,
    }
}

fn style(connector: &ConnectorStatus) -> Style {
    match connector.state.as_str() {
        "up" => GREEN,
        "down" => RED,
        _ => YELLOW,
    }
}

fn parse(value: serde_json::Value) -> Result<Status, Failure> {
    serde_json::from_value(value)
        .map_err(|error| Failure::Unreachable(format!("the daemon is of another version: {error}")))
}

fn is_well(status: &Status, now: Timestamp) -> bool {
    status.refuses.is_none()
        && status.directory.is_empty()
        && status.connectors.iter().all(|connector| connector.state != "down")
        && status.certificates.iter().all(|certificate| certificate.expires > now)
}

fn page(status: &Status, now: Timestamp) -> String {
    [head(status, now), connectors(status, now), tail(status, now)].concat()
}

/// The relay as a whole.
fn head(status: &Status, now: Timestamp) -> String {
    let mut text = String::new();
    let Status { hostname, version, uptime, .. } = status;
    let _ = writeln!(text, "{BOLD}{hostname}{BOLD:#}  causeway {version}, up {}", in_words(*uptime));
    let _ = match &status.refuses {
        None => writeln!(text, "{GREEN}takes mail{GREEN:#}"),
        Some(why) => writeln!(text, "{RED}takes no new mail: {why}{RED:#}"),
    };
    for fault in &status.directory {
        let _ = writeln!(text, "{RED}directory    {fault}{RED:#}");
    }
    let oldest = status.oldest.map_or_else(String::new, |oldest| format!(", the oldest {} old", span(oldest, now)));
    let held =
        if status.held == 0 { String::new() } else { format!(", {} held", counted(status.held, "copy", "copies")) };
    let _ = writeln!(text, "queue        {}{oldest}{held}", counted(status.messages, "message", "messages"));
    let aged: Vec<String> = status
        .ages
        .iter()
        .filter(|age| age.copies > 0)
        .map(|age| match age.up_to.as_str() {
            "beyond" => format!("{} older", age.copies),
            up_to => format!("{} up to {up_to}", age.copies),
        })
        .collect();
    if !aged.is_empty() {
        let _ = writeln!(text, "ages         copies: {}", aged.join(", "));
    }
    let _ = writeln!(
        text,
        "last minute  {} accepted, {} delivered; {} open",
        counted(status.accepted_a_minute, "message", "messages"),
        counted(status.delivered_a_minute, "recipient", "recipients"),
        counted(status.connections, "connection", "connections")
    );
    let _ = writeln!(
        text,
        "since start  {} accepted; refused: {} for now, {} for good",
        counted(status.accepted, "message", "messages"),
        status.refused[0],
        status.refused[1]
    );
    let _ = writeln!(text, "latency      commit {}; delivery {}", latency(&status.commit), latency(&status.delivery));
    let free = status.spool_free.map_or_else(String::new, |free| format!(", {} free", bytes(free)));
    let _ = writeln!(text, "spool        {}{free}", bytes(status.spool_bytes));
    text
}

/// The send connectors, and what was seen of each.
fn connectors(status: &Status, now: Timestamp) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "\n{BOLD}send connectors{BOLD:#}");
    let width = status.connectors.iter().map(|one| one.name.chars().count()).max().unwrap_or(0);
    for one in &status.connectors {
        let style = style(one);
        let [delivered, deferred, failed] = one.counts;
        let _ = writeln!(
            text,
            "  {:width$}  {style}{:8}{style:#}  tls {}, {} ready, {} active, {} deferred; {delivered} delivered, {deferred} put off, {failed} failed",
            one.name, one.state, one.tls, one.ready, one.active, one.deferred
        );
        for (what, seen) in [("proved", &one.proved), ("fault", &one.fault)] {
            if let Some(seen) = seen {
                let _ = writeln!(text, "  {:width$}    {what} {} ago: {}", "", span(seen.at, now), seen.what);
            }
        }
    }
    text
}

/// Certificates, and next hops with mail.
fn tail(status: &Status, now: Timestamp) -> String {
    let mut text = String::new();
    for (one, ends) in status.connectors.iter().filter_map(|one| Some((one, one.certificate_expires?))) {
        if ends.duration_since(now).as_secs() < SOON {
            let ends = if ends < now { "ended".to_owned() } else { format!("ends in {}", span(now, ends)) };
            let _ = writeln!(text, "  {YELLOW}the certificate that {} proved last {ends}{YELLOW:#}", one.name);
        }
    }
    if !status.certificates.is_empty() {
        let _ = writeln!(text, "\n{BOLD}certificates{BOLD:#}");
    }
    for certificate in &status.certificates {
        let left = certificate.expires.duration_since(now).as_secs();
        let _ = match left {
            ..=0 => writeln!(text, "  {RED}{} ended{RED:#} on {:.0}", certificate.file, certificate.expires),
            1..SOON => {
                writeln!(text, "  {YELLOW}{} ends in {}{YELLOW:#}", certificate.file, span(now, certificate.expires))
            }
            _ => writeln!(text, "  {} ends in {}", certificate.file, span(now, certificate.expires)),
        };
        if !certificate.lost_names.is_empty() {
            let lost = certificate.lost_names.join(", ");
            let _ = writeln!(text, "    {YELLOW}no longer carries {lost}, as the one before it did{YELLOW:#}");
        }
    }
    let with_mail = || status.hops.iter().filter(|hop| hop.ready + hop.active + hop.deferred > 0);
    if with_mail().next().is_some() {
        let _ = writeln!(text, "\n{BOLD}next hops with mail{BOLD:#}");
    }
    for hop in with_mail().take(HOPS) {
        let resting = hop.resting.map_or_else(String::new, |left| format!(", tried again in {}", in_words(left)));
        let last = hop.last.as_ref().map_or_else(String::new, |last| format!(": {last}"));
        let oldest = hop.oldest.map_or_else(String::new, |oldest| format!(", the oldest {} old", span(oldest, now)));
        let _ = writeln!(
            text,
            "  {} to {}: {} ready, {} active, {} deferred{oldest}{resting}{last}",
            hop.connector, hop.hop, hop.ready, hop.active, hop.deferred
        );
    }
    if with_mail().count() > HOPS {
        let _ = writeln!(text, "  … and more");
    }
    text
}

fn latency(latency: &Latency) -> String {
    let one = |name: &str, value: Option<u64>| value.map(|value| format!("{name} {}", millis(value)));
    let parts: Vec<String> =
        [one("p50", latency.p50), one("p95", latency.p95), one("p99", latency.p99)].into_iter().flatten().collect();
    if parts.is_empty() { "not measured".to_owned() } else { format!("≤ {}", parts.join(" ")) }
}

fn millis(millis: u64) -> String {
    if millis < 1000 { format!("{millis}ms") } else { in_words(millis / 1000) }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relay with so many connectors, the last of them down.
    fn status(connectors: usize) -> Status {
        let connector = |number: usize| {
            let down = number + 1 == connectors;
            serde_json::json!({
                "name": format!("to-premises-number-{number}"), "state": if down { "down" } else { "up" },
                "tls": "opportunistic", "ready": 10, "active": 2, "deferred": 1234, "counts": [1_234_567, 1234, 12],
                "proved": {"at": "2026-11-20T14:30:00Z", "what":
                    "mx.contoso.com:25: TLSv1.3 TLS_AES_256_GCM_SHA384, trusted certificate for mail.contoso.com"},
                "fault": down.then(|| serde_json::json!({"at": "2026-11-20T14:29:00Z", "what": "x".repeat(200)})),
            })
        };
        let latency = serde_json::json!({"p50": 5, "p95": 2000, "p99": 30_000});
        let status = serde_json::json!({
            "version": "0.1.0", "hostname": "mail.contoso.com", "uptime": 60, "refuses": null, "messages": 1, "held": 1,
            "oldest": "2026-11-20T14:00:00Z", "connections": 1, "accepted_a_minute": 1, "delivered_a_minute": 1,
            "accepted": 1, "refused": [0, 0], "commit": latency, "delivery": latency, "spool_bytes": 4096,
            "spool_free": null, "connectors": (0..connectors).map(connector).collect::<Vec<_>>(),
            "certificates": [], "hops": [],
        });
        parse(status).unwrap()
    }

    fn plain(lines: &[String]) -> Vec<String> {
        lines.iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect()
    }

    #[test]
    fn top_fits_its_screen() {
        let now = "2026-11-20T14:31:00Z".parse().unwrap();
        for (rows, columns, connectors, expected) in [
            (24, 80, 3, "    proved 60s ago: mx.contoso.com:25: TLSv1.3, trusted: mail.contoso.com"),
            (24, 80, 9, "to-premises-number-8 down"),
            (24, 80, 40, "… 28 more lines; causeway status has them"),
            (40, 120, 9, "opportunistic"),
            (10, 40, 40, "… 42 more lines; causeway status has th…"),
        ] {
            let lines = plain(&fitted(&status(connectors), now, rows, columns));
            let text = lines.join("\n");
            assert!(lines.len() <= rows, "{rows}x{columns}: {text}");
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{rows}x{columns}: {text}");
            assert!(text.contains(expected), "{rows}x{columns}: {text}");
            assert!(columns < 80 || text.contains("1234567    1234      12"), "the whole row: {text}");
        }
    }

    #[test]
    fn one_is_singular() {
        let now = "2026-11-20T14:31:00Z".parse().unwrap();
        let text = page(&status(1), now);
        assert!(text.contains("queue        1 message, the oldest 31m old, 1 copy held\n"), "{text}");
        let minute = "last minute  1 message accepted, 1 recipient delivered; 1 connection open\n";
        assert!(text.contains(minute), "{text}");
    }

    #[test]
    fn names_that_a_renewal_lost_are_told() {
        let mut status = status(1);
        let renewed = serde_json::json!({
            "file": "mail.crt", "expires": "2027-11-20T14:30:00Z", "lost_names": ["mail.contoso.com"],
        });
        status.certificates.push(serde_json::from_value(renewed).unwrap());
        let text = page(&status, "2026-11-20T14:31:00Z".parse().unwrap());
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(text.contains("    no longer carries mail.contoso.com, as the one before it did\n"), "{text}");
    }

    #[test]
    fn top_says_what_tls_proved_in_few_words() {
        for (what, expected) in [
            ("a:25: TLSv1.3 TLS_AES_256_GCM_SHA384, trusted certificate for a", "a:25: TLSv1.3, trusted: a"),
            ("a:25: TLSv1.2 TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "a:25: TLSv1.2"),
            ("a:25: in the clear", "a:25: in the clear"),
            ("a:25: TLSv1.3", "a:25: TLSv1.3"),
            ("a:25: 451 4.3.0 TLSv1.3 is needed", "a:25: 451 4.3.0 TLSv1.3 is needed"),
        ] {
            assert_eq!(shortened(what), expected);
        }
    }

    #[test]
    fn sizes_and_times_are_short() {
        for (size, expected) in [(0, "0 KiB"), (2048, "2 KiB"), (5 << 20, "5 MiB"), (3 << 29, "1.5 GiB")] {
            assert_eq!(bytes(size), expected);
        }
        let none = Latency { p50: None, p95: None, p99: None };
        assert_eq!(latency(&none), "not measured");
        let some = Latency { p50: Some(5), p95: Some(2000), p99: None };
        assert_eq!(latency(&some), "≤ p50 5ms p95 2s");
    }
}
