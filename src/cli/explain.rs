//! A message's routes and reasons, without a daemon: asks the rules that the daemon asks, and prints their words.
//!
//! Nothing is sent and nothing is looked up but the directory's files, so the answer is the same at any hour. First
//! which receive connector the message comes in by and what it is held to be (`door`), then recipient by recipient what
//! was found, what decided and what lost, the next hop and what it must prove, then the copies. `--json` has the same
//! words. `--against` asks a second configuration or another version of the directory, and says what differs
//! (`against`).
//!
//! Not here: the answer (`route::explain`).

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use self::against::{Comparison, View, Who};
use super::WRONG;
use super::page::{self, Folding};
use crate::config::{self, Config, DirectorySource, Origin, Problems};
use crate::directory::{self, Directory, LoadOutcome, Report};
use crate::message::Address;
use crate::route::explain::{
    Comer, Coming, Explanation, Sender, next_hop, origin, recipients, sender, size, tls_words,
};
use crate::route::{Reason, Resolution, Routed};

mod against;

/// What is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 every recipient would be taken, or with --against nothing differs; 1 one would be refused, or something \
differs; 2 the question or a configuration is wrong.

  explain --from erin@fabrikam.com --to julie@contoso.com --client 203.0.113.9
  explain --to julie@contoso.com                      a report, from <>, by the Internet
  explain --to julie@contoso.com --against new.toml   one by another configuration
  explain --recipients list.csv --against new.toml    many
  explain --against tomorrow.csv                      whose mail moves tomorrow")]
pub struct Args {
    /// The sender, as in MAIL FROM; "" or "<>", which it is unless said otherwise, for a report
    #[arg(long, value_name = "A")]
    from: Option<String>,
    /// A recipient, as in RCPT TO; may be repeated. With --against and neither --to nor --recipients: everybody in the
    /// directories
    #[arg(long, value_name = "B", required_unless_present = "against", conflicts_with = "recipients")]
    to: Vec<String>,
    /// It comes in by the first receive connector of this origin: internet (unless said otherwise), on-premises, cloud,
    /// partner or client
    #[arg(long, value_name = "O", value_parser = origin, conflicts_with = "client")]
    origin: Option<Origin>,
    /// It comes in from this address
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// The client presents a certificate with this name, and it verifies
    #[arg(long, value_name = "N")]
    tls_name: Option<String>,
    /// The size that MAIL declares, such as 20MiB, or bytes
    #[arg(long, value_name = "S", value_parser = size)]
    size: Option<u64>,
    /// One JSON object rather than text
    #[arg(long)]
    json: bool,
    /// Explain by a second configuration too, and say what differs. A file that ends in .csv is another version of the
    /// directory, under the same configuration
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Everybody in this file, one address a line or the first column of a CSV: counts and lists those whose route changes
    #[arg(long, value_name = "FILE", requires = "against")]
    recipients: Option<PathBuf>,
}

impl Args {
    fn sender(&self, config: &Config) -> Result<Option<Address>, String> {
        let Sender(from) = sender(self.from.as_deref().unwrap_or_default(), config)?;
        Ok(from)
    }

    fn comer(&self) -> Comer<'_> {
        Comer { origin: self.origin, client: self.client, tls_name: self.tls_name.as_deref() }
    }
}

/// Why there is no answer.
enum Wrong {
    /// The configuration cannot be used.
    Problems(Problems),
    /// The question cannot be answered.
    Question(String),
}

impl From<String> for Wrong {
    fn from(why: String) -> Self {
        Self::Question(why)
    }
}

/// Prints what would happen. Exit status: 0 every recipient would be taken, or nothing differs; 1 one would not, or
/// something does; 2 the question or the configuration is wrong.
pub fn run(path: &Path, args: &Args) -> ExitCode {
    let mut out = Folding::new(io::BufWriter::new(anstream::stdout()), page::columns());
    let answered = match &args.against {
        None => explain(path, args, &mut out),
        Some(against) => compare(path, against, args, &mut out),
    };
    let yes = match answered {
        Ok(yes) => yes,
        Err(Wrong::Problems(problems)) => {
            eprint!("{problems}");
            return wrong("the configuration cannot be used");
        }
        Err(Wrong::Question(why)) => return wrong(&why),
    };
    match yes.and_then(|yes| out.flush().map(|()| yes)) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("causeway: {error}");
            ExitCode::FAILURE
        }
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// One message by one configuration. True: all of it would be taken.
fn explain(path: &Path, args: &Args, out: &mut impl Write) -> Result<io::Result<bool>, Wrong> {
    let config = config::load(path).map_err(Wrong::Problems)?;
    let from = args.sender(&config)?;
    let recipients = recipients(&args.to, &config)?;
    let coming = match Coming::of(&config, args.comer()) {
        Ok(coming) => coming,
        // An address that no connector takes is turned away; an origin that none has is no question.
        Err(why) if args.origin.is_some_and(|origin| has_no(origin, &config)) => return Err(Wrong::Question(why)),
        Err(why) => {
            eprintln!("causeway: {why}");
            return Ok(Ok(false));
        }
    };
    let (directory, reports) = Directory::load(&config.directories);
    tell(&reports);
    let explanation = Explanation::of(&config, &directory, coming, from.as_ref(), &recipients, args.size);
    let written = if args.json {
        writeln!(out, "{:#}", explanation.json())
    } else {
        let is_said = args.from.is_some();
        let unsaid = if is_said { Ok(()) } else { writeln!(out, "without --from it is explained as a report") };
        unsaid.and_then(|()| write(&explanation, out))
    };
    Ok(written.map(|()| explanation.all_taken()))
}

fn has_no(origin: Origin, config: &Config) -> bool {
    config.receive_connectors.iter().all(|connector| connector.origin != origin)
}

/// The same question to two. True: nothing differs.
fn compare(path: &Path, against: &Path, args: &Args, out: &mut impl Write) -> Result<io::Result<bool>, Wrong> {
    let config = config::load(path).map_err(Wrong::Problems)?;
    let is_directory = against.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let other = if is_directory {
        Config { directories: replaced(&config.directories, against)?, ..config.clone() }
    } else {
        config::load(against).map_err(Wrong::Problems)?
    };
    let (directory, reports) = Directory::load(&config.directories);
    tell(&reports);
    // What both have in common is read once.
    let (other_directory, reports) = directory.reload(&other.directories);
    if is_directory
        && let Some(refused) = reports.iter().find(|report| matches!(report.outcome, LoadOutcome::Refused { .. }))
    {
        return Err(Wrong::Question(refused.to_string()));
    }
    tell(&reports);

    let from = args.sender(&config)?;
    let view = |config, directory, file: &Path| View {
        file: file.display().to_string(),
        config,
        directory,
        coming: Coming::of(config, args.comer()),
    };
    let here = view(&config, &directory, path);
    let there = view(&other, &other_directory, against);
    let comparison = Comparison { here, there, from: from.as_ref(), size: args.size };

    if !args.to.is_empty() {
        let to = (recipients(&args.to, &config)?, recipients(&args.to, &other)?);
        return Ok(comparison.of_few(&to.0, &to.1, args.json, out));
    }
    let who = match &args.recipients {
        Some(file) => {
            let listed = directory::file::list(file).map_err(|error| format!("{}: {error}", file.display()))?;
            for fault in &listed.faults {
                eprintln!("causeway: {}:{}: {}; the line is skipped", file.display(), fault.line, fault.text);
            }
            if listed.unlisted > 0 {
                eprintln!("causeway: {}: {} more lines are faulty and skipped", file.display(), listed.unlisted);
            }
            if listed.addresses.is_empty() {
                return Err(Wrong::Question(format!("{}: there is no address in it", file.display())));
            }
            Who::Listed(listed.addresses)
        }
        None => Who::Everybody,
    };
    Ok(comparison.of_many(who, args.json, out))
}

/// The directory's sources with one replaced by `file`: the only one, or the one whose file has this name.
fn replaced(sources: &[DirectorySource], file: &Path) -> Result<Vec<DirectorySource>, String> {
    let new = DirectorySource { name: file.display().to_string().into(), path: file.to_owned() };
    if sources.len() <= 1 {
        return Ok(vec![new]);
    }
    let mut sources = sources.to_vec();
    match sources.iter_mut().find(|source| source.path.file_name() == file.file_name()) {
        Some(source) => *source = new,
        None => {
            let names: Vec<_> = sources.iter().map(|source| &*source.name).collect();
            return Err(format!(
                "the configuration has {} directories; call {} as the one that it is another version of: {}",
                names.len(),
                file.display(),
                names.join(", ")
            ));
        }
    }
    Ok(sources)
}

/// What of the directory cannot be used.
fn tell(reports: &[Report]) {
    for report in reports {
        match &report.outcome {
            LoadOutcome::Refused { .. } => eprintln!("causeway: {report}"),
            LoadOutcome::Loaded { faults, unlisted, .. } if !faults.is_empty() => {
                let lines = match faults.len() + unlisted {
                    1 => "1 faulty line is".to_owned(),
                    many => format!("{many} faulty lines are"),
                };
                eprintln!("causeway: {}: {lines} skipped; `causeway check` lists them", report.source);
            }
            LoadOutcome::Loaded { .. } | LoadOutcome::Unchanged => {}
        }
    }
}

fn wrong(why: &str) -> ExitCode {
    eprintln!("causeway: {why}");
    ExitCode::from(WRONG)
}

/// For a person.
fn write(explanation: &Explanation<'_>, out: &mut impl Write) -> io::Result<()> {
    let from = explanation.from.map(ToString::to_string).unwrap_or_default();
    writeln!(out, "{BOLD}from <{from}>{BOLD:#}")?;
    for words in &explanation.coming.words {
        writeln!(out, "    {words}")?;
    }
    if let Some(reply) = &explanation.refused {
        return writeln!(out, "    {RED}refused at MAIL: {reply}{RED:#}");
    }
    for (to, resolution) in &explanation.recipients {
        writeln!(out, "\n{BOLD}{to}{BOLD:#}")?;
        match resolution {
            Ok(resolution) => write_taken(explanation.config, out, resolution)?,
            Err(refusal) => {
                write_reasons(out, &refusal.because, &[])?;
                writeln!(out, "    {RED}refused: {refusal}{RED:#}")?;
                if let Some((reply, grace)) = explanation.at_first(refusal) {
                    let grace = as_written(grace);
                    writeln!(out, "    {RED}RCPT gets {reply}{RED:#}")?;
                    writeln!(out, "    that for {grace} after the first such message (disagreement_grace), then:")?;
                }
                writeln!(out, "    {RED}RCPT gets {}{RED:#}", refusal.to_reply())?;
            }
        }
    }
    let copies = explanation.copies();
    match copies.len() {
        0 => return Ok(()),
        1 => writeln!(out, "\n{BOLD}1 copy{BOLD:#}")?,
        many => writeln!(out, "\n{BOLD}{many} copies{BOLD:#}")?,
    }
    for (number, copy) in copies.iter().enumerate() {
        let connector = explanation.config.send_connector(&copy.via);
        writeln!(out, "    {}. {}, {}", number + 1, copy.via, next_hop(connector, &copy.hop))?;
        for one in &copy.recipients {
            writeln!(out, "       RCPT TO:<{}>", one.recipient.address)?;
        }
    }
    Ok(())
}

fn write_taken(config: &Config, out: &mut impl Write, resolution: &Resolution) -> io::Result<()> {
    let mut last: &[Reason] = &[];
    for Routed { route, .. } in &resolution.routed {
        let connector = config.send_connector(&route.via);
        write_reasons(out, &route.because, last)?;
        last = &route.because;
        writeln!(out, "    {GREEN}-> {}, {}{GREEN:#}", route.via, next_hop(connector, &route.hop))?;
        writeln!(out, "       as {}", route.to)?;
        writeln!(out, "       TLS: {}", tls_words(connector, &route.hop))?;
    }
    for failed in &resolution.failed {
        write_reasons(out, &failed.refusal.because, last)?;
        last = &failed.refusal.because;
        let (code, status) = failed.refusal.status();
        writeln!(out, "    {RED}not to {}: {code} {status} {}{RED:#}", failed.address, failed.refusal)?;
    }
    Ok(())
}

const BOLD: anstyle::Style = anstyle::Style::new().bold();
const GREEN: anstyle::Style = anstyle::AnsiColor::Green.on_default();
const RED: anstyle::Style = anstyle::AnsiColor::Red.on_default();

/// Those of `because` that were not said just before: the members of a group share the way to it.
fn write_reasons(out: &mut impl Write, because: &[Reason], last: &[Reason]) -> io::Result<()> {
    let shared = because.iter().zip(last).take_while(|(one, other)| one == other).count();
    because[shared..].iter().try_for_each(|reason| writeln!(out, "    {reason}"))
}

/// A time as the configuration has it: `1h`, `90s`.
fn as_written(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let fitting = units.into_iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
    fitting.map_or_else(|| format!("{time:?}"), |(unit, word)| format!("{}{word}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::route::explain::recipient;
    use crate::route::world::World;

    fn explain(world: &World, from: &str, to: &[&str], size: Option<u64>) -> (String, Value, bool) {
        let Sender(from) = sender(from, &world.config).unwrap();
        let to: Vec<_> = to.iter().map(|to| recipient(to, &world.config).unwrap()).collect();
        let origin = world.config.receive_connectors[0].origin;
        let coming = Coming::of(&world.config, Comer { origin: Some(origin), ..Comer::default() }).unwrap();
        let explanation = Explanation::of(&world.config, &world.directory(), coming, from.as_ref(), &to, size);
        let mut text = anstream::StripStream::new(Vec::new());
        write(&explanation, &mut text).unwrap();
        (String::from_utf8(text.into_inner()).unwrap(), explanation.json(), explanation.all_taken())
    }

    fn world() -> World {
        World::on_premises()
            .mailbox("anna@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .group("team@contoso.com", "anna@contoso.com david@contoso.com nobody@contoso.com")
            .forward("old@contoso.com", "eve@fabrikam.com")
    }

    #[test]
    fn two_mailboxes_two_copies_and_a_stranger_refused() {
        let to = ["anna@contoso.com", "<David@contoso.com>", "eve@fabrikam.com"];
        let (text, json, all_taken) = explain(&world(), "erin@fabrikam.com", &to, None);
        assert_eq!(
            text,
            "\
from <erin@fabrikam.com>
    comes in by receive connector \"door\", origin internet
    internal: no, receive connector \"door\" does not have internal = true
    connector \"door\": matched
    certificate: not asked
    name: not asked
    originator_org: not asked

anna@contoso.com
    found in recipients.csv: on-premises mailbox
    side on-premises, from the Internet, on-premises mailbox: hybrid.on_premises
    -> to-on-premises, mail.inside.contoso.com:25
       as anna@contoso.com
       TLS: if offered, with any certificate; else in the clear

David@contoso.com
    found in recipients.csv: cloud mailbox
    rewritten to David@contoso.mail.onmicrosoft.com
    side on-premises, from the Internet, cloud mailbox: hybrid.cloud
    -> to-cloud, contoso-com.mail.protection.outlook.com:25
       as David@contoso.mail.onmicrosoft.com
       TLS: if offered, with any certificate; else in the clear

eve@fabrikam.com
    fabrikam.com is not an accepted domain, and receive connector door may not relay
    refused: unable to relay
    RCPT gets 550 5.7.1 Unable to relay

2 copies
    1. to-on-premises, mail.inside.contoso.com:25
       RCPT TO:<anna@contoso.com>
    2. to-cloud, contoso-com.mail.protection.outlook.com:25
       RCPT TO:<David@contoso.mail.onmicrosoft.com>
"
        );
        assert!(!all_taken);
        // The same words in JSON.
        let strings = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|value| format!("    {}\n", value.as_str().unwrap())).collect()
        };
        assert!(text.contains(&strings(&json["recipients"][1]["routes"][0]["because"]).concat()));
        assert!(text.contains(&strings(&json["recipients"][2]["because"]).concat()));
        assert_eq!(json["recipients"][2]["refused"]["reply"], "550 5.7.1 Unable to relay");
        assert_eq!(json["recipients"][1]["routes"][0]["as"], "David@contoso.mail.onmicrosoft.com");
        assert_eq!(json["copies"][1]["hop"], "contoso-com.mail.protection.outlook.com:25");
        assert_eq!(json["copies"][1]["recipients"][0], "David@contoso.mail.onmicrosoft.com");
        assert_eq!(json["copies"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_disagreement_says_what_comes_first_and_what_then() {
        let world = World::cloud().origin("on-premises").mailbox("julie@contoso.com");
        let (text, json, all_taken) = explain(&world, "", &["julie@contoso.com"], None);
        let is = "<julie@contoso.com>: the on-premises side sent this here, but recipients.csv (here, cloud) has it as an \
                  on-premises mailbox;";
        assert_eq!(
            text.replace(['\n'], "|").split_once("julie@contoso.com|").unwrap().1,
            format!(
                "    found in recipients.csv: on-premises mailbox|    \
                 side cloud, from on-premises, on-premises mailbox, though it was sent here from there: none|    \
                 refused: the on-premises side sent it here, but recipients.csv (here, cloud) has julie@contoso.com as an \
                 on-premises mailbox; mend one of the two directories|    \
                 RCPT gets 451 4.4.6 {is} it may be moving, try again; if it is not, mend one of the two directories|    \
                 that for 1h after the first such message (disagreement_grace), then:|    \
                 RCPT gets 550 5.4.6 {is} mend one of the two directories|"
            )
        );
        assert!(!all_taken);
        let refused = &json["recipients"][0]["refused"];
        assert!(refused["reply"].as_str().unwrap().starts_with("550 5.4.6"), "{refused}");
        assert!(refused["at_first"]["reply"].as_str().unwrap().starts_with("451 4.4.6"), "{refused}");
        assert_eq!(refused["at_first"]["seconds"], 3600);
    }

    #[test]
    fn a_group_says_once_how_it_was_found_and_who_is_not_reached() {
        let (text, json, all_taken) = explain(&world(), "<>", &["team@contoso.com"], None);
        assert_eq!(text.matches("group of 3").count(), 1, "{text}");
        assert!(text.contains("    not to nobody@contoso.com: 550 5.1.1 no such recipient\n"), "{text}");
        assert!(text.starts_with("from <>\n    comes in by"), "{text}");
        assert!(all_taken);
        assert_eq!(json["recipients"][0]["failed"][0]["address"], "nobody@contoso.com");
        assert_eq!(json["copies"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_next_hop_by_mx_and_what_lost() {
        let world = world().connector("to-partner", &["fabrikam.com;7"]);
        let (text, ..) = explain(&world, "", &["old@contoso.com", "postmaster"], None);
        assert!(
            text.contains(
                "    eve@fabrikam.com: address space fabrikam.com: to-partner (cost 7); lost: to-internet by * (less specific)\n"
            )
        );
        assert!(
            text.contains("    -> to-partner, the MX of fabrikam.com, port 25\n       as eve@fabrikam.com"),
            "{text}"
        );
        assert!(text.contains("\npostmaster@mail.contoso.com\n    postmaster is always accepted, here as"), "{text}");
    }

    #[test]
    fn a_size_too_big_for_the_door_ends_at_mail_and_for_a_connector_at_rcpt() {
        let world = world().limit("to-cloud", 1000);
        let (text, _, all_taken) = explain(&world, "", &["david@contoso.com", "anna@contoso.com"], Some(2000));
        assert!(
            text.contains("    refused: send connector to-cloud takes at most 1000 bytes\n    RCPT gets 552 5.3.4"),
            "{text}"
        );
        assert!(text.contains("1 copy"), "{text}");
        assert!(!all_taken);
        let (text, json, all_taken) = explain(&world, "", &["anna@contoso.com"], Some(1 << 40));
        assert!(text.contains("    refused at MAIL: 552 5.3.4"), "{text}");
        assert_eq!(json["recipients"].as_array().unwrap().len(), 0);
        assert!(!all_taken);
    }
}
