//! What DNS says about the accepted domains: MX, SPF, TLSA, MTA-STS.
//!
//! Not here: the policy of MTA-STS, which is fetched by HTTPS; DNSSEC, so TLSA records are shown and not believed.
//!
//! Standards: RFC 5321 section 5.1 (MX), 7208 (SPF), 7672 (TLSA), 8461 section 3.1 (MTA-STS).

use std::collections::HashSet;

use super::spf::{self, LOOKUPS, shown};
use crate::config::{Config, DomainKind, FirstHop, Hops, Origin, Side, SmartHostAddress};
use crate::dns::{Absence, Answer, Mx, Resolve as _, Resolver};
use crate::message::Domain;

/// Records that one SPF record may take in before nobody goes on reading; a receiver stops at ten look-ups.
const RECORDS: usize = 30;

/// Mail servers of one domain that are looked at, best first.
const HOSTS: usize = 10;

/// What was found out about one accepted domain.
#[derive(Debug, Clone, Default)]
pub struct DomainSeen {
    /// Its name.
    pub name: String,
    /// Facts, each with its record type: `("MX", "10 mail.contoso.com: this relay")`.
    pub facts: Vec<(&'static str, String)>,
    /// What somebody should look at, each with its record type.
    pub warnings: Vec<(&'static str, String)>,
}

impl DomainSeen {
    fn fact(&mut self, kind: &'static str, text: impl Into<String>) {
        self.facts.push((kind, text.into()));
    }

    pub(super) fn warn(&mut self, kind: &'static str, text: impl Into<String>) {
        self.warnings.push((kind, text.into()));
    }
}

/// Asks about `domain`. What was found before time is up stays in `seen`.
pub(super) async fn look(
    config: &Config,
    domain: &Domain,
    kind: DomainKind,
    resolver: &Resolver,
    seen: &mut DomainSeen,
) {
    seen.name = domain.to_string();
    let hosts = mx(config, domain, kind, resolver, seen).await;
    spf_of(domain, resolver, seen).await;
    tlsa(&hosts, resolver, seen).await;
    mta_sts(domain, resolver, seen).await;
}

/// Whose host an MX record names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    OtherPremises,
    Foreign,
}

async fn mx(
    config: &Config,
    domain: &Domain,
    kind: DomainKind,
    resolver: &Resolver,
    seen: &mut DomainSeen,
) -> Vec<Domain> {
    let records = match resolver.mx(domain).await {
        Answer::Found(records) => records,
        Answer::Absent(absence) => {
            let what = match absence {
                Absence::NoName => "the domain does not exist: nobody can write to it; publish an MX record",
                Absence::NoRecord => "it has none: other servers try the addresses of the domain itself; publish one",
            };
            seen.warn("MX", what);
            return Vec::new();
        }
        Answer::Unknown(why) => {
            seen.warn("MX", format!("DNS cannot tell: {why}"));
            return Vec::new();
        }
    };
    if records.iter().all(|record| record.host.is_none()) {
        seen.warn("MX", "it is null (RFC 7505): the domain takes no mail, says DNS, and is an accepted domain here");
        return Vec::new();
    }
    let mut hosts = Vec::new();
    for Mx { preference, host } in records.into_iter().take(HOSTS) {
        let Some(host) = host else { continue };
        let owner = owner(config, &host, resolver).await;
        let words = match owner {
            Whose::Ours => "this relay",
            Whose::OtherPremises => "the other premises",
            Whose::Foreign => "neither this relay nor the other premises",
        };
        seen.fact("MX", format!("{preference} {host}: {words}"));
        hosts.push((host, owner));
    }
    judge_mx(config, kind, &hosts, seen);
    hosts.into_iter().map(|(host, _)| host).collect()
}

/// Does the MX lead where the scenario has it?
fn judge_mx(config: &Config, kind: DomainKind, hosts: &[(Domain, Whose)], seen: &mut DomainSeen) {
    let any = |whose| hosts.iter().any(|(_, owner)| *owner == whose);
    let takes_internet = config.receive_connectors.iter().any(|connector| connector.origin == Origin::Internet);
    if any(Whose::Ours) && !takes_internet {
        seen.warn("MX", "it names this relay, where no receive_connector has origin = \"internet\"; add one, or let the MX name the other premises");
    }
    let Some(hybrid) = &config.hybrid else { return };
    if kind != DomainKind::ExternalRelay && !any(Whose::Ours) && !any(Whose::OtherPremises) {
        let names = hosts.iter().map(|(host, _)| host.to_string()).collect::<Vec<_>>().join(", ");
        seen.warn(
            "MX",
            format!("{names}: neither this relay ({}) nor a host of the other premises: who filters for you? If nobody does, mail goes astray", config.hostname),
        );
    }
    if matches!(hybrid.side, Side::Cloud { inbound_first_hop: FirstHop::OnPremises }) && any(Whose::OtherPremises) {
        seen.warn(
            "MX",
            "it names the on-premises side, though inbound_first_hop = \"on-premises\" is for mail that comes in here (scenario 2); let it name this relay, or leave that key out",
        );
    }
}

async fn owner(config: &Config, host: &Domain, resolver: &Resolver) -> Whose {
    if *host == config.hostname {
        return Whose::Ours;
    }
    let mut other_names = Vec::new();
    if let Some(hybrid) = &config.hybrid {
        let other = match hybrid.side {
            Side::OnPremises => &hybrid.cloud,
            Side::Cloud { .. } => &hybrid.on_premises,
        };
        if let Some(Hops::SmartHosts(hosts)) = config.send_connector(other).map(|connector| &connector.hops) {
            other_names.extend(hosts.iter().map(|host| host.host.clone()));
        }
    }
    if other_names.iter().any(|name| matches!(name, SmartHostAddress::Name(name) if name == host)) {
        return Whose::OtherPremises;
    }
    // Another name of the same host.
    let Answer::Found(addresses) = resolver.addresses(host).await else { return Whose::Foreign };
    let listening = config.receive_connectors.iter().flat_map(|connector| connector.listen.iter());
    let mut ours: Vec<_> = listening.map(std::net::SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
    if let Answer::Found(own) = resolver.addresses(&config.hostname).await {
        ours.extend(own);
    }
    if addresses.iter().any(|address| ours.contains(address)) {
        return Whose::Ours;
    }
    for other in other_names {
        let others = match other {
            SmartHostAddress::Ip(ip) => vec![ip],
            SmartHostAddress::Name(name) => match resolver.addresses(&name).await {
                Answer::Found(addresses) => addresses,
                Answer::Absent(_) | Answer::Unknown(_) => Vec::new(),
            },
        };
        if others.iter().any(|ip| addresses.contains(ip)) {
            return Whose::OtherPremises;
        }
    }
    Whose::Foreign
}

async fn spf_of(domain: &Domain, resolver: &Resolver, seen: &mut DomainSeen) {
    let texts = match resolver.txt(domain).await {
        Answer::Found(texts) => texts,
        Answer::Absent(_) => Vec::new(),
        Answer::Unknown(why) => return seen.warn("SPF", format!("DNS cannot tell: {why}")),
    };
    let spf = spf::read(&texts);
    for mistake in &spf.mistakes {
        seen.warn("SPF", mistake.clone());
    }
    let Some(record) = spf.record else {
        if spf.mistakes.is_empty() {
            seen.warn("SPF", "there is no record: receivers cannot tell your hosts from others; publish one with the hosts from which mail leaves");
        }
        return;
    };
    // What the included records cost counts too.
    let (mut cost, mut left, mut known) = (spf.lookups, spf.includes, HashSet::new());
    while let Some(name) = left.pop() {
        if known.len() >= RECORDS || cost > LOOKUPS || !known.insert(name.to_ascii_lowercase()) {
            continue;
        }
        let Ok(included) = Domain::parse(&name) else { continue };
        match resolver.txt(&included).await {
            Answer::Found(texts) => {
                let inner = spf::read(&texts);
                if inner.record.is_none() {
                    seen.warn("SPF", format!("{name}, which it includes, has no SPF record (permerror)"));
                }
                cost += inner.lookups;
                left.extend(inner.includes);
            }
            Answer::Absent(_) => seen.warn("SPF", format!("{name}, which it includes, has no SPF record (permerror)")),
            Answer::Unknown(why) => seen.warn("SPF", format!("{name}, which it includes: DNS cannot tell: {why}")),
        }
    }
    if cost > LOOKUPS && spf.lookups <= LOOKUPS {
        seen.warn(
            "SPF",
            format!("with what it includes it costs more than {LOOKUPS} DNS look-ups, where receivers stop (permerror); name networks by ip4: and ip6: instead"),
        );
    }
    seen.fact("SPF", format!("{} ({cost} of {LOOKUPS} look-ups)", shown(&record)));
}

async fn tlsa(hosts: &[Domain], resolver: &Resolver, seen: &mut DomainSeen) {
    let mut told = HashSet::new();
    for host in hosts.iter().filter(|host| told.insert((*host).clone())) {
        match resolver.tlsa(host, 25).await {
            Answer::Found(records) => {
                let words = records.iter().map(|tlsa| format!("{} {} {}", tlsa.usage, tlsa.selector, tlsa.matching));
                seen.fact("TLSA", format!("{host}: {} (not validated)", words.collect::<Vec<_>>().join(", ")));
                if records.iter().all(|tlsa| !matches!(tlsa.usage, 2 | 3)) {
                    seen.warn(
                        "TLSA",
                        format!("{host}: no record has usage 2 or 3, the only ones for mail (RFC 7672 section 3.1)"),
                    );
                }
            }
            Answer::Absent(_) => seen.fact("TLSA", format!("{host}: none")),
            Answer::Unknown(why) => seen.warn("TLSA", format!("{host}: DNS cannot tell: {why}")),
        }
    }
}

async fn mta_sts(domain: &Domain, resolver: &Resolver, seen: &mut DomainSeen) {
    let texts = match resolver.txt_below("_mta-sts", domain).await {
        Answer::Found(texts) => texts,
        Answer::Absent(_) => return seen.fact("MTA-STS", "none"),
        Answer::Unknown(why) => return seen.warn("MTA-STS", format!("DNS cannot tell: {why}")),
    };
    // Section 3.1: others are passed over; of two nobody holds.
    let records: Vec<_> = texts.iter().filter(|text| text.starts_with("v=STSv1;")).collect();
    match records.as_slice() {
        [record] => {
            let id = record.split(';').filter_map(|field| field.trim().strip_prefix("id=")).next().unwrap_or_default();
            if id.is_empty() || id.len() > 32 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
                seen.warn(
                    "MTA-STS",
                    format!("\"{}\" has no id of 1 to 32 letters and digits, so senders pass it over", shown(record)),
                );
            } else {
                seen.fact("MTA-STS", format!("id {id}; the policy itself was not fetched"));
            }
        }
        [] => seen.warn(
            "MTA-STS",
            format!(
                "\"{}\" does not begin with \"v=STSv1;\", so senders pass it over",
                texts.first().map(|text| shown(text)).unwrap_or_default()
            ),
        ),
        several => seen.warn("MTA-STS", format!("there are {} records, so none holds; leave one", several.len())),
    }
}
