//! One probe's way through both relays, and the probes for each kind of mail.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Faults, Pair, Site, Spot, Who};
use crate::config::{ConnectorName, DomainKind, Origin, ReceiveConnector};
use crate::directory::{self, Found};
use crate::message::{Address, Domain, Notify, Recipient};
use crate::route::{Asking, RefusalKind, Rules};
use crate::smtp::Status;

/// A probe that has crossed so often is going in circles, whatever its addresses say.
const CROSSINGS: usize = 8;

/// Nobody has it: RFC 2606 keeps the domain from ever being given out.
const STRANGER: &str = "someone@stranger.invalid";

/// Where a probe comes in.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) site: usize,
    pub(super) door: Arc<ReceiveConnector>,
    pub(super) sender: Option<Address>,
}

/// How a probe ended, for one of the recipients it became.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// At this site's own mailboxes.
    Mailbox { site: usize },
    /// It left for the Internet from there, under this address.
    Internet { site: usize, to: String },
    /// RCPT was refused there.
    Refused { site: usize, door: ConnectorName, why: Why, crossed: bool, to: String },
    /// MAIL was.
    Sender { site: usize, door: ConnectorName, reply: String },
    /// It came to the same place again.
    Circle { site: usize },
    /// The other premises have no connector for it, which has its finding.
    Nowhere,
}

/// Why a recipient was refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    Unknown,
    Relay,
    Loop,
    /// The reply and its reason.
    Else(String),
}

impl Why {
    fn of(refusal: &crate::route::Refusal) -> Self {
        match (&refusal.kind, refusal.status()) {
            (RefusalKind::UnknownRecipient, _) => Self::Unknown,
            (RefusalKind::RelayDenied, _) => Self::Relay,
            (_, (_, Status(5, 4, 6))) => Self::Loop,
            (kind, (code, status)) => Self::Else(format!("{code} {status} ({kind})")),
        }
    }
}

impl Pair<'_> {
    /// Follows one recipient from `entry` to all its ends, in order.
    pub(super) fn follow(&mut self, entry: &Entry, to: &Address) -> Vec<End> {
        let mut ends = Vec::new();
        let mut seen = Vec::new();
        self.step(entry.site, &entry.door.clone(), entry.sender.as_ref(), to, &mut seen, &mut ends);
        ends.sort();
        ends
    }

    fn step(
        &mut self,
        here: usize,
        door: &Arc<ReceiveConnector>,
        sender: Option<&Address>,
        to: &Address,
        seen: &mut Vec<(usize, ConnectorName, String)>,
        ends: &mut Vec<End>,
    ) {
        let visit = (here, door.name.clone(), to.key());
        if seen.contains(&visit) || seen.len() >= CROSSINGS {
            return ends.push(End::Circle { site: here });
        }
        let crossed = !seen.is_empty();
        let site = &self.sites[here];
        let rules = Rules { config: &site.config, directory: site.directory };
        if let Err(reply) = rules.check_sender(door, sender) {
            // At the first door that is one configuration's own affair.
            return ends.push(match crossed {
                true => End::Sender { site: here, door: door.name.clone(), reply: reply.to_string() },
                false => End::Nowhere,
            });
        }
        let asking = Asking { origin: door.origin, connector: &door.name, may_relay: door.relay, size: None };
        let recipient = Recipient { address: to.clone(), notify: Notify::Unsaid, orcpt: None };
        let refused = |refusal: &crate::route::Refusal, to: &Address| End::Refused {
            site: here,
            door: door.name.clone(),
            why: Why::of(refusal),
            crossed,
            to: to.to_string(),
        };
        let resolution = match rules.expand(&asking, &recipient) {
            Ok(resolution) => resolution,
            Err(refusal) => return ends.push(refused(&refusal, to)),
        };
        ends.extend(resolution.failed.iter().map(|failed| refused(&failed.refusal, &failed.address)));
        seen.push(visit);
        for routed in resolution.routed {
            let via = &routed.route.via;
            if self.leads_across(here, via) {
                match self.link(here, via) {
                    Some(next) => self.step(1 - here, &next, sender, &routed.route.to, seen, ends),
                    None => ends.push(End::Nowhere),
                }
            } else if via == self.sites[here].own_way() {
                ends.push(End::Mailbox { site: here });
            } else {
                ends.push(End::Internet { site: here, to: routed.route.to.to_string() });
            }
        }
        seen.pop();
    }

    /// Where mail comes in: each receive connector but those for the other premises, whose mail comes through the
    /// other relay. Connectors that judge alike are asked once.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (number, site) in self.sites.iter().enumerate() {
            let mut known = BTreeSet::new();
            for door in &site.config.receive_connectors {
                let own = site.side().origin();
                if matches!(door.origin, Origin::OnPremises | Origin::Cloud) && door.origin != own {
                    continue;
                }
                let key = (door.origin.word(), door.relay, format!("{:?}", door.sender_domains), door.only_here);
                if known.insert(key) {
                    entries.push(Entry { site: number, door: door.clone(), sender: Some(sender(site, door)) });
                }
            }
        }
        entries
    }

    /// What is not in a directory: unknown recipients, postmaster, the Internet; with a sender and without.
    pub(super) fn kinds_of_mail(&mut self) {
        let mut faults = Faults::new();
        let mut domains: Vec<(Domain, DomainKind)> = Vec::new();
        for domain in self.sites.iter().flat_map(|site| &site.config.accepted_domains) {
            let far = self.apart.contains(&domain.name) || domains.iter().any(|(name, _)| *name == domain.name);
            if !far {
                domains.push((domain.name.clone(), domain.kind));
            }
        }
        let mut senders = self.entries();
        for entry in senders.clone() {
            senders.push(Entry { sender: None, ..entry });
        }
        let stranger = Address::parse(STRANGER).expect("a constant that is an address");
        for entry in senders {
            if entry.door.relay {
                let ends = self.follow(&entry, &stranger);
                self.note(&ends, &stranger, &mut faults);
            }
            for (domain, kind) in &domains {
                for local in ["postmaster", "nobody-of-this-name"] {
                    let Ok(to) = Address::new(local, domain.clone()) else { continue };
                    let ends = self.follow(&entry, &to);
                    // Nobody is to be refused, and external mail is not ours.
                    let expected = |end: &End| {
                        let unknown = matches!(end, End::Refused { why: Why::Unknown, .. });
                        local != "postmaster" && (unknown || *kind == DomainKind::ExternalRelay)
                    };
                    let ends: Vec<_> = ends.into_iter().filter(|end| !expected(end)).collect();
                    self.note(&ends, &to, &mut faults);
                }
            }
        }
        self.tell(faults);
    }

    /// The hybrid routing address of a mailbox that both know to be in the cloud, as the premises' own servers write it.
    pub(super) fn routing_addresses(&mut self) {
        let (inside, cloud) = (self.at(true), self.at(false));
        let known = |site: usize, address: &Address| match self.sites[site].find(address) {
            Found::Entry { entry: directory::Entry::Cloud(target), .. } => Some(target),
            _ => None,
        };
        let both = self.sites[inside].directory.addresses().filter(|address| known(cloud, address).is_some());
        let target = both.filter_map(|address| match known(inside, &address)? {
            // Where an entry has one of its own, that may be another mistake.
            None => Some(address),
            Some(_) => None,
        });
        let Some(mailbox) = target.min_by_key(Address::key) else { return };
        let domain = self.sites[cloud].hybrid().routing_domain.clone();
        let to = mailbox.at(domain.clone());
        let mut faults = Faults::new();
        for entry in self.entries() {
            if !entry.door.relay && entry.site == inside {
                continue;
            }
            for end in self.follow(&entry, &to) {
                if let End::Internet { site, .. } = end {
                    let here = &self.sites[site];
                    let way = if site == inside { here.other_way() } else { here.own_way() };
                    let text = format!(
                        "mail to hybrid routing addresses leaves for the Internet from {}; add \"{domain}\" here",
                        here.words()
                    );
                    self.found.error(Spot::key(here.which, "send_connector", way, "address_spaces"), text);
                } else {
                    self.note(&[end], &to, &mut faults);
                }
            }
        }
        self.tell(faults);
    }

    /// Remembers what is wrong with these ends, for mail that nobody's entry in a directory explains.
    pub(super) fn note(&self, ends: &[End], to: &Address, faults: &mut Faults) {
        let mut one = Who::default();
        one.note(to);
        for end in ends {
            self.note_end(end, to, &one, faults);
        }
    }

    /// The same for many recipients that go the same way. True: it was a fault.
    pub(super) fn note_end(&self, end: &End, to: &Address, who: &Who, faults: &mut Faults) -> bool {
        let fault = match end {
            End::Mailbox { .. } | End::Internet { .. } | End::Nowhere => return false,
            // What the first relay refuses at its door, its own configuration says.
            End::Refused { crossed: false, .. } => return false,
            End::Refused { site, door, why: Why::Relay, to: refused, .. } => {
                let (here, there) = (&self.sites[*site], &self.sites[1 - site]);
                let what = match Address::parse(refused).map(|address| here_is_ours(there, &address)) {
                    Ok(true) => format!("mail for {}", domain_of(refused)),
                    _ => "mail for the Internet".to_owned(),
                };
                (
                    Spot::key(here.which, "receive_connector", door, "relay"),
                    format!(
                        "false, but {} sends {what} through here: it is refused with 550 5.7.1; set relay = true, or let that mail leave over there",
                        there.words()
                    ),
                )
            }
            End::Refused { site, why, to: refused, .. } => {
                let (here, there) = (&self.sites[*site], &self.sites[1 - site]);
                let what = match why {
                    Why::Else(reply) => reply.clone(),
                    Why::Unknown => "550 5.1.1".to_owned(),
                    Why::Loop => "550 5.4.6: it would go back to where it came from".to_owned(),
                    Why::Relay => "550 5.7.1".to_owned(),
                };
                let ours = Address::parse(refused)
                    .is_ok_and(|address| here_is_ours(here, &address) || here_is_ours(there, &address));
                let (key, about) = if ours { ("", "WHO") } else { ("internet", "mail for the Internet") };
                let spot = Spot::key(here.which, "hybrid", "", key);
                (
                    spot,
                    format!(
                        "{} hands {about} to {}, which refuses it with {what}: nobody delivers it",
                        there.words(),
                        here.words()
                    ),
                )
            }
            End::Sender { site, door, reply } => {
                let (here, there) = (&self.sites[*site], &self.sites[1 - site]);
                (
                    Spot::key(here.which, "receive_connector", door, "sender_domains"),
                    format!(
                        "{} also hands on what others have sent (from the Internet, by partners), and such senders are refused here ({}); leave sender_domains out, and tell strangers by tls_domain and originator_org",
                        there.words(),
                        reply.trim()
                    ),
                )
            }
            End::Circle { site } => {
                let which = self.sites[*site].which;
                let cut = "to and fro between the two relays until it is cut as a loop (5.4.6)";
                match to.to_string() == STRANGER {
                    true => (
                        Spot::key(which, "hybrid", "", "internet"),
                        format!("mail for the Internet goes {cut}; let it leave on one of them: internet = \"direct\""),
                    ),
                    false => (
                        Spot::key(which, "hybrid", "", ""),
                        format!(
                            "mail for WHO goes {cut}: each hands it to the other; look at what `explain` says on either side"
                        ),
                    ),
                }
            }
        };
        let (spot, text) = fault;
        faults.entry((spot.to_string(), text)).or_insert_with(|| (spot, Who::default())).1.merge(who.clone());
        true
    }

    /// Faults as findings.
    pub(super) fn tell(&mut self, faults: Faults) {
        for ((_, text), (spot, who)) in faults {
            self.found.error(spot, text.replace("WHO", &who.words()));
        }
    }
}

/// Does this site accept mail for the address, or know it as one of the cloud service?
fn here_is_ours(site: &Site<'_>, address: &Address) -> bool {
    let rules = Rules { config: &site.config, directory: site.directory };
    rules.accepted(address.domain()).is_some() || *address.domain() == site.hybrid().routing_domain
}

/// What is behind the last `@`.
pub(super) fn domain_of(address: &str) -> &str {
    address.rsplit('@').next().unwrap_or(address)
}

/// Somebody who may send here.
fn sender(site: &Site<'_>, door: &ReceiveConnector) -> Address {
    let stranger = || Address::parse(STRANGER).expect("a constant that is an address");
    let at = |domain: &Domain| Address::new("someone", domain.clone()).unwrap_or_else(|_| stranger());
    match (door.sender_domains.first(), door.origin) {
        (Some((domain, _)), _) => at(domain),
        (None, Origin::Internet | Origin::Partner) => stranger(),
        (None, Origin::OnPremises | Origin::Cloud | Origin::Client) => {
            site.config.organization().map_or_else(stranger, at)
        }
    }
}
