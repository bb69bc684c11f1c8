//! TCP, the greeting, EHLO, STARTTLS, the demand judged, AUTH.
//!
//! There are two ways to an open session: what was demanded is proved, or nothing was demanded. A message never
//! sees the third.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::drive::Connection;
use super::hosts::Target;
use crate::config::{Level, SendConnector};
use crate::message::Domain;
use crate::outcome::Setback;
use crate::smtp::auth::Credentials;
use crate::smtp::client::{Fault, HANDSHAKE_WAIT, Session, StartTls, Step, Terms};
use crate::tls::{self, Demand, Names, Proof, Stream, Unmet};

/// So long the hosts of one attempt may take together until their sessions are open: five minutes for a greeting, as RFC
/// 5321 section 4.5.3.2.1 has it, and one for the rest. Five hosts that say nothing would otherwise hold one connection for
/// as many times five minutes, and whoever owns a domain can have five of them.
const OPENING: Duration = Duration::from_mins(6);

/// But so long each of them may take, whatever the others took: one that is well is not passed over for their sake.
const LEAST_OPENING: Duration = Duration::from_secs(30);

/// How a connector speaks to its hosts.
pub struct Way<'a> {
    /// The connector.
    pub connector: &'a SendConnector,
    /// What we call ourselves.
    pub helo: &'a str,
    /// This relay's hostname: a host of that name is this relay.
    pub own_name: &'a Domain,
    /// Opens TLS, presenting the connector's certificate; `None` where it never does.
    pub tls: Option<&'a tls::Connector>,
    /// The recipients' domain, if their MX is what we speak to.
    pub domain: Option<&'a Domain>,
    /// When the patience of this attempt ends with hosts that open no session: set by the first that is called.
    pub patience: &'a OnceLock<std::time::Instant>,
}

/// Why no connection came of it.
#[derive(Debug)]
pub enum Failure {
    /// There is no way into that network from here; nothing was tried.
    OutOfReach(Setback),
    /// It was tried.
    Setback(Setback),
}

/// What a host must prove to this connector.
pub fn demand(connector: &SendConnector, host: Option<&Domain>, domain: Option<&Domain>) -> Demand {
    match &connector.tls {
        Level::Off => Demand::Plain,
        // A password is not said in the clear, nor is the message sent without it.
        Level::Opportunistic if connector.login.is_some() => Demand::Encryption,
        Level::Opportunistic => Demand::Nothing,
        Level::Encrypt => Demand::Encryption,
        Level::Certificate(roots) => Demand::Certificate(roots.clone()),
        Level::Domain(roots, Some(names)) => Demand::Domain(roots.clone(), names.clone()),
        Level::Domain(roots, None) => {
            let names = [host, domain].into_iter().flatten().map(Domain::to_string).collect();
            match Names::new(names) {
                Some(names) => Demand::Domain(roots.clone(), names),
                // An address without a domain has no name to prove: no certificate can carry the empty one.
                None => Demand::Domain(roots.clone(), unprovable()),
            }
        }
    }
}

fn unprovable() -> Names {
    Names::new(vec![String::new()]).expect("one name is not none")
}

/// The host as a person reads it: `mx1.example.net [192.0.2.1]:25`.
pub fn describe(target: &Target) -> String {
    let (ip, port) = (target.address.ip(), target.address.port());
    match &target.name {
        Some(name) => format!("{name} [{ip}]:{port}"),
        None => format!("[{ip}]:{port}"),
    }
}

/// Opens a session with `target`.
///
/// # Errors
/// Why it cannot be had.
pub async fn open(target: &Target, way: &Way<'_>) -> Result<Connection, Failure> {
    let demand = &demand(way.connector, target.name.as_ref(), way.domain);
    let starttls = match demand {
        Demand::Plain => StartTls::Never,
        Demand::Nothing => StartTls::IfOffered,
        Demand::Encryption | Demand::Certificate(_) | Demand::Domain(..) => StartTls::Demanded,
    };
    match open_with(target, way, demand, starttls).await {
        // Opportunistic: TLS that does not work is as if it had not been offered. RFC 7435.
        Err(OpenError::Tls(unmet)) if starttls == StartTls::IfOffered => {
            let (connector, host) = (&way.connector.name, describe(target));
            tracing::info!(%connector, host, %unmet, "TLS failed and is not demanded: going on in the clear");
            open_with(target, way, demand, StartTls::Never).await.map_err(|error| error.at(target))
        }
        result => result.map_err(|error| match error.at(target) {
            // Who reads it knows neither connector nor demand: host, demand and what was seen stand together.
            Failure::Setback(Setback::Unproven { host, unmet }) => {
                Failure::Setback(Setback::Unproven { host, unmet: demand.unmet(unmet) })
            }
            failure => failure,
        }),
    }
}

enum OpenError {
    OutOfReach(String),
    Unreachable(String),
    /// It is this relay that has no more to give: F-053.
    Overload(String),
    Tls(Unmet),
    Session(Fault),
}

impl OpenError {
    fn at(self, target: &Target) -> Failure {
        let host = describe(target);
        Failure::Setback(match self {
            Self::OutOfReach(why) => return Failure::OutOfReach(Setback::Unreachable { host, why }),
            Self::Unreachable(why) => Setback::Unreachable { host, why },
            Self::Overload(why) => Setback::Overload { why },
            Self::Tls(unmet) => Setback::Unproven { host, unmet },
            Self::Session(fault) => setback(&host, fault),
        })
    }
}

async fn open_with(
    target: &Target,
    way: &Way<'_>,
    demand: &Demand,
    starttls: StartTls,
) -> Result<Connection, OpenError> {
    let stream = stream(target, way.connector).await?;
    let session = Session::new(Terms {
        helo: way.helo.to_owned(),
        starttls,
        extended: starttls == StartTls::Demanded || way.connector.login.is_some(),
        login: way
            .connector
            .login
            .as_ref()
            .map(|login| Credentials { username: login.username.clone(), password: login.password.clone() }),
        own_name: Some(way.own_name.to_string()),
    });
    let mut connection = Connection::new(stream, session, describe(target), target.address, Arc::new(Proof::Plain));
    let patience = *way.patience.get_or_init(|| now() + OPENING);
    let patience = patience.max(now() + LEAST_OPENING);
    loop {
        match connection.session.step(now()) {
            Step::Send(bytes, _) => connection.send(&bytes).await,
            Step::Receive { until } => connection.receive(until.min(patience)).await,
            Step::StartTls => connection = shake_hands(connection, target, way, demand).await?,
            Step::Done => break,
        }
    }
    connection.session.outcome().map_err(OpenError::Session)?;
    Ok(connection)
}

/// What the system says, without its number: senders read it in reports.
pub(super) fn in_words(error: &std::io::Error) -> String {
    let mut text = tls::in_words(error).unwrap_or_else(|| error.to_string());
    if let Some(number) = text.find(" (os error ") {
        text.truncate(number);
    }
    text
}

/// In the clear, so far.
async fn stream(target: &Target, connector: &SendConnector) -> Result<Stream, OpenError> {
    #[cfg(test)]
    if let Some(connecting) = tls::wire::connect(target.address) {
        return match timeout(connector.connect_timeout, connecting).await {
            Ok(wire) => wire.map(Stream::Simulated).map_err(|error| OpenError::Unreachable(in_words(&error))),
            Err(_) => Err(OpenError::Unreachable("timed out".to_owned())),
        };
    }
    dial(target, connector).await.map(Stream::Plain)
}

/// No descriptor and no buffer is left on this machine.
fn is_overload(error: &std::io::Error) -> bool {
    use nix::errno::Errno;
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM | Errno::EAGAIN))
}

async fn dial(target: &Target, connector: &SendConnector) -> Result<TcpStream, OpenError> {
    let unreachable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NetworkUnreachable | std::io::ErrorKind::Unsupported => {
            OpenError::OutOfReach(in_words(&error))
        }
        // The hop is innocent, and another of its hosts would fare no better.
        _ if is_overload(&error) => OpenError::Overload(in_words(&error)),
        _ => OpenError::Unreachable(in_words(&error)),
    };
    let (socket, source) = if target.address.is_ipv4() {
        (TcpSocket::new_v4(), connector.source_v4)
    } else {
        (TcpSocket::new_v6(), connector.source_v6)
    };
    let socket = socket.map_err(unreachable)?;
    if let Some(source) = source {
        socket.bind((source, 0).into()).map_err(|error| {
            let why = in_words(&error);
            OpenError::Unreachable(format!("source_ip {source} of send connector {}: {why}", connector.name))
        })?;
    }
    let stream = match timeout(connector.connect_timeout, socket.connect(target.address)).await {
        Ok(stream) => stream.map_err(unreachable)?,
        Err(_) => {
            let waited = connector.connect_timeout.as_secs_f32();
            return Err(OpenError::Unreachable(format!("timed out: no connection within {waited} s")));
        }
    };
    // Every write is a whole group of commands: none should wait for the reply to the one before.
    stream.set_nodelay(true).map_err(unreachable)?;
    Ok(stream)
}

/// The connection itself, as a delivery makes it, for whoever only wants to look.
///
/// # Errors
/// Why there is none.
pub async fn reach(target: &Target, connector: &SendConnector) -> Result<TcpStream, String> {
    dial(target, connector).await.map_err(|error| match error {
        OpenError::OutOfReach(why) | OpenError::Unreachable(why) | OpenError::Overload(why) => why,
        OpenError::Tls(unmet) => unmet.to_string(),
        OpenError::Session(_) => "the session failed".to_owned(),
    })
}

/// The handshake is judged before any byte of SMTP follows.
async fn shake_hands(
    connection: Connection,
    target: &Target,
    way: &Way<'_>,
    demand: &Demand,
) -> Result<Connection, OpenError> {
    let (stream, mut session) = connection.into_parts();
    let (Some(tcp), Some(tls)) = (stream.into_tcp(), way.tls) else {
        return Err(OpenError::Tls(Unmet::Handshake("it is not possible here".to_owned())));
    };
    let server_name = match &target.name {
        Some(name) => name.to_string(),
        None => target.address.ip().to_string(),
    };
    let deadline = Instant::now() + HANDSHAKE_WAIT;
    let (stream, proof) = tls.connect(tcp, &server_name, demand, deadline).await.map_err(OpenError::Tls)?;
    session.secured();
    Ok(Connection::new(stream, session, describe(target), target.address, Arc::new(proof)))
}

/// A fault of the session, with the name of its host.
pub fn setback(host: &str, fault: Fault) -> Setback {
    let host = host.to_owned();
    match fault {
        Fault::Answered { command, reply } => Setback::Answered { host, command, reply },
        Fault::Broken(why) => Setback::Unreachable { host, why },
        Fault::Ambiguous(why) => Setback::Ambiguous { host, why },
        Fault::Protocol { why, .. } => Setback::Protocol { host, why },
        Fault::TlsNotOffered => Setback::Unproven { host, unmet: Unmet::NotOffered },
        Fault::TlsRefused(reply) => Setback::Unproven { host, unmet: Unmet::Refused(reply.to_string()) },
        Fault::Login(why) => Setback::Unreachable { host, why: format!("cannot log in: {why}") },
        Fault::Unsupported(extension) => Setback::Unsupported { host, extension },
        Fault::TooBig { limit, size } => Setback::TooBig { host, limit, size },
        Fault::NoChunking(reply) => {
            Setback::Protocol { host, why: format!("it offers CHUNKING and answered BDAT with {reply}") }
        }
        Fault::OwnName(hostname) => Setback::LoopsBack { host, hostname },
    }
}

pub use crate::clock::now;

#[cfg(test)]
mod tests {
    use super::{in_words, is_overload};
    use nix::errno::Errno;

    /// F-053: a hop is not to rest because we have no descriptors.
    #[test]
    fn what_is_our_own_fault_is_not_the_hops() {
        for (errno, expected) in
            [(Errno::EMFILE, true), (Errno::ENFILE, true), (Errno::ECONNREFUSED, false), (Errno::ETIMEDOUT, false)]
        {
            assert_eq!(is_overload(&errno.into()), expected, "{errno}");
        }
    }

    #[test]
    fn senders_are_not_shown_the_number_of_an_error() {
        let refused = std::io::Error::from(nix::errno::Errno::ECONNREFUSED);
        assert_eq!(in_words(&refused), "Connection refused");
        assert_eq!(in_words(&std::io::Error::other("timed out")), "timed out");
    }
}
