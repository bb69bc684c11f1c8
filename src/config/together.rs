//! What only several tables together show: names that must differ or exist, connectors that cannot be told apart,
//! and routes that nothing can reach.
//!
//! A faulty connector still has its name, so that one mistake does not bring on others that are none.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::problem::Problems;
use super::read::{Read, Table, nearest};
use super::value::{ConnectorName, Pattern};
use super::{
    AcceptedDomain, AddressSpace, DirectorySource, DomainKind, Hybrid, Internet, ReceiveConnector, ReceiveTls,
    SendConnector, Side, connector,
};

/// A table with what it was read to.
pub(super) struct Entry<'a, T> {
    /// For the places and names of what is wrong.
    pub table: Table<'a>,
    /// What it means, if it means something.
    pub read: Read<T>,
}

impl<T> Entry<'_, T> {
    fn value(&self) -> Option<&T> {
        self.read.as_ref().ok()
    }
}

/// Of two sections with the same name nobody can say which one is meant.
pub(super) fn check_names<T>(entries: &[Entry<'_, T>], problems: &mut Problems) {
    for (number, entry) in entries.iter().enumerate() {
        let name = entry.table.peek("name");
        if name.is_some() && entries[..number].iter().any(|before| before.table.peek("name") == name) {
            entry.table.complain("name", "another section before has this name; each needs its own", problems);
        }
    }
}

/// Receive connectors that share an address must be told apart by network or certificate.
pub(super) fn check_listening(entries: &[Entry<'_, ReceiveConnector>], problems: &mut Problems) {
    for (number, entry) in entries.iter().enumerate() {
        let Some(own) = entry.value() else { continue };
        // The same complaint with each neighbour in turn would bury the others.
        let (mut mixed, mut clashing) = (false, false);
        for (before, other) in entries[..number].iter().filter_map(|it| Some((it, it.value()?))) {
            if let Some(address) = own.listen.iter().find(|address| other.listen.contains(address)) {
                mixed = mixed || check_tls_modes(entry, own, other, address, problems);
                check_distinct(entry, before, own, other, address, problems);
                check_proxies(entry, before, own, other, address, problems);
            }
            for address in own.listen.iter().filter(|address| !other.listen.contains(address)) {
                if let Some(wide) = other.listen.iter().find(|wide| !clashing && clash(**wide, *address)) {
                    clashing = true;
                    let text = format!(
                        "{address} and {wide} of {} cannot both be bound; to share an address both write it alike",
                        before.table.what()
                    );
                    entry.table.complain("listen", text, problems);
                }
            }
        }
        check_chosen(entry, own, entries, problems);
    }
}

/// TLS from the first byte or a greeting in the clear: the server must know before it knows who comes. True if they
/// do not go together.
fn check_tls_modes(
    entry: &Entry<'_, ReceiveConnector>,
    own: &ReceiveConnector,
    other: &ReceiveConnector,
    address: &SocketAddr,
    problems: &mut Problems,
) -> bool {
    let mixed = (own.tls == ReceiveTls::Implicit) != (other.tls == ReceiveTls::Implicit);
    if mixed {
        let text = format!(
            "\"{}\" on {address}, where receive_connector \"{}\" has \"{}\"; \"implicit\" needs a port of its own, mostly 465",
            connector::receive_tls_word(own.tls),
            other.name,
            connector::receive_tls_word(other.tls),
        );
        entry.table.complain("tls", text, problems);
    }
    mixed
}

/// Among equal networks a certificate decides, and without one the connector that demands none.
fn check_distinct(
    entry: &Entry<'_, ReceiveConnector>,
    before: &Entry<'_, ReceiveConnector>,
    own: &ReceiveConnector,
    other: &ReceiveConnector,
    address: &SocketAddr,
    problems: &mut Problems,
) {
    let reaches = |network: &&IpNet| same_family(address, network);
    let Some(shared) = own.remote_ips.iter().filter(reaches).find(|network| other.remote_ips.contains(network)) else {
        return;
    };
    let what = before.table.what();
    match (&own.tls_domain, &other.tls_domain) {
        (None, None) => {
            let text = format!(
                "{shared} on {address} also belongs to {what}; narrow one of them, or tell them apart by tls_domain"
            );
            entry.table.complain("remote_ips", text, problems);
        }
        (Some(names), Some(others)) => {
            let same_authority = origin_of_roots(own) == origin_of_roots(other);
            if let Some(name) = names.iter().find(|name| others.iter().any(|other| other == *name))
                && same_authority
            {
                let text = format!("{name} for {shared} on {address} also belongs to {what}; which one is meant?");
                entry.table.complain("tls_domain", text, problems);
            }
        }
        (None, Some(_)) | (Some(_), None) => {}
    }
}

/// Whether a header of the PROXY protocol comes first must be known before a certificate can be seen: connectors among
/// which only that decides have to agree. Where the network alone decides, each has its own way.
fn check_proxies(
    entry: &Entry<'_, ReceiveConnector>,
    before: &Entry<'_, ReceiveConnector>,
    own: &ReceiveConnector,
    other: &ReceiveConnector,
    address: &SocketAddr,
    problems: &mut Problems,
) {
    if own.proxy_protocol == other.proxy_protocol {
        return;
    }
    // A proven connector takes what lies within an open one's network; an open one of a narrower network keeps its peers.
    let contested = |one: &IpNet, two: &IpNet| match (&own.tls_domain, &other.tls_domain) {
        (None, None) => one == two,
        (Some(_), None) => two.contains(one),
        (None, Some(_)) => one.contains(two),
        (Some(_), Some(_)) => one.contains(two) || two.contains(one),
    };
    let mut networks = own.remote_ips.iter().filter(|network| same_family(address, network));
    if let Some(network) = networks.find(|one| other.remote_ips.iter().any(|two| contested(one, two))) {
        let text = format!(
            "{} differs from {} on {address}: a client of {network} may belong to either, and whether a header comes first must be known before its certificate",
            own.proxy_protocol,
            before.table.what()
        );
        entry.table.complain("proxy_protocol", text, problems);
    }
}

fn origin_of_roots(connector: &ReceiveConnector) -> Option<&str> {
    connector.client_roots.as_ref().map(|roots| &*roots.origin)
}

/// A connector whose every client belongs to more specific ones is one that somebody forgot.
fn check_chosen(
    entry: &Entry<'_, ReceiveConnector>,
    own: &ReceiveConnector,
    entries: &[Entry<'_, ReceiveConnector>],
    problems: &mut Problems,
) {
    let reachable = own.listen.iter().any(|address| own.remote_ips.iter().any(|network| same_family(address, network)));
    if !reachable {
        let text = "none of these networks can reach the addresses in listen: the one is IPv4, the other IPv6";
        entry.table.warn("remote_ips", text, problems);
        return;
    }
    if own.tls_domain.is_some() {
        return;
    }
    let taken = own.listen.iter().all(|address| {
        own.remote_ips.iter().filter(|network| same_family(address, network)).all(|network| {
            let narrower: Vec<IpNet> = entries
                .iter()
                .filter_map(Entry::value)
                .filter(|other| other.tls_domain.is_none() && other.listen.contains(address))
                .flat_map(|other| other.remote_ips.iter().copied())
                .filter(|other| network.contains(other) && other.prefix_len() > network.prefix_len())
                .collect();
            IpNet::aggregate(&narrower).iter().any(|whole| whole == network)
        })
    });
    if taken {
        entry.table.warn(
            "remote_ips",
            "other connectors' networks are narrower and take every client of this one",
            problems,
        );
    }
}

fn same_family(address: &SocketAddr, network: &IpNet) -> bool {
    address.is_ipv4() == matches!(network, IpNet::V4(_))
}

/// The one address is "any" and takes the port from the other.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// On an address that only proven clients may use, there is no sense in talking before the proof: the interface has
/// `tls_domain` imply `tls = "require"` there.
pub(super) fn imply_require(entries: &mut [Entry<'_, ReceiveConnector>]) {
    let open: Vec<SocketAddr> = entries
        .iter()
        .filter_map(Entry::value)
        .filter(|connector| connector.tls_domain.is_none())
        .flat_map(|connector| connector.listen.iter().copied())
        .collect();
    for connector in entries.iter_mut().filter_map(|entry| entry.read.as_mut().ok()) {
        let proven_only = connector.listen.iter().all(|address| !open.contains(address));
        if connector.tls == ReceiveTls::Offer && connector.tls_domain.is_some() && proven_only {
            connector.tls = ReceiveTls::Require;
        }
    }
}

/// `hybrid.on_premises` and `hybrid.cloud` must lead somewhere.
pub(super) fn check_hybrid(table: &Table<'_>, sends: &Read<Vec<Entry<'_, SendConnector>>>, problems: &mut Problems) {
    let Ok(sends) = sends else { return };
    for key in ["on_premises", "cloud"] {
        let Some(name) = table.peek(key) else { continue };
        match sends.iter().find(|entry| entry.table.peek("name") == Some(name)) {
            None => {
                let mut text = format!("no send_connector is named \"{name}\"");
                if let Some(near) = nearest(name, sends.iter().filter_map(|entry| entry.table.peek("name"))) {
                    text.push_str(&format!("; did you mean \"{near}\"?"));
                }
                table.complain(key, text, problems);
            }
            Some(entry) if entry.value().is_some_and(|connector| !connector.enabled) => {
                table.complain(key, format!("{} is not enabled", entry.table.what()), problems);
            }
            Some(_) => {}
        }
    }
    let both = table.peek("cloud").filter(|cloud| table.peek("on_premises") == Some(*cloud));
    if both.is_some() {
        table.complain("cloud", "the same connector as on_premises; each side has its own", problems);
    }
}

/// Each domain is written once.
pub(super) fn check_domains(entries: &[Entry<'_, AcceptedDomain>], problems: &mut Problems) {
    for (number, entry) in entries.iter().enumerate() {
        let Some(own) = entry.value() else { continue };
        let mut before = entries[..number].iter().filter_map(Entry::value);
        if before.any(|other| other.name == own.name && other.subdomains == own.subdomains) {
            entry.table.complain("name", "another accepted_domain before has this name", problems);
        }
    }
}

/// What is whole, for the warnings that need all of it.
pub(super) struct Whole<'w, 'a> {
    pub hybrid: Option<(&'w Table<'a>, &'w Hybrid)>,
    pub domains: &'w [Entry<'a, AcceptedDomain>],
    pub directories: &'w [DirectorySource],
    pub sends: &'w [Entry<'a, SendConnector>],
}

impl Whole<'_, '_> {
    /// Domains that no route serves and routes that nothing can reach.
    pub(super) fn warn(&self, problems: &mut Problems) {
        for entry in self.domains {
            if let Some(domain) = entry.value() {
                self.warn_of_domain(&entry.table, domain, problems);
            }
        }
        for (number, entry) in self.sends.iter().enumerate() {
            if let Some(send) = entry.value().filter(|send| send.enabled) {
                self.warn_of_send(number, &entry.table, send, problems);
            }
        }
        if let Some((table, Hybrid { internet: Internet::Direct, .. })) = self.hybrid
            && !self.spaces().any(|(_, space)| space.pattern == Pattern::Any)
        {
            let text =
                "\"direct\", and no send_connector serves \"*\": mail to domains that none serves gets 550 5.4.4";
            table.warn("internet", text, problems);
        }
    }

    fn warn_of_domain(&self, table: &Table<'_>, domain: &AcceptedDomain, problems: &mut Problems) {
        if domain.kind == DomainKind::Authoritative && self.directories.is_empty() {
            let text = "\"authoritative\" without any [[directory]]: every recipient gets 550 5.1.1";
            table.warn("type", text, problems);
        }
        if domain.kind == DomainKind::InternalRelay && self.hybrid.is_none() {
            let text = "without [hybrid] there are no other premises: unknown recipients go by address space, as with \"external-relay\"";
            table.warn("type", text, problems);
        }
        let by_space = domain.kind == DomainKind::ExternalRelay || self.hybrid.is_none();
        if by_space && !self.spaces().any(|(_, space)| covers(&space.pattern, domain)) {
            let text = "no enabled send_connector has an address space for it: its mail gets 550 5.4.4";
            table.warn("name", text, problems);
        }
    }

    fn warn_of_send(&self, number: usize, table: &Table<'_>, send: &SendConnector, problems: &mut Problems) {
        if self.hybrid.is_some_and(|(_, hybrid)| send.name == hybrid.cloud || send.name == hybrid.on_premises) {
            return;
        }
        if send.serves.is_empty() {
            let text = match self.hybrid {
                Some(_) => "it has no address_spaces, and [hybrid] does not name it: no mail can reach it",
                None => "it has no address_spaces: no mail can reach it",
            };
            return table.warn_whole(text, problems);
        }
        if let Some((_, Hybrid { internet: Internet::OtherPremises, side: Side::OnPremises, cloud, .. })) = self.hybrid
        {
            let mut domains = self.domains.iter().filter_map(Entry::value);
            let needed = domains.any(|domain| {
                domain.kind == DomainKind::ExternalRelay
                    && send.serves.iter().any(|space| meets(&space.pattern, domain))
            });
            if !needed {
                let text =
                    format!("no mail can reach it: hybrid.internet = \"cloud\" sends all Internet mail by \"{cloud}\"");
                table.warn_whole(text, problems);
            }
            return;
        }
        for space in &send.serves {
            let earlier = self.sends[..number].iter().filter_map(Entry::value).filter(|other| other.enabled);
            if let Some(other) = { earlier }.find(|other| other.serves.contains(space)) {
                let text = format!(
                    "\"{space}\" never gets here: send_connector \"{}\" serves it at the same cost and comes first",
                    other.name
                );
                table.warn("address_spaces", text, problems);
            }
        }
    }

    fn spaces(&self) -> impl Iterator<Item = (&ConnectorName, &AddressSpace)> {
        let enabled = self.sends.iter().filter_map(Entry::value).filter(|send| send.enabled);
        enabled.flat_map(|send| send.serves.iter().map(|space| (&send.name, space)))
    }
}

/// The pattern takes all mail of the domain.
fn covers(pattern: &Pattern, domain: &AcceptedDomain) -> bool {
    match pattern {
        Pattern::Exact(exact) => *exact == domain.name && !domain.subdomains,
        Pattern::Suffix(suffix) => domain.name.is_within(suffix),
        Pattern::Any => true,
    }
}

/// The pattern takes some mail of the domain.
fn meets(pattern: &Pattern, domain: &AcceptedDomain) -> bool {
    let below = |name: &crate::message::Domain| domain.subdomains && name.is_within(&domain.name);
    match pattern {
        Pattern::Exact(exact) => *exact == domain.name || below(exact),
        Pattern::Suffix(suffix) => domain.name.is_within(suffix) || below(suffix),
        Pattern::Any => true,
    }
}
