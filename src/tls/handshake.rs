//! Both sides of the handshake.
//!
//! An [`Acceptor`] belongs to one certificate on one listener, a [`Connector`] to one send connector. Each keeps its
//! own sessions and its own ticket keys: a session of one is never resumed at another.
//!
//! Standards: RFC 8446 (TLS 1.3), 5246 (TLS 1.2), 5077 (tickets), 6066 section 3 (SNI).

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, NoClientAuth, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, CipherSuite, ClientConfig, ConnectionCommon, Error, PeerIncompatible,
    PeerMisbehaved, ProtocolVersion, ServerConfig, SignatureAlgorithm, SignatureScheme, SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{StartHandshake, TlsConnector};

use super::hello::{self, Progress};
use super::verify::AnyCertificate;
use super::{ClientCertificate, Demand, Identity, Proof, Seen, Stream, Unmet};

/// What one connection may hold of bytes that the other side does not take: two TLS records. A message is read and
/// written in pieces no larger than that.
const BUFFER: usize = 32 * 1024;
/// Sessions of TLS 1.2 that an acceptor keeps in memory, for clients that do not take tickets.
const SESSIONS: usize = 1024;
/// Servers whose sessions a connector remembers.
const SERVERS: usize = 1024;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// What the other side has against the certificate that we showed, or that we showed none. In TLS 1.3 it says so only
/// after our side of the handshake is over, so any read may bring it.
pub fn in_words(error: &io::Error) -> Option<String> {
    let rustls::Error::AlertReceived(alert) = error.get_ref()?.downcast_ref::<rustls::Error>()? else { return None };
    let why = match alert {
        AlertDescription::CertificateExpired => "it has ended",
        AlertDescription::CertificateRevoked => "it was revoked",
        AlertDescription::UnknownCA => "it does not trust its issuer",
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => "it demands one, and got none",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => "it does not say why",
        _ => return None,
    };
    Some(format!("the other side does not accept our certificate: {why} (alert {alert:?})"))
}

/// Why a handshake failed, for the operator: in words where something can be done about it.
fn describe(error: &io::Error) -> String {
    if let Some(words) = in_words(error) {
        return words;
    }
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "the other side closed the connection before it was over".to_owned(),
            _ => error.to_string(),
        };
    };
    match tls {
        Error::AlertReceived(alert @ (AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity)) => {
            format!(
                "the other side ended it (alert {alert:?}): mostly it has no cipher suite, key type or TLS version in \
                 common with us, or wants a client certificate"
            )
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion)
        | Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => "no TLS version in common: the other side knows neither TLS 1.2 nor TLS 1.3".to_owned(),
        // Read before the version is.
        Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired) => {
            "no TLS version in common: the other side names no signature algorithms, so it knows TLS 1.1 or older, or \
             TLS 1.2 with SHA-1 only"
                .to_owned()
        }
        Error::AlertReceived(alert) => format!("the other side ended it (alert {alert:?})"),
        Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => {
            "no key exchange group in common: we know X25519, P-256 and P-384".to_owned()
        }
        Error::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon) => {
            "no signature scheme in common for our certificate's kind of key".to_owned()
        }
        Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName) => {
            "the name that the other side asks for (SNI) is no host name".to_owned()
        }
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "the other side did not sign it with the key of its certificate".to_owned()
        }
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            "what the other side said is not TLS".to_owned()
        }
        other => other.to_string(),
    }
}

/// The one provider of cryptography.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// Makes it this process's provider, for libraries that ask for the process's. Once, at the start of `main`; a
/// second time does nothing.
pub fn install_provider() {
    let _ = CryptoProvider::clone(provider()).install_default();
}

/// Accepts TLS on one listener. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor(Arc<ServerConfig>, SignatureAlgorithm);

/// Why a client's handshake failed, in words.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct HandshakeError {
    why: String,
    /// The client said something.
    pub began: bool,
    kind: io::ErrorKind,
}

impl HandshakeError {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), began: true, kind: io::ErrorKind::Other }
    }
}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        Self::new(error.kind, error)
    }
}

/// So many of the cipher suites that a client offers are kept until its handshake is over.
const SUITES: usize = 200;

/// And so many are named where none will do.
const SUITES_NAMED: usize = 12;

/// A handshake that ended well.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: Stream,
    /// Protocol version and cipher suite, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`.
    pub protocol: String,
    /// The name that the client asked for, lower case: a host name, or it would not be here.
    pub sni: Option<String>,
    /// What the client presented, not yet judged.
    pub client: Option<ClientCertificate>,
}

impl Acceptor {
    /// Presents `identity`; asks for the client's certificate if told so, and never insists.
    pub fn new(identity: &Identity, ask_client_certificate: bool) -> Self {
        let builder = ServerConfig::builder_with_provider(hello::provider().clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites for TLS 1.2 and 1.3");
        let builder = if ask_client_certificate {
            builder.with_client_cert_verifier(Arc::new(AnyCertificate))
        } else {
            builder.with_client_cert_verifier(Arc::new(NoClientAuth))
        };
        let mut config = builder.with_cert_resolver(Arc::new(Presents(identity.certified.clone())));
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        // Without randomness for its keys there are no tickets, and no session is resumed by one.
        if let Ok(ticketer) = aws_lc_rs::Ticketer::new() {
            config.ticketer = ticketer;
        }
        // A client that comes back uses one and gets a new one; a second would only cost bytes and time.
        config.send_tls13_tickets = 1;
        Self(Arc::new(config), identity.certified.key.algorithm())
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// If the handshake fails, or is not over by `deadline`.
    pub async fn accept(&self, stream: TcpStream, deadline: Instant) -> Result<Accepted, HandshakeError> {
        let accepted = timeout_at(deadline, self.shake_hands(stream)).await;
        let late = HandshakeError { kind: io::ErrorKind::TimedOut, ..HandshakeError::new("it was not over in time") };
        accepted.unwrap_or(Err(late))
    }

    async fn shake_hands(&self, mut stream: TcpStream) -> Result<Accepted, HandshakeError> {
        let accepted = read_hello(&mut stream).await?;
        let offered = accepted.client_hello().cipher_suites().iter().take(SUITES).copied().collect::<Vec<_>>();
        let accept = StartHandshake::from_parts(accepted, stream)
            .into_stream_with(self.0.clone(), |session| session.set_buffer_limit(Some(BUFFER)));
        let tls = accept.await.map_err(|error| HandshakeError::new(self.describe(&error, &offered)))?;
        let session = tls.get_ref().1;
        let protocol = protocol(session);
        let sni = session.server_name().map(str::to_owned);
        let seen = session.peer_certificates().and_then(|chain| Seen::new(chain, protocol.clone()));
        Ok(Accepted {
            client: seen.map(ClientCertificate::new),
            stream: Stream::Accepted(Box::new(tls)),
            protocol,
            sni,
        })
    }

    /// Why it failed, with what the client offered where that is the reason.
    fn describe(&self, error: &io::Error, offered: &[CipherSuite]) -> String {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let is_known = |suite: &CipherSuite| provider().cipher_suites.iter().any(|known| known.suite() == *suite);
        match tls {
            Some(Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon)) => {
                no_suite_in_common(self.1, offered)
            }
            // Who offers no suite with ECDHE names no groups for it either, and rustls asks for those first.
            Some(Error::PeerIncompatible(
                PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::NamedGroupsExtensionRequired
                | PeerIncompatible::EcPointsExtensionRequired,
            )) if !offered.iter().any(is_known) => no_suite_in_common(self.1, offered),
            _ => describe(error),
        }
    }
}

/// Reads and judges the ClientHello, and no octet behind it.
async fn read_hello(stream: &mut TcpStream) -> Result<rustls::server::Accepted, HandshakeError> {
    let mut records = Vec::with_capacity(2048);
    while let Progress::Needs(more) = hello::progress(&records) {
        read_more(stream, &mut records, more).await?;
    }
    if hello::hide_bad_name(&mut records) {
        tracing::debug!("the name that the client asks for (SNI) is no host name: it is ignored");
    }
    let mut acceptor = rustls::server::Acceptor::default();
    loop {
        let mut unread = &records[..];
        while !unread.is_empty() {
            acceptor.read_tls(&mut unread).map_err(|error| HandshakeError::new(describe(&error)))?;
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(accepted),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut said = Vec::new();
                    // Writing to a Vec cannot fail; and who has gone does not hear it.
                    let _ = alert.write_all(&mut said);
                    let _ = stream.write_all(&said).await;
                    let error = io::Error::new(io::ErrorKind::InvalidData, error);
                    return Err(HandshakeError::new(describe(&error)));
                }
            }
        }
        // A ClientHello in more pieces than are looked into.
        records.clear();
        loop {
            match hello::missing(&records) {
                0 => break,
                more => read_more(stream, &mut records, more).await?,
            }
        }
    }
}

async fn read_more(stream: &mut TcpStream, octets: &mut Vec<u8>, more: usize) -> Result<(), HandshakeError> {
    let had = octets.len();
    octets.resize(had + more, 0);
    let mut filled = had;
    while filled < octets.len() {
        match stream.read(&mut octets[filled..]).await {
            Ok(0) => {
                let error = io::ErrorKind::UnexpectedEof.into();
                return Err(HandshakeError { began: filled > 0, ..HandshakeError::new(describe(&error)) });
            }
            Ok(count) => filled += count,
            Err(error) => return Err(HandshakeError { began: filled > 0, ..HandshakeError::new(describe(&error)) }),
        }
    }
    Ok(())
}

/// No suite of those offered will do for our certificate: which they are, and what would.
fn no_suite_in_common(ours: SignatureAlgorithm, offered: &[CipherSuite]) -> String {
    let known = |suite: &CipherSuite| provider().cipher_suites.iter().any(|known| known.suite() == *suite);
    let for_ecdsa = |suite: &CipherSuite| suite.as_str().is_some_and(|name| name.starts_with("TLS_ECDHE_ECDSA_"));
    // Values that are no suites: RFC 5746 (SCSV), RFC 8701 (GREASE).
    let named =
        offered.iter().filter_map(CipherSuite::as_str).filter(|name| !name.ends_with("_SCSV")).collect::<Vec<_>>();
    let mut text =
        format!("no cipher suite in common: the client offers {}", named[..named.len().min(SUITES_NAMED)].join(", "));
    if named.len() > SUITES_NAMED {
        text.push_str(&format!(" and {} more", named.len() - SUITES_NAMED));
    }
    text.push_str(match ours {
        SignatureAlgorithm::RSA if offered.iter().any(|suite| known(suite) && for_ecdsa(suite)) => {
            "; our certificate has an RSA key: with one that has an ECDSA key this client could use TLS"
        }
        SignatureAlgorithm::ECDSA | SignatureAlgorithm::ED25519
            if offered.iter().any(|suite| known(suite) && !for_ecdsa(suite)) =>
        {
            "; our certificate has no RSA key: with one that has this client could use TLS"
        }
        _ => "; we know those with ECDHE and AES-GCM or ChaCha20",
    });
    text
}

/// Opens TLS to servers, and remembers sessions. Cheap to clone.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl Connector {
    /// Presents `identity` to servers that ask.
    pub fn new(identity: Option<&Identity>) -> Self {
        Self::with_versions(identity, rustls::DEFAULT_VERSIONS)
    }

    fn with_versions(identity: Option<&Identity>, versions: &[&'static SupportedProtocolVersion]) -> Self {
        let builder = ClientConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(versions)
            .expect("the provider has cipher suites for TLS 1.2 and 1.3")
            .dangerous() // the one place; `Demand::judge` makes up for it
            .with_custom_certificate_verifier(Arc::new(AnyCertificate));
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(Presents(identity.certified.clone()))),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::in_memory_sessions(SERVERS);
        Self(TlsConnector::from(Arc::new(config)))
    }

    /// Shakes hands and judges, before any byte of SMTP. `server_name` is a host name or an address.
    ///
    /// # Errors
    /// What of the demand was not met.
    pub async fn connect(
        &self,
        stream: TcpStream,
        server_name: &str,
        demand: &Demand,
        deadline: Instant,
    ) -> Result<(Stream, Proof), Unmet> {
        let (stream, seen) = self.look(stream, server_name, deadline).await?;
        let proof = demand.judge(&seen, Timestamp::now())?;
        Ok((stream, proof))
    }

    /// Shakes hands and judges nothing: for those who want to see what is there, and send no mail.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn look(&self, stream: TcpStream, server_name: &str, deadline: Instant) -> Result<(Stream, Seen), Unmet> {
        let handshake = |error: io::Error| Unmet::Handshake(describe(&error));
        let name = match name(server_name) {
            Some(name) => name,
            // What is no name cannot be asked for; the address tells the sessions apart, and sends no SNI.
            None => ServerName::IpAddress(stream.peer_addr().map_err(handshake)?.ip().into()),
        };
        let connect = self.0.connect_with(name, stream, |session| session.set_buffer_limit(Some(BUFFER)));
        let tls = match timeout_at(deadline, connect).await {
            Ok(result) => result.map_err(handshake)?,
            Err(_) => return Err(Unmet::Handshake("it was not over in time".to_owned())),
        };
        let session = tls.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        let seen = Seen::new(chain, protocol(session))
            .ok_or_else(|| Unmet::Handshake("the server presented no certificate".to_owned()))?;
        Ok((Stream::Connected(Box::new(tls)), seen))
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

/// The name for SNI and for the memory of sessions: a host name without its final dot, or an address, also as the
/// literal `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
fn name(text: &str) -> Option<ServerName<'static>> {
    let literal = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = literal.strip_prefix("IPv6:").unwrap_or(literal);
    if let Ok(address) = address.parse::<IpAddr>() {
        return Some(ServerName::IpAddress(address.into()));
    }
    ServerName::try_from(text.strip_suffix('.').unwrap_or(text).to_owned()).ok()
}

/// Protocol version and cipher suite, by the names that IANA gave them.
fn protocol<Data>(session: &ConnectionCommon<Data>) -> String {
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLS",
    };
    let suite = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown");
    match suite.strip_prefix("TLS13_") {
        Some(suite) => format!("{version} TLS_{suite}"),
        None => format!("{version} {suite}"),
    }
}

/// Presents one chain to everybody.
#[derive(Debug)]
struct Presents(Arc<CertifiedKey>);

impl ResolvesServerCert for Presents {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Presents {
    /// Whatever authorities the server names: many name some and accept others.
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).is_some().then(|| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::HandshakeKind;
    use rustls::version::{TLS12, TLS13};
    use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::authority::{Authority, Powers, Template, Use};
    use super::super::{Names, Roots};
    use super::*;

    /// Longer than any handshake takes on a slow machine, and a limit to every test.
    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn names(names: &[&str]) -> Names {
        Names::new(names.iter().map(|&name| name.to_owned()).collect()).unwrap()
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    /// One connection, over which one byte travels to the client: behind it are the tickets.
    async fn meet(
        acceptor: &Acceptor,
        connector: &Connector,
        server_name: &str,
        demand: &Demand,
    ) -> (Result<Accepted, HandshakeError>, Result<(Stream, Proof), Unmet>) {
        let (client, server) = pair().await;
        let serve = async {
            let mut accepted = acceptor.accept(server, deadline()).await?;
            // The client may have gone: it does not like what it saw.
            let _ = accepted.stream.write_all(b"x").await;
            let _ = accepted.stream.flush().await;
            Ok(accepted)
        };
        let ask = async {
            let (mut stream, proof) = connector.connect(client, server_name, demand, deadline()).await?;
            stream.read_u8().await.map_err(|error| Unmet::Handshake(error.to_string()))?;
            Ok((stream, proof))
        };
        tokio::join!(serve, ask)
    }

    fn kind(stream: &Stream) -> HandshakeKind {
        match stream {
            Stream::Plain(_) | Stream::Simulated(_) => panic!("not in TLS"),
            Stream::Accepted(tls) => tls.get_ref().1.handshake_kind().unwrap(),
            Stream::Connected(tls) => tls.get_ref().1.handshake_kind().unwrap(),
        }
    }

    const HOST: &str = "mail.contoso.com";

    /// `ok`, or what was refused and why.
    fn verdict(result: &Result<Proof, Unmet>) -> String {
        match result {
            Ok(Proof::Named { name, .. }) => {
                assert_eq!(name, HOST);
                "ok".to_owned()
            }
            Ok(other) => panic!("a demand for a name proved {other:?}"),
            Err(Unmet::Chain { why, .. }) => format!("chain: {why}"),
            Err(other) => other.to_string(),
        }
    }

    fn identity((chain, key): (String, String)) -> Identity {
        Identity::from_pem(&chain, &key).unwrap()
    }

    fn blocks(pem: &str) -> Vec<String> {
        pem.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect()
    }

    /// Only alerts about certificates are about ours; the rest is said as it comes.
    #[test]
    fn an_alert_about_our_certificate_is_in_words() {
        for (error, expected) in [
            (
                rustls::Error::AlertReceived(AlertDescription::CertificateExpired),
                Some("our certificate: it has ended ("),
            ),
            (rustls::Error::AlertReceived(AlertDescription::UnknownCA), Some("our certificate: it does not trust")),
            (rustls::Error::AlertReceived(AlertDescription::InternalError), None),
            (rustls::Error::DecryptError, None),
        ] {
            let words = in_words(&io::Error::new(io::ErrorKind::InvalidData, error));
            assert_eq!(words.is_some(), expected.is_some(), "{words:?}");
            assert!(words.unwrap_or_default().contains(expected.unwrap_or_default()), "{expected:?}");
        }
        assert_eq!(in_words(&io::ErrorKind::ConnectionReset.into()), None);
    }

    /// S-050 to S-062, chain by chain, shown by a server and by a client, over real handshakes.
    #[tokio::test]
    async fn certificates_are_worth_what_their_chains_are() {
        let root = Authority::new("Root");
        let stranger = Authority::new("Stranger");
        let middle = root.intermediate("Middle");
        let low = middle.intermediate("Low");
        let old = Authority::with_powers("Old", &Powers { expired: true, ..Powers::default() });
        let unmarked = root.intermediate_with_powers("Unmarked", &Powers { unmarked: true, ..Powers::default() });
        let short = root.intermediate_with_powers("Short", &Powers { path_length: Some(0), ..Powers::default() });
        let own = |domain: &str| Powers { domains: vec![domain.to_owned()], ..Powers::default() };
        let contoso = root.intermediate_with_powers("Contoso", &own("contoso.com"));
        let fabrikam = root.intermediate_with_powers("Fabrikam", &own("fabrikam.com"));
        let ordinary = || Template::new(&[HOST]);

        let (crossed_leaf, crossed_key) = middle.issue_as(&ordinary().without_chain());
        let crossed =
            |certificates: &[String]| identity((crossed_leaf.clone() + &certificates.concat(), crossed_key.clone()));
        let (by_stranger, by_root) = (middle.cross_signed_by(&stranger), middle.cross_signed_by(&root));

        let (chain, low_key) = low.issue(&[HOST]);
        let links = blocks(&chain);
        assert_eq!(links.len(), 3);
        let relinked =
            |order: &[usize]| identity((order.iter().map(|&at| links[at].as_str()).collect(), low_key.clone()));
        let unrelated = (0..20).map(|at| Authority::new(&format!("Unrelated {at}")).pem()).collect::<String>();
        let (middle_chain, middle_key) = middle.issue(&[HOST]);
        let crowded = blocks(&middle_chain)[0].clone() + &unrelated + &blocks(&middle_chain)[1];
        // Each could have issued each other one, as far as the names tell.
        let maze = (0..40).map(|_| stranger.intermediate("Maze")).collect::<Vec<_>>();
        let (maze_leaf, maze_key) = maze[0].issue(&[HOST]);
        let walls = maze.iter().flat_map(|from| maze.iter().take(3).map(|to| from.cross_signed_by(to)));
        let maze_chain = maze_leaf + &walls.collect::<String>();

        let until = "valid until";
        for (id, what, shown, as_server, as_client) in [
            ("S-050", "ordinary", root.identity(&[HOST]), "ok", "ok"),
            ("S-050", "through an intermediate", middle.identity(&[HOST]), "ok", "ok"),
            ("S-050", "through two", low.identity(&[HOST]), "ok", "ok"),
            ("S-050", "upper case", root.identity(&["MAIL.CONTOSO.COM"]), "ok", "ok"),
            ("S-051", "CN alone", root.identity_as(&ordinary().common_name_only()), "ok", "ok"),
            ("S-052", "wildcard", root.identity(&["*.contoso.com"]), "ok", "ok"),
            (
                "S-053",
                "wildcard of a top-level domain",
                root.identity(&["*.com"]),
                "saw one for *.com",
                "saw one for *.com",
            ),
            ("", "another name", root.identity(&["a.example"]), "saw one for a.example", "saw one for a.example"),
            ("S-055", "expired", root.identity_as(&ordinary().expired()), "it was valid until", "it was valid until"),
            (
                "S-055",
                "not yet valid",
                root.identity_as(&ordinary().not_yet_valid()),
                "not valid before",
                "not valid before",
            ),
            ("S-056", "self-signed", identity(Authority::self_signed(&ordinary())), "self-signed", "self-signed"),
            ("S-056", "unknown root", stranger.identity(&[HOST]), "issued by CN=Stranger", "issued by CN=Stranger"),
            (
                "S-056",
                "expired root",
                old.identity(&[HOST]),
                "its root Old was valid until",
                "its root Old was valid until",
            ),
            ("S-056", "cross-signed, good path last", crossed(&[by_stranger.clone(), by_root.clone()]), "ok", "ok"),
            ("S-056", "cross-signed, good path first", crossed(&[by_root, by_stranger.clone()]), "ok", "ok"),
            (
                "S-056",
                "cross-signed, no good path",
                crossed(&[by_stranger]),
                "issued by CN=Middle",
                "issued by CN=Middle",
            ),
            (
                "S-057",
                "intermediate missing",
                middle.identity_as(&ordinary().without_chain()),
                "an intermediate may be missing",
                "an intermediate may be missing",
            ),
            ("S-057", "wrong order", relinked(&[0, 2, 1]), "ok", "ok"),
            ("S-057", "duplicates", relinked(&[0, 1, 1, 2, 0, 2]), "ok", "ok"),
            ("S-057", "20 unrelated ones", identity((crowded, middle_key)), "ok", "ok"),
            (
                "S-058",
                "an authority as host",
                root.identity_as(&Template { is_authority: true, ..ordinary() }),
                "not of a host",
                "not of a host",
            ),
            ("S-058", "a host as authority", unmarked.identity(&[HOST]), "not an authority", "not an authority"),
            ("S-058", "path too long", short.intermediate("Deep").identity(&[HOST]), "longer than", "longer than"),
            ("S-058", "allowed path", short.identity(&[HOST]), "ok", "ok"),
            ("S-058", "allowed domain", contoso.identity(&[HOST]), "ok", "ok"),
            ("S-058", "wildcard in an allowed domain", contoso.identity(&["*.contoso.com"]), "ok", "ok"),
            ("S-058", "foreign domain", fabrikam.identity(&[HOST]), "may not issue", "may not issue"),
            (
                "S-058",
                "wildcard in a foreign domain",
                fabrikam.identity(&["*.contoso.com"]),
                "may not issue",
                "may not issue",
            ),
            (
                "S-058",
                "foreign domain as CN",
                fabrikam.identity_as(&ordinary().common_name_only()),
                "demanded a certificate for",
                "demanded a certificate for",
            ),
            ("S-059", "no use", root.identity_as(&ordinary().uses(&[])), "ok", "ok"),
            ("S-060", "servers only", root.identity_as(&ordinary().uses(&[Use::Server])), "ok", "ok"),
            (
                "S-059",
                "clients only",
                root.identity_as(&ordinary().uses(&[Use::Client])),
                "not issued for this use",
                "ok",
            ),
            (
                "S-059",
                "mail only",
                root.identity_as(&ordinary().uses(&[Use::Mail])),
                "not issued for this use",
                "not issued for this use",
            ),
            (
                "S-059",
                "any, by that name",
                root.identity_as(&ordinary().uses(&[Use::Any])),
                "not issued for this use",
                "not issued for this use",
            ),
            ("S-062", "a maze of authorities", identity((maze_chain, maze_key)), "chain: ", "chain: "),
        ] {
            let roots = if what == "expired root" { old.roots() } else { root.roots() };
            let acceptor = Acceptor::new(&shown, true);
            let connector = Connector::new(Some(&shown));
            let demand = Demand::Domain(roots.clone(), names(&[HOST]));

            // A client that demands nothing: both sides see the other's certificate, whatever it is worth.
            let (accepted, connected) = meet(&acceptor, &connector, HOST, &Demand::Encryption).await;
            let accepted = accepted.unwrap_or_else(|error| panic!("{id}: {what}: {error}"));
            assert!(matches!(connected, Ok((_, Proof::Encrypted { .. }))), "{id}: {what}: {connected:?}");
            let client = accepted.client.unwrap_or_else(|| panic!("{id}: {what}: no client certificate"));
            let client = verdict(&client.judge(&roots, &names(&[HOST]), Timestamp::now()));
            let fits = |verdict: &str, expected: &str| match expected {
                "ok" => verdict == "ok",
                part => verdict.contains(part),
            };
            assert!(fits(&client, as_client), "{id}: {what}, as client: {client}");

            let began = std::time::Instant::now();
            let (_, connected) = meet(&acceptor, &Connector::new(None), HOST, &demand).await;
            let server = verdict(&connected.map(|(_, proof)| proof));
            assert!(fits(&server, as_server), "{id}: {what}, as server: {server}");
            assert!(began.elapsed() < Duration::from_secs(30), "{id}: {what}: took {:?}", began.elapsed());
            if client.contains(until) {
                assert!(client.contains("and it is now"), "both times are named: {client}");
            }
        }
    }

    #[tokio::test]
    async fn each_demand_accepts_what_it_says() {
        let (root, stranger) = (Authority::new("Root"), Authority::new("Stranger"));
        let (good, other) = (root.identity(&[HOST]), root.identity(&["other.example"]));
        let bad = identity(Authority::self_signed(&Template::new(&[HOST]).expired()));
        let certificate = || Demand::Certificate(root.roots());
        let domain = || Demand::Domain(root.roots(), names(&[HOST]));
        for (what, shown, demand, expected) in [
            ("nothing, bad", &bad, Demand::Nothing, "Encrypted"),
            ("encryption, bad", &bad, Demand::Encryption, "Encrypted"),
            ("certificate, bad", &bad, certificate(), "Chain"),
            ("certificate, other name", &other, certificate(), "Chained"),
            ("certificate, other roots", &good, Demand::Certificate(stranger.roots()), "Chain"),
            ("domain, good", &good, domain(), "Named"),
            ("domain, other name", &other, domain(), "Name"),
            ("domain, bad", &bad, domain(), "Chain"),
        ] {
            let (_, result) = meet(&Acceptor::new(shown, false), &Connector::new(None), HOST, &demand).await;
            let seen = match &result {
                Ok((_, Proof::Plain)) => "Plain",
                Ok((_, Proof::Encrypted { .. })) => "Encrypted",
                Ok((_, Proof::Chained { .. })) => "Chained",
                Ok((_, Proof::Named { .. })) => "Named",
                Err(Unmet::Chain { .. }) => "Chain",
                Err(Unmet::Name { .. }) => "Name",
                Err(Unmet::NotOffered | Unmet::Refused(_) | Unmet::Handshake(_) | Unmet::Demanded { .. }) => "no TLS",
            };
            assert_eq!(seen, expected, "{what}: {result:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_says_what_was_seen() {
        let root = Authority::new("Root");
        let acceptor = Acceptor::new(&root.identity(&["edge1.example.net", "edge2.example.net"]), false);
        let demand = Demand::Domain(root.roots(), names(&["mail.protection.outlook.com"]));
        let (_, result) = meet(&acceptor, &Connector::new(None), "edge1.example.net", &demand).await;
        assert_eq!(
            result.unwrap_err().to_string(),
            "demanded a certificate for mail.protection.outlook.com, saw one for edge1.example.net, edge2.example.net"
        );
    }

    /// S-036: sessions are resumed, and judged again by the rules of the moment, on both sides.
    #[tokio::test]
    async fn s036_resumed_sessions_are_judged_again() {
        for version in [&TLS12, &TLS13] {
            let (root, stranger) = (Authority::new("Root"), Authority::new("Stranger"));
            let identity = root.identity(&[HOST]);
            let acceptor = Acceptor::new(&identity, true);
            let connector = Connector::with_versions(Some(&identity), &[version]);
            let domain = |roots: Roots, name: &str| Demand::Domain(roots, names(&[name]));

            let (accepted, connected) = meet(&acceptor, &connector, HOST, &domain(root.roots(), HOST)).await;
            assert_eq!(kind(&accepted.unwrap().stream), HandshakeKind::Full, "{version:?}");
            assert!(matches!(connected, Ok((_, Proof::Named { .. }))), "{version:?}: {connected:?}");

            let (accepted, connected) = meet(&acceptor, &connector, HOST, &domain(root.roots(), HOST)).await;
            let accepted = accepted.unwrap();
            assert_eq!(kind(&accepted.stream), HandshakeKind::Resumed, "{version:?}");
            assert!(matches!(connected, Ok((_, Proof::Named { .. }))), "{version:?}: {connected:?}");
            let client = accepted.client.expect("a resumed session keeps the client's certificate");
            let now = Timestamp::now();
            assert!(client.judge(&root.roots(), &names(&[HOST]), now).is_ok(), "{version:?}");
            let removed = client.judge(&stranger.roots(), &names(&[HOST]), now);
            assert!(matches!(removed, Err(Unmet::Chain { .. })), "{version:?}: {removed:?}");
            let changed = client.judge(&root.roots(), &names(&["a.example"]), now);
            assert!(matches!(changed, Err(Unmet::Name { .. })), "{version:?}: {changed:?}");
            let later = now + jiff::SignedDuration::from_hours(24 * 365);
            let expired = client.judge(&root.roots(), &names(&[HOST]), later);
            assert!(matches!(expired, Err(Unmet::Chain { .. })), "{version:?}: {expired:?}");

            let (accepted, connected) = meet(&acceptor, &connector, HOST, &domain(stranger.roots(), HOST)).await;
            assert_eq!(kind(&accepted.unwrap().stream), HandshakeKind::Resumed, "{version:?}");
            assert!(matches!(connected, Err(Unmet::Chain { .. })), "{version:?}: {connected:?}");
        }
    }

    #[tokio::test]
    async fn s036_a_session_of_one_listener_is_not_resumed_at_another() {
        for version in [&TLS12, &TLS13] {
            let identity = Authority::new("Root").identity(&[HOST]);
            let (one, other) = (Acceptor::new(&identity, false), Acceptor::new(&identity, false));
            let connector = Connector::with_versions(None, &[version]);
            let (accepted, _) = meet(&one, &connector, HOST, &Demand::Encryption).await;
            assert_eq!(kind(&accepted.unwrap().stream), HandshakeKind::Full);
            let (accepted, connected) = meet(&other, &connector, HOST, &Demand::Encryption).await;
            assert_eq!(kind(&accepted.unwrap().stream), HandshakeKind::Full, "{version:?}");
            assert!(connected.is_ok());
        }
    }

    #[tokio::test]
    async fn s063_a_client_without_certificate_is_a_client() {
        let identity = Authority::new("Root").identity(&[HOST]);
        for (ask, has, expected) in [(true, true, true), (true, false, false), (false, true, false)] {
            let connector = Connector::new(has.then_some(&identity));
            let (accepted, connected) = meet(&Acceptor::new(&identity, ask), &connector, HOST, &Demand::Nothing).await;
            assert!(connected.is_ok());
            let client = accepted.unwrap().client;
            assert_eq!(client.is_some(), expected, "asked: {ask}, has one: {has}");
            if let Some(client) = client {
                assert_eq!(client.description(), "certificate for mail.contoso.com, issued by CN=Root");
            }
        }
    }

    #[tokio::test]
    async fn s065_sni_is_the_host_name_and_none_for_addresses() {
        let acceptor = Acceptor::new(&Authority::new("Root").identity(&[HOST]), false);
        for (server_name, expected) in [
            ("mail.contoso.com", Some("mail.contoso.com")),
            ("mail.contoso.com.", Some("mail.contoso.com")),
            ("MAIL.contoso.com", Some("mail.contoso.com")),
            ("unknown.example", Some("unknown.example")),
            ("127.0.0.1", None),
            ("::1", None),
            ("[127.0.0.1]", None),
            ("[IPv6:2001:db8::1]", None),
            ("no name", None),
            ("", None),
        ] {
            let (accepted, connected) = meet(&acceptor, &Connector::new(None), server_name, &Demand::Nothing).await;
            assert!(connected.is_ok(), "{server_name}: {connected:?}");
            assert_eq!(accepted.unwrap().sni.as_deref(), expected, "{server_name}");
        }
    }

    #[tokio::test]
    async fn the_protocol_is_named_as_iana_does() {
        let root = Authority::new("Root");
        let acceptor = Acceptor::new(&root.identity(&[HOST]), false);
        for (version, expected) in
            [(&TLS13, "TLSv1.3 TLS_AES_256_GCM_SHA384"), (&TLS12, "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")]
        {
            let connector = Connector::with_versions(None, &[version]);
            let (accepted, connected) = meet(&acceptor, &connector, HOST, &Demand::Nothing).await;
            assert_eq!(accepted.unwrap().protocol, expected);
            assert_eq!(connected.unwrap().1, Proof::Encrypted { protocol: expected.to_owned() });
        }
    }

    /// Whoever shows somebody else's certificate fails, also where any certificate would do.
    #[tokio::test]
    async fn the_signature_of_the_handshake_is_checked_for_all() {
        let root = Authority::new("Root");
        let (victim, thief) = (root.identity(&[HOST]), root.identity(&["thief.example"]));
        let stolen = CertifiedKey::new(victim.certified.cert.clone(), thief.certified.key.clone());
        let stolen = Arc::new(Presents(Arc::new(stolen)));
        for version in [&TLS12, &TLS13] {
            let server = ServerConfig::builder_with_provider(provider().clone())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(stolen.clone());
            let acceptor = Acceptor(Arc::new(server), SignatureAlgorithm::ECDSA);
            let (_, connected) = meet(&acceptor, &Connector::new(None), HOST, &Demand::Nothing).await;
            assert!(matches!(connected, Err(Unmet::Handshake(_))), "{version:?}: {connected:?}");

            let client = ClientConfig::builder_with_provider(provider().clone())
                .with_protocol_versions(&[version])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate))
                .with_client_cert_resolver(stolen.clone());
            let connector = Connector(TlsConnector::from(Arc::new(client)));
            let (accepted, _) = meet(&Acceptor::new(&victim, true), &connector, HOST, &Demand::Nothing).await;
            assert!(accepted.is_err(), "{version:?}: {accepted:?}");
        }
    }

    /// S-032: what a server may do instead of shaking hands.
    #[tokio::test]
    async fn s032_a_server_that_does_not_shake_hands() {
        for answer in [b"".as_slice(), b"500 what?\r\n", b"\x15\x03\x03\0\x02\x02\x28", &[0xff; 64]] {
            let (client, mut server) = pair().await;
            let serve = async {
                server.write_all(answer).await.unwrap();
                server.shutdown().await.unwrap();
                let _ = server.read_to_end(&mut Vec::new()).await;
            };
            let connector = Connector::new(None);
            let ask = connector.connect(client, HOST, &Demand::Nothing, deadline());
            let ((), result) = tokio::join!(serve, ask);
            assert!(matches!(result, Err(Unmet::Handshake(_))), "{answer:?}: {result:?}");
        }
    }

    /// S-038: neither side waits beyond its deadline for the other.
    #[tokio::test]
    async fn s038_silence_ends_at_the_deadline() {
        let soon = || Instant::now() + Duration::from_millis(50);
        let (client, server) = pair().await;
        let acceptor = Acceptor::new(&Authority::new("Root").identity(&[HOST]), false);
        let accepted = acceptor.accept(server, soon()).await;
        assert_eq!(accepted.unwrap_err().to_string(), "it was not over in time");
        drop(client);

        let (client, server) = pair().await;
        let result = Connector::new(None).connect(client, HOST, &Demand::Nothing, soon()).await;
        assert_eq!(result.unwrap_err(), Unmet::Handshake("it was not over in time".to_owned()));
        drop(server);
    }

    /// S-035 and S-037: plain text, and versions that are not spoken any more.
    #[tokio::test]
    async fn s035_s037_what_a_server_refuses() {
        let acceptor = Acceptor::new(&Authority::new("Root").identity(&[HOST]), false);
        let hello = |version: u8| {
            let body = [&[3, version][..], &[7; 32], &[0], &[0, 2, 0, 0x2f], &[1, 0]].concat();
            let length = u8::try_from(body.len()).unwrap();
            [&[22, 3, 1, 0, length + 4, 1, 0, 0, length], body.as_slice()].concat()
        };
        for (what, bytes) in [
            ("plain text", b"EHLO client.example\r\n".to_vec()),
            ("SSL 3", hello(0)),
            ("TLS 1.0", hello(1)),
            ("TLS 1.1", hello(2)),
            ("SSL 2", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10]),
        ] {
            let (mut client, server) = pair().await;
            client.write_all(&bytes).await.unwrap();
            let accepted = acceptor.accept(server, deadline()).await;
            assert!(accepted.is_err(), "{what}");
            let mut answer = Vec::new();
            // The alert may be cut off where bytes were left unread.
            let _ = client.read_to_end(&mut answer).await;
            assert!(answer.first().is_none_or(|&kind| kind == 21), "{what}: nothing but an alert: {answer:?}");
        }
    }

    /// A ClientHello of TLS 1.2, in which the server's certificate comes in the clear, that asks for this name.
    fn hello_for(name: &[u8]) -> Vec<u8> {
        fn sized(bytes: &[u8]) -> Vec<u8> {
            [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
        }
        let extension = |number: u16, content: &[u8]| [&number.to_be_bytes(), &*sized(content)].concat();
        let extensions = [
            extension(0, &sized(&[&[0][..], &sized(name)].concat())), // the name
            extension(10, &sized(&[0, 23])),                          // P-256
            extension(11, &[1, 0]),                                   // uncompressed
            extension(13, &sized(&[4, 3])),                           // ECDSA and SHA-256
            extension(23, &[]),
            extension(0xff01, &[0]),
        ];
        let ciphers = sized(&[0xc0, 0x2b]);
        let body = [&[3, 3][..], &[7; 32], &[0], &ciphers, &[1, 0], &sized(&extensions.concat())].concat();
        let message = [&[1, 0], &*sized(&body)].concat();
        [&[22, 3, 1][..], &sized(&message)].concat()
    }

    /// Whatever is asked for, there is one certificate. None of it is looked for anywhere, and the next client is served.
    #[tokio::test]
    async fn s066_a_name_that_is_asked_for_chooses_nothing() {
        let identity = Authority::new("Root").identity(&[HOST]);
        let acceptor = Acceptor::new(&identity, true);
        let leaf = identity.certified.cert[0].to_vec();
        let long = [b"a".repeat(63), b"b".repeat(63), b"c".repeat(63), b"d".repeat(61)].join(&b'.');
        for (what, name) in [
            ("ours", HOST.as_bytes()),
            ("unknown", b"unknown.example"),
            ("upper case", b"MAIL.CONTOSO.COM"),
            ("as long as a name may be", &long[..253]),
            ("empty", b""),
            ("255 octets", &[b'a'; 255]),
            ("hyphens", b"-bad-.lab"),
            ("a backslash at the end", b"mail.contoso.com\\"),
            ("the way to a file", b"../../etc/passwd"),
            ("a zero", b"mail.contoso.com\0.evil.example"),
            ("not ASCII", b"\xff\xfe"),
        ] {
            let (mut client, server) = pair().await;
            client.write_all(&hello_for(name)).await.unwrap();
            // The client says no more: the server has answered, and in the end it gives up.
            let accepting = acceptor.accept(server, deadline());
            let answer = async {
                let mut answer = Vec::new();
                while memchr::memmem::find(&answer, &leaf).is_none()
                    && client.read_buf(&mut answer).await.unwrap_or(0) > 0
                {}
                drop(client);
                answer
            };
            let (accepted, answer) = tokio::join!(accepting, answer);
            assert!(accepted.is_err(), "{what}: nobody went on");
            assert!(memchr::memmem::find(&answer, &leaf).is_some(), "{what}: {answer:?}");
        }
        let (accepted, connected) = meet(&acceptor, &Connector::new(None), HOST, &Demand::Nothing).await;
        assert!(accepted.is_ok() && connected.is_ok());
    }

    #[tokio::test]
    async fn readable_sees_what_is_decrypted_already() {
        let acceptor = Acceptor::new(&Authority::new("Root").identity(&[HOST]), false);
        let (accepted, connected) = meet(&acceptor, &Connector::new(None), HOST, &Demand::Nothing).await;
        let (mut server, (mut client, _)) = (accepted.unwrap().stream, connected.unwrap());
        assert!(server.is_tls() && client.is_tls() && client.is_write_vectored());
        server.write_all(b"two").await.unwrap();
        server.flush().await.unwrap();
        for expected in b"two" {
            timeout_at(deadline(), client.readable()).await.expect("readable").unwrap();
            assert_eq!(client.read_u8().await.unwrap(), *expected);
        }
        // Nothing is left: it waits. A first call may come back too early.
        let mut pending = false;
        for _ in 0..2 {
            let mut byte = [0];
            let waits = tokio::time::timeout(Duration::from_millis(20), client.readable()).await.is_err();
            pending |= waits;
            let read = tokio::time::timeout(Duration::from_millis(20), client.read(&mut byte)).await;
            assert!(read.is_err(), "there is nothing to read: {read:?}");
        }
        assert!(pending, "it never waits");
        drop(server);
        timeout_at(deadline(), client.readable()).await.expect("an end is readable").unwrap();
    }

    #[test]
    fn a_provider_can_be_installed_twice() {
        install_provider();
        install_provider();
        assert!(CryptoProvider::get_default().is_some());
    }
}
