//! What would happen to one message, and why, without a message: asks the rules and puts their answer into JSON.
//!
//! Nothing is looked up but the directory, and nothing waits. First which receive connector the message comes in by and
//! what it is held to be (`door`), then recipient by recipient what was found, what decided and what lost, the next hop
//! and what it must prove, then the copies.
//!
//! Not here: the rules (`resolve`, `plan`), who asks and how a terminal shows it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use self::door::{comes_in, door};
use super::{Asking, Disagreements, Hop, HopCopy, Reason, Refusal, Resolution, Routed, Rules, plan};
use crate::config::{self, Config, Hops, Level, Origin, ReceiveConnector, SendConnector};
use crate::directory::Lookup;
use crate::message::address::Syntax;
use crate::message::{Address, Domain, Notify, Recipient};
use crate::smtp::Reply;

mod door;

/// Who would bring it, as far as that is said.
#[derive(Debug, Default, Clone, Copy)]
pub struct Comer<'a> {
    /// By the first receive connector of this origin.
    pub origin: Option<Origin>,
    /// From this address.
    pub client: Option<IpAddr>,
    /// With a certificate of this name, which verifies.
    pub tls_name: Option<&'a str>,
}

/// How a message comes in: by which connector, and what it is then held to be.
#[derive(Debug)]
pub struct Coming<'a> {
    /// The receive connector.
    pub door: &'a ReceiveConnector,
    /// In sentences: see [`comes_in`].
    pub words: Vec<String>,
}

impl<'a> Coming<'a> {
    /// Of somebody like this.
    ///
    /// # Errors
    /// No connector takes it; why.
    pub fn of(config: &'a Config, who: Comer<'_>) -> Result<Self, String> {
        let door = door(config, who.origin, who.client, who.tls_name)?;
        Ok(Self { door, words: comes_in(config, door, who.client, who.tls_name) })
    }
}

/// `None` is `<>`.
#[derive(Debug, Clone)]
pub struct Sender(pub Option<Address>);

/// As in MAIL FROM.
///
/// # Errors
/// It is no address.
pub fn sender(text: &str, config: &Config) -> Result<Sender, String> {
    match text {
        "" | "<>" => Ok(Sender(None)),
        _ => address(text, config).map(|address| Sender(Some(address))),
    }
}

/// Without a domain it is of this host, as on a connector that is not strict.
fn address(text: &str, config: &Config) -> Result<Address, String> {
    let plain = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
    let parsed = Address::parse_as(plain, Syntax::Lenient, Some(&config.hostname));
    parsed.map_err(|malformed| format!("{text:?} is no address: {malformed}"))
}

/// As in RCPT TO.
///
/// # Errors
/// One is no address.
pub fn recipients(to: &[String], config: &Config) -> Result<Vec<Address>, String> {
    to.iter().map(|to| recipient(to, config)).collect()
}

/// As in RCPT TO.
///
/// # Errors
/// It is no address.
pub fn recipient(text: &str, config: &Config) -> Result<Address, String> {
    address(text, config)
}

/// The interface's word.
///
/// # Errors
/// It is none.
pub fn origin(text: &str) -> Result<Origin, String> {
    [Origin::Internet, Origin::OnPremises, Origin::Cloud, Origin::Partner, Origin::Client]
        .into_iter()
        .find(|origin| origin.word() == text)
        .ok_or_else(|| "expected internet, on-premises, cloud, partner or client".to_owned())
}

/// As the configuration writes it, or bytes.
///
/// # Errors
/// It is no size.
pub fn size(text: &str) -> Result<u64, String> {
    text.parse().or_else(|_| config::value::size(text))
}

/// What MAIL gets, if it is refused.
pub fn refused_at_mail(
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

/// What the rules are asked with.
pub fn asking(door: &ReceiveConnector, size: Option<u64>) -> Asking<'_> {
    Asking { origin: door.origin, connector: &door.name, may_relay: door.relay, size }
}

/// What would happen to one message.
#[derive(Debug)]
pub struct Explanation<'a> {
    /// The configuration that was asked.
    pub config: &'a Config,
    /// By which connector.
    pub coming: Coming<'a>,
    /// The sender; `None` is `<>`.
    pub from: Option<&'a Address>,
    /// MAIL is refused: no recipient is asked about.
    pub refused: Option<Reply>,
    /// What becomes of each.
    pub recipients: Vec<(&'a Address, Result<Resolution, Refusal>)>,
}

impl<'a> Explanation<'a> {
    /// Asks.
    pub fn of(
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

    /// Nobody is refused.
    pub fn all_taken(&self) -> bool {
        self.refused.is_none() && self.recipients.iter().all(|(_, resolution)| resolution.is_ok())
    }

    /// What the daemon answers for how long before it answers this refusal: it remembers since when the two premises
    /// disagree, and nobody can say so here.
    pub fn at_first(&self, refusal: &Refusal) -> Option<(Reply, Duration)> {
        let grace = self.config.hybrid.as_ref()?.disagreement_grace;
        let softened = refusal.clone().within_grace(&mut Disagreements::default(), crate::clock::now(), grace);
        (softened.is_temporary() && !refusal.is_temporary()).then(|| (softened.to_reply(), grace))
    }

    /// What the spool would keep: one for each next hop.
    pub fn copies(&self) -> Vec<HopCopy> {
        let taken = self.recipients.iter().filter_map(|(_, resolution)| resolution.as_ref().ok());
        plan(taken.flat_map(|resolution| resolution.routed.iter().cloned()).collect())
    }

    /// All of it, in the same words as the text has.
    pub fn json(&self) -> Value {
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
            "origin": self.coming.door.origin.word(),
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

/// Their words.
pub fn reasons(because: &[Reason]) -> Vec<String> {
    because.iter().map(ToString::to_string).collect()
}

fn refusal_json(refusal: &Refusal) -> Value {
    json!({ "why": refusal.to_string(), "reply": refusal.to_reply().to_string() })
}

/// `contoso-com.mail.protection.outlook.com:25`, or `the MX of fabrikam.com, port 25`.
pub fn next_hop(connector: Option<&Arc<SendConnector>>, hop: &Hop) -> String {
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
pub fn tls_words(connector: Option<&Arc<SendConnector>>, hop: &Hop) -> String {
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
    use std::path::Path;

    use super::door::tests::doors;
    use super::*;
    use crate::directory::Directory;
    use crate::route::world::address;

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
            let Sender(from_address) = sender(from, &config).unwrap();
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
