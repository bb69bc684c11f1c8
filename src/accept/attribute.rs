//! Whose connection is this? Address and certificate choose the receive connector. Pure.
//!
//! The most specific `remote_ips` wins. A connector with `tls_domain` takes a connection only if the client's
//! certificate proves one of its names; until then the connection is what its address alone makes it. Among equally
//! specific connectors the one that was proved wins over the one that asks for nothing.
//!
//! Not here: what the connection may then do (`relay`), the handshake (`tls`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;

use crate::config::{ReceiveConnector, ReceiveTls};
use crate::tls::{ClientCertificate, Proof};

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
    let mut open: Option<(u8, &Arc<ReceiveConnector>, Option<Proof>)> = None;
    let mut closed: Option<(u8, &Arc<ReceiveConnector>, String)> = None;
    for connector in connectors.iter().filter(|connector| connector.listen.contains(&listen)) {
        let Some(specificity) = specificity(connector, peer) else { continue };
        match claim(connector, secure, certificate, now) {
            Claim::NotAsked => {
                if open.as_ref().is_none_or(|(best, ..)| specificity > *best) {
                    open = Some((specificity, connector, None));
                }
            }
            Claim::Proved(proof) => {
                // Equal and proved beats equal and unasked; the first in the file wins among the proved.
                let wins = open
                    .as_ref()
                    .is_none_or(|(best, _, held)| specificity > *best || (specificity == *best && held.is_none()));
                if wins {
                    open = Some((specificity, connector, Some(proof)));
                }
            }
            Claim::Failed(why) => {
                if closed.as_ref().is_none_or(|(best, ..)| specificity > *best) {
                    closed = Some((specificity, connector, why));
                }
            }
        }
    }
    if let Some((_, connector, proof)) = open {
        let require_tls = connector.tls == ReceiveTls::Require || connector.tls_domain.is_some();
        return Some(Attribution { connector: Arc::clone(connector), proof, unproven: None, require_tls });
    }
    let (_, connector, why) = closed?;
    Some(Attribution { connector: Arc::clone(connector), proof: None, unproven: Some(why), require_tls: true })
}

enum Claim {
    NotAsked,
    Proved(Proof),
    Failed(String),
}

fn claim(connector: &ReceiveConnector, secure: bool, certificate: Option<&ClientCertificate>, now: Timestamp) -> Claim {
    let Some(names) = &connector.tls_domain else { return Claim::NotAsked };
    let wanted = || names.iter().collect::<Vec<_>>().join(", ");
    match (certificate, &connector.client_roots) {
        (Some(certificate), Some(roots)) => match certificate.judge(roots, names, now) {
            Ok(proof) => Claim::Proved(proof),
            Err(unmet) => Claim::Failed(format!("receive connector \"{}\": tls_domain: {unmet}", connector.name)),
        },
        (Some(_), None) => Claim::Failed(format!("receive connector \"{}\" has no roots", connector.name)),
        (None, _) if secure => Claim::Failed(format!(
            "receive connector \"{}\" asks for a client certificate for {}; none was presented",
            connector.name,
            wanted()
        )),
        (None, _) => Claim::Failed(format!(
            "receive connector \"{}\" asks for STARTTLS and a client certificate for {}",
            connector.name,
            wanted()
        )),
    }
}

/// The length of the longest prefix in `remote_ips` that holds `peer`.
fn specificity(connector: &ReceiveConnector, peer: IpAddr) -> Option<u8> {
    connector.remote_ips.iter().filter(|network| network.contains(&peer)).map(|network| network.prefix_len()).max()
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
                command_timeout: Duration::from_secs(9),
                data_timeout: Duration::from_secs(9),
            })
        }
    }

    /// What a server sees of a client that presents `identity`.
    async fn presented(authority: &Authority, identity: &Identity) -> ClientCertificate {
        let deadline = Instant::now() + Duration::from_secs(30);
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

    /// Interface section 6, the last paragraphs: one row for each sentence.
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
}
