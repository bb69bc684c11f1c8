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
