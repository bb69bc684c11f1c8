//! Listeners, connection limits, sessions.
//!
//! A [`Door`] is one listening address. Which receive connector a connection belongs to is decided per
//! connection, from the configuration that stands when it comes.
//!
//! Not here: what a session says (`smtp::server`), what becomes of a message (`relay`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::AsyncWrite;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

mod attribute;
mod drive;
mod failures;
mod limits;
#[allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "passwords are taken in TLS only, which no simulated world has"
)]
mod logins;
pub mod proxy;
mod reception;

pub use attribute::{Attribution, attribute};
pub use drive::{Reception, drive};

use failures::FailedHandshakes;
use limits::{Descriptors, Limits, Slot};
use logins::Logins;
use reception::RelayReception;

use crate::clock;
use crate::config::{Config, ConnectorName, ReceiveConnector, ReceiveTls};
use crate::random::HashMap;
use crate::relay::{Relay, Snapshot};
use crate::smtp::Reply;
use crate::smtp::server::{Session, Terms};
use crate::tls::{Acceptor, ClientCertificate, HandshakeError, Stream, in_words};

/// After `accept` failed (no descriptors left, say), so long nothing is accepted: no spinning (S-121).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// And so often the log says so.
const SAY_AGAIN: Duration = Duration::from_secs(1);

/// One listening address under one configuration.
#[derive(Debug)]
pub struct Door {
    /// The address as the configuration names it.
    pub listen: SocketAddr,
    acceptors: HashMap<ConnectorName, Acceptor>,
    /// Those of the configuration before.
    before: HashMap<ConnectorName, Acceptor>,
}

impl Door {
    /// The door at `listen`, with an acceptor for every connector there that does TLS.
    pub fn new(listen: SocketAddr, config: &Config) -> Self {
        let here = || config.receive_connectors.iter().filter(|connector| connector.listen.contains(&listen));
        let ask = here().any(|connector| connector.tls_domain.is_some());
        let acceptors = here()
            .filter_map(|connector| {
                let identity = connector.identity.as_ref()?;
                Some((connector.name.clone(), Acceptor::new(identity, ask)))
            })
            .collect();
        Self { listen, acceptors, before: HashMap::default() }
    }

    /// The same as successor of `last`: it also opens for what only that knew, as long as connections may still be
    /// judged by the configuration before.
    pub fn after(last: &Self, config: &Config) -> Self {
        Self { before: last.acceptors.clone(), ..Self::new(last.listen, config) }
    }

    fn acceptor(&self, connector: &ReceiveConnector) -> io::Result<&Acceptor> {
        self.acceptors
            .get(&connector.name)
            .or_else(|| self.before.get(&connector.name))
            .ok_or_else(|| io::Error::other(format!("receive connector {} has no certificate", connector.name)))
    }
}

/// Accepts connections until `stopping`, then waits for the sessions under way, until `abandon`: those that are left then
/// are cut off, and gone when this returns. `door` gives the door of the configuration that stands now; on a change it
/// gives the next one before the relay has the next configuration.
pub async fn listen(
    listener: TcpListener,
    mut door: watch::Receiver<Arc<Door>>,
    relay: Relay,
    limits: ConnectionLimits,
    mut stopping: watch::Receiver<bool>,
    mut abandon: watch::Receiver<bool>,
) {
    let mut sessions = JoinSet::new();
    let mut told = None;
    loop {
        if *stopping.borrow() {
            break;
        }
        let accepted = tokio::select! {
            biased;
            _ = stopping.changed() => break,
            accepted = listener.accept() => accepted,
            Some(_) = sessions.join_next(), if !sessions.is_empty() => continue,
        };
        match accepted {
            Ok((socket, peer)) => {
                // In this order: a door opens for its own configuration and the one before, so whichever snapshot it
                // was, the door has its acceptors.
                let snapshot = relay.snapshot();
                let door = Arc::clone(&door.borrow_and_update());
                let (relay, limits, stopping) = (relay.clone(), limits.clone(), stopping.clone());
                sessions.spawn(async move {
                    if let Err(error) = serve(socket, peer, (door, snapshot), relay, limits, stopping).await {
                        debug!(%peer, %error, "connection ended");
                    }
                });
                // Where there is always one more to accept, those that ended would never be asked for below.
                while sessions.try_join_next().is_some() {}
            }
            Err(error) => {
                // Ten times a second is no news.
                if told.is_none_or(|told: Instant| told.elapsed() >= SAY_AGAIN) {
                    told = Some(clock::now());
                    warn!(%error, "no connection can be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let ended = async { while sessions.join_next().await.is_some() {} };
    let cut_off = tokio::select! {
        () = ended => false,
        // The other end is the daemon's; if that is gone, so are the sessions.
        _ = abandon.wait_for(|abandon| *abandon) => true,
    };
    if cut_off {
        sessions.shutdown().await;
    }
}

/// What clients may ask of us at one time, over all listeners and configurations: connections, and logins.
#[derive(Debug, Clone, Default)]
pub struct ConnectionLimits {
    connections: Limits,
    descriptors: Descriptors,
    logins: Logins,
    failed_handshakes: FailedHandshakes,
}

impl ConnectionLimits {
    /// Limits of this relay's listeners.
    pub fn new(relay: &Relay) -> Self {
        Self { logins: Logins::within(Arc::clone(relay.hash_memory())), ..Self::default() }
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.connections.open()
    }
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    /// The other end of the connection, a proxy perhaps: it chooses the connector.
    peer: IpAddr,
    /// The client itself, for everything else.
    client: IpAddr,
}

async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    configured: (Arc<Door>, Arc<Snapshot>),
    relay: Relay,
    limits: ConnectionLimits,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    // To let a connection in takes more memory than to hold it, so that part has memory of its own and returns it.
    let failed_handshakes = limits.failed_handshakes.clone();
    let (stream, session, mut reception, client) = {
        let admitted = Box::pin(admit(socket, peer, configured, relay, limits)).await?;
        let Some(Admitted { stream, session, reception, client }) = admitted else { return Ok(()) };
        (stream, session, reception, client)
    };
    let ended = drive(stream, session, &mut reception, stopping).await;
    if let Err(error) = &ended
        && let Some(why) = handshake_failure(error)
    {
        failed_handshakes.log(client, reception.connector(), &why);
    }
    ended
}

/// A connection that was let in.
struct Admitted {
    stream: Stream,
    session: Session,
    reception: RelayReception,
    /// Where the client is.
    client: IpAddr,
}

/// `None`: it was told why not.
async fn admit(
    mut socket: TcpStream,
    peer: SocketAddr,
    (door, snapshot): (Arc<Door>, Arc<Snapshot>),
    relay: Relay,
    limits: ConnectionLimits,
) -> io::Result<Option<Admitted>> {
    socket.set_nodelay(true)?;
    // Before anything is kept of it.
    if limits.descriptors.is_short(socket.as_raw_fd()) {
        return turn_away(socket, &Reply::overloaded()).await.map(|()| None);
    }
    if let Err(reply) = relay.check_connection() {
        return turn_away(socket, &reply).await.map(|()| None);
    }
    let connectors = &snapshot.config.receive_connectors;
    let Some(provisional) = attribute(connectors, door.listen, peer.ip(), false, None, clock::wall()) else {
        return turn_away(socket, &Reply::peer_not_allowed()).await.map(|()| None);
    };
    let mut from = Addresses { peer: peer.ip().to_canonical(), client: peer.ip().to_canonical() };
    let entered = if provisional.connector.proxy_protocol {
        limits.connections.enter_behind_proxy(&provisional.connector)
    } else {
        limits.connections.enter(&provisional.connector, from.client)
    };
    let mut slot = match entered {
        Ok(slot) => slot,
        Err(reply) => return turn_away(socket, &reply).await.map(|()| None),
    };
    if provisional.connector.proxy_protocol {
        match proxy::receive(&mut socket).await {
            Ok(Some(proxy::Client::Proxy)) => {}
            Ok(Some(proxy::Client::Behind(client))) => from.client = client,
            Ok(None) => return Ok(None),
            Err(error) => {
                // Without a word to the peer; the operator may have forgotten to tell the proxy.
                info!(%peer, connector = %provisional.connector.name, %error, "closed");
                return Ok(None);
            }
        }
        if let Err(reply) = slot.come_from(&provisional.connector, from.client) {
            return turn_away(socket, &reply).await.map(|()| None);
        }
    }
    let (stream, attribution, tls, client) = if provisional.connector.tls == ReceiveTls::Implicit {
        let acceptor = door.acceptor(&provisional.connector)?;
        let deadline = tokio::time::Instant::now() + provisional.connector.tls_handshake_timeout;
        let accepted = match acceptor.accept(socket, deadline).await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Whoever connects and says nothing looks whether the port is open: load balancers do all day.
                if error.began {
                    limits.failed_handshakes.log(from.client, &provisional.connector.name.0, &error.to_string());
                }
                return Err(error.into());
            }
        };
        let certificate = accepted.client.as_ref();
        let proved = attribute(connectors, door.listen, peer.ip(), true, certificate, clock::wall());
        let attribution = proved.unwrap_or(provisional);
        slot.move_to(&attribution.connector);
        attribution.tell(from.client, certificate);
        (accepted.stream, attribution, Some(accepted.protocol), accepted.client)
    } else {
        (Stream::Plain(socket), provisional, None, None)
    };
    let counted = (slot, limits.logins);
    Ok(Some(admitted(stream, (door, snapshot), relay, from, attribution, (tls, client), counted)))
}

/// The session, once it is known who is there.
fn admitted(
    stream: Stream,
    (door, snapshot): (Arc<Door>, Arc<Snapshot>),
    relay: Relay,
    from: Addresses,
    attribution: Attribution,
    (tls, client): (Option<String>, Option<ClientCertificate>),
    counted: (Slot, Logins),
) -> Admitted {
    let secure = tls.is_some();
    let session = Session::new(terms(&snapshot.config, &attribution, secure), secure, clock::now());
    let reception = RelayReception::new(relay, snapshot, door, from, attribution, (tls, client), counted);
    Admitted { stream, session, reception, client: from.client }
}

/// Did the connection end because of TLS, and why? In TLS 1.3 a client says only after our side of the handshake that it
/// does not accept our certificate.
fn handshake_failure(error: &io::Error) -> Option<String> {
    let failed = error.get_ref().and_then(|inner| inner.downcast_ref::<HandshakeError>());
    failed.map(ToString::to_string).or_else(|| in_words(error))
}

/// [`serve`] for a connection of a simulated network, in the clear and without a proxy.
#[cfg(test)]
pub(crate) async fn serve_simulated(
    wire: crate::tls::wire::Wire,
    peer: IpAddr,
    door: Arc<Door>,
    relay: Relay,
    limits: ConnectionLimits,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let snapshot = relay.snapshot();
    let stream = Stream::Simulated(wire);
    if let Err(reply) = relay.check_connection() {
        return turn_away(stream, &reply).await;
    }
    let connectors = &snapshot.config.receive_connectors;
    let found = attribute(connectors, door.listen, peer, false, None, clock::wall());
    let Some(attribution) = found else { return turn_away(stream, &Reply::peer_not_allowed()).await };
    let slot = match limits.connections.enter(&attribution.connector, peer) {
        Ok(slot) => slot,
        Err(reply) => return turn_away(stream, &reply).await,
    };
    let from = Addresses { peer, client: peer };
    let counted = (slot, limits.logins);
    let Admitted { stream, session, mut reception, .. } =
        admitted(stream, (door, snapshot), relay, from, attribution, (None, None), counted);
    drive(stream, session, &mut reception, stopping).await
}

/// What the session is held to.
fn terms(config: &Config, attribution: &Attribution, secure: bool) -> Terms {
    let connector = &attribution.connector;
    Terms {
        hostname: config.hostname.clone(),
        offer_starttls: !secure && connector.identity.is_some() && connector.tls != ReceiveTls::Off,
        require_tls: attribution.require_tls,
        offer_auth: connector.users_file.is_some(),
        require_auth: connector.require_auth,
        max_message_size: connector.max_message_size,
        max_recipients: connector.max_recipients,
        max_errors: connector.max_errors,
        strict: connector.strict,
        xoorg: connector.internal && attribution.unproven.is_none(),
        command_timeout: connector.command_timeout,
        data_timeout: connector.data_timeout,
    }
}

/// Says why and closes, within a second.
async fn turn_away(mut socket: impl AsyncWrite + Unpin, reply: &Reply) -> io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let said = async {
        let mut said = BytesMut::new();
        reply.write_to(&mut said);
        socket.write_all(&said).await?;
        socket.shutdown().await
    };
    tokio::time::timeout(Duration::from_secs(1), said).await.unwrap_or(Ok(()))
}
