//! `causeway check`: the whole configuration, every file it names, and what should be looked at.
//!
//! Not here: what is right and wrong; that is in `config`, and for recipients in `directory`.
//!
//! Not yet: `--live` (ask DNS and the hops) and `--other-side` (what only both relays together show).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use crate::config::{self, Config, Problem, Problems, Severity};
use crate::directory::{self, users};

/// Faulty lines of one recipient file that are shown one by one; `causeway directory check` is for all of them.
const SHOWN_FAULTS: usize = 20;

/// What may stand behind `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask DNS and connect to every next hop (not in this version)
    #[arg(long)]
    live: bool,
    /// The configuration of the relay on the other premises (not in this version)
    #[arg(long, value_name = "FILE")]
    other_side: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What the command answers with `--json`.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    errors: usize,
    warnings: usize,
    findings: Vec<Finding<'a>>,
    summary: &'a str,
}

#[derive(Debug, Serialize)]
struct Finding<'a> {
    severity: String,
    file: String,
    line: Option<usize>,
    column: Option<usize>,
    text: &'a str,
}

/// Checks the configuration at `path` and says what was found. Exit status 1: errors; 2: it could not even be read.
pub fn run(path: &Path, args: &Args) -> ExitCode {
    for (option, given) in [("--live", args.live), ("--other-side", args.other_side.is_some())] {
        if given {
            eprintln!("causeway: check {option} is not supported in this version");
            return ExitCode::from(super::WRONG);
        }
    }
    let (problems, summary) = examine(path, Timestamp::now());
    let text = if args.json { json(&problems, &summary) } else { plain(&problems, &summary) };
    // A reader that went away (`check | head`) changes nothing about the answer.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    ExitCode::from(status(&problems))
}

/// All findings, errors first, each kind in the order of the file; and a line that sums them up.
fn examine(path: &Path, now: Timestamp) -> (Problems, String) {
    let (config, mut problems) = config::check(path, now);
    let mut recipients = 0;
    if let Some(config) = &config {
        recipients = directories(config, &mut problems);
        logins(config, &mut problems);
    }
    // Stable: the order of the file stays.
    problems.0.sort_by_key(|problem| problem.severity);
    let summary = summary(config.as_ref(), recipients, &problems);
    (problems, summary)
}

/// Reads each recipient file as the daemon will, and says how many recipients there are.
fn directories(config: &Config, problems: &mut Problems) -> usize {
    let mut recipients = 0;
    for source in &config.directories {
        let finding = |severity, line: Option<u64>, text: String| Problem {
            severity,
            file: source.path.clone(),
            place: line.and_then(|line| Some((usize::try_from(line).ok()?, 1))),
            text,
        };
        match directory::file::load(&source.path) {
            Ok(loaded) => {
                recipients += loaded.table.len();
                // The daemon skips such a line too, so that one slip does not stop the mail of the others.
                for fault in loaded.faults.iter().take(SHOWN_FAULTS) {
                    let text = format!("{}; the line is skipped", fault.text);
                    problems.0.push(finding(Severity::Warning, Some(fault.line), text));
                }
                let more = loaded.faults.len().saturating_sub(SHOWN_FAULTS) + loaded.unlisted;
                if more > 0 {
                    problems.0.push(finding(
                        Severity::Warning,
                        None,
                        format!("{more} more lines are faulty and skipped"),
                    ));
                }
            }
            Err(error) => problems.0.push(finding(Severity::Error, None, error.to_string())),
        }
    }
    recipients
}

/// Reads each users file as the daemon will.
fn logins(config: &Config, problems: &mut Problems) {
    let mut files: Vec<&Path> =
        config.receive_connectors.iter().filter_map(|connector| connector.users_file.as_deref()).collect();
    files.sort_unstable();
    files.dedup();
    for file in files {
        let mut find = |severity, line: Option<u64>, text: String| {
            let place = line.and_then(|line| Some((usize::try_from(line).ok()?, 1)));
            problems.0.push(Problem { severity, file: file.to_owned(), place, text });
        };
        match users::load(file) {
            Ok(loaded) => {
                for fault in loaded.faults.iter().take(SHOWN_FAULTS) {
                    find(Severity::Warning, Some(fault.line), format!("{}; the line is skipped", fault.text));
                }
                let more = loaded.faults.len().saturating_sub(SHOWN_FAULTS) + loaded.unlisted;
                if more > 0 {
                    find(Severity::Warning, None, format!("{more} more lines are faulty and skipped"));
                }
            }
            Err(error) => find(Severity::Error, None, error.to_string()),
        }
    }
}

fn summary(config: Option<&Config>, recipients: usize, problems: &Problems) -> String {
    let (errors, warnings) = (problems.errors().count(), problems.warnings().count());
    let warned = || counted(warnings, "warning", "warnings");
    match config {
        Some(config) if errors == 0 => {
            let parts = [
                counted(config.receive_connectors.len(), "receive connector", "receive connectors"),
                counted(config.send_connectors.len(), "send connector", "send connectors"),
                counted(config.accepted_domains.len(), "accepted domain", "accepted domains"),
                counted(recipients, "recipient", "recipients"),
            ];
            let but = if warnings > 0 { format!("; {}", warned()) } else { String::new() };
            format!("the configuration is good: {}{but}", parts.join(", "))
        }
        _ => match warnings {
            0 => counted(errors, "error", "errors"),
            _ => format!("{}, {}", counted(errors, "error", "errors"), warned()),
        },
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn plain(problems: &Problems, summary: &str) -> String {
    format!("{problems}{summary}\n")
}

fn json(problems: &Problems, summary: &str) -> String {
    let findings = problems.0.iter().map(|problem| Finding {
        severity: problem.severity.to_string(),
        file: problem.file.display().to_string(),
        line: problem.place.map(|(line, _)| line),
        column: problem.place.map(|(_, column)| column),
        text: &problem.text,
    });
    let answer = Answer {
        errors: problems.errors().count(),
        warnings: problems.warnings().count(),
        findings: findings.collect(),
        summary,
    };
    // Numbers and texts only: nothing in it could fail to be JSON.
    serde_json::to_string(&answer).map(|line| line + "\n").unwrap_or_default()
}

fn status(problems: &Problems) -> u8 {
    match (problems.unreadable(), problems.errors().next()) {
        (true, _) => super::WRONG,
        (false, Some(_)) => 1,
        (false, None) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const GOOD: &str = r#"hostname = "mail.contoso.com"
[spool]
path = "spool"
[[accepted_domain]]
name = "contoso.com"
[[directory]]
path = "recipients.csv"
[[receive_connector]]
name = "in"
listen = ["127.0.0.1:25"]
origin = "internet"
tls = "off"
[[send_connector]]
name = "out"
address_spaces = ["*"]
tls = "opportunistic"
"#;

    const RECIPIENTS: &str = "address,type,target\njulie@contoso.com,on-premises,\ndavid@contoso.com,cloud,\n";

    #[test]
    fn errors_come_first_and_the_summary_counts_them() {
        let folder = TempDir::new().expect("a folder for the test");
        let path = folder.path().join("causeway.toml");
        let recipients = folder.path().join("recipients.csv");
        for (text, csv, expected_status, severities, expected) in [
            (
                GOOD.to_owned(),
                RECIPIENTS.to_owned(),
                0,
                "",
                "the configuration is good: 1 receive connector, 1 send connector, 1 accepted domain, 2 recipients",
            ),
            (
                GOOD.replace("mail.contoso.com", "mail"),
                format!("{RECIPIENTS}nobody,cloud,\nx@contoso.com,somewhere,\n"),
                0,
                "warning warning warning",
                "the configuration is good: 1 receive connector, 1 send connector, 1 accepted domain, 2 recipients; 3 warnings",
            ),
            (
                format!("{GOOD}tls_domian = []\n").replace("mail.contoso.com", "mail"),
                RECIPIENTS.to_owned(),
                1,
                "error warning",
                "1 error, 1 warning",
            ),
            (GOOD.to_owned(), "no header\n".to_owned(), 1, "error", "1 error"),
            ("hostname = ".to_owned(), RECIPIENTS.to_owned(), 2, "error", "1 error"),
        ] {
            fs::write(&path, &text).expect("the test's own file");
            fs::write(&recipients, csv).expect("the test's own file");
            let (problems, summary) = examine(&path, Timestamp::now());
            assert_eq!(summary, expected, "{problems}");
            assert_eq!(status(&problems), expected_status, "{problems}");
            let found: Vec<_> = problems.0.iter().map(|problem| problem.severity.to_string()).collect();
            assert_eq!(found.join(" "), severities, "{problems}");
            assert!(plain(&problems, &summary).ends_with(&format!("{summary}\n")));

            let answer: serde_json::Value = serde_json::from_str(&json(&problems, &summary)).expect("JSON");
            assert_eq!(answer["findings"].as_array().map(Vec::len), Some(problems.0.len()));
            assert_eq!(answer["errors"], problems.errors().count());
            assert_eq!(answer["summary"], summary);
        }
    }

    #[test]
    fn faulty_recipients_are_told_with_file_and_line() {
        let folder = TempDir::new().expect("a folder for the test");
        let path = folder.path().join("causeway.toml");
        let recipients = folder.path().join("recipients.csv");
        fs::write(&path, GOOD).expect("the test's own file");
        fs::write(&recipients, format!("{RECIPIENTS}{}", "nobody,cloud,\n".repeat(30))).expect("the test's own file");
        let (problems, _) = examine(&path, Timestamp::now());
        assert_eq!(problems.0.len(), SHOWN_FAULTS + 1, "{problems}");
        let first = &problems.0[0];
        assert_eq!((&first.file, first.place), (&recipients, Some((4, 1))), "{first}");
        assert!(problems.0.iter().any(|problem| problem.text == "10 more lines are faulty and skipped"), "{problems}");
    }

    #[test]
    fn faulty_users_are_told_with_file_and_line() {
        let folder = TempDir::new().expect("a folder for the test");
        let (path, users) = (folder.path().join("causeway.toml"), folder.path().join("users"));
        fs::write(folder.path().join("recipients.csv"), RECIPIENTS).expect("the test's own file");
        let authority = crate::tls::Authority::new("Test CA");
        let (certificate, key) = authority.issue(&["mail.contoso.com"]);
        for (name, content, mode) in [("mail.crt", certificate, 0o644), ("mail.key", key, 0o600)] {
            let file = folder.path().join(name);
            fs::write(&file, content).expect("the test's own file");
            fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("the test's own file");
        }
        let login = "users_file = \"users\"\ncertificate = \"mail.crt\"\nkey = \"mail.key\"";
        fs::write(&path, GOOD.replace("tls = \"off\"", login)).expect("the test's own file");
        let hash = users::hash("secret").expect("a hash");
        for (content, mode, status_expected, expected) in [
            (format!("tim:{hash}\n"), 0o640, 0, &[][..]),
            (format!("# submission\ntim:secret\nanna:{hash}\n"), 0o600, 0, &["warning users:2 tim: expected a hash"]),
            (
                format!("tim:{hash}\n"),
                0o644,
                0,
                &["warning causeway.toml:12 receive_connector \"in\": users_file: every user"],
            ),
            (
                "tim:secret\n".to_owned(),
                0o600,
                1,
                &["error users nothing in it is usable; line 1: tim: expected a hash"],
            ),
        ] {
            fs::write(&users, &content).expect("the test's own file");
            fs::set_permissions(&users, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("the test's own file");
            let (problems, _) = examine(&path, Timestamp::now());
            assert_eq!(status(&problems), status_expected, "{problems}");
            assert!(!problems.to_string().contains("tim:secret"), "{problems}");
            let found: Vec<String> = problems
                .0
                .iter()
                .filter(|problem| !problem.text.contains("chain"))
                .map(|problem| {
                    let file = problem.file.file_name().expect("a file").display();
                    let line = problem.place.map_or(String::new(), |(line, _)| format!(":{line}"));
                    format!("{} {file}{line} {}", problem.severity, problem.text)
                })
                .collect();
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{found}");
            }
        }
    }

    #[test]
    fn a_missing_file_is_status_2() {
        let (problems, summary) = examine(Path::new("/nowhere/causeway.toml"), Timestamp::now());
        assert_eq!(summary, "1 error");
        assert_eq!(status(&problems), 2);
        assert!(plain(&problems, &summary).starts_with("error: /nowhere/causeway.toml: cannot be read"));
    }
}
