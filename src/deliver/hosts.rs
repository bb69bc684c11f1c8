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
const ADDRESSES: usize = 5;

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
            (Hop::SmartHosts, Hops::SmartHosts(smart_hosts)) => (
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
            // The copy was planned when the connector had other hosts. What it says now holds.
            (Hop::Mx(_), Hops::SmartHosts(smart_hosts)) => (
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
                    exchangers.into_iter().map(|(preference, name)| mx(SmartHostAddress::Name(name), preference)).collect()
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

    /// The address given last could not even be tried: this machine has no way into its network. It does not count.
    pub fn was_out_of_reach(&mut self) {
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
                why: why.map_or_else(|| "no host is left".to_owned(), |(host, why)| format!("{host}: {why}")),
            },
            // A smart host is the administrator's word; a slip in it must not return the mail.
            (None, Some((host, why))) => Setback::Dns { name: host.to_string(), why },
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
                    Answer::Absent(Absence::NoName) => self.nothing.why = Some((name, "it does not exist".to_owned())),
                    Answer::Absent(Absence::NoRecord) => {
                        self.nothing.why = Some((name, "it has no address".to_owned()));
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
                    self.nothing.why = Some((host, format!("{ip} is private, and dns.private_targets does not list it")));
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
            // A name that looks like an address is none: nobody may choose an address by it.
            let hosts: Vec<_> = named
                .filter(|(_, host)| host.literal().is_none() && host.as_str().parse::<IpAddr>().is_err())
                .collect();
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
