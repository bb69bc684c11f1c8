//! `causeway check`: the whole configuration, every file it names, and what should be looked at.
//!
//! With `--other-side` also what only both relays together show, with `--live` what DNS and the next hops say. What is
//! found comes to one list, errors first.
//!
//! Not here: what is right and wrong; that is in `config`, `route::both` and `probe`, and for recipients in `directory`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use super::page;
use crate::config::{self, Config, Places, Problem, Problems, Severity};
use crate::directory::check::Surroundings;
use crate::directory::{self, Directory, LoadOutcome, users};
use crate::dns::Resolver;
use crate::message::Domain;
use crate::probe::{self, HostSeen, Limits, Report};
use crate::route::Rules;
use crate::route::both::{self, Premises, Spot, Which};

mod show;

/// Faulty lines of one recipient file that are shown one by one; `causeway directory check` is for all of them.
const SHOWN_FAULTS: usize = 20;

/// What may stand behind `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask DNS and connect to every next hop, sending nothing
    #[arg(long)]
    live: bool,
    /// The configuration of the relay on the other premises: find what only both together show
    #[arg(long, value_name = "FILE")]
    other_side: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// All that was found.
#[derive(Debug, Default)]
struct Checked {
    problems: Problems,
    summary: String,
    /// What `--live` saw.
    live: Option<Report>,
}

/// A configuration that was read, with its directory.
struct Read {
    config: Option<Config>,
    directory: Directory,
    problems: Problems,
}

/// Checks the configuration at `path` and says what was found. Exit status 1: errors; 2: it could not even be read.
pub fn run(path: &Path, args: &Args) -> ExitCode {
    let checked = check(path, args, Timestamp::now());
    // A reader that went away (`check | head`) changes nothing about the answer.
    let _ = if args.json {
        std::io::stdout().write_all(json(&checked).as_bytes())
    } else if let Some(columns) = page::columns() {
        anstream::stdout().write_all(show::terminal(&checked, columns).as_bytes())
    } else {
        std::io::stdout().write_all(show::plain(&checked).as_bytes())
    };
    ExitCode::from(status(&checked.problems))
}

fn check(path: &Path, args: &Args, now: Timestamp) -> Checked {
    let mut own = read(path, now);
    let mut problems = std::mem::take(&mut own.problems);
    let mut notes = Vec::new();
    if let Some(file) = &args.other_side {
        let mut other = read(file, now);
        // The hint of a file that is not there is about the other flag.
        for problem in &mut other.problems.0 {
            problem.text = problem.text.replace("(-c FILE)", "(--other-side FILE)");
        }
        problems.0.append(&mut other.problems.0);
        match (&own.config, &other.config) {
            (Some(one), Some(two)) => {
                let found = compare((one, &own.directory), (two, &other.directory), now);
                let fit = if found.is_empty() { "the two sides fit" } else { "the two sides do not fit" };
                notes.push(fit.to_owned());
                problems.0.extend(found);
            }
            _ => notes.push("the two sides were not compared: mend the errors first".to_owned()),
        }
    }
    let live = match (&own.config, args.live) {
        (Some(config), true) => {
            let (live, found) = look(config, Limits::default());
            problems.0.extend(found);
            live
        }
        (None, true) => {
            notes.push("nobody was asked: mend the errors first".to_owned());
            None
        }
        (_, false) => None,
    };
    // Stable: the order of the file stays.
    problems.0.sort_by_key(|problem| problem.severity);
    let mut summary = summary(own.config.as_ref(), own.directory.len(), &problems);
    for note in notes {
        summary.push_str("; ");
        summary.push_str(&note);
    }
    Checked { problems, summary, live }
}

/// The configuration and its directories, and all that can be said about them alone.
fn read(path: &Path, now: Timestamp) -> Read {
    let (config, mut problems) = config::check(path, now);
    let mut directory = Directory::default();
    if let Some(config) = &config {
        directory = directories(config, &mut problems);
        dead_ends(config, &directory, &mut problems);
        logins(config, &mut problems);
    }
    Read { config, directory, problems }
}

/// Reads each recipient file as the daemon will.
fn directories(config: &Config, problems: &mut Problems) -> Directory {
    let (directory, reports) = Directory::load(&config.directories);
    for report in reports {
        let mut find = |severity, line: Option<u64>, text: String| {
            let place = line.and_then(|line| Some((usize::try_from(line).ok()?, 1)));
            problems.0.push(Problem { severity, file: report.path.clone(), place, text });
        };
        match report.outcome {
            LoadOutcome::Loaded { faults, unlisted, .. } => {
                // The daemon skips such a line too, so that one slip does not stop the mail of the others.
                for fault in faults.iter().take(SHOWN_FAULTS) {
                    find(Severity::Warning, Some(fault.line), format!("{}; the line is skipped", fault.text));
                }
                let more = faults.len().saturating_sub(SHOWN_FAULTS) + unlisted;
                if more > 0 {
                    find(Severity::Warning, None, format!("{more} more lines are faulty and skipped"));
                }
            }
            LoadOutcome::Unchanged => {}
            LoadOutcome::Refused { why, .. } => find(Severity::Error, None, why.to_string()),
        }
    }
    directory
}

/// Forwards, aliases and groups whose mail comes to nothing. The relay runs with them: only their own mail fails.
fn dead_ends(config: &Config, directory: &Directory, problems: &mut Problems) {
    let rules = Rules { config, directory };
    let accepted = |domain: &Domain| rules.ours(domain).map(|(_, kind)| kind);
    let routing_domain = config.hybrid.as_ref().map(|hybrid| &hybrid.routing_domain);
    let around = Surroundings { accepted: &accepted, routing_domain };
    let mut found = directory::check::dead_ends(directory, &config.directories, &around);
    let more = found.len().saturating_sub(SHOWN_FAULTS);
    found.truncate(SHOWN_FAULTS);
    if let (1.., Some(last)) = (more, found.last_mut()) {
        last.text.push_str(&format!("; {more} more such faults: `causeway directory check` shows all"));
    }
    problems.0.extend(found.into_iter().map(|problem| Problem { severity: Severity::Warning, ..problem }));
}

/// What both show together, with its places.
fn compare(own: (&Config, &Directory), other: (&Config, &Directory), now: Timestamp) -> Vec<Problem> {
    let premises = |(config, directory)| Premises { config, directory };
    let found = both::compare(premises(own), premises(other), now);
    let places = [own, other].map(|(config, _)| Places::read(&config.path));
    let mut problems: Vec<_> = found
        .into_iter()
        .map(|finding| {
            let (config, places) = match finding.spot.which() {
                Which::Own => (own.0, &places[0]),
                Which::Other => (other.0, &places[1]),
            };
            let (file, place) = match &finding.spot {
                Spot::Key { section, name, key, .. } => (config.path.clone(), places.find(section, name, key)),
                Spot::Recipient { source, address, .. } => {
                    let known = config.directories.iter().find(|known| Some(&known.name) == source.as_ref());
                    match known.or(config.directories.first()) {
                        Some(known) => (known.path.clone(), line_of(&known.path, &address.to_string())),
                        None => (config.path.clone(), None),
                    }
                }
            };
            Problem { severity: finding.severity, file, place, text: finding.to_string() }
        })
        .collect();
    problems.sort_by(|one, two| (&one.file, one.place).cmp(&(&two.file, two.place)));
    problems
}

/// The line of the recipient file that begins with this address.
fn line_of(file: &Path, address: &str) -> Option<(usize, usize)> {
    use std::io::BufRead as _;
    let lines = std::io::BufReader::new(std::fs::File::open(file).ok()?).split(b'\n');
    let begins = |line: &[u8]| {
        let line = line.strip_prefix(b"\"").unwrap_or(line);
        let ends = line.get(address.len()).is_some_and(|next| matches!(next, b',' | b'"' | b' '));
        ends && line[..address.len()].eq_ignore_ascii_case(address.as_bytes())
    };
    let number = lines.map_while(Result::ok).position(|line| begins(&line))?;
    Some((number + 1, 1))
}

/// Asks DNS and the hosts, and makes findings of what they say.
fn look(config: &Config, limits: Limits) -> (Option<Report>, Vec<Problem>) {
    let failed = |text: String| {
        let problem = Problem { severity: Severity::Error, file: config.path.clone(), place: None, text };
        (None, vec![problem])
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(format!("--live: {error}")),
    };
    let report = runtime.block_on(async {
        let resolver = Resolver::new(&config.dns.servers)?;
        Ok::<_, String>(probe::look(&Arc::new(config.clone()), &resolver, limits, show::progress).await)
    });
    show::progress_over();
    match report {
        Ok(report) => {
            let problems = found_live(config, &report);
            (Some(report), problems)
        }
        Err(why) => failed(format!("--live: {why}")),
    }
}

/// A connector that `[hybrid]` names and by which no mail would flow is an error; all else should be looked at.
fn found_live(config: &Config, report: &Report) -> Vec<Problem> {
    let places = Places::read(&config.path);
    let mut problems = Vec::new();
    let mut find = |severity, section: &str, name: &str, key: &str, text: String| {
        problems.push(Problem { severity, file: config.path.clone(), place: places.find(section, name, key), text });
    };
    for connector in &config.send_connectors {
        let hosts: Vec<_> = report.hosts.iter().filter(|host| host.connector == connector.name).collect();
        let named = config
            .hybrid
            .as_ref()
            .is_some_and(|hybrid| hybrid.on_premises == connector.name || hybrid.cloud == connector.name);
        let none = !hosts.iter().any(|host| host.flows.is_ok());
        let severity = if named && none { Severity::Error } else { Severity::Warning };
        let what = format!("send_connector \"{}\"", connector.name);
        let consequence = match (none, hosts.len()) {
            (true, 1) => "no mail flows",
            (true, _) => "no mail flows by any host",
            (false, _) => "mail goes by the others",
        };
        for host in hosts {
            match &host.flows {
                Err(why) => find(
                    severity,
                    "send_connector",
                    &connector.name.0,
                    "smart_hosts",
                    format!("{what}: {}: {why}; {consequence}; {}", host.host, host.cure),
                ),
                Ok(_) => {
                    for warning in &host.warnings {
                        find(
                            Severity::Warning,
                            "send_connector",
                            &connector.name.0,
                            "smart_hosts",
                            format!("{what}: {}: {warning}", host.host),
                        );
                    }
                }
            }
        }
    }
    for domain in &report.domains {
        for (kind, warning) in &domain.warnings {
            let accepted = config.accepted_domains.iter().find(|accepted| accepted.name.as_str() == domain.name);
            let wild = accepted.filter(|accepted| accepted.subdomains).map_or("", |_| "*.");
            let name = format!("{wild}{}", domain.name);
            find(Severity::Warning, "accepted_domain", &name, "name", format!("{}: {kind}: {warning}", domain.name));
        }
    }
    problems
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

/// One object, with the words of the text.
fn json(checked: &Checked) -> String {
    let finding = |problem: &Problem| {
        json!({
            "severity": problem.severity.to_string(),
            "file": problem.file.display().to_string(),
            "line": problem.place.map(|(line, _)| line),
            "column": problem.place.map(|(_, column)| column),
            "text": problem.text,
        })
    };
    let mut answer = json!({
        "errors": checked.problems.errors().count(),
        "warnings": checked.problems.warnings().count(),
        "findings": checked.problems.0.iter().map(finding).collect::<Vec<_>>(),
        "summary": checked.summary,
    });
    if let Some(report) = &checked.live {
        answer["hosts"] = report.hosts.iter().map(HostSeen::json).collect();
        answer["domains"] = report
            .domains
            .iter()
            .map(|domain| {
                let facts = domain.facts.iter().map(|(kind, text)| json!({"record": kind, "text": text}));
                json!({"name": domain.name, "facts": facts.collect::<Vec<_>>()})
            })
            .collect();
    }
    format!("{answer}\n")
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
            let checked = check(&path, &Args { live: false, other_side: None, json: false }, Timestamp::now());
            let Checked { problems, summary, .. } = &checked;
            assert_eq!(summary, expected, "{problems}");
            assert_eq!(status(problems), expected_status, "{problems}");
            let found: Vec<_> = problems.0.iter().map(|problem| problem.severity.to_string()).collect();
            assert_eq!(found.join(" "), severities, "{problems}");
            assert!(show::plain(&checked).ends_with(&format!("{summary}\n")));

            let answer: serde_json::Value = serde_json::from_str(&json(&checked)).expect("JSON");
            assert_eq!(answer["findings"].as_array().map(Vec::len), Some(problems.0.len()));
            assert_eq!(answer["errors"], problems.errors().count());
            assert_eq!(answer["summary"], *summary);
        }
    }

    #[test]
    fn faulty_recipients_are_told_with_file_and_line() {
        let folder = TempDir::new().expect("a folder for the test");
        let path = folder.path().join("causeway.toml");
        let recipients = folder.path().join("recipients.csv");
        fs::write(&path, GOOD).expect("the test's own file");
        fs::write(&recipients, format!("{RECIPIENTS}{}", "nobody,cloud,\n".repeat(30))).expect("the test's own file");
        let problems = read(&path, Timestamp::now()).problems;
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
            let Checked { problems, .. } =
                check(&path, &Args { live: false, other_side: None, json: false }, Timestamp::now());
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
        let args = Args { live: false, other_side: None, json: false };
        let checked = check(Path::new("/nowhere/causeway.toml"), &args, Timestamp::now());
        assert_eq!(checked.summary, "1 error");
        assert_eq!(status(&checked.problems), 2);
        assert!(show::plain(&checked).starts_with("error: /nowhere/causeway.toml: cannot be read"));
    }
}
