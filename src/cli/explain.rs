//! A message's routes and reasons, without a daemon: asks the rules that the daemon asks, and prints their words.
//!
//! Nothing is sent and nothing is looked up but the directory's files, so the answer is the same at any hour. First
//! which receive connector the message comes in by, then recipient by recipient what was found, what decided and what
//! lost, the next hop and what it must prove, then the copies. `--json` has the same words.
//!
//! Not here: the rules (`route`), the choice of a connector for a real connection (`accept::attribute`), which needs
//! a certificate; here one is only spoken of.
//!
//! Not yet: `--against` and `--recipients`, which compare two configurations.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};

use super::WRONG;
use crate::config::{self, Config, Hops, Level, Origin, ReceiveConnector, SendConnector};
use crate::directory::{Directory, LoadOutcome, Lookup};
use crate::message::{Address, Domain, Notify, Recipient};
use crate::route::{Asking, Hop, Reason, Refusal, Resolution, Routed, Rules, plan};
use crate::smtp::Reply;

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The sender, as in MAIL FROM; "" or "<>" for a report
    #[arg(long, value_name = "A", value_parser = sender, required_unless_present = "recipients")]
    from: Option<Sender>,
    /// A recipient, as in RCPT TO; may be repeated
    #[arg(long, value_name = "B", required_unless_present = "recipients")]
    to: Vec<String>,
    /// It comes in by the first receive connector of this origin: internet, on-premises, cloud, partner or client
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
    /// Explain by a second configuration too (not in this version)
    #[arg(long, value_name = "FILE", hide = true)]
    against: Option<PathBuf>,
    /// Every recipient of a file (not in this version)
    #[arg(long, value_name = "FILE", hide = true)]
    recipients: Option<PathBuf>,
}

/// `None` is `<>`.
#[derive(Debug, Clone)]
struct Sender(Option<Address>);

/// Prints what would happen. Exit status: 0 every recipient would be taken, 1 one would not, 2 the question or the
/// configuration is wrong.
pub fn run(path: &Path, args: &Args) -> ExitCode {
    for (option, given) in [("--against", &args.against), ("--recipients", &args.recipients)] {
        if given.is_some() {
            return wrong(&format!("explain {option} is not supported in this version"));
        }
    }
    let config = match config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            eprint!("{problems}");
            return wrong("the configuration cannot be used");
        }
    };
    let recipients: Result<Vec<_>, _> = args.to.iter().map(|to| recipient(to, &config)).collect();
    let recipients = match recipients {
        Ok(recipients) => recipients,
        Err(why) => return wrong(&why),
    };
    let door = match door(&config, args.origin, args.client, args.tls_name.as_deref()) {
        Ok(door) => door,
        Err(why) => {
            eprintln!("causeway: {why}");
            return ExitCode::FAILURE;
        }
    };
    let (directory, reports) = Directory::load(&config.directories);
    for report in &reports {
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
    let from = args.from.as_ref().and_then(|sender| sender.0.as_ref());
    let explanation = Explanation::of(&config, &directory, door, from, &recipients, args.size);
    let written = if args.json {
        writeln!(anstream::stdout(), "{:#}", explanation.json())
    } else {
        explanation.write(&mut anstream::stdout())
    };
    match written {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("causeway: {error}");
            ExitCode::FAILURE
        }
        _ if explanation.all_taken() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
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

/// The receive connector that such a message comes in by.
///
/// As for real connections the most specific `remote_ips` wins, then whoever asks for the certificate that is there.
/// The listen addresses are not asked about: a message that can come in by one of them can come in.
fn door<'a>(
    config: &'a Config,
    origin: Option<Origin>,
    client: Option<IpAddr>,
    tls_name: Option<&str>,
) -> Result<&'a Arc<ReceiveConnector>, String> {
    let proved = |connector: &ReceiveConnector| match (&connector.tls_domain, tls_name) {
        (Some(names), Some(name)) => names.carried_by(name).is_some(),
        (Some(_), None) | (None, _) => false,
    };
    let connectors = || config.receive_connectors.iter();
    if let Some(ip) = client.map(|ip| ip.to_canonical()) {
        let specificity = |connector: &ReceiveConnector| {
            connector
                .remote_ips
                .iter()
                .filter(|network| network.contains(&ip))
                .map(|network| network.prefix_len())
                .max()
        };
        let takes = || connectors().filter_map(|one| specificity(one).map(|specificity| (specificity, one)));
        // `max_by_key` gives the last of equals; the first in the file holds.
        let open = takes().filter(|(_, one)| one.tls_domain.is_none() || proved(one)).rev();
        if let Some((_, connector)) = open.max_by_key(|(specificity, one)| (*specificity, proved(one))) {
            return Ok(connector);
        }
        return Err(match takes().rev().max_by_key(|(specificity, _)| *specificity) {
            None => format!("no receive connector takes {ip}: the connection gets 554 5.7.1"),
            Some((_, connector)) => {
                let names = connector.tls_domain.as_ref().map(ToString::to_string).unwrap_or_default();
                format!(
                    "{ip} can come in only by receive connector {}, which asks for a certificate for {names} (--tls-name): \
                     MAIL FROM gets 550 5.7.1",
                    connector.name
                )
            }
        });
    }
    if origin.is_none()
        && let Some(name) = tls_name
    {
        return connectors()
            .find(|connector| proved(connector))
            .ok_or_else(|| format!("no receive connector has a tls_domain that a certificate for {name:?} carries"));
    }
    let origin = origin.unwrap_or(Origin::Internet);
    let of_origin = || connectors().filter(|connector| connector.origin == origin);
    // Without a word on certificates the connector's own demand is taken as met.
    of_origin()
        .find(|connector| proved(connector))
        .or_else(|| of_origin().find(|connector| tls_name.is_none() || connector.tls_domain.is_none()))
        .ok_or_else(|| match tls_name {
            Some(name) if of_origin().next().is_some() => {
                let origin = origin_word(origin);
                format!("no receive connector of origin \"{origin}\" takes a client with a certificate for {name:?}")
            }
            _ => format!("no receive connector has the origin \"{}\"", origin_word(origin)),
        })
}

/// What would happen to one message.
struct Explanation<'a> {
    config: &'a Config,
    door: &'a ReceiveConnector,
    from: Option<&'a Address>,
    /// MAIL is refused: no recipient is asked about.
    refused: Option<Reply>,
    recipients: Vec<(&'a Address, Result<Resolution, Refusal>)>,
}

impl<'a> Explanation<'a> {
    fn of(
        config: &'a Config,
        directory: &dyn Lookup,
        door: &'a ReceiveConnector,
        from: Option<&'a Address>,
        to: &'a [Address],
        size: Option<u64>,
    ) -> Self {
        let rules = Rules { config, directory };
        let too_big = match (size, door.max_message_size) {
            (Some(size), Some(limit)) if size > limit => Some(Reply::message_too_big(limit)),
            _ => None,
        };
        let refused = rules.check_sender(door, from).err().or(too_big);
        let asking = Asking { origin: door.origin, connector: &door.name, may_relay: door.relay, size };
        let ask = |to: &'a Address| {
            let recipient = Recipient { address: to.clone(), notify: Notify::Unsaid, orcpt: None };
            (to, rules.expand(&asking, &recipient))
        };
        let recipients = if refused.is_none() { to.iter().map(ask).collect() } else { Vec::new() };
        Self { config, door, from, refused, recipients }
    }

    fn all_taken(&self) -> bool {
        self.refused.is_none() && self.recipients.iter().all(|(_, resolution)| resolution.is_ok())
    }

    fn copies(&self) -> Vec<crate::route::HopCopy> {
        let taken = self.recipients.iter().filter_map(|(_, resolution)| resolution.as_ref().ok());
        plan(taken.flat_map(|resolution| resolution.routed.iter().cloned()).collect())
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let from = self.from.map(ToString::to_string).unwrap_or_default();
        let origin = origin_word(self.door.origin);
        writeln!(out, "{BOLD}from <{from}>{BOLD:#} by receive connector {}, origin {origin}", self.door.name)?;
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
            writeln!(out, "       as {}; TLS: {}", route.to, tls_words(connector, &route.hop))?;
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
                "refused": refusal_json(refusal),
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
            "connector": self.door.name.to_string(),
            "origin": origin_word(self.door.origin),
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
    use super::*;
    use crate::route::world::{World, address};

    fn explain(world: &World, from: &str, to: &[&str], size: Option<u64>) -> (String, Value, bool) {
        let Sender(from) = sender(from).unwrap();
        let to: Vec<_> = to.iter().map(|to| recipient(to, &world.config).unwrap()).collect();
        let door = door(&world.config, None, None, None).unwrap();
        let explanation = Explanation::of(&world.config, &world.directory(), door, from.as_ref(), &to, size);
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
from <erin@fabrikam.com> by receive connector door, origin internet

anna@contoso.com
    found in recipients.csv: on-premises mailbox
    side on-premises, from the Internet, on-premises mailbox: hybrid.on_premises
    -> to-on-premises, mail.inside.contoso.com:25
       as anna@contoso.com; TLS: if offered, with any certificate; else in the clear

David@contoso.com
    found in recipients.csv: cloud mailbox
    rewritten to David@contoso.mail.onmicrosoft.com
    side on-premises, from the Internet, cloud mailbox: hybrid.cloud
    -> to-cloud, contoso-com.mail.protection.outlook.com:25
       as David@contoso.mail.onmicrosoft.com; TLS: if offered, with any certificate; else in the clear

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
    fn a_group_says_once_how_it_was_found_and_who_is_not_reached() {
        let (text, json, all_taken) = explain(&world(), "<>", &["team@contoso.com"], None);
        assert_eq!(text.matches("group of 3").count(), 1, "{text}");
        assert!(text.contains("    not to nobody@contoso.com: 550 5.1.1 no such recipient\n"), "{text}");
        assert!(text.starts_with("from <> by"), "{text}");
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
                "    address space fabrikam.com: to-partner (cost 7); lost: to-internet by * (less specific)\n"
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

    const DOORS: &str = r#"
hostname = "mail.contoso.com"
[spool]
path = "spool"
[[accepted_domain]]
name = "contoso.com"
type = "external-relay"
[[receive_connector]]
name = "internet"
listen = ["192.0.2.25:25"]
origin = "internet"
tls = "off"
[[receive_connector]]
name = "cloud"
listen = ["192.0.2.25:25"]
origin = "cloud"
certificate = "CERT"
key = "KEY"
tls_domain = ["mail.protection.outlook.com", "*.cloud.example"]
client_ca_file = "CERT"
[[receive_connector]]
name = "servers"
listen = ["192.0.2.25:25"]
remote_ips = ["10.0.0.0/8"]
origin = "on-premises"
tls = "off"
[[receive_connector]]
name = "partner"
listen = ["192.0.2.25:25"]
remote_ips = ["198.51.100.0/24"]
origin = "partner"
tls = "off"
sender_domains = ["fabrikam.com", "*.fabrikam.example"]
only_here = true
[[receive_connector]]
name = "printers"
listen = ["192.0.2.25:25"]
remote_ips = ["10.1.0.0/16"]
origin = "client"
tls = "off"
[[send_connector]]
name = "out"
address_spaces = ["*"]
tls = "opportunistic"
"#;

    /// The configuration above, with a certificate made for it.
    fn doors() -> Config {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["mail.contoso.com".to_owned()]).unwrap();
        let (certificate, key) = (folder.path().join("mail.crt"), folder.path().join("mail.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let text = DOORS.replace("CERT", certificate.to_str().unwrap()).replace("KEY", key.to_str().unwrap());
        config::parse(&text, Path::new("causeway.toml")).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn the_door_is_chosen_by_address_origin_and_name() {
        let config = doors();
        for (asked, ip, name, expected) in [
            (None, None, None, "internet"),
            (Some("cloud"), None, None, "cloud"),
            (Some("cloud"), None, Some("mail.protection.outlook.com"), "cloud"),
            (Some("client"), None, None, "printers"),
            (None, None, Some("MAIL.protection.outlook.com"), "cloud"),
            (None, None, Some("a.cloud.example"), "cloud"),
            (None, Some("203.0.113.9"), None, "internet"),
            (None, Some("2001:db8::9"), None, "internet"),
            (None, Some("203.0.113.9"), Some("mail.protection.outlook.com"), "cloud"),
            (None, Some("203.0.113.9"), Some("mail.example.org"), "internet"),
            (None, Some("10.2.0.1"), None, "servers"),
            (None, Some("10.1.0.1"), None, "printers"),
            (None, Some("::ffff:10.1.0.1"), None, "printers"),
            // The address is more specific than the name.
            (None, Some("10.2.0.1"), Some("mail.protection.outlook.com"), "servers"),
        ] {
            let origin = asked.map(|word| origin(word).unwrap());
            let client = ip.map(|ip| ip.parse().unwrap());
            let door = door(&config, origin, client, name).unwrap();
            assert_eq!(door.name.to_string(), expected, "{asked:?} {ip:?} {name:?}");
        }
        for (asked, name, expected) in [
            (None, Some("mail.example.org"), "no receive connector has a tls_domain that a certificate for"),
            (Some("cloud"), Some("mail.example.org"), "of origin \"cloud\" takes a client with a certificate for"),
        ] {
            let error = door(&config, asked.map(|word| origin(word).unwrap()), None, name).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
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
            let explanation = Explanation::of(&config, &Directory::default(), door, from_address.as_ref(), &to, None);
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
