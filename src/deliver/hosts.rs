//! Smart hosts or MX, in order, spread among equals.
//!
//! The rules are pure; [`Hosts`] drives them and asks the resolver for one preference at a time, so what is not
//! needed is not looked up. What DNS says is a stranger's word: it may not lead into private networks, nor back
//! to us.
//!
//! Standards: RFC 5321 section 5 (MX), 7505 (null MX), 6890 (special addresses).

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use fastrand::Rng;
use ipnet::IpNet;

use crate::config::{Hops, SendConnector, SmartHostAddress};
use crate::dns::{Absence, Answer, Mx, Resolve};
use crate::message::Domain;
use crate::outcome::Setback;
use crate::route::Hop;

/// How many addresses are tried in one attempt. RFC 5321 section 5.1 asks for at least two.
pub(super) const ADDRESSES: usize = 5;

/// How many hosts of an MX list are looked up: a list of thousands is somebody's attack on somebody (S-143).
const HOSTS: usize = 10;

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
    ready: VecDeque<Target>,
    tried: usize,
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
        let groups = in_order(hosts, &mut rng);
        let ready = VecDeque::new();
        let nothing = Nothing::default();
        Ok(Self { resolver, ourselves, private_targets, domain, groups, ready, tried: 0, rng, nothing })
    }

    /// The next address to try; `None`: there are no more, or enough were tried.
    pub async fn next(&mut self) -> Option<Target> {
        if self.tried >= ADDRESSES {
            return None;
        }
        while self.ready.is_empty() {
            let group = self.groups.pop_front()?;
            self.look_up(group).await;
        }
        self.tried += 1;
        self.ready.pop_front()
    }

    /// The address given last was put off, or could not even be tried, because this machine has no way into its
    /// network. It does not count.
    pub fn was_not_tried(&mut self) {
        self.tried = self.tried.saturating_sub(1);
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
fn in_order(mut hosts: Vec<Host>, rng: &mut Rng) -> VecDeque<Vec<Host>> {
    rng.shuffle(&mut hosts);
    hosts.sort_by_key(|host| host.preference);
    hosts.truncate(HOSTS);
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
    use std::collections::HashMap;
    use std::sync::Arc;
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
        while let Some(target) = hosts.next().await {
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
        while hosts.next().await.is_some() {
            hosts.was_not_tried();
            out_of_reach += 1;
        }
        assert_eq!(out_of_reach, 30, "ten hosts of three addresses");
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
