//! By which receive connector a message comes in, and what it is then held to be, as far as the configuration tells.
//!
//! Not here: the choice for a real connection (`accept::attribute`), which has a certificate; here one is only spoken of.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{Config, Origin, ReceiveConnector};
use crate::route::trust::{Claim, Clause, Verdict, Words};
use crate::tls::Unmet;

/// The receive connector that such a message comes in by.
///
/// As for real connections the most specific `remote_ips` wins, then whoever asks for the certificate that is there.
/// The listen addresses are not asked about: a message that can come in by one of them can come in.
pub(super) fn door<'a>(
    config: &'a Config,
    origin: Option<Origin>,
    client: Option<IpAddr>,
    tls_name: Option<&str>,
) -> Result<&'a Arc<ReceiveConnector>, String> {
    let proved = |connector: &ReceiveConnector| match (&connector.tls_domain, tls_name) {
        (Some(names), Some(name)) => names.carried_by(name).is_some(),
        (Some(_), None) | (None, _) => false,
    };
    let connectors = || config.receive_connectors.iter();
    if let Some(ip) = client.map(|ip| ip.to_canonical()) {
        let specificity = |connector: &ReceiveConnector| network(connector, ip).map(|network| network.prefix_len());
        let takes = || connectors().filter_map(|one| specificity(one).map(|specificity| (specificity, one)));
        // `max_by_key` gives the last of equals; the first in the file holds.
        let open = takes().filter(|(_, one)| one.tls_domain.is_none() || proved(one)).rev();
        if let Some((_, connector)) = open.max_by_key(|(specificity, one)| (*specificity, proved(one))) {
            return Ok(connector);
        }
        return Err(match takes().rev().max_by_key(|(specificity, _)| *specificity) {
            None => format!("no receive connector takes {ip}: the connection gets 554 5.7.1"),
            Some((_, connector)) => {
                let names = connector.tls_domain.as_ref().map(ToString::to_string).unwrap_or_default();
                format!(
                    "{ip} can come in only by receive connector {}, which asks for a certificate for {names} (--tls-name): \
                     MAIL FROM gets 550 5.7.1",
                    connector.name
                )
            }
        });
    }
    if origin.is_none()
        && let Some(name) = tls_name
    {
        return connectors()
            .find(|connector| proved(connector))
            .ok_or_else(|| format!("no receive connector has a tls_domain that a certificate for {name:?} carries"));
    }
    let origin = origin.unwrap_or(Origin::Internet);
    let of_origin = || connectors().filter(|connector| connector.origin == origin);
    // Without a word on certificates the connector's own demand is taken as met.
    of_origin()
        .find(|connector| proved(connector))
        .or_else(|| of_origin().find(|connector| tls_name.is_none() || connector.tls_domain.is_none()))
        .ok_or_else(|| match tls_name {
            Some(name) if of_origin().next().is_some() => {
                let origin = origin.word();
                format!("no receive connector of origin \"{origin}\" takes a client with a certificate for {name:?}")
            }
            _ => format!("no receive connector has the origin \"{}\"", origin.word()),
        })
}

/// What a message that comes in by `door` is held to be: by what it comes in, then the verdict in the words of the
/// tracking event, with every clause, also those that are not asked. What only the client or the message can show is
/// taken for granted, and that is said.
pub(super) fn comes_in(
    config: &Config,
    door: &ReceiveConnector,
    client: Option<IpAddr>,
    tls_name: Option<&str>,
) -> Vec<String> {
    const GRANTED: &str = "; taken for granted here";
    let client = client.map(|ip| ip.to_canonical());
    let network = client.and_then(|ip| network(door, ip)).copied();
    let roots = |connector: &ReceiveConnector| {
        Clause::True(connector.client_roots.as_ref().map(|roots| roots.origin.to_string()).unwrap_or_default().into())
    };
    let shown = tls_name.filter(|_| door.tls_domain.is_some());
    let (certificate, name) = match (&door.tls_domain, shown) {
        (None, _) => (Clause::NotAsked, Clause::NotAsked),
        (Some(_), Some(shown)) => (roots(door), Clause::True(shown.to_owned().into())),
        (Some(names), None) => (roots(door), Clause::True(names.to_string().into())),
    };
    let verdict = Verdict::new(door, network, certificate, name);
    let listed = door.originator_org.iter().map(|domain| domain.as_str()).collect::<Vec<_>>().join(" or ");
    let verdict = match listed.as_str() {
        "" => verdict,
        _ => verdict.with_originator(Clause::True(listed.clone().into())),
    };
    let mut words = vec![format!("comes in by receive connector \"{}\", origin {}", door.name, door.origin.word())];
    let granted = |holds: bool| if holds { GRANTED } else { "" };
    words.push(match (verdict.internal, listed.as_str()) {
        (true, listed) if !listed.is_empty() => format!("{} if it is of {listed}", Words::Internal(&verdict)),
        _ => Words::Internal(&verdict).to_string(),
    });
    words.push(Words::Connector(&verdict).to_string());
    let asked = door.tls_domain.is_some();
    words.push(format!("{}{}", Words::Certificate(&verdict.claim.certificate), granted(asked)));
    words.push(match (asked, shown, tls_name) {
        (false, _, Some(shown)) => format!("{}, so {shown} proves nothing here", Words::Name(&verdict.claim.name)),
        (_, shown, _) => format!("{}{}", Words::Name(&verdict.claim.name), granted(asked && shown.is_none())),
    });
    words.push(match listed.as_str() {
        "" => Words::Originator(&verdict.originator_org).to_string(),
        _ => format!(
            "{}{GRANTED}: XOORG or X-OriginatorOrg must say so, else the message counts as from the Internet",
            Words::Originator(&verdict.originator_org)
        ),
    });
    if let Some(ip) = client {
        words.extend(lost(config, door, ip, tls_name).iter().map(|claim| Words::Lost(claim).to_string()));
    }
    words
}

/// The connectors that would have taken this client, had it proved what they ask for.
fn lost(config: &Config, door: &ReceiveConnector, ip: IpAddr, tls_name: Option<&str>) -> Vec<Claim> {
    let Some(won) = network(door, ip).map(|network| network.prefix_len()) else { return Vec::new() };
    let proved = door.tls_domain.is_some();
    let others = config.receive_connectors.iter().filter(|other| {
        other.name != door.name
            && other.listen.iter().any(|listen| door.listen.contains(listen))
            && network(other, ip)
                .is_some_and(|network| network.prefix_len() > won || (network.prefix_len() == won && !proved))
    });
    others
        .filter_map(|other| {
            let names = other.tls_domain.as_ref()?;
            let (certificate, name) = match tls_name {
                None => (Clause::False("none was presented".into()), Clause::NotAsked),
                Some(shown) if names.carried_by(shown).is_some() => return None,
                Some(shown) => {
                    let unmet = Unmet::Name { demanded: names.to_string(), seen: shown.to_owned() };
                    (Clause::NotAsked, Clause::False(unmet.to_string().into()))
                }
            };
            Some(Claim { connector: other.name.clone(), certificate, name })
        })
        .collect()
}

/// The longest network in `remote_ips` that holds `ip`.
fn network(connector: &ReceiveConnector, ip: IpAddr) -> Option<&IpNet> {
    connector.remote_ips.iter().filter(|network| network.contains(&ip)).max_by_key(|network| network.prefix_len())
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::route::explain::origin;

    const DOORS: &str = r#"
hostname = "mail.contoso.com"
[spool]
path = "spool"
[[accepted_domain]]
name = "contoso.com"
type = "external-relay"
[[receive_connector]]
name = "internet"
listen = ["192.0.2.25:25"]
origin = "internet"
tls = "off"
[[receive_connector]]
name = "cloud"
listen = ["192.0.2.25:25"]
origin = "cloud"
certificate = "CERT"
key = "KEY"
tls_domain = ["mail.protection.outlook.com", "*.cloud.example"]
internal = true
originator_org = ["contoso.com", "fabrikam.com"]
client_ca_file = "CERT"
[[receive_connector]]
name = "servers"
listen = ["192.0.2.25:25"]
remote_ips = ["10.0.0.0/8"]
origin = "on-premises"
tls = "off"
[[receive_connector]]
name = "partner"
listen = ["192.0.2.25:25"]
remote_ips = ["198.51.100.0/24"]
origin = "partner"
tls = "off"
sender_domains = ["fabrikam.com", "*.fabrikam.example"]
only_here = true
[[receive_connector]]
name = "printers"
listen = ["192.0.2.25:25"]
remote_ips = ["10.1.0.0/16"]
origin = "client"
tls = "off"
[[send_connector]]
name = "out"
address_spaces = ["*"]
tls = "opportunistic"
"#;

    /// The configuration above, with a certificate made for it.
    pub(in crate::route::explain) fn doors() -> Config {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["mail.contoso.com".to_owned()]).unwrap();
        let (certificate, key) = (folder.path().join("mail.crt"), folder.path().join("mail.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let text = DOORS.replace("CERT", certificate.to_str().unwrap()).replace("KEY", key.to_str().unwrap());
        config::parse(&text, Path::new("causeway.toml")).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn the_door_is_chosen_by_address_origin_and_name() {
        let config = doors();
        for (asked, ip, name, expected) in [
            (None, None, None, "internet"),
            (Some("cloud"), None, None, "cloud"),
            (Some("cloud"), None, Some("mail.protection.outlook.com"), "cloud"),
            (Some("client"), None, None, "printers"),
            (None, None, Some("MAIL.protection.outlook.com"), "cloud"),
            (None, None, Some("a.cloud.example"), "cloud"),
            (None, Some("203.0.113.9"), None, "internet"),
            (None, Some("2001:db8::9"), None, "internet"),
            (None, Some("203.0.113.9"), Some("mail.protection.outlook.com"), "cloud"),
            (None, Some("203.0.113.9"), Some("mail.example.org"), "internet"),
            (None, Some("10.2.0.1"), None, "servers"),
            (None, Some("10.1.0.1"), None, "printers"),
            (None, Some("::ffff:10.1.0.1"), None, "printers"),
            // The address is more specific than the name.
            (None, Some("10.2.0.1"), Some("mail.protection.outlook.com"), "servers"),
        ] {
            let origin = asked.map(|word| origin(word).unwrap());
            let client = ip.map(|ip| ip.parse().unwrap());
            let door = door(&config, origin, client, name).unwrap();
            assert_eq!(door.name.to_string(), expected, "{asked:?} {ip:?} {name:?}");
        }
        for (asked, name, expected) in [
            (None, Some("mail.example.org"), "no receive connector has a tls_domain that a certificate for"),
            (Some("cloud"), Some("mail.example.org"), "of origin \"cloud\" takes a client with a certificate for"),
        ] {
            let error = door(&config, asked.map(|word| origin(word).unwrap()), None, name).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_the_message_is_held_to_be_is_said_clause_by_clause() {
        let config = doors();
        for (ip, name, expected) in [
            (
                Some("203.0.113.9"),
                None,
                &[
                    "comes in by receive connector \"internet\", origin internet",
                    "internal: no, receive connector \"internet\" does not have internal = true",
                    "connector \"internet\" (0.0.0.0/0): matched",
                    "certificate: not asked",
                    "name: not asked",
                    "originator_org: not asked",
                    "connector \"cloud\": did not match, certificate: none was presented",
                ][..],
            ),
            (
                Some("203.0.113.9"),
                Some("mail.example.org"),
                &[
                    "comes in by receive connector \"internet\", origin internet",
                    "internal: no, receive connector \"internet\" does not have internal = true",
                    "connector \"internet\" (0.0.0.0/0): matched",
                    "certificate: not asked",
                    "name: not asked, so mail.example.org proves nothing here",
                    "originator_org: not asked",
                    "connector \"cloud\": did not match, name: demanded a certificate for mail.protection.outlook.com or *.cloud.example, \
                     saw one for mail.example.org",
                ],
            ),
            (
                Some("10.2.0.1"),
                Some("mail.protection.outlook.com"),
                &[
                    "comes in by receive connector \"servers\", origin on-premises",
                    "internal: no, receive connector \"servers\" does not have internal = true",
                    "connector \"servers\" (10.0.0.0/8): matched",
                    "certificate: not asked",
                    "name: not asked, so mail.protection.outlook.com proves nothing here",
                    "originator_org: not asked",
                ],
            ),
            (
                None,
                Some("a.cloud.example"),
                &[
                    "comes in by receive connector \"cloud\", origin cloud",
                    "internal: yes if it is of contoso.com or fabrikam.com",
                    "connector \"cloud\": matched",
                    "certificate chains to ROOTS: true; taken for granted here",
                    "name a.cloud.example: true",
                    "originator_org contoso.com or fabrikam.com: true; taken for granted here: XOORG or X-OriginatorOrg must \
                     say so, else the message counts as from the Internet",
                ],
            ),
        ] {
            let client = ip.map(|ip| ip.parse().unwrap());
            let door = door(&config, None, client, name).unwrap();
            let roots = door.client_roots.as_ref().map(|roots| roots.origin.to_string()).unwrap_or("ROOTS".to_owned());
            let words = comes_in(&config, door, client, name);
            let words: Vec<_> = words.iter().map(|words| words.replace(&roots, "ROOTS")).collect();
            assert_eq!(words, expected, "{ip:?} {name:?}");
        }
        let cloud = door(&config, Some(Origin::Cloud), None, None).unwrap();
        let words = comes_in(&config, cloud, None, None);
        assert!(
            words.contains(
                &"name mail.protection.outlook.com or *.cloud.example: true; taken for granted here".to_owned()
            ),
            "{words:?}"
        );
    }
}
