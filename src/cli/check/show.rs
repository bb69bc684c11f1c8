//! The findings as text: a line each for a pipe, folded and coloured for a person at a terminal.
//!
//! At three in the morning one reads the first red line and the last line. So errors come first and by themselves, each
//! with its place above its words, and the counts come last.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};

use super::{Checked, counted};
use crate::cli::page::fold;
use crate::config::{Problem, Severity};
use crate::probe::{HostSeen, Report};

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The words stand so far in.
const INDENT: usize = 4;

/// For a pipe: `error: causeway.toml:41:1: …`, what was seen, the summary.
pub(super) fn plain(checked: &Checked) -> String {
    let mut text = checked.problems.to_string();
    if let Some(report) = &checked.live {
        for host in &report.hosts {
            let _ = writeln!(text, "host: {}: {}: {}", host.connector, host.host, host_words(host));
        }
        for domain in &report.domains {
            for (kind, fact) in &domain.facts {
                let _ = writeln!(text, "domain: {}: {kind}: {fact}", domain.name);
            }
        }
    }
    text.push_str(&checked.summary);
    text.push('\n');
    text
}

/// `TLSv1.3 …, trusted certificate for …; its certificate is for …, until …, issued by …`
fn host_words(host: &HostSeen) -> String {
    let flows = match &host.flows {
        Ok(proof) => format!("mail flows: {proof}"),
        Err(why) => format!("no mail flows: {why}"),
    };
    match certificate_words(host) {
        Some(certificate) => format!("{flows}; {certificate}"),
        None => flows,
    }
}

fn certificate_words(host: &HostSeen) -> Option<String> {
    const SHOWN: usize = 8;
    let tls = host.tls.as_ref()?;
    let mut names = tls.names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if tls.names.len() > SHOWN {
        let _ = write!(names, " and {} more", tls.names.len() - SHOWN);
    }
    if names.is_empty() {
        names.push_str("no name");
    }
    // What was proved begins with the protocol.
    let protocol = if host.flows.is_ok() { String::new() } else { format!("{}; ", tls.protocol) };
    let until = tls.until.map_or_else(|| "nobody knows when".to_owned(), |until| until.to_string());
    Some(format!("{protocol}certificate for {names}, until {until}, issued by {}", tls.issuer))
}

/// For a person.
pub(super) fn terminal(checked: &Checked, width: usize) -> String {
    let mut text = String::new();
    if let Some(report) = &checked.live {
        seen(report, width, &mut text);
    }
    let problems = &checked.problems;
    let (errors, warnings): (Vec<_>, Vec<_>) =
        problems.0.iter().partition(|problem| problem.severity != Severity::Warning);
    group("error", "errors", RED, &errors, width, &mut text);
    group("warning", "warnings", YELLOW, &warnings, width, &mut text);
    let style = match (errors.is_empty(), warnings.is_empty()) {
        (false, _) => RED,
        (true, false) => YELLOW,
        (true, true) => GREEN,
    };
    for (number, line) in fold(&checked.summary, width).iter().enumerate() {
        let _ = if number == 0 { writeln!(text, "{style}{line}{style:#}") } else { writeln!(text, "{line}") };
    }
    text
}

fn group(one: &str, many: &str, style: Style, problems: &[&Problem], width: usize, text: &mut String) {
    if problems.is_empty() {
        return;
    }
    let _ = writeln!(text, "{style}{}{style:#}\n", counted(problems.len(), one, many));
    for problem in problems {
        let place = problem.place.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"));
        let _ = writeln!(text, "  {style}{one}{style:#} {BOLD}{}{place}{BOLD:#}", problem.file.display());
        for line in fold(&problem.text, width - INDENT) {
            let _ = writeln!(text, "{:INDENT$}{line}", "");
        }
        text.push('\n');
    }
}

fn seen(report: &Report, width: usize, text: &mut String) {
    let mut last = None;
    for host in &report.hosts {
        if last != Some(&host.connector) {
            let _ = writeln!(text, "{BOLD}send connector {}{BOLD:#}", host.connector);
            last = Some(&host.connector);
        }
        let (style, word) = if host.flows.is_ok() { (GREEN, "ok") } else { (RED, "NO") };
        let _ = writeln!(text, "  {style}{word}{style:#}  {}", host.host);
        let words = host.flows.as_ref().unwrap_or_else(|why| why);
        for line in fold(words, width - 6) {
            let _ = writeln!(text, "      {line}");
        }
        for line in certificate_words(host).iter().flat_map(|words| fold(words, width - 6)) {
            let _ = writeln!(text, "      {DIM}{line}{DIM:#}");
        }
    }
    for domain in &report.domains {
        let _ = writeln!(text, "{BOLD}accepted domain {}{BOLD:#}", domain.name);
        for (kind, fact) in &domain.facts {
            for (number, line) in fold(fact, width - 12).iter().enumerate() {
                let kind = if number == 0 { kind } else { "" };
                let _ = writeln!(text, "  {DIM}{kind:<8}{DIM:#}  {line}");
            }
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
}

/// One line on a terminal, which the next one overwrites; nothing in a pipe.
pub(super) fn progress(done: usize, total: usize) {
    let mut to = std::io::stderr();
    if to.is_terminal() {
        let _ = write!(to, "\r\x1b[Kasked {done} of {total} hosts and domains");
        let _ = to.flush();
    }
}

/// Wipes that line.
pub(super) fn progress_over() {
    let mut to = std::io::stderr();
    if to.is_terminal() {
        let _ = write!(to, "\r\x1b[K");
        let _ = to.flush();
    }
}
