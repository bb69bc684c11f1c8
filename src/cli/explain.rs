//! A message's routes and reasons, without a daemon: asks the rules that the daemon asks, and prints their words.
//!
//! Nothing is sent and nothing is looked up but the directory's files, so the answer is the same at any hour. First
//! which receive connector the message comes in by and what it is held to be (`door`), then recipient by recipient what
//! was found, what decided and what lost, the next hop and what it must prove, then the copies. `--json` has the same
//! words. `--against` asks a second configuration or another version of the directory, and says what differs
//! (`against`).
//!
//! Not here: the rules (`route`).

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::against::{Comparison, View, Who};
use self::door::{comes_in, door};
use super::WRONG;
use super::page::{self, Folding};
use crate::config::{self, Config, DirectorySource, Hops, Level, Origin, Problems, ReceiveConnector, SendConnector};
use crate::directory::{self, Directory, LoadOutcome, Lookup, Report};
use crate::message::{Address, Domain, Notify, Recipient};
use crate::route::{Asking, Disagreements, Hop, Reason, Refusal, Resolution, Routed, Rules, plan};
use crate::smtp::Reply;

mod against;
mod door;

/// What is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 every recipient would be taken, or with --against nothing differs; 1 one would be refused, or something \
differs; 2 the question or a configuration is wrong.

  explain --from erin@fabrikam.com --to julie@contoso.com --client 203.0.113.9
  explain --to julie@contoso.com --against new.toml   one by another configuration
  explain --recipients list.csv --against new.toml    many
  explain --against tomorrow.csv                      whose mail moves tomorrow")]
pub struct Args {
    /// The sender, as in MAIL FROM; "" or "<>" for a report
    #[arg(long, value_name = "A", value_parser = sender, required_unless_present = "against")]
    from: Option<Sender>,
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

/// `None` is `<>`.
#[derive(Debug, Clone)]
struct Sender(Option<Address>);

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
    let recipients = recipients(&args.to, &config)?;
    let coming = match Coming::of(&config, args) {
        Ok(coming) => coming,
        Err(why) => {
            eprintln!("causeway: {why}");
            return Ok(Ok(false));
        }
    };
    let (directory, reports) = Directory::load(&config.directories);
    tell(&reports);
    let from = args.from.as_ref().and_then(|sender| sender.0.as_ref());
    let explanation = Explanation::of(&config, &directory, coming, from, &recipients, args.size);
    let written = if args.json { writeln!(out, "{:#}", explanation.json()) } else { explanation.write(out) };
    Ok(written.map(|()| explanation.all_taken()))
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

    let from = args.from.as_ref().and_then(|sender| sender.0.as_ref());
    let view = |config, directory, file: &Path| View {
        file: file.display().to_string(),
        config,
        directory,
        coming: Coming::of(config, args),
    };
    let here = view(&config, &directory, path);
    let there = view(&other, &other_directory, against);
    let comparison = Comparison { here, there, from, size: args.size };

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

/// How a message comes in: by which connector, and what it is then held to be.
struct Coming<'a> {
    door: &'a ReceiveConnector,
    /// In sentences: see [`comes_in`].
    words: Vec<String>,
}

impl<'a> Coming<'a> {
    fn of(config: &'a Config, args: &Args) -> Result<Self, String> {
        let door = door(config, args.origin, args.client, args.tls_name.as_deref())?;
        Ok(Self { door, words: comes_in(config, door, args.client, args.tls_name.as_deref()) })
    }
}

fn wrong(why: &str) -> ExitCode {
    eprintln!("causeway: {why}");
    ExitCode::from(WRONG)
}

fn sender(text: &str) -> Result<Sender, String> {
    match text {
        "" | "<>" => Ok(Sender(None)),
        _ => address(text).map(|address| Sender(Some(address))),
    }
}

fn address(text: &str) -> Result<Address, String> {
    let plain = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
    Address::parse(plain).map_err(|malformed| format!("{text:?} is no address: {malformed}"))
}

fn recipients(to: &[String], config: &Config) -> Result<Vec<Address>, String> {
    to.iter().map(|to| recipient(to, config)).collect()
}

/// `postmaster` may come without a domain, and is then that of this host. RFC 5321 section 4.1.1.3.
fn recipient(text: &str, config: &Config) -> Result<Address, String> {
    let plain = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
    if plain.eq_ignore_ascii_case("postmaster") {
        return Address::new(plain, config.hostname.clone()).map_err(|malformed| malformed.to_string());
    }
    address(text)
}

fn origin(text: &str) -> Result<Origin, String> {
    [Origin::Internet, Origin::OnPremises, Origin::Cloud, Origin::Partner, Origin::Client]
        .into_iter()
        .find(|origin| origin_word(*origin) == text)
        .ok_or_else(|| "expected internet, on-premises, cloud, partner or client".to_owned())
}

/// The interface's word.
pub(super) fn origin_word(origin: Origin) -> &'static str {
    match origin {
        Origin::Internet => "internet",
        Origin::OnPremises => "on-premises",
        Origin::Cloud => "cloud",
        Origin::Partner => "partner",
        Origin::Client => "client",
    }
}

fn size(text: &str) -> Result<u64, String> {
    text.parse().or_else(|_| config::value::size(text))
}

/// What MAIL gets, if it is refused.
fn refused_at_mail(
    rules: Rules<'_>,
    door: &ReceiveConnector,
    from: Option<&Address>,
    size: Option<u64>,
) -> Option<Reply> {
    let too_big = match (size, door.max_message_size) {
        (Some(size), Some(limit)) if size > limit => Some(Reply::message_too_big(limit)),
        _ => None,
    };
    rules.check_sender(door, from).err().or(too_big)
}

fn asking(door: &ReceiveConnector, size: Option<u64>) -> Asking<'_> {
    Asking { origin: door.origin, connector: &door.name, may_relay: door.relay, size }
}

/// What would happen to one message.
struct Explanation<'a> {
    config: &'a Config,
    coming: Coming<'a>,
    from: Option<&'a Address>,
    /// MAIL is refused: no recipient is asked about.
    refused: Option<Reply>,
    recipients: Vec<(&'a Address, Result<Resolution, Refusal>)>,
}

impl<'a> Explanation<'a> {
    fn of(
        config: &'a Config,
        directory: &dyn Lookup,
        coming: Coming<'a>,
        from: Option<&'a Address>,
        to: &'a [Address],
        size: Option<u64>,
    ) -> Self {
        let rules = Rules { config, directory };
        let refused = refused_at_mail(rules, coming.door, from, size);
        let asking = asking(coming.door, size);
        let ask = |to: &'a Address| {
            let recipient = Recipient { address: to.clone(), notify: Notify::Unsaid, orcpt: None };
            (to, rules.expand(&asking, &recipient))
        };
        let recipients = if refused.is_none() { to.iter().map(ask).collect() } else { Vec::new() };
        Self { config, coming, from, refused, recipients }
    }

    fn all_taken(&self) -> bool {
        self.refused.is_none() && self.recipients.iter().all(|(_, resolution)| resolution.is_ok())
    }

    /// What the daemon answers for how long before it answers this refusal: it remembers since when the two premises
    /// disagree, and nobody can say so here.
    fn at_first(&self, refusal: &Refusal) -> Option<(Reply, Duration)> {
        let grace = self.config.hybrid.as_ref()?.disagreement_grace;
        let softened = refusal.clone().within_grace(&mut Disagreements::default(), Instant::now(), grace);
        (softened.is_temporary() && !refusal.is_temporary()).then(|| (softened.to_reply(), grace))
    }

    fn copies(&self) -> Vec<crate::route::HopCopy> {
        let taken = self.recipients.iter().filter_map(|(_, resolution)| resolution.as_ref().ok());
        plan(taken.flat_map(|resolution| resolution.routed.iter().cloned()).collect())
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let from = self.from.map(ToString::to_string).unwrap_or_default();
        writeln!(out, "{BOLD}from <{from}>{BOLD:#}")?;
        for words in &self.coming.words {
            writeln!(out, "    {words}")?;
        }
        if let Some(reply) = &self.refused {
            return writeln!(out, "    {RED}refused at MAIL: {reply}{RED:#}");
        }
        for (to, resolution) in &self.recipients {
            writeln!(out, "\n{BOLD}{to}{BOLD:#}")?;
            match resolution {
                Ok(resolution) => self.write_taken(out, resolution)?,
                Err(refusal) => {
                    write_reasons(out, &refusal.because, &[])?;
                    writeln!(out, "    {RED}refused: {refusal}{RED:#}")?;
                    if let Some((reply, grace)) = self.at_first(refusal) {
                        let grace = as_written(grace);
                        writeln!(out, "    {RED}RCPT gets {reply}{RED:#}")?;
                        writeln!(out, "    that for {grace} after the first such message (disagreement_grace), then:")?;
                    }
                    writeln!(out, "    {RED}RCPT gets {}{RED:#}", refusal.to_reply())?;
                }
            }
        }
        let copies = self.copies();
        match copies.len() {
            0 => return Ok(()),
            1 => writeln!(out, "\n{BOLD}1 copy{BOLD:#}")?,
            many => writeln!(out, "\n{BOLD}{many} copies{BOLD:#}")?,
        }
        for (number, copy) in copies.iter().enumerate() {
            let connector = self.config.send_connector(&copy.via);
            writeln!(out, "    {}. {}, {}", number + 1, copy.via, next_hop(connector, &copy.hop))?;
            for one in &copy.recipients {
                writeln!(out, "       RCPT TO:<{}>", one.recipient.address)?;
            }
        }
        Ok(())
    }

    fn write_taken(&self, out: &mut impl Write, resolution: &Resolution) -> io::Result<()> {
        let mut last: &[Reason] = &[];
        for Routed { route, .. } in &resolution.routed {
            let connector = self.config.send_connector(&route.via);
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

    fn json(&self) -> Value {
        let recipients = self.recipients.iter().map(|(to, resolution)| match resolution {
            Ok(Resolution { routed, failed }) => json!({
                "to": to.to_string(),
                "routes": routed.iter().map(|one| self.route_json(one)).collect::<Vec<_>>(),
                "failed": failed.iter().map(|failed| json!({
                    "address": failed.address.to_string(),
                    "because": reasons(&failed.refusal.because),
                    "refused": refusal_json(&failed.refusal),
                })).collect::<Vec<_>>(),
            }),
            Err(refusal) => json!({
                "to": to.to_string(),
                "because": reasons(&refusal.because),
                "refused": match self.at_first(refusal) {
                    None => refusal_json(refusal),
                    Some((reply, grace)) => json!({
                        "why": refusal.to_string(),
                        "reply": refusal.to_reply().to_string(),
                        "at_first": { "reply": reply.to_string(), "seconds": grace.as_secs() },
                    }),
                },
            }),
        });
        let copies = self.copies();
        let copies = copies.iter().enumerate().map(|(number, copy)| {
            let connector = self.config.send_connector(&copy.via);
            let to = copy.recipients.iter().map(|one| one.recipient.address.to_string());
            json!({
                "number": number + 1,
                "via": copy.via.to_string(),
                "hop": next_hop(connector, &copy.hop),
                "tls": tls_words(connector, &copy.hop),
                "recipients": to.collect::<Vec<_>>(),
            })
        });
        json!({
            "from": self.from.map(ToString::to_string).unwrap_or_default(),
            "connector": self.coming.door.name.to_string(),
            "origin": origin_word(self.coming.door.origin),
            "internal": self.coming.door.internal,
            "comes_in": self.coming.words,
            "refused": self.refused.as_ref().map(ToString::to_string),
            "recipients": recipients.collect::<Vec<_>>(),
            "copies": copies.collect::<Vec<_>>(),
        })
    }

    fn route_json(&self, Routed { route, .. }: &Routed) -> Value {
        let connector = self.config.send_connector(&route.via);
        json!({
            "as": route.to.to_string(),
            "via": route.via.to_string(),
            "hop": next_hop(connector, &route.hop),
            "tls": tls_words(connector, &route.hop),
            "because": reasons(&route.because),
        })
    }
}

const BOLD: anstyle::Style = anstyle::Style::new().bold();
const GREEN: anstyle::Style = anstyle::AnsiColor::Green.on_default();
const RED: anstyle::Style = anstyle::AnsiColor::Red.on_default();

/// Those of `because` that were not said just before: the members of a group share the way to it.
fn write_reasons(out: &mut impl Write, because: &[Reason], last: &[Reason]) -> io::Result<()> {
    let shared = because.iter().zip(last).take_while(|(one, other)| one == other).count();
    because[shared..].iter().try_for_each(|reason| writeln!(out, "    {reason}"))
}

fn reasons(because: &[Reason]) -> Vec<String> {
    because.iter().map(ToString::to_string).collect()
}

/// A time as the configuration has it: `1h`, `90s`.
fn as_written(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let fitting = units.into_iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
    fitting.map_or_else(|| format!("{time:?}"), |(unit, word)| format!("{}{word}", seconds / unit))
}

fn refusal_json(refusal: &Refusal) -> Value {
    json!({ "why": refusal.to_string(), "reply": refusal.to_reply().to_string() })
}

/// `contoso-com.mail.protection.outlook.com:25`, or `the MX of fabrikam.com, port 25`.
pub(super) fn next_hop(connector: Option<&Arc<SendConnector>>, hop: &Hop) -> String {
    let Some(connector) = connector else { return hop.to_string() };
    match (hop, &connector.hops) {
        (Hop::SmartHosts, Hops::SmartHosts(hosts)) => {
            let mut hosts: Vec<_> = hosts.iter().collect();
            hosts.sort_by_key(|host| host.preference);
            let shown = hosts.iter().map(|host| format!("{}:{}", host.host, host.port.unwrap_or(connector.port)));
            shown.collect::<Vec<_>>().join(", ")
        }
        (Hop::Mx(domain), _) if domain.literal().is_some() => format!("{domain}, port {}", connector.port),
        (Hop::Mx(_) | Hop::SmartHosts, _) => format!("{hop}, port {}", connector.port),
    }
}

/// What the next hop must prove.
fn tls_words(connector: Option<&Arc<SendConnector>>, hop: &Hop) -> String {
    let Some(connector) = connector else { return "unknown".to_owned() };
    let domain = match hop {
        Hop::Mx(domain) => Some(domain),
        Hop::SmartHosts => None,
    };
    match &connector.tls {
        Level::Off => "not used".to_owned(),
        Level::Opportunistic => "if offered, with any certificate; else in the clear".to_owned(),
        Level::Encrypt => "demanded, with any certificate".to_owned(),
        Level::Certificate(_) => "demanded, with a certificate that chains to the roots".to_owned(),
        Level::Domain(_, Some(names)) => {
            format!("demanded, with a certificate that chains to the roots and carries {names}")
        }
        Level::Domain(_, None) => format!(
            "demanded, with a certificate that chains to the roots and carries the name of the MX host or {}",
            domain.map_or("the domain", Domain::as_str)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::door::tests::doors;
    use super::*;
    use crate::route::world::{World, address};

    fn explain(world: &World, from: &str, to: &[&str], size: Option<u64>) -> (String, Value, bool) {
        let Sender(from) = sender(from).unwrap();
        let to: Vec<_> = to.iter().map(|to| recipient(to, &world.config).unwrap()).collect();
        let door = &world.config.receive_connectors[0];
        let coming = Coming { door, words: comes_in(&world.config, door, None, None) };
        let explanation = Explanation::of(&world.config, &world.directory(), coming, from.as_ref(), &to, size);
        let mut text = anstream::StripStream::new(Vec::new());
        explanation.write(&mut text).unwrap();
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
    internal: no, by connector
    connector \"door\": true
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

    #[test]
    fn a_partner_comes_its_own_way_only() {
        let config = doors();
        for (ip, from, expected) in [
            ("198.51.100.1", "eve@fabrikam.com", None),
            ("198.51.100.1", "eve@a.fabrikam.example", None),
            ("198.51.100.1", "", None),
            ("198.51.100.1", "eve@example.org", Some("550 5.7.1")),
            ("203.0.113.9", "eve@fabrikam.com", Some("550 5.7.1")),
            ("203.0.113.9", "eve@example.org", None),
            ("10.1.0.1", "eve@fabrikam.example", Some("550 5.7.1")),
        ] {
            let Sender(from_address) = sender(from).unwrap();
            let door = door(&config, None, Some(ip.parse().unwrap()), None).unwrap();
            let to = [address("anna@contoso.com")];
            let coming = Coming { door, words: Vec::new() };
            let explanation = Explanation::of(&config, &Directory::default(), coming, from_address.as_ref(), &to, None);
            let refused = explanation.refused.as_ref().map(|reply| reply.to_string()[..9].to_owned());
            assert_eq!(refused.as_deref(), expected, "{ip} {from}");
            assert_eq!(explanation.all_taken(), expected.is_none(), "{ip} {from}");
        }
    }

    #[test]
    fn the_demand_on_the_next_hop_in_words() {
        let config = doors();
        let out = &config.send_connectors[0];
        let mx = Hop::Mx(Domain::parse("fabrikam.com").unwrap());
        let cloud = config.receive_connectors[1].clone();
        let (roots, names) = (cloud.client_roots.clone().unwrap(), cloud.tls_domain.clone());
        let chained = "demanded, with a certificate that chains to the roots";
        for (tls, expected) in [
            (Level::Off, "not used".to_owned()),
            (Level::Opportunistic, "if offered, with any certificate; else in the clear".to_owned()),
            (Level::Encrypt, "demanded, with any certificate".to_owned()),
            (Level::Certificate(roots.clone()), chained.to_owned()),
            (
                Level::Domain(roots.clone(), names),
                format!("{chained} and carries mail.protection.outlook.com or *.cloud.example"),
            ),
            (Level::Domain(roots, None), format!("{chained} and carries the name of the MX host or fabrikam.com")),
        ] {
            let text = "hostname = \"mail.contoso.com\"\n[spool]\npath = \"spool\"\n[[accepted_domain]]\nname = \"a.example\"\n\
                 type = \"external-relay\"\n[[receive_connector]]\nname = \"in\"\nlisten = [\"192.0.2.25:25\"]\n\
                 origin = \"internet\"\ntls = \"off\"\n[[send_connector]]\nname = \"out\"\naddress_spaces = [\"*\"]\ntls = \"off\"\n";
            let mut config = config::parse(text, Path::new("causeway.toml")).unwrap();
            Arc::get_mut(&mut config.send_connectors[0]).unwrap().tls = tls;
            assert_eq!(tls_words(config.send_connectors.first(), &mx), expected);
        }
        assert_eq!(next_hop(Some(out), &mx), "the MX of fabrikam.com, port 25");
        assert_eq!(next_hop(Some(out), &Hop::Mx(Domain::parse("[192.0.2.1]").unwrap())), "[192.0.2.1], port 25");
    }
}
