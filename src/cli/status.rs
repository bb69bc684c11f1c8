//! `causeway status` and `causeway top`: how the running daemon does. `top` shows it anew every two seconds until Ctrl-C.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use super::queue::{in_words, span};
use super::{Asking, admin_client, print};
use crate::admin::client::{Client, Failure};
use crate::admin::{Latency, Status};

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

/// Exit status: 0 it takes mail and every connector is up, 1 something is wrong, 3 it could not be reached.
pub(super) fn status(path: &Path, args: &StatusArgs) -> ExitCode {
    let client = match admin_client(path) {
        Ok(client) => client,
        Err(status) => return status,
    };
    let show = || -> Result<ExitCode, Asking> {
        let value = client.get("/api/v1/status")?;
        let text = format!("{value:#}\n");
        let status = parse(value)?;
        print(&if args.json { text } else { page(&status, Timestamp::now()) });
        Ok(if is_well(&status) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    };
    show().unwrap_or_else(|asking| asking.tell())
}

/// Until Ctrl-C; in a pipe once.
pub(super) fn top(path: &Path, _: &TopArgs) -> ExitCode {
    let client = match admin_client(path) {
        Ok(client) => client,
        Err(status) => return status,
    };
    loop {
        match look(&client) {
            Ok(text) if io::stdout().is_terminal() => {
                // One write, from the upper left corner, each line cleared to its end: nothing flickers.
                print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")));
            }
            Ok(text) => {
                print(&text);
                return ExitCode::SUCCESS;
            }
            Err(asking) => return asking.tell(),
        }
        std::thread::sleep(AGAIN);
    }
}

fn look(client: &Client) -> Result<String, Asking> {
    Ok(page(&parse(client.get("/api/v1/status")?)?, Timestamp::now()))
}

fn parse(value: serde_json::Value) -> Result<Status, Failure> {
    serde_json::from_value(value)
        .map_err(|error| Failure::Unreachable(format!("the daemon is of another version: {error}")))
}

fn is_well(status: &Status) -> bool {
    status.refuses.is_none() && status.connectors.iter().all(|connector| connector.state != "down")
}

fn page(status: &Status, now: Timestamp) -> String {
    let mut text = String::new();
    let Status { hostname, version, uptime, .. } = status;
    let _ = writeln!(text, "{BOLD}{hostname}{BOLD:#}  causeway {version}, up {}", in_words(*uptime));
    let _ = match &status.refuses {
        None => writeln!(text, "{GREEN}takes mail{GREEN:#}"),
        Some(why) => writeln!(text, "{RED}takes no new mail: {why}{RED:#}"),
    };
    let oldest = status.oldest.map_or_else(String::new, |oldest| format!(", the oldest {} old", span(oldest, now)));
    let held = if status.held == 0 { String::new() } else { format!(", {} copies held", status.held) };
    let _ = writeln!(text, "queue        {} messages{oldest}{held}", status.messages);
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
        "last minute  {} messages accepted, {} recipients delivered; {} connections open",
        status.accepted_a_minute, status.delivered_a_minute, status.connections
    );
    let _ = writeln!(
        text,
        "since start  {} messages accepted; refused: {} for now, {} for good",
        status.accepted, status.refused[0], status.refused[1]
    );
    let _ = writeln!(text, "latency      commit {}; delivery {}", latency(&status.commit), latency(&status.delivery));
    let free = status.spool_free.map_or_else(String::new, |free| format!(", {} free", bytes(free)));
    let _ = writeln!(text, "spool        {}{free}", bytes(status.spool_bytes));

    let _ = writeln!(text, "\n{BOLD}send connectors{BOLD:#}");
    let width = status.connectors.iter().map(|one| one.name.chars().count()).max().unwrap_or(0);
    for one in &status.connectors {
        let style = match one.state.as_str() {
            "up" => GREEN,
            "down" => RED,
            _ => YELLOW,
        };
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
    }
    if !status.hops.is_empty() {
        let _ = writeln!(text, "\n{BOLD}next hops with mail{BOLD:#}");
    }
    for hop in status.hops.iter().take(HOPS) {
        let resting = hop.resting.map_or_else(String::new, |left| format!(", tried again in {}", in_words(left)));
        let last = hop.last.as_ref().map_or_else(String::new, |last| format!(": {last}"));
        let oldest = hop.oldest.map_or_else(String::new, |oldest| format!(", the oldest {} old", span(oldest, now)));
        let _ = writeln!(
            text,
            "  {} to {}: {} ready, {} active, {} deferred{oldest}{resting}{last}",
            hop.connector, hop.hop, hop.ready, hop.active, hop.deferred
        );
    }
    if status.hops.len() > HOPS {
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
