//! From one relay to the other: which receive connector takes the connection there, and what they ask of each other.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Finding, Findings, Pair, Site, Spot};
use crate::config::{ConnectorName, DomainKind, Hops, Level, ReceiveConnector, ReceiveTls, SendConnector};
use crate::tls::{Demand, Identity, Unmet};

impl Pair<'_> {
    /// Where mail by connector `name` of site `here` comes in at the other one; what is wrong with that is said the
    /// first time. `None`: nowhere, and that was said too.
    pub(super) fn link(&mut self, here: usize, name: &ConnectorName) -> Option<Arc<ReceiveConnector>> {
        let key = (here, name.clone());
        if let Some(known) = self.links.get(&key) {
            return known.clone();
        }
        let (own, far) = (&self.sites[here], &self.sites[1 - here]);
        let mut found = Findings::default();
        let door =
            own.config.send_connector(name).and_then(|send| Link { own, far, send, now: self.now }.door(&mut found));
        self.found.list.extend(found.list);
        self.links.insert(key, door.clone());
        door
    }

    /// Does this connector of site `here` lead to the other premises: by name, or because it has a host of the one
    /// that does?
    pub(super) fn leads_across(&self, here: usize, name: &ConnectorName) -> bool {
        let site = &self.sites[here];
        let across = site.other_way();
        if name == across {
            return true;
        }
        let (Some(one), Some(two)) = (site.config.send_connector(name), site.config.send_connector(across)) else {
            return false;
        };
        match (&one.hops, &two.hops) {
            (Hops::SmartHosts(hosts), Hops::SmartHosts(others)) => hosts.iter().any(|host| {
                let port = host.port.unwrap_or(one.port);
                others.iter().any(|other| other.host == host.host && other.port.unwrap_or(two.port) == port)
            }),
            _ => false,
        }
    }
}

struct Link<'l, 'a> {
    own: &'l Site<'a>,
    far: &'l Site<'a>,
    send: &'l Arc<SendConnector>,
    now: jiff::Timestamp,
}

impl Link<'_, '_> {
    /// The receive connector that is meant for this mail; `found`: why it will not take it, or not as it should.
    fn door(&self, found: &mut Findings) -> Option<Arc<ReceiveConnector>> {
        let origin = self.own.side().origin();
        let ports = self.ports();
        let all = &self.far.config.receive_connectors;
        let listens = |connector: &&Arc<ReceiveConnector>| connector.listen.iter().any(|at| ports.contains(&at.port()));
        let meant = || all.iter().filter(|connector| connector.origin == origin);
        // Something between may translate ports: then the ports say nothing.
        let reached = meant().any(|connector| listens(&connector));
        let doors: Vec<_> = meant().filter(|connector| !reached || listens(connector)).collect();
        let judged = doors.into_iter().map(|door| (door, self.clauses(door)));
        // The first that takes it without complaint, or the first at all.
        let mut best: Option<(&Arc<ReceiveConnector>, Vec<Finding>)> = None;
        for (door, complaints) in judged {
            let better = best.as_ref().is_none_or(|(_, before)| !before.is_empty() && complaints.is_empty());
            if better {
                best = Some((door, complaints));
            }
        }
        let Some((door, complaints)) = best else {
            let word = self.own.side().word();
            let text = format!(
                "no receive_connector has origin = \"{word}\": what {} sends here (by send_connector \"{}\") counts as from the Internet, without relaying and without its organization headers; add one, with the tls_domain that the other side's certificate carries",
                self.own.words(),
                self.send.name
            );
            found.error(Spot::key(self.far.which, "receive_connector", "", ""), text);
            return None;
        };
        found.list.extend(complaints);
        Some(door.clone())
    }

    fn ports(&self) -> Vec<u16> {
        match &self.send.hops {
            Hops::SmartHosts(hosts) => hosts.iter().map(|host| host.port.unwrap_or(self.send.port)).collect(),
            Hops::Mx => vec![self.send.port],
        }
    }

    /// The address that the far side sees, where the configuration says so and no NAT can have changed it.
    fn source(&self) -> Vec<IpAddr> {
        let public = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_private() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_unique_local() && !ip.is_unicast_link_local(),
        };
        [self.send.source_v4, self.send.source_v6].into_iter().flatten().filter(public).collect()
    }

    /// All that keeps `door` from taking the mail as the other premises'.
    fn clauses(&self, door: &Arc<ReceiveConnector>) -> Vec<Finding> {
        let mut found = Findings::default();
        self.addresses(door, &mut found);
        self.tls(door, &mut found);
        self.trust(door, &mut found);
        self.limits(door, &mut found);
        found.list
    }

    fn here(&self, key: &'static str) -> Spot {
        Spot::key(self.own.which, "send_connector", &self.send.name, key)
    }

    fn there(&self, door: &ReceiveConnector, key: &'static str) -> Spot {
        Spot::key(self.far.which, "receive_connector", &door.name, key)
    }

    /// Address against `remote_ips`, where the address is known.
    fn addresses(&self, door: &ReceiveConnector, found: &mut Findings) {
        for ip in self.source() {
            let takes = |connector: &ReceiveConnector| {
                connector
                    .remote_ips
                    .iter()
                    .filter(|network| network.contains(&ip))
                    .map(|network| network.prefix_len())
                    .max()
            };
            let Some(own) = takes(door) else {
                let text = format!(
                    "{} sends from {ip} (source_ip of send_connector \"{}\"), which is not among them; add it",
                    self.own.words(),
                    self.send.name
                );
                found.error(self.there(door, "remote_ips"), text);
                continue;
            };
            let shares = |other: &&Arc<ReceiveConnector>| {
                other.name != door.name
                    && other.tls_domain.is_none()
                    && other.listen.iter().any(|at| door.listen.contains(at))
            };
            let mut others = self.far.config.receive_connectors.iter().filter(shares);
            if let Some(other) = others.find(|other| takes(other).is_some_and(|narrower| narrower > own)) {
                let text = format!(
                    "{ip}, from which {} sends, belongs to receive_connector \"{}\", whose network is narrower: its mail counts as of origin \"{}\"; narrow this one",
                    self.own.words(),
                    other.name,
                    other.origin.word()
                );
                found.error(self.there(door, "remote_ips"), text);
            }
        }
    }

    /// What each asks of the other's certificate, and whether there is TLS at all.
    fn tls(&self, door: &Arc<ReceiveConnector>, found: &mut Findings) {
        let (send, own, far) = (self.send, self.own.words(), self.far.words());
        if door.tls == ReceiveTls::Implicit {
            let text = format!(
                "\"implicit\", but {own} speaks SMTP first and STARTTLS then (send_connector \"{}\"); set \"require\"",
                send.name
            );
            return found.error(self.there(door, "tls"), text);
        }
        let demands = matches!(send.tls, Level::Encrypt | Level::Certificate(_) | Level::Domain(..));
        if matches!(send.tls, Level::Off) {
            if door.tls == ReceiveTls::Require || door.tls_domain.is_some() {
                let text = format!(
                    "\"off\", but {far} takes this mail in TLS only (receive_connector \"{}\"): all of it waits, and is returned at last; set \"domain\" and tls_domain",
                    door.name
                );
                found.error(self.here("tls"), text);
            }
            return;
        }
        if door.tls == ReceiveTls::Off {
            if demands {
                let text = format!(
                    "\"off\", but {own} sends in TLS only (send_connector \"{}\"): all of its mail waits, and is returned at last; set \"require\"",
                    send.name
                );
                found.error(self.there(door, "tls"), text);
            }
            return;
        }
        self.server_certificate(door, found);
        self.client_certificate(door, found);
    }

    fn server_certificate(&self, door: &Arc<ReceiveConnector>, found: &mut Findings) {
        let demand = match &self.send.tls {
            Level::Off | Level::Opportunistic | Level::Encrypt => return,
            // By MX the name is that of a host that only DNS knows.
            Level::Certificate(roots) | Level::Domain(roots, None) => Demand::Certificate(roots.clone()),
            Level::Domain(roots, Some(names)) => Demand::Domain(roots.clone(), names.clone()),
        };
        let presents = self.presents(door);
        let Some(identity) = &presents.identity else { return };
        let Err(unmet) = demand.judge(&identity.as_seen(), self.now) else { return };
        let text = match unmet {
            _ if self.is_over(identity) => return,
            Unmet::Name { demanded, seen } => format!(
                "demands a certificate for {demanded}, but {} presents one for {seen} (receive_connector \"{}\"): no mail leaves; write one of these names here",
                self.far.words(),
                presents.name
            ),
            other => format!(
                "{} presents a certificate that this does not accept (receive_connector \"{}\"): {other}; name the root of its issuer in ca_file",
                self.far.words(),
                presents.name
            ),
        };
        let key = if text.starts_with("demands") { "tls_domain" } else { "ca_file" };
        found.error(self.here(key), text);
    }

    /// The connector whose certificate is shown before the client has proved anything: among those that share the
    /// address, one that asks for none.
    fn presents<'c>(&'c self, door: &'c Arc<ReceiveConnector>) -> &'c Arc<ReceiveConnector> {
        if door.tls_domain.is_none() {
            return door;
        }
        let ports = self.ports();
        let reached = door.listen.iter().any(|at| ports.contains(&at.port()));
        let addresses = || door.listen.iter().filter(|at| !reached || ports.contains(&at.port()));
        let narrowest = door.remote_ips.iter().map(|network| network.prefix_len()).max();
        let before = self.far.config.receive_connectors.iter().find(|other| {
            other.tls_domain.is_none()
                && addresses().any(|at| other.listen.contains(at))
                && match self.source().first() {
                    Some(ip) => other.remote_ips.iter().any(|network| network.contains(ip)),
                    None => other
                        .remote_ips
                        .iter()
                        .any(|network| Some(network.prefix_len()) == narrowest || network.prefix_len() == 0),
                }
        });
        before.unwrap_or(door)
    }

    fn client_certificate(&self, door: &Arc<ReceiveConnector>, found: &mut Findings) {
        let (Some(names), Some(roots)) = (&door.tls_domain, &door.client_roots) else { return };
        let Some(identity) = &self.send.identity else {
            let text = format!(
                "missing: {} asks for a client certificate for {names} (receive_connector \"{}\") and takes this mail for the Internet's without; set certificate and key",
                self.far.words(),
                door.name
            );
            return found.error(self.here("certificate"), text);
        };
        let Err(unmet) = identity.as_client().judge(roots, names, self.now) else { return };
        if self.is_over(identity) {
            return;
        }
        let consequence = "the connection counts as from the Internet";
        match unmet {
            Unmet::Name { demanded, seen } => {
                let text = format!(
                    "asks for a certificate for {demanded}, but {} presents one for {seen} (send_connector \"{}\"): {consequence}; write one of these names here",
                    self.own.words(),
                    self.send.name
                );
                found.error(self.there(door, "tls_domain"), text);
            }
            other => {
                let text = format!(
                    "{} presents a certificate that this does not accept (send_connector \"{}\"): {other}: {consequence}; name the root of its issuer here",
                    self.own.words(),
                    self.send.name
                );
                found.error(self.there(door, "client_ca_file"), text);
            }
        }
    }

    /// A certificate that is out of time has its finding where it stands.
    fn is_over(&self, identity: &Identity) -> bool {
        identity.expiry() < self.now
    }

    /// Whether it stays internal, and whose it is.
    fn trust(&self, door: &Arc<ReceiveConnector>, found: &mut Findings) {
        let (send, own, far) = (self.send, self.own.words(), self.far.words());
        match (send.internal, door.internal) {
            (true, false) => {
                let text = format!(
                    "false, but {own} sends organization headers (send_connector \"{}\": internal = true): they are removed here, and its mail is treated as a stranger's; set true",
                    send.name
                );
                return found.error(self.there(door, "internal"), text);
            }
            (false, true) => {
                let text = format!(
                    "false, but {far} expects organization headers (receive_connector \"{}\": internal = true): they are removed before this mail leaves; set true",
                    door.name
                );
                return found.error(self.here("internal"), text);
            }
            (true, true) | (false, false) => {}
        }
        if !door.originator_org.is_empty() {
            let listed = door.originator_org.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (says, cure) = match self.own.config.organization().filter(|_| send.internal) {
                Some(organization) if door.originator_org.contains(organization) => (None, String::new()),
                Some(organization) => {
                    let domains = &self.own.config.accepted_domains;
                    let first = domains.iter().find(|domain| domain.kind == DomainKind::Authoritative);
                    let why = match first {
                        Some(_) => "its first authoritative domain",
                        None => "its first domain, since none is authoritative",
                    };
                    (Some(format!("says {organization} (XOORG: {why})")), format!("write {organization} here too"))
                }
                None => (
                    Some("says none, since the connectors are not internal".to_owned()),
                    "set internal = true on both, or leave this out".to_owned(),
                ),
            };
            if let Some(says) = says {
                let text = format!("{listed}, but {own} {says}: all of its mail counts as from the Internet; {cure}");
                found.error(self.there(door, "originator_org"), text);
            }
        }
        if door.require_auth && send.login.is_none() {
            let text =
                format!("missing: {far} asks for a login (receive_connector \"{}\": require_auth = true)", door.name);
            found.error(self.here("username"), text);
        }
    }

    /// A message that was accepted and is then too large for the other side comes back to its sender.
    fn limits(&self, door: &ReceiveConnector, found: &mut Findings) {
        let Some(limit) = door.max_message_size else { return };
        let accepted = self.own.config.receive_connectors.iter().map(|connector| connector.max_message_size);
        // `None` is no limit, the greatest of all.
        let accepted = accepted.max_by_key(|size| size.unwrap_or(u64::MAX)).flatten();
        let sends = match (self.send.max_message_size, accepted) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        if sends.is_none_or(|sends| sends > limit) {
            let larger = sends.map_or("of any size".to_owned(), |sends| format!("up to {}", size(sends)));
            let text = format!(
                "{} accepts messages {larger} and hands them on, but {} takes at most {} (receive_connector \"{}\"): larger ones are returned after they were accepted; set \"{}\" here, so that they are refused at once, or raise it there",
                self.own.words(),
                self.far.words(),
                size(limit),
                door.name,
                size(limit)
            );
            found.warn(self.here("max_message_size"), text);
        }
    }
}

/// `36MiB`, as it would be written.
fn size(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}
