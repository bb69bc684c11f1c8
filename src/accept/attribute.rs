//! Whose connection is this? Address and certificate choose the receive connector. Pure.
//!
//! The most specific `remote_ips` wins. A connector with `tls_domain` takes a connection only if the client's
//! certificate proves one of its names; until then the connection is what its address alone makes it. Among equally
//! specific connectors the one that was proved wins over the one that asks for nothing, and the first in the file
//! over the others. What was asked and answered is kept as a [`Verdict`], also for connectors whose certificate
//! would have won and failed.
//!
//! Not here: what the connection may then do (`relay`), the handshake (`tls`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;

use ipnet::IpNet;
use tracing::info;

use crate::config::{ReceiveConnector, ReceiveTls};
use crate::route::trust::{Claim, Clause, Verdict};
use crate::tls::{ClientCertificate, Proof, Unmet};

/// So many connectors that were lost are told of; a file with more of them on one address has other problems.
const LOST_TOLD: usize = 4;

/// What a connection was found to be.
#[derive(Debug, Clone)]
pub struct Attribution {
    /// The receive connector that takes it.
    pub connector: Arc<ReceiveConnector>,
    /// What the client's certificate proved, where the connector asks for one.
    pub proof: Option<Proof>,
    /// Set where only connectors with `tls_domain` take this address and the client proved none of them: the clause
    /// that failed. MAIL FROM is answered 550 5.7.1 with it.
    pub unproven: Option<String>,
    /// MAIL before STARTTLS is refused.
    pub require_tls: bool,
    /// What a message is that comes this way, as far as the connection tells.
    pub verdict: Arc<Verdict>,
}

impl Attribution {
    /// The log says once per session why a certificate did not prove what it might have. A client without one is
    /// ordinary.
    pub(super) fn tell(&self, peer: IpAddr, certificate: Option<&ClientCertificate>) {
        let Some(certificate) = certificate.filter(|_| !self.verdict.lost.is_empty() || self.unproven.is_some()) else {
            return;
        };
        let presented = certificate.description();
        for claim in &self.verdict.lost {
            info!(%peer, connector = %self.connector.name, presented, "{claim}");
        }
        if self.unproven.is_some() {
            info!(%peer, presented, "{}", self.verdict.claim);
        }
    }
}

/// Chooses the connector for a connection that came to `listen` from `peer`. `secure`: the session is in TLS.
/// `None`: no connector takes this address.
pub fn attribute(
    connectors: &[Arc<ReceiveConnector>],
    listen: SocketAddr,
    peer: IpAddr,
    secure: bool,
    certificate: Option<&ClientCertificate>,
    now: Timestamp,
) -> Option<Attribution> {
    let peer = peer.to_canonical();
    let mut open: Option<(&IpNet, &Arc<ReceiveConnector>, Option<Proved>)> = None;
    let mut closed: Vec<(&IpNet, &Arc<ReceiveConnector>, Failed)> = Vec::new();
    for connector in connectors.iter().filter(|connector| connector.listen.contains(&listen)) {
        let Some(network) = network(connector, peer) else { continue };
        let specificity = network.prefix_len();
        match claim(connector, secure, certificate, now) {
            Claimed::NotAsked => {
                if open.as_ref().is_none_or(|(best, ..)| specificity > best.prefix_len()) {
                    open = Some((network, connector, None));
                }
            }
            Claimed::Proved(proved) => {
                // Equal and proved beats equal and unasked; the first in the file wins among the proved.
                let wins = open.as_ref().is_none_or(|(best, _, held)| {
                    specificity > best.prefix_len() || (specificity == best.prefix_len() && held.is_none())
                });
                if wins {
                    open = Some((network, connector, Some(proved)));
                }
            }
            Claimed::Failed(why) => closed.push((network, connector, why)),
        }
    }
    // The most specific first; the sort keeps the order of the file among equals.
    closed.sort_by_key(|(network, ..)| std::cmp::Reverse(network.prefix_len()));
    let mut closed = closed.into_iter();
    if let Some((network, connector, proved)) = open {
        let require_tls = connector.tls == ReceiveTls::Require || connector.tls_domain.is_some();
        let might_have_won = |other: &IpNet| {
            let (other, winner) = (other.prefix_len(), network.prefix_len());
            other > winner || (other == winner && proved.is_none())
        };
        let lost = closed.filter(|(network, ..)| might_have_won(network)).take(LOST_TOLD);
        let lost = lost.map(|(_, connector, failed)| failed.claim(connector)).collect();
        let (proof, certificate, name) = match proved {
            Some(Proved { proof, certificate, name }) => (Some(proof), certificate, name),
            None => (None, Clause::NotAsked, Clause::NotAsked),
        };
        let verdict = Verdict { lost, ..Verdict::new(connector, Some(*network), certificate, name) };
        let (connector, verdict) = (Arc::clone(connector), Arc::new(verdict));
        return Some(Attribution { connector, proof, unproven: None, require_tls, verdict });
    }
    let (network, connector, failed) = closed.next()?;
    let unproven = Some(failed.sentence(connector));
    let Claim { certificate, name, .. } = failed.claim(connector);
    let verdict = Arc::new(Verdict::new(connector, Some(*network), certificate, name));
    let connector = Arc::clone(connector);
    Some(Attribution { connector, proof: None, unproven, require_tls: true, verdict })
}

enum Claimed {
    NotAsked,
    Proved(Proved),
    Failed(Failed),
}

struct Proved {
    proof: Proof,
    certificate: Clause,
    name: Clause,
}

/// Why a claim failed. Put into words only where somebody reads them: most clients have no certificate.
enum Failed {
    Unmet(Unmet),
    NoRoots,
    NotPresented,
    NoTls,
}

fn claim(
    connector: &ReceiveConnector,
    secure: bool,
    certificate: Option<&ClientCertificate>,
    now: Timestamp,
) -> Claimed {
    let Some(names) = &connector.tls_domain else { return Claimed::NotAsked };
    Claimed::Failed(match (certificate, &connector.client_roots) {
        (Some(certificate), Some(roots)) => match certificate.judge(roots, names, now) {
            Ok(proof) => {
                let name = match &proof {
                    Proof::Named { name, .. } => Clause::True(name.clone().into()),
                    Proof::Plain | Proof::Encrypted { .. } | Proof::Chained { .. } => Clause::NotAsked,
                };
                let certificate = Clause::True(roots.origin.to_string().into());
                return Claimed::Proved(Proved { proof, certificate, name });
            }
            Err(unmet) => Failed::Unmet(unmet),
        },
        (Some(_), None) => Failed::NoRoots,
        (None, _) if secure => Failed::NotPresented,
        (None, _) => Failed::NoTls,
    })
}

impl Failed {
    /// What MAIL FROM is answered with.
    fn sentence(&self, connector: &ReceiveConnector) -> String {
        let wanted = || connector.tls_domain.iter().flat_map(|names| names.iter()).collect::<Vec<_>>().join(", ");
        let name = &connector.name;
        match self {
            Self::Unmet(unmet) => format!("receive connector \"{name}\": tls_domain: {unmet}"),
            Self::NoRoots => format!("receive connector \"{name}\" has no roots"),
            Self::NotPresented => {
                let wanted = wanted();
                format!("receive connector \"{name}\" asks for a client certificate for {wanted}; none was presented")
            }
            Self::NoTls => {
                format!("receive connector \"{name}\" asks for STARTTLS and a client certificate for {}", wanted())
            }
        }
    }

    fn claim(self, connector: &ReceiveConnector) -> Claim {
        let (certificate, name) = match self {
            Self::Unmet(unmet @ Unmet::Name { .. }) => {
                let roots = connector.client_roots.as_ref().map(|roots| roots.origin.to_string()).unwrap_or_default();
                (Clause::True(roots.into()), Clause::False(unmet.to_string().into()))
            }
            Self::Unmet(unmet) => (Clause::False(unmet.to_string().into()), Clause::NotAsked),
            Self::NoRoots => (Clause::False("the connector has no roots".into()), Clause::NotAsked),
            Self::NotPresented => (Clause::False("none was presented".into()), Clause::NotAsked),
            Self::NoTls => (Clause::False("the session is not in TLS".into()), Clause::NotAsked),
        };
        Claim { connector: connector.name.clone(), certificate, name }
    }
}

/// The longest network in `remote_ips` that holds `peer`.
fn network(connector: &ReceiveConnector, peer: IpAddr) -> Option<&IpNet> {
    connector.remote_ips.iter().filter(|network| network.contains(&peer)).max_by_key(|network| network.prefix_len())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;
    use crate::config::{ConnectorName, Origin};
    use crate::tls::authority::{Authority, Template};
    use crate::tls::{Acceptor, Connector, Demand, Identity, Names};

    const DOOR: &str = "192.0.2.25:25";

    struct Spec<'a> {
        name: &'a str,
        ips: &'a [&'a str],
        names: &'a [&'a str],
        authority: &'a Authority,
        tls: ReceiveTls,
    }

    impl Spec<'_> {
        fn connector(&self) -> Arc<ReceiveConnector> {
            let names: Vec<String> = self.names.iter().map(|name| (*name).to_owned()).collect();
            Arc::new(ReceiveConnector {
                name: ConnectorName(self.name.into()),
                listen: vec![DOOR.parse().unwrap()],
                remote_ips: self.ips.iter().map(|network| network.parse().unwrap()).collect(),
                origin: Origin::Internet,
                tls: self.tls,
                identity: None,
                tls_domain: Names::new(names),
                client_roots: (!self.names.is_empty()).then(|| self.authority.roots()),
                only_here: false,
                internal: false,
                originator_org: Vec::new(),
                users_file: None,
                require_auth: false,
                proxy_protocol: false,
                sender_domains: Vec::new(),
                relay: false,
                max_message_size: None,
                max_recipients: 9,
                max_connections: 9,
                max_connections_per_ip: 9,
                max_errors: 9,
                strict: false,
                tls_handshake_timeout: Duration::from_secs(9),
                command_timeout: Duration::from_secs(9),
                data_timeout: Duration::from_secs(9),
            })
        }
    }

    /// What a server sees of a client that presents `identity`.
    async fn presented(authority: &Authority, identity: &Identity) -> ClientCertificate {
        let deadline = Instant::now() + Duration::from_secs(60);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let acceptor = Acceptor::new(&authority.identity(&["mail.contoso.com"]), true);
        let connector = Connector::new(Some(identity));
        let (accepted, connected) = tokio::join!(
            acceptor.accept(server, deadline),
            connector.connect(client, "mail.contoso.com", &Demand::Nothing, deadline)
        );
        connected.unwrap();
        accepted.unwrap().client.unwrap()
    }

    /// `[[receive_connector]]` in docs/configuration.md: one row for each sentence.
    #[tokio::test]
    async fn address_and_certificate_choose_the_connector() {
        let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
        let partner = presented(&ours, &ours.identity(&["mail.partner.example"])).await;
        let stranger = presented(&ours, &ours.identity(&["mail.stranger.example"])).await;
        let forged = presented(&ours, &theirs.identity(&["mail.partner.example"])).await;
        let template = Template::new(&["mail.partner.example"]).expired();
        let expired = presented(&ours, &ours.identity_as(&template)).await;
        let vouched = presented(&theirs, &theirs.identity(&["mail.partner.example"])).await;

        let spec = |name, ips, names| Spec { name, ips, names, authority: &ours, tls: ReceiveTls::Offer };
        let internet = spec("internet", &["0.0.0.0/0", "::/0"], &[]).connector();
        let own = spec("own", &["198.51.100.0/24"], &[]).connector();
        let own_host = spec("own-host", &["203.0.113.0/24", "198.51.100.7/32"], &[]).connector();
        let by_name = spec("partner", &["0.0.0.0/0", "::/0"], &["mail.partner.example"]).connector();
        let by_both = spec("partner-at-home", &["198.51.100.0/24"], &["mail.partner.example"]).connector();
        let by_both_too = spec("partner-too", &["198.51.100.0/24"], &["mail.partner.example"]).connector();
        let other_root =
            Spec { authority: &theirs, ..spec("other-root", &["0.0.0.0/0"], &["mail.partner.example"]) }.connector();
        let strict = Spec { tls: ReceiveTls::Require, ..spec("strict", &["0.0.0.0/0"], &[]) }.connector();

        const INSIDE: &str = "198.51.100.9";
        const HOST: &str = "198.51.100.7";
        const OUTSIDE: &str = "203.0.114.1";
        type Row<'a> = (&'a [&'a Arc<ReceiveConnector>], &'a str, bool, Option<&'a ClientCertificate>, &'a str);
        let rows: &[Row<'_>] = &[
            // The most specific address wins, in any order, also over a proof.
            (&[&internet, &own, &own_host], OUTSIDE, false, None, "internet"),
            (&[&internet, &own, &own_host], INSIDE, false, None, "own"),
            (&[&own_host, &own, &internet], HOST, false, None, "own-host"),
            (&[&internet, &own], "::ffff:198.51.100.9", false, None, "own"),
            (&[&internet, &own], "2001:db8::1", false, None, "internet"),
            (&[&by_name, &own], INSIDE, true, Some(&partner), "own"),
            // None takes it.
            (&[&own, &own_host], OUTSIDE, false, None, ""),
            // On a shared address it is what its address makes it, until a certificate proves more.
            (&[&by_name, &internet], OUTSIDE, false, None, "internet"),
            (&[&internet, &by_name], OUTSIDE, true, None, "internet"),
            (&[&internet, &by_name], OUTSIDE, true, Some(&partner), "partner"),
            (&[&by_name, &internet], OUTSIDE, true, Some(&partner), "partner"),
            (&[&by_name, &internet], OUTSIDE, true, Some(&stranger), "internet"),
            (&[&by_name, &internet], OUTSIDE, true, Some(&forged), "internet"),
            (&[&by_name, &internet], OUTSIDE, true, Some(&expired), "internet"),
            (&[&by_name, &by_both, &internet], INSIDE, true, Some(&partner), "partner-at-home"),
            (&[&by_name, &by_both, &internet], OUTSIDE, true, Some(&partner), "partner"),
            (&[&internet, &by_both], INSIDE, true, Some(&stranger), "internet"),
            // Each claim is judged by its own roots.
            (&[&by_name, &other_root, &internet], OUTSIDE, true, Some(&partner), "partner"),
            (&[&by_name, &other_root, &internet], OUTSIDE, true, Some(&vouched), "other-root"),
            // Where no other takes it: refused, with TLS demanded.
            (&[&by_name], OUTSIDE, false, None, "partner! asks for STARTTLS"),
            (&[&by_name], OUTSIDE, true, None, "partner! none was presented"),
            (&[&by_name], OUTSIDE, true, Some(&stranger), "partner! tls_domain"),
            (&[&by_name], OUTSIDE, true, Some(&forged), "partner! tls_domain"),
            (&[&by_name], OUTSIDE, true, Some(&expired), "partner! tls_domain"),
            (&[&by_name, &by_both], INSIDE, true, Some(&stranger), "partner-at-home! tls_domain"),
            (&[&by_name, &own], OUTSIDE, true, Some(&partner), "partner"),
            // S-064: the address decides before the name, then the name, then the order of the file.
            (&[&by_name, &own_host], HOST, true, Some(&partner), "own-host"),
            (&[&own, &by_both], INSIDE, true, Some(&partner), "partner-at-home"),
            (&[&by_both, &own_host], HOST, true, Some(&partner), "own-host"),
            (&[&by_both_too, &by_both, &own], INSIDE, true, Some(&partner), "partner-too"),
            (&[&by_both, &by_both_too, &own], INSIDE, true, Some(&partner), "partner-at-home"),
            // S-063: no certificate is no error; the address alone speaks.
            (&[&by_both, &own], INSIDE, true, None, "own"),
            // The first of equals.
            (&[&strict, &internet], OUTSIDE, false, None, "strict"),
            (&[&internet, &strict], OUTSIDE, false, None, "internet"),
        ];
        for (number, (connectors, peer, secure, certificate, expected)) in rows.iter().enumerate() {
            let connectors: Vec<Arc<ReceiveConnector>> = connectors.iter().map(|one| Arc::clone(one)).collect();
            let found = attribute(
                &connectors,
                DOOR.parse().unwrap(),
                peer.parse().unwrap(),
                *secure,
                *certificate,
                Timestamp::now(),
            );
            let (name, clause) = expected.split_once("! ").map_or((*expected, None), |(name, why)| (name, Some(why)));
            assert_eq!(found.as_ref().map_or("", |one| &*one.connector.name.0), name, "row {number}");
            let Some(found) = found else { continue };
            match (clause, &found.unproven) {
                (None, None) => {}
                (Some(clause), Some(why)) => {
                    assert!(why.contains(clause) && why.contains(name), "row {number}: {why}");
                    assert!(found.require_tls, "row {number}");
                }
                (_, why) => panic!("row {number}: {why:?}"),
            }
            let proves = found.unproven.is_none() && found.connector.tls_domain.is_some();
            assert_eq!(matches!(found.proof, Some(Proof::Named { .. })), proves, "row {number}");
            assert!(found.require_tls || found.connector.tls == ReceiveTls::Offer, "row {number}");
        }
        // Another door, the same connectors: nobody there.
        assert!(
            attribute(
                &[internet],
                "192.0.2.26:25".parse().unwrap(),
                [192, 0, 2, 1].into(),
                false,
                None,
                Timestamp::now()
            )
            .is_none()
        );
    }

    /// What was asked and answered, in the words of the tracking event, also where the claim was lost.
    #[tokio::test]
    async fn each_clause_says_what_was_seen() {
        let (ours, theirs) = (Authority::new("our CA"), Authority::new("their CA"));
        let names = ["mail.partner.example"];
        let partner = presented(&ours, &ours.identity(&names)).await;
        let stranger = presented(&ours, &ours.identity(&["mail.stranger.example"])).await;
        let forged = presented(&ours, &theirs.identity(&names)).await;
        let expired = presented(&ours, &ours.identity_as(&Template::new(&names).expired())).await;
        let spec = |name, ips, names| Spec { name, ips, names, authority: &ours, tls: ReceiveTls::Offer };
        let internet = spec("internet", &["0.0.0.0/0"], &[]).connector();
        let own = spec("own", &["198.51.100.0/24"], &[]).connector();
        let by_name = spec("partner", &["0.0.0.0/0"], &names).connector();
        let believed = |connector: Arc<ReceiveConnector>| {
            Arc::new(ReceiveConnector { internal: true, ..Arc::into_inner(connector).unwrap() })
        };
        let inside = believed(spec("inside", &["198.51.100.0/24"], &names).connector());
        let trusted = believed(spec("trusted", &["198.51.100.0/24"], &[]).connector());

        const INSIDE: &str = "198.51.100.9";
        const NO: &str = "internal: no, receive connector \"";
        const INTERNET: &str = "connector \"internet\" (0.0.0.0/0): matched";
        type Row<'a> = (&'a [&'a Arc<ReceiveConnector>], bool, Option<&'a ClientCertificate>, &'a [&'a str]);
        let rows: &[Row<'_>] = &[
            (&[&internet], false, None, &[NO, INTERNET]),
            (&[&trusted], false, None, &["internal: yes", "connector \"trusted\" (198.51.100.0/24): matched"]),
            (
                &[&inside, &internet],
                true,
                Some(&partner),
                &[
                    "internal: yes",
                    "connector \"inside\" (198.51.100.0/24): matched",
                    "certificate chains to our CA: true",
                    "name mail.partner.example: true",
                ],
            ),
            // Claims that failed say by which clause.
            (
                &[&by_name, &internet],
                false,
                None,
                &[NO, INTERNET, "connector \"partner\": did not match, certificate: the session is not in TLS"],
            ),
            (
                &[&internet, &by_name],
                true,
                None,
                &[NO, INTERNET, "connector \"partner\": did not match, certificate: none was presented"],
            ),
            (
                &[&internet, &by_name],
                true,
                Some(&stranger),
                &[
                    NO,
                    INTERNET,
                    "connector \"partner\": did not match, name: demanded a certificate for mail.partner.example, saw one for \
                     mail.stranger.example",
                ],
            ),
            (
                &[&internet, &by_name],
                true,
                Some(&forged),
                &[
                    NO,
                    INTERNET,
                    "connector \"partner\": did not match, certificate: its certificate (mail.partner.example) was not \
                    accepted: no chain leads from it to our CA",
                ],
            ),
            (
                &[&internet, &by_name],
                true,
                Some(&expired),
                &[
                    NO,
                    INTERNET,
                    "connector \"partner\": did not match, certificate: its certificate (mail.partner.example) was not \
                    accepted: it was valid until ",
                ],
            ),
            // The more specific of two that were lost comes first.
            (
                &[&by_name, &inside, &internet],
                true,
                None,
                &[
                    NO,
                    INTERNET,
                    "connector \"inside\": did not match, certificate: none was presented",
                    "connector \"partner\": did not match, certificate: none was presented",
                ],
            ),
            // What could not have won was not lost.
            (&[&by_name, &own], true, None, &[NO, "connector \"own\" (198.51.100.0/24): matched"]),
            // None other takes it: its own clause decides.
            (
                &[&inside],
                true,
                Some(&stranger),
                &[
                    "internal: no, by name",
                    "connector \"inside\" (198.51.100.0/24): matched",
                    "certificate chains to our CA: true",
                    "name: false (demanded a certificate for mail.partner.example, saw one for mail.stranger.example)",
                ],
            ),
            (
                &[&inside],
                true,
                None,
                &[
                    "internal: no, by certificate",
                    "connector \"inside\" (198.51.100.0/24): matched",
                    "certificate: false (none was presented)",
                ],
            ),
        ];
        for (number, (connectors, secure, certificate, expected)) in rows.iter().enumerate() {
            let connectors: Vec<_> = connectors.iter().map(|one| Arc::clone(one)).collect();
            let (listen, peer) = (DOOR.parse().unwrap(), INSIDE.parse().unwrap());
            let found = attribute(&connectors, listen, peer, *secure, *certificate, Timestamp::now()).unwrap();
            let words: Vec<String> = found.verdict.words().iter().map(ToString::to_string).collect();
            assert_eq!(words.len(), expected.len(), "row {number}: {words:#?}");
            for (word, expected) in words.iter().zip(*expected) {
                assert!(word.starts_with(expected), "row {number}: {words:#?}");
            }
        }
    }

    /// S-050: two thousand names, the last of which is the one. Handshake and judgement stay quick.
    #[tokio::test]
    async fn s050_a_certificate_with_two_thousand_names() {
        let ours = Authority::new("ours");
        let mut names: Vec<String> = (0..2000).map(|number| format!("host{number}.tenant.example")).collect();
        names.push("mail.partner.example".to_owned());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let identity = ours.identity(&names);
        let started = std::time::Instant::now();
        let certificate = presented(&ours, &identity).await;
        let handshake = started.elapsed();
        let (roots, right) = (ours.roots(), Names::new(vec!["mail.partner.example".to_owned()]).unwrap());
        let wrong = Names::new(vec!["mail.contoso.com".to_owned()]).unwrap();
        assert!(matches!(certificate.judge(&roots, &right, Timestamp::now()), Ok(Proof::Named { .. })));
        let unmet = certificate.judge(&roots, &wrong, Timestamp::now()).unwrap_err().to_string();
        assert!(unmet.ends_with(" and 1993 more") && unmet.len() < 400, "{unmet}");
        assert!(certificate.description().len() < 400);
        let all = started.elapsed();
        // Milliseconds on an idle machine.
        assert!(all < Duration::from_secs(30), "handshake {handshake:?}, with judgement {all:?}");
    }
}
