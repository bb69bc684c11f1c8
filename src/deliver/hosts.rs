//! Smart hosts or MX, in order, spread among equals.
//!
//! The rules are pure; [`Hosts`] drives them and asks the resolver for one preference at a time, so what is not
//! needed is not looked up. What DNS says is a stranger's word: it may not lead into private networks, nor back
//! to us.
//!
//! One attempt tries [`ADDRESSES`]. However many a preference has, it leaves one of them to each preference that
//! follows, so a backup is reached in the attempt in which the others fail. Addresses that failed before and have not
//! answered since come last, the one that failed longest ago first: a later attempt goes on where the last one stopped,
//! and comes round. One of them is tried again before a less preferred address is used, so that mail finds back.
//!
//! Standards: RFC 5321 section 5 (MX), 7505 (null MX), 6890 (special addresses).

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use fastrand::Rng;
use ipnet::IpNet;

use crate::config::{Hops, SendConnector, SmartHostAddress};
use crate::dns::{Absence, Answer, Mx, Resolve};
use crate::message::Domain;
use crate::outcome::Setback;
use crate::route::Hop;

/// How many addresses are tried in one attempt. RFC 5321 section 5.1 asks for at least two.
const ADDRESSES: usize = 5;

/// How many hosts of an MX list are looked up: a list of thousands is somebody's attack on somebody (S-143).
const HOSTS: usize = 10;

/// How many addresses that failed before are tried again ahead of those that did not.
const PROBES: usize = 1;

/// How many addresses of one host are kept.
const ADDRESSES_PER_HOST: usize = 64;

/// One address that may be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The host's name; `None` where the configuration or the recipient names an address.
    pub name: Option<Domain>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Lower is preferred.
    pub preference: u16,
}

/// What earlier attempts learned of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It answers, or nothing is known of it.
    Good,
    /// It failed then, and has not answered since.
    Failed(Instant),
    /// It failed then, a moment ago, or another attempt asks at this moment whether it is back.
    Resting(Instant),
}

/// Who knows how addresses stand.
pub trait Known {
    /// How this one stands.
    fn standing(&self, address: SocketAddr) -> Standing;

    /// It is about to be tried though it failed before. False: another attempt does that at this moment.
    fn probe(&self, address: SocketAddr) -> bool;
}

/// Nothing is known.
impl Known for () {
    fn standing(&self, _: SocketAddr) -> Standing {
        Standing::Good
    }

    fn probe(&self, _: SocketAddr) -> bool {
        true
    }
}

/// A host whose addresses are not looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    host: SmartHostAddress,
    port: u16,
    preference: u16,
}

/// How we know ourselves in somebody's MX records.
#[derive(Debug)]
pub struct Ourselves {
    /// Our name.
    pub hostname: Domain,
    /// Where we listen.
    pub listening: Vec<SocketAddr>,
    /// Is this address one of this machine's?
    pub is_local: fn(IpAddr) -> bool,
}

impl Ourselves {
    /// This machine, under this name.
    pub fn new(hostname: Domain, listening: Vec<SocketAddr>) -> Self {
        Self { hostname, listening, is_local }
    }

    fn has_name(&self, name: &Domain) -> bool {
        let name = name.as_str();
        name == self.hostname.as_str() || name == "localhost" || name.ends_with(".localhost")
    }

    fn has_address(&self, address: SocketAddr) -> bool {
        self.listening.iter().any(|ours| {
            ours.port() == address.port()
                && if ours.ip().is_unspecified() {
                    // `[::]` may take IPv4 too.
                    (ours.is_ipv6() || address.is_ipv4()) && (self.is_local)(address.ip())
                } else {
                    ours.ip() == address.ip()
                }
        })
    }
}

/// An address is ours if a socket may be bound to it; no interface needs to be listed for that.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// The hosts of one next hop, in the order in which they are tried.
#[derive(Debug)]
pub struct Hosts<'a, R> {
    resolver: &'a R,
    ourselves: &'a Ourselves,
    private_targets: &'a [IpNet],
    /// What DNS is asked about; `None`: these are smart hosts.
    domain: Option<&'a Domain>,
    groups: VecDeque<Vec<Host>>,
    /// Addresses of the preference whose turn it is.
    ready: VecDeque<Target>,
    /// So many more of these are tried before the next preference has its turn.
    share: usize,
    /// Those beyond their preference's share: tried once every preference has had its turn.
    surplus: VecDeque<Target>,
    /// Those that failed before, and when.
    failed: Vec<(Instant, Target)>,
    probes: usize,
    tried: usize,
    /// The one given last was an IPv6 address.
    last_was_v6: Option<bool>,
    rng: Rng,
    nothing: Nothing,
}

/// Why no address came of a host: what is said if none comes of any.
#[derive(Debug, Default)]
struct Nothing {
    /// DNS could not tell about one: then nobody knows.
    unknown: Option<(String, String)>,
    ourselves: bool,
    /// The last proven reason.
    why: Option<(Domain, String)>,
}

impl<'a, R: Resolve> Hosts<'a, R> {
    /// Finds the hosts of `hop`.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn find(
        resolver: &'a R,
        connector: &SendConnector,
        hop: &'a Hop,
        ourselves: &'a Ourselves,
        private_targets: &'a [IpNet],
        mut rng: Rng,
    ) -> Result<Self, Setback> {
        let mx = |host: SmartHostAddress, preference| Host { host, port: connector.port, preference };
        let (domain, hosts) = match (hop, &connector.hops) {
            // A copy for a domain's MX was planned when the connector had other hosts. What it says now holds.
            (Hop::SmartHosts | Hop::Mx(_), Hops::SmartHosts(smart_hosts)) => (
                None,
                smart_hosts
                    .iter()
                    .map(|host| Host {
                        host: host.host.clone(),
                        port: host.port.unwrap_or(connector.port),
                        preference: host.preference,
                    })
                    .collect(),
            ),
            (Hop::SmartHosts, Hops::Mx) => {
                return Err(Setback::NoConnector { name: connector.name.to_string(), state: "without smart hosts" });
            }
            (Hop::Mx(domain), Hops::Mx) => {
                let hosts = if let Some(ip) = domain.literal() {
                    vec![mx(SmartHostAddress::Ip(ip), 0)]
                } else {
                    let exchangers = mail_exchangers(domain, resolver.mx(domain).await)?;
                    exchangers
                        .into_iter()
                        .map(|(preference, name)| mx(SmartHostAddress::Name(name), preference))
                        .collect()
                };
                (Some(domain), hosts)
            }
        };
        // Those that the configuration names are as many as somebody wrote.
        let most = if domain.is_some() { HOSTS } else { usize::MAX };
        let groups = in_order(hosts, most, &mut rng);
        Ok(Self {
            resolver,
            ourselves,
            private_targets,
            domain,
            groups,
            ready: VecDeque::new(),
            share: 0,
            surplus: VecDeque::new(),
            failed: Vec::new(),
            probes: PROBES,
            tried: 0,
            last_was_v6: None,
            rng,
            nothing: Nothing::default(),
        })
    }

    /// The next address to try; `None`: there are no more, or enough were tried.
    pub async fn next(&mut self, known: &impl Known) -> Option<Target> {
        if self.tried >= ADDRESSES {
            return None;
        }
        loop {
            if let Some(target) = self.next_good(known) {
                self.tried += 1;
                self.last_was_v6 = Some(target.address.is_ipv6());
                return Some(target);
            }
            let Some(group) = self.groups.pop_front() else { break };
            self.share = (ADDRESSES - self.tried).saturating_sub(self.groups.len()).max(1);
            self.look_up(group).await;
            self.change_family();
        }
        let target = self.surplus.pop_front().or_else(|| {
            // Nothing but these is left. They are tried whether they rest or not.
            let longest_ago = |(at, (since, _)): (usize, &(Instant, Target))| (*since, at);
            let at = self.failed.iter().enumerate().map(longest_ago).min()?.1;
            Some(self.failed.remove(at).1)
        })?;
        self.tried += 1;
        Some(target)
    }

    /// Where a preference has one try, it must not always be of a family without a way out.
    fn change_family(&mut self) {
        let is_last = |target: &Target| Some(target.address.is_ipv6()) == self.last_was_v6;
        if self.ready.front().is_some_and(is_last)
            && let Some(at) = self.ready.iter().position(|target| !is_last(target))
            && let Some(other) = self.ready.remove(at)
        {
            self.ready.push_front(other);
        }
    }

    /// The next address of the present preference that did not fail before; ahead of it, once, one that did and is preferred
    /// to it.
    fn next_good(&mut self, known: &impl Known) -> Option<Target> {
        while let Some(target) = self.ready.pop_front() {
            match known.standing(target.address) {
                Standing::Good if self.share == 0 => self.surplus.push_back(target),
                Standing::Good => {
                    if let Some(probe) = self.next_probe(known) {
                        self.ready.push_front(target);
                        return Some(probe);
                    }
                    self.share -= 1;
                    return Some(target);
                }
                Standing::Failed(since) | Standing::Resting(since) => self.failed.push((since, target)),
            }
        }
        None
    }

    /// The one that failed longest ago, of those that do not rest. It takes no try from the preferences that follow, unless
    /// there are so many that none would be left.
    fn next_probe(&mut self, known: &impl Known) -> Option<Target> {
        let left = (ADDRESSES - self.tried).saturating_sub(self.groups.len() + 1);
        if left == 0 && self.tried > 0 {
            return None;
        }
        while self.probes > 0 {
            let rested = |(at, (_, target)): (usize, &(Instant, Target))| match known.standing(target.address) {
                Standing::Resting(_) => None,
                // It answered meanwhile, or everything that was known of it is forgotten.
                Standing::Good => Some((None, at)),
                Standing::Failed(since) => Some((Some(since), at)),
            };
            let at = self.failed.iter().enumerate().filter_map(rested).min()?.1;
            if known.probe(self.failed[at].1.address) {
                self.probes -= 1;
                self.share = self.share.min(left).max(1);
                return Some(self.failed.remove(at).1);
            }
            // Another attempt was quicker: it rests by now.
        }
        None
    }

    /// The address given last could not even be tried, because this machine has no way into its network, or nobody was to
    /// be sent there. It does not count.
    pub fn was_not_tried(&mut self) {
        self.tried = self.tried.saturating_sub(1);
        self.share += 1;
    }

    /// Preferences whose turn has not come are left out.
    pub fn look_no_further(&mut self) {
        self.groups.clear();
    }

    /// A host of this preference is this relay itself. Of an MX list its equals and what is worse would only bring mail
    /// back here: RFC 5321 section 5.1. Smart hosts are the administrator's word, and may be tried all the same.
    pub fn leads_back(&mut self, preference: u16) {
        if self.domain.is_some() {
            self.groups.clear();
            self.ready.clear();
            self.surplus.retain(|target| target.preference < preference);
            self.failed.retain(|(_, target)| target.preference < preference);
        }
    }

    /// Why there was nothing to try.
    pub fn why_nothing(self) -> Setback {
        let Nothing { unknown, ourselves, why } = self.nothing;
        if let Some((name, why)) = unknown {
            return Setback::Dns { name, why };
        }
        match (self.domain, why) {
            (Some(domain), _) if ourselves => Setback::Ourselves { domain: domain.clone() },
            (Some(domain), why) => Setback::NoAddress {
                domain: domain.clone(),
                why: why.map_or_else(|| "no host is left".to_owned(), |(host, what)| format!("{host} {what}")),
            },
            // A smart host is the administrator's word; a slip in it must not return the mail.
            (None, Some((host, what))) => Setback::NoSmartHost { name: host.to_string(), what },
            (None, None) => Setback::Dns { name: "the smart hosts".to_owned(), why: "there are none".to_owned() },
        }
    }

    /// Makes targets of the hosts of one preference.
    async fn look_up(&mut self, group: Vec<Host>) {
        let mut targets = Vec::new();
        let mut leads_to_us = false;
        for Host { host, port, preference } in group {
            let target = |name: Option<&Domain>, ip| Target {
                name: name.cloned(),
                address: SocketAddr::new(ip, port),
                preference,
            };
            match host {
                SmartHostAddress::Ip(ip) => targets.push(target(None, ip)),
                SmartHostAddress::Name(name) if self.domain.is_some() && self.ourselves.has_name(&name) => {
                    leads_to_us = true;
                }
                SmartHostAddress::Name(name) => match self.resolver.addresses(&name).await {
                    Answer::Found(addresses) => {
                        let addresses = interleaved(addresses, &mut self.rng);
                        targets.extend(addresses.into_iter().map(|ip| target(Some(&name), ip)));
                    }
                    Answer::Absent(Absence::NoName) => self.nothing.why = Some((name, "is not in DNS".to_owned())),
                    Answer::Absent(Absence::NoRecord) => {
                        self.nothing.why = Some((name, "has no address in DNS".to_owned()));
                    }
                    Answer::Unknown(why) => self.nothing.unknown = Some((name.to_string(), why)),
                },
            }
        }
        if let Some(domain) = self.domain {
            leads_to_us |= targets.iter().any(|target| self.ourselves.has_address(target.address));
            if leads_to_us {
                // RFC 5321 section 5.1: this preference and what is worse would only bring it back here.
                self.nothing.ourselves = true;
                self.groups.clear();
                return;
            }
            targets.retain(|target| {
                let ip = target.address.ip();
                let allowed = is_public(ip) || self.private_targets.iter().any(|network| network.contains(&plain(ip)));
                if !allowed {
                    let host = target.name.clone().unwrap_or_else(|| domain.clone());
                    let what =
                        format!("has the address {ip}, which is private, and dns.private_targets does not list it");
                    self.nothing.why = Some((host, what));
                }
                allowed
            });
        }
        self.ready.extend(targets);
    }
}

/// The hosts that MX records name, or the domain itself where it has none. RFC 5321 section 5.1.
fn mail_exchangers(domain: &Domain, answer: Answer<Vec<Mx>>) -> Result<Vec<(u16, Domain)>, Setback> {
    match answer {
        Answer::Found(records) => {
            // RFC 7505 section 3: beside other records, "." says nothing.
            if records.iter().all(|record| record.host.is_none()) {
                return Err(Setback::NullMx { domain: domain.clone() });
            }
            let named = records.into_iter().filter_map(|record| record.host.map(|host| (record.preference, host)));
            // A host is named, not numbered: `127.0.0.1.` is no `Domain` at all, and an address literal is no name.
            let hosts: Vec<_> = named.filter(|(_, host)| host.literal().is_none()).collect();
            if hosts.is_empty() {
                let why = "its MX records name no host".to_owned();
                return Err(Setback::NoAddress { domain: domain.clone(), why });
            }
            Ok(hosts)
        }
        Answer::Absent(Absence::NoRecord) => Ok(vec![(0, domain.clone())]),
        Answer::Absent(Absence::NoName) => Err(Setback::NoDomain { domain: domain.clone() }),
        Answer::Unknown(why) => Err(Setback::Dns { name: format!("the MX of {domain}"), why }),
    }
}

/// Hosts of equal preference together, each group in an order of chance. RFC 5321 section 5.1: MUST randomize.
fn in_order(mut hosts: Vec<Host>, most: usize, rng: &mut Rng) -> VecDeque<Vec<Host>> {
    rng.shuffle(&mut hosts);
    hosts.sort_by_key(|host| host.preference);
    hosts.truncate(most);
    let mut groups: VecDeque<Vec<Host>> = VecDeque::new();
    for host in hosts {
        match groups.back_mut() {
            Some(group) if group[0].preference == host.preference => group.push(host),
            _ => groups.push_back(vec![host]),
        }
    }
    groups
}

/// IPv6 and IPv4 by turns, so that a family without a way out costs one try and not all of them.
fn interleaved(mut addresses: Vec<IpAddr>, rng: &mut Rng) -> Vec<IpAddr> {
    addresses.truncate(ADDRESSES_PER_HOST);
    if addresses.len() < 2 {
        return addresses;
    }
    rng.shuffle(&mut addresses);
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut mixed = Vec::with_capacity(v6.len() + v4.len());
    loop {
        let pair = [v6.next(), v4.next()];
        if pair == [None, None] {
            return mixed;
        }
        mixed.extend(pair.into_iter().flatten());
    }
}

/// The address without its clothes: IPv4 in IPv6 (mapped, NAT64, 6to4) leads where the IPv4 address does.
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        _ => ip,
    }
}

/// May DNS send us there? RFC 6890. The networks for documentation are no danger to anyone.
fn is_public(ip: IpAddr) -> bool {
    match plain(ip) {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || a == 0
        // 100.64.0.0/10, shared behind carriers' NAT.
        || (a == 100 && (64..128).contains(&b))
        // 192.0.0.0/24 and 198.18.0.0/15: protocol assignments and benchmarks.
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && (18..20).contains(&b))
        // Multicast, reserved and broadcast.
        || a >= 224)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let first = ip.segments()[0];
    !(ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_unique_local()
        || ip.is_unicast_link_local()
        // fec0::/10, site-local of old; ::/96, IPv4 of old; 64:ff9b:1::/48, NAT64 of one's own.
        || first & 0xffc0 == 0xfec0
        || ip.segments()[..6] == [0; 6]
        || ip.segments()[..3] == [0x64, 0xff9b, 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::collections::HashMap;
    use std::sync::{Arc, OnceLock};
    use std::time::Duration;

    use crate::config::{ConnectorName, Level, SmartHost, Tags};

    /// DNS as a table; what is not in it does not exist.
    #[derive(Debug, Default)]
    struct Table {
        mx: HashMap<String, Answer<Vec<Mx>>>,
        addresses: HashMap<String, Answer<Vec<IpAddr>>>,
    }

    impl Resolve for Table {
        async fn mx(&self, domain: &Domain) -> Answer<Vec<Mx>> {
            self.mx.get(domain.as_str()).cloned().unwrap_or(Answer::Absent(Absence::NoName))
        }

        async fn addresses(&self, host: &Domain) -> Answer<Vec<IpAddr>> {
            self.addresses.get(host.as_str()).cloned().unwrap_or(Answer::Absent(Absence::NoName))
        }
    }

    impl Table {
        /// `10 a.example, 20 .` / `none` / `nxdomain` / `servfail`, and `host: address address` / `host: servfail` / `host:`.
        fn new(mx: &str, hosts: &[&str]) -> Self {
            let mx = match mx {
                "none" => Answer::Absent(Absence::NoRecord),
                "nxdomain" => Answer::Absent(Absence::NoName),
                "servfail" => Answer::Unknown("SERVFAIL".into()),
                list => Answer::Found(
                    list.split(", ")
                        .map(|record| {
                            let (preference, host) = record.split_once(' ').unwrap();
                            let host = (host != ".").then(|| Domain::parse(host).unwrap());
                            Mx { preference: preference.parse().unwrap(), host }
                        })
                        .collect(),
                ),
            };
            let addresses = hosts.iter().map(|line| {
                let (host, addresses) = line.split_once(':').unwrap();
                let answer = match addresses.trim() {
                    "" => Answer::Absent(Absence::NoRecord),
                    "servfail" => Answer::Unknown("SERVFAIL".into()),
                    list => Answer::Found(list.split(' ').map(|ip| ip.parse().unwrap()).collect()),
                };
                (host.to_owned(), answer)
            });
            Self { mx: HashMap::from([("d.example".to_owned(), mx)]), addresses: addresses.collect() }
        }
    }

    fn connector(hops: Hops) -> SendConnector {
        SendConnector {
            name: ConnectorName(Arc::from("out")),
            serves: Vec::new(),
            hops,
            port: 25,
            tls: Level::Off,
            identity: None,
            helo: None,
            source_v4: None,
            source_v6: None,
            login: None,
            max_connections: 20,
            max_messages_per_connection: 1000,
            max_recipients: 1000,
            max_message_size: None,
            rate: None,
            connect_timeout: Duration::from_secs(30),
            chunking: true,
            eight_bit: crate::config::EightBit::Convert,
            tags: Tags::Keep,
            internal: false,
            enabled: true,
        }
    }

    fn ourselves() -> Ourselves {
        Ourselves {
            hostname: Domain::parse("mail.contoso.com").unwrap(),
            listening: vec!["198.51.100.7:25".parse().unwrap(), "0.0.0.0:2525".parse().unwrap()],
            is_local: |ip| ip == IpAddr::from([198, 51, 100, 9]),
        }
    }

    /// The targets in order: `name=address`, or the setback's words.
    async fn walk(table: &Table, hops: Hops, hop: &Hop, private: &[IpNet], seed: u64) -> Vec<String> {
        let ourselves = ourselves();
        let found = Hosts::find(table, &connector(hops), hop, &ourselves, private, Rng::with_seed(seed)).await;
        let mut hosts = match found {
            Ok(hosts) => hosts,
            Err(setback) => return vec![format!("{} {setback}", setback.status())],
        };
        let mut targets = Vec::new();
        while let Some(target) = hosts.next(&()).await {
            let name = target.name.as_ref().map_or("", Domain::as_str);
            targets.push(format!("{name}={}", target.address));
        }
        if targets.is_empty() {
            let setback = hosts.why_nothing();
            targets.push(format!("{} {setback}", setback.status()));
        }
        targets
    }

    /// C240 to C252, S-140.
    #[tokio::test]
    async fn mx_records_lead_to_hosts_or_say_why_not() {
        let one = &["a.example: 192.0.2.1"][..];
        let two = &["a.example: 192.0.2.1", "b.example: 192.0.2.2"][..];
        #[rustfmt::skip]
        let cases: &[(&str, &str, &[&str], &[&str])] = &[
            ("C240", "10 a.example, 20 b.example", two, &["a.example=192.0.2.1:25", "b.example=192.0.2.2:25"]),
            ("C240", "20 b.example, 10 a.example", two, &["a.example=192.0.2.1:25", "b.example=192.0.2.2:25"]),
            ("C242", "none", &["d.example: 192.0.2.9"], &["d.example=192.0.2.9:25"]),
            ("C242 nothing", "none", &["d.example:"], &["5.4.4"]),
            ("C242 unknown", "none", &["d.example: servfail"], &["4.4.3"]),
            ("C243 none exists", "10 a.example", &["d.example: 192.0.2.9"], &["5.4.4"]),
            ("C243 one unknown", "10 a.example, 20 b.example", &["a.example: servfail"], &["4.4.3"]),
            ("C243 one is there", "10 a.example, 20 b.example", &["b.example: 192.0.2.2"], &["b.example=192.0.2.2:25"]),
            ("C244", "0 .", one, &["5.1.10"]),
            ("C244 beside", "0 ., 10 a.example", one, &["a.example=192.0.2.1:25"]),
            ("C245", "0 localhost", one, &["5.4.6"]),
            ("C245 beside", "0 a.example, 10 localhost", one, &["a.example=192.0.2.1:25"]),
            ("C245 address", "10 [127.0.0.1], 20 a.example", one, &["a.example=192.0.2.1:25"]),
            ("C245 only that", "10 [192.0.2.1]", one, &["5.4.4"]),
            ("C246", "nxdomain", one, &["5.1.2"]),
            ("C247", "servfail", one, &["4.4.3"]),
            ("C251", "10 a.example", &["a.example: 2001:db8::1 192.0.2.1"], &["a.example=[2001:db8::1]:25", "a.example=192.0.2.1:25"]),
            ("C252 name", "10 a.example, 20 mail.contoso.com, 30 b.example", two, &["a.example=192.0.2.1:25"]),
            ("C252 same preference", "10 a.example, 10 mail.contoso.com", two, &["5.4.6"]),
            ("C252 address", "10 a.example, 20 b.example", &["a.example: 192.0.2.1", "b.example: 198.51.100.7"], &["a.example=192.0.2.1:25"]),
            ("C252 nothing left", "10 b.example, 20 a.example", &["a.example: 192.0.2.1", "b.example: 198.51.100.7"], &["5.4.6"]),
            ("another port of ours", "10 b.example", &["b.example: 198.51.100.9"], &["b.example=198.51.100.9:25"]),
            ("S-140", "10 a.example", &["a.example: 10.1.2.3"], &["5.4.4"]),
            ("S-140 one of two", "10 a.example", &["a.example: 127.0.0.1 192.0.2.1"], &["a.example=192.0.2.1:25"]),
            ("S-140 the next", "10 a.example, 20 b.example", &["a.example: ::1", "b.example: 192.0.2.2"], &["b.example=192.0.2.2:25"]),
            ("allowed", "10 a.example", &["a.example: 10.9.2.3"], &["a.example=10.9.2.3:25"]),
            ("allowed, mapped", "10 a.example", &["a.example: ::ffff:10.9.2.3"], &["a.example=[::ffff:10.9.2.3]:25"]),
        ];
        let hop = Hop::Mx(Domain::parse("d.example").unwrap());
        for (id, mx, hosts, expected) in cases {
            let table = Table::new(mx, hosts);
            let seen = walk(&table, Hops::Mx, &hop, &["10.9.0.0/16".parse().unwrap()], 1).await;
            assert_eq!(seen.len(), expected.len(), "{id}: {seen:?}");
            for (seen, expected) in seen.iter().zip(*expected) {
                // Of setbacks only the status stands in the table.
                assert!(
                    seen == expected || seen.starts_with(&format!("{expected} ")),
                    "{id}: {seen:?}, not {expected:?}"
                );
            }
        }
    }

    /// C241: RFC 5321 section 5.1.
    #[tokio::test]
    async fn c241_equal_hosts_are_each_first_a_quarter_of_the_time() {
        let mx = "10 a.example, 10 b.example, 10 c.example, 10 e.example, 20 z.example";
        let hosts = ["a", "b", "c", "e", "z"].map(|name| format!("{name}.example: 192.0.2.{}", name.as_bytes()[0]));
        let table = Table::new(mx, &hosts.each_ref().map(String::as_str));
        let hop = Hop::Mx(Domain::parse("d.example").unwrap());
        let mut first = HashMap::<String, u32>::new();
        for seed in 0..10_000 {
            let order = walk(&table, Hops::Mx, &hop, &[], seed).await;
            assert_eq!(order.len(), 5);
            assert!(order[4].starts_with("z."), "{order:?}");
            *first.entry(order[0].clone()).or_default() += 1;
        }
        assert_eq!(first.len(), 4);
        assert!(first.values().all(|count| (2_300..=2_700).contains(count)), "{first:?}");
    }

    /// C250, S-143.
    #[tokio::test]
    async fn a_list_without_end_costs_five_tries() {
        let names: Vec<_> = (0..200).map(|n| format!("h{n}.example")).collect();
        let mx: Vec<_> = names.iter().map(|name| format!("10 {name}")).collect();
        let hosts: Vec<_> = names.iter().map(|name| format!("{name}: 192.0.2.1 192.0.2.2 192.0.2.3")).collect();
        let table = Table::new(&mx.join(", "), &hosts.iter().map(String::as_str).collect::<Vec<_>>());
        let hop = Hop::Mx(Domain::parse("d.example").unwrap());
        assert_eq!(walk(&table, Hops::Mx, &hop, &[], 1).await.len(), 5);

        // Families without a way out do not count, and still there is an end.
        let ourselves = ourselves();
        let connector = connector(Hops::Mx);
        let mut hosts = Hosts::find(&table, &connector, &hop, &ourselves, &[], Rng::with_seed(1)).await.unwrap();
        let mut out_of_reach = 0;
        while hosts.next(&()).await.is_some() {
            hosts.was_not_tried();
            out_of_reach += 1;
        }
        assert_eq!(out_of_reach, 30, "ten hosts of three addresses");
    }

    /// A next hop of which some addresses live, and what attempts at it have learned.
    #[derive(Default)]
    struct Memory {
        now: Cell<u64>,
        failed: RefCell<HashMap<SocketAddr, (u64, u64)>>,
    }

    impl Memory {
        fn at(second: u64) -> Instant {
            static START: OnceLock<Instant> = OnceLock::new();
            *START.get_or_init(Instant::now) + Duration::from_secs(second)
        }
    }

    impl Known for Memory {
        fn standing(&self, address: SocketAddr) -> Standing {
            match self.failed.borrow().get(&address) {
                None => Standing::Good,
                Some((at, until)) if *until > self.now.get() => Standing::Resting(Self::at(*at)),
                Some((at, _)) => Standing::Failed(Self::at(*at)),
            }
        }

        fn probe(&self, address: SocketAddr) -> bool {
            let (now, mut failed) = (self.now.get(), self.failed.borrow_mut());
            let Some((_, until)) = failed.get_mut(&address) else { return true };
            let may = *until <= now;
            *until = (now + 60).max(*until);
            may
        }
    }

    /// One attempt: the addresses that were tried, the last of them a living one if any was.
    async fn attempt(
        (table, hops, hop): (&Table, &Hops, &Hop),
        memory: &Memory,
        lives: &dyn Fn(SocketAddr) -> bool,
        seed: u64,
    ) -> Vec<SocketAddr> {
        let (ourselves, connector) = (ourselves(), connector(hops.clone()));
        let mut hosts = Hosts::find(table, &connector, hop, &ourselves, &[], Rng::with_seed(seed)).await.unwrap();
        let mut tried = Vec::new();
        while let Some(target) = hosts.next(memory).await {
            tried.push(target.address);
            if lives(target.address) {
                memory.failed.borrow_mut().remove(&target.address);
                break;
            }
            // Each takes a second to fail, and rests for a minute.
            let now = memory.now.get() + 1;
            memory.now.set(now);
            memory.failed.borrow_mut().insert(target.address, (now, now + 60));
        }
        tried
    }

    /// Whatever is dead, what lives is reached: a later attempt goes on where the last one stopped, and each preference has
    /// its turn.
    #[tokio::test]
    async fn what_lives_is_reached_whatever_is_dead() {
        let name = |number: usize| format!("h{number}.example");
        let list = |numbers: std::ops::RangeInclusive<u8>| {
            numbers.map(|number| format!("192.0.2.{number}")).collect::<Vec<_>>().join(" ")
        };
        let eight_mx: Vec<String> = (1..=8).map(|number| format!("{} {}", 10 * number, name(number))).collect();
        let eight_hosts: Vec<String> = (1..=8).map(|number| format!("{}: 192.0.2.{number}", name(number))).collect();
        let backup = ["a.example: ".to_owned() + &list(1..=8), "b.example: 192.0.2.99".to_owned()];
        let many = ["a.example: ".to_owned() + &list(1..=20)];
        let smart = |name: &str, preference| SmartHost {
            host: SmartHostAddress::Name(Domain::parse(name).unwrap()),
            port: None,
            preference,
        };
        let eight_smart = (1..=8).map(|number| smart(&name(number), number as u16)).collect();
        let backup_smart = vec![smart("a.example", 10), smart("b.example", 20)];
        let mx = Hop::Mx(Domain::parse("d.example").unwrap());
        // What lives, in how many attempts it is found, and in how many where nothing is remembered from one to the next.
        #[rustfmt::skip]
        let cases = [
            ("seven dead MX", eight_mx.join(", "), &eight_hosts[..], Hops::Mx, mx.clone(), 8, 2, None),
            ("seven dead smart hosts", String::from("none"), &eight_hosts[..], Hops::SmartHosts(eight_smart), Hop::SmartHosts, 8, 2, None),
            ("a backup MX", "10 a.example, 20 b.example".into(), &backup[..], Hops::Mx, mx.clone(), 99, 1, Some(1)),
            ("a backup smart host", "none".into(), &backup[..], Hops::SmartHosts(backup_smart), Hop::SmartHosts, 99, 1, Some(1)),
            ("one of twenty", "10 a.example".into(), &many[..], Hops::Mx, mx.clone(), 7, 5, Some(60)),
            ("none of twenty", "10 a.example".into(), &many[..], Hops::Mx, mx.clone(), 0, 99, None),
        ];
        for (id, records, hosts, hops, hop, living, most, forgetful) in cases {
            let table = Table::new(&records, &hosts.iter().map(String::as_str).collect::<Vec<_>>());
            let world = (&table, &hops, &hop);
            let lives = |address: SocketAddr| address.ip() == IpAddr::from([192, 0, 2, living]);
            for seed in 0..20 {
                let memory = Memory::default();
                let mut all = std::collections::HashSet::new();
                let mut attempts = 0;
                loop {
                    attempts += 1;
                    let tried = attempt(world, &memory, &lives, seed * 100 + attempts as u64).await;
                    assert!((1..=5).contains(&tried.len()), "{id}: {tried:?}");
                    all.extend(tried.iter().copied());
                    // The ladder's first rung: what failed last rests still, or just not.
                    memory.now.set(memory.now.get() + if seed % 2 == 0 { 50 } else { 600 });
                    if tried.last().is_some_and(|last| lives(*last)) || attempts == 10 {
                        break;
                    }
                }
                assert!(attempts <= most, "{id}: {attempts} attempts, seed {seed}");
                assert!(living != 0 || all.len() == 20, "{id}: it comes round: {}", all.len());
                if living != 0 && id != "one of twenty" {
                    // The next messages find it, and at last ask no more than one of the others whether it is back.
                    let mut tried = Vec::new();
                    for _ in 0..3 {
                        tried = attempt(world, &memory, &lives, seed).await;
                        assert!(lives(*tried.last().unwrap()), "{id}: {tried:?}");
                    }
                    assert!(tried.len() <= 2, "{id}: {tried:?}");
                }
            }
            if let Some(most) = forgetful {
                let mut found = 0;
                while !attempt(world, &Memory::default(), &lives, found).await.last().is_some_and(|last| lives(*last)) {
                    found += 1;
                    assert!(found < most as u64, "{id}: with no memory");
                }
            }
        }
    }

    /// Mail finds back to what it prefers: one that failed is asked before what is less preferred, and only one.
    #[tokio::test]
    async fn mail_finds_back_to_what_it_prefers() {
        let table = Table::new(
            "10 a.example, 20 b.example, 30 c.example",
            &["a.example: 192.0.2.1", "b.example: 192.0.2.2", "c.example: 192.0.2.3"],
        );
        let (hops, hop) = (Hops::Mx, Hop::Mx(Domain::parse("d.example").unwrap()));
        let memory = Memory::default();
        let last = |tried: &[SocketAddr]| tried.iter().map(|one| one.ip().to_string()).collect::<Vec<_>>().join(" ");
        let mut seen = Vec::new();
        for (wait, living) in
            [(0, 3..=3), (10, 3..=3), (100, 3..=3), (100, 3..=3), (100, 1..=3), (0, 1..=3), (0, 2..=2)]
        {
            memory.now.set(memory.now.get() + wait);
            let lives = |address: SocketAddr| living.clone().any(|end| address.ip() == IpAddr::from([192, 0, 2, end]));
            seen.push(last(&attempt((&table, &hops, &hop), &memory, &lives, 1).await));
        }
        #[rustfmt::skip]
        assert_eq!(seen, [
            "192.0.2.1 192.0.2.2 192.0.2.3",
            "192.0.2.3",
            "192.0.2.1 192.0.2.3",
            "192.0.2.2 192.0.2.3",
            "192.0.2.1",
            "192.0.2.1",
            "192.0.2.1 192.0.2.2",
        ]);
    }

    /// A family without a way out, whose addresses come first, does not use up the turns of all preferences.
    #[tokio::test]
    async fn one_family_that_is_dead_does_not_stop_the_other() {
        let hosts = [1, 2, 3, 4, 5].map(|number| format!("h{number}.example: 192.0.2.{number} 2001:db8::{number}"));
        let table = Table::new(
            "1 h1.example, 2 h2.example, 3 h3.example, 4 h4.example, 5 h5.example",
            &hosts.each_ref().map(String::as_str),
        );
        let (hops, hop) = (Hops::Mx, Hop::Mx(Domain::parse("d.example").unwrap()));
        for seed in 0..20 {
            let tried = attempt((&table, &hops, &hop), &Memory::default(), &|address| address.is_ipv4(), seed).await;
            assert!(tried.len() <= 2, "{tried:?}");
        }
    }

    /// A host of an MX list that turns out to be this relay ends the list there; what is preferred to it stays.
    #[tokio::test]
    async fn a_host_that_leads_back_ends_an_mx_list() {
        let hosts = ["a.example: 192.0.2.1", "b.example: 192.0.2.2 192.0.2.3", "c.example: 192.0.2.4"];
        let table = Table::new("10 a.example, 20 b.example, 30 c.example", &hosts);
        let (ourselves, connector) = (ourselves(), connector(Hops::Mx));
        let hop = Hop::Mx(Domain::parse("d.example").unwrap());
        let memory = Memory::default();
        // The preferred one failed a moment ago.
        memory.failed.borrow_mut().insert("192.0.2.1:25".parse().unwrap(), (0, 60));
        let mut hosts = Hosts::find(&table, &connector, &hop, &ourselves, &[], Rng::with_seed(1)).await.unwrap();
        assert_eq!(hosts.next(&memory).await.map(|target| target.preference), Some(20));
        hosts.leads_back(20);
        assert_eq!(hosts.next(&memory).await.map(|target| target.preference), Some(10));
        assert_eq!(hosts.next(&memory).await, None);
    }

    /// Smart hosts are the administrator's word: anywhere, in order, and a slip returns no mail.
    #[tokio::test]
    async fn smart_hosts_may_be_anywhere() {
        let host = |text: &str, port, preference| SmartHost {
            host: text
                .parse()
                .map_or_else(|_| SmartHostAddress::Name(Domain::parse(text).unwrap()), SmartHostAddress::Ip),
            port,
            preference,
        };
        let table = Table::new("0 .", &["a.example: 10.0.0.1", "b.example: servfail"]);
        #[rustfmt::skip]
        let cases = [
            (vec![host("127.0.0.1", Some(2525), 20), host("a.example", None, 10)], vec!["a.example=10.0.0.1:25", "=127.0.0.1:2525"]),
            (vec![host("gone.example", None, 10), host("::1", None, 10)], vec!["=[::1]:25"]),
            (vec![host("gone.example", None, 10)], vec!["4.4.3 smart host gone.example is not in DNS"]),
            (vec![host("b.example", None, 10)], vec!["4.4.3 DNS cannot tell about b.example: SERVFAIL"]),
            (vec![host("mail.contoso.com", None, 10), host("198.51.100.7", None, 20)], vec!["=198.51.100.7:25"]),
        ];
        for (hosts, expected) in cases {
            assert_eq!(walk(&table, Hops::SmartHosts(hosts), &Hop::SmartHosts, &[], 7).await, expected);
        }
    }

    #[tokio::test]
    async fn an_address_literal_is_used_as_it_is_but_not_to_get_inside() {
        let table = Table::default();
        for (literal, expected) in [
            ("[192.0.2.1]", "=192.0.2.1:25"),
            ("[IPv6:2001:db8::1]", "=[2001:db8::1]:25"),
            ("[10.0.0.1]", "5.4.4 "),
            ("[IPv6:::1]", "5.4.4 "),
            ("[198.51.100.7]", "5.4.6 "),
        ] {
            let hop = Hop::Mx(Domain::parse(literal).unwrap());
            let seen = walk(&table, Hops::Mx, &hop, &[], 1).await;
            assert!(seen.len() == 1 && seen[0].starts_with(expected), "{literal}: {seen:?}");
        }
    }

    /// S-140, address by address.
    #[test]
    fn s140_private_addresses_in_all_their_clothes() {
        #[rustfmt::skip]
        let private = [
            "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1", "169.254.169.254",
            "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
            "255.255.255.255", "::", "::1", "fc00::1", "fd12:3456::1", "fe80::1", "febf::1", "fec0::1", "ff02::1",
            "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::1",
            "2002:c0a8:101::", "::7f00:1", "::192.168.0.1",
        ];
        for text in private {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        #[rustfmt::skip]
        let public = [
            "8.8.8.8", "100.63.0.1", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.0.2.1", "198.20.0.1", "223.255.255.254",
            "2001:db8::1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808",
        ];
        for text in public {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn c245_a_name_that_looks_like_an_address_is_none() {
        assert!(Domain::parse("127.0.0.1").is_err() && Domain::parse("a b.example").is_err());
    }

    #[test]
    fn a_local_address_is_told_from_another() {
        assert!(is_local(IpAddr::from([127, 0, 0, 1])));
        assert!(!is_local(IpAddr::from([192, 0, 2, 1])));
    }
}
