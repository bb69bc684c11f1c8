//! Records as our own types, and what an answer means for mail.
//!
//! An answer comes from strangers: records of other names are left out, so are hosts that are none, and there is a
//! limit to everything.
//!
//! Standards: RFC 5321 section 5.1 (MX), 7505 (null MX), 2308 (negative answers), 2181 section 10.3 (an MX names no
//! alias: we follow it all the same, as everybody does).

use std::net::IpAddr;

use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record};

use super::{Absence, Answer, Mx, Tlsa};
use crate::message::Domain;

/// More mail servers of one domain are not looked at (C250).
const MAX_MX: usize = 200;
/// More addresses of one host are not looked at (S-141).
const MAX_ADDRESSES: usize = 64;
/// More texts, or TLSA records, of one name are not looked at.
const MAX_TEXTS: usize = 100;
/// Aliases of one name (S-141). The same limit holds for aliases that the resolver must ask for one by one.
const MAX_ALIASES: usize = 8;

/// What went wrong with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// A proven absence.
    Absent(Absence),
    /// The name has no such record, says an answer that proves nothing: it may also be the end of a loop of aliases.
    AbsentWithoutProof,
    /// Nobody could tell.
    Unknown(String),
}

impl Trouble {
    pub(super) fn of(error: &NetError) -> Self {
        let NetError::Dns(DnsError::NoRecordsFound(nothing)) = error else {
            return Self::Unknown(in_words(error));
        };
        match nothing.response_code {
            ResponseCode::NXDomain => Self::Absent(Absence::NoName),
            // Where hickory has given up following aliases it reports the same, but without the authority section.
            ResponseCode::NoError if nothing.soa.is_some() && nothing.authorities.is_some() => {
                Self::Absent(Absence::NoRecord)
            }
            // The server does not know and names others who might: it is not responsible for the name (lame).
            ResponseCode::NoError if nothing.ns.is_some() => {
                Self::Unknown("the name server only refers to others".to_owned())
            }
            ResponseCode::NoError => Self::AbsentWithoutProof,
            code => Self::Unknown(format!("the name server answered {code}")),
        }
    }
}

fn in_words(error: &NetError) -> String {
    match error {
        NetError::Timeout => "no name server answered in time".to_owned(),
        NetError::Dns(DnsError::ResponseCode(code)) => format!("the name server answered {code}"),
        other => other.to_string(),
    }
}

/// The MX records of `domain` in an answer, best first.
pub(super) fn mx(domain: &Name, answer: &Lookup) -> Answer<Vec<Mx>> {
    let records = match owned_by(domain, answer.answers()) {
        Ok(records) => records,
        Err(why) => return Answer::Unknown(why),
    };
    let (mut hosts, mut null) = (Vec::new(), false);
    for record in records {
        let RData::MX(mx) = &record.data else { continue };
        match host(&mx.exchange) {
            Host::Name(host) => hosts.push(Mx { preference: mx.preference, host: Some(host) }),
            Host::Null => null = true,
            Host::Malformed => {}
        }
    }
    // RFC 7505 section 3: a null MX stands alone. Beside others it is a mistake, and the others count.
    if !hosts.is_empty() {
        hosts.sort_by(|a, b| a.preference.cmp(&b.preference).then_with(|| a.host.cmp(&b.host)));
        hosts.dedup();
        hosts.truncate(MAX_MX);
        return Answer::Found(hosts);
    }
    if null {
        return Answer::Found(vec![Mx { preference: 0, host: None }]);
    }
    // Not an absence: the domain wants its mail elsewhere than at its own address, and says badly where.
    Answer::Unknown("its MX records name no host that can exist".to_owned())
}

/// The addresses of `host` in an answer.
pub(super) fn addresses(host: &Name, answer: &Lookup) -> Result<Vec<IpAddr>, String> {
    let mut addresses = Vec::new();
    for record in owned_by(host, answer.answers())? {
        let address = match &record.data {
            RData::A(address) => IpAddr::V4(address.0),
            RData::AAAA(address) => IpAddr::V6(address.0),
            _ => continue,
        };
        if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// The texts of `name` in an answer; octets that are no text are replaced.
pub(super) fn texts(name: &Name, answer: &Lookup) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    for record in owned_by(name, answer.answers())? {
        if let RData::TXT(text) = &record.data
            && texts.len() < MAX_TEXTS
        {
            texts.push(String::from_utf8_lossy(&text.txt_data.concat()).into_owned());
        }
    }
    Ok(texts)
}

/// The TLSA records of `name` in an answer.
pub(super) fn tlsa(name: &Name, answer: &Lookup) -> Result<Vec<Tlsa>, String> {
    let mut records = Vec::new();
    for record in owned_by(name, answer.answers())? {
        if let RData::TLSA(tlsa) = &record.data
            && records.len() < MAX_TEXTS
        {
            records.push(Tlsa {
                usage: tlsa.cert_usage.into(),
                selector: tlsa.selector.into(),
                matching: tlsa.matching.into(),
                data: tlsa.cert_data.clone(),
            });
        }
    }
    Ok(records)
}

/// What two questions about one host say together.
pub(super) fn both(v6: Answer<Vec<IpAddr>>, v4: Answer<Vec<IpAddr>>) -> Answer<Vec<IpAddr>> {
    match (v6, v4) {
        (Answer::Found(mut v6), Answer::Found(v4)) => {
            // Neither family may crowd out the other.
            v6.truncate(MAX_ADDRESSES - v4.len().min(MAX_ADDRESSES / 2));
            v6.extend(v4);
            v6.truncate(MAX_ADDRESSES);
            Answer::Found(v6)
        }
        (Answer::Found(found), _) | (_, Answer::Found(found)) => Answer::Found(found),
        (Answer::Unknown(why), _) | (_, Answer::Unknown(why)) => Answer::Unknown(why),
        (Answer::Absent(Absence::NoName), Answer::Absent(Absence::NoName)) => Answer::Absent(Absence::NoName),
        (Answer::Absent(_), Answer::Absent(_)) => Answer::Absent(Absence::NoRecord),
    }
}

enum Host {
    Name(Domain),
    Null,
    Malformed,
}

/// The host that an MX record names.
fn host(exchange: &Name) -> Host {
    // `localhost` is how people write a null MX who do not know it (C245); we are not their mail server.
    if exchange.is_root() || exchange.is_localhost() {
        return Host::Null;
    }
    let well_formed = |label: &[u8]| label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let text = exchange.to_ascii();
    let text = text.strip_suffix('.').unwrap_or(&text);
    // No top-level domain is a number: `127.0.0.1` is an address where a name belongs, and never taken for one.
    let numeric = text.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if numeric || !exchange.iter().all(well_formed) {
        return Host::Malformed;
    }
    Domain::parse(text).map_or(Host::Malformed, Host::Name)
}

/// The records that belong to `name` or to what it is an alias of.
fn owned_by<'a>(name: &Name, answers: &'a [Record]) -> Result<Vec<&'a Record>, String> {
    let mut owner = name;
    for _ in 0..=MAX_ALIASES {
        let alias = answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *owner => Some(&target.0),
            _ => None,
        });
        match alias {
            Some(target) => owner = target,
            None => return Ok(answers.iter().filter(|record| record.name == *owner).collect()),
        }
    }
    Err(format!("it is an alias of an alias, more than {MAX_ALIASES} times or in a circle"))
}
