//! What only both premises together show: each is right by itself, and mail between them still goes in circles, into
//! nothing, or as a stranger's.
//!
//! Found by routing a probe for every kind of mail through both configurations, until it is delivered, refused or seen
//! twice. What has its own finding is taken as mended from there on, so that one mistake is told once and not by
//! everything that follows from it. Pure: nothing is looked up and nobody is connected to.
//!
//! The address that a relay's mail leaves from does not stand in its configuration (unless `source_ip` says so), and a
//! NAT may stand between. So a receive connector for the other premises is taken to be reached from there whatever its
//! `remote_ips`, and of the others only those that take all the world.
//!
//! Not here: what is wrong with one configuration alone (`config`), what DNS and the hosts say (`probe`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::Rules;
use crate::config::{AcceptedDomain, Config, ConnectorName, DomainKind, FirstHop, Hybrid, Internet, Severity, Side};
use crate::directory::{Directory, Found, Lookup as _};
use crate::message::{Address, Domain};

mod link;
mod recipients;
mod way;

/// One of the two relays, as it stands in its files.
#[derive(Debug, Clone, Copy)]
pub struct Premises<'a> {
    /// Its configuration.
    pub config: &'a Config,
    /// Its directory.
    pub directory: &'a Directory,
}

/// Whose file: the two in the order in which they were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// That of this relay.
    Own,
    /// That of the relay on the other premises.
    Other,
}

/// Something that the two do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where it would be mended.
    pub spot: Spot,
    /// What, and what to do.
    pub text: String,
}

/// A place in the files of one of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spot {
    /// A key of the configuration.
    Key {
        /// Whose.
        which: Which,
        /// `hybrid`, `send_connector`, …
        section: &'static str,
        /// The name of a connector or domain; empty where the section has none.
        name: String,
        /// The key; empty: the whole section.
        key: &'static str,
    },
    /// A recipient in a directory.
    Recipient {
        /// Whose.
        which: Which,
        /// The source that knows it, as the configuration names it; `None`: none does.
        source: Option<Arc<str>>,
        /// Who.
        address: Address,
    },
}

impl Spot {
    fn key(which: Which, section: &'static str, name: impl fmt::Display, key: &'static str) -> Self {
        Self::Key { which, section, name: name.to_string(), key }
    }

    /// Whose file it is in.
    pub fn which(&self) -> Which {
        match self {
            Self::Key { which, .. } | Self::Recipient { which, .. } => *which,
        }
    }
}

impl fmt::Display for Finding {
    /// As the findings of one configuration: `send_connector "to-cloud": tls_domain: …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.spot {
            // The text names them all.
            Spot::Recipient { .. } => f.write_str(&self.text),
            Spot::Key { .. } => write!(f, "{}: {}", self.spot, self.text),
        }
    }
}

impl fmt::Display for Spot {
    /// `send_connector "to-cloud": tls_domain`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recipient { address, .. } => write!(f, "{address}"),
            Self::Key { section, name, key, .. } => {
                match (name.as_str(), *section) {
                    ("", section) => f.write_str(section)?,
                    (name, section) => write!(f, "{section} \"{name}\"")?,
                }
                if key.is_empty() { Ok(()) } else { write!(f, ": {key}") }
            }
        }
    }
}

/// Compares two premises: all that is found, in no order.
pub fn compare(own: Premises<'_>, other: Premises<'_>, now: Timestamp) -> Vec<Finding> {
    let sides = [(own, Which::Own), (other, Which::Other)];
    let mut found = Findings::default();
    for (premises, which) in sides {
        if premises.config.hybrid.is_none() {
            let spot = Spot::key(which, "hybrid", "", "");
            found
                .error(spot, "missing: a plain relay has no other premises, so there is nothing to compare".to_owned());
        }
    }
    let (Some(one), Some(two)) = (&own.config.hybrid, &other.config.hybrid) else { return found.list };
    if one.side.origin() == two.side.origin() {
        let word = one.side.word();
        let text = format!(
            "\"{word}\" on both: one relay serves the mailboxes on-premises and the other those in the cloud; is this the file of the other premises?"
        );
        found.error(Spot::key(Which::Other, "hybrid", "", "side"), text);
        return found.list;
    }
    let mut pair = Pair {
        sites: sides.map(|(premises, which)| Site {
            config: premises.config.clone(),
            directory: premises.directory,
            which,
        }),
        now,
        found,
        links: HashMap::new(),
        apart: Vec::new(),
    };
    pair.settings();
    pair.domains();
    pair.both_links();
    pair.kinds_of_mail();
    pair.routing_addresses();
    pair.all_recipients();
    pair.found.list
}

/// What was found, each once.
#[derive(Default)]
struct Findings {
    list: Vec<Finding>,
}

impl Findings {
    fn error(&mut self, spot: Spot, text: String) {
        self.push(Severity::Error, spot, text);
    }

    fn warn(&mut self, spot: Spot, text: String) {
        self.push(Severity::Warning, spot, text);
    }

    fn push(&mut self, severity: Severity, spot: Spot, text: String) {
        let finding = Finding { severity, spot, text };
        if !self.list.contains(&finding) {
            self.list.push(finding);
        }
    }
}

/// One of the two, mended where a finding says so.
struct Site<'a> {
    config: Config,
    directory: &'a Directory,
    which: Which,
}

impl Site<'_> {
    fn hybrid(&self) -> &Hybrid {
        self.config.hybrid.as_ref().expect("both are hybrid, or they are not compared")
    }

    fn side(&self) -> Side {
        self.hybrid().side
    }

    /// `the cloud relay`
    fn words(&self) -> String {
        format!("the {} relay", self.side().word())
    }

    /// The send connector to its own mailboxes.
    fn own_way(&self) -> &ConnectorName {
        match self.side() {
            Side::OnPremises => &self.hybrid().on_premises,
            Side::Cloud { .. } => &self.hybrid().cloud,
        }
    }

    /// The send connector to the other premises.
    fn other_way(&self) -> &ConnectorName {
        match self.side() {
            Side::OnPremises => &self.hybrid().cloud,
            Side::Cloud { .. } => &self.hybrid().on_premises,
        }
    }

    /// The accepted domain of exactly this name.
    fn domain(&self, name: &Domain, subdomains: bool) -> Option<&AcceptedDomain> {
        self.config.accepted_domains.iter().find(|domain| domain.name == *name && domain.subdomains == subdomains)
    }

    /// What its directory says, where a message would make it ask: of other domains it is not asked.
    fn find(&self, address: &Address) -> Found {
        let rules = Rules { config: &self.config, directory: self.directory };
        match rules.ours(address.domain()) {
            Some((_, DomainKind::Authoritative | DomainKind::InternalRelay)) => self.directory.find(address),
            Some((_, DomainKind::ExternalRelay)) | None => Found::Unknown,
        }
    }
}

/// Both, and what was found so far.
struct Pair<'a> {
    sites: [Site<'a>; 2],
    now: Timestamp,
    found: Findings,
    /// Where mail by this connector of that site comes in.
    links: HashMap<(usize, ConnectorName), Option<Arc<crate::config::ReceiveConnector>>>,
    /// Domains that one of them does not know: their recipients have their finding.
    apart: Vec<Domain>,
}

impl Pair<'_> {
    /// The index of the site on this side.
    fn at(&self, on_premises: bool) -> usize {
        usize::from((self.sites[0].side() == Side::OnPremises) != on_premises)
    }

    /// `[hybrid]` against `[hybrid]`.
    fn settings(&mut self) {
        let (inside, cloud) = (self.at(true), self.at(false));
        let right = self.sites[cloud].hybrid().routing_domain.clone();
        let wrong = self.sites[inside].hybrid().routing_domain.clone();
        if right != wrong {
            let text = format!(
                "{wrong}, but the cloud relay has {right}: cloud mailboxes are sent to addresses that the cloud does not know; both must name the cloud service's own domain"
            );
            self.found.error(Spot::key(self.sites[inside].which, "hybrid", "", "routing_domain"), text);
            if let Some(hybrid) = &mut self.sites[inside].config.hybrid {
                hybrid.routing_domain = right;
            }
        }
        let through_cloud = self.sites[inside].hybrid().internet == Internet::OtherPremises;
        let through_premises = self.sites[cloud].hybrid().internet == Internet::OtherPremises;
        let first = matches!(self.sites[cloud].side(), Side::Cloud { inbound_first_hop: FirstHop::OnPremises });
        if through_cloud && through_premises && !first {
            let text = "\"on-premises\", and the on-premises relay has \"cloud\": what cloud mailboxes send goes there and comes straight back; \
                 set \"direct\" (scenarios 1 and 4), or inbound_first_hop = \"on-premises\" too for centralized transport (scenario 2), or internet = \"direct\" on-premises (scenario 3)";
            self.found.warn(Spot::key(self.sites[cloud].which, "hybrid", "", "internet"), text.to_owned());
        }
    }

    /// Accepted domains that one of them does not know, or that nobody takes for final.
    fn domains(&mut self) {
        let routing = self.sites[self.at(false)].hybrid().routing_domain.clone();
        for (here, there) in [(0, 1), (1, 0)] {
            for domain in &self.sites[here].config.accepted_domains {
                let (own, far) = (&self.sites[here], &self.sites[there]);
                // The cloud service's own domain is the cloud's: the premises need not accept mail for it.
                if domain.name == routing || domain.kind == DomainKind::ExternalRelay {
                    continue;
                }
                let covered = far.config.accepted_domains.iter().any(|other| {
                    (other.name == domain.name && other.subdomains >= domain.subdomains)
                        || (other.subdomains && domain.name.is_within(&other.name))
                });
                if !covered {
                    let text = format!(
                        "{} does not accept it: there its recipients are strangers, and mail to them leaves for the Internet or is refused; add it there as well",
                        far.words()
                    );
                    self.found.error(Spot::key(own.which, "accepted_domain", written(domain), "name"), text);
                    self.apart.push(domain.name.clone());
                } else if here == 0
                    && domain.kind == DomainKind::InternalRelay
                    && far
                        .domain(&domain.name, domain.subdomains)
                        .is_some_and(|far| far.kind == DomainKind::InternalRelay)
                {
                    let text = "\"internal-relay\" on both: each takes a recipient that nobody knows and hands it to the other, which sends it back as undeliverable, \
                         mostly to forged senders; let the one whose directory is complete be \"authoritative\"";
                    self.found.warn(Spot::key(own.which, "accepted_domain", written(domain), "type"), text.to_owned());
                }
            }
        }
    }

    /// The two links, whatever mail there is.
    fn both_links(&mut self) {
        for here in [0, 1] {
            let name = self.sites[here].other_way().clone();
            self.link(here, &name);
        }
    }
}

/// As the file has it.
fn written(domain: &AcceptedDomain) -> String {
    format!("{}{}", if domain.subdomains { "*." } else { "" }, domain.name)
}

/// Faults that many probes find, told once with the recipients whom they concern: by place and text.
type Faults = BTreeMap<(String, String), (Spot, Who)>;

/// Recipients: how many, and the first dozen by name.
#[derive(Debug, Clone, Default)]
struct Who {
    count: usize,
    first: std::collections::BTreeSet<String>,
}

/// So many are named.
const NAMED: usize = 12;

impl Who {
    fn note(&mut self, address: &Address) {
        self.count += 1;
        let behind = self.first.len() >= NAMED
            && self.first.last().is_some_and(|last| last.as_str() <= address.to_string().as_str());
        if !behind {
            self.first.insert(address.to_string());
            if self.first.len() > NAMED {
                self.first.pop_last();
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        while self.first.len() > NAMED {
            self.first.pop_last();
        }
    }

    /// `3 recipients (a@x, b@x, c@x)`
    fn words(&self) -> String {
        let names = self.first.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = self.count - self.first.len();
        match (self.count, more) {
            (1, _) => names,
            (count, 0) => format!("{count} recipients ({names})"),
            (count, more) => format!("{count} recipients ({names} and {more} more)"),
        }
    }
}
