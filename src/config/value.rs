//! Values as they are written in the file: durations, sizes, networks, address spaces, smart hosts.
//!
//! Each function takes the text of one value. Its error is what follows `found "…", ` in the message: what was
//! expected, with an example that could be copied.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Rate;
use crate::message::{Address, Domain};

/// No wait in a mail system is longer; and adding it to any clock cannot overflow.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// The name of a receive or send connector.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectorName(pub Arc<str>);

impl fmt::Display for ConnectorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ConnectorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `"example.com"`, `"*.example.com"` or `"*"`, with an optional cost: `"example.com;10"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressSpace {
    /// What it matches.
    pub pattern: Pattern,
    /// Lower is preferred among equally specific ones. 1 unless written.
    pub cost: u32,
}

/// Which domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This one only.
    Exact(Domain),
    /// It and its subdomains.
    Suffix(Domain),
    /// All.
    Any,
}

/// One entry of `smart_hosts`: `"host"`, `"host:port"`, `"192.0.2.1"`, `"[2001:db8::1]:25"`, each with `";preference"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmartHost {
    /// Name or address.
    pub host: SmartHostAddress,
    /// Where it says so.
    pub port: Option<u16>,
    /// Lower is tried first. 10 unless written.
    pub preference: u16,
}

/// Name or address of a smart host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SmartHostAddress {
    /// A host name, looked up as A and AAAA.
    Name(Domain),
    /// An address.
    Ip(IpAddr),
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(domain) => write!(f, "{domain}"),
            Self::Suffix(domain) => write!(f, "*.{domain}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl fmt::Display for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cost {
            1 => write!(f, "{}", self.pattern),
            cost => write!(f, "{};{cost}", self.pattern),
        }
    }
}

impl fmt::Display for SmartHostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

impl fmt::Display for SmartHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl Pattern {
    /// True if it matches `domain`.
    pub fn matches(&self, domain: &Domain) -> bool {
        match self {
            Self::Exact(exact) => domain == exact,
            Self::Suffix(suffix) => domain.is_within(suffix),
            Self::Any => true,
        }
    }
}

/// `"90s"`, `"4h"`, `"2d"`, `"5m"`, `"200ms"`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = || r#"expected a duration such as "90s", "5m", "4h" or "2d""#.to_owned();
    let (number, unit) = number_and_unit(text).ok_or_else(expected)?;
    let duration = match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(60 * 60).map(Duration::from_secs),
        "d" => number.checked_mul(24 * 60 * 60).map(Duration::from_secs),
        _ => return Err(expected()),
    };
    duration.filter(|duration| *duration <= LONGEST).ok_or_else(|| r#"expected at most "3650d""#.to_owned())
}

/// A duration that is more than nothing.
pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(r#"expected a duration longer than "0s""#.to_owned()),
        some => Ok(some),
    }
}

/// `"36MiB"`; KiB, MiB, GiB or plain bytes with B. Nothing is `"0"`, with or without a unit.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let expected = || r#"expected a size such as "36MiB" (B, KiB, MiB or GiB)"#.to_owned();
    let (number, unit) = number_and_unit(text).ok_or_else(expected)?;
    let factor = match unit {
        "" if number == 0 => 1,
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(expected()),
    };
    number.checked_mul(factor).ok_or_else(|| "which is more than any disk holds".to_owned())
}

/// `"600/min"`: messages each s, min or h.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let expected = || r#"expected a rate such as "600/min" (s, min or h)"#.to_owned();
    let (count, unit) = text.split_once('/').ok_or_else(expected)?;
    let (count, "") = number_and_unit(count).ok_or_else(expected)? else { return Err(expected()) };
    let count = u32::try_from(count).ok().filter(|count| *count > 0).ok_or_else(expected)?;
    let per = match unit {
        "s" => 1,
        "min" => 60,
        "h" => 60 * 60,
        _ => return Err(expected()),
    };
    Ok(Rate { count, per: Duration::from_secs(per) })
}

/// A domain name; an address literal is none here.
pub(crate) fn domain(text: &str) -> Result<Domain, String> {
    let expected = || r#"expected a domain such as "contoso.com""#.to_owned();
    let domain = Domain::parse(text).map_err(|_| expected())?;
    if domain.literal().is_some() { Err(expected()) } else { Ok(domain) }
}

/// A domain, or `"*."` and a domain for its subdomains as well.
pub(super) fn wild_domain(text: &str) -> Result<(Domain, bool), String> {
    let (name, subdomains) = match text.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (text, false),
    };
    match domain(name) {
        Ok(domain) => Ok((domain, subdomains)),
        Err(_) => Err(r#"expected a domain such as "contoso.com" or "*.contoso.com""#.to_owned()),
    }
}

/// A name for `tls_domain`: a host or domain name, or `"*."` and one.
pub(crate) fn tls_name(text: &str) -> Result<String, String> {
    let (domain, wild) =
        wild_domain(text).map_err(|_| r#"expected a name such as "mail.contoso.com" or "*.contoso.com""#.to_owned())?;
    Ok(if wild { format!("*.{domain}") } else { domain.to_string() })
}

/// A full mail address.
pub(super) fn address(text: &str) -> Result<Address, String> {
    Address::parse(text)
        .map_err(|malformed| format!(r#"expected an address such as "postmaster@contoso.com"; {malformed}"#))
}

/// The name of a connector: something that a log line can carry.
pub(super) fn connector_name(text: &str) -> Result<ConnectorName, String> {
    let fits = !text.is_empty() && text.len() <= 64 && text.trim() == text && !text.chars().any(char::is_control);
    match fits {
        true => Ok(ConnectorName(text.into())),
        false => Err(r#"expected a name of 1 to 64 characters such as "to-cloud""#.to_owned()),
    }
}

/// `"0.0.0.0:25"`, `"[::]:25"`. Port 0 asks the system for a free one.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| match text.rsplit_once(':') {
        Some((ip, port)) if ip.parse::<std::net::Ipv6Addr>().is_ok() => {
            format!(r#"expected brackets around an IPv6 address: "[{ip}]:{port}""#)
        }
        _ => r#"expected an address and a port such as "0.0.0.0:25" or "[::]:25""#.to_owned(),
    })
}

/// An address, with or without a port; IPv6 in brackets as in [`smart_host`].
pub(super) fn dns_server(text: &str) -> Result<SocketAddr, String> {
    let expected = || r#"expected an address such as "192.0.2.53", "127.0.0.1:5353" or "[2001:db8::53]:53""#.to_owned();
    match host_and_port(text)? {
        (SmartHostAddress::Ip(ip), port) => Ok(SocketAddr::new(ip, port.unwrap_or(53))),
        (SmartHostAddress::Name(_), _) => Err(expected()),
    }
}

/// `"10.0.0.0/8"`; an address alone is a network of one.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let expected = || r#"expected a network such as "10.0.0.0/8", "2001:db8::/32" or "192.0.2.1""#.to_owned();
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip));
    }
    let net: IpNet = text.parse().map_err(|_| expected())?;
    // Bits behind the prefix are mostly a slip of the hand in either number, so nobody should guess which.
    if net.trunc() == net { Ok(net) } else { Err(format!(r#"expected "{}" or a longer prefix"#, net.trunc())) }
}

/// An address of this host.
pub(super) fn source_ip(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(ip),
        _ => Err(r#"expected an address of this host such as "192.0.2.1" or "2001:db8::1""#.to_owned()),
    }
}

/// `"example.com"`, `"*.example.com"`, `"*"`, each with `";cost"`.
pub(super) fn address_space(text: &str) -> Result<AddressSpace, String> {
    let expected = || r#"expected "example.com", "*.example.com" or "*", with an optional cost as in "example.com;10""#;
    let (pattern, cost) = match text.split_once(';') {
        Some((pattern, cost)) => (pattern, number::<u32>(cost).filter(|cost| (1..=100).contains(cost))),
        None => (text, Some(1)),
    };
    let cost = cost.ok_or_else(|| "expected a cost from 1 to 100 behind the semicolon".to_owned())?;
    let pattern = match pattern {
        "*" => Pattern::Any,
        _ => match wild_domain(pattern).map_err(|_| expected().to_owned())? {
            (domain, true) => Pattern::Suffix(domain),
            (domain, false) => Pattern::Exact(domain),
        },
    };
    Ok(AddressSpace { pattern, cost })
}

/// `"host"`, `"host:port"`, `"192.0.2.1"`, `"[192.0.2.1]:25"`, `"[2001:db8::1]:25"`, each with `";preference"`.
pub(crate) fn smart_host(text: &str) -> Result<SmartHost, String> {
    let (host, preference) = match text.split_once(';') {
        Some((host, preference)) => (host, number(preference)),
        None => (text, Some(10)),
    };
    let preference =
        preference.ok_or_else(|| "expected a preference from 0 to 65535 behind the semicolon".to_owned())?;
    let (host, port) = host_and_port(host)?;
    Ok(SmartHost { host, port, preference })
}

fn host_and_port(text: &str) -> Result<(SmartHostAddress, Option<u16>), String> {
    let expected = || r#"expected a host such as "mail.contoso.com", "192.0.2.1:25" or "[2001:db8::1]:25""#.to_owned();
    let port = |text: &str| {
        number::<u16>(text).filter(|port| *port > 0).ok_or_else(|| "expected a port from 1 to 65535".to_owned())
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, rest) = rest.split_once(']').ok_or_else(expected)?;
        let ip = ip.parse::<IpAddr>().map_err(|_| expected())?;
        return match rest.strip_prefix(':') {
            Some(digits) => Ok((SmartHostAddress::Ip(ip), Some(port(digits)?))),
            None if rest.is_empty() => Ok((SmartHostAddress::Ip(ip), None)),
            None => Err(expected()),
        };
    }
    if text.matches(':').count() > 1 {
        // 2001:db8::1:25 is an address, and also an address with a port: nobody can tell which was meant.
        return Err(r#"expected brackets around an IPv6 address: "[2001:db8::1]" or "[2001:db8::1]:25""#.to_owned());
    }
    let (host, port) = match text.split_once(':') {
        Some((host, digits)) => (host, Some(port(digits)?)),
        None => (text, None),
    };
    match host.parse::<Ipv4Addr>() {
        Ok(ip) => Ok((SmartHostAddress::Ip(ip.into()), port)),
        Err(_) => domain(host).map(|name| (SmartHostAddress::Name(name), port)).map_err(|_| expected()),
    }
}

/// What the log shows: a level, or levels for parts of the program.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    let level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
    let sound = text.split(',').all(|part| match part.trim().split_once('=') {
        Some((target, word)) => {
            let path = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
            !target.is_empty() && target.bytes().all(path) && level(word)
        }
        None => level(part.trim()),
    });
    if sound {
        Ok(text.to_owned())
    } else {
        Err(r#"expected "error", "warn", "info", "debug", "trace" or a filter such as "info,causeway::deliver=debug""#
            .to_owned())
    }
}

/// Any text but none.
pub(super) fn something(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        Err("expected some text without control characters".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some((number(&text[..digits])?, &text[digits..]))
}

/// Digits only: Rust's own parser also takes a plus sign.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("200ms", Some(200)),
            ("0s", Some(0)),
            ("90s", Some(90_000)),
            ("5m", Some(300_000)),
            ("4h", Some(14_400_000)),
            ("2d", Some(172_800_000)),
            ("3650d", Some(315_360_000_000)),
            ("3651d", None),
            ("18446744073709551615d", None),
            ("99999999999999999999s", None),
            ("90", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("+1s", None),
            ("1.5h", None),
            ("1 s", None),
            ("1w", None),
            ("1S", None),
            ("١s", None),
        ] {
            assert_eq!(duration(text).ok().map(|it| it.as_millis()), expected, "{text}");
        }
        assert!(some_time("0ms").is_err());
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("0B", Some(0)),
            ("0MiB", Some(0)),
            ("1B", Some(1)),
            ("64KiB", Some(65_536)),
            ("36MiB", Some(37_748_736)),
            ("2GiB", Some(2_147_483_648)),
            ("17179869183GiB", Some(18_446_744_072_635_809_792)),
            ("17179869184GiB", None),
            ("36", None),
            ("36MB", None),
            ("36mib", None),
            ("36 MiB", None),
            ("MiB", None),
            ("-1B", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, expected) in [
            ("600/min", Some((600, 60))),
            ("1/s", Some((1, 1))),
            ("5000/h", Some((5000, 3600))),
            ("0/s", None),
            ("600", None),
            ("600/", None),
            ("600/m", None),
            ("4294967296/s", None),
            ("+1/s", None),
            ("1x/s", None),
        ] {
            assert_eq!(rate(text).ok().map(|it| (it.count, it.per.as_secs())), expected, "{text}");
        }
    }

    #[test]
    fn smart_hosts() {
        for (text, expected) in [
            ("mail.contoso.com", "mail.contoso.com 10"),
            ("mail.contoso.com:587", "mail.contoso.com:587 10"),
            ("mail.contoso.com:587;5", "mail.contoso.com:587 5"),
            ("MAIL.contoso.com;0", "mail.contoso.com 0"),
            ("192.0.2.1", "192.0.2.1 10"),
            ("192.0.2.1:26", "192.0.2.1:26 10"),
            ("[192.0.2.1]:25", "192.0.2.1:25 10"),
            ("[192.0.2.1]", "192.0.2.1 10"),
            ("[2001:db8::1]:25;20", "[2001:db8::1]:25 20"),
            ("[2001:db8::1]", "[2001:db8::1] 10"),
            ("2001:db8::1", "brackets"),
            ("2001:db8::1:25", "brackets"),
            ("::1", "brackets"),
            ("mail.contoso.com:0", "port"),
            ("mail.contoso.com:65536", "port"),
            ("mail.contoso.com:", "port"),
            ("mail.contoso.com:smtp", "port"),
            ("mail.contoso.com;65536", "preference"),
            ("mail.contoso.com;", "preference"),
            ("mail.contoso.com;-1", "preference"),
            ("", "host"),
            (":25", "host"),
            ("[192.0.2.1", "host"),
            ("[192.0.2.1]25", "host"),
            ("[mail.contoso.com]", "host"),
            ("192.0.2.256", "host"),
            ("mail .contoso.com", "host"),
        ] {
            match smart_host(text) {
                Ok(host) => assert_eq!(format!("{host} {}", host.preference), expected, "{text}"),
                Err(why) => assert!(why.contains(expected), "{text}: {why}"),
            }
        }
    }

    #[test]
    fn address_spaces() {
        for (text, expected) in [
            ("example.com", "example.com"),
            ("Example.COM;1", "example.com"),
            ("*.example.com;10", "*.example.com;10"),
            ("*", "*"),
            ("*;100", "*;100"),
            ("*;0", "cost"),
            ("*;101", "cost"),
            ("*;", "cost"),
            ("*;+5", "cost"),
            ("", "expected"),
            ("*.", "expected"),
            ("*.*.com", "expected"),
            ("*example.com", "expected"),
            ("[192.0.2.1]", "expected"),
            ("SMTP:example.com;1", "expected"),
        ] {
            match address_space(text) {
                Ok(space) => assert_eq!(space.to_string(), expected, "{text}"),
                Err(why) => assert!(why.contains(expected), "{text}: {why}"),
            }
        }
    }

    #[test]
    fn addresses_and_networks() {
        for (text, expected) in [
            ("0.0.0.0:25", Ok("0.0.0.0:25")),
            ("[::]:25", Ok("[::]:25")),
            ("127.0.0.1:0", Ok("127.0.0.1:0")),
            ("2001:db8::1:25", Err("brackets")),
            ("0.0.0.0", Err("port")),
            (":25", Err("port")),
            ("25", Err("port")),
            ("localhost:25", Err("port")),
            ("0.0.0.0:65536", Err("port")),
        ] {
            match (listen(text), expected) {
                (Ok(address), Ok(expected)) => assert_eq!(address.to_string(), expected),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{text}: {why}"),
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
        for (text, expected) in [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("192.0.2.1", Ok("192.0.2.1/32")),
            ("2001:db8::1", Ok("2001:db8::1/128")),
            ("::/0", Ok("::/0")),
            ("10.1.2.3/8", Err(r#"expected "10.0.0.0/8" or a longer prefix"#)),
            ("10.0.0.0/33", Err("expected a network")),
            ("10.0.0.0-10.0.0.9", Err("expected a network")),
            ("", Err("expected a network")),
        ] {
            match (network(text), expected) {
                (Ok(net), Ok(expected)) => assert_eq!(net.to_string(), expected),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{text}: {why}"),
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
        for (text, expected) in [
            ("192.0.2.53", Some("192.0.2.53:53")),
            ("127.0.0.1:5353", Some("127.0.0.1:5353")),
            ("[2001:db8::53]", Some("[2001:db8::53]:53")),
            ("dns.contoso.com", None),
            ("::1", None),
        ] {
            assert_eq!(dns_server(text).ok().map(|it| it.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn log_levels() {
        for (text, expected) in [
            ("info", true),
            ("info,causeway::deliver=debug", true),
            ("warn, causeway=trace", true),
            ("verbose", false),
            ("", false),
            ("info,", false),
            ("=debug", false),
            ("causeway=loud", false),
        ] {
            assert_eq!(log_level(text).is_ok(), expected, "{text}");
        }
    }
}
