//! By which receive connector a message comes in, and what it is then held to be, as far as the configuration tells.
//!
//! Not here: the choice for a real connection (`accept::attribute`), which has a certificate; here one is only spoken of.

use std::net::IpAddr;
use std::sync::Arc;

use super::origin_word;
use crate::config::{Config, Origin, ReceiveConnector};

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
        let specificity = |connector: &ReceiveConnector| {
            connector
                .remote_ips
                .iter()
                .filter(|network| network.contains(&ip))
                .map(|network| network.prefix_len())
                .max()
        };
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
                let origin = origin_word(origin);
                format!("no receive connector of origin \"{origin}\" takes a client with a certificate for {name:?}")
            }
            _ => format!("no receive connector has the origin \"{}\"", origin_word(origin)),
        })
}

/// What a message that comes in by `door` is held to be, in sentences: first by what it comes in and whether it is
/// internal mail, then the clauses behind that. This is the place for the verdict on a message.
pub(super) fn comes_in(door: &ReceiveConnector, client: Option<IpAddr>, tls_name: Option<&str>) -> Vec<String> {
    let name = &door.name;
    let mut words = vec![format!("comes in by receive connector \"{name}\", origin {}", origin_word(door.origin))];
    let listed = door.originator_org.iter().map(|domain| domain.as_str()).collect::<Vec<_>>().join(" or ");
    words.push(match (door.internal, listed.as_str()) {
        (false, _) => format!("internal: no, because receive connector \"{name}\" has internal = false"),
        (true, "") => format!("internal: yes, because receive connector \"{name}\" has internal = true"),
        (true, listed) => {
            format!("internal: yes if it is of {listed}, because receive connector \"{name}\" has internal = true")
        }
    });
    if let Some(ip) = client.map(|ip| ip.to_canonical()) {
        let holding = door.remote_ips.iter().filter(|network| network.contains(&ip));
        if let Some(network) = holding.max_by_key(|network| network.prefix_len()) {
            words.push(format!("address: {ip} is in its remote_ips, {network}"));
        }
    }
    match (&door.tls_domain, tls_name) {
        (None, None) => words.push("certificate and name: not asked".to_owned()),
        (None, Some(shown)) => words.push(format!("certificate and name: not asked, so {shown} proves nothing here")),
        (Some(names), shown) => {
            let roots = door.client_roots.as_ref().map_or("its roots", |roots| &roots.origin);
            words.push(format!("certificate: it must chain to {roots}; that it does is taken for granted here"));
            words.push(match shown.and_then(|shown| Some((shown, names.carried_by(shown)?))) {
                Some((shown, demanded)) => format!("name: {shown} matches {demanded} of its tls_domain"),
                None => format!("name: it must carry {names}; that it does is taken for granted here"),
            });
        }
    }
    words.push(match listed.as_str() {
        "" => "originator_org: not asked".to_owned(),
        listed => format!(
            "originator_org: {listed}, by X-OriginatorOrg or XOORG; else the message counts as from the Internet"
        ),
    });
    words
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::explain::origin;
    use crate::config;

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
    pub(in crate::cli::explain) fn doors() -> Config {
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
                    "internal: no, because receive connector \"internet\" has internal = false",
                    "address: 203.0.113.9 is in its remote_ips, 0.0.0.0/0",
                    "certificate and name: not asked",
                    "originator_org: not asked",
                ][..],
            ),
            (
                Some("10.2.0.1"),
                Some("mail.protection.outlook.com"),
                &[
                    "comes in by receive connector \"servers\", origin on-premises",
                    "internal: no, because receive connector \"servers\" has internal = false",
                    "address: 10.2.0.1 is in its remote_ips, 10.0.0.0/8",
                    "certificate and name: not asked, so mail.protection.outlook.com proves nothing here",
                    "originator_org: not asked",
                ],
            ),
            (
                None,
                Some("a.cloud.example"),
                &[
                    "comes in by receive connector \"cloud\", origin cloud",
                    "internal: yes if it is of contoso.com or fabrikam.com, because receive connector \"cloud\" has \
                     internal = true",
                    "certificate: it must chain to ROOTS; that it does is taken for granted here",
                    "name: a.cloud.example matches *.cloud.example of its tls_domain",
                    "originator_org: contoso.com or fabrikam.com, by X-OriginatorOrg or XOORG; else the message counts as \
                     from the Internet",
                ],
            ),
        ] {
            let client = ip.map(|ip| ip.parse().unwrap());
            let door = door(&config, None, client, name).unwrap();
            let roots = door.client_roots.as_ref().map(|roots| roots.origin.to_string()).unwrap_or("ROOTS".to_owned());
            let words = comes_in(door, client, name);
            let words: Vec<_> = words.iter().map(|words| words.replace(&roots, "ROOTS")).collect();
            assert_eq!(words, expected, "{ip:?} {name:?}");
        }
        let cloud = door(&config, Some(Origin::Cloud), None, None).unwrap();
        let words = comes_in(cloud, None, None);
        assert!(
            words.contains(
                &"name: it must carry mail.protection.outlook.com or *.cloud.example; that it does is taken for granted here"
                    .to_owned()
            ),
            "{words:?}"
        );
    }
}
