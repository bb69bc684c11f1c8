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
use rustls::{ClientConfig, ConnectionCommon, ProtocolVersion, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector};

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
pub struct Acceptor(TlsAcceptor);

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
        let builder = ServerConfig::builder_with_provider(provider().clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites for TLS 1.2 and 1.3");
        let builder = if ask_client_certificate {
            builder.with_client_cert_verifier(AnyCertificate::new())
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
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// If the handshake fails, or is not over by `deadline`.
    pub async fn accept(&self, stream: TcpStream, deadline: Instant) -> io::Result<Accepted> {
        let accept = self.0.accept_with(stream, |session| session.set_buffer_limit(Some(BUFFER)));
        let tls = timeout_at(deadline, accept).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
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
}

/// Opens TLS to servers, and remembers sessions. Cheap to clone.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl Connector {
    /// Presents `identity` to servers that ask.
    pub fn new(identity: Option<&Identity>) -> Self {
        let builder = ClientConfig::builder_with_provider(provider().clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites for TLS 1.2 and 1.3")
            .dangerous() // the one place; `Demand::judge` makes up for it
            .with_custom_certificate_verifier(AnyCertificate::new());
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
        let handshake = |error: io::Error| Unmet::Handshake(error.to_string());
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
        let proof = demand.judge(&seen, Timestamp::now())?;
        Ok((Stream::Connected(Box::new(tls)), proof))
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
